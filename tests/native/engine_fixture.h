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

inline const std::string network = "not really a network, but its bytes have a hash";

inline std::string hash_of(const std::string& content) {
    pfdiff::Sha256 hash;
    hash.update(content.data(), content.size());
    return hash.finish();
}

inline std::string files() {
    return R"({"network.onnx": {"sha256": ")" + hash_of(network) + R"(", "bytes": )" + std::to_string(network.size()) +
           "}}";
}

// The manifest with a digest that fits, whatever it holds; unreadable JSON is returned as it is.
inline std::string sealed(const std::string& manifest) {
    try {
        const auto digest = pfdiff::json::manifest_digest(pfdiff::json::parse_builtin(manifest, "manifest"));
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
