// What step.cu and step_extras.cu share: one thread's part of a fused update, `Width` neighbouring elements of B states.
#pragma once

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

}  // namespace
}  // namespace pfdiff
