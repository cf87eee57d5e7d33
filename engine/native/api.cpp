// The C functions of pfdiff.h that look things up; sampling stands in sampler.cpp, noise in noise.cpp.
#include <algorithm>
#include <cstring>
#include <memory>

#include "artifact.h"
#include "error.h"

namespace {

// Copies as much of a view as the caller's version of the structure has.
template <class View>
void give(const View& full, View* view) {
    constexpr std::size_t least = sizeof(std::size_t);
    const auto size = view != nullptr ? view->struct_size : 0;
    if (size < least)
        throw pfdiff::input_error("a view whose struct_size is " + std::to_string(size) +
                                  "; set it to sizeof the view");
    std::memcpy(view, &full, std::min(size, sizeof full));
    view->struct_size = size;
}

template <class Object>
const Object& given(const Object* object, const char* what) {
    if (object == nullptr) throw pfdiff::input_error(std::string("NULL instead of ") + what);
    return *object;
}

pfd_decoder_view_t view_of(const std::optional<pfdiff::Decoder>& decoder) {
    pfd_decoder_view_t view{};
    if (!decoder) return view;
    view.name = decoder->name.c_str(), view.precision = decoder->precision.c_str();
    view.input = decoder->input.c_str(), view.output = decoder->output.c_str();
    view.rank = static_cast<std::int32_t>(decoder->image.size()), view.image = decoder->image.data();
    view.elements = decoder->elements, view.fixed_batch = decoder->fixed_batch;
    return view;
}

}  // namespace

extern "C" const char* pfd_version(void) { return PFD_VERSION; }

extern "C" pfd_status_t pfd_open(const char* directory, pfd_engine_t** engine) {
    return pfdiff::guarded([&] {
        given(directory, "the engine's directory"), given(engine, "a place for the engine");
        *engine = nullptr;
        *engine = std::make_unique<pfd_engine_t>(pfdiff::open_engine(directory)).release();
    });
}

extern "C" void pfd_close(pfd_engine_t* engine) { delete engine; }

extern "C" size_t pfd_program_count(const pfd_engine_t* engine) {
    return engine != nullptr ? engine->programs.size() : 0;
}

extern "C" int32_t pfd_program_nfe(const pfd_engine_t* engine, size_t index) {
    if (index >= pfd_program_count(engine)) return 0;
    return std::next(engine->programs.begin(), static_cast<std::ptrdiff_t>(index))->first;
}

extern "C" pfd_status_t pfd_program(const pfd_engine_t* engine, int32_t nfe, const pfd_program_t** program) {
    return pfdiff::guarded([&] {
        given(engine, "an engine"), given(program, "a place for the program");
        *program = nullptr;
        const auto found = engine->programs.find(nfe);
        if (found == engine->programs.end()) {
            std::string known;
            for (const auto& [each, unused] : engine->programs)
                known += (known.empty() ? "" : ", ") + std::to_string(each);
            throw pfdiff::input_error("this engine has no program of NFE " + std::to_string(nfe) + "; it has " +
                                      pfdiff::printable(known, 120) + ": choose one or rebuild with --nfe " +
                                      std::to_string(nfe));
        }
        *program = &found->second;
    });
}

extern "C" pfd_status_t pfd_contract(const pfd_engine_t* engine, pfd_contract_view_t* view) {
    return pfdiff::guarded([&] {
        const auto& c = given(engine, "an engine").contract;
        pfd_contract_view_t full{};
        full.name = c.name.c_str(), full.schedule = c.schedule.c_str();
        full.prediction = c.prediction.c_str(), full.precision = c.precision.c_str();
        full.input = c.input.c_str(), full.time = c.time.c_str(), full.output = c.output.c_str();
        full.time_dtype = c.time_dtype.c_str(), full.time_scale = c.time_scale, full.time_rank = c.time_rank;
        full.rank = static_cast<std::int32_t>(c.shape.size()), full.shape = c.shape.data(), full.elements = c.elements;
        full.fixed_batch = c.fixed_batch, full.sigma_data = c.sigma_data;
        full.data_range[0] = c.data_range[0], full.data_range[1] = c.data_range[1];
        full.condition_count = c.conditions.size();
        full.batch_count = engine->batches.size(), full.batches = engine->batches.data();
        give(full, view);
    });
}

