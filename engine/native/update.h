// The fused update of one evaluation on the CPU: each live state is read once and written once.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"
#include "workers.h"

namespace pfdiff {

// What an update takes beside states and output, for the rows that need it: samples of `elements` in a row of [count].
struct Extras {
    const std::uint64_t* seeds = nullptr;  // [samples], of the noise; or
    const float* xi = nullptr;             // [count], the noise itself
    std::int64_t elements = 1;             // of a sample
    const float* picture = nullptr;        // [count], what a mask keeps
    const float* noise = nullptr;          // [count], that sampling started from
    const std::uint8_t* mask = nullptr;    // [count], 0 keeps
    float a = 0, b = 0;                    // a picture + b noise
};

// Row `index` of a program's table, prepared: 0 .. N-1 follow an evaluation, N starts a sample from the noise.
class Update final {
   public:
    Update(const pfd_program_t& program, int index, const Access& access);

    // states[j] and output: [count]; input [count] receives c_in_next * s_0 when the access is `separate`.
    // `output` may be states[0] itself. Returns whether `output` is finite throughout: its clip and its sums could hide
    // that it is not.
    bool run(float* const* states, const float* output, float* input, std::int64_t count, Workers& workers,
             const Extras& extras = {}) const;

    // Arrays of [count] that one run reads or writes, for the bandwidth of a benchmark.
    int arrays() const;

   private:
    struct Row {
        int state;
        bool stored;               // else only the network's input needs it
        std::vector<int> sources;  // a state, B for z, or B + 1 for the output as it is
        std::vector<float> factors;
        float noise;  // factor of xi, 0 for none
    };

    // The sign bit of what it returns says that `output` is not finite.
    std::uint32_t block(float* const* states, const float* output, float* input, std::int64_t begin, int size,
                        const Extras& extras) const;
    void draw(float* xi, std::int64_t begin, int size, const Extras& extras) const;
    void keep(float* target, std::int64_t begin, int size, const Extras& extras) const;

    std::vector<Row> rows_;
    Access access_;
    int buffers_, index_;
    float p_, q_, clip_, c_in_next_;
};

}  // namespace pfdiff
