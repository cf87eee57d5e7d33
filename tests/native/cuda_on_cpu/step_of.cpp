// The update of kernels/native in host memory, for Python's ctypes.
#include "launch.h"

extern "C" int pfdiff_test_step(float* states, void* y_in, const void* out, const float* table, std::int64_t elements,
                                int buffers, int row, unsigned reads, unsigned writes, int clip, int out_dtype,
                                int y_dtype, const std::uint64_t* seeds, const float* factors, std::int64_t size,
                                unsigned noise, const float* picture, const float* eps, const std::uint8_t* mask,
                                const float* kept, int keeps) {
    const pfdiff::Step step{states,
                            y_in,
                            out,
                            table,
                            elements,
                            buffers,
                            row,
                            reads,
                            writes,
                            clip != 0,
                            static_cast<pfdiff::Dtype>(out_dtype),
                            static_cast<pfdiff::Dtype>(y_dtype)};
    return pfdiff::launch_step(step, {seeds, factors, size, noise, picture, eps, mask, kept, keeps}, nullptr);
}
