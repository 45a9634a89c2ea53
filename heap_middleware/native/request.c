/* See request.h. One variable a process, because the allocators that ask for it are the process's. */
#include "request.h"

#include "home.h"
#include "sampling.h"
#include "stores.h"
#include "tracker.h"

/* Read from inside the hooks, which have no module to ask: never released once set. */
static PyObject *hq_variable;
static PyTypeObject *hq_type;

typedef struct {
    PyObject_HEAD
    uint32_t slot;
    uint8_t left, outer_left; /* outer_left: `outer` had been left when this one was entered over it, in a task of its own */
    PyObject *outer;          /* between enter and leave: what the variable was before */
} hq_request;

/* While the variable itself is being set, nobody allocates. */
static int hq_muted;

int hq_is_request(PyObject *object)
{
    return Py_IS_TYPE(object, hq_type);
}

#if PY_VERSION_HEX < 0x030E0000 && !defined(Py_GIL_DISABLED)

/* What a variable remembers of the last look at it. CPython's internals, checked with 3.11 to 3.13: PyContextVar, and in
 * the thread state the number of its context. */
typedef struct {
    PyObject_HEAD
    PyObject *name, *default_value;
    PyObject *cached;
    uint64_t thread, context;
} hq_memory;

static inline PyObject *hq_remembered(const PyThreadState *thread)
{
    const hq_memory *variable = (hq_memory *)hq_variable;
    int same = variable->thread == thread->id && variable->context == thread->context_ver && thread->context != NULL;
    return same ? variable->cached : NULL;
}

#else

static inline PyObject *hq_remembered(const PyThreadState *Py_UNUSED(thread))
{
    return NULL;
}

#endif

NOINLINE static PyObject *hq_look_up(void)
{
    PyObject *value = NULL;
#if PY_VERSION_HEX < 0x030C0000
    /* The look-up compares keys, at the recursion limit that raises, and we may be in the middle of an exception. */
    PyObject *type, *raised, *traceback;
    PyErr_Fetch(&type, &raised, &traceback);
#endif
    if (PyContextVar_Get(hq_variable, NULL, &value) < 0) {
        PyErr_Clear();
        value = NULL;
    }
#if PY_VERSION_HEX < 0x030C0000
    PyErr_Restore(type, raised, traceback);
#endif
    Py_XDECREF(value);
    return value;
}

/* What the variable is in the running context, or NULL; borrowed, the context has it. No copy of it is kept: others may
 * set it, as asgiref does when it carries a context from one thread to another. */
static inline PyObject *hq_value(const PyThreadState *thread)
{
    PyObject *value = hq_remembered(thread);
    return LIKELY(value != NULL) ? value : hq_look_up();
}

uint32_t hq_current(void *thread)
{
    PyObject *value = hq_muted ? NULL : hq_value(thread);
    return value != NULL && hq_is_request(value) ? ((hq_request *)value)->slot : HM_NO_SLOT;
}

/* ---- entering and leaving -------------------------------------------------------------------------------------------
 *
 * The variable is only ever set, never reset to "missing": deleting it (contextvar_del in CPython 3.11 to 3.13) clears
 * the variable's cache first and then allocates, which calls our hook, which looks the variable up and so fills the cache
 * again, with a borrowed reference to the very value that is about to go.
 *
 * Requests of one context end in the order of a stack, as calls do. Should one end under another all the same, the other
 * does not go back to it: what came later in that context would be charged to it for good.
 */

/* PyContextVar_Set of CPython 3.11 to 3.13 does not look whether it got its token: without memory for that and for the
 * variable it drops NULL, and the process dies. So there must be room for a token (64 bytes with the collector's head),
 * which is its block the next moment. */
static int hq_has_room(void)
{
    void *room = PyObject_Malloc(64);
    PyObject_Free(room);
    return room != NULL;
}

static int hq_set(PyObject *value)
{
    hq_muted++;
    PyObject *token = hq_has_room() ? PyContextVar_Set(hq_variable, value) : PyErr_NoMemory();
    hq_muted--;
    if (token == NULL) {
        PyObject *type, *raised, *traceback;
        PyErr_Fetch(&type, &raised, &traceback);
        if (hq_look_up() == value) { /* it is set all the same, and the token is nothing that we need */
            Py_XDECREF(type);
            Py_XDECREF(raised);
            Py_XDECREF(traceback);
            return 0;
        }
        PyErr_Restore(type, raised, traceback);
        return -1;
    }
    Py_DECREF(token);
    return 0;
}

