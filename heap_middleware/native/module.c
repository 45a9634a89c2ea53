/* heap_middleware._native: the Python side of the tracker and of the census.
 *
 * One context variable says to which request the running code belongs: tasks, thread pools and greenlets inherit it.
 * Its value is a Request, which owns a slot of the tracker for as long as any context refers to it.
 *
 * CPython's internals used here: none. One tracker a process, because the allocators that it hooks are the process's.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "census.h"
#include "child.h"
#include "stores.h"
#include "tracker.h"

/* Read from inside the hooks, which have no module to ask: never released once set. */
static PyObject *native_variable;
static PyTypeObject *native_request_type;

typedef struct {
    PyObject_HEAD
    uint32_t slot;
    PyObject *outer; /* between enter and leave: what the variable was before */
} NativeRequest;

typedef struct {
    PyObject_HEAD
    PyObject *iterator;
    PyObject *request;
} NativeIterator;

typedef struct {
    PyTypeObject *iterator_type, *body_type, *sized_body_type;
} native_state;

/* While the variable itself is being set, nobody allocates. */
static int native_muted;

/* What native_current found last. `context_ver` grows whenever a thread enters or leaves a context: with the same thread
 * and number, the variable is what it was, unless native_set has set it. PyThreadState is public; `id` and `context_ver`
 * were checked with 3.11 to 3.14. */
static struct {
    uint64_t thread, version;
    uint32_t slot;
} native_seen = {.thread = UINT64_MAX};

static uint32_t native_current(void)
{
    PyObject *value = NULL;
    if (native_muted) {
        return HM_NO_SLOT;
    }
#if PY_VERSION_HEX >= 0x030D0000
    PyThreadState *thread = PyThreadState_GetUnchecked();
#else
    PyThreadState *thread = _PyThreadState_UncheckedGet();
#endif
    if (thread->id == native_seen.thread && thread->context_ver == native_seen.version) {
        return native_seen.slot;
    }
    /* Cannot fail: the key is compared by identity, and there is no default to make. */
    uint32_t slot = HM_NO_SLOT;
    if (PyContextVar_Get(native_variable, NULL, &value) == 0 && value != NULL) {
        slot = Py_IS_TYPE(value, native_request_type) ? ((NativeRequest *)value)->slot : HM_NO_SLOT;
        Py_DECREF(value); /* the context still has it */
    }
    native_seen.thread = thread->id;
    native_seen.version = thread->context_ver;
    native_seen.slot = slot;
    return slot;
}

/* ---- entering and leaving -------------------------------------------------------------------------------------------
 *
 * The variable is only ever set, never reset to "missing": deleting it (contextvar_del in CPython 3.11 to 3.13) clears
 * the variable's cache first and then allocates, which calls our hook, which looks the variable up and so fills the cache
 * again, with a borrowed reference to the very value that is about to go.
 */

static int native_set(PyObject *value)
{
    native_muted++;
    PyObject *token = PyContextVar_Set(native_variable, value);
    native_muted--;
    native_seen.thread = UINT64_MAX;
    Py_XDECREF(token);
    return token == NULL ? -1 : 0;
}

/* Set the variable; returns what it was, None if it was not set. */
static PyObject *native_swap(PyObject *value)
{
    PyObject *outer = NULL;
    if (PyContextVar_Get(native_variable, Py_None, &outer) < 0) {
        return NULL;
    }
    if (native_set(value) < 0) {
        Py_CLEAR(outer);
    }
    return outer;
}

/* Set it back, keeping the exception that may be on its way. 0 if another context runs than the one that was entered:
 * a body may be closed in another task or thread. */
static int native_restore(PyObject *entered, PyObject *outer)
{
    PyObject *type, *value, *traceback, *now = NULL;
    PyErr_Fetch(&type, &value, &traceback);
    int done = PyContextVar_Get(native_variable, Py_None, &now) == 0 && now == entered && native_set(outer) == 0;
    Py_XDECREF(now);
    PyErr_Restore(type, value, traceback);
    return done;
}

/* ---- Request ------------------------------------------------------------------------------------------------------- */

