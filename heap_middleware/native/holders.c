/* See holders.h.
 *
 * The rules of this file:
 * - Those of census.c: only tp_traverse is asked, no reference count is touched, and memory is the system's own pages.
 * - One pass over the heap finds the objects asked for, and one more each level: whoever refers to an object of the level
 *   before is met. Each object is followed once, at the first level that reaches it, so cycles end.
 * - Modules and classes are where a path ends: everything holds them.
 */
#include "holders.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "attributes.h"
#include "child.h"
#include "heap.h"
#include "pages.h"
#include "tracker.h"
#include "types.h"

#define HR_MOST_GROUPS 4096
#define HR_OWN "heap_middleware"
#define HR_NESTED 4       /* untracked containers in each other that are searched for what was asked for */
#define HR_FILTER_BITS 23 /* a mebibyte, in front of the table of met objects */
#define HR_TELL 200000    /* objects walked from one report to the next */

typedef struct {
    uint32_t parent;
    hr_kind kind;
    hr_cut cut;
    PyTypeObject *type;
    ha_name name;
    uint64_t objects, references, bytes;
} hr_group;

typedef struct {
    PyObject *object; /* NULL: an empty place */
    uint32_t group, level;
    uint64_t weight; /* of the objects asked for, how many references lead to from here */
} hr_met;

typedef struct {
    PyObject *dict; /* NULL: an empty place */
    PyObject *owner;
} hr_namespace;

typedef enum { HR_UNKNOWN, HR_PLAIN, HR_WANTED, HR_PASSED_OVER } hr_type_use;

typedef struct {
    const char *wanted;
    Py_ssize_t wanted_length;
    uint32_t endpoint;
    uint32_t max_depth;
    uint64_t max_items;
    PyObject *ignore_types, *ignore_modules; /* tuples of bytes */
} hr_question;

typedef struct {
    const hr_question *question;
    hc_output *output;
    hc_types types;
    uint8_t *uses; /* hr_type_use by number of a type */
    size_t use_room;
    hr_group *groups;
    uint32_t group_count;
    hr_met *met;
    size_t met_count, met_room;
    uint8_t *filter;
    hr_namespace *namespaces;
    size_t namespace_count, namespace_room;
    uint32_t level; /* that is being looked for: of its objects' holders */
    uint64_t targets, told;
    hr_cut cut;
    int failed, nested;
    /* of the object that is being looked into */
    PyObject *looked_into, *held;
    uint32_t held_group;
    uint64_t weight, heaviest;
} hr_walk;

/* ---- types --------------------------------------------------------------------------------------------------------- */

static int hr_is_in(PyObject *names, const char *text, size_t length)
{
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(names); at++) {
        PyObject *name = PyTuple_GET_ITEM(names, at);
        if ((size_t)PyBytes_GET_SIZE(name) == length && memcmp(PyBytes_AS_STRING(name), text, length) == 0) {
            return 1;
        }
    }
    return 0;
}

static int hr_is_own(const char *module, size_t length)
{
    size_t own = strlen(HR_OWN);
    return length >= own && memcmp(module, HR_OWN, own) == 0 && (length == own || module[own] == '.');
}

/* Judged once a type, by the names that the census shows. */
static hr_type_use hr_judge(const hr_question *question, PyTypeObject *type)
{
    hc_output text = {.fd = HC_SCRATCH};
    uint64_t lengths[2];
    if (hc_put_names(&text, type) < 0) {
        return HR_PLAIN;
    }
    memcpy(lengths, text.chunk, sizeof(lengths));
    char *module = text.chunk + sizeof(lengths);
    if (lengths[0] == HC_NO_NAME || lengths[1] == HC_NO_NAME || lengths[0] + lengths[1] > sizeof(text.chunk) / 2) {
        return HR_PLAIN;
    }
    char *name = module + lengths[0];
    memmove(name + 1, name, lengths[1]); /* a dot between the two */
    *name = '.';
    size_t length = lengths[0] + 1 + lengths[1];
    if (question->wanted_length > 0 && length == (size_t)question->wanted_length &&
        memcmp(module, question->wanted, length) == 0) {
        return HR_WANTED;
    }
    if (type == &PyFrame_Type || hr_is_own(module, lengths[0]) || hr_is_in(question->ignore_types, module, length) ||
        hr_is_in(question->ignore_types, name + 1, lengths[1]) ||
        hr_is_in(question->ignore_modules, module, lengths[0])) {
        return HR_PASSED_OVER;
    }
    return HR_PLAIN;
}

