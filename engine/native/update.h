// The fused update of one evaluation on the CPU: each live state is read once and written once.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"
#include "workers.h"

namespace pfdiff {

// Update `index` of a program, prepared: only what a later evaluation or the sample still needs is computed.
class Update final {
   public:
    Update(const pfd_program_t& program, int index);

    // states[j] and output: [count]; input [count] receives c_in_next * s_0 unless it is null.
    void run(float* const* states, const float* output, float* input, std::int64_t count, Workers& workers) const;

    // Reads and writes of one element, for the bandwidth of a benchmark.
    int accesses() const;

   private:
    struct Row {
        int target;
        std::vector<int> sources;  // a state, or B for z
        std::vector<float> factors;
    };

    void block(float* const* states, const float* output, float* input, std::int64_t begin, int size) const;

    std::vector<Row> rows_;
    int buffers_;
    bool clips_;
    float p_, q_, clip_, c_in_next_;
};

}  // namespace pfdiff
