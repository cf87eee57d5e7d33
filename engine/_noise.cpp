// fill(z, seeds): the noise of engine/noise.py compiled, the same bits in a third of the time. Optional: without a C++
// compiler the package installs all the same and NumPy computes them. Bound to Python's stable ABI.
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../kernels/native/element.h"

namespace {

// Contiguous memory of another object for as long as this lives; `ok` is false when Python has an exception set.
struct Memory {
    Memory(PyObject* object, int flags) : ok(PyObject_GetBuffer(object, &view, flags) == 0) {}
    ~Memory() {
        if (ok) PyBuffer_Release(&view);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    Py_buffer view;
    const bool ok;
};

PyObject* fill(PyObject*, PyObject* arguments) {
    PyObject *z_object, *seeds_object;
    if (!PyArg_ParseTuple(arguments, "OO:fill", &z_object, &seeds_object)) return nullptr;
    const Memory z(z_object, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE);
    if (!z.ok) return nullptr;
    const Memory seeds(seeds_object, PyBUF_C_CONTIGUOUS);
    if (!seeds.ok) return nullptr;
    const Py_ssize_t samples = seeds.view.len / 8;
    if (z.view.itemsize != 4 || seeds.view.itemsize != 8 || (samples ? z.view.len % (4 * samples) : z.view.len)) {
        PyErr_SetString(PyExc_ValueError, "fill: expected z float32 [samples, elements] and seeds uint64 [samples]");
        return nullptr;
    }
    const auto elements = static_cast<std::uint64_t>(samples ? z.view.len / 4 / samples : 0);
    auto* out = static_cast<float*>(z.view.buf);
    const auto* keys = static_cast<const std::uint64_t*>(seeds.view.buf);

    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t sample = 0; sample < samples; ++sample)
        for (std::uint64_t element = 0; element < elements; ++element) *out++ = pfdiff::normal(keys[sample], element);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyMethodDef methods[] = {{"fill", fill, METH_VARARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_noise", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__noise() { return PyModule_Create(&module); }
