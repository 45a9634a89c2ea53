/* Who holds the objects of a type, level by level.
 *
 * The result, as bytes in the machine's own order, for heap/holders.py to read:
 *
 *   any number of times: uint64 HR_PROGRESS, level, objects met so far        (in a child only)
 *   uint64 HR_RESULT, targets, objects met, levels, cut (HR_CUT_...), groups
 *   groups times: uint64 parent (its place here; HR_NO_PARENT of the first), kind, objects, references to the
 *                 objects asked for that lead through them, bytes, cut;
 *                 names of the class as in output.h; uint64 length of a name; the name
 *
 * A group is all holders of one kind, class and name that hold objects of the same group, its parent.
 */
#ifndef HM_HOLDERS_H
#define HM_HOLDERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define HR_PROGRESS 1
#define HR_RESULT 2
#define HR_NO_PARENT UINT64_MAX

typedef enum { HR_CUT_NOT, HR_CUT_DEPTH, HR_CUT_ITEMS } hr_cut;

typedef enum {
    HR_OBJECT,    /* its class */
    HR_GLOBAL,    /* the dict of a module; name: the global */
    HR_MODULE,    /* name: its own */
    HR_CLASS,     /* a class, whose names those of the class are */
    HR_CLASS_ATTRIBUTE, /* the dict of a class; name: the attribute */
    HR_ATTRIBUTE, /* the dict of an instance; name: the attribute */
    HR_INSTANCE,  /* an instance that has it without a dict; name: the attribute */
    HR_FUNCTION,  /* a function, generator or coroutine; name: its own */
    HR_OTHERS     /* of a level with too many groups */
} hr_kind;

/* holders(wanted, endpoint, max_depth, max_items, ignore_types, ignore_modules): the result. `wanted` is `module.Type` as
 * UTF-8, or b"" for all that requests of the endpoint retain; an endpoint of 0 is none. */
PyObject *hr_holders(PyObject *module, PyObject *args);

/* holders_in_child(the same, deadline, watch): the result, and seconds that the fork took. `watch(level, objects)` is
 * called now and then; if it says True, the child is killed and OSError(ECANCELED) raised. */
PyObject *hr_holders_in_child(PyObject *module, PyObject *args);

#endif
