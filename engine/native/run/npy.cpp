#include "npy.h"

#include <bit>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "error.h"

namespace pfdiff::run {
namespace {

constexpr std::uint64_t most_header_bytes = 1 << 16;
constexpr std::int64_t most_numbers = std::int64_t{1} << 31;

template <class Element>
std::vector<double> numbers(std::ifstream& file, std::size_t count) {
    std::vector<Element> read(count);
    file.read(reinterpret_cast<char*>(read.data()), static_cast<std::streamsize>(count * sizeof(Element)));
    return {read.begin(), read.end()};
}

// What stands behind `key` in a header such as {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }.
std::string after(const std::string& header, const std::string& key) {
    const auto at = header.find("'" + key + "':");
    if (at == std::string::npos) return {};
    const auto start = header.find_first_not_of(' ', at + key.size() + 3);
    return start == std::string::npos ? std::string() : header.substr(start);
}

// The sizes of "(2, 3), }"; false when that is none.
bool read_sizes(const std::string& text, std::vector<std::int64_t>& sizes) {
    const auto end = text.find(')');
    if (!text.starts_with("(") || end == std::string::npos) return false;
    for (std::size_t at = 1; at < end;) {
        const auto comma = std::min(text.find(',', at), end);
        const auto first = std::min(text.find_first_not_of(' ', at), comma);
        std::int64_t size = 0;
        const char* const last = text.data() + comma;
        const auto read = std::from_chars(text.data() + first, last, size);
        if (first == comma) break;  // after the last comma
        if (read.ec != std::errc{} || read.ptr != last || size < 0) return false;
        sizes.push_back(size);
        at = comma + 1;
    }
    return true;
}

}  // namespace

Array read_npy(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    char magic[8] = {};
    if (!file.read(magic, sizeof magic) || std::memcmp(magic, "\x93NUMPY", 6) != 0)
        throw input_error(quoted(path) + " cannot be read as .npy; write it with numpy.save");
    unsigned char bytes[4] = {};
    file.read(reinterpret_cast<char*>(bytes), magic[6] == 1 ? 2 : 4);
    const std::uint64_t length = bytes[0] | bytes[1] << 8 | bytes[2] << 16 | std::uint64_t{bytes[3]} << 24;
    std::string header(std::min(length, most_header_bytes), ' ');
    file.read(header.data(), static_cast<std::streamsize>(header.size()));
    Array array;
    const auto kind = after(header, "descr").substr(0, 5);
    if (!file || length > most_header_bytes || !after(header, "fortran_order").starts_with("False") ||
        !read_sizes(after(header, "shape"), array.shape))
        throw input_error(quoted(path) +
                          " is no array in C order; write it with numpy.save(numpy.ascontiguousarray(x))");
    std::int64_t count = 1;
    for (const auto size : array.shape) {
        if (size != 0 && count > most_numbers / size) throw input_error(quoted(path) + " holds more than 2^31 numbers");
        count *= size;
    }
    const auto total = static_cast<std::size_t>(count);
    if (kind == "'<f4'")
        array.values = numbers<float>(file, total);
    else if (kind == "'<f8'")
        array.values = numbers<double>(file, total);
    else if (kind == "'<i4'")
        array.values = numbers<std::int32_t>(file, total);
    else if (kind == "'<i8'")
        array.values = numbers<std::int64_t>(file, total);
    else if (kind == "'|u1'" || kind == "'|b1'")
        array.values = numbers<std::uint8_t>(file, total);
    else
        throw input_error(quoted(path) + " has dtype " + printable(kind, 8) +
                          ", expected float32, float64, int32, int64, uint8 or bool");
    if (!file) throw input_error(quoted(path) + " ends early; copy it again");
    array.kind = kind.substr(1, 3);
    return array;
}

namespace {

void write(const std::string& path, const char* kind, const void* values, std::size_t bytes,
           const std::vector<std::int64_t>& shape) {
    static_assert(std::endian::native == std::endian::little, "the values are written as they lie in memory");
    std::string header = "{'descr': '" + std::string(kind) + "', 'fortran_order': False, 'shape': (";
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
    file.write(static_cast<const char*>(values), static_cast<std::streamsize>(bytes));
    file.close();
    if (!file || std::rename(partial.c_str(), path.c_str()) != 0) {
        const std::string why = std::strerror(errno);
        std::remove(partial.c_str());
        throw input_error("cannot write " + quoted(path) + ": " + why);
    }
}

}  // namespace

void write_npy(const std::string& path, const std::vector<float>& values, const std::vector<std::int64_t>& shape) {
    write(path, "<f4", values.data(), values.size() * sizeof(float), shape);
}

void write_npy(const std::string& path, const std::vector<std::uint8_t>& values,
               const std::vector<std::int64_t>& shape) {
    write(path, "|u1", values.data(), values.size(), shape);
}

}  // namespace pfdiff::run
