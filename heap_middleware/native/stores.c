/* CPython's free lists, kept out of the way of the records: see stores.h.
 *
 * The rules of this file:
 * - The deallocators of dict, list and tuple are wrapped. CPython keeps a dead object only if its type is exactly the
 *   built-in one, so an object whose block shall go back to the allocator dies as an instance of a copy of that type.
 * - A small table of a dict is kept by its size: one that shall not be kept says it is larger, as its dict dies. What is
 *   in it is found by another field. A table that its dict outgrows is kept all the same, and the next dict takes it:
 *   while the tracker is exact, these are given back when a request begins, so that none takes its record into another.
 * - CPython guards its deallocators against deep nests by comparing the type's deallocator with their own. Where ours
 *   stands in the type, it does that guarding, from the depth on where it matters.
 * - Contexts are kept, too, whatever their type says. The record of a dead one goes at once; one made again of it has none.
 * - Floats stay as they are: the interpreter keeps some past any deallocator. The tracker does not record them.
 *
 * CPython's internals used here, checked with the sources of 3.11 to 3.13: those above, and hc_keys in layout.h.
 * On other versions nothing is done, and a leaked dict, list or tuple may be charged to a route that frees many.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "stores.h"

#include "hooks.h"
#include "records.h"
#include "sampling.h"

#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030E0000

#define HS_TUPLE_SIZES 20   /* PyTuple_MAXSAVESIZE */
#define HS_MOST 2000        /* PyTuple_MAXFREELIST, the longest of them */
#define HS_SMALLEST_TABLE 3 /* PyDict_LOG_MINSIZE */

typedef struct {
    PyTypeObject *type;
    PyTypeObject copy;
    destructor original;
} hs_kind;

static hs_kind hs_dict = {.type = &PyDict_Type}, hs_list = {.type = &PyList_Type}, hs_tuple = {.type = &PyTuple_Type};

static PyObject *hs_key; /* a str that no lookup has to compare */

/* Whether a block must go back to the allocator when its object dies. */
static inline int hs_must_go(const void *block)
{
    return LOAD(hm_exact) || hm_may_be_recorded(block);
}

static inline int hs_keep_out(PyObject *object)
{
    return hs_must_go((char *)object - 2 * sizeof(void *));
}

#define HS_SHALLOW 40 /* nested deallocations without CPython's guard, which adds 50 of its own */
static int hs_depth;   /* of the main interpreter; another thread's count as well, which only guards earlier */

/* Let CPython keep it. */
static inline void hs_pass_on(const hs_kind *kind, PyObject *object, destructor wrapper)
{
    if (hs_depth < HS_SHALLOW && hm_alone()) {
        hs_depth++;
        kind->original(object);
        hs_depth--;
        return;
    }
    PyObject_GC_UnTrack(object);
    Py_TRASHCAN_BEGIN(object, wrapper)
    kind->original(object);
    Py_TRASHCAN_END
}

/* Let it go back to the allocator. */
static inline void hs_release(const hs_kind *kind, PyObject *object)
{
    hm_released++;
    Py_SET_TYPE(object, (PyTypeObject *)&kind->copy);
    kind->original(object);
}

static void hs_dealloc_dict(PyObject *object)
{
    if (!Py_IS_TYPE(object, &PyDict_Type)) {
        hs_dict.original(object);
        return;
    }
    PyDictObject *dict = (PyDictObject *)object;
    struct {
        Py_ssize_t references;
        uint8_t log2_size;
    } *table = (void *)dict->ma_keys;
    if (table != NULL && table->references == 1 && table->log2_size == HS_SMALLEST_TABLE && dict->ma_values == NULL &&
        hs_must_go(table)) {
        table->log2_size++;
    }
    if (hs_keep_out(object)) {
        hs_release(&hs_dict, object);
        return;
    }
    hs_pass_on(&hs_dict, object, hs_dealloc_dict);
}

static void hs_dealloc_list(PyObject *object)
{
    if (!Py_IS_TYPE(object, &PyList_Type)) {
        hs_list.original(object);
        return;
    }
    if (hs_keep_out(object)) {
        hs_release(&hs_list, object);
        return;
    }
    hs_pass_on(&hs_list, object, hs_dealloc_list);
}

