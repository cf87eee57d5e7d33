// A compiled sampler: float64 coefficients as read, float32 rows as executed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "json.h"

// Opaque in pfdiff.h.
struct pfd_program_t final {
    std::string solver, schedule, basis, prediction;
    int nfe = 0;
    int buffers = 0;
    std::optional<double> clip;
    double sigma_data = 0.5;
    std::vector<double> times, network_times, c_in, init, p, q, W, w, table;
};

namespace pfdiff {

constexpr int most_buffers = 8;  // solvers need 1 to 5
constexpr int most_evaluations = 4096;

// Throws Error (PFD_ENGINE_FILE_ERROR) that names the field.
pfd_program_t read_program(const json::Node& node);

// The coefficients of one update as every runtime executes them, in float32:
// [p, q, clip, c_in_next, w_0 .., W_00, W_01, ..]; c_in_next is 1 after the last evaluation, clip 0 without clipping.
std::vector<float> coefficient_row(const pfd_program_t& program, int index);

// Whether update `index` reads state i in a column of W, or changes state j: what decides the traffic.
bool reads_state(const pfd_program_t& program, int index, int state);
bool writes_state(const pfd_program_t& program, int index, int state);

}  // namespace pfdiff
