#include "session.h"

#include <algorithm>

#include "../error.h"

namespace pfdiff {
namespace {

ONNXTensorElementDataType element_type(const std::string& dtype) {
    if (dtype == "float16" || dtype == "fp16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    if (dtype == "bfloat16" || dtype == "bf16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    if (dtype == "int64") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    if (dtype == "int32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    if (dtype == "bool") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

}  // namespace

Session::Session(const pfd_engine_t* engine, const char* file, int threads) : file_(file) {
    const char* path = nullptr;
    if (const auto status = pfd_file_path(engine, file, &path); status != PFD_OK) throw Error(status, pfd_last_error());
    OrtEnv* environment = nullptr;
    check(api_.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "pfdiff", &environment), "start");
    environment_.reset(environment);
    OrtSessionOptions* made_options = nullptr;
    check(api_.CreateSessionOptions(&made_options), "start");
    const Owned<OrtSessionOptions> options(made_options, api_.ReleaseSessionOptions);
    check(api_.SetIntraOpNumThreads(made_options, threads), "take its number of threads");
    OrtSession* session = nullptr;
    check(api_.CreateSession(environment, path, made_options, &session), "load " + file_);
    session_.reset(session);
    OrtMemoryInfo* memory = nullptr;
    check(api_.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory), "start");
    memory_.reset(memory);
}

Owned<OrtValue> Session::tensor(void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
                                const std::string& dtype) const {
    OrtValue* made = nullptr;
    check(api_.CreateTensorWithDataAsOrtValue(memory_.get(), data, bytes, shape.data(), shape.size(),
                                              element_type(dtype), &made),
          "take a tensor");
    return {made, api_.ReleaseValue};
}

void Session::run(const std::vector<const char*>& names, const std::vector<Owned<OrtValue>>& inputs,
                  const char* output_name, OrtValue* output) const {
    std::vector<const OrtValue*> values;
    for (const auto& input : inputs) values.push_back(input.get());
    check(api_.Run(session_.get(), nullptr, names.data(), values.data(), values.size(), &output_name, 1, &output),
          "run " + file_);
}

// ONNX Runtime's messages can span lines and go on for long; ours are one.
void Session::check(OrtStatus* status, const std::string& what) const {
    if (status == nullptr) return;
    std::string words = api_.GetErrorMessage(status);
    api_.ReleaseStatus(status);
    std::replace(words.begin(), words.end(), '\n', ' ');
    throw backend_error("ONNX Runtime fails to " + what + ": " + printable(words, 190));
}

}  // namespace pfdiff
