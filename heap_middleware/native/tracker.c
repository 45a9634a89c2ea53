/* The tracker: allocator hooks, a table of records, slots of requests, totals of endpoints.
 *
 * The rules of this file:
 * - The hooks of CPython's "obj" and "mem" domains wrap what was there before. They never raise, never allocate a Python
 *   object, take no lock, and use plain malloc only.
 * - A hook's common path is a counter (allocations) or one look at a small filter (frees). Everything else happens in
 *   the slow path, in the main interpreter and under its lock alone: subinterpreters with a lock of their own (Python
 *   3.12 and newer) run the same hooks at the same time, so what the common path reads is read atomically, and the slow
 *   path leaves before it touches anything when another interpreter runs.
 * - One allocation in `interval` is looked at, at gaps drawn from a geometric distribution: programs are periodic, gaps
 *   must not be. Floats are not recorded (stores.c). A record carries the interval of its moment as its weight, so sums of weights are unbiased.
 * - At `max_records` half of the records are dropped at random, the weights of the others and the interval doubled.
 * - A free looks up the block's address; a realloc is a free and a new allocation.
 * - A slot is one request. While it is not settled, its sums are in the slot, because its route is not known yet; a
 *   snapshot settles it: what it left alive until then was gained, what goes later is lost. A request whose blocks are
 *   all gone by then gained nothing.
 *
 * CPython's internals used here, checked with 3.11 to 3.13: PyThreadState.interp.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tracker.h"

#define HM_SLICE 32          /* requests that begin in one slice of a cycle; see hm_plan */
#define HM_FLOAT 24          /* sizeof(PyFloatObject) */
#define HM_TIMED 64          /* one slow path in so many is timed; a clock costs as much as a record */
#define HM_LONGEST_NS 5000   /* what took longer did not take it for us: the thread had to wait for its processor */
#define HM_RELEASED_NS 40    /* a block that goes back to the allocator instead of a free list; benchmarks/tracking_cost.py */
#define HM_LOOK 16           /* requests from one look at the clock to the next */
#define HM_ADJUST_NS 100000000u /* how often automatic sampling looks at its budget */
#define HM_MAX_INTERVAL (1u << 20)
#define HM_SETTLE_SLOTS 16384u /* slots of finished requests that may wait for a snapshot to settle them */
#define HM_IDLE INT64_MAX       /* in hm.countdown: nothing is looked at */
#define HM_SETTLED 0x80000000u /* in hm_record.slot: not a slot but the number of an endpoint */

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define NOINLINE __attribute__((noinline))
#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define STORE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELAXED)

typedef struct {
    uintptr_t block; /* 0: an empty place */
    size_t size;
    uint32_t slot;
    uint32_t weight;
} hm_record;

typedef struct {
    uint64_t live_objects, live_bytes;           /* recorded and alive, until settled */
    uint64_t allocated_objects, allocated_bytes; /* not yet added to an endpoint */
    uint32_t records;                            /* live records that name this slot */
    uint32_t endpoint;                           /* HM_NO_ENDPOINT: not finished yet */
    uint32_t next_free;
    uint8_t open, finished, settled, used;
} hm_slot;

typedef struct {
    PyMemAllocatorDomain domain;
    PyMemAllocatorEx next;
    int installed;
} hm_chain;

static struct {
    int64_t countdown; /* allocations until the next one that is looked at */
    uint32_t open;     /* requests that may allocate */
    int running;
    hm_current current;
    PyInterpreterState *interpreter;

    uint64_t interval, max_records;
    double gap;                                 /* allocations from one record to the next, while exact */
    uint32_t slices, slice, chosen, opens_left; /* of the cycle, see hm_plan */
    int became_exact;
    int automatic;
    double budget;
    uint64_t random;

    hm_record *table;
    uint64_t mask, records;

    hm_slot *slots;
    uint32_t slot_count, slot_room, free_slot, used_slots;

    hm_totals *totals;
    uint32_t endpoint_count, endpoint_room;

    uint64_t operations, finished, spent_ns, adjusted_at, spent_then;
} hm = {.countdown = HM_IDLE, .free_slot = HM_NO_SLOT};

