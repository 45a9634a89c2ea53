/* Whose requests left what a walk finds: the tracker's live records, by endpoint and type. */
#ifndef HM_RETAINED_H
#define HM_RETAINED_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>

#include "tracker.h"

typedef struct {
    uint32_t endpoint;  /* HM_NO_ENDPOINT: an empty place */
    PyTypeObject *type; /* NULL: of no object */
    uint64_t objects, bytes;
} hc_row;

typedef struct hc_retained {
    hc_row *rows;
    size_t count, room; /* the room is a power of two */
    uint8_t *marked;    /* a bit for each place of the record table; NULL: there are no records */
    size_t marked_size;
} hc_retained;

/* Count a record to a type, unless it is counted. 0, or -1 if there is no memory. */
int hc_retain(hc_retained *retained, const hm_found *record, PyTypeObject *type);

/* Count what no object was found in: buffers, and what this walk does not reach. 0, or -1 if there is no memory. */
int hc_retain_rest(hc_retained *retained);

#endif
