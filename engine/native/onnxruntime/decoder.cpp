// The decoder of pfdiff_onnxruntime.h, and the way back, which is the same with other files and shapes: over the
// caller's samples and images, nothing copied in fp32.
#include <cmath>
#include <memory>

#include "../error.h"
#include "../feed.h"
#include "../halfs.h"
#include "../pfdiff_onnxruntime.h"
#include "session.h"

namespace {

using View = pfd_status_t (*)(const pfd_engine_t*, pfd_decoder_view_t*);

pfd_decoder_view_t view_of(const pfd_engine_t* engine, View view, const char* what) {
    pfd_decoder_view_t found{};
    found.struct_size = sizeof found;
    if (const auto status = view(engine, &found); status != PFD_OK) throw pfdiff::Error(status, pfd_last_error());
    if (found.name == nullptr) throw pfdiff::input_error("this engine has no " + std::string(what));
    return found;
}

}  // namespace

struct pfd_onnxruntime_decoder_t final {
    // What the view points to is copied: the engine may be closed. taken: the shape of what it is given.
    pfd_onnxruntime_decoder_t(const pfd_engine_t* engine, const pfd_decoder_view_t& view, const char* what,
                              std::vector<std::int64_t> taken, const char* file, int threads)
        : name(what),
          input(view.input),
          output(view.output),
          precision(view.precision),
          from(std::move(taken)),
          to(view.image, view.image + view.rank),
          made(view.elements),
          fixed_batch(view.fixed_batch),
          session(engine, file, threads) {
        for (const auto size : from) given *= size;
    }

    void run(const float* values, std::int64_t batch, float* into) const {
        if (batch < 1 || (fixed_batch != 0 && batch != fixed_batch))
            throw pfdiff::input_error("batch " + std::to_string(batch) + ", but this " + name + " takes " +
                                      (fixed_batch != 0 ? "only " + std::to_string(fixed_batch) : "at least 1"));
        const bool half = precision != "fp32";
        const auto count = static_cast<std::size_t>(batch * given), results = static_cast<std::size_t>(batch * made);
        std::vector<std::uint16_t> half_values, half_results(half ? results : 0);
        if (half) half_values = pfdiff::halves_from(values, count, precision);
        // ONNX Runtime does not write to inputs, but its interface takes them without const.
        void* first = half ? static_cast<void*>(half_values.data()) : const_cast<float*>(values);
        void* last = half ? static_cast<void*>(half_results.data()) : into;
        const auto width = half ? sizeof(std::uint16_t) : sizeof(float);
        std::vector<pfdiff::Owned<OrtValue>> inputs;
        inputs.push_back(session.tensor(first, count * width, pfdiff::Feed::batched(batch, from), precision));
        const auto written = session.tensor(last, results * width, pfdiff::Feed::batched(batch, to), precision);
        session.run({input.c_str()}, inputs, output.c_str(), written.get());
        if (half) pfdiff::floats_from(half_results, into, precision);
        for (std::size_t i = 0; i < results; ++i)
            if (!std::isfinite(into[i]))
                throw pfdiff::backend_error(
                    "what the " + name + " makes is not finite in " + precision + "; " +
                    (half ? "build with a decoder in fp32" : "check its weights and its scaling"));
    }

    std::string name, input, output, precision;
    std::vector<std::int64_t> from, to;
    std::int64_t given = 1, made, fixed_batch;
    pfdiff::Session session;
};

extern "C" pfd_status_t pfd_onnxruntime_decoder_create(const pfd_engine_t* engine, int32_t threads,
                                                       pfd_onnxruntime_decoder_t** decoder) {
    return pfdiff::guarded([&] {
        pfdiff::check_place(engine, decoder, threads, "decoder");
        const auto view = view_of(engine, pfd_decoder, "decoder, its samples are the result");
        const auto shape = pfdiff::Feed(engine).shape;
        *decoder = std::make_unique<pfd_onnxruntime_decoder_t>(engine, view, "decoder", shape, "decoder.onnx", threads)
                       .release();
    });
}

extern "C" pfd_status_t pfd_onnxruntime_image_encoder_create(const pfd_engine_t* engine, int32_t threads,
                                                             pfd_onnxruntime_decoder_t** encoder) {
    return pfdiff::guarded([&] {
        pfdiff::check_place(engine, encoder, threads, "encoder");
        const auto view = view_of(engine, pfd_image_encoder, "image encoder; give samples, or build it with encoders");
        const auto pictures = view_of(engine, pfd_decoder, "decoder, so its image encoder has no pictures");
        std::vector<std::int64_t> shape(pictures.image, pictures.image + pictures.rank);
        *encoder = std::make_unique<pfd_onnxruntime_decoder_t>(engine, view, "image encoder", std::move(shape),
                                                               "encoders/image.onnx", threads)
                       .release();
    });
}

extern "C" void pfd_onnxruntime_decoder_free(pfd_onnxruntime_decoder_t* decoder) { delete decoder; }

extern "C" pfd_status_t pfd_onnxruntime_decode(pfd_onnxruntime_decoder_t* decoder, const float* samples, int64_t batch,
                                               float* images) {
    return pfdiff::guarded([&] {
        if (decoder == nullptr || samples == nullptr || images == nullptr)
            throw pfdiff::input_error("decoding without a decoder, samples or a place for images; give all three");
        decoder->run(samples, batch, images);
    });
}
