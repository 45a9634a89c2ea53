/* The census in C: how many objects of each type are on the heap, how many bytes they take, whose requests left them.
 *
 * The rules of this file, and of what it is made of (types, retained, output):
 * - No Python code runs, no object is made that the garbage collector tracks, no reference count of a walked object is
 *   touched: a forked child that only reads copies no page.
 * - Plain malloc is not used either, because a forked child may not: see pages.h.
 * - An untracked object reached over one of its r references weighs 1/r there, so one reached over all of them weighs 1,
 *   with no table of visited objects. Objects that live forever weigh nothing.
 */
#include "census.h"

#include "heap.h"
#include "pages.h"
#include "retained.h"
#include "types.h"

#define HC_NEGLIGIBLE 1e-6 /* shares smaller than this are followed no further */

typedef struct {
    PyObject *object;
    double weight;
} hc_pending;

typedef struct {
    hc_types types;
    hc_retained retained;
    hc_pending *pending;
    size_t pending_count, pending_room;
    uint64_t walked;
    double weight; /* of the object that is being followed */
    int reachable, failed;
} hc_walk;

/* ---- the walk ------------------------------------------------------------------------------------------------------ */

static void hc_attribute(hc_walk *walk, const hc_type *entry, PyObject *object)
{
    hm_found record;
    if (hm_lookup((char *)object - entry->before, &record) && hc_retain(&walk->retained, &record, entry->type) < 0) {
        walk->failed = 1;
    }
}

static void hc_count(hc_walk *walk, PyObject *object, double weight)
{
    hc_type *entry = hc_type_of(&walk->types, object);
    if (entry == NULL) {
        walk->failed = 1;
        return;
    }
    entry->objects += weight;
    entry->bytes += weight * (double)hc_size(entry, object);
    if (walk->retained.marked != NULL) {
        hc_attribute(walk, entry, object);
    }
}

/* One reference from an object that is being followed. */
static int hc_reached(PyObject *object, void *argument)
{
    hc_walk *walk = argument;
    int collected;
    if (object == NULL || ((collected = hc_is_collected(object)) && hc_is_tracked(object))) {
        return 0;
    }
    Py_ssize_t references = Py_REFCNT(object);
    if (references >= (Py_ssize_t)1 << 30 || references <= 0) { /* lives forever */
        return 0;
    }
    double share = walk->weight / (double)references;
    hc_count(walk, object, share);
    if (collected && share > HC_NEGLIGIBLE && !walk->failed) {
        if (walk->pending_count == walk->pending_room) {
            size_t size = walk->pending_room * sizeof(hc_pending);
            if (hc_double((void **)&walk->pending, size) < 0) {
                walk->failed = 1;
                return 0;
            }
            walk->pending_room *= 2;
        }
        walk->pending[walk->pending_count++] = (hc_pending){object, share};
    }
    return 0;
}

static void hc_refer(hc_walk *walk, PyObject *object)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    if (PyDict_CheckExact(object) && ((PyDictObject *)object)->ma_values == NULL) {
        while (PyDict_Next(object, &position, &key, &value)) {
            hc_reached(key, walk);
            hc_reached(value, walk);
        }
        return;
    }
    if (Py_TYPE(object)->tp_traverse != NULL) {
        Py_TYPE(object)->tp_traverse(object, hc_reached, walk);
    }
    if (PyDict_Check(object) && hc_dict_hides_keys((PyDictObject *)object)) {
        while (PyDict_Next(object, &position, &key, &value)) {
            hc_reached(key, walk);
        }
    }
}

static int hc_visit(PyObject *object, void *argument)
{
    hc_walk *walk = argument;
    walk->walked++;
    hc_count(walk, object, 1.0);
    if (walk->reachable) {
        walk->weight = 1.0;
        hc_refer(walk, object);
        while (walk->pending_count > 0) {
            hc_pending next = walk->pending[--walk->pending_count];
            walk->weight = next.weight;
            hc_refer(walk, next.object);
        }
    }
    return !walk->failed;
}

/* ---- all of it ----------------------------------------------------------------------------------------------------- */

int hc_census(int reachable, PyObject *objects, hc_output *output)
{
    hc_walk walk = {.types.room = 2048, .retained.room = 1024, .pending_room = 4096, .reachable = reachable};
    int done = -1;
    walk.types.places = hc_pages(walk.types.room * sizeof(hc_type));
    walk.retained.rows = hc_pages(walk.retained.room * sizeof(hc_row));
    walk.pending = hc_pages(walk.pending_room * sizeof(hc_pending));
    walk.retained.marked_size = (size_t)(hm_places() / 8);
    walk.retained.marked = walk.retained.marked_size == 0 ? NULL : hc_pages(walk.retained.marked_size);
    if (walk.types.places != NULL && walk.retained.rows != NULL && walk.pending != NULL &&
        (walk.retained.marked != NULL || walk.retained.marked_size == 0)) {
        if (objects == NULL) {
            hc_visit_heap(hc_visit, &walk);
        }
        for (Py_ssize_t at = 0; objects != NULL && at < PyList_GET_SIZE(objects); at++) {
            hc_visit(PyList_GET_ITEM(objects, at), &walk);
        }
        if (!walk.failed && hc_retain_rest(&walk.retained) == 0) {
            done = hc_put_all(output, walk.walked, &walk.types, &walk.retained);
        }
    }
    hc_release(walk.types.places, walk.types.room * sizeof(hc_type));
    hc_release(walk.retained.rows, walk.retained.room * sizeof(hc_row));
    hc_release(walk.pending, walk.pending_room * sizeof(hc_pending));
    hc_release(walk.retained.marked, walk.retained.marked_size);
    return done;
}
