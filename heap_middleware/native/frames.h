/* The frames of a running thread, innermost first, read where they are: no object is made, no reference is taken.
 *
 * CPython's internals used here, checked with the sources of 3.11 to 3.13: the innermost frame of a thread state, and the
 * first fields of a frame (_PyInterpreterFrame). The functions that CPython has for this (PyUnstable_InterpreterFrame_*,
 * 3.12 and newer) do not lead from a frame to the one that called it, so its place is known here; from 3.14 on, where a
 * frame's code is a tagged pointer, they are asked for the rest.
 */
#ifndef HM_FRAMES_H
#define HM_FRAMES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

typedef struct hl_frame {
#if PY_VERSION_HEX < 0x030C0000
    PyObject *function, *globals, *builtins, *locals;
    PyObject *executable;
    PyObject *object;
    struct hl_frame *previous;
    const char *instruction;
#else
    PyObject *executable;
    struct hl_frame *previous;
    PyObject *function, *globals, *builtins, *locals;
    PyObject *object;
    const char *instruction;
    int stack_top;
    uint16_t return_offset;
    char owner;
#endif
} hl_frame;

#define HL_OWNED_BY_C_STACK 3 /* of 3.12 and 3.13: between C and Python; its code is none that anybody wrote */

static inline hl_frame *hl_innermost(PyThreadState *thread)
{
#if PY_VERSION_HEX < 0x030D0000
    return thread->cframe == NULL ? NULL : (hl_frame *)thread->cframe->current_frame;
#else
    return (hl_frame *)thread->current_frame;
#endif
}

/* What a frame runs, or NULL; borrowed. */
static inline PyObject *hl_executable(hl_frame *frame)
{
#if PY_VERSION_HEX >= 0x030E0000
    PyObject *code = (PyObject *)PyUnstable_InterpreterFrame_GetCode((struct _PyInterpreterFrame *)frame);
    Py_XDECREF(code); /* the frame has it */
    return code;
#else
    return frame->executable;
#endif
}

/* Whether it is Python code that somebody wrote. */
static inline int hl_is_written(hl_frame *frame)
{
#if PY_VERSION_HEX >= 0x030C0000 && PY_VERSION_HEX < 0x030E0000
    if (frame->owner == HL_OWNED_BY_C_STACK) {
        return 0;
    }
#endif
    PyObject *executable = hl_executable(frame);
    return executable != NULL && PyCode_Check(executable);
}

/* Where it is: an address that no other instruction of living code has. */
static inline const char *hl_at(hl_frame *frame)
{
#if PY_VERSION_HEX >= 0x030E0000
    return (const char *)hl_executable(frame) + PyUnstable_InterpreterFrame_GetLasti((struct _PyInterpreterFrame *)frame);
#else
    return frame->instruction;
#endif
}

/* The line of that address. Instructions that prepare a function have none: they are at its first. */
static inline int hl_line_at(PyCodeObject *code, const char *at)
{
#if PY_VERSION_HEX >= 0x030E0000
    int line = PyCode_Addr2Line(code, (int)(at - (const char *)code));
#else
    int line = PyCode_Addr2Line(code, (int)(at - (const char *)code->co_code_adaptive));
#endif
    return line < 0 ? code->co_firstlineno : line;
}

#endif
