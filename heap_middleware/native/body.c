/* See body.h.
 *
 * A server makes the response when and where it likes: in another thread, or in the same one with other requests in
 * between, or never. So the request is left when the application returns, and each step of the response enters it again.
 */
#include "body.h"

#include "request.h"

/* As long as the process: the extension's one module is. */
static PyTypeObject *hb_iterator_type, *hb_body_type, *hb_sized_type;
static PyObject *hb_close_name;

/* ---- its iterator -------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *iterator;
    PyObject *request;
} hb_iterator;

static PyObject *iterator_next(PyObject *self)
{
    hb_iterator *iterator = (hb_iterator *)self;
    PyObject *outer, *part;
    if (hq_visit(iterator->request, &outer) < 0) {
        return NULL;
    }
    part = Py_TYPE(iterator->iterator)->tp_iternext(iterator->iterator);
    hq_return(iterator->request, outer);
    return part;
}

static int iterator_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((hb_iterator *)self)->iterator);
    Py_VISIT(((hb_iterator *)self)->request);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int iterator_clear(PyObject *self)
{
    Py_CLEAR(((hb_iterator *)self)->iterator);
    Py_CLEAR(((hb_iterator *)self)->request);
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
    .basicsize = sizeof(hb_iterator),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = iterator_slots,
};

/* ---- the iterable -------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *result, *request, *end; /* end: NULL once it was called */
} hb_iterable;

static PyObject *body_iter(PyObject *self)
{
    hb_iterable *body = (hb_iterable *)self;
    PyObject *outer, *iterator;
    if (hq_visit(body->request, &outer) < 0) {
        return NULL;
    }
    iterator = PyObject_GetIter(body->result);
    hq_return(body->request, outer);
    hb_iterator *made = iterator == NULL ? NULL : PyObject_GC_New(hb_iterator, hb_iterator_type);
    if (made == NULL) {
        Py_XDECREF(iterator);
        return NULL;
    }
    made->iterator = iterator;
    made->request = Py_NewRef(body->request);
    PyObject_GC_Track(made);
    return (PyObject *)made;
}

static Py_ssize_t body_length(PyObject *self)
{
    return PyObject_Size(((hb_iterable *)self)->result);
}

/* Tell that the response has ended; keeps the exception that may be on its way, and lets none of `end` take its place. */
static void body_ended(hb_iterable *self)
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

/* The application's own `close`, if there is one. */
static PyObject *body_close_result(PyObject *result)
{
    PyObject *done = NULL, *close = PyObject_GetAttr(result, hb_close_name);
    if (close == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        return Py_NewRef(Py_None);
    }
    if (close != NULL) {
        done = close == Py_None ? Py_NewRef(Py_None) : PyObject_CallNoArgs(close);
        Py_DECREF(close);
    }
    return done;
}

static PyObject *body_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    hb_iterable *body = (hb_iterable *)self;
    PyObject *outer, *done;
    if (hq_visit(body->request, &outer) < 0) {
        return NULL;
    }
    done = body_close_result(body->result);
    hq_return(body->request, outer);
    body_ended(body);
    if (done == NULL) {
        return NULL;
    }
    Py_DECREF(done);
    Py_RETURN_NONE;
}

static int body_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((hb_iterable *)self)->result);
    Py_VISIT(((hb_iterable *)self)->request);
    Py_VISIT(((hb_iterable *)self)->end);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int body_clear(PyObject *self)
{
    Py_CLEAR(((hb_iterable *)self)->result);
    Py_CLEAR(((hb_iterable *)self)->request);
    Py_CLEAR(((hb_iterable *)self)->end);
    return 0;
}

/* A server or middleware that never closes. */
static void body_finalize(PyObject *self)
{
    body_ended((hb_iterable *)self);
}

static void body_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (((hb_iterable *)self)->end != NULL && PyObject_CallFinalizerFromDealloc(self) < 0) {
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

static PyType_Slot sized_slots[] = {BODY_SLOTS, {Py_sq_length, body_length}, {0, NULL}};

static PyType_Spec body_spec = {
    .name = "heap_middleware._native.Body",
    .basicsize = sizeof(hb_iterable),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = body_slots,
};

/* Servers derive Content-Length from a length of one. */
static PyType_Spec sized_spec = {
    .name = "heap_middleware._native.SizedBody",
    .basicsize = sizeof(hb_iterable),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = sized_slots,
};

PyObject *hb_body(PyObject *result, PyObject *request, PyObject *end)
{
    PyTypeObject *type = Py_TYPE(result);
    int sized = (type->tp_as_sequence != NULL && type->tp_as_sequence->sq_length != NULL) ||
                (type->tp_as_mapping != NULL && type->tp_as_mapping->mp_length != NULL);
    hq_leave(request);
    hb_iterable *self = PyObject_GC_New(hb_iterable, sized ? hb_sized_type : hb_body_type);
    if (self == NULL) {
        return NULL;
    }
    self->result = Py_NewRef(result);
    self->request = Py_NewRef(request);
    self->end = Py_NewRef(end);
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static int hb_type(PyTypeObject **type, PyObject *module, PyType_Spec *spec)
{
    if (*type == NULL) {
        *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    }
    return *type == NULL ? -1 : 0;
}

int hb_prepare(PyObject *module)
{
    if (hb_close_name == NULL) {
        hb_close_name = PyUnicode_InternFromString("close");
    }
    return hb_close_name == NULL || hb_type(&hb_iterator_type, module, &iterator_spec) < 0 ||
                   hb_type(&hb_body_type, module, &body_spec) < 0 || hb_type(&hb_sized_type, module, &sized_spec) < 0
               ? -1
               : 0;
}
