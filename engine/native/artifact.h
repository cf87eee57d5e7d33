// The engine directory: engine.json, read and checked, and the files that it lists, verified.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "contract.h"
#include "policy.h"
#include "program.h"

// Opaque in pfdiff.h.
struct pfd_engine_t final {
    pfdiff::Contract contract;
    std::vector<std::int64_t> batches;         // ascending
    std::map<int, pfd_program_t> programs;     // by NFE
    std::map<std::string, std::string> paths;  // verified files: name -> path
    std::optional<pfdiff::Policy> policy;
    std::optional<pfdiff::Decoder> decoder;
    std::optional<pfdiff::Decoder> image_encoder;  // the way back: its `shape` is a picture, its `image` a sample
};

namespace pfdiff {

// Throws Error (PFD_ENGINE_FILE_ERROR).
pfd_engine_t open_engine(const std::string& directory);

}  // namespace pfdiff
