/* The census in C: how many objects of each type are on the heap, how many bytes they take, whose requests left them.
 *
 * The rules of this file:
 * - No Python code runs, no object is made that the garbage collector tracks, no reference count of a walked object is
 *   touched: a forked child that only reads copies no page.
 * - Plain malloc is not used either, because a forked child may not: another thread may have held malloc's lock. Tables
 *   are pages of the system's.
 * - An untracked object reached over one of its r references weighs 1/r there, so one reached over all of them weighs 1,
 *   with no table of visited objects. Objects that live forever weigh nothing.
 * - A live record of the tracker is counted at the first object found in its block, and marked.
 *
 * CPython's internals used here, checked with 3.11 to 3.13, 64-bit, with the interpreter lock:
 * - A tracked object has two words before it, the links of one of the collector's lists. Each list's head is in the
 *   interpreter's state: young, middle, old, 24 bytes each, then one pointer, then the frozen ones.
 *   3.14 and newer have PyUnstable_GC_VisitObjects here, which touches each object's reference count.
 * - Before that, an object whose class has a `__dict__` or `__weakref__` of its own may have two more words.
 * - The table of a dict (PyDictKeysObject), for its size and for whether keys are hidden from tp_traverse.
 * - The digits of an int.
 * `sizes agree` in tests/native holds the sizes to sys.getsizeof, type by type.
 */
#include "census.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <errno.h>

#include "tracker.h"

#define HC_INSANE_SIZE ((Py_ssize_t)1 << 48) /* as in heap/census.py */
#define HC_NEGLIGIBLE 1e-6                   /* shares smaller than this are followed no further */

#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* ---- pages of memory ----------------------------------------------------------------------------------------------- */

static void *hc_pages(size_t size)
{
    void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static void hc_release(void *pages, size_t size)
{
    if (pages != NULL) {
        munmap(pages, size);
    }
}

/* Twice the room for `size` bytes of content; the content moves. */
static int hc_double(void **pages, size_t size)
{
    void *larger = hc_pages(size * 2);
    if (larger == NULL) {
        return -1;
    }
    memcpy(larger, *pages, size);
    hc_release(*pages, size);
    *pages = larger;
    return 0;
}

/* ---- what is collected --------------------------------------------------------------------------------------------- */

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

typedef struct {
    uint32_t endpoint; /* HM_NO_ENDPOINT: an empty place */
    PyTypeObject *type; /* NULL: of no object */
    uint64_t objects, bytes;
} hc_retained;

typedef struct {
    PyObject *object;
    double weight;
} hc_pending;

typedef struct {
    hc_type *types, *last;
    size_t type_count, type_room; /* the room is a power of two */
    hc_retained *retained;
    size_t retained_count, retained_room;
    hc_pending *pending;
    size_t pending_count, pending_room;
    uint8_t *marked; /* a bit for each place of the record table */
    size_t marked_size;
    uint64_t walked;
    double weight; /* of the object that is being followed */
    int reachable, failed;
} hc_walk;

static size_t hc_hash(const void *pointer)
{
    return (size_t)(((uintptr_t)pointer >> 4) * 0x9E3779B97F4A7C15u >> 24);
}

/* ---- types and sizes ----------------------------------------------------------------------------------------------- */

typedef struct {
    uintptr_t next, previous;
} hc_link;

static inline hc_link *hc_link_of(PyObject *object)
{
    return (hc_link *)object - 1;
}

#define HC_KEYS_GENERAL 0 /* the kind of a dict's table whose keys are not all str */

/* PyDictKeysObject, 3.11 to 3.14. */
typedef struct {
    Py_ssize_t references;
    uint8_t log2_size, log2_index_bytes, kind;
    uint32_t version;
    Py_ssize_t usable, entries;
} hc_keys;

static Py_ssize_t hc_dict_size(PyDictObject *dict)
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
static int hc_dict_hides_keys(PyDictObject *dict)
{
    return dict->ma_values == NULL && ((const hc_keys *)dict->ma_keys)->kind != HC_KEYS_GENERAL;
}

static Py_ssize_t hc_int_digits(PyObject *object)
{
#if PY_VERSION_HEX >= 0x030C0000
    Py_ssize_t digits = (Py_ssize_t)(((PyLongObject *)object)->long_value.lv_tag >> 3);
#else
    Py_ssize_t digits = Py_ABS(Py_SIZE(object));
#endif
    return digits > 0 ? digits : 1;
}

/* The value of a name in a class's own dict; borrowed. Not by look-up: a key may be a subclass of str with an `__eq__`
 * that look-up would call. */
static PyObject *hc_own(PyTypeObject *type, const char *name)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyObject *dict = PyType_GetDict(type); /* static types have theirs elsewhere */
    Py_XDECREF(dict);                      /* the type keeps it */
#else
    PyObject *dict = type->tp_dict;
#endif
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (dict != NULL && PyDict_Next(dict, &position, &key, &value)) {
        if (PyUnicode_CheckExact(key) && PyUnicode_CompareWithASCIIString(key, name) == 0) {
            return value;
        }
    }
    return NULL;
}

