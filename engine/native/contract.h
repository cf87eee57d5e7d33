// What a network takes and predicts; the same fields as Python's engine/contract/contract.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "json.h"

namespace pfdiff {

struct Condition {
    std::string name, dtype;
    std::vector<std::int64_t> shape;
    std::int64_t elements = 1;
    std::optional<double> default_value;
    std::optional<std::int64_t> low, high;
};

struct Contract {
    std::string name, schedule, prediction, precision, input, time, output, time_dtype;
    std::vector<std::int64_t> shape;
    std::int64_t elements = 1;
    double time_scale = 1, sigma_data = 0.5;
    double data_range[2] = {-1, 1};
    int time_rank = 1;
    std::int64_t fixed_batch = 0;
    std::vector<Condition> conditions;
};

// Throws Error (PFD_ENGINE_FILE_ERROR) that names the field.
Contract read_contract(const json::Node& node);

// The product of sizes. Throws when a sample would have more than 2^40 elements: products of it stay in int64.
std::int64_t read_shape(const json::Node& node, std::vector<std::int64_t>& shape);

// A finite number, or an error that names the field.
double read_finite(const json::Node& node);

// A string among `choices`.
std::string read_choice(const json::Node& node, const std::vector<std::string>& choices);

}  // namespace pfdiff
