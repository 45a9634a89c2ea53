/* The sites of what is alive, as Python sees them. */
#ifndef HM_LOCATED_H
#define HM_LOCATED_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* locate(most, roots): look for at most so many sites from the next start() on. `roots` is a list of (path, kind), with
 * the number of an hl_kind; a path ends in a separator. */
PyObject *hl_set(PyObject *module, PyObject *args);

/* sites(): a list of (endpoint, objects, bytes, innermost line, line of the application), one for each endpoint and site
 * that has live records. A line is (file, line, function), or None if there is none; both are None for HL_OTHER. */
PyObject *hl_rows(PyObject *module, PyObject *ignored);

#endif
