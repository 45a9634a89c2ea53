/* Which allocations are recorded: one in `interval`, each with the same chance.
 *
 * CPython's free lists hide allocations, and keeping them out of the way costs time (stores.h). So of a cycle of
 * `slices` times 32 requests, one slice, chosen at random, is exact, and one allocation in `gap` is recorded there: one in
 * `slices * gap = interval` on the whole. Few slices cost little; a gap keeps what one request leaves from being recorded
 * all or not at all, which would make the estimate of large leaks noisier. Gaps are drawn from a geometric distribution:
 * programs are periodic, gaps must not be.
 *
 * Automatic sampling starts at every allocation and doubles the interval while recording costs more than its budget.
 */
#ifndef HM_SAMPLING_H
#define HM_SAMPLING_H

#include "home.h"

#include <stdint.h>

#define HM_IDLE INT64_MAX /* in hm_countdown: nothing is looked at */

/* Allocations until the next one that is looked at. Every hook reads and writes it. */
extern int64_t hm_countdown;

/* Every dict, list and tuple that is made now is seen by the hooks: nothing may be kept in CPython's free lists. */
extern int hm_exact;

/* Blocks that went back to the allocator instead of a free list since the budget was looked at. */
extern uint64_t hm_released;

/* Whether hm_exact has become true since this was asked last: the free lists hold blocks that no hook has seen. */
int hm_became_exact(void);

/* Between hm_watch and hm_draw nothing is recorded; hm_noticed says whether a hook was called since hm_watch. */
void hm_watch(void);
int hm_noticed(void);

/* Begin a plan: one allocation in `interval`; 0: as many as `budget`, a share of one core, pays for. */
void hm_begin_sampling(uint64_t interval, double budget);
void hm_end_sampling(void);

/* Record half as many from now on: there is no room. */
void hm_halve_sampling(void);

/* One allocation in so many is recorded. */
extern uint64_t hm_interval;

/* Whether this allocation is recorded, where hm_countdown does not say it: beside other interpreters. */
int hm_by_chance(void);

/* Draw the number of allocations until the next one that is looked at, if any is. */
void hm_draw_gap(void);

static inline void hm_draw(void)
{
    if (hm_exact && hm_interval == 1) {
        STORE(hm_countdown, 1);
    }
    else {
        hm_draw_gap();
    }
}

/* A request begins; `alone`: no other may allocate now. */
void hm_request_began(int alone);

/* A request finished: now and then the budget is looked at. `full`: no more should be recorded than is. */
void hm_request_finished(int full);

/* A random number; a forked child wants others than its parent. */
uint64_t hm_random(void);
void hm_reseed(void);

/* Nanoseconds of a clock that does not jump. */
uint64_t hm_now(void);

/* Around what is part of recording: one in HM_TIMED is timed, for all of them; a clock costs as much as a record. */
#define HM_TIMED 64
extern uint64_t hm_operations;
void hm_timed(uint64_t began);

static inline uint64_t hm_began(void)
{
    return UNLIKELY(hm_operations++ % HM_TIMED == 0) ? hm_now() : 0;
}

static inline void hm_ended(uint64_t began)
{
    if (UNLIKELY(began != 0)) {
        hm_timed(began);
    }
}

/* Add to what recording has cost; and what it has cost in all. */
void hm_spend(uint64_t nanoseconds);
uint64_t hm_spent(void);
void hm_forget_spent(void);

#endif
