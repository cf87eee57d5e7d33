// Normal noise by seed: four elements a thread, one 16-byte store where the addresses allow.
#include "element.h"
#include "grid.cuh"
#include "launch.h"
#include "vectors.cuh"

namespace pfdiff {
namespace {

constexpr int width = 4;

template <bool Aligned>
__global__ void __launch_bounds__(threads)
    noise_kernel(float* z, const std::uint64_t* seeds, std::int64_t elements, std::int64_t blocks) {
    const std::int64_t sample = blockIdx.x / blocks;
    const std::int64_t first = ((blockIdx.x - sample * blocks) * threads + threadIdx.x) * width;
    if (first >= elements) return;
    const std::uint64_t seed = __ldg(reinterpret_cast<const unsigned long long*>(seeds) + sample);
    float4 values;
    auto* value = reinterpret_cast<float*>(&values);
#pragma unroll
    for (int e = 0; e < width; ++e) value[e] = normal32(seed, static_cast<std::uint64_t>(first + e));
    store_vector<Aligned>(z + sample * elements, values, first, elements);
}

}  // namespace

cudaError_t launch_noise(float* z, const std::uint64_t* seeds, std::int64_t samples, std::int64_t elements,
                         cudaStream_t stream) {
    if (samples < 0 || elements < 0) return cudaErrorInvalidValue;
    if (samples == 0 || elements == 0) return cudaSuccess;
    const std::int64_t blocks = (elements + threads * width - 1) / (threads * width);
    if (blocks > 0x7FFFFFFF / samples) return cudaErrorInvalidValue;
    const auto grid = static_cast<unsigned>(samples * blocks);
    if (elements % width == 0 && reinterpret_cast<std::uintptr_t>(z) % 16 == 0)
        return launch_grid(noise_kernel<true>, grid, stream, z, seeds, elements, blocks);
    return launch_grid(noise_kernel<false>, grid, stream, z, seeds, elements, blocks);
}

}  // namespace pfdiff
