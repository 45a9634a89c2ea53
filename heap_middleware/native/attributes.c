/* See attributes.h.
 *
 * The rules of this file:
 * - Those of census.c: no object is made, no reference taken, nothing allocated; a child may do it.
 *
 * CPython's internals used here, checked with the sources of 3.11 to 3.13, beside those of layout.h:
 * - Before an instance whose class has a managed `__dict__` there is a pointer to it, three words before the object. 3.11
 *   has one to the values of its attributes a word further; 3.12 has the two in one word, told apart by its lowest bit;
 *   3.13 has the values behind the object, if they are valid.
 * - The names of these values are the keys of a table that the class has (ht_cached_keys).
 * On other versions such attributes are found, and have no name.
 */
#include "attributes.h"

#include <string.h>
#if PY_VERSION_HEX < 0x030C0000
#include <structmember.h> /* PyMemberDef */
#endif

#include "layout.h"
#include "text.h"
#include "types.h"

/* ---- names --------------------------------------------------------------------------------------------------------- */

/* Take a name if it is one that a programmer writes; dots are for modules and functions. */
static void ha_take(ha_name *name, PyObject *text, const char *also)
{
    name->length = 0;
    if (text == NULL || !PyUnicode_CheckExact(text)) {
        return;
    }
    size_t length = 0;
    for (Py_ssize_t at = 0; at < PyUnicode_GET_LENGTH(text); at++) {
        Py_UCS4 character = PyUnicode_READ_CHAR(text, at);
        int letter = (character >= 'a' && character <= 'z') || (character >= 'A' && character <= 'Z') || character == '_' ||
                     (character >= '0' && character <= '9');
        if (length + 1 >= HA_LONGEST || (!letter && (character == 0 || character > 0x7F || strchr(also, (int)character) == NULL))) {
            return;
        }
        length += hm_encode(character, (unsigned char *)name->text + length);
    }
    name->length = (uint8_t)length;
}

void ha_key(ha_name *name, PyObject *dict, PyObject *value)
{
    PyObject *key, *found;
    Py_ssize_t position = 0;
    name->length = 0;
    while (PyDict_Next(dict, &position, &key, &found)) {
        if (found == value) {
            ha_take(name, key, "");
            return;
        }
    }
}

void ha_module_name(ha_name *name, PyObject *module)
{
    ha_take(name, hc_value(PyModule_GetDict(module), "__name__"), ".");
}

void ha_function_name(ha_name *name, PyObject *object)
{
    PyObject *text = NULL;
    if (PyFunction_Check(object)) {
        text = ((PyFunctionObject *)object)->func_qualname;
    }
    else if (PyGen_CheckExact(object)) {
        text = ((PyGenObject *)object)->gi_qualname;
    }
    else if (PyCoro_CheckExact(object)) {
        text = ((PyCoroObject *)object)->cr_qualname;
    }
    ha_take(name, text, ".<>");
}

/* ---- dicts --------------------------------------------------------------------------------------------------------- */

PyObject *ha_namespace_of(PyObject *owner)
{
    if (PyModule_Check(owner)) {
        return PyModule_GetDict(owner);
    }
    if (!PyType_Check(owner)) {
        return NULL;
    }
#if PY_VERSION_HEX >= 0x030C0000
    PyObject *dict = PyType_GetDict((PyTypeObject *)owner);
    Py_XDECREF(dict); /* the type keeps it */
    return dict;
#else
    return ((PyTypeObject *)owner)->tp_dict;
#endif
}

PyObject *ha_dict_of(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject *dict = NULL;
#if PY_VERSION_HEX < 0x030E0000
    if (PyType_HasFeature(type, Py_TPFLAGS_MANAGED_DICT)) {
        dict = ((PyObject **)object)[-3];
#if PY_VERSION_HEX >= 0x030C0000 && PY_VERSION_HEX < 0x030D0000
        dict = (uintptr_t)dict & 1 ? NULL : dict;
#endif
        return dict;
    }
#endif
    if (type->tp_dictoffset > 0) {
        dict = *(PyObject **)((char *)object + type->tp_dictoffset);
    }
    return dict;
}

/* ---- attributes ---------------------------------------------------------------------------------------------------- */

#if PY_VERSION_HEX < 0x030E0000

/* The values of attributes that need no dict, or NULL. */
static PyObject **ha_values_of(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (!PyType_HasFeature(type, Py_TPFLAGS_MANAGED_DICT) || ((PyHeapTypeObject *)type)->ht_cached_keys == NULL) {
        return NULL;
    }
#if PY_VERSION_HEX < 0x030C0000
    return ((PyObject ***)object)[-4];
#elif PY_VERSION_HEX < 0x030D0000
    uintptr_t values = ((uintptr_t *)object)[-3];
    return values & 1 ? (PyObject **)(values + 1) : NULL;
#else
    struct {
        uint8_t capacity, size, embedded, valid;
        PyObject *values[1];
    } *values = (void *)((char *)object + type->tp_basicsize);
    return PyType_HasFeature(type, Py_TPFLAGS_INLINE_VALUES) && values->valid ? values->values : NULL;
#endif
}

static PyObject *ha_inline_name(PyObject *object, PyObject *value)
{
    PyObject **values = ha_values_of(object);
    if (values == NULL) {
        return NULL;
    }
    const hc_keys *keys = (const hc_keys *)((PyHeapTypeObject *)Py_TYPE(object))->ht_cached_keys;
    PyObject *const *entries =
        (PyObject *const *)((const char *)(keys + 1) + ((size_t)1 << keys->log2_index_bytes)); /* key, value */
    for (Py_ssize_t at = 0; at < keys->entries; at++) {
        if (values[at] == value) {
            return entries[2 * at];
        }
    }
    return NULL;
}

#else

static PyObject *ha_inline_name(PyObject *Py_UNUSED(object), PyObject *Py_UNUSED(value))
{
    return NULL;
}

#endif

/* T_OBJECT and T_OBJECT_EX, whose names changed in 3.12. */
#define HA_T_OBJECT 6
#define HA_T_OBJECT_EX 16

static void ha_slot(ha_name *name, PyTypeObject *type, PyObject *object, PyObject *value)
{
    for (const PyMemberDef *member = type->tp_members; member != NULL && member->name != NULL; member++) {
        if ((member->type == HA_T_OBJECT || member->type == HA_T_OBJECT_EX) && member->offset > 0 &&
            *(PyObject **)((char *)object + member->offset) == value && strlen(member->name) < HA_LONGEST) {
            name->length = (uint8_t)strlen(member->name);
            memcpy(name->text, member->name, name->length);
            return;
        }
    }
}

void ha_attribute(ha_name *name, PyObject *object, PyObject *value)
{
    ha_take(name, ha_inline_name(object, value), "");
    for (PyTypeObject *type = Py_TYPE(object); type != NULL && name->length == 0; type = type->tp_base) {
        ha_slot(name, type, object, value);
    }
}
