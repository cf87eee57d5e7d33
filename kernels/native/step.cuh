// The fused update, in place: every state that is read is read once, every state that is written is written once.
//
// A thread owns `Width` neighbouring elements of every state: 8, two 16-byte accesses of float32 and one of a 2-byte
// `out`, or 1 where addresses promise nothing. It holds all reads before its first write. The dtype of `out`, the width
// and the most states are compiled in; masks and the network's dtype are branches that the whole grid takes alike.
// `Extra` is nothing, or StepExtras with what step_extras.cu adds.
#pragma once

#include "element.h"
#include "grid.cuh"
#include "launch.h"
#include "vectors.cuh"

namespace pfdiff {
namespace {

// The network's output and the states that are read.
template <int Buffers, int Width, class Out>
__device__ __forceinline__ void read(float (&z)[Width], float (&before)[Buffers][Width], const Step& step,
                                     std::int64_t first) {
    load<Width>(z, static_cast<const Out*>(step.out) + first);
#pragma unroll
    for (int i = 0; i < Buffers; ++i)
        if ((step.reads >> i & 1) != 0) load<Width>(before[i], step.states + i * step.elements + first);
}

// x_0 = p s_0 + q z, clamped, in the place of z.
template <int Buffers, int Width>
__device__ __forceinline__ void clip_x0(float (&z)[Width], const float (&before)[Buffers][Width], const Step& step,
                                        const float* row) {
    const float p = __ldg(row), q = __ldg(row + 1), bound = __ldg(row + 2);
#pragma unroll
    for (int e = 0; e < Width; ++e) {
        float x_0 = q * z[e];
        if ((step.reads & 1) != 0) x_0 = p * before[0][e] + x_0;
        z[e] = clamped(x_0, bound);
    }
}

// w_j z + sum_i W_ji s_i of one state j.
template <int Buffers, int Width>
__device__ __forceinline__ void combine(float (&after)[Width], const float (&z)[Width],
                                        const float (&before)[Buffers][Width], const Step& step, const float* w_j,
                                        const float* W_j) {
    const float factor = __ldg(w_j);
#pragma unroll
    for (int e = 0; e < Width; ++e) after[e] = factor * z[e];
#pragma unroll
    for (int i = 0; i < Buffers; ++i) {
        if ((step.reads >> i & 1) == 0) continue;
        const float W_ji = __ldg(W_j + i);
#pragma unroll
        for (int e = 0; e < Width; ++e) after[e] = after[e] + W_ji * before[i][e];
    }
}

// c_in s_0, in the network's dtype, where it reads next.
template <int Width>
__device__ __forceinline__ void feed(float (&after)[Width], const Step& step, const float* row, std::int64_t first) {
    const float c_in = __ldg(row + 3);
#pragma unroll
    for (int e = 0; e < Width; ++e) after[e] = c_in * after[e];
    if (step.y_dtype == Dtype::fp32) store<Width>(static_cast<float*>(step.y_in) + first, after);
    if (step.y_dtype == Dtype::fp16) store<Width>(static_cast<__half*>(step.y_in) + first, after);
    if (step.y_dtype == Dtype::bf16) store<Width>(static_cast<__nv_bfloat16*>(step.y_in) + first, after);
}

// Of step_extras.cu: draws xi; adds V_j xi to state j and puts what a mask keeps into state 0.
template <int Width>
__device__ __forceinline__ void draw(float (&xi)[Width], const StepExtras& extras, int row, std::int64_t first);
template <int Width>
__device__ __forceinline__ void add(float (&after)[Width], const float (&xi)[Width], const StepExtras& extras,
                                    const Step& step, int j, std::int64_t first);

// Buffers: the program's, where the width is 8 and nothing is added; elsewhere at least those.
template <int Buffers, int Width, class Out, class... Extra>
__global__ void __launch_bounds__(threads) step_kernel(const Step step, Extra... extra) {
    const std::int64_t first = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * Width;
    if (first >= step.elements) return;  // a vector is whole: `elements` is a multiple of the width
    const int buffers = Width == 8 && sizeof...(Extra) == 0 ? Buffers : step.buffers;
    const float* row = step.table + std::int64_t{step.row} * (4 + buffers + buffers * buffers);
    const float *w = row + 4, *W = w + buffers;

    float z[Width], before[Buffers][Width];
    [[maybe_unused]] float xi[Width];
    read<Buffers, Width, Out>(z, before, step, first);
    (draw<Width>(xi, extra, step.row, first), ...);
    if (step.clip) clip_x0<Buffers, Width>(z, before, step, row);

        // Combine and write. Each state is this thread's own, and all were read before. With one element a thread the
        // loop stays one: unrolled, it spills 4 bytes on sm_75.
#pragma unroll(Width == 1 ? 1 : Buffers)
    for (int j = 0; j < Buffers; ++j) {
        const bool stored = (step.writes >> j & 1) != 0, fed = j == 0 && step.y_in != nullptr;
        if (!stored && !fed) continue;
        float after[Width];
        combine<Buffers, Width>(after, z, before, step, w + j, W + j * buffers);
        (add<Width>(after, xi, extra, step, j, first), ...);
        if (stored) store<Width>(step.states + j * step.elements + first, after);
        if (fed) feed<Width>(after, step, row, first);
    }
}

template <int Buffers, int Width, class... Extra>
cudaError_t launch(const Step& step, cudaStream_t stream, const Extra&... extra) {
    const auto per_block = std::int64_t{threads} * Width;
    const auto blocks = static_cast<unsigned>((step.elements + per_block - 1) / per_block);
    switch (step.out_dtype) {
        case Dtype::fp32:
            return launch_grid(step_kernel<Buffers, Width, float, Extra...>, blocks, stream, step, extra...);
        case Dtype::fp16:
            return launch_grid(step_kernel<Buffers, Width, __half, Extra...>, blocks, stream, step, extra...);
        case Dtype::bf16:
            return launch_grid(step_kernel<Buffers, Width, __nv_bfloat16, Extra...>, blocks, stream, step, extra...);
    }
    return cudaErrorInvalidValue;
}

// Whether a grid has blocks enough, in threads of one element, and a kernel states enough.
inline bool fits(const Step& step) {
    constexpr std::int64_t largest = std::int64_t{threads} * 0x7FFFFFFF;
    return 0 <= step.elements && step.elements <= largest && step.row >= 0 && 1 <= step.buffers &&
           step.buffers <= step_buffers;
}

// Whether accesses of eight elements are allowed: all addresses are multiples of 16.
template <class... Pointers>
bool aligned(const Step& step, const Pointers*... more) {
    auto addresses = reinterpret_cast<std::uintptr_t>(step.states) | reinterpret_cast<std::uintptr_t>(step.out) |
                     reinterpret_cast<std::uintptr_t>(step.y_in);
    ((addresses |= reinterpret_cast<std::uintptr_t>(more)), ...);
    return addresses % 16 == 0 && step.elements % 8 == 0;
}

}  // namespace
}  // namespace pfdiff