static PyObject *hc_sizeof_of(PyTypeObject *type)
{
    PyObject *order = type->tp_mro; /* may lack `object`: a metaclass can make it up */
    for (Py_ssize_t at = 0; order != NULL && at < PyTuple_GET_SIZE(order); at++) {
        PyObject *base = PyTuple_GET_ITEM(order, at);
        PyObject *found = PyType_Check(base) ? hc_own((PyTypeObject *)base, "__sizeof__") : NULL;
        if (found != NULL) {
            return found;
        }
    }
    return NULL;
}

static uint8_t hc_bytes_before(PyTypeObject *type)
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

static int hc_is_collected(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return PyType_IS_GC(type) && (type->tp_is_gc == NULL || type->tp_is_gc(object));
}

/* What a `__sizeof__` written in C says, or -1. */
static Py_ssize_t hc_asked(PyCFunction ask, PyObject *object)
{
    PyObject *answer = ask(object, NULL);
    Py_ssize_t size = answer != NULL && PyLong_CheckExact(answer) ? PyLong_AsSsize_t(answer) : -1;
    Py_XDECREF(answer);
    PyErr_Clear();
    return size < 0 || size >= HC_INSANE_SIZE ? -1 : size;
}

/* How the instances of a type are measured; `first` is one of them. */
static void hc_learn(hc_type *entry, PyObject *first)
{
    PyTypeObject *type = entry->type;
    PyObject *found = hc_sizeof_of(type);
    entry->before = hc_bytes_before(type);
    entry->how = HC_FIXED;
    entry->fixed = type->tp_basicsize;
    if (found == NULL || !Py_IS_TYPE(found, &PyMethodDescr_Type)) {
        return; /* in Python, or none: the basic size */
    }
    PyMethodDescrObject *method = (PyMethodDescrObject *)found;
    PyTypeObject *owner = PyDescr_TYPE(method);
    if (method->d_method->ml_flags != METH_NOARGS || strcmp(method->d_method->ml_name, "__sizeof__") != 0 ||
        !PyType_IsSubtype(type, owner)) {
        return;
    }
    entry->fixed += entry->before; /* which sys.getsizeof adds */
    entry->ask = method->d_method->ml_meth;
    if (owner == &PyList_Type) {
        entry->how = HC_LIST;
    }
    else if (owner == &PyDict_Type) {
        entry->how = HC_DICT;
    }
    else if (owner == &PySet_Type || owner == &PyFrozenSet_Type) {
        entry->how = HC_SET;
    }
    else if (owner == &PyUnicode_Type) {
        entry->how = HC_STR;
    }
    else if (owner == &PyLong_Type) {
        entry->how = HC_INT;
#if PY_VERSION_HEX < 0x030C0000 /* where a subclass's own fields are not counted */
        entry->fixed = (Py_ssize_t)offsetof(PyLongObject, ob_digit) + entry->before;
#endif
    }
    else if (owner == &PyBaseObject_Type) {
        /* The same for all instances but for their items; 3.13 adds the room for attributes, which is not public. */
        Py_ssize_t size = hc_asked(entry->ask, first);
        entry->item = type->tp_itemsize;
        entry->how = entry->item > 0 ? HC_ITEMS : HC_FIXED;
        if (size >= 0) {
            entry->fixed = size + entry->before - (entry->item > 0 ? Py_SIZE(first) * entry->item : 0);
        }
    }
    else {
        entry->how = HC_ASK;
    }
}

static Py_ssize_t hc_size(const hc_type *entry, PyObject *object)
{
    Py_ssize_t size;
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
    size = hc_asked(entry->ask, object);
    if (size < 0) {
        return entry->type->tp_basicsize;
    }
#if PY_VERSION_HEX >= 0x030D0000 /* static types are of a collected type, and are not collected themselves */
    return size + (hc_is_collected(object) ? entry->before : 0);
#else
    return size + entry->before;
#endif
}

static hc_type *hc_place(hc_type *types, size_t room, PyTypeObject *type)
{
    size_t place = hc_hash(type) & (room - 1);
    while (types[place].type != NULL && types[place].type != type) {
        place = (place + 1) & (room - 1);
    }
    return &types[place];
}

static int hc_more_types(hc_walk *walk)
{
    size_t room = walk->type_room * 2;
    hc_type *types = hc_pages(room * sizeof(hc_type));
    if (types == NULL) {
        return -1;
    }
    for (size_t at = 0; at < walk->type_room; at++) {
        if (walk->types[at].type != NULL) {
            *hc_place(types, room, walk->types[at].type) = walk->types[at];
        }
    }
    hc_release(walk->types, walk->type_room * sizeof(hc_type));
    walk->types = types;
    walk->type_room = room;
    return 0;
}