static hr_type_use hr_use_of(hr_walk *walk, PyObject *object)
{
    hc_type *entry = hc_type_of(&walk->types, object);
    if (entry == NULL) {
        walk->failed = 1;
        return HR_PASSED_OVER;
    }
    if (entry->number >= walk->use_room) {
        if (hc_double((void **)&walk->uses, walk->use_room) < 0) {
            walk->failed = 1;
            return HR_PASSED_OVER;
        }
        walk->use_room *= 2;
    }
    if (walk->uses[entry->number] == HR_UNKNOWN) {
        walk->uses[entry->number] = (uint8_t)hr_judge(walk->question, entry->type);
    }
    return (hr_type_use)walk->uses[entry->number];
}

static uint64_t hr_size(hr_walk *walk, PyObject *object)
{
    const hc_type *entry = hc_type_of(&walk->types, object);
    return entry == NULL ? 0 : (uint64_t)hc_size(entry, object);
}

/* ---- objects that were met ----------------------------------------------------------------------------------------- */

static inline size_t hr_bit(const void *pointer)
{
    return ((uintptr_t)pointer >> 4) * 0x9E3779B97F4A7C15u >> (64 - HR_FILTER_BITS);
}

static inline hr_met *hr_place(const hr_walk *walk, const PyObject *object)
{
    size_t place = hc_hash(object) & (walk->met_room - 1);
    while (walk->met[place].object != NULL && walk->met[place].object != object) {
        place = (place + 1) & (walk->met_room - 1);
    }
    return &walk->met[place];
}

/* NULL: it was not met. */
static inline const hr_met *hr_find(const hr_walk *walk, const PyObject *object)
{
    size_t bit = hr_bit(object);
    if (!(walk->filter[bit / 8] >> bit % 8 & 1)) {
        return NULL;
    }
    const hr_met *found = hr_place(walk, object);
    return found->object == NULL ? NULL : found;
}

static int hr_more_room(hr_walk *walk)
{
    hr_walk more = *walk;
    more.met_room *= 2;
    more.met = hc_pages(more.met_room * sizeof(hr_met));
    if (more.met == NULL) {
        return -1;
    }
    for (size_t at = 0; at < walk->met_room; at++) {
        if (walk->met[at].object != NULL) {
            *hr_place(&more, walk->met[at].object) = walk->met[at];
        }
    }
    hc_release(walk->met, walk->met_room * sizeof(hr_met));
    walk->met = more.met;
    walk->met_room = more.met_room;
    return 0;
}

static void hr_meet(hr_walk *walk, PyObject *object, uint32_t group, uint32_t level, uint64_t weight)
{
    if (walk->met_count >= walk->met_room / 2 && hr_more_room(walk) < 0) {
        walk->failed = 1;
        return;
    }
    size_t bit = hr_bit(object);
    walk->filter[bit / 8] |= (uint8_t)(1 << bit % 8);
    *hr_place(walk, object) = (hr_met){.object = object, .group = group, .level = level, .weight = weight};
    walk->met_count++;
}

/* ---- namespaces ---------------------------------------------------------------------------------------------------- */

static hr_namespace *hr_namespace_place(const hr_walk *walk, const PyObject *dict)
{
    size_t place = hc_hash(dict) & (walk->namespace_room - 1);
    while (walk->namespaces[place].dict != NULL && walk->namespaces[place].dict != dict) {
        place = (place + 1) & (walk->namespace_room - 1);
    }
    return &walk->namespaces[place];
}

