// What a network is fed besides x: times and conditions, as every adapter prepares them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "pfdiff.h"

namespace pfdiff {

// An own copy of a contract: adapters may outlive the engine that they were made from.
struct Feed {
    struct Condition {
        std::string name, dtype;
        std::vector<std::int64_t> shape;
        std::int64_t elements = 1;
        bool has_low = false, has_high = false;
        std::int64_t low = 0, high = 0;
        std::vector<double> values;  // one, `elements` or batch * `elements`; empty: missing
    };

    explicit Feed(const pfd_engine_t* engine);

    // Throws Error (PFD_INPUT_ERROR) on an unknown name, a wrong count, or a value out of range or not of the dtype.
    void set(const std::string& name, const double* values, std::size_t count);
    // The condition's batch * elements values as bytes of its dtype. Throws when it is missing or of another batch.
    std::vector<std::uint8_t> bytes(const Condition& condition, std::int64_t batch) const;
    // network_time * time_scale as `count` float32 or int64. Throws when an integer is wanted and it is none.
    std::vector<std::uint8_t> times(double network_time, std::int64_t count) const;
    // [batch, shape...]
    static std::vector<std::int64_t> batched(std::int64_t batch, const std::vector<std::int64_t>& shape);

    std::string input, time, output, precision, time_dtype;
    std::vector<std::int64_t> shape;
    std::int64_t elements = 0, fixed_batch = 0;
    double time_scale = 1;
    int time_rank = 1;
    std::vector<Condition> conditions;
};

// `value` as the bytes of one element of `dtype`, appended.
void append_value(std::vector<std::uint8_t>& bytes, const std::string& dtype, double value);

}  // namespace pfdiff
