#include "program.h"

#include <algorithm>
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
    const auto found = node[name];
    if (found.string().size() > 4096 || found.string().find('\0') != std::string::npos)
        found.refuse("too long", "a string of at most 4096 characters");
    return found.string();
}

// What only says how the program was made: not executed, but of the right type as all else.
void check_origin(const json::Node& node) {
    if (const auto grid = node["grid"]; grid.is_array())
        for (const auto& time : grid.items()) read_finite(time);
    else
        read_text(node, "grid");
    if (const auto start = node.find("t_start")) read_finite(*start);
    if (const auto end = node["end"]; end.is_string())
        read_text(node, "end");
    else
        read_finite(end);
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
    check_origin(node);
    program.prediction = read_choice(node["prediction"], {"eps", "x0", "v", "flow", "edm", "consistency"});
    program.times = read_finite_numbers(node["times"], {N});
    program.network_times = read_finite_numbers(node["network_times"], {N});
    program.c_in = read_finite_numbers(node["c_in"], {N});
    program.init = read_finite_numbers(node["init"], {B});
    program.p = read_finite_numbers(node["p"], {N});
    program.q = read_finite_numbers(node["q"], {N});
    program.W = read_finite_numbers(node["W"], {N, B, B});
    program.w = read_finite_numbers(node["w"], {N, B});
    if (const auto V = node.find("V"))
        program.V = read_finite_numbers(*V, {N, B});
    else
        program.V.assign(N * B, 0.0);
    if (const auto U = node.find("U")) program.U = read_finite_numbers(*U, {N, B});
    for (std::size_t n = 0; n < N; ++n)
        if (std::any_of(program.V.begin() + static_cast<std::ptrdiff_t>(n * B),
                        program.V.begin() + static_cast<std::ptrdiff_t>((n + 1) * B), [](double v) { return v != 0; }))
            program.draws.push_back(static_cast<int>(n));
    program.table = read_finite_numbers(node["table"], {N + 1, 1 + program.draws.size() + N});
    if (const auto sigma_data = node.find("sigma_data")) program.sigma_data = read_finite(*sigma_data);
    if (const auto clip = node.find("clip")) {
        program.clip = read_finite(*clip);
        if (!(*program.clip > 0 && *program.clip <= 3e38)) clip->refuse(decimal(*program.clip), "a number above 0");
    }
    const bool keeps_output = std::any_of(program.U.begin(), program.U.end(), [](double u) { return u != 0; });
    if (!keeps_output)
        program.U.clear();
    else if (!program.clip || !program.draws.empty())
        node["U"].refuse(program.clip ? "beside V" : "without a clip", "a clip and no V");
    return program;
}

std::vector<float> coefficient_row(const pfd_program_t& program, int index) {
    const auto n = static_cast<std::size_t>(index), B = static_cast<std::size_t>(program.buffers);
    const bool starts = index == program.nfe;
    std::vector<float> row(4 + B + B * B, 0.0f);
    row[3] = starts                    ? static_cast<float>(program.c_in[0])
             : index + 1 < program.nfe ? static_cast<float>(program.c_in[n + 1])
                                       : 1.0f;
    if (!starts) {
        row[0] = static_cast<float>(program.p[n]);
        row[1] = static_cast<float>(program.q[n]);
        row[2] = static_cast<float>(program.clip.value_or(0.0));
        for (std::size_t i = 0; i < B * B; ++i) row[4 + B + i] = static_cast<float>(program.W[n * B * B + i]);
    }
    for (std::size_t j = 0; j < B; ++j)
        row[4 + j] = static_cast<float>(starts ? program.init[j] : program.w[n * B + j]);
    return row;
}

std::vector<float> noise_row(const pfd_program_t& program, int index) {
    const auto n = static_cast<std::size_t>(index), B = static_cast<std::size_t>(program.buffers);
    std::vector<float> row(B, 0.0f);
    if (index < program.nfe && !program.V.empty())
        for (std::size_t j = 0; j < B; ++j) row[j] = static_cast<float>(program.V[n * B + j]);
    return row;
}

std::vector<Access> accesses(const pfd_program_t& program, bool separate, bool masked) {
    const auto B = static_cast<std::size_t>(program.buffers), N = static_cast<std::size_t>(program.nfe);
    std::vector<Access> found(N + 1);
    unsigned live = 1;  // the sample is s_0
    for (std::size_t n = N; n-- > 0;) {
        const double *W = program.W.data() + n * B * B, *w = program.w.data() + n * B;
        const auto added = [&](std::size_t j) { return !program.V.empty() && program.V[n * B + j] != 0; };
        Access access{0, 0, program.clip.has_value(), separate && n + 1 < N, 0, Keeps::nothing};
        if (masked) access.keeps = n + 1 < N ? Keeps::picture_and_noise : Keeps::picture;
        for (std::size_t j = 0; j < B; ++j) {
            const bool raw = !program.U.empty() && program.U[n * B + j] != 0;
            bool identity = w[j] == 0 && !raw && !added(j) && !(masked && j == 0);
            for (std::size_t i = 0; i < B; ++i) identity &= W[j * B + i] == (i == j ? 1 : 0);
            if ((live >> j & 1) != 0 && !identity) access.writes |= 1u << j;
        }
        const unsigned needed = access.writes | (access.separate ? 1 : 0);
        for (std::size_t j = 0; j < B; ++j) {
            if ((needed >> j & 1) == 0) continue;
            for (std::size_t i = 0; i < B; ++i) access.reads |= W[j * B + i] != 0 ? 1u << i : 0;
            if (access.clip && program.p[n] != 0 && w[j] != 0) access.reads |= 1;
            if (added(j)) access.noise |= 1u << j;
        }
        found[n] = access;
        live = (live & ~access.writes) | access.reads | (separate ? 0 : 1);
    }
    found[N] = {0, live, false, separate, 0, Keeps::nothing};
    return found;
}

}  // namespace pfdiff
