// What an engine directory must not hold: each fault is refused with its own line, and nothing waits for a pipe.
#include <sys/stat.h>

#include "artifact.h"
#include "check.h"
#include "engine_fixture.h"
#include "error.h"

namespace {

using fixture::bytes_field;

pfd_engine_t opened(const std::filesystem::path& folder) { return pfdiff::open_engine(folder.string()); }

std::string with(std::string text, const std::string& what, const std::string& instead) {
    const auto at = text.find(what);
    CHECK(at != std::string::npos);
    return text.replace(at, what.size(), instead);
}

void write_manifest(const std::filesystem::path& folder, const std::string& manifest) {
    fixture::write(folder / "engine.json", fixture::sealed(manifest));
}

void test_batches() {
    const fixture::Folder folder("pfdiff-batches");
    fixture::write_engine(folder.path);
    const auto fixed = with(fixture::manifest(), "\"fixed_batch\": null", "\"fixed_batch\": 3");
    write_manifest(folder.path, fixed);
    CHECK_REFUSED(opened(folder.path), "engine.json: batch is not [3], expected the fixed_batch of the network alone");
    write_manifest(folder.path, with(fixed, "[1, 8]", "[3, 8]"));
    CHECK_REFUSED(opened(folder.path), "engine.json: batch is not [3]");
    write_manifest(folder.path, with(fixed, "[1, 8]", "[3]"));
    CHECK(opened(folder.path).batches == std::vector<std::int64_t>{3});
    write_manifest(folder.path, with(fixture::manifest(), "[1, 8]", "[]"));
    CHECK_REFUSED(opened(folder.path), "engine.json: batch is empty, expected at least one size");
    write_manifest(folder.path, with(fixture::manifest(), "[1, 8]", "[8, 1, 8]"));
    CHECK((opened(folder.path).batches == std::vector<std::int64_t>{1, 8}));
    const auto decoder_file = "{" + fixture::record("decoder.onnx", fixture::network) + ", ";
    const auto listed = with(fixture::manifest(), fixture::files(), decoder_file + fixture::files().substr(1));
    const auto decoder = with(listed, "\"batch\"",
                              R"("decoder": {"name": "d", "shape": [1, 4, 4], "image": [3, 8, 8], "fixed_batch": 2}, )"
                              "\"batch\"");
    fixture::write(folder.path / "decoder.onnx", fixture::network);
    write_manifest(folder.path, decoder);
    CHECK_REFUSED(opened(folder.path), "engine.json: batch is not [2]");
    write_manifest(folder.path, with(decoder, "[1, 8]", "[2]"));
    CHECK(opened(folder.path).batches == std::vector<std::int64_t>{2});
    write_manifest(folder.path, with(with(decoder, "[1, 8]", "[2]"), "\"fixed_batch\": null", "\"fixed_batch\": 3"));
    CHECK_REFUSED(opened(folder.path), "engine.json: batch is not [3]");
    write_manifest(folder.path, with(with(decoder, "[1, 8]", "[3]"), "\"fixed_batch\": null", "\"fixed_batch\": 3"));
    CHECK_REFUSED(opened(folder.path), "engine.json: batch is not [2]");
}

void test_origin_of_programs() {
    const fixture::Folder folder("pfdiff-origin");
    fixture::write_engine(folder.path);
    const struct {
        std::string what, instead, said;
    } cases[] = {
        {"\"grid\": \"logsnr\"", "\"grid\": 3", "grid is a number, expected a string"},
        {"\"grid\": \"logsnr\"", "\"grid\": [1, \"2\"]", "grid[1] is a string, expected a number"},
        {"\"t_start\": null", "\"t_start\": \"290\"", "t_start is a string, expected a number"},
        {"\"end\": \"clean\"", "\"end\": true", "end is a boolean, expected a number"},
        {"\"basis\": \"eps\"", "\"basis\": []", "basis is a list, expected a string"},
        {"\"solver\": \"pfdiff:k=2,l=1\", ", "", "solver is missing"},
        {"\"init\": [1.0, 1.0]", "\"V\": [[0.0, 0.0], [0.5, 0.0], [0.0, 0.0]], \"init\": [1.0, 1.0]",
         "table[0] is a list of 4, expected a list of 5"},  // a column for the draw
        {"\"init\": [1.0, 1.0]", "\"V\": [[0.0, 0.0], [0.5, 0.0]], \"init\": [1.0, 1.0]",
         "V is a list of 2, expected a list of 3"},
    };
    for (const auto& one : cases) {
        write_manifest(folder.path, with(fixture::manifest(), one.what, one.instead));
        CHECK_REFUSED(opened(folder.path), one.said);
    }
    write_manifest(folder.path, with(fixture::manifest(), "\"grid\": \"logsnr\"", "\"grid\": [298.0, 200.0, 100.5]"));
    CHECK(opened(folder.path).programs.size() == 1);
}

void test_only_regular_files() {
    const fixture::Folder folder("pfdiff-files");
    for (const char* name : {"engine.json", "network.onnx"}) {
        fixture::write_engine(folder.path);
        const auto path = folder.path / name;
        const auto place = [&](auto&& make) {
            std::filesystem::remove_all(path);
            make();
        };
        place([&] { CHECK(::mkfifo(path.c_str(), 0600) == 0); });
        CHECK_REFUSED(opened(folder.path), "is no regular file");
        place([&] { std::filesystem::create_symlink("/dev/zero", path); });
        CHECK_REFUSED(opened(folder.path), "is a symbolic link");
        place([&] { std::filesystem::create_directory(path); });
        CHECK_REFUSED(opened(folder.path), "is no regular file");
        std::filesystem::remove_all(path);
    }
    CHECK_REFUSED(opened("/dev/zero"), "Not a directory");
    const auto pipe = folder.path / "pipe";
    CHECK(::mkfifo(pipe.c_str(), 0600) == 0);
    CHECK_REFUSED(opened(pipe), "Not a directory");
}

void test_sizes() {
    const fixture::Folder folder("pfdiff-sizes");
    fixture::write_engine(folder.path);
    std::filesystem::resize_file(folder.path / "engine.json", (16 << 20) + 1);
    CHECK_REFUSED(opened(folder.path), "'engine.json' has 16777217 bytes, expected at most 16777216");
    std::filesystem::resize_file(folder.path / "engine.json", std::uint64_t{1} << 40);  // no block of it is on the disk
    CHECK_REFUSED(opened(folder.path), "'engine.json' has 1099511627776 bytes");
    fixture::write_engine(folder.path);
    std::filesystem::resize_file(folder.path / "network.onnx", std::uint64_t{1} << 40);
    CHECK_REFUSED(opened(folder.path), "'network.onnx' has 1099511627776 bytes, expected");
}

// One line that a terminal does not obey, whatever a file calls things.
void test_messages() {
    const fixture::Folder folder("pfdiff-messages");
    fixture::write_engine(folder.path);
    const std::string hostile = R"(\u001b]0;x\u0007\n\u009b2J\u202e)";
    for (const auto& manifest :
         {with(fixture::manifest(), "\"network.onnx\"", "\"" + hostile + std::string(250, 'n') + "\""),
          with(fixture::manifest(), "\"3\": {", "\"" + hostile + std::string(3000, 'k') + "\": {"),
          with(fixture::manifest(), "\"dtype\": \"int64\"", "\"dtype\": \"" + hostile + "\""),
          with(fixture::manifest(), "\"nfe\": 3", "\"nfe\": " + std::string(400, '9'))}) {
        write_manifest(folder.path, manifest);
        pfd_engine_t* engine = nullptr;
        CHECK(pfd_open(folder.path.c_str(), &engine) == PFD_ENGINE_FILE_ERROR);
        const std::string said = pfd_last_error();
        CHECK(said.size() < 300 && said.find_first_of("\x1b\x07\n\xE2") == std::string::npos);
        CHECK(said.find("\xC2\x9B") == std::string::npos);
    }
}

std::string tensor(const std::string& location) {
    return bytes_field(13, bytes_field(1, "offset") + bytes_field(2, "0")) +
           bytes_field(13, bytes_field(1, "location") + bytes_field(2, location)) + fixture::number_field(14, 1);
}

// Weights outside the file, wherever a tensor can stand in ONNX: listed, they are verified; else the engine is refused.
void test_external_weights() {
    const auto value = tensor("some.data"), sparse = bytes_field(1, value);
    const auto node = [](const std::string& attribute) { return bytes_field(1, bytes_field(5, attribute)); };
    const std::string graphs[] = {
        bytes_field(5, value),                                              // an initializer
        bytes_field(15, sparse),                                            // a sparse initializer's values
        bytes_field(15, bytes_field(2, value)),                             // and its indices
        node(bytes_field(5, value)),                                        // a Constant
        node(bytes_field(10, value)),                                       // one of a list of tensors
        node(bytes_field(22, sparse)),                                      // a sparse constant
        node(bytes_field(23, sparse)),                                      // one of a list of them
        node(bytes_field(6, bytes_field(5, value))),                        // in the branch of an If
        node(bytes_field(11, node(bytes_field(6, bytes_field(5, value)))))  // in a branch of a branch
    };
    std::vector<std::string> models;
    for (const auto& graph : graphs) models.push_back(fixture::network + bytes_field(7, graph));
    models.push_back(fixture::network + bytes_field(25, bytes_field(7, bytes_field(5, bytes_field(5, value)))));
    models.push_back(fixture::network + bytes_field(25, bytes_field(11, bytes_field(5, value))));
    models.push_back(fixture::network + bytes_field(20, bytes_field(1, graphs[0])));
    models.push_back(fixture::network + bytes_field(20, bytes_field(2, graphs[0])));
    // Behind weights that are longer than what is read at once.
    models.push_back(fixture::network +
                     bytes_field(7, bytes_field(5, bytes_field(9, std::string(200000, 'w')) + value)));

    const fixture::Folder folder("pfdiff-weights");
    fixture::write_engine(folder.path);
    fixture::write(folder.path / "some.data", "weights");
    for (const char* network : {"network.onnx", "decoder.onnx"})
        for (const auto& model : models) {
            fixture::write(folder.path / network, model);
            auto records = fixture::record(network, model);
            if (network != std::string("network.onnx")) {
                records += ", " + fixture::record("network.onnx", fixture::network);
                fixture::write(folder.path / "network.onnx", fixture::network);
            }
            const auto listing = [&](const std::string& all) {
                write_manifest(folder.path, with(fixture::manifest(), fixture::files(), "{" + all + "}"));
            };
            listing(records);
            CHECK_REFUSED(opened(folder.path),
                          "'" + std::string(network) + "' keeps weights in 'some.data', which is not among the files");
            listing(records + ", " + fixture::record("some.data", "weights"));
            CHECK(opened(folder.path).paths.size() == (network == std::string("network.onnx") ? 2 : 3));
        }
    // Only a name as it is listed: what a library makes of another is not asked.
    for (const std::string location : {"./some.data", "../some.data", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "\x1b[2J"}) {
        const auto model = fixture::network + bytes_field(7, bytes_field(5, tensor(location)));
        fixture::write(folder.path / "network.onnx", model);
        write_manifest(folder.path, with(fixture::manifest(), fixture::files(),
                                         "{" + fixture::record("network.onnx", model) + ", " +
                                             fixture::record("some.data", "weights") + "}"));
        CHECK_REFUSED(opened(folder.path), "keeps weights in " + pfdiff::quoted(location));
    }
}

void test_unreadable_networks() {
    const fixture::Folder folder("pfdiff-unreadable");
    fixture::write_engine(folder.path);
    std::string nest;
    for (int depth = 0; depth < 60; ++depth) nest = bytes_field(1, bytes_field(5, bytes_field(6, nest)));
    for (const auto& network :
         {std::string("no protobuf at all"), fixture::network.substr(0, 20), std::string("\x3a\xff"),
          std::string("\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), std::string("\x00\x01", 2),
          std::string(11, '\x80'), fixture::network + bytes_field(7, nest),
          fixture::network + bytes_field(7, bytes_field(5, tensor(std::string(2000, 'l'))))}) {
        fixture::write(folder.path / "network.onnx", network);
        write_manifest(folder.path, with(fixture::manifest(), fixture::files(),
                                         "{" + fixture::record("network.onnx", network) + "}"));
        CHECK_REFUSED(opened(folder.path), "'network.onnx' is no ONNX model, or is damaged");
    }
}

}  // namespace

int main() {
    test_batches();
    test_origin_of_programs();
    test_only_regular_files();
    test_sizes();
    test_messages();
    test_external_weights();
    test_unreadable_networks();
}