uint16_t hm_filter[HM_FILTER_SIZE];
int hm_exact;
uint64_t hm_released;
static hm_chain hm_chains[2] = {{.domain = PYMEM_DOMAIN_OBJ}, {.domain = PYMEM_DOMAIN_MEM}};

/* ---- small things ------------------------------------------------------------------------------------------------ */

uint64_t hm_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* xorshift64*, Vigna 2016: enough for gaps, and it is three shifts. */
static uint64_t hm_random(void)
{
    hm.random ^= hm.random >> 12;
    hm.random ^= hm.random << 25;
    hm.random ^= hm.random >> 27;
    return hm.random * 0x2545F4914F6CDD1Du;
}

/* One operation in HM_TIMED is timed, for all of them; 0: this one is not. */
static inline uint64_t hm_began(void)
{
    return hm.operations++ % HM_TIMED == 0 ? hm_now() : 0;
}

static inline void hm_ended(uint64_t began)
{
    if (UNLIKELY(began != 0)) {
        uint64_t took = hm_now() - began;
        hm.spent_ns += (took < HM_LONGEST_NS ? took : HM_LONGEST_NS) * HM_TIMED;
    }
}

static int64_t hm_gap(void)
{
    if (!hm_exact) {
        return HM_IDLE;
    }
    if (hm.gap <= 1.0) {
        return 1;
    }
    double uniform = ((double)(hm_random() >> 11) + 0.5) / 9007199254740992.0;
    double gap = ceil(log(uniform) / log1p(-1.0 / hm.gap));
    return gap < 1.0 ? 1 : gap > 1e15 ? (int64_t)1e15 : (int64_t)gap;
}

/* ---- sampling ------------------------------------------------------------------------------------------------------
 *
 * CPython's free lists hide allocations, and keeping them out of the way costs time (stores.c). So of a cycle of
 * `slices` times HM_SLICE requests, one slice, chosen at random, is exact, and one allocation in `gap` is recorded there:
 * one in `slices * gap = interval` on the whole, each with the same chance. Few slices cost little; a gap keeps what one
 * request leaves from being recorded all or not at all, which would make the estimate of large leaks noisier.
 */

#define HM_GAP 4

static void hm_enter_slice(void)
{
    int exact = hm.slice == hm.chosen;
    hm.opens_left = HM_SLICE;
    hm.became_exact = hm.became_exact || (exact && !hm_exact);
    STORE(hm_exact, exact);
    STORE(hm.countdown, hm.open > 0 ? hm_gap() : HM_IDLE);
}

static void hm_plan(void)
{
    uint64_t slices = hm.interval / (hm.interval >= HM_GAP * HM_GAP ? HM_GAP : hm.interval >= HM_GAP ? 2 : 1);
    hm.slices = (uint32_t)slices;
    hm.gap = (double)hm.interval / hm.slices;
    hm.slice = 0;
    hm.chosen = (uint32_t)(hm_random() % hm.slices);
    hm_enter_slice();
}

static void hm_next_slice(void)
{
    if (++hm.slice == hm.slices) {
        hm.slice = 0;
        hm.chosen = (uint32_t)(hm_random() % hm.slices);
    }
    hm_enter_slice();
}

int hm_alone(void)
{
    return PyInterpreterState_Head() == hm.interpreter; /* the newest of them */
}

/* Main interpreter, with its lock: everything else passes through. */
static int hm_at_home(void)
{
    if (hm_alone()) {
        return 1;
    }
#if PY_VERSION_HEX >= 0x030D0000
    PyThreadState *thread = PyThreadState_GetUnchecked();
#else
    PyThreadState *thread = _PyThreadState_UncheckedGet();
#endif
    return thread != NULL && thread->interp == hm.interpreter;
}

static inline uint64_t hm_place_of(uintptr_t block)
{
    /* Pages anywhere, neighbours in a page side by side: what is recorded and freed over and over stays in the cache. */
    uint64_t page = (uint64_t)block >> 12, within = (uint64_t)block >> 4 & 0xFF;
    return ((page * 0x9E3779B97F4A7C15u >> 32) + within) & hm.mask;
}

/* ---- slots and endpoints ----------------------------------------------------------------------------------------- */