extern "C" pfd_status_t pfd_condition(const pfd_engine_t* engine, size_t index, pfd_condition_view_t* view) {
    return pfdiff::guarded([&] {
        const auto& conditions = given(engine, "an engine").contract.conditions;
        if (index >= conditions.size())
            throw pfdiff::input_error("condition " + std::to_string(index) + ", but this network has " +
                                      std::to_string(conditions.size()));
        const auto& c = conditions[index];
        pfd_condition_view_t full{};
        full.name = c.name.c_str(), full.dtype = c.dtype.c_str();
        full.rank = static_cast<std::int32_t>(c.shape.size()), full.shape = c.shape.data(), full.elements = c.elements;
        full.has_default = c.default_value.has_value(), full.default_value = c.default_value.value_or(0);
        full.has_low = c.low.has_value(), full.low = c.low.value_or(0);
        full.has_high = c.high.has_value(), full.high = c.high.value_or(0);
        give(full, view);
    });
}

extern "C" pfd_status_t pfd_decoder(const pfd_engine_t* engine, pfd_decoder_view_t* view) {
    return pfdiff::guarded([&] { give(view_of(given(engine, "an engine").decoder), view); });
}

extern "C" pfd_status_t pfd_image_encoder(const pfd_engine_t* engine, pfd_decoder_view_t* view) {
    return pfdiff::guarded([&] { give(view_of(given(engine, "an engine").image_encoder), view); });
}

extern "C" pfd_status_t pfd_file_path(const pfd_engine_t* engine, const char* name, const char** path) {
    return pfdiff::guarded([&] {
        given(engine, "an engine"), given(name, "a file's name"), given(path, "a place for the path");
        const auto found = engine->paths.find(name);
        if (found == engine->paths.end())
            throw pfdiff::input_error("this engine lists no file " + pfdiff::quoted(name) + "; see engine.json, files");
        *path = found->second.c_str();
    });
}

extern "C" pfd_status_t pfd_program_from_json(const char* text, size_t length, pfd_program_t** program) {
    return pfdiff::guarded([&] {
        given(text, "the program's JSON"), given(program, "a place for the program");
        *program = nullptr;
        const auto document = pfdiff::json::parse({text, length}, "program");
        *program = std::make_unique<pfd_program_t>(pfdiff::read_program({document, "program:"})).release();
    });
}

extern "C" void pfd_program_free(pfd_program_t* program) { delete program; }

extern "C" pfd_status_t pfd_program_view(const pfd_program_t* program, pfd_program_view_t* view) {
    return pfdiff::guarded([&] {
        const auto& p = given(program, "a program");
        pfd_program_view_t full{};
        full.solver = p.solver.c_str(), full.schedule = p.schedule.c_str();
        full.basis = p.basis.c_str(), full.prediction = p.prediction.c_str();
        full.nfe = p.nfe, full.buffers = p.buffers;
        full.has_clip = p.clip.has_value(), full.clip = p.clip.value_or(0), full.sigma_data = p.sigma_data;
        full.times = p.times.data(), full.network_times = p.network_times.data(), full.c_in = p.c_in.data();
        full.init = p.init.data(), full.p = p.p.data(), full.q = p.q.data();
        full.W = p.W.data(), full.w = p.w.data(), full.table = p.table.data();
        full.noises = static_cast<std::int32_t>(p.draws.size()), full.draws = p.draws.data(), full.V = p.V.data();
        full.U = p.U.empty() ? nullptr : p.U.data();
        give(full, view);
    });
}
