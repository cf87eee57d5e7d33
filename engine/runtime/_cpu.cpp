// Noise, update and loop on a CPU, compiled: noise.py, update.py and cpu_loop.py in this folder are the same in NumPy.
// Optional: without a C++ compiler the package is installed all the same, and the slower NumPy code runs. Bound to
// Python's stable ABI.
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <cstring>

#include "../../kernels/native/element.h"

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

// Rows of float32 in memory.
struct Rows {
    float* operator[](Py_ssize_t i) const { return reinterpret_cast<float*>(data + i * stride); }

    char* data;
    Py_ssize_t stride;
};

// The memory of another object for as long as this lives; nothing where Python has an exception set, before or then.
struct Memory {
    Memory(PyObject* object, int flags) : held(!PyErr_Occurred() && PyObject_GetBuffer(object, &view, flags) == 0) {}
    ~Memory() {
        if (held) PyBuffer_Release(&view);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    // [rows, columns] of contiguous float32 rows.
    bool is_rows() const { return view.ndim == 2 && view.itemsize == 4 && (view.strides[1] == 4 || view.shape[1] < 2); }
    Rows rows() const { return {static_cast<char*>(view.buf), view.strides[0]}; }

    Py_buffer view;
    const bool held;
};

constexpr int rows_flags = PyBUF_STRIDES, whole_flags = PyBUF_C_CONTIGUOUS, writable = PyBUF_WRITABLE;

PyObject* refuse(const char* expected) {
    PyErr_SetString(PyExc_ValueError, expected);
    return nullptr;
}

// Elements first .. first + count of a draw, from draw 1 on with the bits that a GPU makes too.
PFD_CLONES void normals(std::uint64_t seed, std::uint32_t draw, std::uint64_t first, std::uint64_t count, float* out) {
    if (draw == 0)
        for (std::uint64_t i = 0; i < count; ++i) out[i] = pfdiff::normal(seed, first + i);
    else
        for (std::uint64_t i = 0; i < count; ++i) out[i] = pfdiff::normal32(seed, first + i, draw);
}

// fill(z, seeds, draw=0)
PyObject* fill(PyObject*, PyObject* arguments) {
    PyObject *z_object, *seeds_object;
    unsigned draw = 0;
    if (!PyArg_ParseTuple(arguments, "OO|I:fill", &z_object, &seeds_object, &draw)) return nullptr;
    const Memory z(z_object, whole_flags | writable), seeds(seeds_object, whole_flags);
    if (PyErr_Occurred()) return nullptr;
    const Py_ssize_t samples = seeds.view.len / 8;
    if (z.view.itemsize != 4 || seeds.view.itemsize != 8 || (samples ? z.view.len % (4 * samples) : z.view.len))
        return refuse("fill: expected z float32 [samples, elements] and seeds uint64 [samples]");
    const auto elements = static_cast<std::uint64_t>(samples ? z.view.len / 4 / samples : 0);
    auto* out = static_cast<float*>(z.view.buf);
    const auto* keys = static_cast<const std::uint64_t*>(seeds.view.buf);

    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t sample = 0; sample < samples; ++sample)
        normals(keys[sample], draw, 0, elements, out + sample * elements);
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

// target [rows, elements] = factors [rows, inputs] x source [inputs, elements]; whether source's last row is finite.
bool multiply(Rows factors, Rows source, Rows target, Py_ssize_t rows, Py_ssize_t inputs, Py_ssize_t elements) {
    std::int32_t largest = 0;
    for (Py_ssize_t start = 0; start < elements; start += block_elements) {
        const Py_ssize_t size = elements - start < block_elements ? elements - start : block_elements;
        largest = largest_exponent(source[inputs - 1] + start, size, largest);
        for (Py_ssize_t r = 0; r < rows; ++r) {
            float* sums = target[r] + start;
            scale(factors[r][0], source[0] + start, sums, size);
            for (Py_ssize_t c = 1; c < inputs; ++c) add(factors[r][c], source[c] + start, sums, size);
        }
    }
    return largest != all_ones;
}

// target [rows, ..] += factors [rows] x the noise of `seeds`, one a sample of `elements`; rows without a factor stay.
void add_noise(const float* factors, const std::uint64_t* seeds, std::uint32_t draw, Rows target, Py_ssize_t rows,
               Py_ssize_t samples, Py_ssize_t elements) {
    float xi[block_elements];
    for (Py_ssize_t sample = 0; sample < samples; ++sample)
        for (Py_ssize_t start = 0; start < elements; start += block_elements) {
            const Py_ssize_t size = elements - start < block_elements ? elements - start : block_elements;
            normals(seeds[sample], draw, static_cast<std::uint64_t>(start), static_cast<std::uint64_t>(size), xi);
            for (Py_ssize_t r = 0; r < rows; ++r)
                if (factors[r] != 0) add(factors[r], xi, target[r] + sample * elements + start, size);
        }
}

// Where the mask is 0, s_0 becomes a picture + b noise, with `noisy` false a picture.
PFD_CLONES void keep(float* __restrict s_0, const float* __restrict picture, const float* __restrict noise,
                     const std::uint8_t* __restrict mask, float a, float b, bool noisy, Py_ssize_t size) {
    for (Py_ssize_t i = 0; i < size; ++i) {
        float known = a * picture[i];
        if (noisy) known = known + b * noise[i];
        s_0[i] = mask[i] != 0 ? s_0[i] : known;
    }
}

// combine(update, source, target) -> bool
PyObject* combine(PyObject*, PyObject* arguments) {
    PyObject *update_object, *source_object, *target_object;
    if (!PyArg_ParseTuple(arguments, "OOO:combine", &update_object, &source_object, &target_object)) return nullptr;
    const Memory update(update_object, rows_flags), source(source_object, rows_flags);
    const Memory target(target_object, rows_flags | writable);
    if (PyErr_Occurred()) return nullptr;
    if (!update.is_rows() || !source.is_rows() || !target.is_rows() || source.view.shape[0] < 1 ||
        update.view.shape[0] != target.view.shape[0] || update.view.shape[1] != source.view.shape[0] ||
        source.view.shape[1] != target.view.shape[1])
        return refuse("combine: expected update [m, k], source [k, elements], target [m, elements], rows of float32");
    const Py_ssize_t inputs = source.view.shape[0], rows = target.view.shape[0], elements = source.view.shape[1];
    bool finite;
    Py_BEGIN_ALLOW_THREADS
    finite = multiply(update.rows(), source.rows(), target.rows(), rows, inputs, elements);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(finite);
}

// walk((evaluate, evaluate), (matrix, matrix), time, times, update, result, reached[, V, seeds, size[, known, picture,
//      noise, mask]]) -> bool: are all outputs finite
// Evaluation n of N: `time` is filled with times[n], evaluate[n % 2]() writes the last row of matrix[n % 2] [B + 1, E],
// and update[n] [B, B + 1] times that matrix goes to the first B rows of the other; of the last, state 0 to `result`.
// reached[0] is the evaluation that it came to. V [N, B]: factors of draw n + 1 of the samples' seeds [m], m <= size;
// size is that of the matrices' batch. V and seeds may be None. known [N, 2]: factors of picture and noise [E], which
// state 0 becomes where mask [E] is 0.
PyObject* walk(PyObject*, PyObject* arguments) {
    PyObject *evaluate[2], *matrix[2], *time_object, *times_object, *update_object, *result_object, *reached_object;
    PyObject *V_object = Py_None, *seeds_object = Py_None;
    PyObject *known_object = nullptr, *picture_object = nullptr, *noise_object = nullptr, *mask_object = nullptr;
    Py_ssize_t batch = 0;
    if (!PyArg_ParseTuple(arguments, "(OO)(OO)OOOOO|OOnOOOO:walk", &evaluate[0], &evaluate[1], &matrix[0], &matrix[1],
                          &time_object, &times_object, &update_object, &result_object, &reached_object,
                          &V_object, &seeds_object, &batch, &known_object, &picture_object, &noise_object,
                          &mask_object))
        return nullptr;
    const bool draws = V_object != Py_None && seeds_object != Py_None, masked = mask_object != nullptr;
    const Memory here(matrix[0], rows_flags | writable), there(matrix[1], rows_flags | writable);
    const Memory time(time_object, whole_flags | writable), times(times_object, whole_flags);
    const Memory update(update_object, whole_flags), result(result_object, whole_flags | writable);
    const Memory reached(reached_object, whole_flags | writable);
    const Memory V(draws ? V_object : update_object, whole_flags);
    const Memory seeds(draws ? seeds_object : update_object, whole_flags);
    const Memory known(masked ? known_object : update_object, whole_flags);
    const Memory picture(masked ? picture_object : update_object, whole_flags);
    const Memory noise(masked ? noise_object : update_object, whole_flags);
    const Memory mask(masked ? mask_object : update_object, whole_flags);
    if (PyErr_Occurred()) return nullptr;
    if (update.view.ndim != 3 || update.view.itemsize != 4 || !here.is_rows() || !there.is_rows())
        return refuse("walk: expected update [evaluations, states, inputs] and matrices [inputs, elements], float32");
    const Py_ssize_t evaluations = update.view.shape[0], states = update.view.shape[1], inputs = update.view.shape[2];
    const Py_ssize_t elements = here.view.shape[1], wanted = result.view.len / 4, width = times.view.itemsize;
    if (states < 1 || inputs != states + 1 || here.view.shape[0] != inputs || there.view.shape[0] != inputs ||
        there.view.shape[1] != elements)
        return refuse("walk: expected two matrices [states + 1, elements] of one shape");
    if (times.view.len != evaluations * width || time.view.itemsize != width || result.view.itemsize != 4 ||
        wanted > elements || reached.view.len != 8)
        return refuse("walk: expected times [evaluations], time of their dtype, a result that fits, reached int64 [1]");
    const Py_ssize_t samples = draws ? seeds.view.len / 8 : 0, sample_elements = draws && batch > 0 ? elements / batch : 0;
    if (draws && (V.view.itemsize != 4 || V.view.len != evaluations * states * 4 || seeds.view.itemsize != 8 ||
                  batch < 1 || samples > batch || elements % batch != 0))
        return refuse("walk: expected V float32 [evaluations, states] and at most `size` seeds uint64");
    if (masked && (known.view.itemsize != 4 || known.view.len != evaluations * 8 || mask.view.itemsize != 1 ||
                   mask.view.len != elements || picture.view.itemsize != 4 || picture.view.len != 4 * elements ||
                   noise.view.itemsize != 4 || noise.view.len != 4 * elements))
        return refuse("walk: expected known float32 [evaluations, 2], picture, noise and a mask of bytes [elements]");
    const Rows matrices[2] = {here.rows(), there.rows()};
    const Rows updates = {static_cast<char*>(update.view.buf), states * inputs * 4};
    bool finite = true;

    for (Py_ssize_t n = 0; n < evaluations && finite; ++n) {
        *static_cast<std::int64_t*>(reached.view.buf) = n;
        for (Py_ssize_t at = 0; at < time.view.len; at += width)
            std::memcpy(static_cast<char*>(time.view.buf) + at, static_cast<char*>(times.view.buf) + n * width, width);
        PyObject* output = PyObject_CallNoArgs(evaluate[n % 2]);
        if (!output) return nullptr;
        Py_DECREF(output);
        const bool last = n + 1 == evaluations;  // of which state 0 alone is asked for
        const Rows factors = {reinterpret_cast<char*>(updates[n]), inputs * 4}, source = matrices[n % 2];
        const Rows target = last ? Rows{static_cast<char*>(result.view.buf), 0} : matrices[1 - n % 2];
        Py_BEGIN_ALLOW_THREADS
        finite = multiply(factors, source, target, last ? 1 : states, inputs, last ? wanted : elements);
        const float* added = static_cast<const float*>(V.view.buf) + n * states;
        bool drawn = false;
        for (Py_ssize_t j = 0; draws && j < (last ? 1 : states); ++j) drawn |= added[j] != 0;
        const Py_ssize_t filled = last && wanted < samples * sample_elements ? wanted / sample_elements : samples;
        if (drawn)
            add_noise(added, static_cast<const std::uint64_t*>(seeds.view.buf), static_cast<std::uint32_t>(n + 1),
                      target, last ? 1 : states, filled, sample_elements);
        const float* factors_kept = static_cast<const float*>(known.view.buf) + 2 * n;
        if (masked)
            keep(target[0], static_cast<const float*>(picture.view.buf), static_cast<const float*>(noise.view.buf),
                 static_cast<const std::uint8_t*>(mask.view.buf), factors_kept[0], factors_kept[1], !last,
                 last ? wanted : elements);
        Py_END_ALLOW_THREADS
    }
    return PyBool_FromLong(finite);
}

PyMethodDef methods[] = {
    {"fill", fill, METH_VARARGS, nullptr},
    {"combine", combine, METH_VARARGS, nullptr},
    {"walk", walk, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&module); }
