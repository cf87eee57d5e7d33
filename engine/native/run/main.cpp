// pfdiff-run: samples from an engine directory without Python.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>

#include "../analytic.h"
#include "../error.h"
#include "npy.h"
#include "options.h"
#include "pixels.h"
#include "start.h"
#ifdef PFD_WITH_ONNXRUNTIME
#include "../pfdiff_onnxruntime.h"
#endif
#ifdef PFD_WITH_TENSORRT
#include "tensorrt.h"
#endif

namespace pfdiff::run {
namespace {

void check(pfd_status_t status) {
    if (status != PFD_OK) throw Error(status, pfd_last_error());
}

// Samples `batch` seeds at a time into `into`, whichever network evaluates.
using Sampler = std::function<void(const std::vector<std::uint64_t>& seeds, float* into)>;

Sampler cpu_sampler(const pfd_program_t* program, pfd_network_t network, std::shared_ptr<void> context,
                    std::int64_t elements, int threads, const Start* start) {
    return [=, first = std::int64_t{0}](const std::vector<std::uint64_t>& seeds, float* into) mutable {
        const auto batch = static_cast<std::int64_t>(seeds.size());
        check(pfd_noise(seeds.data(), batch, elements, into));
        pfd_sampling_t settings{};
        settings.struct_size = sizeof settings, settings.threads = threads, settings.seeds = seeds.data();
        Start::Batch begun;
        if (start != nullptr) begun = start->begin(first, batch, into);
        if (!begun.mask.empty()) {
            settings.mask = begun.mask.data(), settings.picture = begun.picture.data();
            settings.known_factors = start->known.data();
        }
        check(pfd_sample_cpu_with(program, network, context.get(), into, batch, elements, &settings));
        first += batch;
    };
}

// Throws for a condition without a default and without a value. Networks notice it too, in the midst of sampling.
void check_conditions(const pfd_engine_t* engine, const pfd_contract_view_t& contract, const Options& options) {
    for (std::size_t i = 0; i < contract.condition_count; ++i) {
        pfd_condition_view_t view{};
        view.struct_size = sizeof view;
        check(pfd_condition(engine, i, &view));
        if (view.has_default == 0 && !options.conditions.contains(view.name))
            throw input_error("condition " + quoted(view.name) + " is missing; give --condition " + view.name + "=" +
                              (view.rank == 0 ? "VALUE" : "FILE.npy"));
    }
}

#ifdef PFD_WITH_ONNXRUNTIME
// Of the conditions that have a row for each seed: their elements a sample. Throws for another number of numbers.
std::map<std::string, std::int64_t> conditions_by_seed(const pfd_engine_t* engine, const pfd_contract_view_t& contract,
                                                       const Options& options) {
    std::map<std::string, std::int64_t> found;
    const auto seeds = static_cast<std::int64_t>(options.seeds.size());
    for (std::size_t i = 0; i < contract.condition_count; ++i) {
        pfd_condition_view_t view{};
        view.struct_size = sizeof view;
        check(pfd_condition(engine, i, &view));
        const auto given = options.conditions.find(view.name);
        if (given == options.conditions.end()) continue;
        const auto count = static_cast<std::int64_t>(given->second.size());
        if (count == 1 || count == view.elements) continue;
        if (count != seeds * view.elements)
            throw input_error("condition " + quoted(view.name) + ": " + std::to_string(count) + " numbers, expected " +
                              std::to_string(view.elements) + ", or as many for each of " + std::to_string(seeds) +
                              " seeds");
        found[view.name] = view.elements;
    }
    return found;
}
#endif

Sampler gaussian_sampler(const pfd_program_t* program, const Options& options, const pfd_contract_view_t& contract,
                         const Start* start) {
    if (!options.conditions.empty()) throw input_error("--condition with the gaussian network, which takes none");
    pfd_program_view_t view{};
    view.struct_size = sizeof view;
    check(pfd_program_view(program, &view));
    auto network = std::make_shared<GaussianNetwork>(view.schedule, view.prediction, view.sigma_data);
    return cpu_sampler(program, GaussianNetwork::call, network, contract.elements, options.threads, start);
}

#ifdef PFD_WITH_ONNXRUNTIME
Sampler onnxruntime_sampler(const pfd_engine_t* engine, const pfd_program_t* program, const Options& options,
                            const pfd_contract_view_t& contract, const Start* start) {
    pfd_onnxruntime_t* network = nullptr;
    check(pfd_onnxruntime_create(engine, options.threads, &network));
    const std::shared_ptr<pfd_onnxruntime_t> owned(network, pfd_onnxruntime_free);
    const auto rows = conditions_by_seed(engine, contract, options);
    for (const auto& [name, values] : options.conditions)
        if (!rows.contains(name))
            check(pfd_onnxruntime_set_condition(network, name.c_str(), values.data(), values.size()));
    const auto sample = cpu_sampler(program, pfd_onnxruntime_network, owned, contract.elements, options.threads, start);
    if (rows.empty()) return sample;
    return [=, at = std::int64_t{0}, conditions = options.conditions](const std::vector<std::uint64_t>& seeds,
                                                                      float* into) mutable {
        for (const auto& [name, elements] : rows) {
            const auto& all = conditions.at(name);
            const auto last = static_cast<std::int64_t>(all.size()) / elements - 1;
            std::vector<double> chunk;
            for (std::int64_t i = 0; i < static_cast<std::int64_t>(seeds.size()); ++i) {
                const auto row = all.begin() + std::min(at + i, last) * elements;
                chunk.insert(chunk.end(), row, row + elements);
            }
            check(pfd_onnxruntime_set_condition(owned.get(), name.c_str(), chunk.data(), chunk.size()));
        }
        at += static_cast<std::int64_t>(seeds.size());
        sample(seeds, into);
    };
}
#endif

Sampler make_sampler(const pfd_engine_t* engine, const pfd_program_t* program, const Options& options,
                     const pfd_contract_view_t& contract, std::int64_t batch, const Start* start) {
    std::string built;
    const auto wanted = [&](const char* name) {
        built += std::string(name) + ", ";
        // A plan is what TensorRT runs, and nothing else does.
        const bool automatic = options.network == "auto" && (options.plan.empty() != (name == std::string("tensorrt")));
        return automatic || options.network == name;
    };
#ifdef PFD_WITH_TENSORRT
    if (wanted("tensorrt")) {
        if (start != nullptr) throw input_error("--start runs on the CPU; give --network onnxruntime");
        return tensorrt_sampler(engine, program, options, contract, batch);
    }
#endif
#ifdef PFD_WITH_ONNXRUNTIME
    if (wanted("onnxruntime")) return onnxruntime_sampler(engine, program, options, contract, start);
#endif
    // Each is unused in a build without adapters.
    static_cast<void>(engine), static_cast<void>(batch), static_cast<void>(wanted);
    if (options.network == "gaussian") return gaussian_sampler(program, options, contract, start);
    if (options.network == "auto")
        throw input_error(
            "this pfdiff-run was built without a network adapter; run cmake with -DONNXRUNTIME_ROOT=FOLDER or "
            "-DTENSORRT_ROOT=FOLDER, or try --network gaussian");
    throw input_error("network " + quoted(options.network) + " is not built in; there is " + built + "gaussian");
}

const pfd_program_t* choose_program(const pfd_engine_t* engine, int nfe) {
    std::string known;
    for (std::size_t i = 0; i < pfd_program_count(engine); ++i)
        known += (i > 0 ? ", " : "") + std::to_string(pfd_program_nfe(engine, i));
    if (nfe == 0 && pfd_program_count(engine) > 1)
        throw input_error("this engine has programs of NFE " + printable(known, 120) + "; choose one with --nfe");
    const pfd_program_t* program = nullptr;
    check(pfd_program(engine, nfe != 0 ? nfe : pfd_program_nfe(engine, 0), &program));
    return program;
}

void run(const Options& options) {
    pfd_engine_t* opened = nullptr;
    check(pfd_open(options.engine.c_str(), &opened));
    const std::unique_ptr<pfd_engine_t, decltype(&pfd_close)> engine(opened, pfd_close);
    pfd_contract_view_t contract{};
    contract.struct_size = sizeof contract;
    check(pfd_contract(engine.get(), &contract));
    if (options.network != "gaussian") check_conditions(engine.get(), contract, options);
    std::unique_ptr<const Start> start;
    if (!options.start.empty()) start = std::make_unique<Start>(read_start(engine.get(), contract, options));
    if (start != nullptr && options.nfe != 0 && options.nfe != start->program.nfe)
        throw input_error("--nfe " + std::to_string(options.nfe) + ", but --start was written for " +
                          std::to_string(start->program.nfe) + " evaluations; leave --nfe out");
    const auto* program = start != nullptr ? &start->program : choose_program(engine.get(), options.nfe);
    const auto largest = contract.batch_count > 0 ? contract.batches[contract.batch_count - 1] : 1;
    const auto batch = contract.fixed_batch != 0 ? contract.fixed_batch : options.batch != 0 ? options.batch : largest;
    if (contract.fixed_batch != 0 && options.batch != 0 && options.batch != contract.fixed_batch)
        throw input_error("--batch " + std::to_string(options.batch) + ", but this network takes only batch " +
                          std::to_string(contract.fixed_batch));
    const auto sampler = make_sampler(engine.get(), program, options, contract, batch, start.get());

    const auto maker = options.pixels ? pixel_maker(engine.get(), contract, options) : PixelMaker{};

    const auto total = static_cast<std::int64_t>(options.seeds.size());
    std::vector<float> samples, chunk;
    std::vector<std::uint8_t> pixels;
    for (std::int64_t done = 0; done < total; done += batch) {
        const auto now = std::min(batch, total - done);
        std::vector<std::uint64_t> seeds(options.seeds.begin() + done, options.seeds.begin() + done + now);
        // A network of one batch size gets its fill; what is too much is dropped.
        if (contract.fixed_batch != 0) seeds.resize(static_cast<std::size_t>(batch), seeds.back());
        chunk.resize(seeds.size() * static_cast<std::size_t>(contract.elements));
        sampler(seeds, chunk.data());
        if (options.pixels)
            maker.add(chunk.data(), now, pixels);
        else
            samples.insert(samples.end(), chunk.begin(), chunk.begin() + now * contract.elements);
    }
    std::vector<std::int64_t> shape{total};
    if (options.pixels) {
        shape.insert(shape.end(), maker.shape.begin(), maker.shape.end());
        write_npy(options.output, pixels, shape);
        return;
    }
    shape.insert(shape.end(), contract.shape, contract.shape + contract.rank);
    write_npy(options.output, samples, shape);
}

}  // namespace
}  // namespace pfdiff::run

int main(int count, char** words) {
    const auto status = pfdiff::guarded([&] {
        const auto options = pfdiff::run::parse_options(count, words);
        if (options.help)
            std::fputs(pfdiff::run::usage, stdout);
        else
            pfdiff::run::run(options);
    });
    if (status != PFD_OK) std::fprintf(stderr, "pfdiff-run: %s\n", pfd_last_error());
    return status == PFD_OK ? 0 : status == PFD_INPUT_ERROR || status == PFD_ENGINE_FILE_ERROR ? 2 : 1;
}
