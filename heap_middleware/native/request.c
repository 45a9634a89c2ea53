/* See request.h. One variable a process, because the allocators that ask for it are the process's.
 *
 * CPython's internals used here: `id`, `context` and `context_ver` of the public PyThreadState, checked with 3.11 to 3.14.
 */
#include "request.h"

#include "home.h"
#include "sampling.h"
#include "stores.h"
#include "tracker.h"

/* Read from inside the hooks, which have no module to ask: never released once set. */
static PyObject *hq_variable;
static PyTypeObject *hq_type;

typedef struct hq_request {
    PyObject_HEAD
    uint32_t slot;
    uint8_t entered, left;
    uint8_t stranded; /* it ended elsewhere: the context it was entered in may still name it, and must not go back to it */
    PyObject *home;   /* the context it was entered in: to compare with only, it may be gone */
    PyObject *outer;  /* what the context goes back to after it; NULL for nothing */
    struct hq_request *inner; /* the one whose `outer` it is, in the same context, or NULL; borrowed */
} hq_request;

/* While the variable itself is being set, nobody allocates. */
static int hq_muted;

/* What hq_current found last. `context_ver` grows whenever a thread enters or leaves a context: with the same thread and
 * number, the variable is what it was, unless hq_set has set it. */
static struct {
    uint64_t thread, version;
    uint32_t slot;
} hq_seen = {.thread = UINT64_MAX};

int hq_is_request(PyObject *object)
{
    return Py_IS_TYPE(object, hq_type);
}

/* What the variable is in the running context, or NULL; borrowed, the context has it. Cannot fail: the key is compared by
 * identity, and there is no default to make. */
static PyObject *hq_value(void)
{
    PyObject *value = NULL;
    if (PyContextVar_Get(hq_variable, NULL, &value) < 0) {
        return NULL;
    }
    Py_XDECREF(value);
    return value;
}

/* The request that a value of the variable stands for in the running context, or what is no request, or NULL; borrowed. A
 * stranded one is over where it was entered. Where that context was copied to, a task or thread goes on in its name. */
static PyObject *hq_owner(PyObject *value, const PyThreadState *thread)
{
    if (value != NULL && hq_is_request(value)) {
        hq_request *request = (hq_request *)value;
        return request->stranded && request->home == thread->context ? request->outer : value;
    }
    return value;
}

uint32_t hq_current(PyThreadState *thread)
{
    if (hq_muted) {
        return HM_NO_SLOT;
    }
    if (thread->id == hq_seen.thread && thread->context_ver == hq_seen.version) {
        return hq_seen.slot;
    }
    PyObject *value = hq_owner(hq_value(), thread);
    hq_seen.thread = thread->id;
    hq_seen.version = thread->context_ver;
    hq_seen.slot = value != NULL && hq_is_request(value) ? ((hq_request *)value)->slot : HM_NO_SLOT;
    return hq_seen.slot;
}

/* ---- entering and leaving -------------------------------------------------------------------------------------------
 *
 * The variable is only ever set, never reset to "missing": deleting it (contextvar_del in CPython 3.11 to 3.13) clears
 * the variable's cache first and then allocates, which calls our hook, which looks the variable up and so fills the cache
 * again, with a borrowed reference to the very value that is about to go.
 *
 * Requests end in any order: a server may hold one response while it serves the next in the same thread, and close it in
 * another. The one that ends under another, or in another context, is stranded: the one entered over it goes back past
 * it, and so do those to come. Of the requests of one context no stranded one is anybody's `outer`.
 */

static int hq_set(PyObject *value)
{
    hq_muted++;
    PyObject *token = PyContextVar_Set(hq_variable, value);
    hq_muted--;
    hq_seen.thread = UINT64_MAX;
    Py_XDECREF(token);
    return token == NULL ? -1 : 0;
}

/* Takes the reference. */
static void hq_set_outer(hq_request *request, PyObject *outer)
{
    PyObject *before = request->outer;
    if (before != NULL && hq_is_request(before) && ((hq_request *)before)->inner == request) {
        ((hq_request *)before)->inner = NULL;
    }
    request->outer = outer;
    if (outer != NULL && hq_is_request(outer) && ((hq_request *)outer)->home == request->home) {
        ((hq_request *)outer)->inner = request;
    }
    Py_XDECREF(before);
}

static void hq_strand(hq_request *request)
{
    request->stranded = 1;
    hq_seen.thread = UINT64_MAX;
    if (request->inner != NULL) {
        /* Held by it alone, or requests that overlap without end would hold on to all before them. */
        PyObject *outer = Py_XNewRef(request->outer);
        hq_request *inner = request->inner;
        hq_set_outer(request, NULL);
        hq_set_outer(inner, outer);
    }
}

static int hq_enter(hq_request *request)
{
    PyThreadState *thread = hm_thread();
    PyObject *outer = Py_XNewRef(hq_owner(hq_value(), thread));
    if (hq_set((PyObject *)request) < 0) {
        Py_XDECREF(outer);
        return -1;
    }
    request->home = thread->context; /* now there is one */
    request->entered = 1;
    hq_set_outer(request, outer);
    return 0;
}

int hq_leave(PyObject *self)
{
    hq_request *request = (hq_request *)self;
    PyThreadState *thread = hm_thread();
    if (!request->entered || request->left) {
        return 0;
    }
    request->left = 1;
    if (request->home != thread->context || hq_owner(hq_value(), thread) != self) {
        hq_strand(request);
        return 0;
    }
    if (hq_set(request->outer == NULL ? Py_None : request->outer) < 0) {
        hq_strand(request);
        return -1;
    }
    hq_set_outer(request, NULL);
    return 1;
}

int hq_visit(PyObject *request, PyObject **outer)
{
    PyObject *value = hq_value();
    *outer = NULL;
    if (value == request) {
        return 0;
    }
    *outer = Py_NewRef(value == NULL ? Py_None : value);
    if (hq_set(request) < 0) {
        Py_CLEAR(*outer);
        return -1;
    }
    return 0;
}

void hq_return(PyObject *request, PyObject *outer)
{
    if (outer == NULL) {
        return;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (hq_value() == request && hq_set(outer) < 0) {
        PyErr_WriteUnraisable(request); /* no memory: the context keeps the request's name */
    }
    PyErr_Restore(type, value, traceback);
    Py_DECREF(outer);
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
    return (PyObject *)self;
}

static void request_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    hq_request *request = (hq_request *)self;
    if (request->slot != HM_NO_SLOT) {
        hm_close(request->slot);
    }
    /* One by one: a chain of many would be too deep for the C stack. */
    PyObject *outer = Py_XNewRef(request->outer);
    hq_set_outer(request, NULL);
    while (outer != NULL && Py_REFCNT(outer) == 1 && hq_is_request(outer)) {
        PyObject *next = Py_XNewRef(((hq_request *)outer)->outer);
        hq_set_outer((hq_request *)outer, NULL);
        Py_DECREF(outer);
        outer = next;
    }
    Py_XDECREF(outer);
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
    if (request != NULL && hq_enter((hq_request *)request) < 0) {
        Py_CLEAR(request);
    }
    return request;
}

static PyObject *request_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (((hq_request *)self)->entered) {
        PyErr_SetString(PyExc_RuntimeError, "the request was entered before");
        return NULL;
    }
    if (hq_enter((hq_request *)self) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *request_leave(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    int left = hq_leave(self);
    return left < 0 ? NULL : PyBool_FromLong(left);
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
    return hq_leave(self) < 0 ? NULL : request_finish(self, number);
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
