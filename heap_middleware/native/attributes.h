/* By which name one object refers to another: attributes, and the dicts that are namespaces.
 *
 * Only names that a programmer wrote are told: of modules, classes, attributes and functions. The keys of other dicts are
 * data, and are never looked at.
 */
#ifndef HM_ATTRIBUTES_H
#define HM_ATTRIBUTES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>

#define HA_LONGEST 128 /* bytes of a name; what is longer, or no identifier, is not told */

typedef struct {
    char text[HA_LONGEST];
    uint8_t length; /* 0: none */
} ha_name;

/* The `__dict__` that an instance has, or NULL; one that was not made yet is not made now. */
PyObject *ha_dict_of(PyObject *object);

/* Whose namespace is the dict of this module or class, or NULL. */
PyObject *ha_namespace_of(PyObject *owner);

/* The key of a namespace under which it has the value. */
void ha_key(ha_name *name, PyObject *dict, PyObject *value);

/* The attribute, one in a slot or without a dict, in which an instance has the value. */
void ha_attribute(ha_name *name, PyObject *object, PyObject *value);

/* The name of a module; that of a function, generator or coroutine. */
void ha_module_name(ha_name *name, PyObject *module);
void ha_function_name(ha_name *name, PyObject *object);

#endif