static void hr_add_namespace(hr_walk *walk, PyObject *dict, PyObject *owner)
{
    if (walk->namespace_count >= walk->namespace_room / 2) {
        hr_walk more = *walk;
        more.namespace_room *= 2;
        more.namespaces = hc_pages(more.namespace_room * sizeof(hr_namespace));
        if (more.namespaces == NULL) {
            walk->failed = 1;
            return;
        }
        for (size_t at = 0; at < walk->namespace_room; at++) {
            if (walk->namespaces[at].dict != NULL) {
                *hr_namespace_place(&more, walk->namespaces[at].dict) = walk->namespaces[at];
            }
        }
        hc_release(walk->namespaces, walk->namespace_room * sizeof(hr_namespace));
        walk->namespaces = more.namespaces;
        walk->namespace_room = more.namespace_room;
    }
    hr_namespace *place = hr_namespace_place(walk, dict);
    walk->namespace_count += place->dict == NULL;
    *place = (hr_namespace){.dict = dict, .owner = owner};
}

/* ---- the objects asked for ----------------------------------------------------------------------------------------- */

static int hr_is_retained(const hr_walk *walk, PyObject *object)
{
    hm_found record;
    const void *block = (char *)object - hc_bytes_before(Py_TYPE(object));
    return hm_lookup(block, &record) && record.endpoint == walk->question->endpoint;
}

static int hr_is_target(hr_walk *walk, PyObject *object)
{
    hr_type_use use = hr_use_of(walk, object);
    if (walk->question->wanted_length > 0 ? use != HR_WANTED : use == HR_PASSED_OVER) {
        return 0;
    }
    return walk->question->endpoint == HM_NO_ENDPOINT || hr_is_retained(walk, object);
}

static void hr_take_target(hr_walk *walk, PyObject *object)
{
    if (!hr_is_target(walk, object) || hr_find(walk, object) != NULL) {
        return;
    }
    if (walk->met_count >= walk->question->max_items) {
        walk->cut = walk->groups[0].cut = HR_CUT_ITEMS;
        return;
    }
    walk->targets++;
    walk->groups[0].objects++;
    walk->groups[0].bytes += hr_size(walk, object);
    hr_meet(walk, object, 0, 0, 1);
}

/* What the collector does not list is found where a tracked object refers to it. */
static int hr_reach_target(PyObject *object, void *argument)
{
    hr_walk *walk = argument;
    if (object == NULL || walk->failed || (hc_is_collected(object) && hc_is_tracked(object))) {
        return 0;
    }
    hr_take_target(walk, object);
    if ((PyTuple_CheckExact(object) || PyDict_CheckExact(object)) && walk->nested < HR_NESTED) {
        walk->nested++;
        Py_TYPE(object)->tp_traverse(object, hr_reach_target, walk);
        walk->nested--;
    }
    return 0;
}

static int hr_visit_first(PyObject *object, void *argument)
{
    hr_walk *walk = argument;
    PyObject *dict = ha_namespace_of(object);
    dict = dict == NULL ? ha_dict_of(object) : dict;
    if (dict != NULL) {
        hr_add_namespace(walk, dict, object);
    }
    hr_take_target(walk, object);
    if (Py_TYPE(object)->tp_traverse != NULL) {
        Py_TYPE(object)->tp_traverse(object, hr_reach_target, walk);
    }
    return !walk->failed;
}

/* ---- holders ------------------------------------------------------------------------------------------------------- */

static int hr_same_group(const hr_group *group, const hr_group *wanted)
{
    return group->parent == wanted->parent && group->kind == wanted->kind && group->type == wanted->type &&
           group->name.length == wanted->name.length &&
           memcmp(group->name.text, wanted->name.text, wanted->name.length) == 0;
}

