// What a call on a CPU computes beside the network, compiled: the noise of engine/noise.py and the update of
// engine/update.py. Optional: without a C++ compiler the package installs all the same, and NumPy computes them.
// Bound to Python's stable ABI.
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../kernels/native/element.h"

// Compiled for several instruction sets, of which the processor's best is taken. The bits are the same: no operation is
// fused or reordered.
#if defined(__GNUC__) && defined(__x86_64__) && defined(__linux__)
#define PFD_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define PFD_CLONES
#endif

namespace {

constexpr std::int32_t all_ones = 0x7F800000;  // the exponent's bits
constexpr Py_ssize_t block_elements = 1024;  // operands of 4 KiB stay in the first-level cache

// The memory of another object for as long as this lives; `ok` is false when Python has an exception set.
struct Memory {
    Memory(PyObject* object, int flags) : ok(PyObject_GetBuffer(object, &view, flags) == 0) {}
    ~Memory() {
        if (ok) PyBuffer_Release(&view);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    // [rows, columns] of contiguous float32 rows.
    bool is_rows() const { return view.ndim == 2 && view.itemsize == 4 && (view.strides[1] == 4 || view.shape[1] < 2); }
    float* row(Py_ssize_t i) const { return reinterpret_cast<float*>(static_cast<char*>(view.buf) + i * view.strides[0]); }

    Py_buffer view;
    const bool ok;
};

PyObject* refuse(const char* expected) {
    PyErr_SetString(PyExc_ValueError, expected);
    return nullptr;
}

// fill(z, seeds)
PyObject* fill(PyObject*, PyObject* arguments) {
    PyObject *z_object, *seeds_object;
    if (!PyArg_ParseTuple(arguments, "OO:fill", &z_object, &seeds_object)) return nullptr;
    const Memory z(z_object, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE);
    if (!z.ok) return nullptr;
    const Memory seeds(seeds_object, PyBUF_C_CONTIGUOUS);
    if (!seeds.ok) return nullptr;
    const Py_ssize_t samples = seeds.view.len / 8;
    if (z.view.itemsize != 4 || seeds.view.itemsize != 8 || (samples ? z.view.len % (4 * samples) : z.view.len))
        return refuse("fill: expected z float32 [samples, elements] and seeds uint64 [samples]");
    const auto elements = static_cast<std::uint64_t>(samples ? z.view.len / 4 / samples : 0);
    auto* out = static_cast<float*>(z.view.buf);
    const auto* keys = static_cast<const std::uint64_t*>(seeds.view.buf);

    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t sample = 0; sample < samples; ++sample)
        for (std::uint64_t element = 0; element < elements; ++element) *out++ = pfdiff::normal(keys[sample], element);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

// The largest exponent, all ones for NaN and infinity: as integers, which vectorise where sums must not be reordered.
PFD_CLONES std::int32_t largest_exponent(const float* values, Py_ssize_t size, std::int32_t largest) {
    for (Py_ssize_t i = 0; i < size; ++i) {
        const std::int32_t exponent = pfdiff::float_bits(values[i]) & all_ones;
        largest = exponent > largest ? exponent : largest;
    }
    return largest;
}

PFD_CLONES void scale(float factor, const float* __restrict term, float* __restrict sums, Py_ssize_t size) {
    for (Py_ssize_t i = 0; i < size; ++i) sums[i] = factor * term[i];
}

PFD_CLONES void add(float factor, const float* __restrict term, float* __restrict sums, Py_ssize_t size) {
    for (Py_ssize_t i = 0; i < size; ++i) sums[i] += factor * term[i];
}

// combine(update, source, target) -> bool
PyObject* combine(PyObject*, PyObject* arguments) {
    PyObject *update_object, *source_object, *target_object;
    if (!PyArg_ParseTuple(arguments, "OOO:combine", &update_object, &source_object, &target_object)) return nullptr;
    const Memory update(update_object, PyBUF_STRIDES);
    if (!update.ok) return nullptr;
    const Memory source(source_object, PyBUF_STRIDES);
    if (!source.ok) return nullptr;
    const Memory target(target_object, PyBUF_STRIDES | PyBUF_WRITABLE);
    if (!target.ok) return nullptr;
    if (!update.is_rows() || !source.is_rows() || !target.is_rows() || source.view.shape[0] < 1 ||
        update.view.shape[0] != target.view.shape[0] || update.view.shape[1] != source.view.shape[0] ||
        source.view.shape[1] != target.view.shape[1])
        return refuse("combine: expected update [m, k], source [k, elements] and target [m, elements], rows of float32");
    const Py_ssize_t inputs = source.view.shape[0], rows = target.view.shape[0], elements = source.view.shape[1];
    std::int32_t largest = 0;

    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t start = 0; start < elements; start += block_elements) {
        const Py_ssize_t size = elements - start < block_elements ? elements - start : block_elements;
        largest = largest_exponent(source.row(inputs - 1) + start, size, largest);
        for (Py_ssize_t r = 0; r < rows; ++r) {
            float* sums = target.row(r) + start;
            scale(update.row(r)[0], source.row(0) + start, sums, size);
            for (Py_ssize_t c = 1; c < inputs; ++c) add(update.row(r)[c], source.row(c) + start, sums, size);
        }
    }
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(largest != all_ones);
}

PyMethodDef methods[] = {
    {"fill", fill, METH_VARARGS, nullptr}, {"combine", combine, METH_VARARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_host", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__host() { return PyModule_Create(&module); }
