// One ONNX file of an engine, loaded by ONNX Runtime on the CPU: tensors over the caller's own memory, nothing copied.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../error.h"
#include "../pfdiff.h"
#include "load.h"

namespace pfdiff {

// What ONNX Runtime makes and takes back.
template <class Made>
using Owned = std::unique_ptr<Made, void (*)(Made*)>;

class Session final {
   public:
    // A file that engine.json lists, such as "network.onnx"; threads 0: all. Throws Error.
    Session(const pfd_engine_t* engine, const char* file, int threads);

    // A tensor of `shape` on `bytes` of the caller's. dtype: as a contract names it, or a precision.
    Owned<OrtValue> tensor(void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
                           const std::string& dtype) const;
    // Evaluates the file: inputs by name, in their order, and its one output.
    void run(const std::vector<const char*>& names, const std::vector<Owned<OrtValue>>& inputs, const char* output_name,
             OrtValue* output) const;

   private:
    void check(OrtStatus* status, const std::string& what) const;

    std::string file_;
    const OrtApi& api_ = onnxruntime();
    // In this order: the session goes before its environment.
    Owned<OrtEnv> environment_{nullptr, api_.ReleaseEnv};
    Owned<OrtMemoryInfo> memory_{nullptr, api_.ReleaseMemoryInfo};
    Owned<OrtSession> session_{nullptr, api_.ReleaseSession};
};

// Throws Error where an object cannot be made of what was given; else its place holds nothing yet.
template <class Made>
void check_place(const pfd_engine_t* engine, Made** place, std::int32_t threads, const char* what) {
    if (engine == nullptr || place == nullptr || threads < 0)
        throw input_error(std::string("an ONNX Runtime ") + what +
                          " without an engine or a place, or with negative threads");
    *place = nullptr;
}

}  // namespace pfdiff