/* The group of its kind, a new one if need be. Few have many, so they are looked for one by one, the newest first. */
static uint32_t hr_group_of(hr_walk *walk, const hr_group *wanted)
{
    for (uint32_t at = walk->group_count; at-- > 1;) {
        if (hr_same_group(&walk->groups[at], wanted)) {
            return at;
        }
    }
    if (walk->group_count == HR_MOST_GROUPS - 1 || (walk->group_count == HR_MOST_GROUPS && wanted->kind != HR_OTHERS)) {
        hr_group others = {.parent = wanted->parent, .kind = HR_OTHERS, .type = &PyBaseObject_Type};
        if (walk->group_count < HR_MOST_GROUPS) {
            walk->groups[walk->group_count++] = others;
        }
        return walk->group_count - 1;
    }
    walk->groups[walk->group_count] = *wanted;
    return walk->group_count++;
}

static hr_group hr_describe(hr_walk *walk, PyObject *object)
{
    hr_group group = {.parent = walk->held_group, .kind = HR_OBJECT, .type = Py_TYPE(object)};
    if (PyModule_Check(object)) {
        group.kind = HR_MODULE;
        ha_module_name(&group.name, object);
    }
    else if (PyType_Check(object)) {
        group.kind = HR_CLASS;
        group.type = (PyTypeObject *)object;
    }
    else if (PyFunction_Check(object) || PyGen_CheckExact(object) || PyCoro_CheckExact(object)) {
        group.kind = HR_FUNCTION;
        ha_function_name(&group.name, object);
    }
    else if (PyDict_Check(object)) {
        const hr_namespace *found = hr_namespace_place(walk, object);
        if (found->dict != NULL) {
            group.kind = PyModule_Check(found->owner) ? HR_GLOBAL
                         : PyType_Check(found->owner) ? HR_CLASS_ATTRIBUTE
                                                      : HR_ATTRIBUTE;
            ha_key(&group.name, object, walk->held);
        }
    }
    else {
        ha_attribute(&group.name, object, walk->held);
        group.kind = group.name.length > 0 ? HR_INSTANCE : HR_OBJECT;
    }
    return group;
}

static int hr_reach(PyObject *object, void *argument)
{
    hr_walk *walk = argument;
    const hr_met *found;
    if (object == NULL || (found = hr_find(walk, object)) == NULL || found->level != walk->level) {
        return 0;
    }
    if (PyDict_Check(object)) { /* functions have their module's namespace: it is the module that holds it */
        const hr_namespace *namespace = hr_namespace_place(walk, object);
        if (namespace->dict != NULL && namespace->owner != walk->looked_into) {
            return 0;
        }
    }
    if (found->weight > walk->heaviest) { /* it is shown where it holds most */
        walk->heaviest = found->weight;
        walk->weight = found->group == walk->held_group ? walk->weight : 0;
        walk->held = object;
        walk->held_group = found->group;
    }
    walk->weight += found->group == walk->held_group ? found->weight : 0;
    return 0;
}

/* One that was met before is named here, too; its own holders are shown where it was met. */
static void hr_take_holder(hr_walk *walk, PyObject *object, int again)
{
    hr_group group = hr_describe(walk, object);
    if (!again && walk->met_count >= walk->question->max_items) {
        walk->cut = walk->groups[walk->held_group].cut = HR_CUT_ITEMS;
        return;
    }
    uint32_t at = hr_group_of(walk, &group);
    hr_group *known = &walk->groups[at];
    known->objects++;
    known->references += walk->weight;
    known->bytes += hr_size(walk, object);
    if (again) {
        return;
    }
    int end = group.kind == HR_MODULE || group.kind == HR_CLASS;
    /* Who holds it is asked for at the next level, but not of the ends. */
    hr_meet(walk, object, at, end ? UINT32_MAX : walk->level + 1, walk->weight);
}

static void hr_tell(hr_walk *walk, uint64_t level)
{
    if (walk->output->fd >= 0 && (hc_put_number(walk->output, HR_PROGRESS) < 0 || hc_put_number(walk->output, level) < 0 ||
                                  hc_put_number(walk->output, walk->met_count) < 0 || hc_flush(walk->output) < 0)) {
        walk->failed = 1;
    }
}