static hc_type *hc_type_of(hc_walk *walk, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (walk->last != NULL && walk->last->type == type) {
        return walk->last;
    }
    hc_type *entry = hc_place(walk->types, walk->type_room, type);
    if (UNLIKELY(entry->type == NULL)) {
        if (walk->type_count >= walk->type_room / 2) {
            if (hc_more_types(walk) < 0) {
                walk->failed = 1;
                return NULL;
            }
            entry = hc_place(walk->types, walk->type_room, type);
        }
        *entry = (hc_type){.type = type, .number = (uint32_t)walk->type_count++};
        hc_learn(entry, object);
    }
    walk->last = entry;
    return entry;
}

/* ---- whose requests left it ---------------------------------------------------------------------------------------- */

static hc_retained *hc_retained_place(hc_retained *rows, size_t room, uint32_t endpoint, PyTypeObject *type)
{
    size_t place = (hc_hash(type) + endpoint * 0x9E3779B1u) & (room - 1);
    while (rows[place].endpoint != HM_NO_ENDPOINT && (rows[place].endpoint != endpoint || rows[place].type != type)) {
        place = (place + 1) & (room - 1);
    }
    return &rows[place];
}

static int hc_more_retained(hc_walk *walk)
{
    size_t room = walk->retained_room * 2;
    hc_retained *rows = hc_pages(room * sizeof(hc_retained));
    if (rows == NULL) {
        return -1;
    }
    for (size_t at = 0; at < walk->retained_room; at++) {
        hc_retained *row = &walk->retained[at];
        if (row->endpoint != HM_NO_ENDPOINT) {
            *hc_retained_place(rows, room, row->endpoint, row->type) = *row;
        }
    }
    hc_release(walk->retained, walk->retained_room * sizeof(hc_retained));
    walk->retained = rows;
    walk->retained_room = room;
    return 0;
}

static void hc_retain(hc_walk *walk, const hm_found *record, PyTypeObject *type)
{
    hc_retained *row = hc_retained_place(walk->retained, walk->retained_room, record->endpoint, type);
    if (row->endpoint == HM_NO_ENDPOINT) {
        if (walk->retained_count >= walk->retained_room / 2) {
            if (hc_more_retained(walk) < 0) {
                walk->failed = 1;
                return;
            }
            row = hc_retained_place(walk->retained, walk->retained_room, record->endpoint, type);
        }
        *row = (hc_retained){.endpoint = record->endpoint, .type = type};
        walk->retained_count++;
    }
    row->objects += record->weight;
    row->bytes += record->weight * record->size;
}

static int hc_mark(hc_walk *walk, uint64_t place)
{
    uint8_t bit = (uint8_t)(1 << place % 8);
    int marked = walk->marked[place / 8] & bit;
    walk->marked[place / 8] |= bit;
    return marked;
}

static void hc_attribute(hc_walk *walk, const hc_type *entry, PyObject *object)
{
    hm_found record;
    if (hm_lookup((char *)object - entry->before, &record) && record.endpoint != HM_NO_ENDPOINT &&
        !hc_mark(walk, record.place)) {
        hc_retain(walk, &record, entry->type);
    }
}

/* What no object was found in: buffers, and what this walk does not reach. */
static void hc_attribute_rest(hc_walk *walk)
{
    hm_found record;
    for (uint64_t place = 0; walk->marked != NULL && place < hm_places(); place++) {
        if (hm_record_at(place, &record) && record.endpoint != HM_NO_ENDPOINT && !hc_mark(walk, place)) {
            hc_retain(walk, &record, NULL);
        }
    }
}

/* ---- the walk ------------------------------------------------------------------------------------------------------ */

static void hc_count(hc_walk *walk, PyObject *object, double weight)
{
    hc_type *entry = hc_type_of(walk, object);
    if (entry == NULL) {
        return;
    }
    entry->objects += weight;
    entry->bytes += weight * (double)hc_size(entry, object);
    if (walk->marked != NULL) {
        hc_attribute(walk, entry, object);
    }
}

