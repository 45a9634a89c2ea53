/* What is learnt of a type once, when the walk meets the first object of it: see types.h.
 *
 * The rules of this file:
 * - Those of census.c: a `__sizeof__` in Python is not called, one in C is.
 * - An object without a `__sizeof__` in C, or whose `__sizeof__` says nonsense, has the basic size of its type.
 *
 * CPython's internals used here, checked with 3.11 to 3.13, beside those of layout.h:
 * - A `__sizeof__` in C is a method descriptor; its function takes the object and NULL.
 * - What the `__sizeof__` of list, dict, set, str, int and object count, so that hc_size need not ask them.
 * `sizes agree` in tests/native holds the sizes to sys.getsizeof, type by type.
 */
#include "types.h"

#include <string.h>

#define HC_INSANE_SIZE ((Py_ssize_t)1 << 48) /* as in heap/census.py */

/* Not by look-up: a key may be a subclass of str with an `__eq__` that look-up would call. */
PyObject *hc_value(PyObject *dict, const char *name)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (dict != NULL && PyDict_Next(dict, &position, &key, &value)) {
        if (PyUnicode_CheckExact(key) && PyUnicode_CompareWithASCIIString(key, name) == 0) {
            return value;
        }
    }
    return NULL;
}

PyObject *hc_own(PyTypeObject *type, const char *name)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyObject *dict = PyType_GetDict(type); /* static types have theirs elsewhere */
    Py_XDECREF(dict);                      /* the type keeps it */
#else
    PyObject *dict = type->tp_dict;
#endif
    return hc_value(dict, name);
}

static PyObject *hc_sizeof_of(PyTypeObject *type)
{
    PyObject *order = type->tp_mro; /* may lack `object`: a metaclass can make it up */
    for (Py_ssize_t at = 0; order != NULL && at < PyTuple_GET_SIZE(order); at++) {
        PyObject *base = PyTuple_GET_ITEM(order, at);
        PyObject *found = PyType_Check(base) ? hc_own((PyTypeObject *)base, "__sizeof__") : NULL;
        if (found != NULL) {
            return found;
        }
    }
    return NULL;
}

/* What a `__sizeof__` written in C says, or -1. */
static Py_ssize_t hc_asked(PyCFunction ask, PyObject *object)
{
    PyObject *answer = ask(object, NULL);
    Py_ssize_t size = answer != NULL && PyLong_CheckExact(answer) ? PyLong_AsSsize_t(answer) : -1;
    Py_XDECREF(answer);
    PyErr_Clear();
    return size < 0 || size >= HC_INSANE_SIZE ? -1 : size;
}

/* How the instances of a type are measured; `first` is one of them. */
static void hc_learn(hc_type *entry, PyObject *first)
{
    PyTypeObject *type = entry->type;
    PyObject *found = hc_sizeof_of(type);
    entry->before = hc_bytes_before(type);
    entry->how = HC_FIXED;
    entry->fixed = type->tp_basicsize;
    if (found == NULL || !Py_IS_TYPE(found, &PyMethodDescr_Type)) {
        return; /* in Python, or none: the basic size */
    }
    PyMethodDescrObject *method = (PyMethodDescrObject *)found;
    PyTypeObject *owner = PyDescr_TYPE(method);
    if (method->d_method->ml_flags != METH_NOARGS || strcmp(method->d_method->ml_name, "__sizeof__") != 0 ||
        !PyType_IsSubtype(type, owner)) {
        return;
    }
    entry->fixed += entry->before; /* which sys.getsizeof adds */
    entry->ask = method->d_method->ml_meth;
    if (owner == &PyList_Type) {
        entry->how = HC_LIST;
    }
    else if (owner == &PyDict_Type) {
        entry->how = HC_DICT;
    }
    else if (owner == &PySet_Type || owner == &PyFrozenSet_Type) {
        entry->how = HC_SET;
    }
    else if (owner == &PyUnicode_Type) {
        entry->how = HC_STR;
    }
    else if (owner == &PyLong_Type) {
        entry->how = HC_INT;
#if PY_VERSION_HEX < 0x030C0000 /* where a subclass's own fields are not counted */
        entry->fixed = (Py_ssize_t)offsetof(PyLongObject, ob_digit) + entry->before;
#endif
    }
    else if (owner == &PyBaseObject_Type) {
        /* The same for all instances but for their items; 3.13 adds the room for attributes, which is not public. */
        Py_ssize_t size = hc_asked(entry->ask, first);
        entry->item = type->tp_itemsize;
        entry->how = entry->item > 0 ? HC_ITEMS : HC_FIXED;
        if (size >= 0) {
            entry->fixed = size + entry->before - (entry->item > 0 ? Py_SIZE(first) * entry->item : 0);
        }
    }
    else {
        entry->how = HC_ASK;
    }
}

Py_ssize_t hc_size_asked(const hc_type *entry, PyObject *object)
{
    Py_ssize_t size = hc_asked(entry->ask, object);
    if (size < 0) {
        return entry->type->tp_basicsize;
    }
#if PY_VERSION_HEX >= 0x030D0000 /* static types are of a collected type, and are not collected themselves */
    return size + (hc_is_collected(object) ? entry->before : 0);
#else
    return size + entry->before;
#endif
}

static int hc_more_types(hc_types *types)
{
    hc_types more = {.count = types->count, .room = types->room * 2};
    more.places = hc_pages(more.room * sizeof(hc_type));
    if (more.places == NULL) {
        return -1;
    }
    for (size_t at = 0; at < types->room; at++) {
        if (types->places[at].type != NULL) {
            *hc_type_place(&more, types->places[at].type) = types->places[at];
        }
    }
    hc_release(types->places, types->room * sizeof(hc_type));
    *types = more;
    return 0;
}

hc_type *hc_add_type(hc_types *types, PyObject *first)
{
    if (types->count >= types->room / 2 && hc_more_types(types) < 0) {
        return NULL;
    }
    hc_type *entry = hc_type_place(types, Py_TYPE(first));
    *entry = (hc_type){.type = Py_TYPE(first), .number = (uint32_t)types->count++};
    hc_learn(entry, first);
    return entry;
}