static void hs_dealloc_tuple(PyObject *object)
{
    if (!Py_IS_TYPE(object, &PyTuple_Type) || Py_SIZE(object) == 0) { /* the empty one lives forever */
        hs_tuple.original(object);
        return;
    }
    if (hs_keep_out(object)) {
        hs_release(&hs_tuple, object);
        return;
    }
    hs_pass_on(&hs_tuple, object, hs_dealloc_tuple);
}

static destructor hs_context_original;

static void hs_dealloc_context(PyObject *object)
{
    const void *block = (char *)object - 2 * sizeof(void *);
    if (hm_may_be_recorded(block)) {
        hm_freed((void *)block);
    }
    hs_context_original(object);
}

static void hs_wrap(hs_kind *kind, destructor wrapper)
{
    if (kind->type->tp_dealloc != wrapper) {
        kind->original = kind->type->tp_dealloc;
        kind->copy = *kind->type;
        kind->type->tp_dealloc = wrapper;
    }
}

static void hs_unwrap(hs_kind *kind, destructor wrapper)
{
    if (kind->type->tp_dealloc == wrapper) {
        kind->type->tp_dealloc = kind->original;
    }
}

int hs_install(void)
{
    if (hs_key == NULL && (hs_key = PyUnicode_InternFromString("heap_middleware")) == NULL) {
        return -1;
    }
    hs_wrap(&hs_dict, hs_dealloc_dict);
    hs_wrap(&hs_list, hs_dealloc_list);
    hs_wrap(&hs_tuple, hs_dealloc_tuple);
    if (PyContext_Type.tp_dealloc != hs_dealloc_context) {
        hs_context_original = PyContext_Type.tp_dealloc;
        PyContext_Type.tp_dealloc = hs_dealloc_context;
    }
    return 0;
}

void hs_uninstall(void)
{
    hs_unwrap(&hs_dict, hs_dealloc_dict);
    hs_unwrap(&hs_list, hs_dealloc_list);
    hs_unwrap(&hs_tuple, hs_dealloc_tuple);
    if (PyContext_Type.tp_dealloc == hs_dealloc_context) {
        PyContext_Type.tp_dealloc = hs_context_original;
    }
}

/* What the lists hold: a new object of each kind comes from there, unless it needs a block. */
enum { HS_TABLE = -2, HS_DICT = -1, HS_LIST = 0 }; /* 1 and more: a tuple of that size */

static PyObject *hs_new(int what)
{
    PyObject *made = what > 0 ? PyTuple_New(what) : what == HS_LIST ? PyList_New(0) : PyDict_New();
    if (made != NULL && what == HS_TABLE) {
        hm_watch();
        if (PyDict_SetItem(made, hs_key, Py_None) < 0) {
            Py_CLEAR(made);
        }
    }
    return made;
}

/* Take objects until one has a new block, then drop them all: while the tracker is exact, none is kept again. */
static void hs_drain_one(int what)
{
    PyObject *taken[HS_MOST + 1];
    int count = 0, more = 1;
    while (more && count <= HS_MOST) {
        hm_watch();
        taken[count] = hs_new(what);
        more = taken[count] != NULL && !hm_noticed();
        count += taken[count] != NULL;
    }
    PyErr_Clear();
    while (count > 0) {
        Py_DECREF(taken[--count]);
    }
}

void hs_drain_tables(void)
{
    if (!hm_alone()) { /* others' allocations would be taken for ours */
        return;
    }
    int enabled = PyGC_Disable();
    hs_drain_one(HS_TABLE);
    hm_draw();
    if (enabled) {
        PyGC_Enable();
    }
}

void hs_drain(void)
{
    uint64_t began = hm_now();
    int enabled = PyGC_Disable(); /* a collection would run the application's code in the middle of this */
    for (int what = HS_TABLE; what <= HS_TUPLE_SIZES; what++) {
        hs_drain_one(what);
    }
    hm_draw();
    if (enabled) {
        PyGC_Enable();
    }
    hm_spend(hm_now() - began);
}

#else

int hs_install(void)
{
    return 0;
}

void hs_uninstall(void)
{
}

void hs_drain_tables(void)
{
}

void hs_drain(void)
{
}

#endif