static hm_totals *hm_totals_of(uint32_t endpoint)
{
    return &hm.totals[endpoint < hm.endpoint_count ? endpoint : HM_NO_ENDPOINT];
}

static int hm_room_for_endpoint(uint32_t endpoint)
{
    if (endpoint < hm.endpoint_count) {
        return 0;
    }
    if (endpoint >= hm.endpoint_room) {
        uint32_t room = endpoint < 64 ? 64 : endpoint * 2;
        hm_totals *totals = realloc(hm.totals, room * sizeof(hm_totals));
        if (totals == NULL) {
            return -1;
        }
        hm.totals = totals;
        hm.endpoint_room = room;
    }
    memset(&hm.totals[hm.endpoint_count], 0, (endpoint + 1 - hm.endpoint_count) * sizeof(hm_totals));
    hm.endpoint_count = endpoint + 1;
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
    hm_totals *totals = hm_totals_of(slot->endpoint);
    totals->gained_objects += slot->live_objects;
    totals->gained_bytes += slot->live_bytes;
    slot->live_objects = slot->live_bytes = 0;
    hm_add_allocated(slot);
    slot->settled = 1;
}

static void hm_release_if_done(uint32_t at)
{
    hm_slot *slot = &hm.slots[at];
    if (slot->open || slot->records > 0) {
        return;
    }
    hm_add_allocated(slot);
    slot->used = 0;
    slot->next_free = hm.free_slot;
    hm.free_slot = at;
    hm.used_slots--;
}

static void hm_gain(uint32_t at, uint64_t objects, uint64_t bytes)
{
    if (at & HM_SETTLED || hm.slots[at].settled) {
        hm_totals *totals = hm_totals_of(at & HM_SETTLED ? at & ~HM_SETTLED : hm.slots[at].endpoint);
        totals->gained_objects += objects;
        totals->gained_bytes += bytes;
    }
    else {
        hm.slots[at].live_objects += objects;
        hm.slots[at].live_bytes += bytes;
    }
}

static void hm_lose(uint32_t at, uint64_t objects, uint64_t bytes)
{
    if (at & HM_SETTLED || hm.slots[at].settled) {
        hm_totals *totals = hm_totals_of(at & HM_SETTLED ? at & ~HM_SETTLED : hm.slots[at].endpoint);
        totals->lost_objects += objects;
        totals->lost_bytes += bytes;
    }
    else {
        hm.slots[at].live_objects -= objects;
        hm.slots[at].live_bytes -= bytes;
    }
}

/* ---- the table of records: open addressing, at most half full, no tombstones --------------------------------------- */

static inline hm_record *hm_find(uintptr_t block)
{
    for (uint64_t place = hm_place_of(block); hm.table[place].block != 0; place = (place + 1) & hm.mask) {
        if (hm.table[place].block == block) {
            return &hm.table[place];
        }
    }
    return NULL;
}

/* Take a record out and move back those behind it that would not be found past the gap. */
static inline void hm_erase(hm_record *record)
{
    uint64_t gap = (uint64_t)(record - hm.table), place = gap;
    uint16_t *counter = hm_filter_of((void *)record->block);
    STORE(*counter, (uint16_t)(*counter - 1));
    for (;;) {
        place = (place + 1) & hm.mask;
        if (hm.table[place].block == 0) {
            break;
        }
        uint64_t wanted = hm_place_of(hm.table[place].block);
        if (((place - wanted) & hm.mask) >= ((place - gap) & hm.mask)) {
            hm.table[gap] = hm.table[place];
            gap = place;
        }
    }
    hm.table[gap].block = 0;
    hm.records--;
}

static inline void hm_drop(hm_record *record)
{
    uint32_t at = record->slot;
    uint64_t objects = record->weight, bytes = objects * record->size;
    hm_erase(record);
    if (UNLIKELY(at & HM_SETTLED)) {
        hm_lose(at, objects, bytes);
        return;
    }
    hm_slot *slot = &hm.slots[at];
    if (LIKELY(!slot->settled)) {
        slot->live_objects -= objects;
        slot->live_bytes -= bytes;
    }
    else {
        hm_lose(at, objects, bytes);
    }
    if (--slot->records == 0) {
        hm_release_if_done(at);
    }
}

