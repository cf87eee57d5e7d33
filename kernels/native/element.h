// What one element of each kernel computes, for CPU and GPU alike: the C++ library, the CUDA kernels and the tests
// compile these very lines, so the CUDA arithmetic is tested on machines without a GPU.
//
// Every operation below is one that IEEE 754 rounds exactly (+ - * / sqrt, conversions), in a fixed order and without
// fused multiply-adds (-ffp-contract=off, -fmad=false). The same expressions in NumPy or torch therefore give the same
// bits, which library functions such as log and cos do not promise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PFD_BOTH __host__ __device__ __forceinline__
#else
#define PFD_BOTH inline
#endif

namespace pfdiff {

PFD_BOTH std::int32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_int(value);
#else
    std::int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

PFD_BOTH float bits_float(std::int32_t bits) {
#if defined(__CUDA_ARCH__)
    return __int_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

// Philox-4x32-10 (Salmon et al., SC 2011); only the first two of the four words are used.
struct Words {
    std::uint32_t r0, r1;
};

// `draw` 0 is the noise that sampling starts from, n + 1 that added after evaluation n.
PFD_BOTH Words philox(std::uint64_t seed, std::uint64_t element, std::uint32_t draw = 0) {
    std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
    std::uint32_t c0 = static_cast<std::uint32_t>(element), c1 = static_cast<std::uint32_t>(element >> 32);
    std::uint32_t c2 = draw, c3 = 0;
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * c0, product1 = std::uint64_t{0xCD9E8D57u} * c2;
        c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<std::uint32_t>(product1);
        c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<std::uint32_t>(product0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {c0, c1};
}

// ln u for u = f 2^k in (0, 1), f in [sqrt(1/2), sqrt 2): k ln 2 + 2 artanh((f - 1) / (f + 1)), |error| < 2e-16 |ln u|.
// u is a normal number, taken apart as by std::frexp, whose call would keep loops from being vectorised.
PFD_BOTH double exact_log(double u) {
    std::uint64_t bits;
    std::memcpy(&bits, &u, sizeof bits);
    int k = static_cast<int>(bits >> 52) - 1022;
    bits = (bits & 0x000FFFFFFFFFFFFFu) | 0x3FE0000000000000u;
    double f;
    std::memcpy(&f, &bits, sizeof f);
    const bool low = f < 0.70710678118654752440;
    f = low ? f * 2.0 : f;
    k = low ? k - 1 : k;
    const double s = (f - 1.0) / (f + 1.0);
    const double z = s * s;
    double series = 2.0 / 23.0;
    for (int odd = 21; odd >= 1; odd -= 2) series = series * z + 2.0 / odd;
    return static_cast<double>(k) * 0.69314718055994530942 + s * series;
}

// cos(2 pi u) for u in (0, 1): nearest quarter turn exactly, then Taylor on [-pi/4, pi/4], |error| < 2e-16.
PFD_BOTH double exact_cos_turns(double u) {
    const double turns = u * 4.0;
    const double quarter = std::floor(turns + 0.5);
    const double x = (turns - quarter) * 1.57079632679489661923;
    const double z = x * x;
    double cosine = 0.0, sine = 0.0, factorial = 355687428096000.0;  // 17!, exact
    for (int n = 17; n >= 1; n -= 2) {
        const double sign = (n & 2) ? -1.0 : 1.0;
        sine = sine * z + sign / factorial;
        factorial /= n;  // (n - 1)!
        cosine = cosine * z + sign / factorial;
        factorial /= n > 1 ? n - 1 : 1;
    }
    sine = sine * x;
    const int which = static_cast<int>(quarter) & 3;
    const double magnitude = (which & 1) ? sine : cosine;
    return which == 1 || which == 2 ? -magnitude : magnitude;
}

// One standard normal number by Box and Muller, in float64 and rounded to float32 once.
PFD_BOTH float normal(std::uint64_t seed, std::uint64_t element, std::uint32_t draw = 0) {
    const Words words = philox(seed, element, draw);
    const double u1 = (words.r0 + 0.5) * 2.3283064365386962890625e-10;
    const double u2 = (words.r1 + 0.5) * 2.3283064365386962890625e-10;
    return static_cast<float>(std::sqrt(-2.0 * exact_log(u1)) * exact_cos_turns(u2));
}

// The same number in float32 alone, for GPUs, whose float64 is slow: bit for bit kernels/noise.py, a few units in the
// last place from `normal`. Logarithm, sine and cosine are the polynomials of Cephes' logf, sinf and cosf (S. Moshier).
PFD_BOTH float normal32(std::uint64_t seed, std::uint64_t element, std::uint32_t draw = 0) {
    const Words words = philox(seed, element, draw);

    // ln u_1 = k ln 2 + ln(1 + f), f in [sqrt(1/2) - 1, sqrt(2) - 1]; near u_1 = 1 from the exact integer 1 - u_1.
    const bool upper = words.r0 >= 0x80000000u;
    const float x = static_cast<float>(upper ? ~words.r0 : words.r0) + 0.5f;
    const std::int32_t bits = float_bits(x);
    const std::int32_t exponent = (bits - 0x3F3504F3) >> 23;
    const float mantissa = bits_float(bits - (exponent << 23));
    const float rest = x * 2.3283064365386963e-10f;
    const bool halved = rest > 0.29289321881345254f;
    const float f = upper ? (halved ? 1.0f - 2.0f * rest : -rest) : mantissa - 1.0f;
    const float k = static_cast<float>(upper ? (halved ? -1 : 0) : exponent - 32);
    float y = 7.0376836292e-2f * f - 1.1514610310e-1f;
    y = y * f + 1.1676998740e-1f;
    y = y * f - 1.2420140846e-1f;
    y = y * f + 1.4249322787e-1f;
    y = y * f - 1.6668057665e-1f;
    y = y * f + 2.0000714765e-1f;
    y = y * f - 2.4999993993e-1f;
    y = y * f + 3.3333331174e-1f;
    const float square = f * f;
    y = y * f * square - 2.12194440e-4f * k - 0.5f * square;
    const float radius = std::sqrt(-2.0f * (0.693359375f * k + (f + y)));

    // cos(2 pi u_2): the nearest quarter turn, then |angle| <= pi / 4.
    const std::uint32_t quarter = (words.r1 + 0x20000000u) >> 30;
    const auto remainder = static_cast<std::int32_t>(words.r1 - (quarter << 30));
    const float angle = (static_cast<float>(remainder) + 0.5f) * 1.4629180792671596e-9f;
    const float a = angle * angle;
    const float sine = ((-1.9515295891e-4f * a + 8.3321608736e-3f) * a - 1.6666654611e-1f) * a * angle + angle;
    const float cosine =
        ((2.443315711809948e-5f * a - 1.388731625493765e-3f) * a + 4.166664568298827e-2f) * a * a - 0.5f * a + 1.0f;
    const float wave = (quarter & 1) == 1 ? sine : cosine;
    const float sign = ((quarter + 1) & 2) == 2 ? -1.0f : 1.0f;  // quarters 1 and 2: -sin, -cos
    return radius * wave * sign;
}

// What the update combines: the network's output, or the x0 it means, clipped. A NaN stays a NaN.
PFD_BOTH float clamped(float value, float bound) { return value < -bound ? -bound : value > bound ? bound : value; }

// One colour of a picture: `low`..`high` to 0..255, rounded half to even; a NaN becomes 0.
PFD_BOTH std::uint8_t pixel(float value, float low, float scale) {
    const float level = std::rint((value - low) * scale);
    return level >= 255.0f ? 255 : level > 0.0f ? static_cast<std::uint8_t>(level) : 0;
}

}  // namespace pfdiff
