// Engine directories damaged in every way we could think of: each must be refused with one line, or open as one that
// differs in nothing that is checked. Run under the address and undefined-behaviour sanitizers.
//
//     pfdiff_fuzz [mutations] [seed]
//
// Three quarters of the mutations keep the digest honest, so that the checks behind it are reached. Every document that
// is read as JSON must be read again, to the same tree, from its canonical form. The network is damaged too, under a
// manifest that has its hash: what is read of the ONNX file must end in one line. A file beside the directory that the
// manifest could reach, with the hash that the manifest gives, must never be opened: its access would succeed and show
// as an engine that opens.
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "artifact.h"
#include "check.h"
#include "engine_fixture.h"
#include "error.h"

namespace {

using Random = std::mt19937_64;

std::size_t below(Random& random, std::size_t bound) { return random() % bound; }

// What stands in for a value: wrong types, huge numbers, hostile names.
const std::vector<std::string> values{"null",
                                      "true",
                                      "[]",
                                      "{}",
                                      "\"\"",
                                      "0",
                                      "-1",
                                      "1e308",
                                      "-1e308",
                                      "1e999",
                                      "1e-999",
                                      "9223372036854775807",
                                      "9223372036854775808",
                                      "-9223372036854775808",
                                      "18446744073709551616",
                                      "1000000000",
                                      "2147483648",
                                      "4097",
                                      "9",
                                      "0.5",
                                      "NaN",
                                      "Infinity",
                                      "-0.0",
                                      "3.0",
                                      "[[]]",
                                      "[1,2,3]",
                                      "\"../secret\"",
                                      "\"/etc/passwd\"",
                                      "\"\\u0000\"",
                                      "\"\\u001b[2J\\u009b\\u202e\"",
                                      "\"a/../../secret\"",
                                      "[[[1,2],[3,4]]]",
                                      "{\"a\":{\"a\":{\"a\":1}}}",
                                      "\"\\ud83d\\ude00\"",
                                      "[1e308,1e308]"};

const std::vector<std::string> names{"../secret",
                                     "/etc/passwd",
                                     "a/../../secret",
                                     "./network.onnx",
                                     "link",
                                     "link/secret",
                                     "pipe",
                                     "folder",
                                     "",
                                     ".",
                                     "..",
                                     "network.onnx/",
                                     "//network.onnx",
                                     "folder/../../secret",
                                     "network.onnx\\u0000",
                                     "C:\\\\secret",
                                     "self/self/self/network.onnx",
                                     "loop"};

// The spans of the values of a document: after each ':', ',' or '[', up to the end of the value.
std::pair<std::size_t, std::size_t> some_value(Random& random, const std::string& text) {
    std::vector<std::size_t> starts;
    for (std::size_t i = 0; i + 1 < text.size(); ++i)
        if (text[i] == ':' || text[i] == ',' || text[i] == '[') starts.push_back(i + 1);
    if (starts.empty()) return {0, text.size()};
    const auto start = starts[below(random, starts.size())];
    int depth = 0;
    bool quoted = false;
    for (auto i = start; i < text.size(); ++i) {
        const char c = text[i];
        if (c == '"' && text[i - 1] != '\\') quoted = !quoted;
        if (quoted) continue;
        if (c == '[' || c == '{') ++depth;
        if ((c == ',' || c == ']' || c == '}') && depth == 0) return {start, i};
        if (c == ']' || c == '}') --depth;
    }
    return {start, text.size()};
}

std::string mutate(Random& random, std::string text) {
    const auto at = below(random, text.size());
    switch (below(random, 8)) {
        case 0:
            return text.substr(0, at);
        case 1:
            text[at] = static_cast<char>(random());
            return text;
        case 2:
            text[at] = static_cast<char>(text[at] ^ 1 << below(random, 8));
            return text;
        case 3:
            return text.erase(at, 1 + below(random, 40));
        case 4:
            return text.insert(at, text.substr(below(random, text.size()), below(random, 200)));
        case 5: {  // an open ended nest
            const std::string bracket = below(random, 2) == 0 ? "[" : "{\"a\":";
            std::string nest;
            for (auto left = below(random, 3000); left > 0; --left) nest += bracket;
            return text.insert(at, nest);
        }
        case 6: {  // a name of a file, honest or hostile
            const auto name = text.find("network.onnx");
            return name == std::string::npos ? text : text.replace(name, 12, names[below(random, names.size())]);
        }
        default: {
            const auto [start, end] = some_value(random, text);
            return text.replace(start, end - start, values[below(random, values.size())]);
        }
    }
}

void check_canonical_reads_back(const std::string& text) {
    std::string written;
    try {
        written = pfdiff::json::canonical(pfdiff::json::parse(text, "x"));
    } catch (const pfdiff::Error&) {
        return;
    }
    CHECK(pfdiff::json::canonical(pfdiff::json::parse(written, "x")) == written);
}

// True when it opened; then everything that it claims is used once.
bool open_and_use(const std::filesystem::path& folder, Random& random) {
    pfd_engine_t* engine = nullptr;
    const auto status = pfd_open(folder.c_str(), &engine);
    const std::string said = pfd_last_error();
    if (status != PFD_OK) {
        CHECK(engine == nullptr && status == PFD_ENGINE_FILE_ERROR);
        CHECK(!said.empty() && said.size() < 300);
        CHECK(std::none_of(said.begin(), said.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }));
        return false;
    }
    for (const auto& [name, path] : engine->paths) CHECK(name == "network.onnx" || name == "extra.bin");
    for (const auto& [nfe, program] : engine->programs) {
        std::vector<float> state(33, 0.5f);
        const auto network = [](void*, const pfd_evaluation_t* e, const float* x, float* out) {
            for (std::int64_t i = 0; i < e->batch * e->elements; ++i) out[i] = x[i];
            return 0;
        };
        CHECK(pfd_sample_cpu(&program, network, nullptr, state.data(), 3, 11, 1 + static_cast<int>(below(random, 2))) ==
              PFD_OK);
    }
    pfd_close(engine);
    return true;
}

