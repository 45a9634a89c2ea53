/* What is on the heap: one walk, by type, with no list of the objects and no Python code.
 *
 * All functions want the interpreter lock; the walk may also run in a forked child, which has a copy of it.
 */
#ifndef HM_CENSUS_H
#define HM_CENSUS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "output.h"

/* Walk the heap, or the items of `objects` if that is a list, and write the result, whose form is in output.h. With
 * `reachable`, what the tracked objects refer to is counted, too. 0, or -1 if there was no memory or the output failed;
 * no exception is set. */
int hc_census(int reachable, PyObject *objects, hc_output *output);

#endif