static PyObject *request_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    if (PyTuple_GET_SIZE(args) != 0 || (keywords != NULL && PyDict_GET_SIZE(keywords) != 0)) {
        PyErr_SetString(PyExc_TypeError, "Request() takes no arguments");
        return NULL;
    }
    NativeRequest *self = (NativeRequest *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->outer = NULL;
    self->slot = hm_open();
    if (self->slot == HM_NO_SLOT) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    if (hm_became_exact()) {
        hs_drain();
    }
    return (PyObject *)self;
}

static void request_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    uint32_t slot = ((NativeRequest *)self)->slot;
    if (slot != HM_NO_SLOT) {
        hm_close(slot);
    }
    Py_XDECREF(((NativeRequest *)self)->outer);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *request_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    NativeRequest *request = (NativeRequest *)self;
    if (request->outer != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the request is entered already");
        return NULL;
    }
    request->outer = native_swap(self);
    if (request->outer == NULL) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *request_leave(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    NativeRequest *request = (NativeRequest *)self;
    PyObject *outer = request->outer;
    if (outer == NULL) {
        Py_RETURN_FALSE;
    }
    request->outer = NULL;
    int done = native_restore(self, outer);
    Py_DECREF(outer);
    return PyBool_FromLong(done);
}

static PyObject *request_finish(PyObject *self, PyObject *number)
{
    unsigned long endpoint = PyLong_AsUnsignedLong(number);
    if (endpoint == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    if (endpoint > 1000000) {
        PyErr_Format(PyExc_ValueError, "endpoint is %lu; allowed: 0 to 1000000", endpoint);
        return NULL;
    }
    hm_finish(((NativeRequest *)self)->slot, (uint32_t)endpoint);
    Py_RETURN_NONE;
}

static PyObject *request_end(PyObject *self, PyObject *number)
{
    PyObject *left = request_leave(self, NULL);
    Py_XDECREF(left);
    return left == NULL ? NULL : request_finish(self, number);
}

static PyMethodDef request_methods[] = {
    {"enter", request_enter, METH_NOARGS, "Attribute what runs from here on in this context."},
    {"leave", request_leave, METH_NOARGS, "Undo `enter`; False if it was not entered, or in another context."},
    {"finish", request_finish, METH_O, "Name the endpoint the request belongs to; 0: to none."},
    {"end", request_end, METH_O, "`leave` and `finish`."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot request_slots[] = {
    {Py_tp_doc, "One request, as the owner of what is allocated in its context."},
    {Py_tp_new, request_new},
    {Py_tp_dealloc, request_dealloc},
    {Py_tp_methods, request_methods},
    {0, NULL},
};

static PyType_Spec request_spec = {
    .name = "heap_middleware._native.Request",
    .basicsize = sizeof(NativeRequest),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = request_slots,
};

/* ---- the response of a WSGI application: each step of it is made in the context of its request ---------------------- */

static PyObject *iterate(PyTypeObject *type, PyObject *iterable, PyObject *request)
{
    PyObject *outer = native_swap(request);
    if (outer == NULL) {
        return NULL;
    }
    PyObject *iterator = PyObject_GetIter(iterable);
    native_restore(request, outer);
    Py_DECREF(outer);
    if (iterator == NULL) {
        return NULL;
    }
    NativeIterator *self = PyObject_GC_New(NativeIterator, type);
    if (self == NULL) {
        Py_DECREF(iterator);
        return NULL;
    }
    self->iterator = iterator;
    self->request = Py_NewRef(request);
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static PyObject *iterator_next(PyObject *self)
{
    NativeIterator *iterator = (NativeIterator *)self;
    PyObject *outer = native_swap(iterator->request);
    if (outer == NULL) {
        return NULL;
    }
    PyObject *part = Py_TYPE(iterator->iterator)->tp_iternext(iterator->iterator);
    native_restore(iterator->request, outer);
    Py_DECREF(outer);
    return part;
}

static int iterator_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((NativeIterator *)self)->iterator);
    Py_VISIT(((NativeIterator *)self)->request);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int iterator_clear(PyObject *self)
{
    Py_CLEAR(((NativeIterator *)self)->iterator);
    Py_CLEAR(((NativeIterator *)self)->request);
    return 0;
}

static void iterator_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    iterator_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot iterator_slots[] = {
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, iterator_next},
    {Py_tp_traverse, iterator_traverse},
    {Py_tp_clear, iterator_clear},
    {Py_tp_dealloc, iterator_dealloc},
    {0, NULL},
};

static PyType_Spec iterator_spec = {
    .name = "heap_middleware._native.RequestIterator",
    .basicsize = sizeof(NativeIterator),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = iterator_slots,
};

/* The iterable itself, with an end that we see: `end(result)` is called once, at the latest when the body dies. */
typedef struct {
    PyObject_HEAD
    PyObject *result, *request, *end; /* end: NULL once it was called */
} NativeBody;

static PyObject *native_body(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    native_state *state = PyModule_GetState(module);
    if (count != 3 || !Py_IS_TYPE(args[1], native_request_type)) {
        PyErr_SetString(PyExc_TypeError, "body() wants a result, a Request and a callable");
        return NULL;
    }
    PyTypeObject *of = Py_TYPE(args[0]);
    int sized = (of->tp_as_sequence != NULL && of->tp_as_sequence->sq_length != NULL) ||
                (of->tp_as_mapping != NULL && of->tp_as_mapping->mp_length != NULL);
    PyObject *left = request_leave(args[1], NULL);
    if (left == NULL) {
        return NULL;
    }
    Py_DECREF(left);
    NativeBody *self = PyObject_GC_New(NativeBody, sized ? state->sized_body_type : state->body_type);
    if (self == NULL) {
        return NULL;
    }
    self->result = Py_NewRef(args[0]);
    self->request = Py_NewRef(args[1]);
    self->end = Py_NewRef(args[2]);
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static PyObject *body_iter(PyObject *self)
{
    native_state *state = PyType_GetModuleState(Py_TYPE(self));
    return iterate(state->iterator_type, ((NativeBody *)self)->result, ((NativeBody *)self)->request);
}

static Py_ssize_t body_length(PyObject *self)
{
    return PyObject_Size(((NativeBody *)self)->result);
}

/* Tell that the response has ended; keeps the exception that may be on its way, and lets none of `end` take its place. */
static void body_ended(NativeBody *self)
{
    PyObject *type, *value, *traceback, *end = self->end;
    if (end == NULL) {
        return;
    }
    self->end = NULL;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *done = PyObject_CallOneArg(end, self->result);
    if (done == NULL) {
        PyErr_WriteUnraisable(end);
    }
    Py_XDECREF(done);
    Py_DECREF(end);
    PyErr_Restore(type, value, traceback);
}

/* The application's own `close`, if there is one, in the context of the request. */
static PyObject *body_close_result(NativeBody *body)
{
    PyObject *outer = native_swap(body->request);
    if (outer == NULL) {
        return NULL;
    }
    PyObject *done = NULL, *close = PyObject_GetAttrString(body->result, "close");
    if (close == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        done = Py_NewRef(Py_None);
    }
    else if (close == Py_None) {
        done = Py_NewRef(Py_None);
    }
    else if (close != NULL) {
        done = PyObject_CallNoArgs(close);
    }
    Py_XDECREF(close);
    native_restore(body->request, outer);
    Py_DECREF(outer);
    return done;
}

static PyObject *body_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *done = body_close_result((NativeBody *)self);
    body_ended((NativeBody *)self);
    if (done == NULL) {
        return NULL;
    }
    Py_DECREF(done);
    Py_RETURN_NONE;
}

static int body_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((NativeBody *)self)->result);
    Py_VISIT(((NativeBody *)self)->request);
    Py_VISIT(((NativeBody *)self)->end);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int body_clear(PyObject *self)
{
    Py_CLEAR(((NativeBody *)self)->result);
    Py_CLEAR(((NativeBody *)self)->request);
    Py_CLEAR(((NativeBody *)self)->end);
    return 0;
}

/* A server or middleware that never closes. */
static void body_finalize(PyObject *self)
{
    body_ended((NativeBody *)self);
}

static void body_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0) {
        return;
    }
    PyObject_GC_UnTrack(self);
    body_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef body_methods[] = {
    {"close", body_close, METH_NOARGS, "Close the application's iterable, then end the request, even if that raises."},
    {NULL, NULL, 0, NULL},
};