/* Set the variable; `outer` is then what it was. */
static int hq_enter(PyObject *request, PyObject **outer)
{
    PyObject *value = hq_value(hm_thread());
    *outer = Py_NewRef(value == NULL ? Py_None : value);
    if (hq_set(request) < 0) {
        Py_CLEAR(*outer);
        return -1;
    }
    return 0;
}

/* Set it back; takes the reference, and keeps the exception that may be on its way. 0 if the request is not the innermost
 * one of the running context: that may be another than the one it was entered in. */
static int hq_restore(PyObject *request, PyObject *outer)
{
    PyObject *type, *raised, *traceback;
    int innermost = hq_value(hm_thread()) == request;
    PyErr_Fetch(&type, &raised, &traceback);
    if (innermost && hq_set(outer) < 0) {
        PyErr_WriteUnraisable(request); /* no memory: the context keeps the request's name */
    }
    PyErr_Restore(type, raised, traceback);
    Py_DECREF(outer);
    return innermost;
}

static int hq_has_left(PyObject *value)
{
    return hq_is_request(value) && ((hq_request *)value)->left;
}

int hq_leave(PyObject *self)
{
    hq_request *request = (hq_request *)self;
    PyObject *outer = request->outer;
    if (outer == NULL) {
        return 0;
    }
    request->outer = NULL;
    request->left = 1;
    if (hq_has_left(outer) && !request->outer_left) {
        Py_SETREF(outer, Py_NewRef(Py_None));
    }
    return hq_restore(self, outer);
}

static int hq_begin_in(hq_request *request)
{
    if (hq_enter((PyObject *)request, &request->outer) < 0) {
        return -1;
    }
    request->left = 0;
    request->outer_left = (uint8_t)hq_has_left(request->outer);
    return 0;
}

int hq_visit(PyObject *request, PyObject **outer)
{
    *outer = NULL;
    return hq_value(hm_thread()) == request ? 0 : hq_enter(request, outer);
}

void hq_return(PyObject *request, PyObject *outer)
{
    if (outer != NULL) {
        hq_restore(request, outer);
    }
}

/* ---- Request ------------------------------------------------------------------------------------------------------- */

static PyObject *request_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    if (PyTuple_GET_SIZE(args) != 0 || (keywords != NULL && PyDict_GET_SIZE(keywords) != 0)) {
        PyErr_SetString(PyExc_TypeError, "Request() takes no arguments");
        return NULL;
    }
    hq_request *self = (hq_request *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->slot = hm_open();
    if (self->slot == HM_NO_SLOT) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    if (hm_became_exact()) {
        hs_drain();
    }
    else if (hm_exact) {
        hs_drain_tables();
    }
    return (PyObject *)self;
}

static void request_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    hq_request *request = (hq_request *)self;
    if (request->slot != HM_NO_SLOT) {
        hm_close(request->slot);
    }
    Py_XDECREF(request->outer);
    type->tp_free(self);
    Py_DECREF(type);
}

PyObject *hq_begin(void)
{
    static PyObject *nothing; /* the empty tuple, which lives forever */
    if (nothing == NULL && (nothing = PyTuple_New(0)) == NULL) {
        return NULL;
    }
    PyObject *request = request_new(hq_type, nothing, NULL);
    if (request != NULL && hq_begin_in((hq_request *)request) < 0) {
        Py_CLEAR(request);
    }
    return request;
}

static PyObject *request_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (((hq_request *)self)->outer != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the request is entered already");
        return NULL;
    }
    if (hq_begin_in((hq_request *)self) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *request_leave(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(hq_leave(self));
}

static PyObject *request_finish(PyObject *self, PyObject *number)
{
    unsigned long endpoint = PyLong_AsUnsignedLong(number);
    if (endpoint == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    if (endpoint > HM_MAX_ENDPOINT) {
        PyErr_Format(PyExc_ValueError, "endpoint is %lu; allowed: 0 to %d", endpoint, HM_MAX_ENDPOINT);
        return NULL;
    }
    hm_finish(((hq_request *)self)->slot, (uint32_t)endpoint);
    Py_RETURN_NONE;
}

static PyObject *request_end(PyObject *self, PyObject *number)
{
    hq_leave(self);
    return request_finish(self, number);
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
    .basicsize = sizeof(hq_request),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = request_slots,
};

int hq_prepare(PyObject *module)
{
    if (hq_variable == NULL) {
        hq_variable = PyContextVar_New("heap_middleware.request", NULL);
        hq_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &request_spec, NULL);
    }
    return hq_variable == NULL || hq_type == NULL ? -1 : PyModule_AddType(module, hq_type);
}