static int hc_is_tracked(PyObject *object)
{
#if PY_VERSION_HEX < 0x030E0000
    return hc_link_of(object)->next != 0;
#else
    return PyObject_GC_IsTracked(object);
#endif
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

static void hc_visit_list(const hc_link *head, hc_walk *walk)
{
    for (const hc_link *link = (const hc_link *)head->next; link != head; link = (const hc_link *)link->next) {
        if (!hc_visit((PyObject *)(link + 1), walk)) {
            return;
        }
    }
}

static void hc_visit_heap(hc_walk *walk)
{
    for (int at = 0; at < HC_GENERATIONS; at++) {
        hc_visit_list(&hc_heap->generations[at].head, walk);
    }
    hc_visit_list(&hc_heap->frozen.head, walk);
}

#else

int hc_prepare(void)
{
    return 0;
}

static void hc_visit_heap(hc_walk *walk)
{
    PyUnstable_GC_VisitObjects(hc_visit, walk);
}

#endif

/* ---- the result ---------------------------------------------------------------------------------------------------- */

static int hc_flush(hc_output *output)
{
    size_t done = 0;
    if (output->fd < 0) {
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

static int hc_put(hc_output *output, const void *data, size_t size)
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

static int hc_put_number(hc_output *output, uint64_t number)
{
    return hc_put(output, &number, sizeof(number));
}

/* UTF-8 of one character, lone surrogates as they are: Python decodes it with "surrogatepass". */
static size_t hc_encode(Py_UCS4 character, unsigned char *bytes)
{
    if (character < 0x80) {
        bytes[0] = (unsigned char)character;
        return 1;
    }
    size_t size = character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
    for (size_t at = size; --at > 0; character >>= 6) {
        bytes[at] = (unsigned char)(0x80 | (character & 0x3F));
    }
    bytes[0] = (unsigned char)((0xF00 >> size & 0xFF) | character);
    return size;
}

#define HC_MAX_NAME 1000 /* characters; more than a label may have */

typedef struct {
    unsigned char bytes[HC_MAX_NAME * 4];
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
        name->length += hc_encode(PyUnicode_READ_CHAR(text, at), name->bytes + name->length);
    }
}

static int hc_put_type(hc_output *output, const hc_type *entry)
{
    PyTypeObject *type = entry->type;
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
    if (hc_put(output, &entry->objects, sizeof(double)) < 0 || hc_put(output, &entry->bytes, sizeof(double)) < 0 ||
        hc_put_number(output, module.length) < 0 || hc_put_number(output, qualname.length) < 0) {
        return -1;
    }
    return module.length != HC_NO_NAME && hc_put(output, module.bytes, module.length) < 0 ? -1
           : qualname.length != HC_NO_NAME ? hc_put(output, qualname.bytes, qualname.length)
                                           : 0;
}

static int hc_put_all(hc_walk *walk, hc_output *output)
{
    if (hc_put_number(output, walk->walked) < 0 || hc_put_number(output, walk->type_count) < 0 ||
        hc_put_number(output, walk->retained_count) < 0) {
        return -1;
    }
    uint32_t number = 0; /* in the order of the table */
    for (size_t at = 0; at < walk->type_room; at++) {
        if (walk->types[at].type != NULL) {
            walk->types[at].number = number++;
            if (hc_put_type(output, &walk->types[at]) < 0) {
                return -1;
            }
        }
    }
    for (size_t at = 0; at < walk->retained_room; at++) {
        const hc_retained *row = &walk->retained[at];
        if (row->endpoint == HM_NO_ENDPOINT) {
            continue;
        }
        uint64_t type = row->type == NULL ? HC_NO_TYPE : hc_place(walk->types, walk->type_room, row->type)->number;
        if (hc_put_number(output, row->endpoint) < 0 || hc_put_number(output, type) < 0 ||
            hc_put_number(output, row->objects) < 0 || hc_put_number(output, row->bytes) < 0) {
            return -1;
        }
    }
    return hc_flush(output);
}

int hc_census(int reachable, PyObject *objects, hc_output *output)
{
    hc_walk walk = {.type_room = 2048, .retained_room = 1024, .pending_room = 4096, .reachable = reachable};
    int done = -1;
    walk.types = hc_pages(walk.type_room * sizeof(hc_type));
    walk.retained = hc_pages(walk.retained_room * sizeof(hc_retained));
    walk.pending = hc_pages(walk.pending_room * sizeof(hc_pending));
    walk.marked_size = (size_t)(hm_places() / 8);
    walk.marked = walk.marked_size == 0 ? NULL : hc_pages(walk.marked_size);
    if (walk.types != NULL && walk.retained != NULL && walk.pending != NULL &&
        (walk.marked != NULL || walk.marked_size == 0)) {
        if (objects == NULL) {
            hc_visit_heap(&walk);
        }
        for (Py_ssize_t at = 0; objects != NULL && at < PyList_GET_SIZE(objects); at++) {
            hc_visit(PyList_GET_ITEM(objects, at), &walk);
        }
        hc_attribute_rest(&walk);
        done = walk.failed ? -1 : hc_put_all(&walk, output);
    }
    hc_release(walk.types, walk.type_room * sizeof(hc_type));
    hc_release(walk.retained, walk.retained_room * sizeof(hc_retained));
    hc_release(walk.pending, walk.pending_room * sizeof(hc_pending));
    hc_release(walk.marked, walk.marked_size);
    return done;
}