/* Drop half of the records at random and let each of the others stand for two. */
static void hm_decimate(void)
{
    uint64_t start = 0;
    while (hm.table[start].block != 0) { /* behind an empty place, no run of records wraps around */
        start++;
    }
    for (uint64_t step = 1; step <= hm.mask; step++) {
        hm_record *record = &hm.table[(start + step) & hm.mask];
        while (record->block != 0 && hm_random() >> 63) {
            hm_drop(record); /* one from behind may have moved here: it has its turn at once */
        }
        if (record->block != 0 && record->weight <= UINT32_MAX / 2) {
            hm_gain(record->slot, record->weight, (uint64_t)record->weight * record->size);
            record->weight *= 2;
        }
    }
    if (hm.interval < HM_MAX_INTERVAL) {
        hm.interval *= 2;
        hm_plan();
    }
}

static inline void hm_insert(uintptr_t block, size_t size, uint32_t at, uint32_t weight)
{
    if (UNLIKELY(hm.records >= hm.max_records)) {
        hm_decimate();
    }
    uint64_t place = hm_place_of(block);
    while (hm.table[place].block != 0) {
        if (UNLIKELY(hm.table[place].block == block)) { /* freed while another hook kept it from us */
            hm_drop(&hm.table[place]);
            place = hm_place_of(block);
            continue;
        }
        place = (place + 1) & hm.mask;
    }
    hm.table[place] = (hm_record){.block = block, .size = size, .slot = at, .weight = weight};
    uint16_t *counter = hm_filter_of((void *)block);
    STORE(*counter, (uint16_t)(*counter + 1));
    hm.records++;
    hm_slot *slot = &hm.slots[at];
    slot->records++;
    slot->allocated_objects += weight;
    slot->allocated_bytes += (uint64_t)weight * size;
    hm_gain(at, weight, (uint64_t)weight * size);
}

/* ---- the hooks ----------------------------------------------------------------------------------------------------- */

/* An allocation that is looked at: it is large, or its turn has come. */
NOINLINE static void hm_allocated(const hm_chain *chain, void *block, size_t size, int turn)
{
    if (!hm_at_home()) {
        return;
    }
    if (hm.open == 0) { /* nobody to record for: the next request draws a new gap */
        STORE(hm.countdown, HM_IDLE);
        return;
    }
    if (turn) {
        STORE(hm.countdown, hm_gap());
    }
    if (!hm.running || (size == HM_FLOAT && chain->domain == PYMEM_DOMAIN_OBJ)) {
        return;
    }
    uint64_t began = hm_began();
    uint32_t at = hm.current();
    if (at != HM_NO_SLOT) {
        hm_insert((uintptr_t)block, size, at, size >= HM_LARGE ? 1 : (uint32_t)hm.interval);
    }
    hm_ended(began);
}

/* A free that the filter could not rule out. */
NOINLINE static void hm_freed(void *block)
{
    if (!hm_at_home() || hm.table == NULL) {
        return;
    }
    uint64_t began = hm_began();
    hm_record *record = hm_find((uintptr_t)block);
    if (record != NULL) {
        hm_drop(record);
    }
    hm_ended(began);
}

/* Whether this allocation is none to look at. It is then passed on by a jump: what is not common is in functions of its
 * own, so that the common path saves no register. */
static inline int hm_pass(size_t size)
{
    int64_t left = LOAD(hm.countdown) - 1;
    STORE(hm.countdown, left);
    return left > 0 && size < HM_LARGE;
}

static inline int hm_unknown(const void *block)
{
    return block == NULL || LOAD(*hm_filter_of(block)) == 0;
}

/* Not all of them were passed: whose turn was it? */
static void *hm_look(const hm_chain *chain, void *block, size_t size)
{
    int turn = LOAD(hm.countdown) <= 0;
    if (block != NULL && (turn || size >= HM_LARGE)) {
        hm_allocated(chain, block, size, turn);
    }
    return block;
}

NOINLINE static void *hm_malloc_seen(const hm_chain *chain, size_t size)
{
    return hm_look(chain, chain->next.malloc(chain->next.ctx, size), size);
}

