// pfdiff-run --start --image --mask: sampling from a picture, with what `pfdiff table export --strength` wrote.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../program.h"
#include "options.h"
#include "pfdiff.h"

namespace pfdiff::run {

struct Start {
    pfd_program_t program;
    double picture = 0, noise = 1;   // sampling starts from picture x_0 + noise eps
    std::vector<double> known;       // [nfe][2], of a mask
    std::vector<float> x_0;          // [1 or seeds][elements]
    std::vector<std::uint8_t> mask;  // [1 or seeds][elements]; empty without one
    std::int64_t elements = 0;

    // The state and what the mask keeps, of `batch` samples from number `first` on. `state` holds the noise.
    struct Batch {
        std::vector<float> picture;
        std::vector<std::uint8_t> mask;
    };
    Batch begin(std::int64_t first, std::int64_t batch, float* state) const;
};

// Throws Error when the files do not fit the engine, each other or the seeds.
Start read_start(const pfd_engine_t* engine, const pfd_contract_view_t& contract, const Options& options);

}  // namespace pfdiff::run
