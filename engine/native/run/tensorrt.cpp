#include "tensorrt.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>

#include "../error.h"
#include "../pfdiff_tensorrt.h"

namespace pfdiff::run {
namespace {

void check(pfd_status_t status) {
    if (status != PFD_OK) throw Error(status, pfd_last_error());
}

}  // namespace

std::function<void(const std::vector<std::uint64_t>& seeds, float* into)> tensorrt_sampler(
    const pfd_engine_t* engine, const pfd_program_t* program, const Options& options,
    const pfd_contract_view_t& contract, std::int64_t batch) {
    if (options.plan.empty())
        throw input_error(
            "network tensorrt without a plan; give --plan FILE, one that you built, such as ENGINE/plans/...");
    pfd_tensorrt_t* made = nullptr;
    check(pfd_tensorrt_create(engine, program, options.plan.c_str(), batch, &made));
    const std::shared_ptr<pfd_tensorrt_t> network(made, pfd_tensorrt_free);
    for (const auto& [name, values] : options.conditions)
        check(pfd_tensorrt_set_condition(made, name.c_str(), values.data(), values.size()));
    pfd_cuda_options_t settings{};
    settings.struct_size = sizeof settings;
    settings.batch = batch, settings.elements = contract.elements, settings.dtype = pfd_tensorrt_dtype(made);
    pfd_cuda_sampler_t* looped = nullptr;
    check(pfd_cuda_sampler_create(program, pfd_tensorrt_network, made, &settings, &looped));
    const std::shared_ptr<pfd_cuda_sampler_t> sampler(looped, pfd_cuda_sampler_free);
    if (const std::string why = pfd_cuda_sampler_not_captured(looped); !why.empty())
        std::fprintf(stderr, "pfdiff-run: launch by launch, since %s\n", why.c_str());
    const auto elements = contract.elements;
    // `network` is kept beside the sampler that calls it.
    return [network, sampler, batch, elements](const std::vector<std::uint64_t>& seeds, float* into) {
        auto filled = seeds;
        filled.resize(static_cast<std::size_t>(batch), seeds.back());
        std::vector<float> samples(filled.size() * static_cast<std::size_t>(elements));
        check(pfd_cuda_sampler_run(sampler.get(), filled.data(), nullptr));
        check(pfd_cuda_sampler_copy(sampler.get(), samples.data(), nullptr));
        if (!std::all_of(samples.begin(), samples.end(), [](float value) { return std::isfinite(value); }))
            throw backend_error(
                "the samples are not finite: the network overflows in the plan's precision or gives NaN; check the "
                "network, its conditions and its time scale, and try precision fp32");
        std::copy_n(samples.begin(), static_cast<std::int64_t>(seeds.size()) * elements, into);
    };
}

}  // namespace pfdiff::run
