// Samples with a network of one's own: here x -> x / 2, in yours the call of whatever runs the network.
#include <pfdiff.h>

#include <cstdint>
#include <cstdio>
#include <vector>

static int network(void*, const pfd_evaluation_t* evaluation, const float* input, float* output) {
    for (std::int64_t i = 0; i < evaluation->batch * evaluation->elements; ++i) output[i] = 0.5f * input[i];
    return 0;
}

static int fail() { return std::fprintf(stderr, "%s\n", pfd_last_error()), 1; }

int main(int, char** words) {
    pfd_engine_t* engine = nullptr;
    if (words[1] == nullptr || pfd_open(words[1], &engine) != PFD_OK) return fail();
    pfd_contract_view_t contract{};
    contract.struct_size = sizeof contract;
    const pfd_program_t* program = nullptr;
    if (pfd_contract(engine, &contract) != PFD_OK) return fail();
    if (pfd_program(engine, pfd_program_nfe(engine, 0), &program) != PFD_OK) return fail();

    const std::vector<std::uint64_t> seeds{0, 1, 2, 3};
    const auto batch = static_cast<std::int64_t>(seeds.size());
    std::vector<float> samples(static_cast<std::size_t>(batch * contract.elements));
    if (pfd_noise(seeds.data(), batch, contract.elements, samples.data()) != PFD_OK) return fail();
    if (pfd_sample_cpu(program, network, nullptr, samples.data(), batch, contract.elements, 0) != PFD_OK) return fail();
    std::printf("pfdiff %s: %zu samples of %s, the first begins %g\n", pfd_version(), seeds.size(), contract.name,
                static_cast<double>(samples[0]));
    pfd_close(engine);
}
