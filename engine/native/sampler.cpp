// pfd_sample_cpu and pfd_update_cpu: the loop {network; update} x N on the caller's buffers.
#include <algorithm>
#include <memory>
#include <thread>

#include "error.h"
#include "update.h"

namespace pfdiff {
namespace {

constexpr std::size_t alignment = 64;

struct Release {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{alignment}); }
};

// `arrays` arrays of `count` floats in one allocation. Their starts differ modulo a page: with equal page offsets the
// loads of one stream falsely wait for the stores of another, which cost 20 % of the bandwidth.
class Workspace final {
   public:
    Workspace(std::int64_t arrays, std::int64_t count)
        : stride_((count + 15) / 16 * 16 + 272),
          memory_(static_cast<float*>(::operator new[](bytes(arrays, stride_), std::align_val_t{alignment}))) {}
    float* array(std::int64_t index) { return memory_.get() + index * stride_; }

   private:
    static std::size_t bytes(std::int64_t arrays, std::int64_t stride) {
        return static_cast<std::size_t>(std::max<std::int64_t>(arrays, 1) * stride) * sizeof(float);
    }
    std::int64_t stride_;
    std::unique_ptr<float[], Release> memory_;
};

int team_size(int threads) {
    if (threads < 0 || threads > 1024)
        throw input_error(std::to_string(threads) + " threads, expected 1..1024, or 0 for as many as the machine has");
    return threads > 0 ? threads : static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 1024u));
}

std::int64_t checked_count(std::int64_t batch, std::int64_t elements) {
    constexpr std::int64_t largest = std::int64_t{1} << 40;
    if (batch < 1 || elements < 1 || elements > largest || batch > largest / elements)
        throw input_error("batch " + std::to_string(batch) + " of " + std::to_string(elements) +
                          " elements, expected at least 1 of each and at most 2^40 together");
    return batch * elements;
}

void sample(const pfd_program_t& program, pfd_network_t network, void* context, float* state, std::int64_t batch,
            std::int64_t elements, int threads) {
    const auto count = checked_count(batch, elements);
    const bool feeds = std::any_of(program.c_in.begin(), program.c_in.end(), [](double c) { return c != 1; });
    Workers workers(team_size(threads));
    Workspace workspace(program.buffers + (feeds ? 1 : 0), count);
    float* states[most_buffers] = {state};
    for (int j = 1; j < program.buffers; ++j) states[j] = workspace.array(j - 1);
    float* const output = workspace.array(program.buffers - 1);
    float* const input = feeds ? workspace.array(program.buffers) : state;

    const auto access = accesses(program, feeds);
    // The noise lies where s_0 will stand, and each element is read before it is written.
    Update(program, program.nfe, access.back()).run(states, state, input, count, workers);
    for (int n = 0; n < program.nfe; ++n) {
        const auto at = static_cast<std::size_t>(n);
        const pfd_evaluation_t evaluation{n,     program.nfe, program.times[at], program.network_times[at],
                                          batch, elements};
        const auto where = "at evaluation " + std::to_string(n + 1) + " of " + std::to_string(program.nfe);
        take_callback_error();
        if (const int status = network(context, &evaluation, input, output); status != 0) {
            const auto words = take_callback_error();
            throw backend_error("the network failed " + where + ": " +
                                (words.empty() ? "it returned " + std::to_string(status) : printable(words, 230)));
        }
        if (!Update(program, n, access[at]).run(states, output, input, count, workers))
            throw backend_error("the network's output is not finite " + where + ", time " +
                                decimal(evaluation.network_time) +
                                "; check the network, its conditions and its time scale, and try precision fp32");
    }
}

}  // namespace
}  // namespace pfdiff

extern "C" pfd_status_t pfd_sample_cpu(const pfd_program_t* program, pfd_network_t network, void* context, float* state,
                                       int64_t batch, int64_t elements, int32_t threads) {
    return pfdiff::guarded([&] {
        if (program == nullptr || network == nullptr || state == nullptr)
            throw pfdiff::input_error("sampling without a program, a network or a state; give all three");
        pfdiff::sample(*program, network, context, state, batch, elements, threads);
    });
}

extern "C" pfd_status_t pfd_update_cpu(const pfd_program_t* program, int32_t index, float* states, const float* output,
                                       float* input, int64_t count, int32_t threads) {
    return pfdiff::guarded([&] {
        if (program == nullptr || states == nullptr || output == nullptr)
            throw pfdiff::input_error("an update without a program, states or output; give all three");
        if (index < 0 || index >= program->nfe)
            throw pfdiff::input_error("update " + std::to_string(index) + ", expected 0.." +
                                      std::to_string(program->nfe - 1));
        pfdiff::checked_count(1, count);
        float* pointers[pfdiff::most_buffers];
        for (int j = 0; j < program->buffers; ++j) pointers[j] = states + j * count;
        pfdiff::Workers workers(pfdiff::team_size(threads));
        const auto access = pfdiff::accesses(*program, input != nullptr)[static_cast<std::size_t>(index)];
        pfdiff::Update(*program, index, access).run(pointers, output, input, count, workers);
    });
}
