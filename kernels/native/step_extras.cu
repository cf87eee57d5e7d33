// The fused update with noise made in registers, with a mask, or both: the arithmetic of step.cu and then these two.
//
// A file of its own, so that the kernels of step.cu are what they were. A kernel serves all numbers of states up to its
// own, since the masks say which are touched; so there are 9 of them to compile and not 30. Noise costs no memory
// traffic. A mask costs a byte an element, four for the picture and, but in the last update, four for the noise that
// sampling started from.
#include "element.h"
#include "launch.h"
#include "step.cuh"
#include "vectors.cuh"

namespace pfdiff {
namespace {

constexpr int threads = 128;

// `Width` bytes of the mask; eight are one access.
template <int Width>
__device__ __forceinline__ void load_mask(std::uint8_t (&into)[Width], const std::uint8_t* from) {
    if constexpr (Width == 8) {
        const uint2 bits = *reinterpret_cast<const uint2*>(from);
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(&bits);
#pragma unroll
        for (int e = 0; e < Width; ++e) into[e] = bytes[e];
    } else {
#pragma unroll
        for (int e = 0; e < Width; ++e) into[e] = from[e];
    }
}

// Where the mask is 0: a picture + b eps.
template <int Width>
__device__ __forceinline__ void keep(float (&s_0)[Width], const StepExtras& extras, int row, std::int64_t first) {
    std::uint8_t anew[Width];
    float known[Width], eps[Width];
    load_mask<Width>(anew, extras.mask + first);
    load<Width>(known, extras.picture + first);
    if (extras.keeps == 2) load<Width>(eps, extras.eps + first);
    const float a = __ldg(extras.kept + 2 * std::int64_t{row}), b = __ldg(extras.kept + 2 * std::int64_t{row} + 1);
#pragma unroll
    for (int e = 0; e < Width; ++e) {
        known[e] = a * known[e];
        if (extras.keeps == 2) known[e] = known[e] + b * eps[e];
        s_0[e] = anew[e] != 0 ? s_0[e] : known[e];
    }
}

// Draw row + 1 of the seeds of elements first .. first + Width, which may be of two samples.
template <int Width>
__device__ __forceinline__ void draw(float (&xi)[Width], const StepExtras& extras, int row, std::int64_t first) {
    std::int64_t sample = first / extras.size, element = first - sample * extras.size;
    std::uint64_t seed = __ldg(reinterpret_cast<const unsigned long long*>(extras.seeds) + sample);
#pragma unroll
    for (int e = 0; e < Width; ++e) {
        xi[e] = normal32(seed, static_cast<std::uint64_t>(element), static_cast<std::uint32_t>(row + 1));
        if (++element == extras.size && e + 1 < Width) {
            element = 0;
            seed = __ldg(reinterpret_cast<const unsigned long long*>(extras.seeds) + ++sample);
        }
    }
}

// Buffers: at least those of the program.
template <int Buffers, int Width, class Out>
__global__ void __launch_bounds__(threads) step_extras_kernel(const Step step, const StepExtras extras) {
    const std::int64_t first = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * Width;
    if (first >= step.elements) return;
    const int buffers = step.buffers;
    const float* row = step.table + std::int64_t{step.row} * (4 + buffers + buffers * buffers);
    const float *w = row + 4, *W = w + buffers;

    float z[Width], xi[Width], before[Buffers][Width];
    read<Buffers, Width, Out>(z, before, step, first);
    if (extras.noise != 0) draw<Width>(xi, extras, step.row, first);
    if (step.clip) clip_x0<Buffers, Width>(z, before, step, row);

    // Combine and write. Each state is this thread's own, and all were read before.
#pragma unroll
    for (int j = 0; j < Buffers; ++j) {
        const bool stored = (step.writes >> j & 1) != 0, fed = j == 0 && step.y_in != nullptr;
        if (!stored && !fed) continue;
        float after[Width];
        combine<Buffers, Width>(after, z, before, step, w + j, W + j * buffers);
        if ((extras.noise >> j & 1) != 0) {
            const float V_j = __ldg(extras.factors + std::int64_t{step.row} * buffers + j);
#pragma unroll
            for (int e = 0; e < Width; ++e) after[e] = after[e] + V_j * xi[e];
        }
        if (j == 0 && extras.keeps != 0) keep<Width>(after, extras, step.row, first);
        if (stored) store<Width>(step.states + j * step.elements + first, after);
        if (fed) feed<Width>(after, step, row, first);
    }
}

template <int Buffers, int Width>
void launch(const Step& step, const StepExtras& extras, cudaStream_t stream) {
    const auto per_block = std::int64_t{threads} * Width;
    const auto blocks = static_cast<unsigned>((step.elements + per_block - 1) / per_block);
    if (step.out_dtype == Dtype::fp32)
        step_extras_kernel<Buffers, Width, float><<<blocks, threads, 0, stream>>>(step, extras);
    if (step.out_dtype == Dtype::fp16)
        step_extras_kernel<Buffers, Width, __half><<<blocks, threads, 0, stream>>>(step, extras);
    if (step.out_dtype == Dtype::bf16)
        step_extras_kernel<Buffers, Width, __nv_bfloat16><<<blocks, threads, 0, stream>>>(step, extras);
}

}  // namespace

cudaError_t launch_step(const Step& step, const StepExtras& extras, cudaStream_t stream) {
    if (extras.noise == 0 && extras.keeps == 0) return launch_step(step, stream);
    constexpr std::int64_t largest = std::int64_t{threads} * 0x7FFFFFFF;  // blocks of one-element threads in a grid
    if (step.elements < 0 || step.elements > largest || step.row < 0) return cudaErrorInvalidValue;
    if (extras.keeps < 0 || extras.keeps > 2 || (extras.noise != 0 && extras.size < 1)) return cudaErrorInvalidValue;
    if (step.elements == 0) return cudaSuccess;
    if (step.buffers < 1 || step.buffers > step_buffers) return cudaErrorInvalidValue;
    auto addresses = reinterpret_cast<std::uintptr_t>(step.states) | reinterpret_cast<std::uintptr_t>(step.out) |
                     reinterpret_cast<std::uintptr_t>(step.y_in);
    if (extras.keeps != 0)
        addresses |= reinterpret_cast<std::uintptr_t>(extras.picture) | reinterpret_cast<std::uintptr_t>(extras.eps) |
                     reinterpret_cast<std::uintptr_t>(extras.mask);
    if (addresses % 16 != 0 || step.elements % 8 != 0)
        launch<step_buffers, 1>(step, extras, stream);
    else if (step.buffers <= 2)
        launch<2, 8>(step, extras, stream);
    else
        launch<step_buffers, 8>(step, extras, stream);
    return cudaGetLastError();
}

}  // namespace pfdiff
