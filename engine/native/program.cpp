#include "program.h"

#include <cmath>

#include "contract.h"
#include "error.h"

namespace pfdiff {
namespace {

std::vector<double> read_finite_numbers(const json::Node& node, const std::vector<std::size_t>& sizes) {
    auto numbers = node.numbers(sizes);
    for (const double number : numbers)
        // Coefficients are executed in float32, and a factor that overflows there would be infinite.
        if (!(std::abs(number) <= 3e38)) node.refuse("holding " + decimal(number), "numbers within float32");
    return numbers;
}

std::string read_text(const json::Node& node, const char* name) {
    const auto found = node.find(name);
    if (!found) return {};
    if (found->string().size() > 4096 || found->string().find('\0') != std::string::npos)
        found->refuse("too long", "a string of at most 4096 characters");
    return found->string();
}

}  // namespace

pfd_program_t read_program(const json::Node& node) {
    pfd_program_t program;
    program.nfe = static_cast<int>(node["nfe"].integer(1, most_evaluations));
    program.buffers = static_cast<int>(node["buffers"].integer(1, most_buffers));
    const auto N = static_cast<std::size_t>(program.nfe), B = static_cast<std::size_t>(program.buffers);
    program.solver = read_text(node, "solver");
    program.schedule = read_text(node, "schedule");
    program.basis = read_text(node, "basis");
    program.prediction = read_choice(node["prediction"], {"eps", "x0", "v", "flow", "edm"});
    program.times = read_finite_numbers(node["times"], {N});
    program.network_times = read_finite_numbers(node["network_times"], {N});
    program.c_in = read_finite_numbers(node["c_in"], {N});
    program.init = read_finite_numbers(node["init"], {B});
    program.p = read_finite_numbers(node["p"], {N});
    program.q = read_finite_numbers(node["q"], {N});
    program.W = read_finite_numbers(node["W"], {N, B, B});
    program.w = read_finite_numbers(node["w"], {N, B});
    program.table = read_finite_numbers(node["table"], {N + 1, N + 1});
    if (const auto sigma_data = node.find("sigma_data")) program.sigma_data = read_finite(*sigma_data);
    if (const auto clip = node.find("clip")) {
        program.clip = read_finite(*clip);
        if (!(*program.clip > 0 && *program.clip <= 3e38)) clip->refuse(decimal(*program.clip), "a number above 0");
    }
    return program;
}

std::vector<float> coefficient_row(const pfd_program_t& program, int index) {
    const auto n = static_cast<std::size_t>(index), B = static_cast<std::size_t>(program.buffers);
    std::vector<float> row;
    row.reserve(4 + B + B * B);
    row.push_back(static_cast<float>(program.p[n]));
    row.push_back(static_cast<float>(program.q[n]));
    row.push_back(static_cast<float>(program.clip.value_or(0.0)));
    row.push_back(index + 1 < program.nfe ? static_cast<float>(program.c_in[n + 1]) : 1.0f);
    for (std::size_t j = 0; j < B; ++j) row.push_back(static_cast<float>(program.w[n * B + j]));
    for (std::size_t i = 0; i < B * B; ++i) row.push_back(static_cast<float>(program.W[n * B * B + i]));
    return row;
}

bool reads_state(const pfd_program_t& program, int index, int state) {
    const int B = program.buffers;
    const double* W = program.W.data() + std::ptrdiff_t{index} * B * B;
    bool reads = state == 0 && program.clip && program.p[static_cast<std::size_t>(index)] != 0;
    for (int j = 0; j < B; ++j) reads |= static_cast<float>(W[j * B + state]) != 0;
    return reads;
}

bool writes_state(const pfd_program_t& program, int index, int state) {
    const int B = program.buffers;
    const double* row = program.W.data() + (std::ptrdiff_t{index} * B + state) * B;
    bool changes = static_cast<float>(program.w[static_cast<std::size_t>(index * B + state)]) != 0;
    for (int i = 0; i < B; ++i) changes |= static_cast<float>(row[i]) != (i == state ? 1.0f : 0.0f);
    return changes;
}

}  // namespace pfdiff
