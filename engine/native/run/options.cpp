#include "options.h"

#include <charconv>

#include "error.h"
#include "npy.h"

namespace pfdiff::run {
namespace {

template <class Number>
Number parse_number(const std::string& text, const std::string& what) {
    Number number{};
    const auto end = text.data() + text.size();
    if (const auto read = std::from_chars(text.data(), end, number); read.ec != std::errc{} || read.ptr != end)
        throw input_error(what + " " + quoted(text) + ", expected a number");
    return number;
}

}  // namespace

const char* const usage =
    "usage: pfdiff-run ENGINE -o FILE.npy [--nfe N] [--seeds 0-15] [--pixels]\n"
    "                  [--start FILE.json --image FILE.npy [--mask FILE.npy]] [--network NAME] [--plan FILE]\n"
    "                  [--condition NAME=VALUE] [--batch N] [--threads N]\n"
    "\n"
    "Samples from an engine directory and writes float32 [seeds, *shape] as .npy.\n"
    "\n"
    "  --nfe N               network evaluations per sample; needed when the engine has several programs\n"
    "  --seeds LIST          such as 0-15 or 3,8,20-29; a seed names one sample (default 0)\n"
    "  --pixels              write uint8 [seeds, height, width, channels]; a latent model is decoded by ONNX Runtime\n"
    "  --start FILE.json     with a picture: what `pfdiff table export --strength` wrote of this engine\n"
    "  --image FILE.npy      uint8 [height, width, channels], floats in the data's range or samples; or one for each "
    "seed\n"
    "  --mask FILE.npy       [height, width], 1 or white where it is drawn anew, 0 where the picture is kept\n"
    "  --network NAME        auto, onnxruntime, tensorrt or gaussian; gaussian is the exact network of Gaussian data,\n"
    "                        for tests: it ignores network.onnx. auto is the best adapter that was built\n"
    "  --plan FILE           the TensorRT plan to run; a plan is code, name only one that you built\n"
    "  --condition NAME=V    a number for a condition of the network, for all samples, such as label=3, or an array\n"
    "                        FILE.npy: the condition's shape, or a row for each seed\n"
    "  --batch N             samples at once (default: the largest batch the engine was built for)\n"
    "  --threads N           CPU threads (default: all)\n";

std::vector<std::uint64_t> parse_seeds(const std::string& text) {
    constexpr std::uint64_t most = 1 << 20;
    std::vector<std::uint64_t> seeds;
    for (std::size_t start = 0; start <= text.size();) {
        const auto end = std::min(text.find(',', start), text.size());
        const auto part = text.substr(start, end - start);
        const auto dash = part.find('-');
        if (part.empty() || dash == 0 || part.find_first_not_of("0123456789-") != std::string::npos)
            throw input_error("--seeds " + quoted(text) + ": " + quoted(part) +
                              " is no seed; expected integers and ranges such as 0-15 or 3,8,20-29");
        const auto first = parse_number<std::uint64_t>(part.substr(0, dash), "--seeds");
        const auto last =
            dash == std::string::npos ? first : parse_number<std::uint64_t>(part.substr(dash + 1), "--seeds");
        if (last < first) throw input_error("--seeds " + quoted(part) + " runs backwards; write the lower seed first");
        if (last - first >= most - seeds.size())
            throw input_error("--seeds " + quoted(text) + " names more than 1048576 samples; run several times");
        for (auto seed = first;; ++seed) {
            seeds.push_back(seed);
            if (seed == last) break;
        }
        start = end + 1;
    }
    return seeds;
}

namespace {

// NAME=VALUE, or NAME=FILE.npy.
void set_condition(Options& options, const std::string& text) {
    const auto equals = text.find('=');
    if (equals == std::string::npos) throw input_error("--condition " + quoted(text) + ", expected NAME=VALUE");
    const auto given = text.substr(equals + 1);
    auto& values = options.conditions[text.substr(0, equals)];
    if (given.ends_with(".npy"))
        values = read_npy(given).values;
    else
        values = {parse_number<double>(given, "--condition")};
}

// What options say together.
void check(const Options& options) {
    if (options.start.empty() != options.image.empty())
        throw input_error("--start and --image belong together; write --start by `pfdiff table export --strength 0.6`");
    if (!options.mask.empty() && options.image.empty())
        throw input_error("--mask without --image, of which it says what is kept; give both");
    if (!options.help && options.engine.empty()) throw input_error("no engine; see pfdiff-run --help");
    if (!options.help && !options.output.ends_with(".npy"))
        throw input_error("output " + quoted(options.output) + ", expected a name that ends in .npy; give -o FILE.npy");
}

}  // namespace

Options parse_options(int count, const char* const* words) {
    Options options;
    for (int at = 1; at < count; ++at) {
        const std::string word = words[at];
        const auto value = [&]() -> std::string {
            if (at + 1 >= count) throw input_error(word + " needs a value; see pfdiff-run --help");
            return words[++at];
        };
        const auto in_range = [&](std::int64_t low, std::int64_t high) {
            const auto number = parse_number<std::int64_t>(value(), word);
            if (number < low || number > high)
                throw input_error(word + " " + std::to_string(number) + ", expected " + std::to_string(low) + ".." +
                                  std::to_string(high));
            return number;
        };
        if (word == "-h" || word == "--help") {
            options.help = true;
        } else if (word == "-o" || word == "--output") {
            options.output = value();
        } else if (word == "--nfe") {
            options.nfe = static_cast<int>(in_range(1, 4096));
        } else if (word == "--seeds") {
            options.seeds = parse_seeds(value());
        } else if (word == "--pixels") {
            options.pixels = true;
        } else if (word == "--network") {
            options.network = value();
        } else if (word == "--plan") {
            options.plan = value();
        } else if (word == "--start") {
            options.start = value();
        } else if (word == "--image") {
            options.image = value();
        } else if (word == "--mask") {
            options.mask = value();
        } else if (word == "--batch") {
            options.batch = in_range(1, 1 << 20);
        } else if (word == "--threads") {
            options.threads = static_cast<int>(in_range(1, 1024));
        } else if (word == "--condition") {
            set_condition(options, value());
        } else if (word.starts_with("-")) {
            throw input_error("unknown option " + quoted(word) + "; see pfdiff-run --help");
        } else if (options.engine.empty()) {
            options.engine = word;
        } else {
            throw input_error("two engines, " + quoted(options.engine) + " and " + quoted(word) + "; give one");
        }
    }
    check(options);
    return options;
}

}  // namespace pfdiff::run
