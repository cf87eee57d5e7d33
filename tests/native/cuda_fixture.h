// What the tests on a device share: random numbers and programs, arrays there and back, in any dtype.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/device.h"
#include "halfs.h"
#include "launch.h"
#include "pfdiff_cuda.h"
#include "program.h"

namespace pfdiff {

template <class Element>
void send(const cuda::Memory<Element>& to, const std::vector<Element>& from) {
    cuda::check(cudaMemcpy(to.get(), from.data(), from.size() * sizeof(Element), cudaMemcpyHostToDevice), "send");
}

template <class Element>
std::vector<Element> fetch(const Element* from, std::int64_t count) {
    std::vector<Element> into(static_cast<std::size_t>(count));
    cuda::check(cudaMemcpy(into.data(), from, into.size() * sizeof(Element), cudaMemcpyDeviceToHost), "fetch");
    return into;
}

inline std::vector<float> numbers(std::mt19937& random, std::int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(count));
    for (auto& value : values) value = normal(random);
    return values;
}

inline std::vector<unsigned char> in_dtype(const std::vector<float>& values, Dtype dtype) {
    std::vector<unsigned char> bytes;
    for (const float value : values) {
        const std::uint16_t half = dtype == Dtype::fp16 ? float16_from_float(value) : bfloat16_from_float(value);
        const auto* from = dtype == Dtype::fp32 ? reinterpret_cast<const unsigned char*>(&value)
                                                : reinterpret_cast<const unsigned char*>(&half);
        bytes.insert(bytes.end(), from, from + (dtype == Dtype::fp32 ? 4 : 2));
    }
    return bytes;
}

inline std::vector<float> from_dtype(const std::vector<unsigned char>& bytes, Dtype dtype) {
    std::vector<float> values(bytes.size() / (dtype == Dtype::fp32 ? 4 : 2));
    for (std::size_t i = 0; i < values.size(); ++i) {
        std::uint16_t half;
        if (dtype == Dtype::fp32) {
            std::memcpy(&values[i], bytes.data() + 4 * i, 4);
        } else {
            std::memcpy(&half, bytes.data() + 2 * i, 2);
            values[i] = dtype == Dtype::fp16 ? float_from_float16(half) : float_from_bfloat16(half);
        }
    }
    return values;
}

inline pfd_program_t random_program(std::mt19937& random, int buffers, bool clip) {
    pfd_program_t program;
    program.nfe = 3, program.buffers = buffers, program.prediction = "eps";
    if (clip) program.clip = 0.75;
    const auto fill = [&](std::vector<double>& into, int count) {
        const auto values = numbers(random, count);
        into.assign(values.begin(), values.end());
    };
    fill(program.init, buffers), fill(program.p, 3), fill(program.q, 3), fill(program.times, 3),
        fill(program.network_times, 3);
    fill(program.W, 3 * buffers * buffers), fill(program.w, 3 * buffers), fill(program.c_in, 3);
    for (std::size_t i = 0; i < program.W.size(); i += 3) program.W[i] = 0;
    return program;
}

// The program with noise after every evaluation, of even numbers of states but the last.
inline void add_draws(std::mt19937& random, pfd_program_t& program) {
    const auto values = numbers(random, 3 * program.buffers);
    program.V.assign(values.begin(), values.end());
    program.draws = {0, 1, 2};
    if (program.buffers % 2 != 0) return;
    std::fill(program.V.begin() + 2 * program.buffers, program.V.end(), 0.0);
    program.draws.pop_back();
}

}  // namespace pfdiff
