#include "artifact.h"

#include <charconv>
#include <set>

#include "canonical.h"
#include "directory.h"
#include "error.h"
#include "external_weights.h"

namespace pfdiff {
namespace {

constexpr std::int64_t newest_format = 1;
constexpr std::uint64_t largest_manifest_bytes = 16 << 20;  // as Python: LARGEST_MANIFEST_BYTES

int nfe_of_key(const std::string& key, const json::Node& node) {
    int nfe = 0;
    const auto end = key.data() + key.size();
    if (const auto read = std::from_chars(key.data(), end, nfe); read.ec != std::errc{} || read.ptr != end)
        node.refuse("under the key " + quoted(key), "its NFE as the key, such as \"8\"");
    return nfe;
}

void read_programs(const json::Node& node, pfd_engine_t& engine) {
    for (const auto& [key, child] : node.fields()) {
        const int nfe = nfe_of_key(key, child);
        auto program = read_program(child);
        if (program.nfe != nfe) child["nfe"].refuse(std::to_string(program.nfe), std::to_string(nfe) + ", its key");
        if (program.prediction != engine.contract.prediction)
            child["prediction"].refuse(quoted(program.prediction),
                                       quoted(engine.contract.prediction) + ", the network's");
        if (!engine.programs.emplace(nfe, std::move(program)).second)
            child.refuse("a second program of " + std::to_string(nfe) + " evaluations", "one");
    }
    if (engine.programs.empty()) node.refuse("empty", "at least one program");
}

void verify_files(const json::Node& node, const Directory& directory, pfd_engine_t& engine) {
    for (const auto& [name, file] : node.fields()) {
        const auto hash = file["sha256"];
        const auto& digits = hash.string();
        if (digits.size() != 64 || digits.find_first_not_of("0123456789abcdef") != std::string::npos)
            hash.refuse(quoted(digits), "64 lower-case hex digits");
        directory.verify(name, static_cast<std::uint64_t>(file["bytes"].integer(0, INT64_MAX)), digits);
        engine.paths[name] = directory.path() + "/" + name;
    }
    if (!engine.paths.contains("network.onnx")) node.refuse("without 'network.onnx'", "the network among the files");
    if (engine.decoder && !engine.paths.contains("decoder.onnx"))
        node.refuse("without 'decoder.onnx'", "the decoder among the files");
    if (engine.image_encoder && !engine.paths.contains("encoders/image.onnx"))
        node.refuse("without 'encoders/image.onnx'", "the image encoder among the files");
}

// A file of weights that is not listed has no hash: it would be loaded unverified and belong to no digest.
void verify_external_weights(const Directory& directory, const pfd_engine_t& engine) {
    for (const std::string network : {"network.onnx", "decoder.onnx", "encoders/image.onnx"})
        if (engine.paths.contains(network))
            for (const auto& location : external_weights(directory, network))
                if (!engine.paths.contains(network.substr(0, network.find('/') + 1) + location))
                    throw file_error(quoted(network) + " keeps weights in " + quoted(location) +
                                     ", which is not among the files of engine.json; rebuild the engine with "
                                     "`pfdiff build`");
}

// The bucket sizes, ascending. A network of one batch size has no other bucket.
std::vector<std::int64_t> read_batches(const json::Node& root, std::int64_t network_batch) {
    constexpr std::int64_t largest = 1 << 20;
    const auto node = root["batch"];
    std::set<std::int64_t> sizes;
    for (const auto& size : node.items()) sizes.insert(size.integer(1, largest));
    if (sizes.empty()) node.refuse("empty", "at least one size");
    std::set<std::int64_t> fixed;
    if (network_batch != 0) fixed.insert(network_batch);
    if (const auto decoder = root.find("decoder"))
        if (const auto own = decoder->find("fixed_batch")) fixed.insert(own->integer(1, largest));
    for (const auto size : fixed)
        if (sizes != std::set{size})
            node.refuse("not [" + std::to_string(size) + "]", "the fixed_batch of the network alone");
    return {sizes.begin(), sizes.end()};
}

}  // namespace

pfd_engine_t open_engine(const std::string& path) {
    const Directory directory(path);
    const auto document = json::parse(directory.read("engine.json", largest_manifest_bytes), "engine.json");
    const json::Node root(document, "engine.json:");
    const auto format = root["format"].integer(0, INT64_MAX);
    if (format != newest_format)
        throw file_error("engine.json: format is " + std::to_string(format) + ", this library reads format " +
                         std::to_string(newest_format) + "; " +
                         (format > newest_format ? "update pfdiff" : "rebuild the engine with `pfdiff build`"));
    if (const auto digest = json::manifest_digest(document); digest != root["digest"].string())
        throw file_error("engine.json: its content has SHA-256 " + digest.substr(0, 12) + "..., its digest says " +
                         printable(root["digest"].string(), 12) + "; rebuild the engine or copy it again");
    pfd_engine_t engine;
    engine.contract = read_contract(root["contract"]);
    engine.batches = read_batches(root, engine.contract.fixed_batch);
    if (const auto precision = root.find("precision"); precision && precision->string() != engine.contract.precision &&
                                                       precision->string() != "int8" && precision->string() != "fp8")
        precision->refuse(quoted(precision->string()), quoted(engine.contract.precision) + ", the contract's");
    if (const auto decoder = root.find("decoder")) {
        engine.decoder = read_decoder(*decoder);
        if (engine.decoder->shape != engine.contract.shape)
            (*decoder)["shape"].refuse("another one", "the shape of the network's samples");
    }
    if (const auto encoder = root.find("image_encoder")) {
        engine.image_encoder = read_decoder(*encoder);
        if (engine.image_encoder->image != engine.contract.shape)
            (*encoder)["image"].refuse("another one", "the shape of the network's samples");
    }
    if (const auto policy = root.find("policy")) engine.policy = read_policy(*policy, engine.contract);
    read_programs(root["programs"], engine);
    verify_files(root["files"], directory, engine);
    verify_external_weights(directory, engine);
    return engine;
}

}  // namespace pfdiff
