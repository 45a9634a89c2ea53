/* To which request the running code belongs.
 *
 * A context variable says it: what copies the context inherits it, asyncio's and anyio's tasks and threads above all, but
 * not a bare thread, executor or new greenlet. Its value is a Request, which owns a slot of the tracker for as long as any
 * context refers to it.
 */
#ifndef HM_REQUEST_H
#define HM_REQUEST_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

/* Add the type to the module. 0, or -1 with an exception. */
int hq_prepare(PyObject *module);

/* The slot of the request that the running code belongs to, or HM_NO_SLOT: an hm_current. */
uint32_t hq_current(void *thread);

/* A new Request that is entered: what runs from here on in this context is its. NULL with an exception. */
PyObject *hq_begin(void);

int hq_is_request(PyObject *object);

/* Leave what hq_begin entered. 0 if it was not entered, or not in this context. */
int hq_leave(PyObject *request);

/* Make sure that the running code belongs to the request, in whatever context it runs; `hq_return` wants what this gave.
 * 0, or -1 with an exception. */
int hq_visit(PyObject *request, PyObject **outer);

/* Undo hq_visit; keeps the exception that may be on its way. */
void hq_return(PyObject *request, PyObject *outer);

#endif
