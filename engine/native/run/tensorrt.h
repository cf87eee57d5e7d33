// pfdiff-run on a GPU: a TensorRT plan within the captured loop.
#pragma once

#include <functional>
#include <vector>

#include "../pfdiff.h"
#include "options.h"

namespace pfdiff::run {

// Samples `batch` seeds at a time into host memory; a shorter list is filled up with its last seed.
std::function<void(const std::vector<std::uint64_t>& seeds, float* into)> tensorrt_sampler(
    const pfd_engine_t* engine, const pfd_program_t* program, const Options& options,
    const pfd_contract_view_t& contract, std::int64_t batch);

}  // namespace pfdiff::run
