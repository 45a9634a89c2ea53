/* See sampling.h. */
#include "sampling.h"

#include <math.h>
#include <time.h>

#define HM_SLICE 32             /* requests that begin in one slice of a cycle */
#define HM_GAP 4                /* of an interval of 16 and more */
#define HM_MAX_INTERVAL (1u << 20)
#define HM_LONGEST_NS 5000      /* what took longer did not take it for us: the thread had to wait for its processor */
#define HM_RELEASED_NS 40       /* a block that goes back to the allocator instead of a free list, about */
#define HM_LOOK 16              /* requests from one look at the clock to the next */
#define HM_ADJUST_NS 100000000u /* from one look at the budget to the next */

int64_t hm_countdown = HM_IDLE;
int hm_exact;
uint64_t hm_interval, hm_released, hm_operations;

static struct {
    double gap;                                 /* allocations from one record to the next, while exact */
    uint32_t slices, slice, chosen, opens_left; /* of the cycle */
    int became_exact, running, automatic;
    double budget;
    uint64_t random;
    uint64_t finished, spent_ns, adjusted_at, spent_then;
} hm;

uint64_t hm_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* xorshift64*, Vigna 2016: enough for gaps, and it is three shifts. */
uint64_t hm_random(void)
{
    hm.random ^= hm.random >> 12;
    hm.random ^= hm.random << 25;
    hm.random ^= hm.random >> 27;
    return hm.random * 0x2545F4914F6CDD1Du;
}

void hm_reseed(void)
{
    hm.random ^= hm_now() << 1;
    hm.random |= 1;
}

/* ---- the plan ------------------------------------------------------------------------------------------------------ */

static int64_t hm_next_gap(void)
{
    if (!hm_exact) {
        return HM_IDLE;
    }
    if (hm.gap <= 1.0 || !hm_alone()) {
        return 1;
    }
    double uniform = ((double)(hm_random() >> 11) + 0.5) / 9007199254740992.0;
    double gap = ceil(log(uniform) / log1p(-1.0 / hm.gap));
    return gap < 1.0 ? 1 : gap > 1e15 ? (int64_t)1e15 : (int64_t)gap;
}

int hm_by_chance(void)
{
    return (double)(hm_random() >> 11) / 9007199254740992.0 * hm.gap < 1.0;
}

void hm_draw_gap(void)
{
    STORE(hm_countdown, hm_next_gap());
}

static void hm_enter_slice(void)
{
    int exact = hm.slice == hm.chosen;
    hm.opens_left = HM_SLICE;
    hm.became_exact = hm.became_exact || (exact && !hm_exact);
    STORE(hm_exact, exact);
    hm_draw();
}

static void hm_plan(void)
{
    uint64_t slices = hm_interval / (hm_interval >= HM_GAP * HM_GAP ? HM_GAP : hm_interval >= HM_GAP ? 2 : 1);
    hm.slices = (uint32_t)slices;
    hm.gap = (double)hm_interval / hm.slices;
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

void hm_begin_sampling(uint64_t interval, double budget)
{
    hm_reseed();
    hm.automatic = interval == 0;
    hm_interval = interval == 0 ? 1 : interval;
    hm.budget = budget;
    hm.adjusted_at = hm_now();
    hm.spent_then = hm.spent_ns;
    hm.running = 1;
    hm_plan();
}

void hm_end_sampling(void)
{
    hm.running = 0;
    STORE(hm_exact, 0);
    STORE(hm_countdown, HM_IDLE);
}

void hm_halve_sampling(void)
{
    if (hm_interval < HM_MAX_INTERVAL) {
        hm_interval *= 2;
        hm_plan();
    }
}

void hm_request_began(int alone)
{
    if (!hm.running) {
        return;
    }
    if (hm.slices > 1 && hm.opens_left-- == 0) {
        hm_next_slice();
    }
    else if (alone) {
        hm_draw(); /* gaps have no memory, so a new one is as good as the rest of the old */
    }
}

int hm_became_exact(void)
{
    int became = hm.became_exact;
    hm.became_exact = 0;
    return became;
}

void hm_watch(void)
{
    STORE(hm_countdown, HM_IDLE);
}

int hm_noticed(void)
{
    return LOAD(hm_countdown) != HM_IDLE;
}

/* ---- the budget ---------------------------------------------------------------------------------------------------- */

void hm_timed(uint64_t began)
{
    uint64_t took = hm_now() - began;
    hm.spent_ns += (took < HM_LONGEST_NS ? took : HM_LONGEST_NS) * HM_TIMED;
}

void hm_spend(uint64_t nanoseconds)
{
    hm.spent_ns += nanoseconds;
}

uint64_t hm_spent(void)
{
    return hm.spent_ns;
}

void hm_forget_spent(void)
{
    hm.spent_ns = hm.spent_then = 0;
}

/* What share of the time since the last look recording has cost sets the interval, step by step: one hundred milliseconds
 * may have been unlike the rest. */
static void hm_adjust(double share, int full)
{
    uint64_t before = hm_interval;
    for (int step = 0; step < 2 && share > hm.budget && hm_interval < HM_MAX_INTERVAL; step++, share /= 2) {
        hm_interval *= 2;
    }
    if (share < hm.budget / 4 && hm_interval > 1 && !full) {
        hm_interval /= 2; /* a quarter, not a half: the next look must not take it back */
    }
    if (hm_interval != before) {
        hm_plan();
    }
}

void hm_request_finished(int full)
{
    if (hm.finished++ % HM_LOOK != 0) {
        return;
    }
    hm.spent_ns += hm_released * HM_RELEASED_NS;
    hm_released = 0;
    uint64_t now = hm_now(), elapsed = now - hm.adjusted_at;
    if (!hm.running || !hm.automatic || elapsed < HM_ADJUST_NS) {
        return;
    }
    hm_adjust((double)(hm.spent_ns - hm.spent_then) / (double)elapsed, full);
    hm.adjusted_at = now;
    hm.spent_then = hm.spent_ns;
}
