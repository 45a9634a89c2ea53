/* See kinds.h. */
#include "kinds.h"

#include <stdlib.h>
#include <string.h>

#include "home.h"

#define HL_KINDS_LOG 12 /* functions whose kind is remembered: 4096 of them, 32 KiB */
#define HL_KINDS (1 << HL_KINDS_LOG)
#define HL_DEEPEST 200 /* frames; an application that recurses deeper is not looked for */
#define HL_NEAR 4      /* frames at the end of the last walk that the next one is likely to meet */

static struct {
    hl_root *roots;
    size_t count;
    int only; /* there is a root of the application */
} hl_roots;

static uintptr_t hl_kinds[HL_KINDS] = {HL_NOBODYS}; /* an executable, not kept alive, and its kind in the lowest bits */

/* The frames of the last walk, outermost first. The next one mostly meets them again after a step or two, and to see that
 * they still call each other takes a fraction of finding out again what they are. */
static struct {
    hl_frame *frames[HL_DEEPEST];
    PyObject *executables[HL_DEEPEST];
    int count;
    int in_application; /* the outermost is the application's; else there is none */
} hl_path;

/* ---- kinds --------------------------------------------------------------------------------------------------------- */

static int hl_starts_with(PyObject *file, const Py_UCS4 *text, Py_ssize_t length)
{
    if (PyUnicode_GET_LENGTH(file) < length) {
        return 0;
    }
    for (Py_ssize_t at = 0; at < length; at++) {
        if (PyUnicode_READ_CHAR(file, at) != text[at]) {
            return 0;
        }
    }
    return 1;
}

/* Whether it lies in a folder of that name, below its first `from` characters. */
static int hl_has_folder(PyObject *file, const char *name, Py_ssize_t from)
{
    Py_ssize_t length = (Py_ssize_t)strlen(name);
    for (Py_ssize_t start = from > 0 ? from - 1 : 0; start + length + 2 <= PyUnicode_GET_LENGTH(file); start++) {
        Py_ssize_t at = 0;
        Py_UCS4 before = PyUnicode_READ_CHAR(file, start), after = PyUnicode_READ_CHAR(file, start + length + 1);
        if ((before != '/' && before != '\\') || (after != '/' && after != '\\')) {
            continue;
        }
        while (at < length && PyUnicode_READ_CHAR(file, start + 1 + at) == (Py_UCS4)name[at]) {
            at++;
        }
        if (at == length) {
            return 1;
        }
    }
    return 0;
}

static hl_kind hl_kind_by_name(PyObject *file)
{
    const hl_root *best = NULL;
    if (!PyUnicode_Check(file) || PyUnicode_GET_LENGTH(file) == 0 || PyUnicode_READ_CHAR(file, 0) == '<') {
        return HL_LIBRARY; /* "<string>", "<frozen ...>": made by somebody else's code */
    }
    for (size_t at = 0; at < hl_roots.count; at++) {
        const hl_root *root = &hl_roots.roots[at];
        if ((best == NULL || root->length > best->length) && hl_starts_with(file, root->text, root->length)) {
            best = root;
        }
    }
    if (best != NULL && best->kind != HL_APPLICATION) {
        return best->kind;
    }
    Py_ssize_t from = best == NULL ? 0 : best->length; /* an environment may lie in the application's folder */
    if (hl_has_folder(file, "site-packages", from) || hl_has_folder(file, "dist-packages", from)) {
        return HL_LIBRARY;
    }
    return best == NULL && hl_roots.only ? HL_LIBRARY : HL_APPLICATION;
}

static inline uintptr_t *hl_kind_place(const void *executable)
{
    return &hl_kinds[((uintptr_t)executable >> 4) * 0x9E3779B97F4A7C15u >> (64 - HL_KINDS_LOG)];
}

static void hl_forget_kind_of_null(void)
{
    if (hl_kinds[0] == 0) {
        hl_kinds[0] = HL_NOBODYS; /* or a frame of no code would be taken for a library's */
    }
}

