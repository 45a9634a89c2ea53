/* Which request allocated what is still alive: the records behind attribution="native".
 *
 * No function of this header touches a Python object. All of them want the interpreter lock of the main interpreter,
 * except the hooks themselves, which see to that.
 */
#ifndef HM_TRACKER_H
#define HM_TRACKER_H

#include <stddef.h>
#include <stdint.h>

/* Blocks of this size and more are always recorded, with weight 1: few, and where the bytes are. */
#define HM_LARGE 4096

/* The endpoint of requests that are recorded nowhere: excluded routes, requests that never finished. */
#define HM_NO_ENDPOINT 0
#define HM_MAX_ENDPOINT 1000000

/* Counters, one for many blocks: a block whose counter is 0 has no record. 128 KiB stay in the second-level cache. */
#define HM_FILTER_SIZE 65536
extern uint16_t hm_filter[HM_FILTER_SIZE];

/* Every dict, list and tuple that is made now is seen by the hooks: nothing may be kept in CPython's free lists. */
extern int hm_exact;

/* Blocks that went back to the allocator instead of a free list since the budget was looked at. */
extern uint64_t hm_released;

static inline uint16_t *hm_filter_of(const void *block)
{
    return &hm_filter[((uintptr_t)block >> 4) & (HM_FILTER_SIZE - 1)];
}

/* Whether a block must go back to the allocator when its object dies. */
static inline int hm_keep_out(const void *block)
{
    return __atomic_load_n(&hm_exact, __ATOMIC_RELAXED) || __atomic_load_n(hm_filter_of(block), __ATOMIC_RELAXED) != 0;
}

typedef struct {
    uint64_t gained_objects, lost_objects;
    uint64_t gained_bytes, lost_bytes;
    uint64_t allocated_objects, allocated_bytes;
} hm_totals;

typedef struct {
    int running;         /* the hooks record */
    int intact;          /* the last probe reached our hooks: nobody took them out of the chain */
    uint64_t records;    /* live records */
    uint64_t interval;   /* one allocation in so many is recorded */
    uint64_t memory;     /* bytes of tables */
    uint64_t spent_ns;   /* time spent recording, extrapolated from one operation in HM_TIMED */
    uint64_t requests;   /* slots in use */
} hm_stats;

/* Says to which request the running code belongs: a slot, or HM_NO_SLOT. Called from inside an allocation: it must not
 * allocate, raise, or run Python code. */
#define HM_NO_SLOT UINT32_MAX
typedef uint32_t (*hm_current)(void);

/* Start recording: at most `max_records` live records, one allocation in `interval` (0: as many as `budget`, a share of
 * one core, pays for). Returns -1 if there is no memory for the tables. */
int hm_start(uint64_t max_records, uint64_t interval, double budget, hm_current current);

/* Stop recording. The hooks leave the chain if nobody chained after them, and pass everything through otherwise. */
void hm_stop(void);

/* Forget all records and totals; requests in flight go on. For a forked child. */
void hm_reset(void);

/* A request begins: its slot, or HM_NO_SLOT if there is no memory. The slot is in use until it is closed and its last
 * record is gone. */
uint32_t hm_open(void);

/* Whether there is only the main interpreter, so that its lock is the only one. */
int hm_alone(void);

/* Whether the tracker has become exact since this was asked last: the free lists hold blocks that it has not seen. */
int hm_became_exact(void);

/* Nanoseconds of a clock that does not jump. */
uint64_t hm_now(void);

/* Add to what recording has cost. */
void hm_spent(uint64_t nanoseconds);

/* Between hm_watch and hm_unwatch nothing is recorded; hm_noticed says whether a hook was called since hm_watch. */
void hm_watch(void);
int hm_noticed(void);
void hm_unwatch(void);

/* The route of a request is known. */
void hm_finish(uint32_t slot, uint32_t endpoint);

/* No code can allocate in the name of this slot any more. */
void hm_close(uint32_t slot);

/* Settle what finished requests left alive; returns the number of endpoints. */
uint32_t hm_settle_requests(void);

/* The totals of one endpoint as of now. */
hm_totals hm_totals_at(uint32_t endpoint);

hm_stats hm_statistics(void);

typedef struct {
    uint64_t place; /* below hm_places(), the record's own */
    uint64_t size, weight;
    uint32_t endpoint;
} hm_found;

/* The live record of a block: 1 and what it says, or 0. */
int hm_lookup(const void *block, hm_found *found);

/* How many places for records there are; 0: nothing is recorded. */
uint64_t hm_places(void);

/* The live record at a place: 1 and what it says, or 0. */
int hm_record_at(uint64_t place, hm_found *found);

#endif
