/* The interpreter whose allocations are recorded: the main one.
 *
 * Subinterpreters with a lock of their own (Python 3.12 and newer) run the same hooks at the same time. What the hooks'
 * common path reads is therefore read atomically, and what is not common leaves before it touches anything.
 *
 * CPython's internals used here, checked with 3.11 to 3.13: PyThreadState.interp.
 */
#ifndef HM_HOME_H
#define HM_HOME_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if !defined(__GNUC__) || defined(_WIN32) /* Clang says __GNUC__, too; setup.py says why not there */
#error "the accelerator needs GCC or Clang on a system with fork and mmap: build with HEAP_MIDDLEWARE_PURE=1"
#endif

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define NOINLINE __attribute__((noinline))
#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define STORE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELAXED)

extern PyInterpreterState *hm_home;

/* Whether there is only the main interpreter, so that its lock is the only one. */
static inline int hm_alone(void)
{
    return PyInterpreterState_Head() == hm_home; /* the newest of them */
}

/* The thread that runs, or NULL. */
static inline PyThreadState *hm_thread(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return PyThreadState_GetUnchecked();
#else
    return _PyThreadState_UncheckedGet();
#endif
}

/* Whether the main interpreter runs here, with its lock: everything else passes through. */
static inline int hm_at_home(void)
{
    if (LIKELY(hm_alone())) {
        return 1;
    }
    PyThreadState *thread = hm_thread();
    return thread != NULL && thread->interp == hm_home;
}

#endif
