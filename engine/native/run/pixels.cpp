#include "pixels.h"

#include <algorithm>
#include <memory>

#include "../error.h"
#ifdef PFD_WITH_ONNXRUNTIME
#include "../pfdiff_onnxruntime.h"
#endif

namespace pfdiff::run {
namespace {

using Decode = std::function<void(const float* samples, std::int64_t batch, float* images)>;

void check(pfd_status_t status) {
    if (status != PFD_OK) throw Error(status, pfd_last_error());
}

Decode decoder_of([[maybe_unused]] const pfd_engine_t* engine, [[maybe_unused]] const Options& options) {
#ifdef PFD_WITH_ONNXRUNTIME
    pfd_onnxruntime_decoder_t* made = nullptr;
    check(pfd_onnxruntime_decoder_create(engine, options.threads, &made));
    const std::shared_ptr<pfd_onnxruntime_decoder_t> owned(made, pfd_onnxruntime_decoder_free);
    return [owned](const float* samples, std::int64_t batch, float* images) {
        check(pfd_onnxruntime_decode(owned.get(), samples, batch, images));
    };
#else
    throw input_error("--pixels of a latent model needs ONNX Runtime; run cmake with -DONNXRUNTIME_ROOT=FOLDER");
#endif
}

}  // namespace

PixelMaker pixel_maker(const pfd_engine_t* engine, const pfd_contract_view_t& contract, const Options& options) {
    pfd_decoder_view_t decoder{};
    decoder.struct_size = sizeof decoder;
    check(pfd_decoder(engine, &decoder));
    const bool latent = decoder.name != nullptr;
    const auto* sizes = latent ? decoder.image : contract.shape;
    const auto rank = latent ? decoder.rank : contract.rank;
    if (!latent && rank != 3)
        throw input_error("--pixels: samples of " + std::to_string(rank) + " sizes are no pictures [C, H, W]");
    const auto channels = sizes[0], elements = latent ? decoder.elements : contract.elements;
    PixelMaker maker;
    maker.shape.assign(sizes + 1, sizes + rank);
    maker.shape.push_back(channels);
    const auto decode = latent ? decoder_of(engine, options) : Decode{};
    const auto low = contract.data_range[0], high = contract.data_range[1];
    const auto fixed = latent ? decoder.fixed_batch : 0, taken = contract.elements;
    maker.add = [=](const float* samples, std::int64_t batch, std::vector<std::uint8_t>& pixels) {
        std::vector<float> images, filled;
        const float* shown = samples;
        if (decode) {
            const auto whole = std::max(batch, fixed);  // a decoder of one batch size gets its fill
            filled.assign(samples, samples + batch * taken);
            for (auto row = batch; row < whole; ++row)
                filled.insert(filled.end(), samples + (batch - 1) * taken, samples + batch * taken);
            images.resize(static_cast<std::size_t>(whole * elements));
            decode(filled.data(), whole, images.data());
            shown = images.data();
        }
        const auto before = pixels.size();
        pixels.resize(before + static_cast<std::size_t>(batch * elements));
        check(pfd_pixels(shown, batch, channels, elements / channels, low, high, pixels.data() + before));
    };
    return maker;
}

}  // namespace pfdiff::run
