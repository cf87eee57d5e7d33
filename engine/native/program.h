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
    std::vector<double> times, network_times, c_in, init, p, q, W, w, V, table;
    std::vector<double> U;   // [N][B] of the output as it is, beside the clipped x0; empty for most samplers
    std::vector<int> draws;  // the evaluations after which noise is drawn and added
};

namespace pfdiff {

constexpr int most_buffers = 8;  // solvers need 1 to 6
constexpr int most_evaluations = 4096;

// Throws Error (PFD_ENGINE_FILE_ERROR) that names the field.
pfd_program_t read_program(const json::Node& node);

// The device form of a program, row by row as in kernels/table.py: one row for each evaluation in float32,
// [p, q, clip, c_in_next, w_0 .., W_00, W_01, ..], c_in_next 1 after the last and clip 0 without clipping; and a last
// row, number N, that starts a sample: w = init, W = 0, with the noise in place of the network's output.
std::vector<float> coefficient_row(const pfd_program_t& program, int index);

// V_n [B] of the noise drawn after evaluation `index`; zeros in the row that starts a sample.
std::vector<float> noise_row(const pfd_program_t& program, int index);

// What a masked update puts where the mask is 0: a x_0, or a x_0 + b noise.
enum class Keeps { nothing, picture, picture_and_noise };

// What an update really has to touch; bit j stands for state s_j.
struct Access {
    unsigned reads = 0;
    unsigned writes = 0;
    bool clip = false;
    bool separate = false;  // also writes c_in_next s_0 into a buffer of the network's own
    unsigned noise = 0;     // gets noise
    Keeps keeps = Keeps::nothing;
};

// The N + 1 accesses that belong to the rows. A state is written when its row is no identity and somebody reads it
// later; read when a row that is needed has a coefficient for it. `separate`: the network has its own input buffer.
// `masked`: part of s_0 is replaced after every update, so that it is another one each time.
std::vector<Access> accesses(const pfd_program_t& program, bool separate, bool masked = false);

}  // namespace pfdiff
