/* See located.h.
 *
 * The records change while Python objects are made of them. So they are added up first, into plain memory, and the sites
 * are pinned until all of it has been told.
 */
#include "located.h"

#include <stdlib.h>

#include "sites.h"
#include "tracker.h"

/* ---- locate -------------------------------------------------------------------------------------------------------- */

static int hl_root_of(PyObject *item, hl_root *root)
{
    PyObject *path;
    int kind;
    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "Ui:locate", &path, &kind)) {
        PyErr_SetString(PyExc_TypeError, "locate() wants (path, kind) for each root");
        return -1;
    }
    Py_ssize_t length = PyUnicode_GET_LENGTH(path);
    if (kind < HL_LIBRARY || kind > HL_OURS || length == 0) {
        PyErr_Format(PyExc_ValueError, "locate() wants a path and a kind of 0 to %d, not (%R, %d)", HL_OURS, path, kind);
        return -1;
    }
    *root = (hl_root){.length = length, .kind = (hl_kind)kind};
    root->text = malloc((size_t)length * sizeof(Py_UCS4));
    if (root->text == NULL || PyUnicode_AsUCS4(path, root->text, length, 0) == NULL) {
        free(root->text);
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

PyObject *hl_set(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned int most;
    PyObject *given;
    if (!PyArg_ParseTuple(args, "IO!:locate", &most, &PyList_Type, &given)) {
        return NULL;
    }
    if (most > HL_MOST || hm_statistics().running) {
        PyErr_Format(PyExc_ValueError, "locate() wants at most %d sites, and before start()", HL_MOST);
        return NULL;
    }
    if (most > 0 && hl_prepare() < 0) {
        return NULL;
    }
    size_t count = 0, all = (size_t)PyList_GET_SIZE(given);
    hl_root *roots = calloc(all + 1, sizeof(hl_root));
    while (roots != NULL && count < all && hl_root_of(PyList_GET_ITEM(given, (Py_ssize_t)count), &roots[count]) == 0) {
        count++;
    }
    if (roots != NULL && count == all && hl_locate(most, roots, count) == 0) {
        Py_RETURN_NONE;
    }
    if (roots != NULL && count < all) { /* hl_locate has taken them otherwise */
        while (count > 0) {
            free(roots[--count].text);
        }
        free(roots);
    }
    return PyErr_Occurred() ? NULL : PyErr_NoMemory();
}

/* ---- sites --------------------------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t endpoint, site; /* endpoint HM_NO_ENDPOINT: an empty place */
    uint64_t objects, bytes;
} hl_sum;

typedef struct {
    hl_sum *sums;
    size_t count, room; /* the room is a power of two */
} hl_sums;

static hl_sum *hl_sum_place(const hl_sums *sums, uint32_t endpoint, uint32_t site)
{
    size_t place = (endpoint * 0x9E3779B1u ^ site * 0x85EBCA6Bu) & (sums->room - 1);
    while (sums->sums[place].endpoint != HM_NO_ENDPOINT &&
           (sums->sums[place].endpoint != endpoint || sums->sums[place].site != site)) {
        place = (place + 1) & (sums->room - 1);
    }
    return &sums->sums[place];
}

static int hl_more_sums(hl_sums *sums)
{
    hl_sums more = {.count = sums->count, .room = sums->room == 0 ? 1024 : sums->room * 2};
    more.sums = calloc(more.room, sizeof(hl_sum));
    if (more.sums == NULL) {
        return -1;
    }
    for (size_t at = 0; at < sums->room; at++) {
        if (sums->sums[at].endpoint != HM_NO_ENDPOINT) {
            *hl_sum_place(&more, sums->sums[at].endpoint, sums->sums[at].site) = sums->sums[at];
        }
    }
    free(sums->sums);
    *sums = more;
    return 0;
}

static int hl_add_up(hl_sums *sums)
{
    hm_found record;
    for (uint64_t place = 0; place < hm_places(); place++) {
        if (!hm_record_at(place, &record) || record.endpoint == HM_NO_ENDPOINT) {
            continue;
        }
        if (sums->count >= sums->room / 2 && hl_more_sums(sums) < 0) {
            return -1;
        }
        hl_sum *sum = hl_sum_place(sums, record.endpoint, record.site);
        sums->count += sum->endpoint == HM_NO_ENDPOINT;
        sum->endpoint = record.endpoint;
        sum->site = record.site;
        sum->objects += record.weight;
        sum->bytes += record.weight * record.size;
    }
    return 0;
}

static PyObject *hl_text(const char *text)
{
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "backslashreplace");
}

static PyObject *hl_line_object(const hl_line *line)
{
    if (line->file == NULL) {
        Py_RETURN_NONE;
    }
    PyObject *file = hl_text(line->file), *function = hl_text(line->function);
    if (file == NULL || function == NULL) {
        Py_XDECREF(file);
        Py_XDECREF(function);
        return NULL;
    }
    return Py_BuildValue("(NiN)", file, line->line, function);
}

static int hl_put_row(PyObject *rows, const hl_sum *sum)
{
    hl_line innermost = {.file = NULL}, application = {.file = NULL};
    if (sum->site != HL_OTHER) {
        hl_lines(sum->site, &innermost, &application);
    }
    PyObject *inner = hl_line_object(&innermost), *app = hl_line_object(&application), *row = NULL;
    if (inner != NULL && app != NULL) {
        row = Py_BuildValue("(IKKOO)", sum->endpoint, sum->objects, sum->bytes, inner, app);
    }
    int done = row == NULL ? -1 : PyList_Append(rows, row);
    Py_XDECREF(inner);
    Py_XDECREF(app);
    Py_XDECREF(row);
    return done;
}

PyObject *hl_rows(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    hl_sums sums = {.sums = NULL};
    PyObject *rows = PyList_New(0);
    if (rows != NULL && hl_add_up(&sums) < 0) {
        Py_CLEAR(rows);
        PyErr_NoMemory();
    }
    hl_pin(1);
    for (size_t at = 0; rows != NULL && at < sums.room; at++) {
        if (sums.sums[at].endpoint != HM_NO_ENDPOINT && hl_put_row(rows, &sums.sums[at]) < 0) {
            Py_CLEAR(rows);
        }
    }
    hl_pin(0);
    free(sums.sums);
    return rows;
}
