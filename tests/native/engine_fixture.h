// A small engine directory, written by the tests themselves: no file of the repository is needed to run them.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "canonical.h"
#include "sha256.h"

namespace fixture {

// PFDiff-like: two states, evaluation 0 writes both, the others read one. Three evaluations on cosine:300.
inline const std::string program =
    R"({"nfe": 3, "buffers": 2, "solver": "pfdiff:k=2,l=1", "schedule": "cosine:300", "grid": "logsnr", "basis": "eps",)"
    R"( "prediction": "eps", "clip": null, "t_start": null, "end": "clean", "sigma_data": 0.5,)"
    R"( "times": [298.0, 200.0, 100.5], "network_times": [298.0, 200.0, 100.5], "c_in": [1.0, 1.0, 1.0],)"
    R"( "table": [[1.0, 0.0, 0.0, 0.0], [0.9, -0.1, 0.0, 0.0], [0.8, -0.2, -1e-05, 0.0], [0.7, 1.5e-07, -0.3, 0.5]],)"
    R"( "init": [1.0, 1.0], "p": [0.0, 0.0, 0.0], "q": [1.0, 1.0, 1.0],)"
    R"( "W": [[[1.5, 0.0], [0.0, 1.25]], [[0.0, 2.0], [0.0, 1.75]], [[0.0, 0.5], [0.0, 0.0]]],)"
    R"( "w": [[-0.5, -0.25], [-0.75, -0.125], [-1.5, 0.0]]})";

inline const std::string contract =
    R"({"name": "gräben", "shape": [1, 4, 4], "schedule": "cosine:300", "prediction": "eps", "input": "x", "time": "t",)"
    R"( "output": "out", "time_dtype": "float32", "time_scale": 1.0, "time_rank": 1, "conditions": [{"name": "label",)"
    R"( "dtype": "int64", "shape": [], "default": 10, "low": 0, "high": 10, "labels": ["shirt", "b\"ag"]}],)"
    R"( "sigma_data": 0.5, "data_range": [-1.0, 1.0], "fixed_batch": null, "precision": "fp32", "learned_sigma": false})";

// Protobuf's wire format: a varint below 128, and a field of bytes.
inline std::string number_field(int field, char value) { return {static_cast<char>(field << 3), value}; }
inline std::string bytes_field(int field, const std::string& content) {
    std::string length;
    for (auto left = content.size(); left > 0 || length.empty(); left >>= 7)
        length += static_cast<char>((left & 0x7F) | (left > 0x7F ? 0x80 : 0));
    const auto tag = static_cast<unsigned>(field) << 3 | 2;
    const std::string head = tag < 0x80
                                 ? std::string(1, static_cast<char>(tag))
                                 : std::string{static_cast<char>((tag & 0x7F) | 0x80), static_cast<char>(tag >> 7)};
    return head + length + content;
}

// A model without a graph: ir_version 10 and a producer_name. It is never run, but its bytes have a hash.
inline const std::string network =
    number_field(1, 10) + bytes_field(2, "not really a network, but its bytes have a hash");

inline std::string hash_of(const std::string& content) {
    pfdiff::Sha256 hash;
    hash.update(content.data(), content.size());
    return hash.finish();
}

// The record of a file in `files`.
inline std::string record(const std::string& name, const std::string& content) {
    return "\"" + name + R"(": {"sha256": ")" + hash_of(content) + R"(", "bytes": )" + std::to_string(content.size()) +
           "}";
}

inline std::string files() { return "{" + record("network.onnx", network) + "}"; }

// The manifest with a digest that fits, whatever it holds; unreadable JSON is returned as it is.
inline std::string sealed(const std::string& manifest) {
    try {
        const auto digest = pfdiff::json::manifest_digest(pfdiff::json::parse(manifest, "manifest"));
        const auto end = manifest.find_last_of('}');
        if (end == std::string::npos) return manifest;
        return manifest.substr(0, end) + R"(, "digest": ")" + digest + "\"}";
    } catch (const std::exception&) {
        return manifest;
    }
}

inline std::string manifest(const std::string& described = contract) {
    return R"({"format": 1, "provenance": {"pfdiff": "0.1.0", "seconds": 1e-05}, "contract": )" + described +
           R"(, "batch": [1, 8], "precision": "fp32", "programs": {"3": )" + program + R"(}, "files": )" + files() +
           "}";
}

inline void write(const std::filesystem::path& path, const std::string& content) {
    std::filesystem::remove(path);  // ext4 waits for the disk when a file is emptied and written again
    std::ofstream(path, std::ios::binary) << content;
}

inline void write_engine(const std::filesystem::path& folder) {
    std::filesystem::create_directories(folder);
    write(folder / "engine.json", sealed(manifest()));
    write(folder / "network.onnx", network);
}

// A fresh folder of this process, removed at the end.
class Folder final {
   public:
    explicit Folder(const std::string& name)
        : path(std::filesystem::temp_directory_path() / (name + "-" + std::to_string(::getpid()))) {
        std::filesystem::remove_all(path);
        std::filesystem::create_directories(path);
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() { std::filesystem::remove_all(path); }

    const std::filesystem::path path;
};

}  // namespace fixture
