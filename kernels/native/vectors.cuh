// Elements of a state, of the network's output and of its input: float32 in registers, 16-byte words in memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace pfdiff {
namespace {

template <class Element>
struct Convert;
template <>
struct Convert<float> {
    static __device__ float up(float value) { return value; }
    static __device__ float down(float value) { return value; }
};
template <>
struct Convert<__half> {
    static __device__ float up(__half value) { return __half2float(value); }
    static __device__ __half down(float value) { return __float2half_rn(value); }
};
template <>
struct Convert<__nv_bfloat16> {
    static __device__ float up(__nv_bfloat16 value) { return __bfloat162float(value); }
    static __device__ __nv_bfloat16 down(float value) { return __float2bfloat16_rn(value); }
};

// `Width` elements from or to 16-byte words; one element when the addresses promise nothing.
template <int Width, class Element>
__device__ __forceinline__ void load(float (&into)[Width], const Element* from) {
    if constexpr (Width == 1) {
        into[0] = Convert<Element>::up(*from);
    } else {
        constexpr int in_word = 16 / sizeof(Element);
#pragma unroll
        for (int word = 0; word < Width / in_word; ++word) {
            const uint4 bits = reinterpret_cast<const uint4*>(from)[word];
            const auto* elements = reinterpret_cast<const Element*>(&bits);
#pragma unroll
            for (int i = 0; i < in_word; ++i) into[word * in_word + i] = Convert<Element>::up(elements[i]);
        }
    }
}

template <int Width, class Element>
__device__ __forceinline__ void store(Element* to, const float (&from)[Width]) {
    if constexpr (Width == 1) {
        *to = Convert<Element>::down(from[0]);
    } else {
        constexpr int in_word = 16 / sizeof(Element);
#pragma unroll
        for (int word = 0; word < Width / in_word; ++word) {
            uint4 bits;
            auto* elements = reinterpret_cast<Element*>(&bits);
#pragma unroll
            for (int i = 0; i < in_word; ++i) elements[i] = Convert<Element>::down(from[word * in_word + i]);
            reinterpret_cast<uint4*>(to)[word] = bits;
        }
    }
}

// A vector to `row` + first at once; where addresses promise nothing, one by one those of its elements below `count`.
template <bool Aligned, class Vector, class Element>
__device__ __forceinline__ void store_vector(Element* row, const Vector& vector, std::int64_t first,
                                             std::int64_t count) {
    Element* to = row + first;
    if constexpr (Aligned) {
        *reinterpret_cast<Vector*>(to) = vector;
    } else {
        constexpr int width = sizeof(Vector) / sizeof(Element);
        const auto* elements = reinterpret_cast<const Element*>(&vector);
#pragma unroll
        for (int e = 0; e < width; ++e)
            if (first + e < count) to[e] = elements[e];
    }
}

}  // namespace
}  // namespace pfdiff
