// Writing float32 arrays in NumPy's .npy format, version 1.0.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pfdiff::run {

// C order, little-endian. Writes beside `path` and renames, so that `path` is whole or untouched. Throws Error.
void write_npy(const std::string& path, const std::vector<float>& values, const std::vector<std::int64_t>& shape);

}  // namespace pfdiff::run