#define BODY_SLOTS                                                                                                     \
    {Py_tp_iter, body_iter}, {Py_tp_methods, body_methods}, {Py_tp_traverse, body_traverse},                           \
        {Py_tp_clear, body_clear}, {Py_tp_finalize, body_finalize}, {Py_tp_dealloc, body_dealloc}

static PyType_Slot body_slots[] = {BODY_SLOTS, {0, NULL}};

static PyType_Slot sized_body_slots[] = {BODY_SLOTS, {Py_sq_length, body_length}, {0, NULL}};

static PyType_Spec body_spec = {
    .name = "heap_middleware._native.Body",
    .basicsize = sizeof(NativeBody),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = body_slots,
};

/* Servers derive Content-Length from a length of one. */
static PyType_Spec sized_body_spec = {
    .name = "heap_middleware._native.SizedBody",
    .basicsize = sizeof(NativeBody),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = sized_body_slots,
};

/* ---- functions ----------------------------------------------------------------------------------------------------- */

static PyObject *native_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long max_records, interval;
    double budget;
    if (!PyArg_ParseTuple(args, "KKd:start", &max_records, &interval, &budget)) {
        return NULL;
    }
    if (max_records < 16 || max_records > 1u << 28 || interval > 1u << 20) {
        PyErr_SetString(PyExc_ValueError, "start() wants 16 to 2**28 records and an interval of 0 to 2**20");
        return NULL;
    }
    if (hm_start(max_records, interval, budget, native_current) < 0) {
        return PyErr_NoMemory();
    }
    if (hs_install() < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *native_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    hm_stop();
    hs_uninstall();
    Py_RETURN_NONE;
}

