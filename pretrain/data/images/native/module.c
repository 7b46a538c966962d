/* The Python module _restarts: see restarts.py. The GIL is released where they take long. */
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>

#include "jpeg.h"

static PyObject *py_add_restarts(PyObject *self, PyObject *argument) {
    (void)self;
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(argument, &data, &size)) return NULL;
    jpeg image;
    uint8_t *out = NULL;
    size_t out_size = 0;
    int found = 0, is_same = 0;
    Py_BEGIN_ALLOW_THREADS
    if (read_header(&image, (const uint8_t *)data, (size_t)size)) {
        int interval = best_interval(&image);
        is_same = !interval || image.interval == interval;
        if (!is_same) found = add_restarts(&image, interval, &out, &out_size);
    }
    Py_END_ALLOW_THREADS
    if (is_same) return Py_NewRef(argument);
    if (found < 0) return PyErr_NoMemory();
    if (!found) Py_RETURN_NONE;
    PyObject *made = PyBytes_FromStringAndSize((char *)out, (Py_ssize_t)out_size);
    free(out);
    return made;
}

static PyObject *py_cut(PyObject *self, PyObject *arguments) {
    (void)self;
    PyObject *owner;
    box wanted;
    if (!PyArg_ParseTuple(arguments, "Siiii", &owner, &wanted.top, &wanted.left, &wanted.height, &wanted.width))
        return NULL;
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(owner, &data, &size)) return NULL;
    jpeg image;
    cut_plan plan;
    int found;
    Py_BEGIN_ALLOW_THREADS
    found = read_header(&image, (const uint8_t *)data, (size_t)size) && plan_cut(&image, wanted, &plan);
    Py_END_ALLOW_THREADS
    if (!found) Py_RETURN_NONE;
    PyObject *made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)plan.size);
    if (made) write_cut(&image, &plan, (uint8_t *)PyBytes_AsString(made));
    free(plan.starts);
    return made ? Py_BuildValue("Nii", made, plan.top, plan.left) : NULL;
}

static PyObject *py_plain_size(PyObject *self, PyObject *argument) {
    (void)self;
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(argument, &data, &size)) return NULL;
    jpeg image;
    if (!read_header(&image, (const uint8_t *)data, (size_t)size) || image.has_metadata) Py_RETURN_NONE;
    return Py_BuildValue("ii", image.height, image.width);
}

static PyMethodDef methods[] = {
    {"plain_size", py_plain_size, METH_O, "(height, width) of a sequential JPEG without metadata, or None."},
    {"add_restarts", py_add_restarts, METH_O, "JPEG with restart markers; None: not possible."},
    {"cut", py_cut, METH_VARARGS, "(JPEG of the intervals that a box touches, its top, its left), or None."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_restarts", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__restarts(void) { return PyModule_Create(&definition); }
