/* How CPython lays objects out, where none of its functions says so.
 *
 * CPython's internals used here, checked with 3.11 to 3.13, 64-bit, with the interpreter lock:
 * - An object of a collected type has two words before it, the links of one of the collector's lists. The first is 0
 *   while the object is untracked.
 * - Before that, an object whose class has a `__dict__` or `__weakref__` of its own may have two more words.
 * - The table of a dict (PyDictKeysObject), for its size and for whether keys are hidden from tp_traverse.
 * - The digits of an int.
 */
#ifndef HM_LAYOUT_H
#define HM_LAYOUT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>

/* ---- what is before an object -------------------------------------------------------------------------------------- */

typedef struct {
    uintptr_t next, previous;
} hc_link;

static inline hc_link *hc_link_of(PyObject *object)
{
    return (hc_link *)object - 1;
}

static inline int hc_is_collected(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return PyType_IS_GC(type) && (type->tp_is_gc == NULL || type->tp_is_gc(object));
}

static inline int hc_is_tracked(PyObject *object)
{
#if PY_VERSION_HEX < 0x030E0000
    return hc_link_of(object)->next != 0;
#else
    return PyObject_GC_IsTracked(object);
#endif
}

/* Bytes between the start of its block and an instance. */
static inline uint8_t hc_bytes_before(PyTypeObject *type)
{
    size_t size = PyType_IS_GC(type) ? sizeof(hc_link) : 0;
#if PY_VERSION_HEX >= 0x030C0000
    if (PyType_HasFeature(type, Py_TPFLAGS_MANAGED_DICT | Py_TPFLAGS_MANAGED_WEAKREF)) {
#else
    if (PyType_HasFeature(type, Py_TPFLAGS_MANAGED_DICT)) {
#endif
        size += 2 * sizeof(void *);
    }
    return (uint8_t)size;
}

/* ---- what is in it ------------------------------------------------------------------------------------------------- */

#define HC_KEYS_GENERAL 0 /* the kind of a dict's table whose keys are not all str */

/* PyDictKeysObject, 3.11 to 3.14. */
typedef struct {
    Py_ssize_t references;
    uint8_t log2_size, log2_index_bytes, kind;
    uint32_t version;
    Py_ssize_t usable, entries;
} hc_keys;

/* The bytes of its tables, without those that other dicts share. */
static inline Py_ssize_t hc_dict_size(PyDictObject *dict)
{
    const hc_keys *keys = (const hc_keys *)dict->ma_keys;
    Py_ssize_t room = ((Py_ssize_t)1 << keys->log2_size) * 2 / 3, size = 0;
    if (dict->ma_values != NULL) {
        size += (keys->entries + keys->usable) * (Py_ssize_t)sizeof(PyObject *); /* a table shared by a class */
    }
    if (keys->references == 1) {
        size += (Py_ssize_t)sizeof(hc_keys) + ((Py_ssize_t)1 << keys->log2_index_bytes) +
                room * (Py_ssize_t)((keys->kind == HC_KEYS_GENERAL ? 3 : 2) * sizeof(void *));
    }
    return size;
}

/* Whether its table has str keys of its own, which tp_traverse leaves out. */
static inline int hc_dict_hides_keys(PyDictObject *dict)
{
    return dict->ma_values == NULL && ((const hc_keys *)dict->ma_keys)->kind != HC_KEYS_GENERAL;
}

static inline Py_ssize_t hc_int_digits(PyObject *object)
{
#if PY_VERSION_HEX >= 0x030C0000
    Py_ssize_t digits = (Py_ssize_t)(((PyLongObject *)object)->long_value.lv_tag >> 3);
#else
    Py_ssize_t digits = Py_ABS(Py_SIZE(object));
#endif
    return digits > 0 ? digits : 1;
}

#endif
