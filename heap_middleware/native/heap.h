/* The objects that the garbage collector tracks, one after the other. */
#ifndef HM_HEAP_H
#define HM_HEAP_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Learn where the garbage collector's lists are. 0, or -1 with an exception. */
int hc_prepare(void);

/* Shown each object; 0 ends the walk. */
typedef int (*hc_visitor)(PyObject *object, void *argument);

/* Walk over all tracked objects, frozen ones included. Nothing may be tracked or untracked meanwhile. */
void hc_visit_heap(hc_visitor visit, void *argument);

#endif
