/* Work in a forked child, so that the application stands still only for the fork. */
#ifndef HM_CHILD_H
#define HM_CHILD_H

#include "census.h"

typedef struct {
    double pause;      /* seconds that the fork took */
    int error;         /* errno of what went wrong; ETIMEDOUT: the child was killed at the deadline */
    const char *where; /* what it went wrong in */
} hf_report;

/* What the child does: writes to `output`. 0, or -1. */
typedef int (*hf_work)(void *argument, hc_output *output);

/* Shown what has come so far, with the interpreter lock, now and then; other than 0: the child is killed, ECANCELED. */
typedef int (*hf_watch)(void *argument, const hc_output *output);

/* Work in a child and read its result into `output`. Called with the interpreter lock, which is given up while the child
 * works. `watch` may be NULL. 0, or -1 and what went wrong in `report`. */
int hf_run(hf_work work, hf_watch watch, void *argument, double deadline, hc_output *output, hf_report *report);

/* A census in a child. */
int hf_census(int reachable, double deadline, hc_output *output, hf_report *report);

#endif
