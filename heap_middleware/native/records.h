/* The table of records: one for each recorded block that lives, found by its address.
 *
 * Open addressing, at most half full, no tombstones; three words each. It is here, and not in a file of its own,
 * for the compiler to put it into the two functions that run for each record.
 */
#ifndef HM_RECORDS_H
#define HM_RECORDS_H

#include "home.h"

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uintptr_t block; /* 0: an empty place */
    uint64_t size : 48, site : 16; /* see sites.h */
    uint32_t slot; /* or, once settled, HM_SETTLED and the number of an endpoint */
    uint32_t weight;
} hm_record;

#define HM_SETTLED 0x80000000u

typedef struct {
    hm_record *places;
    uint64_t mask; /* places less one */
    uint64_t count, max;
} hm_table;

extern hm_table hm_records;

/* Counters, one for many blocks: a block whose counter is 0 has no record. 128 KiB stay in the second-level cache. */
#define HM_FILTER_SIZE 65536
extern uint16_t hm_filter[HM_FILTER_SIZE];

static inline uint16_t *hm_filter_of(const void *block)
{
    return &hm_filter[((uintptr_t)block >> 4) & (HM_FILTER_SIZE - 1)];
}

static inline int hm_may_be_recorded(const void *block)
{
    return LOAD(*hm_filter_of(block)) != 0;
}

/* Room for `max` records; those that there were are forgotten if the table is another. 0, or -1 without memory. */
int hm_make_room(uint64_t max);

/* Forget all records. */
void hm_forget_records(void);

static inline uint64_t hm_place_of(uintptr_t block)
{
    /* Pages anywhere, neighbours in a page side by side: what is recorded and freed over and over stays in the cache. */
    uint64_t page = (uint64_t)block >> 12, within = (uint64_t)block >> 4 & 0xFF;
    return ((page * 0x9E3779B97F4A7C15u >> 32) + within) & hm_records.mask;
}

static inline hm_record *hm_find(uintptr_t block)
{
    for (uint64_t place = hm_place_of(block); hm_records.places[place].block != 0; place = (place + 1) & hm_records.mask) {
        if (hm_records.places[place].block == block) {
            return &hm_records.places[place];
        }
    }
    return NULL;
}

/* Take a record out and move back those behind it that would not be found past the gap. */
static inline void hm_take_out(hm_record *record)
{
    uint64_t gap = (uint64_t)(record - hm_records.places), place = gap;
    uint16_t *counter = hm_filter_of((void *)record->block);
    STORE(*counter, (uint16_t)(*counter - 1));
    for (;;) {
        place = (place + 1) & hm_records.mask;
        if (hm_records.places[place].block == 0) {
            break;
        }
        uint64_t wanted = hm_place_of(hm_records.places[place].block);
        if (((place - wanted) & hm_records.mask) >= ((place - gap) & hm_records.mask)) {
            hm_records.places[gap] = hm_records.places[place];
            gap = place;
        }
    }
    hm_records.places[gap].block = 0;
    hm_records.count--;
}

/* Put in a record of a block that has none. */
static inline void hm_put_in(hm_record record)
{
    uint64_t place = hm_place_of(record.block);
    while (hm_records.places[place].block != 0) {
        place = (place + 1) & hm_records.mask;
    }
    hm_records.places[place] = record;
    uint16_t *counter = hm_filter_of((void *)record.block);
    STORE(*counter, (uint16_t)(*counter + 1));
    hm_records.count++;
}

#endif
