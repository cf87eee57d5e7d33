// pfd_noise: the same bits as Python's pfdiff.noise, see kernels/native/element.h.
#include "../../kernels/native/element.h"
#include "error.h"

extern "C" pfd_status_t pfd_noise(const uint64_t* seeds, int64_t batch, int64_t elements, float* out) {
    return pfdiff::guarded([&] {
        if (batch < 0 || elements < 0)
            throw pfdiff::input_error("noise of batch " + std::to_string(batch) + " and " + std::to_string(elements) +
                                      " elements; both must be at least 0");
        if (batch > 0 && elements > 0 && (seeds == nullptr || out == nullptr))
            throw pfdiff::input_error("noise without seeds or without an output; give both pointers");
        for (std::int64_t sample = 0; sample < batch; ++sample)
            for (std::int64_t element = 0; element < elements; ++element)
                out[sample * elements + element] = pfdiff::normal(seeds[sample], static_cast<std::uint64_t>(element));
    });
}
