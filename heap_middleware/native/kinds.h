/* Whose code runs: the application's, a library's, ours or nobody's; and the way from the innermost frame to the
 * application's own.
 *
 * Nothing here makes an object, takes a reference, or raises: it runs inside the allocator's hooks.
 */
#ifndef HM_KINDS_H
#define HM_KINDS_H

#include "frames.h"

#include <stddef.h>

/* A library is 0: the common path of the walk is to pass one by. */
typedef enum { HL_LIBRARY, HL_APPLICATION, HL_OURS, HL_NOBODYS } hl_kind;

typedef struct {
    Py_UCS4 *text;
    Py_ssize_t length;
    hl_kind kind;
} hl_root;

/* Where files are: those below a root are of its kind, the longest root decides. Others are the application's, or the
 * libraries' if there is a root of the application. Takes the roots, whose texts were made with malloc. */
void hl_set_roots(hl_root *roots, size_t count);

/* Another code object may lie there soon. */
void hl_forget_kind(const PyCodeObject *code);

/* What is remembered of all. */
void hl_forget_kinds(void);

/* The innermost frame of code that somebody wrote, or NULL. */
hl_frame *hl_innermost_written(PyThreadState *thread);

/* The innermost frame of the application, at or outside of that one, inside of the nearest one of ours; or NULL. */
hl_frame *hl_application_of(hl_frame *frame);

#endif
