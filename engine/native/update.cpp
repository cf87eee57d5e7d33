// Rows are computed block by block: a block's operands (at most 9 arrays of 4 KiB) stay in the first-level cache, so
// memory sees every state once, whatever the number of terms. Sums run in the order W_0 s_0, W_1 s_1, ..., w z.
#include "update.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "../../kernels/native/element.h"

namespace pfdiff {
namespace {

constexpr int block_elements = 1024;

// ivdep: `target` may be one of the sources, element for element, which the compiler would have to fear.
template <std::size_t... Term>
void combine(std::index_sequence<Term...>, float* target, const float* const* sources, const float* factors, int size) {
    const float factor[] = {factors[Term]...};
    const float* const source[] = {sources[Term]...};
#pragma GCC ivdep
    for (int i = 0; i < size; ++i) {
        float sum = factor[0] * source[0][i];
        ((sum = Term == 0 ? sum : sum + factor[Term] * source[Term][i]), ...);
        target[i] = sum;
    }
}

using Combine = void (*)(float*, const float* const*, const float*, int);

template <std::size_t... Terms>
constexpr auto make_combines(std::index_sequence<Terms...>) {
    return std::array<Combine, sizeof...(Terms)>{[](float* target, const float* const* sources, const float* factors, int size) {
        combine(std::make_index_sequence<Terms + 1>(), target, sources, factors, size);
    }...};
}

constexpr auto combines = make_combines(std::make_index_sequence<most_buffers + 1>());

// Which states are needed after update `index`: s_0, and what later updates read before they overwrite it.
std::vector<bool> live_after(const pfd_program_t& program, int index) {
    std::vector<bool> live(static_cast<std::size_t>(program.buffers), false);
    live[0] = true;
    for (int n = program.nfe - 1; n > index; --n) {
        std::vector<bool> before(live.size(), false);
        before[0] = true;
        for (std::size_t j = 0; j < live.size(); ++j)
            for (std::size_t i = 0; live[j] && i < live.size(); ++i)
                if (program.W[(static_cast<std::size_t>(n) * live.size() + j) * live.size() + i] != 0) before[i] = true;
        live = before;
    }
    return live;
}

}  // namespace

Update::Update(const pfd_program_t& program, int index)
    : buffers_(program.buffers), clips_(program.clip.has_value()) {
    const auto coefficients = coefficient_row(program, index);
    p_ = coefficients[0], q_ = coefficients[1], clip_ = coefficients[2], c_in_next_ = coefficients[3];
    const float *w = coefficients.data() + 4, *W = w + buffers_;
    const auto live = live_after(program, index);
    for (int j = 0; j < buffers_; ++j) {
        if (!live[static_cast<std::size_t>(j)] || !writes_state(program, index, j)) continue;
        Row row{j, {}, {}};
        for (int i = 0; i <= buffers_; ++i) {
            const float factor = i < buffers_ ? W[j * buffers_ + i] : w[j];
            if (factor == 0) continue;
            row.sources.push_back(i);
            row.factors.push_back(factor);
        }
        rows_.push_back(std::move(row));
    }
}

int Update::accesses() const {
    std::vector<bool> read(static_cast<std::size_t>(buffers_) + 1, false);
    read[0] = clips_ && p_ != 0;
    for (const auto& row : rows_)
        for (const int source : row.sources) read[static_cast<std::size_t>(source)] = true;
    return static_cast<int>(std::count(read.begin(), read.end(), true) + static_cast<std::ptrdiff_t>(rows_.size()));
}

void Update::block(float* const* states, const float* output, float* input, std::int64_t begin, int size) const {
    alignas(64) float clipped[block_elements];
    alignas(64) float results[most_buffers][block_elements];
    const float* operands[most_buffers + 1];
    for (int i = 0; i < buffers_; ++i) operands[i] = states[i] + begin;
    operands[buffers_] = output + begin;
    if (clips_) {
        const float *s_0 = operands[0], *out = operands[buffers_];
        for (int i = 0; i < size; ++i) clipped[i] = clamped(p_ * s_0[i] + q_ * out[i], clip_);
        operands[buffers_] = clipped;
    }
    for (std::size_t r = 0; r < rows_.size(); ++r) {
        const auto& row = rows_[r];
        // All rows need the old states: only the last may overwrite at once.
        float* target = r + 1 == rows_.size() ? states[row.target] + begin : results[r];
        const float* sources[most_buffers + 1];
        for (std::size_t term = 0; term < row.sources.size(); ++term) sources[term] = operands[row.sources[term]];
        if (row.sources.empty())
            std::fill_n(target, size, 0.0f);
        else
            combines[row.sources.size() - 1](target, sources, row.factors.data(), size);
    }
    for (std::size_t r = 0; r + 1 < rows_.size(); ++r)
        std::memcpy(states[rows_[r].target] + begin, results[r], sizeof(float) * static_cast<std::size_t>(size));
    if (input != nullptr)
        for (int i = 0; i < size; ++i) input[begin + i] = c_in_next_ * states[0][begin + i];
}

void Update::run(float* const* states, const float* output, float* input, std::int64_t count, Workers& workers) const {
    workers.run(count, [&](std::int64_t begin, std::int64_t end) {
        for (auto at = begin; at < end; at += block_elements)
            block(states, output, input, at, static_cast<int>(std::min<std::int64_t>(block_elements, end - at)));
    });
}

}  // namespace pfdiff
