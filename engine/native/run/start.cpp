#include "start.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>

#include "../error.h"
#include "../json.h"
#include "npy.h"
#ifdef PFD_WITH_ONNXRUNTIME
#include "../pfdiff_onnxruntime.h"
#endif

namespace pfdiff::run {
namespace {

using Shape = std::vector<std::int64_t>;

constexpr std::size_t most_bytes = 16 << 20;
constexpr double half = 128;  // of 255: where a pixel of a mask counts as white

std::string listed(const Shape& shape) {
    std::string text = "[";
    for (const auto size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
    return text + "]";
}

// What to do with a picture that is not [C, H, W]; none where there are only too few or too many of them.
std::string remedy(std::int64_t rows, const Shape& shown) {
    if (rows != 0) return "";
    return "; resize it to " + std::to_string(shown[2]) + " x " + std::to_string(shown[1]) + " pixels";
}

std::int64_t product(const Shape& shape) {
    std::int64_t found = 1;
    for (const auto size : shape) found *= size;
    return found;
}

// How many of `shape` an array holds: 1 for the shape itself, its first size before it; 0 when it is another one.
std::int64_t rows_of(const Shape& given, const Shape& shape) {
    if (given == shape) return 1;
    if (given.size() == shape.size() + 1 && Shape(given.begin() + 1, given.end()) == shape) return given.front();
    return 0;
}

void read_program_of(Start& start, const pfd_contract_view_t& contract, const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string text(most_bytes + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(file.gcount()));
    if (text.empty() || text.size() > most_bytes)
        throw input_error("--start " + quoted(path) + " is missing, empty or larger than 16 MiB");
    const auto document = json::parse(text, "the start");
    const json::Node root(document, "start:");
    if (root["format"].string() != "pfdiff-start 1")
        root["format"].refuse(quoted(root["format"].string()), "'pfdiff-start 1', of `pfdiff table export --strength`");
    start.program = read_program(root["program"]);
    const auto factors = root["start"].numbers({2});
    start.picture = factors[0], start.noise = factors[1];
    start.known = root["known"].numbers({static_cast<std::size_t>(start.program.nfe), 2});
    for (const auto number : start.known)
        if (!std::isfinite(number)) root["known"].refuse("not finite", "finite numbers");
    if (!std::isfinite(start.picture) || !std::isfinite(start.noise))
        root["start"].refuse("not finite", "finite numbers");
    if (start.program.schedule != contract.schedule || start.program.prediction != contract.prediction)
        throw input_error("--start " + quoted(path) + " is of schedule " + quoted(start.program.schedule) + " and " +
                          start.program.prediction + ", this engine of " + quoted(contract.schedule) + " and " +
                          contract.prediction + "; write it of this engine");
}

// Pictures [rows][C, H, W] become samples by encoders/image.onnx, one at a time.
std::vector<float> encoded([[maybe_unused]] const pfd_engine_t* engine, [[maybe_unused]] const Options& options,
                           [[maybe_unused]] const std::vector<float>& pictures, [[maybe_unused]] std::int64_t rows,
                           [[maybe_unused]] std::int64_t elements) {
#ifdef PFD_WITH_ONNXRUNTIME
    const auto check = [](pfd_status_t status) {
        if (status != PFD_OK) throw Error(status, pfd_last_error());
    };
    pfd_decoder_view_t view{};
    view.struct_size = sizeof view;
    check(pfd_image_encoder(engine, &view));
    pfd_onnxruntime_decoder_t* made = nullptr;
    check(pfd_onnxruntime_image_encoder_create(engine, options.threads, &made));
    const std::unique_ptr<pfd_onnxruntime_decoder_t, decltype(&pfd_onnxruntime_decoder_free)> owned(
        made, pfd_onnxruntime_decoder_free);
    const auto size = static_cast<std::int64_t>(pictures.size()) / rows,
               batch = std::max<std::int64_t>(view.fixed_batch, 1);
    std::vector<float> found, filled(static_cast<std::size_t>(batch * size)),
        samples(static_cast<std::size_t>(batch * elements));
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t copy = 0; copy < batch; ++copy)
            std::copy_n(pictures.begin() + row * size, size, filled.begin() + copy * size);
        check(pfd_onnxruntime_decode(made, filled.data(), batch, samples.data()));
        found.insert(found.end(), samples.begin(), samples.begin() + elements);
    }
    return found;
#else
    throw input_error("--image: pictures of a latent model need ONNX Runtime; give samples, or build with it");
#endif
}

void read_image(Start& start, const pfd_engine_t* engine, const pfd_contract_view_t& contract, const Options& options,
                const Shape& shown, const Shape& sample) {
    const auto given = read_npy(options.image);
    const auto seeds = static_cast<std::int64_t>(options.seeds.size());
    std::vector<float> values(given.values.size());
    const bool bytes = given.kind == "|u1" && shown.size() == 3;
    const Shape pixels = bytes ? Shape{shown[1], shown[2], shown[0]} : shown;
    auto rows = rows_of(given.shape, pixels);
    const bool picture = rows != 0;
    if (!picture) rows = bytes ? 0 : rows_of(given.shape, sample);
    if ((!bytes && given.kind != "<f4" && given.kind != "<f8") || (rows != 1 && rows != seeds))
        throw input_error("--image: got " + printable(given.kind, 4) + " " + listed(given.shape) + ", expected uint8 " +
                          listed({shown[1], shown[2], shown[0]}) + ", floats " + listed(shown) +
                          (shown == sample ? "" : " or samples " + listed(sample)) + ", or one for each seed" +
                          remedy(rows, shown));
    const float low = static_cast<float>(contract.data_range[0]),
                range = static_cast<float>(contract.data_range[1] - contract.data_range[0]);
    if (bytes) {
        const auto channels = shown[0], area = shown[1] * shown[2];
        for (std::int64_t row = 0; row < rows; ++row)
            for (std::int64_t c = 0; c < channels; ++c)
                for (std::int64_t i = 0; i < area; ++i) {
                    const auto level = given.values[static_cast<std::size_t>((row * area + i) * channels + c)];
                    values[static_cast<std::size_t>((row * channels + c) * area + i)] =
                        static_cast<float>(level) / 255.0f * range + low;
                }
    } else {
        for (std::size_t i = 0; i < values.size(); ++i) {
            values[i] = static_cast<float>(given.values[i]);
            if (!std::isfinite(values[i]))
                throw input_error("--image has NaN or infinite values, expected finite ones");
        }
    }
    start.x_0 = picture && shown != sample ? encoded(engine, options, values, rows, product(sample)) : values;
}

void read_mask(Start& start, const Options& options, const Shape& shown, const Shape& sample) {
    const auto given = read_npy(options.mask);
    const auto seeds = static_cast<std::int64_t>(options.seeds.size());
    const bool plane = sample.size() == 3;
    const auto side = [&](const Shape& shape) { return plane ? Shape(shape.begin() + 1, shape.end()) : shape; };
    Shape size = side(shown);
    auto rows = plane ? rows_of(given.shape, size) : 0;
    if (rows == 0) size = side(sample), rows = rows_of(given.shape, size);
    if (rows != 1 && rows != seeds)
        throw input_error("--mask: got " + listed(given.shape) + ", expected " + listed(side(shown)) +
                          ", or one for each seed" + remedy(rows, shown));
    double high = 0;
    const bool bytes = given.kind == "|u1", floats = given.kind == "<f4" || given.kind == "<f8";
    for (const auto value : given.values) {
        if (!(value >= 0 && value <= (bytes ? 255 : 1)))
            throw input_error("--mask has values outside 0 to 1, expected 0 and 1, or uint8 0 to 255");
        high = std::max(high, value);
    }
    const double white = floats ? 0.5 : high > 1 ? half : 1;
    const auto area = product(size), elements = product(sample);
    for (std::int64_t row = 0; row < rows; ++row)
        for (std::int64_t e = 0; e < elements; ++e) {
            auto at = e;
            if (plane) {  // the nearest element, as torch's interpolate has it
                const auto height = sample[1], width = sample[2], i = e / width % height, j = e % width;
                at = i * size[0] / height * size[1] + j * size[1] / width;
            }
            start.mask.push_back(given.values[static_cast<std::size_t>(row * area + at)] >= white);
        }
}

}  // namespace

