/* The result of a walk, written in chunks into a pipe or into memory: see output.h.
 *
 * The rules of this file:
 * - Those of census.c: a name is read where it is, no object is made of it.
 * - malloc's memory is for a result without a pipe: a forked child has one, and may not use malloc.
 *
 * CPython's internals used here, checked with 3.11 to 3.13: the qualified name of a class (PyHeapTypeObject).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "output.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "retained.h"
#include "text.h"
#include "types.h"

/* ---- bytes --------------------------------------------------------------------------------------------------------- */

int hc_flush(hc_output *output)
{
    size_t done = 0;
    if (output->fd == HC_SCRATCH) {
        return -1;
    }
    if (output->fd == HC_MEMORY) {
        if (output->length + output->waiting > output->room) {
            size_t room = (output->length + output->waiting) * 2;
            char *data = realloc(output->data, room);
            if (data == NULL) {
                return -1;
            }
            output->data = data;
            output->room = room;
        }
        memcpy(output->data + output->length, output->chunk, output->waiting);
        output->length += output->waiting;
        done = output->waiting;
    }
    while (done < output->waiting) {
        ssize_t written = write(output->fd, output->chunk + done, output->waiting - done);
        if (written < 0 && errno != EINTR) {
            return -1;
        }
        done += written > 0 ? (size_t)written : 0;
    }
    output->waiting = 0;
    return 0;
}

int hc_put(hc_output *output, const void *data, size_t size)
{
    for (const char *from = data; size > 0;) {
        size_t part = sizeof(output->chunk) - output->waiting;
        part = part < size ? part : size;
        memcpy(output->chunk + output->waiting, from, part);
        output->waiting += part;
        from += part;
        size -= part;
        if (output->waiting == sizeof(output->chunk) && hc_flush(output) < 0) {
            return -1;
        }
    }
    return 0;
}

int hc_put_number(hc_output *output, uint64_t number)
{
    return hc_put(output, &number, sizeof(number));
}

/* ---- names --------------------------------------------------------------------------------------------------------- */

#define HC_MAX_NAME 1000 /* characters; more than a label may have */

typedef struct {
    unsigned char bytes[HC_MAX_NAME * HM_UTF8_MOST];
    uint64_t length;
} hc_name;

static void hc_name_from_text(hc_name *name, const char *text, size_t length)
{
    name->length = length < HC_MAX_NAME ? length : HC_MAX_NAME;
    memcpy(name->bytes, text, name->length);
}

static void hc_name_from_object(hc_name *name, PyObject *text)
{
    if (text == NULL || !PyUnicode_Check(text)) {
        name->length = HC_NO_NAME;
        return;
    }
    Py_ssize_t length = PyUnicode_GET_LENGTH(text);
    name->length = 0;
    for (Py_ssize_t at = 0; at < length && at < HC_MAX_NAME; at++) {
        name->length += hm_encode(PyUnicode_READ_CHAR(text, at), name->bytes + name->length);
    }
}

/* ---- types and rows ------------------------------------------------------------------------------------------------ */

int hc_put_names(hc_output *output, PyTypeObject *type)
{
    hc_name module, qualname;
    if (PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) {
        hc_name_from_object(&module, hc_own(type, "__module__"));
        hc_name_from_object(&qualname, ((PyHeapTypeObject *)type)->ht_qualname);
    }
    else { /* a static type has both in one name, or is a built-in one */
        const char *dot = strrchr(type->tp_name, '.'), *name = dot == NULL ? type->tp_name : dot + 1;
        hc_name_from_text(&module, dot == NULL ? "builtins" : type->tp_name,
                          dot == NULL ? strlen("builtins") : (size_t)(dot - type->tp_name));
        hc_name_from_text(&qualname, name, strlen(name));
    }
    if (hc_put_number(output, module.length) < 0 || hc_put_number(output, qualname.length) < 0) {
        return -1;
    }
    return module.length != HC_NO_NAME && hc_put(output, module.bytes, module.length) < 0 ? -1
           : qualname.length != HC_NO_NAME ? hc_put(output, qualname.bytes, qualname.length)
                                           : 0;
}

static int hc_put_type(hc_output *output, const hc_type *entry)
{
    return hc_put(output, &entry->objects, sizeof(double)) < 0 || hc_put(output, &entry->bytes, sizeof(double)) < 0
               ? -1
               : hc_put_names(output, entry->type);
}

int hc_put_all(hc_output *output, uint64_t walked, hc_types *types, const hc_retained *retained)
{
    if (hc_put_number(output, walked) < 0 || hc_put_number(output, types->count) < 0 ||
        hc_put_number(output, retained->count) < 0) {
        return -1;
    }
    uint32_t number = 0; /* in the order of the table */
    for (size_t at = 0; at < types->room; at++) {
        if (types->places[at].type != NULL) {
            types->places[at].number = number++;
            if (hc_put_type(output, &types->places[at]) < 0) {
                return -1;
            }
        }
    }
    for (size_t at = 0; at < retained->room; at++) {
        const hc_row *row = &retained->rows[at];
        if (row->endpoint == HM_NO_ENDPOINT) {
            continue;
        }
        uint64_t type = row->type == NULL ? HC_NO_TYPE : hc_type_place(types, row->type)->number;
        if (hc_put_number(output, row->endpoint) < 0 || hc_put_number(output, type) < 0 ||
            hc_put_number(output, row->objects) < 0 || hc_put_number(output, row->bytes) < 0) {
            return -1;
        }
    }
    return hc_flush(output);
}
