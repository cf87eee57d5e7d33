// Arrays in NumPy's .npy format: written in version 1.0, read in versions 1 to 3.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pfdiff::run {

// C order, little-endian. Writes beside `path` and renames, so that `path` is whole or untouched. Throws Error.
void write_npy(const std::string& path, const std::vector<float>& values, const std::vector<std::int64_t>& shape);
void write_npy(const std::string& path, const std::vector<std::uint8_t>& values,
               const std::vector<std::int64_t>& shape);

struct Array {
    std::vector<double> values;  // in C order
    std::string kind;            // as NumPy writes it, such as <f4 or |u1
    std::vector<std::int64_t> shape;
};

// Numbers of float32, float64, int32, int64, uint8 or bool, C order, little-endian. Throws Error (PFD_INPUT_ERROR).
Array read_npy(const std::string& path);

}  // namespace pfdiff::run
