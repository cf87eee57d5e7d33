// float16 by the conversions of engine/native/halfs.h, which tests/native/test_parts.cpp compares with all values.
#pragma once

#include "halfs.h"

struct __half {
    std::uint16_t bits;
};
inline float __half2float(__half value) { return pfdiff::float_from_float16(value.bits); }
inline __half __float2half_rn(float value) { return {pfdiff::float16_from_float(value)}; }