static int hr_visit(PyObject *object, void *argument)
{
    hr_walk *walk = argument;
    if (++walk->told % HR_TELL == 0) {
        hr_tell(walk, walk->level + 1);
    }
    traverseproc traverse = Py_TYPE(object)->tp_traverse;
    if (traverse == NULL) {
        return 1;
    }
    walk->looked_into = object;
    walk->held = NULL;
    walk->held_group = UINT32_MAX;
    walk->weight = walk->heaviest = 0;
    traverse(object, hr_reach, walk);
    if (walk->held != NULL && hr_use_of(walk, object) != HR_PASSED_OVER) {
        const hr_met *before = hr_find(walk, object);
        if (before == NULL || before->group != 0) { /* those asked for hold each other as a rule: that says nothing */
            hr_take_holder(walk, object, before != NULL);
        }
    }
    return !walk->failed;
}

/* ---- all of it ----------------------------------------------------------------------------------------------------- */

static int hr_put_group(hc_output *output, const hr_group *group, int first)
{
    return hc_put_number(output, first ? HR_NO_PARENT : group->parent) < 0 || hc_put_number(output, group->kind) < 0 ||
                   hc_put_number(output, group->objects) < 0 || hc_put_number(output, group->references) < 0 ||
                   hc_put_number(output, group->bytes) < 0 || hc_put_number(output, group->cut) < 0 ||
                   hc_put_names(output, group->type == NULL ? &PyBaseObject_Type : group->type) < 0 ||
                   hc_put_number(output, group->name.length) < 0
               ? -1
               : hc_put(output, group->name.text, group->name.length);
}

static int hr_put(hr_walk *walk)
{
    uint64_t head[] = {HR_RESULT, walk->targets, walk->met_count, walk->level, walk->cut, walk->group_count};
    if (hc_put(walk->output, head, sizeof(head)) < 0) {
        return -1;
    }
    for (uint32_t at = 0; at < walk->group_count; at++) {
        if (hr_put_group(walk->output, &walk->groups[at], at == 0) < 0) {
            return -1;
        }
    }
    return hc_flush(walk->output);
}

/* The holders at the last level may have holders themselves. */
static void hr_cut_depth(hr_walk *walk, uint32_t first_group)
{
    for (uint32_t at = first_group; at < walk->group_count; at++) {
        hr_group *group = &walk->groups[at];
        if (group->kind != HR_MODULE && group->kind != HR_CLASS && group->cut == HR_CUT_NOT) {
            group->cut = HR_CUT_DEPTH;
            walk->cut = walk->cut == HR_CUT_NOT ? HR_CUT_DEPTH : walk->cut;
        }
    }
}

static int hr_levels(hr_walk *walk)
{
    hc_visit_heap(hr_visit_first, walk);
    uint32_t level_group = 0;
    size_t before = 0;
    while (!walk->failed && walk->met_count > before && walk->level < walk->question->max_depth) {
        before = walk->met_count;
        level_group = walk->group_count;
        hr_tell(walk, walk->level + 1);
        hc_visit_heap(hr_visit, walk);
        walk->level++;
    }
    if (walk->met_count > before) {
        hr_cut_depth(walk, level_group);
    }
    return walk->failed ? -1 : hr_put(walk);
}

static int hr_search(void *argument, hc_output *output)
{
    hr_walk walk = {
        .question = argument,
        .output = output,
        .types.room = 2048,
        .use_room = 4096,
        .met_room = 1 << 14,
        .namespace_room = 1 << 14,
        .group_count = 1,
    };
    int done = -1;
    walk.types.places = hc_pages(walk.types.room * sizeof(hc_type));
    walk.uses = hc_pages(walk.use_room);
    walk.groups = hc_pages(HR_MOST_GROUPS * sizeof(hr_group));
    walk.met = hc_pages(walk.met_room * sizeof(hr_met));
    walk.filter = hc_pages((size_t)1 << (HR_FILTER_BITS - 3));
    walk.namespaces = hc_pages(walk.namespace_room * sizeof(hr_namespace));
    if (walk.types.places != NULL && walk.uses != NULL && walk.groups != NULL && walk.met != NULL &&
        walk.filter != NULL && walk.namespaces != NULL) {
        done = hr_levels(&walk);
    }
    hc_release(walk.types.places, walk.types.room * sizeof(hc_type));
    hc_release(walk.uses, walk.use_room);
    hc_release(walk.groups, HR_MOST_GROUPS * sizeof(hr_group));
    hc_release(walk.met, walk.met_room * sizeof(hr_met));
    hc_release(walk.filter, (size_t)1 << (HR_FILTER_BITS - 3));
    hc_release(walk.namespaces, walk.namespace_room * sizeof(hr_namespace));
    return done;
}

