// The CPU update beside a plain copy on the same buffers: prints one JSON line.
//
//     pfdiff_bench_update PROGRAM.json [MiB per state] [threads] [rounds] [least ratio]
//
// Copy and update alternate and the best of each counts, so that another process on the machine disturbs the ratio
// little. Bytes are what the operation must move: copy 2 arrays, update arrays() arrays. With a least ratio the exit
// status is 1 below it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "json.h"
#include "update.h"

namespace {

double seconds_of(const auto& body) {
    const auto start = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int count, char** words) {
    if (count < 2)
        return std::fprintf(stderr, "usage: %s PROGRAM.json [MiB] [threads] [rounds] [least ratio]\n", words[0]), 2;
    const auto word = [&](int index, double otherwise) { return index < count ? std::atof(words[index]) : otherwise; };
    std::ifstream file(words[1], std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const auto document = pfdiff::json::parse(text, words[1]);
    const auto program = pfdiff::read_program({document, "program:"});
    const auto elements = static_cast<std::int64_t>(word(2, 64) * (1 << 18));
    const int threads = static_cast<int>(word(3, 2)), rounds = static_cast<int>(word(4, 15));

    pfdiff::Workers workers(threads);
    const int middle = std::min(1, program.nfe - 1);  // an ordinary update: neither the first nor the last
    const pfdiff::Update update(program, middle, pfdiff::accesses(program, false)[static_cast<std::size_t>(middle)]);
    // 272 floats apart modulo a page, as the sampler's own workspace.
    const auto stride = elements + 272;
    const auto memory = std::make_unique<float[]>(static_cast<std::size_t>(stride * (program.buffers + 1)));
    std::vector<float*> states;
    for (int j = 0; j <= program.buffers; ++j) states.push_back(memory.get() + stride * j);
    for (std::int64_t i = 0; i < stride * (program.buffers + 1); ++i)
        memory[static_cast<std::size_t>(i)] = 1e-3f * static_cast<float>(i % 1000);
    float *from = states.back(), *to = states.front();

    double copy = 1e9, step = 1e9;
    for (int round = 0; round < rounds; ++round) {
        copy = std::min(copy, seconds_of([&] {
                            workers.run(elements, [&](std::int64_t begin, std::int64_t end) {
                                std::memcpy(to + begin, from + begin,
                                            static_cast<std::size_t>(end - begin) * sizeof(float));
                            });
                        }));
        step =
            std::min(step, seconds_of([&] { update.run(states.data(), states.back(), nullptr, elements, workers); }));
    }
    const double array_bytes = static_cast<double>(elements) * sizeof(float);
    const double copy_rate = 2 * array_bytes / copy * 1e-9, step_rate = update.arrays() * array_bytes / step * 1e-9;
    const double ratio = step_rate / copy_rate;
    std::printf(
        "{\"solver\": \"%s\", \"state_MiB\": %.3g, \"threads\": %d, \"arrays\": %d, \"copy_GB_per_s\": %.2f, "
        "\"update_GB_per_s\": %.2f, \"ratio\": %.3f}\n",
        program.solver.c_str(), array_bytes / (1 << 20), threads, update.arrays(), copy_rate, step_rate, ratio);
    return ratio < word(5, 0) ? 1 : 0;
}
