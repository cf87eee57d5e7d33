// The fused update of one evaluation on the CPU: each live state is read once and written once.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"
#include "workers.h"

namespace pfdiff {

// Row `index` of a program's table, prepared: 0 .. N-1 follow an evaluation, N starts a sample from the noise.
class Update final {
   public:
    Update(const pfd_program_t& program, int index, const Access& access);

    // states[j] and output: [count]; input [count] receives c_in_next * s_0 when the access is `separate`.
    // `output` may be states[0] itself. Returns whether `output` is finite throughout: its clip and its sums could hide
    // that it is not.
    bool run(float* const* states, const float* output, float* input, std::int64_t count, Workers& workers) const;

    // Arrays of [count] that one run reads or writes, for the bandwidth of a benchmark.
    int arrays() const;

   private:
    struct Row {
        int state;
        bool stored;               // else only the network's input needs it
        std::vector<int> sources;  // a state, or B for z
        std::vector<float> factors;
    };

    // The sign bit of what it returns says that `output` is not finite.
    std::uint32_t block(float* const* states, const float* output, float* input, std::int64_t begin, int size) const;

    std::vector<Row> rows_;
    Access access_;
    int buffers_;
    float p_, q_, clip_, c_in_next_;
};

}  // namespace pfdiff