static PyObject *native_reset_all(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    hm_reset();
    Py_RETURN_NONE;
}

static PyObject *native_snapshot(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    uint32_t count = hm_settle_requests();
    PyObject *rows = PyList_New(0);
    for (uint32_t at = 0; rows != NULL && at < count; at++) {
        /* Building a row may collect garbage, which frees blocks and counts them: each row is read in one go. */
        hm_totals totals = hm_totals_at(at);
        PyObject *row = Py_BuildValue("(KKKKKK)", totals.gained_objects, totals.lost_objects, totals.gained_bytes,
                                      totals.lost_bytes, totals.allocated_objects, totals.allocated_bytes);
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_CLEAR(rows);
        }
        Py_XDECREF(row);
    }
    return rows;
}

static PyObject *native_statistics(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    hm_stats stats = hm_statistics();
    return Py_BuildValue("{s:O,s:O,s:K,s:K,s:K,s:d,s:K}", "running", stats.running ? Py_True : Py_False, "intact",
                         stats.intact ? Py_True : Py_False, "records", stats.records, "interval", stats.interval,
                         "memory", stats.memory, "seconds", (double)stats.spent_ns / 1e9, "requests", stats.requests);
}

static PyObject *native_census(PyObject *Py_UNUSED(module), PyObject *args)
{
    int reachable;
    PyObject *objects = Py_None, *result = NULL;
    if (!PyArg_ParseTuple(args, "p|O:census", &reachable, &objects)) {
        return NULL;
    }
    if (objects != Py_None && !PyList_CheckExact(objects)) {
        PyErr_Format(PyExc_TypeError, "census() wants a list or None, not %s", Py_TYPE(objects)->tp_name);
        return NULL;
    }
    hc_output output = {.fd = -1};
    if (hc_census(reachable, objects == Py_None ? NULL : objects, &output) < 0) {
        PyErr_NoMemory();
    }
    else {
        result = PyBytes_FromStringAndSize(output.data, (Py_ssize_t)output.length);
    }
    free(output.data);
    return result;
}