NOINLINE static void *hm_calloc_seen(const hm_chain *chain, size_t count, size_t size, size_t all)
{
    return hm_look(chain, chain->next.calloc(chain->next.ctx, count, size), all);
}

NOINLINE static void *hm_realloc_seen(const hm_chain *chain, void *block, size_t size, int pass)
{
    int unknown = hm_unknown(block);
    void *moved = chain->next.realloc(chain->next.ctx, block, size);
    if (moved != NULL && !unknown) {
        /* Only now, since a realloc that fails leaves the old block. Nobody took its address in between: we have the
         * lock, and other interpreters' blocks are never recorded. */
        hm_freed(block);
    }
    return pass ? moved : hm_look(chain, moved, size);
}

NOINLINE static void hm_free_seen(const hm_chain *chain, void *block)
{
    hm_freed(block);
    chain->next.free(chain->next.ctx, block);
}

static void *hm_malloc(void *context, size_t size)
{
    const hm_chain *chain = context;
    return LIKELY(hm_pass(size)) ? chain->next.malloc(chain->next.ctx, size) : hm_malloc_seen(chain, size);
}

static void *hm_calloc(void *context, size_t count, size_t size)
{
    const hm_chain *chain = context;
    size_t all = size == 0 || count <= SIZE_MAX / size ? count * size : SIZE_MAX;
    return LIKELY(hm_pass(all)) ? chain->next.calloc(chain->next.ctx, count, size)
                                : hm_calloc_seen(chain, count, size, all);
}

static void *hm_realloc(void *context, void *block, size_t size)
{
    const hm_chain *chain = context;
    int pass = hm_pass(size);
    return LIKELY(pass && hm_unknown(block)) ? chain->next.realloc(chain->next.ctx, block, size)
                                             : hm_realloc_seen(chain, block, size, pass);
}

static void hm_free(void *context, void *block)
{
    const hm_chain *chain = context;
    if (UNLIKELY(!hm_unknown(block))) {
        hm_free_seen(chain, block);
        return;
    }
    chain->next.free(chain->next.ctx, block);
}

static void hm_install(hm_chain *chain)
{
    PyMemAllocatorEx ours = {chain, hm_malloc, hm_calloc, hm_realloc, hm_free};
    PyMem_GetAllocator(chain->domain, &chain->next);
    PyMem_SetAllocator(chain->domain, &ours);
    chain->installed = 1;
}

static void hm_uninstall(hm_chain *chain)
{
    PyMemAllocatorEx top;
    PyMem_GetAllocator(chain->domain, &top);
    if (chain->installed && top.malloc == hm_malloc && top.ctx == chain) {
        PyMem_SetAllocator(chain->domain, &chain->next);
        chain->installed = 0;
    }
}

/* Does an allocation still reach us? tracemalloc, stopped when it had been started before us, puts back what was there
 * before it, and that is not us. */
static int hm_reached(PyMemAllocatorDomain domain)
{
    int64_t countdown = hm.countdown;
    STORE(hm.countdown, HM_IDLE);
    void *block = domain == PYMEM_DOMAIN_OBJ ? PyObject_Malloc(1) : PyMem_Malloc(1);
    int reached = block == NULL || hm.countdown != HM_IDLE;
    domain == PYMEM_DOMAIN_OBJ ? PyObject_Free(block) : PyMem_Free(block);
    STORE(hm.countdown, countdown);
    return reached;
}

static int hm_intact(void)
{
    return hm.running && hm_reached(PYMEM_DOMAIN_OBJ) && hm_reached(PYMEM_DOMAIN_MEM);
}

/* ---- the interface ------------------------------------------------------------------------------------------------- */

static void hm_forget_all(void)
{
    if (hm.table != NULL) {
        memset(hm.table, 0, (hm.mask + 1) * sizeof(hm_record));
    }
    memset(hm_filter, 0, sizeof(hm_filter));
    hm.records = 0;
    if (hm.totals != NULL) {
        memset(hm.totals, 0, hm.endpoint_count * sizeof(hm_totals));
    }
    for (uint32_t at = 0; at < hm.slot_count; at++) {
        hm_slot *slot = &hm.slots[at];
        if (slot->used) {
            slot->live_objects = slot->live_bytes = slot->allocated_objects = slot->allocated_bytes = 0;
            slot->records = 0;
            hm_release_if_done(at);
        }
    }
}