Start read_start(const pfd_engine_t* engine, const pfd_contract_view_t& contract, const Options& options) {
    Start start;
    read_program_of(start, contract, options.start);
    pfd_decoder_view_t decoder{};
    decoder.struct_size = sizeof decoder;
    if (pfd_decoder(engine, &decoder) != PFD_OK) throw Error(PFD_INTERNAL_ERROR, pfd_last_error());
    const Shape sample(contract.shape, contract.shape + contract.rank);
    const Shape shown = decoder.name == nullptr ? sample : Shape(decoder.image, decoder.image + decoder.rank);
    if (shown.size() != 3) throw input_error("--image: what this engine makes are no pictures [C, H, W]");
    if (start.picture == 0 && options.mask.empty())
        throw input_error("--start of strength 1 starts from noise alone; give --mask, or a smaller strength");
    start.elements = contract.elements;
    read_image(start, engine, contract, options, shown, sample);
    if (!options.mask.empty()) read_mask(start, options, shown, sample);
    return start;
}

Start::Batch Start::begin(std::int64_t first, std::int64_t batch, float* state) const {
    const auto rows_in = [&](std::size_t count) { return static_cast<std::int64_t>(count) / elements; };
    const auto picture_factor = static_cast<float>(picture), noise_factor = static_cast<float>(noise);
    Batch made;
    for (std::int64_t i = 0; i < batch; ++i) {
        const auto* const x = x_0.data() + std::min(first + i, rows_in(x_0.size()) - 1) * elements;
        float* const z = state + i * elements;
        if (picture != 0)
            for (std::int64_t e = 0; e < elements; ++e) z[e] = picture_factor * x[e] + noise_factor * z[e];
        if (mask.empty()) continue;
        const auto* const kept = mask.data() + std::min(first + i, rows_in(mask.size()) - 1) * elements;
        made.picture.insert(made.picture.end(), x, x + elements);
        made.mask.insert(made.mask.end(), kept, kept + elements);
    }
    return made;
}

}  // namespace pfdiff::run
