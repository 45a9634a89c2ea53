/* See heap.h.
 *
 * CPython's internals used here, checked with 3.11 to 3.13, 64-bit, with the interpreter lock, beside those of layout.h:
 * - The head of each of the collector's lists is in the interpreter's state: young, middle, old, 24 bytes each, then one
 *   pointer, then the frozen ones.
 *   3.14 and newer have PyUnstable_GC_VisitObjects here, which touches each object's reference count.
 */
#include "heap.h"

#include "layout.h"

#if PY_VERSION_HEX < 0x030E0000

#define HC_GENERATIONS 3

/* struct gc_generation; after three of them the interpreter has one pointer, and the frozen generation. */
typedef struct {
    hc_link head;
    int threshold, count;
} hc_generation;

static struct {
    hc_generation generations[HC_GENERATIONS];
    hc_link *young;
    hc_generation frozen;
} *hc_heap;

int hc_prepare(void)
{
    PyObject *newest = PyList_New(0); /* the last of the young list: the next is the list's head */
    if (newest == NULL) {
        return -1;
    }
    hc_heap = (void *)hc_link_of(newest)->next;
    Py_DECREF(newest);
    if (hc_heap->young != &hc_heap->generations[0].head) { /* it says itself where it is */
        hc_heap = NULL;
        PyErr_SetString(PyExc_ImportError, "heap_middleware._native does not know this interpreter's garbage collector");
        return -1;
    }
    return 0;
}

static int hc_visit_list(const hc_link *head, hc_visitor visit, void *argument)
{
    for (const hc_link *link = (const hc_link *)head->next; link != head; link = (const hc_link *)link->next) {
        if (!visit((PyObject *)(link + 1), argument)) {
            return 0;
        }
    }
    return 1;
}

void hc_visit_heap(hc_visitor visit, void *argument)
{
    int going_on = 1;
    for (int at = 0; going_on && at < HC_GENERATIONS; at++) {
        going_on = hc_visit_list(&hc_heap->generations[at].head, visit, argument);
    }
    if (going_on) {
        hc_visit_list(&hc_heap->frozen.head, visit, argument);
    }
}

#else

int hc_prepare(void)
{
    return 0;
}

void hc_visit_heap(hc_visitor visit, void *argument)
{
    PyUnstable_GC_VisitObjects(visit, argument);
}

#endif
