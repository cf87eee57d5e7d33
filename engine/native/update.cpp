// Rows are computed block by block: a block's operands (at most 10 arrays of 4 KiB) stay in the first-level cache, so
// memory sees every state once, whatever the number of terms. Sums run in the kernels' order: w z, W_0 s_0, W_1 s_1,
// ..., U out.
#include "update.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <functional>
#include <utility>

#include "../../kernels/native/element.h"

namespace pfdiff {
namespace {

constexpr int block_elements = 1024;

// The sign bit is set when a value is NaN or infinite: one more in the exponent's last place then carries into it. As
// integers, which vectorise where sums must not be reordered; an "or" takes a quarter of the time of a maximum.
std::uint32_t overflow_bits(const float* values, int size) {
    std::uint32_t bits = 0;
    for (int i = 0; i < size; ++i)
        bits |= (static_cast<std::uint32_t>(float_bits(values[i])) & 0x7FFFFFFFu) + 0x00800000u;
    return bits;
}

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
    return std::array<Combine, sizeof...(Terms)>{
        [](float* target, const float* const* sources, const float* factors, int size) {
            combine(std::make_index_sequence<Terms + 1>(), target, sources, factors, size);
        }...};
}

constexpr auto combines = make_combines(std::make_index_sequence<most_buffers + 2>());

}  // namespace

Update::Update(const pfd_program_t& program, int index, const Access& access)
    : access_(access), buffers_(program.buffers), index_(index) {
    const auto coefficients = coefficient_row(program, index);
    p_ = coefficients[0], q_ = coefficients[1], clip_ = coefficients[2], c_in_next_ = coefficients[3];
    const float *w = coefficients.data() + 4, *W = w + buffers_;
    const auto noise = noise_row(program, index);
    for (int j = 0; j < buffers_; ++j) {
        const bool stored = (access.writes >> j & 1) != 0;
        if (!stored && !(access.separate && j == 0)) continue;
        Row row{j, stored, {}, {}, noise[static_cast<std::size_t>(j)]};
        if (w[j] != 0) row.sources.push_back(buffers_), row.factors.push_back(w[j]);
        for (int i = 0; i < buffers_; ++i)
            if (const float factor = W[j * buffers_ + i]; factor != 0)
                row.sources.push_back(i), row.factors.push_back(factor);
        const auto at =
            static_cast<std::size_t>(index) * static_cast<std::size_t>(buffers_) + static_cast<std::size_t>(j);
        if (at < program.U.size() && program.U[at] != 0)
            row.sources.push_back(buffers_ + 1), row.factors.push_back(static_cast<float>(program.U[at]));
        rows_.push_back(std::move(row));
    }
}

int Update::arrays() const {
    bool reads_output = false;
    for (const auto& row : rows_)
        reads_output |= !row.sources.empty() && (row.sources.front() == buffers_ || row.sources.back() > buffers_);
    return std::popcount(access_.reads) + std::popcount(access_.writes) + (reads_output ? 1 : 0) +
           (access_.separate ? 1 : 0);
}

// The noise of elements begin .. begin + size, which may be of several samples.
void Update::draw(float* xi, std::int64_t begin, int size, const Extras& extras) const {
    const auto number = static_cast<std::uint32_t>(index_ + 1);
    for (int done = 0; done < size;) {
        const auto sample = (begin + done) / extras.elements, first = (begin + done) % extras.elements;
        const auto some = static_cast<int>(std::min<std::int64_t>(size - done, extras.elements - first));
        const auto seed = extras.seeds[sample];
        for (int i = 0; i < some; ++i) xi[done + i] = normal32(seed, static_cast<std::uint64_t>(first + i), number);
        done += some;
    }
}

// Where the mask is 0: a x_0 + b noise.
void Update::keep(float* target, std::int64_t begin, int size, const Extras& extras) const {
    const float *picture = extras.picture + begin, *noise = extras.noise + begin, a = extras.a, b = extras.b;
    const std::uint8_t* mask = extras.mask + begin;
    const bool noisy = access_.keeps == Keeps::picture_and_noise;
    for (int i = 0; i < size; ++i) {
        float known = a * picture[i];
        if (noisy) known = known + b * noise[i];
        target[i] = mask[i] != 0 ? target[i] : known;
    }
}

std::uint32_t Update::block(float* const* states, const float* output, float* input, std::int64_t begin, int size,
                            const Extras& extras) const {
    alignas(64) float clipped[block_elements];
    alignas(64) float results[most_buffers][block_elements];
    const float* operands[most_buffers + 2];
    for (int i = 0; i < buffers_; ++i) operands[i] = states[i] + begin;
    operands[buffers_] = operands[buffers_ + 1] = output + begin;
    const auto overflow = overflow_bits(operands[buffers_], size);  // before a row overwrites it
    if (access_.clip) {
        // s_0 is not read where p = 0: it may then hold anything, a NaN too.
        const float *s_0 = operands[0], *out = operands[buffers_];
        if ((access_.reads & 1) != 0)
            for (int i = 0; i < size; ++i) clipped[i] = clamped(p_ * s_0[i] + q_ * out[i], clip_);
        else
            for (int i = 0; i < size; ++i) clipped[i] = clamped(q_ * out[i], clip_);
        operands[buffers_] = clipped;
    }
    alignas(64) float drawn[block_elements];
    const float* xi = extras.xi != nullptr ? extras.xi + begin : drawn;
    if (access_.noise != 0 && extras.xi == nullptr) draw(drawn, begin, size, extras);
    const float* first = nullptr;  // the new s_0, for the network's input
    for (std::size_t r = 0; r < rows_.size(); ++r) {
        const auto& row = rows_[r];
        // All rows need the old states: only the last may overwrite at once.
        float* target = row.stored && r + 1 == rows_.size() ? states[row.state] + begin : results[r];
        const float* sources[most_buffers + 2];
        for (std::size_t term = 0; term < row.sources.size(); ++term) sources[term] = operands[row.sources[term]];
        if (row.sources.empty())
            std::fill_n(target, size, 0.0f);
        else
            combines[row.sources.size() - 1](target, sources, row.factors.data(), size);
        if (row.noise != 0)
            for (int i = 0; i < size; ++i) target[i] = target[i] + row.noise * xi[i];
        if (row.state == 0 && access_.keeps != Keeps::nothing) keep(target, begin, size, extras);
        if (row.state == 0) first = target;
    }
    for (std::size_t r = 0; r + 1 < rows_.size(); ++r)
        if (rows_[r].stored)
            std::memcpy(states[rows_[r].state] + begin, results[r], sizeof(float) * static_cast<std::size_t>(size));
    if (access_.separate && first != nullptr)
        for (int i = 0; i < size; ++i) input[begin + i] = c_in_next_ * first[i];
    return overflow;
}

bool Update::run(float* const* states, const float* output, float* input, std::int64_t count, Workers& workers,
                 const Extras& extras) const {
    std::atomic<bool> finite{true};
    const auto task = [&](std::int64_t begin, std::int64_t end) {
        std::uint32_t overflow = 0;
        for (auto at = begin; at < end; at += block_elements) {
            const auto size = static_cast<int>(std::min<std::int64_t>(block_elements, end - at));
            overflow |= block(states, output, input, at, size, extras);
        }
        if (overflow >> 31 != 0) finite.store(false, std::memory_order_relaxed);  // the team's end orders it
    };
    workers.run(count, std::ref(task));  // a copy would be allocated
    return finite;
}

}  // namespace pfdiff
