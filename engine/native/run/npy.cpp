#include "npy.h"

#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "error.h"

namespace pfdiff::run {

void write_npy(const std::string& path, const std::vector<float>& values, const std::vector<std::int64_t>& shape) {
    static_assert(std::endian::native == std::endian::little, "the values are written as they lie in memory");
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
    for (const auto size : shape) header += std::to_string(size) + ",";
    header += "), }";
    header.append(63 - (10 + header.size()) % 64, ' ');  // data begin at a multiple of 64
    header += '\n';
    const auto length = static_cast<std::uint16_t>(header.size());
    const auto partial = path + ".partial";
    std::ofstream file(partial, std::ios::binary);
    file.write("\x93NUMPY\x01\x00", 8);
    file.write(reinterpret_cast<const char*>(&length), 2);
    file.write(header.data(), length);
    file.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
    file.close();
    if (!file || std::rename(partial.c_str(), path.c_str()) != 0) {
        const std::string why = std::strerror(errno);
        std::remove(partial.c_str());
        throw input_error("cannot write " + quoted(path) + ": " + why);
    }
}

}  // namespace pfdiff::run
