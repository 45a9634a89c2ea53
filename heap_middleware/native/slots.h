/* Slots, one for each request that may allocate or has records, and the totals of endpoints.
 *
 * While a slot is not settled, its sums are in the slot, because its route is not known yet. A snapshot settles it: what
 * it left alive until then was gained, what goes later is lost. A request whose blocks are all gone by then gained
 * nothing. Once settled and closed, its records name its endpoint, and the slot is free for another.
 */
#ifndef HM_SLOTS_H
#define HM_SLOTS_H

#include "records.h"
#include "tracker.h"

typedef struct {
    uint64_t allocated_objects, allocated_bytes; /* recorded, and not yet added to an endpoint */
    uint64_t freed_objects, freed_bytes;         /* of these, until settled */
    uint32_t records;                            /* live records that name this slot */
    uint32_t endpoint;                           /* HM_NO_ENDPOINT: not finished yet */
    uint32_t next_free;
    uint8_t open, finished, settled, used;
} hm_slot;

typedef struct {
    hm_slot *slots;
    uint32_t count, room, first_free, used;
    uint32_t open; /* requests that may allocate */
    hm_totals *totals;
    uint32_t endpoints, endpoint_room;
} hm_requests;

extern hm_requests hm_all;

/* A slot for a request that begins, or HM_NO_SLOT without memory. */
uint32_t hm_take_slot(void);

/* The slot's endpoint is known. */
void hm_name_slot(uint32_t at, uint32_t endpoint);

/* Nothing can allocate in its name any more. */
void hm_close_slot(uint32_t at);

/* Free the slot if it is closed and has no record. */
void hm_release_if_done(uint32_t at);

/* Settle all finished requests, and point their records at their endpoints. */
void hm_settle_all(void);

/* Forget all sums, those of requests in flight as well, which go on. After hm_forget_records. */
void hm_forget_sums(void);

static inline hm_totals *hm_totals_of(uint32_t endpoint)
{
    return &hm_all.totals[endpoint < hm_all.endpoints ? endpoint : HM_NO_ENDPOINT];
}

/* A record of so much that names the slot was put in. */
static inline void hm_credit(uint32_t at, uint64_t objects, uint64_t bytes)
{
    hm_slot *slot = &hm_all.slots[at];
    slot->records++;
    slot->allocated_objects += objects;
    slot->allocated_bytes += bytes;
    if (UNLIKELY(slot->settled)) {
        hm_totals *totals = hm_totals_of(slot->endpoint);
        totals->gained_objects += objects;
        totals->gained_bytes += bytes;
    }
}

/* A record was taken out, which named a slot or an endpoint. */
static inline void hm_debit(uint32_t named, uint64_t objects, uint64_t bytes)
{
    hm_slot *slot = UNLIKELY(named & HM_SETTLED) ? NULL : &hm_all.slots[named];
    if (LIKELY(slot != NULL && !slot->settled)) {
        slot->freed_objects += objects;
        slot->freed_bytes += bytes;
    }
    else {
        hm_totals *totals = hm_totals_of(slot == NULL ? named & ~HM_SETTLED : slot->endpoint);
        totals->lost_objects += objects;
        totals->lost_bytes += bytes;
    }
    if (slot != NULL && --slot->records == 0) {
        hm_release_if_done(named);
    }
}

/* A record weighs so much more from here on. */
void hm_outweigh(uint32_t named, uint64_t objects, uint64_t bytes);

#endif
