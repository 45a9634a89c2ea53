/* The response of a WSGI application, made in the context of its request, with an end that is seen. */
#ifndef HM_BODY_H
#define HM_BODY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Make the types. 0, or -1 with an exception. */
int hb_prepare(PyObject *module);

/* An iterable like `result`; `end(result)` is called once: after its `close`, or when it dies. NULL with an exception. */
PyObject *hb_body(PyObject *result, PyObject *request, PyObject *end);

#endif
