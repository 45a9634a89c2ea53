/* What is on the heap: one walk, by type, with no list of the objects and no Python code.
 *
 * All functions want the interpreter lock; the walk may also run in a forked child, which has a copy of it.
 */
#ifndef HM_CENSUS_H
#define HM_CENSUS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>

/* The result of a walk, as bytes in the machine's own order, for census.py's twin in Python to read:
 *
 *   uint64 walked, types, retained
 *   types times:    double objects, bytes; uint64 lengths of module and qualified name; the two, as UTF-8
 *   retained times: uint64 endpoint, type (its place above), objects, bytes
 *
 * A module that is missing or no string has the length HC_NO_NAME. Memory of no object has the type HC_NO_TYPE.
 */
#define HC_NO_NAME UINT64_MAX
#define HC_NO_TYPE UINT64_MAX

typedef struct {
    int fd;     /* where to write it, or -1: into `data` */
    char *data; /* free() it */
    size_t length, room;
    char chunk[4096];
    size_t waiting;
} hc_output;

/* Learn where the garbage collector's lists are. 0, or -1 with an exception. */
int hc_prepare(void);

/* Walk the heap, or the items of `objects` if that is a list, and write the result. With `reachable`, what the tracked
 * objects refer to is counted, too. 0, or -1 if there was no memory or the output failed; no exception is set. */
int hc_census(int reachable, PyObject *objects, hc_output *output);

#endif
