// The fused update alone: a kernel for each number of states, and one for data that are not aligned.
#include <utility>

#include "element.h"
#include "step.cuh"

namespace pfdiff {
namespace {

template <std::size_t... Fewer>
cudaError_t launch_whole(const Step& step, cudaStream_t stream, std::index_sequence<Fewer...>) {
    using Launch = cudaError_t (*)(const Step&, cudaStream_t);
    constexpr Launch by_states[] = {launch<static_cast<int>(Fewer) + 1, 8>...};
    return by_states[step.buffers - 1](step, stream);
}

}  // namespace

cudaError_t launch_step(const Step& step, cudaStream_t stream) {
    if (!fits(step)) return cudaErrorInvalidValue;
    if (step.elements == 0) return cudaSuccess;
    if (!aligned(step)) return launch<step_buffers, 1>(step, stream);
    return launch_whole(step, stream, std::make_index_sequence<step_buffers>());
}

}  // namespace pfdiff