static PyObject *native_census_in_child(PyObject *Py_UNUSED(module), PyObject *args)
{
    int reachable;
    double deadline;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "pd:census_in_child", &reachable, &deadline)) {
        return NULL;
    }
    hc_output output = {.fd = -1};
    hf_report report;
    if (hf_census(reachable, deadline, &output, &report) == 0) {
        result = Py_BuildValue("(y#d)", output.data, (Py_ssize_t)output.length, report.pause);
    }
    else {
        errno = report.error;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, report.where);
    }
    free(output.data);
    return result;
}

static PyObject *native_begin(PyObject *Py_UNUSED(module), PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(count))
{
    PyObject *request = PyObject_CallNoArgs((PyObject *)native_request_type);
    PyObject *entered = request == NULL ? NULL : request_enter(request, NULL);
    if (entered == NULL) {
        Py_CLEAR(request);
    }
    Py_XDECREF(entered);
    return request;
}

static PyMethodDef native_methods[] = {
    {"start", native_start, METH_VARARGS, "start(max_records, interval, budget): hook the allocators and record."},
    {"stop", native_stop, METH_NOARGS, "Forget everything and leave the allocators."},
    {"reset", native_reset_all, METH_NOARGS, "Forget everything and go on, in a forked child."},
    {"begin", (PyCFunction)(void (*)(void))native_begin, METH_FASTCALL, "A Request, entered; arguments are ignored."},
    {"body", (PyCFunction)(void (*)(void))native_body, METH_FASTCALL,
     "body(result, request, end): leave the request, and make its response in its context."},
    {"snapshot", native_snapshot, METH_NOARGS, "A tuple for each endpoint number, see hm_totals."},
    {"census", native_census, METH_VARARGS, "census(reachable, objects=None): walk the heap, or a list; see census.h."},
    {"census_in_child", native_census_in_child, METH_VARARGS,
     "census_in_child(reachable, deadline): walk it in a forked child; the result, and seconds the fork took."},
    {"statistics", native_statistics, METH_NOARGS, "What the tracker holds and costs."},
    {NULL, NULL, 0, NULL},
};

static int native_exec(PyObject *module)
{
#ifdef Py_GIL_DISABLED
    PyErr_SetString(PyExc_ImportError, "heap_middleware._native needs the global interpreter lock: its tables have no "
                                       "lock of their own; the windows backend serves on free-threaded builds");
    return -1;
#endif
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "heap_middleware._native works in the main interpreter only");
        return -1;
    }
    if (hc_prepare() < 0) {
        return -1;
    }
    native_state *state = PyModule_GetState(module);
    if (native_variable == NULL) {
        native_variable = PyContextVar_New("heap_middleware.request", NULL);
        native_request_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &request_spec, NULL);
    }
    state->iterator_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &iterator_spec, NULL);
    state->body_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &body_spec, NULL);
    state->sized_body_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &sized_body_spec, NULL);
    if (native_variable == NULL || native_request_type == NULL || state->iterator_type == NULL ||
        state->body_type == NULL || state->sized_body_type == NULL) {
        return -1;
    }
    return PyModule_AddType(module, native_request_type);
}

static int native_traverse(PyObject *module, visitproc visit, void *arg)
{
    native_state *state = PyModule_GetState(module);
    Py_VISIT(state->iterator_type);
    Py_VISIT(state->body_type);
    Py_VISIT(state->sized_body_type);
    return 0;
}

static int native_clear(PyObject *module)
{
    native_state *state = PyModule_GetState(module);
    Py_CLEAR(state->iterator_type);
    Py_CLEAR(state->body_type);
    Py_CLEAR(state->sized_body_type);
    return 0;
}

static PyModuleDef_Slot native_slots[] = {
    {Py_mod_exec, native_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "heap_middleware._native",
    .m_doc = "The accelerator of heap_middleware: which request allocated what is still alive.",
    .m_size = sizeof(native_state),
    .m_methods = native_methods,
    .m_slots = native_slots,
    .m_traverse = native_traverse,
    .m_clear = native_clear,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}
