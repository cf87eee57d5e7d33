// pfd_sample_cpu and pfd_update_cpu: the loop {network; update} x N on the caller's buffers.
#include <algorithm>
#include <cstring>
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

// The options as this version of the library knows them; what the caller's version lacks is zero.
pfd_sampling_t known_options(const pfd_sampling_t* options) {
    if (options == nullptr || options->struct_size < sizeof(std::size_t))
        throw input_error("sampling without options, or with a struct_size of 0; set it to sizeof");
    pfd_sampling_t known{};
    std::memcpy(&known, options, std::min(options->struct_size, sizeof known));
    return known;
}

void check_options(const pfd_program_t& program, const pfd_sampling_t& options) {
    if (!program.draws.empty() && options.seeds == nullptr && options.steps_noise == nullptr)
        throw input_error(program.solver + " draws " + std::to_string(program.draws.size()) +
                          " noises on the way; give seeds, one a sample, or steps_noise, to pfd_sample_cpu_with");
    if (options.mask != nullptr && (options.picture == nullptr || options.known_factors == nullptr))
        throw input_error("a mask without a picture or its known_factors; give all three");
}

// What the update after evaluation `index` takes of the options.
Extras extras_of(const pfd_program_t& program, int index, const pfd_sampling_t& options, const float* noise,
                 std::int64_t batch, std::int64_t elements) {
    Extras extras{options.seeds, nullptr, elements, options.picture, noise, options.mask, 0, 0};
    const auto place = std::find(program.draws.begin(), program.draws.end(), index);
    if (options.steps_noise != nullptr && place != program.draws.end())
        extras.xi = options.steps_noise + (place - program.draws.begin()) * batch * elements;
    if (options.mask != nullptr) {
        extras.a = static_cast<float>(options.known_factors[2 * index]);
        extras.b = static_cast<float>(options.known_factors[2 * index + 1]);
    }
    return extras;
}

void sample(const pfd_program_t& program, pfd_network_t network, void* context, float* state, std::int64_t batch,
            std::int64_t elements, const pfd_sampling_t& options) {
    const auto count = checked_count(batch, elements);
    check_options(program, options);
    const bool feeds = std::any_of(program.c_in.begin(), program.c_in.end(), [](double c) { return c != 1; });
    const bool masked = options.mask != nullptr;
    Workers workers(team_size(options.threads));
    Workspace workspace(program.buffers + (feeds ? 1 : 0) + (masked ? 1 : 0), count);
    float* states[most_buffers] = {state};
    for (int j = 1; j < program.buffers; ++j) states[j] = workspace.array(j - 1);
    float* const output = workspace.array(program.buffers - 1);
    float* const input = feeds ? workspace.array(program.buffers) : state;

    float* const noise = masked ? workspace.array(program.buffers + (feeds ? 1 : 0)) : nullptr;
    if (masked) std::copy_n(state, count, noise);

    const auto access = accesses(program, feeds, masked);
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
        const auto extras = extras_of(program, n, options, noise, batch, elements);
        if (!Update(program, n, access[at]).run(states, output, input, count, workers, extras))
            throw backend_error("the network's output is not finite " + where + ", time " +
                                decimal(evaluation.network_time) +
                                "; check the network, its conditions and its time scale, and try precision fp32");
    }
}

}  // namespace
}  // namespace pfdiff

extern "C" pfd_status_t pfd_sample_cpu_with(const pfd_program_t* program, pfd_network_t network, void* context,
                                            float* state, int64_t batch, int64_t elements,
                                            const pfd_sampling_t* options) {
    return pfdiff::guarded([&] {
        if (program == nullptr || network == nullptr || state == nullptr)
            throw pfdiff::input_error("sampling without a program, a network or a state; give all three");
        pfdiff::sample(*program, network, context, state, batch, elements, pfdiff::known_options(options));
    });
}

extern "C" pfd_status_t pfd_sample_cpu(const pfd_program_t* program, pfd_network_t network, void* context, float* state,
                                       int64_t batch, int64_t elements, int32_t threads) {
    pfd_sampling_t options{};
    options.struct_size = sizeof options, options.threads = threads;
    return pfd_sample_cpu_with(program, network, context, state, batch, elements, &options);
}

extern "C" pfd_status_t pfd_update_cpu_with(const pfd_program_t* program, int32_t index, float* states,
                                            const float* output, float* input, const float* noise, int64_t batch,
                                            int64_t elements, const pfd_sampling_t* options) {
    return pfdiff::guarded([&] {
        if (program == nullptr || states == nullptr || output == nullptr)
            throw pfdiff::input_error("an update without a program, states or output; give all three");
        if (index < 0 || index >= program->nfe)
            throw pfdiff::input_error("update " + std::to_string(index) + ", expected 0.." +
                                      std::to_string(program->nfe - 1));
        const auto given = pfdiff::known_options(options);
        const auto count = pfdiff::checked_count(batch, elements);
        const auto access =
            pfdiff::accesses(*program, input != nullptr, given.mask != nullptr)[static_cast<std::size_t>(index)];
        if (access.noise != 0) pfdiff::check_options(*program, given);
        if (given.mask != nullptr && (given.picture == nullptr || given.known_factors == nullptr || noise == nullptr))
            throw pfdiff::input_error("a mask without a picture, its known_factors or the noise; give all four");
        float* pointers[pfdiff::most_buffers];
        for (int j = 0; j < program->buffers; ++j) pointers[j] = states + j * count;
        pfdiff::Workers workers(pfdiff::team_size(given.threads));
        const auto extras = pfdiff::extras_of(*program, index, given, noise, batch, elements);
        pfdiff::Update(*program, index, access).run(pointers, output, input, count, workers, extras);
    });
}

extern "C" pfd_status_t pfd_update_cpu(const pfd_program_t* program, int32_t index, float* states, const float* output,
                                       float* input, int64_t count, int32_t threads) {
    pfd_sampling_t options{};
    options.struct_size = sizeof options, options.threads = threads;
    return pfd_update_cpu_with(program, index, states, output, input, nullptr, 1, count, &options);
}
