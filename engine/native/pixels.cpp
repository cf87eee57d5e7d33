// pfd_pixels: float images become bytes, as the kernel `images` does it.
#include <cmath>

#include "error.h"
#include "pfdiff.h"

extern "C" pfd_status_t pfd_pixels(const float* values, int64_t batch, int64_t channels, int64_t area, double low,
                                   double high, uint8_t* pixels) {
    return pfdiff::guarded([&] {
        constexpr std::int64_t largest = std::int64_t{1} << 40;
        if (values == nullptr || pixels == nullptr)
            throw pfdiff::input_error("pixels without values or a place for them; give both");
        if (batch < 0 || channels < 1 || area < 1 || channels > largest / area || batch > largest / (channels * area) ||
            !(low < high) || !std::isfinite(high - low))
            throw pfdiff::input_error("pixels of " + std::to_string(batch) + " x " + std::to_string(channels) + " x " +
                                      std::to_string(area) + " values in " + pfdiff::decimal(low) + ".." +
                                      pfdiff::decimal(high) + ", expected sizes of at least 1 and a range");
        const auto from = static_cast<float>(low), factor = static_cast<float>(255.0 / (high - low));
        for (std::int64_t b = 0; b < batch; ++b)
            for (std::int64_t c = 0; c < channels; ++c) {
                const float* const plane = values + (b * channels + c) * area;
                std::uint8_t* const into = pixels + b * area * channels + c;
                for (std::int64_t i = 0; i < area; ++i) {
                    const float level = (plane[i] - from) * factor;
                    const float inside = level > 0 ? (level < 255.0f ? level : 255.0f) : 0.0f;  // NaN becomes 0
                    into[i * channels] = static_cast<std::uint8_t>(std::nearbyint(inside));
                }
            }
    });
}