// The ONNX file with weights in many places, mutated, sealed and opened.
void fuzz_networks(const std::filesystem::path& folder, Random& random, std::size_t mutations) {
    using fixture::bytes_field;
    const auto weights = bytes_field(13, bytes_field(1, "location") + bytes_field(2, "network.onnx"));
    const auto tensor = bytes_field(8, "w") + weights + bytes_field(9, std::string(300, '\7'));
    const auto node = bytes_field(1, bytes_field(5, bytes_field(5, tensor) + bytes_field(6, bytes_field(5, tensor))));
    const auto whole =
        fixture::network + bytes_field(7, node + bytes_field(5, tensor)) + bytes_field(25, bytes_field(7, node));
    std::size_t opened = 0;
    for (std::size_t i = 0; i < mutations; ++i) {
        auto network = whole;
        for (auto left = below(random, 4); left > 0 && !network.empty(); --left) network = mutate(random, network);
        auto text = fixture::manifest();
        text.replace(text.rfind(fixture::files()), fixture::files().size(),
                     "{" + fixture::record("network.onnx", network) + "}");
        fixture::write(folder / "engine.json", fixture::sealed(text));
        fixture::write(folder / "network.onnx", network);
        opened += open_and_use(folder, random);
    }
    CHECK(opened > mutations / 5 && opened < mutations);
    fixture::write(folder / "network.onnx", fixture::network);
}

}  // namespace

int main(int count, char** words) {
    const auto mutations = count > 1 ? std::stoul(words[1]) : 12000;
    Random random(count > 2 ? std::stoull(words[2]) : 1);
    const fixture::Folder root("pfdiff-fuzz");
    const auto folder = root.path / "some.engine";
    fixture::write_engine(folder);
    // What a hostile manifest could reach for: all with the very content whose hash it gives.
    fixture::write(root.path / "secret", fixture::network);
    std::filesystem::create_directories(folder / "folder");
    std::filesystem::create_symlink(root.path / "secret", folder / "link");
    std::filesystem::create_directory_symlink(root.path, folder / "outside");
    std::filesystem::create_directory_symlink(folder, folder / "self");
    std::filesystem::create_symlink(folder / "loop", folder / "loop");
    CHECK(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
    CHECK(open_and_use(folder, random));

    std::size_t opened = 0;
    for (std::size_t i = 0; i < mutations; ++i) {
        std::string text = fixture::manifest();
        const bool honest = i % 4 != 0;
        for (auto left = 1 + below(random, 3); left > 0 && !text.empty(); --left) text = mutate(random, text);
        if (honest) text = fixture::sealed(text);
        check_canonical_reads_back(text);
        // Now and then the network itself is damaged, under an honest manifest.
        const bool damaged = i % 16 == 1;
        if (damaged) text = fixture::sealed(fixture::manifest());
        std::string network = fixture::network;
        if (damaged)
            network[below(random, network.size())] ^= 1,
                network.resize(below(random, 2) == 0 ? network.size() : below(random, 9));
        fixture::write(folder / "engine.json", text);
        if (damaged) fixture::write(folder / "network.onnx", network);
        const bool opens = open_and_use(folder, random);
        CHECK(!(opens && damaged));
        CHECK(!(opens && !honest && text != fixture::sealed(fixture::manifest())));  // the digest caught it
        opened += opens;
        if (damaged) fixture::write(folder / "network.onnx", fixture::network);
    }
    fuzz_networks(folder, random, mutations / 6);
    for (const auto& name : names) {  // each hostile name once, whole and sealed, with the right hash and size
        auto text = fixture::manifest();
        text.replace(text.rfind("network.onnx"), 12, name);
        fixture::write(folder / "engine.json", fixture::sealed(text));
        CHECK(!open_and_use(folder, random));
        // Beside the true network too, so that nothing else is the reason.
        text = fixture::manifest();
        const auto files = text.rfind("\"network.onnx\"");
        const auto record = text.substr(files + 14, text.size() - files - 16);
        text.insert(text.size() - 2, ", \"" + name + "\"" + record);
        fixture::write(folder / "engine.json", fixture::sealed(text));
        CHECK(!open_and_use(folder, random));
    }
    std::printf("%zu mutations, %zu opened as honest engines, %zu hostile names refused\n", mutations, opened,
                names.size());
}