/* ---- Python -------------------------------------------------------------------------------------------------------- */

static int hr_parse(PyObject *names, const char *what)
{
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(names); at++) {
        if (!PyBytes_CheckExact(PyTuple_GET_ITEM(names, at))) {
            PyErr_Format(PyExc_TypeError, "%s wants bytes", what);
            return -1;
        }
    }
    return 0;
}

static int hr_ask(PyObject *args, const char *format, hr_question *question, double *deadline, PyObject **watch)
{
    unsigned int endpoint, depth;
    unsigned long long items;
    if (!PyArg_ParseTuple(args, format, &question->wanted, &question->wanted_length, &endpoint, &depth, &items,
                          &PyTuple_Type, &question->ignore_types, &PyTuple_Type, &question->ignore_modules, deadline,
                          watch)) {
        return -1;
    }
    question->endpoint = endpoint;
    question->max_depth = depth;
    question->max_items = items;
    return hr_parse(question->ignore_types, "ignore_types") < 0 ? -1 : hr_parse(question->ignore_modules, "ignore_modules");
}

PyObject *hr_holders(PyObject *Py_UNUSED(module), PyObject *args)
{
    hr_question question = {.wanted = NULL};
    hc_output output = {.fd = HC_MEMORY};
    PyObject *result = NULL;
    if (hr_ask(args, "y#IIKO!O!:holders", &question, NULL, NULL) < 0) {
        return NULL;
    }
    if (hr_search(&question, &output) < 0) {
        PyErr_NoMemory();
    }
    else {
        result = PyBytes_FromStringAndSize(output.data, (Py_ssize_t)output.length);
    }
    free(output.data);
    return result;
}

typedef struct {
    hr_question question;
    PyObject *watch;
    size_t told; /* bytes of progress */
    uint64_t level, items;
} hr_child;

static int hr_work(void *argument, hc_output *output)
{
    return hr_search(&((hr_child *)argument)->question, output);
}

/* Tell of the progress that has come, and ask whether to go on. */
static int hr_watch(void *argument, const hc_output *output)
{
    hr_child *child = argument;
    uint64_t report[3];
    while (output->length - child->told >= sizeof(report)) {
        memcpy(report, output->data + child->told, sizeof(report));
        if (report[0] != HR_PROGRESS) {
            break;
        }
        child->told += sizeof(report);
        child->level = report[1];
        child->items = report[2];
    }
    if (child->watch == Py_None) {
        return 0;
    }
    PyObject *answer = PyObject_CallFunction(child->watch, "KK", child->level, child->items);
    int cancelled = answer == NULL || PyObject_IsTrue(answer) != 0;
    Py_XDECREF(answer);
    return cancelled;
}

PyObject *hr_holders_in_child(PyObject *Py_UNUSED(module), PyObject *args)
{
    hr_child child = {.watch = Py_None};
    hc_output output = {.fd = HC_MEMORY};
    hf_report report;
    double deadline;
    PyObject *result = NULL;
    if (hr_ask(args, "y#IIKO!O!dO:holders_in_child", &child.question, &deadline, &child.watch) < 0) {
        return NULL;
    }
    if (hf_run(hr_work, hr_watch, &child, deadline, &output, &report) == 0) {
        result = Py_BuildValue("(y#d)", output.data, (Py_ssize_t)output.length, report.pause);
    }
    else if (!PyErr_Occurred()) { /* or the watch has raised */
        errno = report.error;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, report.where);
    }
    free(output.data);
    return result;
}
