/* See slots.h. */
#include "slots.h"

#include <stdlib.h>
#include <string.h>

#define HM_SETTLE_SLOTS 16384u /* slots of finished requests that may wait for a snapshot to settle them */

hm_requests hm_all = {.first_free = HM_NO_SLOT};

static int hm_room_for_endpoint(uint32_t endpoint)
{
    if (endpoint < hm_all.endpoints) {
        return 0;
    }
    if (endpoint >= hm_all.endpoint_room) {
        uint32_t room = endpoint < 64 ? 64 : endpoint * 2;
        hm_totals *totals = realloc(hm_all.totals, room * sizeof(hm_totals));
        if (totals == NULL) {
            return -1;
        }
        hm_all.totals = totals;
        hm_all.endpoint_room = room;
    }
    memset(&hm_all.totals[hm_all.endpoints], 0, (endpoint + 1 - hm_all.endpoints) * sizeof(hm_totals));
    hm_all.endpoints = endpoint + 1;
    return 0;
}

static void hm_add_allocated(hm_slot *slot)
{
    hm_totals *totals = hm_totals_of(slot->endpoint);
    totals->allocated_objects += slot->allocated_objects;
    totals->allocated_bytes += slot->allocated_bytes;
    slot->allocated_objects = slot->allocated_bytes = 0;
}

static void hm_settle(hm_slot *slot)
{
    if (!slot->settled) {
        hm_totals *totals = hm_totals_of(slot->endpoint);
        totals->gained_objects += slot->allocated_objects - slot->freed_objects;
        totals->gained_bytes += slot->allocated_bytes - slot->freed_bytes;
        slot->settled = 1;
    }
    hm_add_allocated(slot); /* again, if it goes on allocating */
}

void hm_release_if_done(uint32_t at)
{
    hm_slot *slot = &hm_all.slots[at];
    if (!slot->used || slot->open || slot->records > 0) {
        return;
    }
    hm_add_allocated(slot);
    slot->used = 0;
    slot->next_free = hm_all.first_free;
    hm_all.first_free = at;
    hm_all.used--;
}

void hm_settle_all(void)
{
    for (uint32_t at = 0; at < hm_all.count; at++) {
        hm_slot *slot = &hm_all.slots[at];
        if (slot->used && slot->finished) {
            hm_settle(slot);
        }
    }
    for (uint64_t place = 0; hm_records.places != NULL && place <= hm_records.mask; place++) {
        hm_record *record = &hm_records.places[place];
        if (record->block == 0 || record->slot & HM_SETTLED) {
            continue;
        }
        uint32_t at = record->slot;
        if (hm_all.slots[at].settled && !hm_all.slots[at].open) {
            record->slot = hm_all.slots[at].endpoint | HM_SETTLED;
            hm_all.slots[at].records--;
            hm_release_if_done(at);
        }
    }
}

/* One more slot, at the end of the free ones. */
static int hm_add_slot(void)
{
    if (hm_all.count == hm_all.room) {
        uint32_t room = hm_all.room == 0 ? 256 : hm_all.room * 2;
        hm_slot *slots = room >= HM_SETTLED ? NULL : realloc(hm_all.slots, room * sizeof(hm_slot));
        if (slots == NULL) {
            return -1;
        }
        hm_all.slots = slots;
        hm_all.room = room;
    }
    hm_all.slots[hm_all.count].next_free = HM_NO_SLOT;
    hm_all.first_free = hm_all.count++;
    return 0;
}

uint32_t hm_take_slot(void)
{
    if (hm_room_for_endpoint(HM_NO_ENDPOINT) < 0) {
        return HM_NO_SLOT;
    }
    if (hm_all.first_free == HM_NO_SLOT && hm_all.count >= HM_SETTLE_SLOTS && hm_all.count == hm_all.room) {
        hm_settle_all();
    }
    if (hm_all.first_free == HM_NO_SLOT && hm_add_slot() < 0) {
        return HM_NO_SLOT;
    }
    uint32_t at = hm_all.first_free;
    hm_all.first_free = hm_all.slots[at].next_free;
    hm_all.slots[at] = (hm_slot){.open = 1, .used = 1, .endpoint = HM_NO_ENDPOINT};
    hm_all.used++;
    hm_all.open++;
    return at;
}

void hm_name_slot(uint32_t at, uint32_t endpoint)
{
    hm_slot *slot = &hm_all.slots[at];
    if (!slot->finished) {
        slot->finished = 1;
        slot->endpoint = hm_room_for_endpoint(endpoint) < 0 ? HM_NO_ENDPOINT : endpoint;
    }
}

void hm_close_slot(uint32_t at)
{
    hm_slot *slot = &hm_all.slots[at];
    slot->open = 0;
    slot->finished = 1; /* one that never finished belongs to HM_NO_ENDPOINT */
    hm_all.open--;
    hm_release_if_done(at);
}

void hm_forget_sums(void)
{
    if (hm_all.totals != NULL) {
        memset(hm_all.totals, 0, hm_all.endpoints * sizeof(hm_totals));
    }
    for (uint32_t at = 0; at < hm_all.count; at++) {
        hm_slot *slot = &hm_all.slots[at];
        if (slot->used) {
            slot->allocated_objects = slot->allocated_bytes = slot->freed_objects = slot->freed_bytes = 0;
            slot->records = 0;
            hm_release_if_done(at);
        }
    }
}

void hm_outweigh(uint32_t named, uint64_t objects, uint64_t bytes)
{
    hm_slot *slot = named & HM_SETTLED ? NULL : &hm_all.slots[named];
    if (slot != NULL && !slot->settled) {
        slot->freed_objects -= objects; /* wraps around: only the difference to what was allocated is read */
        slot->freed_bytes -= bytes;
        return;
    }
    hm_totals *totals = hm_totals_of(slot == NULL ? named & ~HM_SETTLED : slot->endpoint);
    totals->gained_objects += objects;
    totals->gained_bytes += bytes;
}
