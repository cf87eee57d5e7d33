// The command line of pfdiff-run.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace pfdiff::run {

struct Options {
    std::string engine, output, plan, start, image, mask, network = "auto";
    int nfe = 0;  // 0: the engine's only program
    std::vector<std::uint64_t> seeds{0};
    std::int64_t batch = 0;  // 0: the largest that the engine was built for
    int threads = 0;
    std::map<std::string, std::vector<double>> conditions;  // one number, or those of an array
    bool pixels = false;
    bool help = false;
};

// Throws Error (PFD_INPUT_ERROR) with one line on the first word that does not fit.
Options parse_options(int count, const char* const* words);

// "0-3,7" -> 0 1 2 3 7. At most 2^20 seeds.
std::vector<std::uint64_t> parse_seeds(const std::string& text);

extern const char* const usage;

}  // namespace pfdiff::run
