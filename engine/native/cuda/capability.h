// Which compiled kernels run on a device: binary compatibility of cubins (CUDA C++ Programming Guide, "Binary
// Compatibility"), as kernels/ahead.py states it. No CUDA header, so that the rule is tested without a toolkit.
#pragma once

#include <set>

namespace pfdiff::cuda {

// A cubin runs on its own compute capability and, within 8.x, on later desktop parts: sm_80 on 8.6 and 8.9, sm_86 on
// 8.9. Not on 8.7, which is Tegra. From 9.0 on Triton compiles for one architecture alone: sm_90a, sm_100a, sm_120a.
constexpr bool serves(int compiled, int device) {
    const bool desktop_8 = device == 80 || device == 86 || device == 89;
    return compiled == device || (desktop_8 && compiled / 10 == 8 && compiled <= device && compiled != 87);
}

// The latest of the compiled capabilities that serves the device, 0 for none.
inline int serving(const std::set<int>& compiled, int device) {
    int best = 0;
    for (const int capability : compiled)
        if (serves(capability, device)) best = capability;
    return best;
}

}  // namespace pfdiff::cuda