void hl_forget_kinds(void)
{
    memset(hl_kinds, 0, sizeof(hl_kinds));
    hl_forget_kind_of_null();
    hl_path.count = 0;
}

void hl_forget_kind(const PyCodeObject *code)
{
    uintptr_t *known = hl_kind_place(code);
    if ((*known ^ (uintptr_t)code) <= HL_NOBODYS) {
        *known = 0;
        hl_forget_kind_of_null();
    }
    hl_path.count = 0;
}

void hl_set_roots(hl_root *roots, size_t count)
{
    for (size_t at = 0; at < hl_roots.count; at++) {
        free(hl_roots.roots[at].text);
    }
    free(hl_roots.roots);
    hl_roots.roots = roots;
    hl_roots.count = count;
    hl_roots.only = 0;
    for (size_t at = 0; at < count; at++) {
        hl_roots.only |= roots[at].kind == HL_APPLICATION;
    }
    hl_forget_kinds();
}

NOINLINE static hl_kind hl_learn_kind(uintptr_t *known, hl_frame *frame)
{
    PyObject *executable = hl_executable(frame);
    hl_kind kind = HL_NOBODYS;
    if (hl_is_written(frame)) {
        kind = hl_kind_by_name(((PyCodeObject *)executable)->co_filename);
    }
    *known = (uintptr_t)executable | kind;
    return kind;
}

static inline hl_kind hl_kind_of(hl_frame *frame)
{
    PyObject *executable = hl_executable(frame);
    uintptr_t *known = hl_kind_place(executable), differs = *known ^ (uintptr_t)executable;
    return LIKELY(differs <= HL_NOBODYS) ? (hl_kind)differs : hl_learn_kind(known, frame);
}

/* ---- the walk ------------------------------------------------------------------------------------------------------ */

/* How many frames of the path, from its outermost on, still call each other as they did, `at` the innermost of them. A
 * frame is looked into only when a living one has named it. */
static inline int hl_holds(int at)
{
    for (int from = at; hl_executable(hl_path.frames[from]) == hl_path.executables[from]; from--) {
        if (from == 0) {
            return at + 1;
        }
        if (hl_path.frames[from]->previous != hl_path.frames[from - 1]) {
            break;
        }
    }
    return 0;
}

/* The same, of a living frame that is near the end of the path; 0 if it is not. */
static inline int hl_met(const hl_frame *frame)
{
    for (int at = hl_path.count - 1; at >= 0 && at >= hl_path.count - HL_NEAR; at--) {
        if (hl_path.frames[at] == frame) {
            return hl_holds(at);
        }
    }
    return 0;
}

static inline void hl_remember(hl_frame *const *walked, int steps)
{
    while (steps > 0) {
        hl_frame *frame = walked[--steps];
        hl_path.frames[hl_path.count] = frame;
        hl_path.executables[hl_path.count++] = hl_executable(frame);
    }
}

hl_frame *hl_innermost_written(PyThreadState *thread)
{
    hl_frame *frame = hl_innermost(thread);
    while (frame != NULL && hl_kind_of(frame) == HL_NOBODYS) {
        frame = frame->previous;
    }
    return frame;
}

hl_frame *hl_application_of(hl_frame *frame)
{
    hl_frame *walked[HL_DEEPEST];
    int steps = 0, kept = 0;
    hl_kind kind = HL_LIBRARY;
    for (; frame != NULL && kind != HL_APPLICATION && kind != HL_OURS; frame = frame->previous) {
        if (steps < HL_NEAR && (kept = hl_met(frame)) != 0) {
            break;
        }
        if (steps == HL_DEEPEST) {
            break;
        }
        kind = hl_kind_of(frame); /* what called us is the server's, no more of this request */
        walked[steps++] = frame;
    }
    if (kept == 0) {
        hl_path.in_application = kind == HL_APPLICATION;
    }
    hl_path.count = kept;
    if (kept + steps >= HL_DEEPEST) {
        hl_path.count = 0;
        return NULL;
    }
    hl_remember(walked, steps);
    return hl_path.in_application ? hl_path.frames[0] : NULL;
}
