// What makes actions of samples; the same fields as Python's engine/contract/policy.py, without those of the encoder.
#pragma once

#include <cstdint>
#include <vector>

#include "contract.h"
#include "json.h"

namespace pfdiff {

// actions = scale * sample + offset; `first` to `first + count` of the horizon are carried out.
struct Policy {
    std::vector<double> scale, offset;  // [actions]
    std::int64_t first = 0, count = 1;
    bool encoded = false;  // an observation encoder stands before the network
};

// Throws Error (PFD_ENGINE_FILE_ERROR) that names the field.
Policy read_policy(const json::Node& node, const Contract& contract);

}  // namespace pfdiff