int hm_start(uint64_t max_records, uint64_t interval, double budget, hm_current current)
{
    uint64_t places = 64;
    while (places < max_records * 2) {
        places *= 2;
    }
    if (hm.table == NULL || hm.mask + 1 != places) {
        hm_record *table = calloc(places, sizeof(hm_record));
        if (table == NULL) {
            return -1;
        }
        hm_forget_all(); /* under the old mask */
        free(hm.table);
        hm.table = table;
        hm.mask = places - 1;
    }
    hm_forget_all();
    if (hm_room_for_endpoint(HM_NO_ENDPOINT) < 0) {
        return -1;
    }
    hm.max_records = max_records;
    hm.automatic = interval == 0;
    hm.interval = interval == 0 ? 1 : interval;
    hm.budget = budget;
    hm.current = current;
    hm.interpreter = PyInterpreterState_Get();
    hm.random = hm_now() | 1;
    hm.adjusted_at = hm_now();
    hm.spent_then = hm.spent_ns;
    hm.running = 1;
    hm_plan();
    for (int at = 0; at < 2; at++) {
        if (!hm_chains[at].installed || !hm_reached(hm_chains[at].domain)) {
            hm_install(&hm_chains[at]);
        }
    }
    return 0;
}

void hm_stop(void)
{
    hm.running = 0;
    STORE(hm_exact, 0);
    STORE(hm.countdown, HM_IDLE);
    hm_forget_all();
    for (int at = 0; at < 2; at++) {
        hm_uninstall(&hm_chains[at]);
    }
}

void hm_reset(void)
{
    hm_forget_all();
    hm.spent_ns = hm.spent_then = 0;
    hm.random ^= (uint64_t)hm_now() << 1; /* or siblings would draw the same gaps */
    hm.random |= 1;
}

/* Point the records of finished requests at their endpoints, so that their slots can be used again. */
static void hm_settle_all(void)
{
    for (uint32_t at = 0; at < hm.slot_count; at++) {
        hm_slot *slot = &hm.slots[at];
        if (slot->used && slot->finished) {
            hm_settle(slot); /* again, if it goes on allocating: that has nothing left to settle but its sum */
        }
    }
    for (uint64_t place = 0; hm.table != NULL && place <= hm.mask; place++) {
        hm_record *record = &hm.table[place];
        if (record->block == 0 || record->slot & HM_SETTLED) {
            continue;
        }
        uint32_t at = record->slot;
        if (hm.slots[at].settled && !hm.slots[at].open) {
            record->slot = hm.slots[at].endpoint | HM_SETTLED;
            hm.slots[at].records--;
            hm_release_if_done(at);
        }
    }
}

uint32_t hm_open(void)
{
    if (hm_room_for_endpoint(HM_NO_ENDPOINT) < 0) {
        return HM_NO_SLOT;
    }
    if (hm.free_slot == HM_NO_SLOT && hm.slot_count >= HM_SETTLE_SLOTS && hm.slot_count == hm.slot_room) {
        hm_settle_all();
    }
    if (hm.free_slot == HM_NO_SLOT) {
        if (hm.slot_count == hm.slot_room) {
            uint32_t room = hm.slot_room == 0 ? 256 : hm.slot_room * 2;
            hm_slot *slots = room >= HM_SETTLED ? NULL : realloc(hm.slots, room * sizeof(hm_slot));
            if (slots == NULL) {
                return HM_NO_SLOT;
            }
            hm.slots = slots;
            hm.slot_room = room;
        }
        hm.slots[hm.slot_count].next_free = HM_NO_SLOT;
        hm.free_slot = hm.slot_count++;
    }
    uint32_t at = hm.free_slot;
    hm.free_slot = hm.slots[at].next_free;
    hm.slots[at] = (hm_slot){.open = 1, .used = 1, .endpoint = HM_NO_ENDPOINT};
    hm.used_slots++;
    hm.open++;
    if (hm.slices > 1 && hm.running && hm.opens_left-- == 0) {
        hm_next_slice();
    }
    else if (hm.open == 1) {
        STORE(hm.countdown, hm_gap()); /* gaps have no memory, so a new one is as good as the rest of the old */
    }
    return at;
}

