// The fused update with noise made in registers, with a mask, or both: the update of step.cuh and then these two.
//
// A file of its own, so that the kernels of step.cu are not slower for it. A kernel serves all numbers of states up to
// its own, since the masks say which are touched; so there are 12 of them to compile and not 48. Noise costs no memory
// traffic. A mask costs a byte an element, four for the picture and, but in the last update, four for the noise that
// sampling started from.
#include "element.h"
#include "step.cuh"

namespace pfdiff {
namespace {

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
    if (extras.noise == 0) return;
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

template <int Width>
__device__ __forceinline__ void add(float (&after)[Width], const float (&xi)[Width], const StepExtras& extras,
                                    const Step& step, int j, std::int64_t first) {
    if ((extras.noise >> j & 1) != 0) {
        const float V_j = __ldg(extras.factors + std::int64_t{step.row} * step.buffers + j);
#pragma unroll
        for (int e = 0; e < Width; ++e) after[e] = after[e] + V_j * xi[e];
    }
    if (j == 0 && extras.keeps != 0) keep<Width>(after, extras, step.row, first);
}

}  // namespace

cudaError_t launch_step(const Step& step, const StepExtras& extras, cudaStream_t stream) {
    if (extras.noise == 0 && extras.keeps == 0) return launch_step(step, stream);
    if (!fits(step)) return cudaErrorInvalidValue;
    if (extras.keeps < 0 || extras.keeps > 2 || (extras.noise != 0 && extras.size < 1)) return cudaErrorInvalidValue;
    if (step.elements == 0) return cudaSuccess;
    const bool whole = extras.keeps == 0 ? aligned(step) : aligned(step, extras.picture, extras.eps, extras.mask);
    if (!whole) return launch<step_buffers, 1>(step, stream, extras);
    if (step.buffers <= 2) return launch<2, 8>(step, stream, extras);
    if (step.buffers <= 5) return launch<5, 8>(step, stream, extras);
    return launch<step_buffers, 8>(step, stream, extras);
}

}  // namespace pfdiff
