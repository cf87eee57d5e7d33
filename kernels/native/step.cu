// The fused update, in place: every state that is read is read once, every state that is written is written once.
//
// A thread owns 8 neighbouring elements of every state (two 16-byte accesses of float32, one of a 2-byte `out`) and
// holds all reads before its first write. B, the dtype of `out` and the width are compiled in; masks and the network's
// dtype are branches that the whole grid takes alike.
#include "element.h"
#include "launch.h"
#include "step.cuh"
#include "vectors.cuh"

namespace pfdiff {
namespace {

constexpr int threads = 128;

template <int Buffers, int Width, class Out>
__global__ void __launch_bounds__(threads) step_kernel(const Step step) {
    const std::int64_t first = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * Width;
    if (first >= step.elements) return;  // a vector is whole: `elements` is a multiple of the width
    const float* row = step.table + std::int64_t{step.row} * (4 + Buffers + Buffers * Buffers);
    const float *w = row + 4, *W = w + Buffers;

    float z[Width], before[Buffers][Width];
    read<Buffers, Width, Out>(z, before, step, first);
    if (step.clip) clip_x0<Buffers, Width>(z, before, step, row);

    // Combine and write. Each state is this thread's own, and all were read before.
#pragma unroll
    for (int j = 0; j < Buffers; ++j) {
        const bool stored = (step.writes >> j & 1) != 0, fed = j == 0 && step.y_in != nullptr;
        if (!stored && !fed) continue;
        float after[Width];
        combine<Buffers, Width>(after, z, before, step, w + j, W + j * Buffers);
        if (stored) store<Width>(step.states + j * step.elements + first, after);
        if (fed) feed<Width>(after, step, row, first);
    }
}

template <int Buffers, int Width>
void launch(const Step& step, cudaStream_t stream) {
    const auto per_block = std::int64_t{threads} * Width;
    const auto blocks = static_cast<unsigned>((step.elements + per_block - 1) / per_block);
    if (step.out_dtype == Dtype::fp32) step_kernel<Buffers, Width, float><<<blocks, threads, 0, stream>>>(step);
    if (step.out_dtype == Dtype::fp16) step_kernel<Buffers, Width, __half><<<blocks, threads, 0, stream>>>(step);
    if (step.out_dtype == Dtype::bf16) step_kernel<Buffers, Width, __nv_bfloat16><<<blocks, threads, 0, stream>>>(step);
}

template <int Buffers>
void choose_width(const Step& step, cudaStream_t stream) {
    const auto addresses = reinterpret_cast<std::uintptr_t>(step.states) | reinterpret_cast<std::uintptr_t>(step.out) |
                           reinterpret_cast<std::uintptr_t>(step.y_in);
    if (addresses % 16 == 0 && step.elements % 8 == 0)
        launch<Buffers, 8>(step, stream);
    else
        launch<Buffers, 1>(step, stream);
}

}  // namespace

cudaError_t launch_step(const Step& step, cudaStream_t stream) {
    constexpr std::int64_t largest = std::int64_t{threads} * 0x7FFFFFFF;  // blocks of one-element threads in a grid
    if (step.elements < 0 || step.elements > largest || step.row < 0) return cudaErrorInvalidValue;
    if (step.elements == 0) return cudaSuccess;
    switch (step.buffers) {
        case 1:
            choose_width<1>(step, stream);
            break;
        case 2:
            choose_width<2>(step, stream);
            break;
        case 3:
            choose_width<3>(step, stream);
            break;
        case 4:
            choose_width<4>(step, stream);
            break;
        case 5:
            choose_width<5>(step, stream);
            break;
        default:
            return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

}  // namespace pfdiff
