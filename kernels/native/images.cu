// float32 [C, H, W] to uint8 [H, W, C]: sixteen bytes of picture a thread, one store; the reads of neighbouring threads
// share their cache lines.
#include "element.h"
#include "grid.cuh"
#include "launch.h"
#include "vectors.cuh"

namespace pfdiff {
namespace {

constexpr int width = 16;

template <bool Aligned>
__global__ void __launch_bounds__(threads) images_kernel(std::uint8_t* pixels, const float* x, float low, float factor,
                                                         int channels, int area, std::int64_t blocks) {
    const std::int64_t image = blockIdx.x / blocks, count = std::int64_t{channels} * area;
    const std::int64_t first = ((blockIdx.x - image * blocks) * threads + threadIdx.x) * width;
    if (first >= count) return;
    const float* from = x + image * count;
    uint4 bits = make_uint4(0, 0, 0, 0);
    auto* bytes = reinterpret_cast<std::uint8_t*>(&bits);
    auto place = static_cast<int>(first / channels), channel = static_cast<int>(first % channels);
#pragma unroll
    for (int e = 0; e < width; ++e) {
        if (first + e < count) bytes[e] = pixel(from[std::int64_t{channel} * area + place], low, factor);
        if (++channel == channels) channel = 0, ++place;
    }
    store_vector<Aligned>(pixels + image * count, bits, first, count);
}

}  // namespace

cudaError_t launch_images(std::uint8_t* pixels, const float* x, float low, float factor, std::int64_t samples,
                          int channels, int area, cudaStream_t stream) {
    if (samples < 0 || channels < 1 || area < 0) return cudaErrorInvalidValue;
    const std::int64_t count = std::int64_t{channels} * area;
    if (samples == 0 || count == 0) return cudaSuccess;
    const std::int64_t blocks = (count + threads * width - 1) / (threads * width);
    if (blocks > 0x7FFFFFFF / samples) return cudaErrorInvalidValue;
    const auto grid = static_cast<unsigned>(samples * blocks);
    if (count % width == 0 && reinterpret_cast<std::uintptr_t>(pixels) % 16 == 0)
        return launch_grid(images_kernel<true>, grid, stream, pixels, x, low, factor, channels, area, blocks);
    return launch_grid(images_kernel<false>, grid, stream, pixels, x, low, factor, channels, area, blocks);
}

}  // namespace pfdiff
