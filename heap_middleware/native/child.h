/* A census in a forked child, so that the application stands still only for the fork. */
#ifndef HM_CHILD_H
#define HM_CHILD_H

#include "census.h"

typedef struct {
    double pause;      /* seconds that the fork took */
    int error;         /* errno of what went wrong; ETIMEDOUT: the child was killed at the deadline */
    const char *where; /* what it went wrong in */
} hf_report;

/* Walk the heap in a child and read its result into `output`. Called with the interpreter lock, which is given up while
 * the child walks. 0, or -1 and what went wrong in `report`. */
int hf_census(int reachable, double deadline, hc_output *output, hf_report *report);

#endif
