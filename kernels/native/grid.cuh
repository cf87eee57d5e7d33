// How a kernel of this folder is launched: by a call in place of <<< >>>, so that a C++ compiler can read the sources
// too and tests can run them on a CPU (tests/native/cuda_on_cpu).
#pragma once

#include <cuda_runtime.h>

namespace pfdiff {
namespace {

constexpr int threads = 128;  // of a block

template <class Kernel, class... Arguments>
cudaError_t launch_grid(Kernel* kernel, unsigned blocks, cudaStream_t stream, const Arguments&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace
}  // namespace pfdiff