int hm_became_exact(void)
{
    int became = hm.became_exact;
    hm.became_exact = 0;
    return became;
}

void hm_watch(void)
{
    STORE(hm.countdown, HM_IDLE);
}

int hm_noticed(void)
{
    return LOAD(hm.countdown) != HM_IDLE;
}

void hm_unwatch(void)
{
    STORE(hm.countdown, hm.open > 0 ? hm_gap() : HM_IDLE);
}

void hm_spent(uint64_t nanoseconds)
{
    hm.spent_ns += nanoseconds;
}

static void hm_adjust(void)
{
    if (hm.finished++ % HM_LOOK != 0) {
        return;
    }
    uint64_t now = hm_now(), elapsed = now - hm.adjusted_at;
    hm.spent_ns += hm_released * HM_RELEASED_NS;
    hm_released = 0;
    if (!hm.automatic || elapsed < HM_ADJUST_NS) {
        return;
    }
    double share = (double)(hm.spent_ns - hm.spent_then) / (double)elapsed;
    uint64_t before = hm.interval;
    /* Step by step: one hundred milliseconds may have been unlike the rest. */
    for (int step = 0; step < 2 && share > hm.budget && hm.interval < HM_MAX_INTERVAL; step++, share /= 2) {
        hm.interval *= 2;
    }
    if (share < hm.budget / 4 && hm.interval > 1 && hm.records < hm.max_records / 2) {
        hm.interval /= 2; /* a quarter, not a half: the next look must not take it back */
    }
    if (hm.interval != before) {
        hm_plan();
    }
    hm.adjusted_at = now;
    hm.spent_then = hm.spent_ns;
}

void hm_finish(uint32_t at, uint32_t endpoint)
{
    hm_slot *slot = &hm.slots[at];
    if (!slot->finished) {
        slot->finished = 1;
        slot->endpoint = hm_room_for_endpoint(endpoint) < 0 ? HM_NO_ENDPOINT : endpoint;
    }
    hm_adjust();
}

void hm_close(uint32_t at)
{
    hm_slot *slot = &hm.slots[at];
    slot->open = 0;
    slot->finished = 1; /* one that never finished belongs to HM_NO_ENDPOINT */
    hm.open--;
    hm_release_if_done(at);
}

uint32_t hm_settle_requests(void)
{
    hm_settle_all();
    return hm.endpoint_count;
}

hm_totals hm_totals_at(uint32_t endpoint)
{
    return *hm_totals_of(endpoint);
}

hm_stats hm_statistics(void)
{
    return (hm_stats){
        .running = hm.running,
        .intact = hm_intact(),
        .records = hm.records,
        .interval = hm.interval,
        .memory = (hm.table == NULL ? 0 : (hm.mask + 1) * sizeof(hm_record)) + sizeof(hm_filter) +
                  hm.slot_room * sizeof(hm_slot) + hm.endpoint_room * sizeof(hm_totals),
        .spent_ns = hm.spent_ns,
        .requests = hm.used_slots,
    };
}

int hm_record_at(uint64_t place, hm_found *found)
{
    const hm_record *record = &hm.table[place];
    if (record->block == 0) {
        return 0;
    }
    *found = (hm_found){
        .place = place,
        .size = record->size,
        .weight = record->weight,
        .endpoint = record->slot & HM_SETTLED ? record->slot & ~HM_SETTLED : hm.slots[record->slot].endpoint,
    };
    return 1;
}

int hm_lookup(const void *block, hm_found *found)
{
    if (LOAD(*hm_filter_of(block)) == 0) {
        return 0;
    }
    const hm_record *record = hm_find((uintptr_t)block);
    return record != NULL && hm_record_at((uint64_t)(record - hm.table), found);
}

uint64_t hm_places(void)
{
    return hm.records == 0 ? 0 : hm.mask + 1;
}
