// The fused update alone: a kernel for each number of states, and one for data that are not aligned.
#include "element.h"
#include "step.cuh"

namespace pfdiff {

cudaError_t launch_step(const Step& step, cudaStream_t stream) {
    if (!fits(step)) return cudaErrorInvalidValue;
    if (step.elements == 0) return cudaSuccess;
    if (!aligned(step)) return launch<step_buffers, 1>(step, stream);
    switch (step.buffers) {
        case 1:
            return launch<1, 8>(step, stream);
        case 2:
            return launch<2, 8>(step, stream);
        case 3:
            return launch<3, 8>(step, stream);
        case 4:
            return launch<4, 8>(step, stream);
        case 5:
            return launch<5, 8>(step, stream);
        case 6:
            return launch<6, 8>(step, stream);
        case 7:
            return launch<7, 8>(step, stream);
        default:
            return launch<step_buffers, 8>(step, stream);
    }
}

}  // namespace pfdiff
