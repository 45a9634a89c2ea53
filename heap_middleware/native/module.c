/* heap_middleware._native: what Python sees of the tracker and of the census. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "body.h"
#include "census.h"
#include "child.h"
#include "heap.h"
#include "holders.h"
#include "located.h"
#include "request.h"
#include "stores.h"
#include "tracker.h"

static PyObject *native_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long max_records, interval;
    double budget;
    if (!PyArg_ParseTuple(args, "KKd:start", &max_records, &interval, &budget)) {
        return NULL;
    }
    if (max_records < 16 || max_records > 1u << 28 || interval > 1u << 20) {
        PyErr_SetString(PyExc_ValueError, "start() wants 16 to 2**28 records and an interval of 0 to 2**20");
        return NULL;
    }
    if (hm_start(max_records, interval, budget, hq_current) < 0) {
        return PyErr_NoMemory();
    }
    if (hs_install() < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *native_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    hm_stop();
    hs_uninstall();
    Py_RETURN_NONE;
}

static PyObject *native_reset_all(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    hm_reset();
    Py_RETURN_NONE;
}

static PyObject *native_snapshot(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    uint32_t count = hm_settle_requests();
    PyObject *rows = PyList_New(0);
    for (uint32_t at = 0; rows != NULL && at < count; at++) {
        /* Building a row may collect garbage, which frees blocks and counts them: each row is read in one go. */
        hm_totals totals = hm_totals_at(at);
        PyObject *row = Py_BuildValue("(KKKKKK)", totals.gained_objects, totals.lost_objects, totals.gained_bytes,
                                      totals.lost_bytes, totals.allocated_objects, totals.allocated_bytes);
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_CLEAR(rows);
        }
        Py_XDECREF(row);
    }
    return rows;
}

static PyObject *native_statistics(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    hm_stats stats = hm_statistics();
    return Py_BuildValue("{s:O,s:O,s:K,s:K,s:K,s:d,s:K}", "running", stats.running ? Py_True : Py_False, "intact",
                         stats.intact ? Py_True : Py_False, "records", stats.records, "interval", stats.interval,
                         "memory", stats.memory, "seconds", (double)stats.spent_ns / 1e9, "requests", stats.requests);
}

static PyObject *native_census(PyObject *Py_UNUSED(module), PyObject *args)
{
    int reachable;
    PyObject *objects = Py_None, *result = NULL;
    if (!PyArg_ParseTuple(args, "p|O:census", &reachable, &objects)) {
        return NULL;
    }
    if (objects != Py_None && !PyList_CheckExact(objects)) {
        PyErr_Format(PyExc_TypeError, "census() wants a list or None, not %s", Py_TYPE(objects)->tp_name);
        return NULL;
    }
    hc_output output = {.fd = HC_MEMORY};
    if (hc_census(reachable, objects == Py_None ? NULL : objects, &output) < 0) {
        PyErr_NoMemory();
    }
    else {
        result = PyBytes_FromStringAndSize(output.data, (Py_ssize_t)output.length);
    }
    free(output.data);
    return result;
}

static PyObject *native_census_in_child(PyObject *Py_UNUSED(module), PyObject *args)
{
    int reachable;
    double deadline;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "pd:census_in_child", &reachable, &deadline)) {
        return NULL;
    }
    hc_output output = {.fd = HC_MEMORY};
    hf_report report;
    if (hf_census(reachable, deadline, &output, &report) == 0) {
        result = Py_BuildValue("(y#d)", output.data, (Py_ssize_t)output.length, report.pause);
    }
    else {
        errno = report.error;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, report.where);
    }
    free(output.data);
    return result;
}

static PyObject *native_begin(PyObject *Py_UNUSED(module), PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(count))
{
    return hq_begin();
}

static PyObject *native_body(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !hq_is_request(args[1])) {
        PyErr_SetString(PyExc_TypeError, "body() wants a result, a Request and a callable");
        return NULL;
    }
    return hb_body(args[0], args[1], args[2]);
}

static PyMethodDef native_methods[] = {
    {"start", native_start, METH_VARARGS, "start(max_records, interval, budget): hook the allocators and record."},
    {"stop", native_stop, METH_NOARGS, "Forget everything and leave the allocators."},
    {"reset", native_reset_all, METH_NOARGS, "Forget everything and go on, in a forked child."},
    {"begin", (PyCFunction)(void (*)(void))native_begin, METH_FASTCALL, "A Request, entered; arguments are ignored."},
    {"body", (PyCFunction)(void (*)(void))native_body, METH_FASTCALL,
     "body(result, request, end): the result, made in the context of its request."},
    {"snapshot", native_snapshot, METH_NOARGS, "A tuple for each endpoint number, see hm_totals."},
    {"locate", hl_set, METH_VARARGS,
     "locate(most, roots): note where blocks are allocated, at most so many sites; see located.h."},
    {"sites", hl_rows, METH_NOARGS, "What is alive by endpoint number and site, see located.h."},
    {"census", native_census, METH_VARARGS, "census(reachable, objects=None): walk the heap, or a list; see census.h."},
    {"census_in_child", native_census_in_child, METH_VARARGS,
     "census_in_child(reachable, deadline): walk it in a forked child; the result, and seconds the fork took."},
    {"holders", hr_holders, METH_VARARGS,
     "holders(wanted, endpoint, max_depth, max_items, ignore_types, ignore_modules): who holds them, see holders.h."},
    {"holders_in_child", hr_holders_in_child, METH_VARARGS,
     "holders_in_child(the same, deadline, watch): found out in a forked child; the result, and seconds the fork took."},
    {"statistics", native_statistics, METH_NOARGS, "What the tracker holds and costs."},
    {NULL, NULL, 0, NULL},
};

static int native_exec(PyObject *module)
{
#ifdef Py_GIL_DISABLED
    PyErr_SetString(PyExc_ImportError, "heap_middleware._native needs the global interpreter lock: its tables have no "
                                       "lock of their own; the windows backend serves on free-threaded builds");
    return -1;
#endif
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "heap_middleware._native works in the main interpreter only");
        return -1;
    }
    return hc_prepare() < 0 || hq_prepare(module) < 0 || hb_prepare(module) < 0 ? -1 : 0;
}

static PyModuleDef_Slot native_slots[] = {
    {Py_mod_exec, native_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "heap_middleware._native",
    .m_doc = "The accelerator of heap_middleware: which request allocated what is still alive.",
    .m_size = 0,
    .m_methods = native_methods,
    .m_slots = native_slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}
