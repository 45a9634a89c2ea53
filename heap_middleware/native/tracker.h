/* Which request allocated what is still alive: the records behind attribution="native".
 *
 * No function of this header touches a Python object. All of them want the interpreter lock of the main interpreter,
 * except the hooks themselves, which see to that.
 */
#ifndef HM_TRACKER_H
#define HM_TRACKER_H

#include <stddef.h>
#include <stdint.h>

/* The endpoint of requests that are recorded nowhere: excluded routes, requests that never finished. */
#define HM_NO_ENDPOINT 0
#define HM_MAX_ENDPOINT 1000000

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

/* Says to which request the code belongs that a thread (a PyThreadState) runs: a slot, or HM_NO_SLOT. Called from inside
 * an allocation: it must not allocate, raise, or run Python code. */
#define HM_NO_SLOT UINT32_MAX
typedef uint32_t (*hm_current)(void *thread);

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
    uint32_t endpoint, site;
} hm_found;

/* The live record of a block: 1 and what it says, or 0. */
int hm_lookup(const void *block, hm_found *found);

/* How many places for records there are; 0: nothing is recorded. */
uint64_t hm_places(void);

/* The live record at a place: 1 and what it says, or 0. */
int hm_record_at(uint64_t place, hm_found *found);

#endif
