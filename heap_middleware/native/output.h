/* The result of a walk: its bytes, and where they go. */
#ifndef HM_OUTPUT_H
#define HM_OUTPUT_H

#include <stddef.h>
#include <stdint.h>

/* The result of a walk, as bytes in the machine's own order, for census.py's twin in Python to read:
 *
 *   uint64 walked, types, retained
 *   types times:    double objects, bytes; uint64 lengths of module and qualified name; the two, as UTF-8
 *   retained times: uint64 endpoint, type (its place above), objects, bytes
 *
 * A module that is missing or no string has the length HC_NO_NAME. Memory of no object has the type HC_NO_TYPE.
 */
#define HC_NO_NAME UINT64_MAX
#define HC_NO_TYPE UINT64_MAX

#define HC_MEMORY -1
#define HC_SCRATCH -2

typedef struct {
    int fd;     /* where to write it, HC_MEMORY: into `data`, or HC_SCRATCH: no further than the chunk */
    char *data; /* free() it */
    size_t length, room;
    char chunk[4096];
    size_t waiting;
} hc_output;

/* Write bytes, a number, or the names of a class (two lengths, then both); hc_flush sends what waits. 0, or -1. */
int hc_put(hc_output *output, const void *data, size_t size);
int hc_put_number(hc_output *output, uint64_t number);
int hc_put_names(hc_output *output, struct _typeobject *type);
int hc_flush(hc_output *output);

struct hc_types;
struct hc_retained;

/* Write the result; numbers the types on the way. 0, or -1 if there was no memory or writing failed. */
int hc_put_all(hc_output *output, uint64_t walked, struct hc_types *types, const struct hc_retained *retained);

#endif
