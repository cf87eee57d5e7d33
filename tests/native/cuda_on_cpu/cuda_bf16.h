// bfloat16 by the conversions of engine/native/halfs.h.
#pragma once

#include "halfs.h"

struct __nv_bfloat16 {
    std::uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) { return pfdiff::float_from_bfloat16(value.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return {pfdiff::bfloat16_from_float(value)}; }
