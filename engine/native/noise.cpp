// pfd_noise, pfd_step_noise: the same bits as Python's, see kernels/native/element.h and engine/philox.py.
#include "../../kernels/native/element.h"
#include "error.h"

namespace {

template <class Normal>
void fill(const uint64_t* seeds, int64_t batch, int64_t elements, float* out, Normal normal) {
    if (batch < 0 || elements < 0)
        throw pfdiff::input_error("noise of batch " + std::to_string(batch) + " and " + std::to_string(elements) +
                                  " elements; both must be at least 0");
    if (batch > 0 && elements > 0 && (seeds == nullptr || out == nullptr))
        throw pfdiff::input_error("noise without seeds or without an output; give both pointers");
    for (std::int64_t sample = 0; sample < batch; ++sample)
        for (std::int64_t element = 0; element < elements; ++element)
            out[sample * elements + element] = normal(seeds[sample], static_cast<std::uint64_t>(element));
}

}  // namespace

extern "C" pfd_status_t pfd_noise(const uint64_t* seeds, int64_t batch, int64_t elements, float* out) {
    return pfdiff::guarded([&] {
        fill(seeds, batch, elements, out,
             [](std::uint64_t seed, std::uint64_t element) { return pfdiff::normal(seed, element); });
    });
}

extern "C" pfd_status_t pfd_step_noise(const uint64_t* seeds, int64_t batch, int64_t elements, int32_t index,
                                       float* out) {
    return pfdiff::guarded([&] {
        if (index < 0)
            throw pfdiff::input_error("the noise after evaluation " + std::to_string(index) + "; they count from 0");
        const auto draw = static_cast<std::uint32_t>(index) + 1;
        fill(seeds, batch, elements, out,
             [draw](std::uint64_t seed, std::uint64_t element) { return pfdiff::normal32(seed, element, draw); });
    });
}
