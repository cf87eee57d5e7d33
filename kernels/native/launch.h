// The CUDA twins of the step, noise and image kernels: what they take and how they are launched.
//
// The arithmetic stands in element.h and is, bit for bit, that of the Triton kernels of this folder's parent: the same
// operations in the same order in float32, without fused multiply-adds. Launchers take device pointers, enqueue on the
// stream and return what the launch said; nothing is synchronised or allocated.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace pfdiff {

enum class Dtype : int { fp32, fp16, bf16 };

constexpr int step_buffers = 8;  // most states of a step kernel, and of a program

// s_j <- w_j z + sum_i W_ji s_i, with row `row` of the table: see kernels/step.py for formula and masks.
struct Step {
    float* states;       // [buffers][elements], in place
    void* y_in;          // [elements] of y_dtype, null unless the network has a buffer of its own
    const void* out;     // [elements] of out_dtype
    const float* table;  // [rows][4 + B + B^2]
    std::int64_t elements;
    int buffers;
    int row;
    unsigned reads, writes;
    bool clip;
    Dtype out_dtype, y_dtype;
};

// Noise that the update adds and what a mask keeps, in device memory; see kernels/step.py. Both may be absent.
struct StepExtras {
    const std::uint64_t* seeds;  // [samples]
    const float* factors;        // [rows][B]
    std::int64_t size;           // elements of one sample
    unsigned noise;              // the states that get noise; 0 for none
    const float* picture;        // [elements]
    const float* eps;            // [elements], not read when keeps is 1
    const std::uint8_t* mask;    // [elements]
    const float* kept;           // [rows][2]
    int keeps;                   // 0: no mask; 1: a picture; 2: a picture + b eps
};

// cudaErrorInvalidValue when buffers is not 1..8; 16-byte accesses when addresses and `elements` allow.
cudaError_t launch_step(const Step& step, cudaStream_t stream);

// The same with noise or a mask, in kernels of their own.
cudaError_t launch_step(const Step& step, const StepExtras& extras, cudaStream_t stream);

// z [samples][elements] float32 from seeds [samples] in device memory; the bits of kernels/noise.py.
cudaError_t launch_noise(float* z, const std::uint64_t* seeds, std::int64_t samples, std::int64_t elements,
                         cudaStream_t stream);

// pixels [samples][area][channels] uint8 from x [samples][channels][area] float32: level = (x - low) factor.
cudaError_t launch_images(std::uint8_t* pixels, const float* x, float low, float factor, std::int64_t samples,
                          int channels, int area, cudaStream_t stream);

}  // namespace pfdiff
