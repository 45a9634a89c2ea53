/* The tracker: what the hooks see, as records that name the requests they belong to.
 *
 * Everything here runs in the main interpreter and under its lock. A record carries the interval of its moment as its
 * weight, so sums of weights are unbiased. At `max` records half of them are dropped at random, the weights of the others
 * and the interval doubled. A realloc is a free and a new allocation.
 */
#include "tracker.h"

#include <stdlib.h>

#include "hooks.h"
#include "records.h"
#include "sampling.h"
#include "sites.h"
#include "slots.h"

#define HM_FLOAT 24 /* sizeof(PyFloatObject): not recorded, see stores.c */

PyInterpreterState *hm_home;

static hm_current hm_ask; /* NULL: stopped */

/* ---- records that come and go -------------------------------------------------------------------------------------- */

static inline void hm_drop(hm_record *record)
{
    uint32_t named = record->slot;
    uint64_t objects = record->weight, bytes = objects * record->size;
    hl_let_go(record->site);
    hm_take_out(record);
    hm_debit(named, objects, bytes);
}

/* Drop half of the records at random and let each of the others stand for two. */
static void hm_decimate(void)
{
    uint64_t start = 0;
    while (hm_records.places[start].block != 0) { /* behind an empty place, no run of records wraps around */
        start++;
    }
    for (uint64_t step = 1; step <= hm_records.mask; step++) {
        hm_record *record = &hm_records.places[(start + step) & hm_records.mask];
        while (record->block != 0 && hm_random() >> 63) {
            hm_drop(record); /* one from behind may have moved here: it has its turn at once */
        }
        if (record->block != 0 && record->weight <= UINT32_MAX / 2) {
            hm_outweigh(record->slot, record->weight, (uint64_t)record->weight * record->size);
            record->weight *= 2;
        }
    }
    hm_halve_sampling();
}

static inline void hm_insert(uintptr_t block, size_t size, uint32_t at, uint32_t weight, uint32_t site)
{
    if (UNLIKELY(hm_records.count >= hm_records.max)) {
        hm_decimate();
    }
    hm_record *stale = hm_may_be_recorded((void *)block) ? hm_find(block) : NULL;
    if (UNLIKELY(stale != NULL)) { /* freed while another hook kept it from us */
        hm_drop(stale);
    }
    hm_put_in((hm_record){.block = block, .size = size, .slot = at, .weight = weight, .site = site & HL_MOST});
    hl_hold(site);
    hm_credit(at, weight, (uint64_t)weight * size);
}

void hm_allocated(PyMemAllocatorDomain domain, void *block, size_t size)
{
    int turn = LOAD(hm_countdown) <= 0;
    if (block == NULL || !(turn || size >= HM_LARGE)) {
        return;
    }
    PyThreadState *thread = hm_thread();
    if (thread == NULL || thread->interp != hm_home) {
        return;
    }
    if (hm_all.open == 0) { /* nobody to record for: the next request draws a new gap */
        STORE(hm_countdown, HM_IDLE);
        return;
    }
    if (turn) {
        hm_draw();
    }
    if (turn && size < HM_LARGE && !hm_alone() && !hm_by_chance()) {
        return; /* others run our countdown down as well */
    }
    if (hm_ask == NULL || (size == HM_FLOAT && domain == PYMEM_DOMAIN_OBJ)) {
        return;
    }
    uint64_t began = hm_began();
    uint32_t at = hm_ask(thread);
    if (at != HM_NO_SLOT) {
        hm_insert((uintptr_t)block, size, at, size >= HM_LARGE ? 1 : (uint32_t)hm_interval, hl_here(thread));
    }
    hm_ended(began);
}

void hm_freed(void *block)
{
    if (!hm_at_home() || hm_records.places == NULL) {
        return;
    }
    /* Of what is live, some share a counter with what is not. To look for those costs a little however rarely is recorded,
     * so it is none of what the interval is chosen by: that would double for ever. */
    hm_record *record = hm_find((uintptr_t)block);
    if (record != NULL) {
        uint64_t began = hm_began();
        hm_drop(record);
        hm_ended(began);
    }
}

/* ---- the interface ------------------------------------------------------------------------------------------------- */

static void hm_forget_all(void)
{
    hm_forget_records();
    hm_forget_sums();
    hl_forget();
}

int hm_start(uint64_t max_records, uint64_t interval, double budget, hm_current current)
{
    hm_forget_all();
    if (hm_make_room(max_records) < 0) {
        return -1;
    }
    hm_ask = current;
    hm_home = PyInterpreterState_Get();
    hm_begin_sampling(interval, budget);
    hm_install_hooks();
    return 0;
}

void hm_stop(void)
{
    hm_ask = NULL;
    hm_end_sampling();
    hm_forget_all();
    hm_remove_hooks();
}

void hm_reset(void)
{
    hm_forget_all();
    hm_forget_spent();
    hm_reseed(); /* or siblings would draw the same gaps */
}

uint32_t hm_open(void)
{
    uint32_t at = hm_take_slot();
    if (at != HM_NO_SLOT) {
        hm_request_began(hm_all.open == 1);
    }
    return at;
}

void hm_finish(uint32_t slot, uint32_t endpoint)
{
    hm_name_slot(slot, endpoint);
    hm_request_finished(hm_records.count >= hm_records.max / 2);
}

void hm_close(uint32_t slot)
{
    hm_close_slot(slot);
}

uint32_t hm_settle_requests(void)
{
    hm_settle_all();
    return hm_all.endpoints;
}

hm_totals hm_totals_at(uint32_t endpoint)
{
    return *hm_totals_of(endpoint);
}

hm_stats hm_statistics(void)
{
    uint64_t places = hm_records.places == NULL ? 0 : hm_records.mask + 1;
    return (hm_stats){
        .running = hm_ask != NULL,
        .intact = hm_ask != NULL && hm_hooks_reached(),
        .records = hm_records.count,
        .interval = hm_interval,
        .memory = places * sizeof(hm_record) + sizeof(hm_filter) + hm_all.room * sizeof(hm_slot) +
                  hm_all.endpoint_room * sizeof(hm_totals) + hl_memory(),
        .spent_ns = hm_spent(),
        .requests = hm_all.used,
    };
}

int hm_record_at(uint64_t place, hm_found *found)
{
    const hm_record *record = &hm_records.places[place];
    if (record->block == 0) {
        return 0;
    }
    *found = (hm_found){
        .place = place,
        .size = record->size,
        .weight = record->weight,
        .site = record->site,
        .endpoint = record->slot & HM_SETTLED ? record->slot & ~HM_SETTLED : hm_all.slots[record->slot].endpoint,
    };
    return 1;
}

int hm_lookup(const void *block, hm_found *found)
{
    if (!hm_may_be_recorded(block)) {
        return 0;
    }
    const hm_record *record = hm_find((uintptr_t)block);
    return record != NULL && hm_record_at((uint64_t)(record - hm_records.places), found);
}

uint64_t hm_places(void)
{
    return hm_records.count == 0 ? 0 : hm_records.mask + 1;
}
