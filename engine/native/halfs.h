// float16 and bfloat16 as bits, rounded to nearest even, for networks of these precisions on the CPU.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace pfdiff {

inline std::uint16_t bfloat16_from_float(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
    return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float float_from_bfloat16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

inline std::uint16_t float16_from_float(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    const std::uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return sign | 0x7E00;
    if (magnitude >= 0x477FF000) return sign | 0x7C00;  // 65520 and above round to infinity
    if (magnitude < 0x38800000) {                       // below 2^-14: a multiple of 2^-24, rounded by the FPU
        const float steps = std::bit_cast<float>(magnitude) * 16777216.0f;
        return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(steps)));
    }
    const std::uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
    return static_cast<std::uint16_t>(sign | (rounded - 0x38000000) >> 13);
}

inline float float_from_float16(std::uint16_t bits) {
    const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16, rest = bits & 0x7FFFu;
    if (rest >= 0x7C00) return std::bit_cast<float>(sign | 0x7F800000 | (rest & 0x3FF) << 13);
    const float magnitude =
        rest < 0x400 ? static_cast<float>(rest) * 0x1p-24f : std::bit_cast<float>((rest << 13) + 0x38000000);
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
}

// `count` floats as the bits of precision fp16 or bf16, and back.
inline std::vector<std::uint16_t> halves_from(const float* values, std::size_t count, const std::string& precision) {
    std::vector<std::uint16_t> bits(count);
    std::transform(values, values + count, bits.begin(),
                   precision == "bf16" ? bfloat16_from_float : float16_from_float);
    return bits;
}

inline void floats_from(const std::vector<std::uint16_t>& bits, float* values, const std::string& precision) {
    std::transform(bits.begin(), bits.end(), values, precision == "bf16" ? float_from_bfloat16 : float_from_float16);
}

}  // namespace pfdiff
