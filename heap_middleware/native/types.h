/* The types that a walk meets: their objects and bytes so far, and how large an object of each is.
 *
 * Here is what runs for each object, to be inlined into the walk. What runs once for each type is in types.c.
 */
#ifndef HM_TYPES_H
#define HM_TYPES_H

#include "layout.h"
#include "pages.h"

typedef enum { HC_FIXED, HC_ITEMS, HC_LIST, HC_DICT, HC_SET, HC_STR, HC_INT, HC_ASK } hc_how;

typedef struct {
    PyTypeObject *type; /* NULL: an empty place */
    double objects, bytes;
    Py_ssize_t fixed, item; /* bytes of an instance without items, of each item */
    PyCFunction ask;        /* its `__sizeof__`, written in C */
    uint32_t number;        /* in the result */
    uint8_t how;
    uint8_t before; /* bytes between the start of its block and the object */
} hc_type;

typedef struct hc_types {
    hc_type *places;
    hc_type *last;      /* that was asked for, or NULL */
    size_t count, room; /* the room is a power of two */
} hc_types;

/* The value of a name in a dict, or in a class's own, or NULL; borrowed. */
PyObject *hc_value(PyObject *dict, const char *name);
PyObject *hc_own(PyTypeObject *type, const char *name);

/* Make an entry for the type of an object, which has none; the entries may move. NULL if there is no memory. */
hc_type *hc_add_type(hc_types *types, PyObject *first);

/* The size of an object by its `__sizeof__`. */
Py_ssize_t hc_size_asked(const hc_type *entry, PyObject *object);

static inline Py_ssize_t hc_size(const hc_type *entry, PyObject *object)
{
    switch (entry->how) {
    case HC_FIXED:
        return entry->fixed;
    case HC_ITEMS:
        return entry->fixed + Py_SIZE(object) * entry->item;
    case HC_LIST:
        return entry->fixed + ((PyListObject *)object)->allocated * (Py_ssize_t)sizeof(PyObject *);
    case HC_DICT:
        return entry->fixed + hc_dict_size((PyDictObject *)object);
    case HC_SET: {
        PySetObject *set = (PySetObject *)object;
        return entry->fixed +
               (set->table == set->smalltable ? 0 : (set->mask + 1) * (Py_ssize_t)sizeof(setentry));
    }
    case HC_INT:
        return entry->fixed + hc_int_digits(object) * (Py_ssize_t)sizeof(digit);
    case HC_STR:
        if (PyUnicode_CheckExact(object) && PyUnicode_IS_COMPACT_ASCII(object)) {
            return (Py_ssize_t)sizeof(PyASCIIObject) + PyUnicode_GET_LENGTH(object) + 1;
        }
        break;
    default:
        break;
    }
    return hc_size_asked(entry, object);
}

/* The entry of a type, or the empty place for it. */
static inline hc_type *hc_type_place(const hc_types *types, PyTypeObject *type)
{
    hc_type *places = types->places;
    size_t place = hc_hash(type) & (types->room - 1);
    while (places[place].type != NULL && places[place].type != type) {
        place = (place + 1) & (types->room - 1);
    }
    return &places[place];
}

/* The entry of an object's type; NULL if there is no memory for it. */
static inline hc_type *hc_type_of(hc_types *types, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (types->last != NULL && types->last->type == type) {
        return types->last;
    }
    hc_type *entry = hc_type_place(types, type);
    if (entry->type == NULL) {
        entry = hc_add_type(types, object);
    }
    types->last = entry;
    return entry;
}

#endif
