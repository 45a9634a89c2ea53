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
    uint64_t live_objects, live_bytes;           /* recorded and alive, until settled */
    uint64_t allocated_objects, allocated_bytes; /* not yet added to an endpoint */
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

/* The totals to change for what a record names, or NULL: its slot is not settled. */
static inline hm_totals *hm_settled(uint32_t named)
{
    if (UNLIKELY(named & HM_SETTLED)) {
        return hm_totals_of(named & ~HM_SETTLED);
    }
    const hm_slot *slot = &hm_all.slots[named];
    return UNLIKELY(slot->settled) ? hm_totals_of(slot->endpoint) : NULL;
}

static inline void hm_gain(uint32_t named, uint64_t objects, uint64_t bytes)
{
    hm_totals *totals = hm_settled(named);
    if (totals != NULL) {
        totals->gained_objects += objects;
        totals->gained_bytes += bytes;
    }
    else {
        hm_all.slots[named].live_objects += objects;
        hm_all.slots[named].live_bytes += bytes;
    }
}

static inline void hm_lose(uint32_t named, uint64_t objects, uint64_t bytes)
{
    hm_totals *totals = hm_settled(named);
    if (totals != NULL) {
        totals->lost_objects += objects;
        totals->lost_bytes += bytes;
    }
    else {
        hm_all.slots[named].live_objects -= objects;
        hm_all.slots[named].live_bytes -= bytes;
    }
}

/* A record that names the slot was put in. */
static inline void hm_credit(uint32_t at, uint64_t objects, uint64_t bytes)
{
    hm_slot *slot = &hm_all.slots[at];
    slot->records++;
    slot->allocated_objects += objects;
    slot->allocated_bytes += bytes;
    hm_gain(at, objects, bytes);
}

/* A record was taken out. */
static inline void hm_debit(uint32_t named, uint64_t objects, uint64_t bytes)
{
    hm_lose(named, objects, bytes);
    if (!(named & HM_SETTLED) && --hm_all.slots[named].records == 0) {
        hm_release_if_done(named);
    }
}

#endif
