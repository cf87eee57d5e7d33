// The part of ONNX Runtime's C interface that the adapter calls, from its documentation: its header comes in no package
// that every machine has. It declares what is called and nothing between, so it fits onnxruntime_library.cpp alone.
#pragma once

#include <cstddef>
#include <cstdint>

#define ORT_API_VERSION 18

struct OrtStatus;
struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtValue;

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR = 3 };
enum OrtAllocatorType { OrtDeviceAllocator = 0 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL = 9,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16
};

struct OrtApi {
    const char* (*GetErrorMessage)(const OrtStatus* status) noexcept;
    OrtStatus* (*CreateEnv)(OrtLoggingLevel level, const char* name, OrtEnv** made) noexcept;
    OrtStatus* (*CreateSession)(const OrtEnv* environment, const char* path, const OrtSessionOptions* options,
                                OrtSession** made) noexcept;
    OrtStatus* (*Run)(OrtSession* session, const OrtRunOptions* options, const char* const* input_names,
                      const OrtValue* const* inputs, std::size_t input_count, const char* const* output_names,
                      std::size_t output_count, OrtValue** outputs) noexcept;
    OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** made) noexcept;
    OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions* options, int threads) noexcept;
    OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo* memory, void* data, std::size_t bytes,
                                                 const std::int64_t* shape, std::size_t rank,
                                                 ONNXTensorElementDataType type, OrtValue** made) noexcept;
    OrtStatus* (*CreateCpuMemoryInfo)(OrtAllocatorType allocator, OrtMemType type, OrtMemoryInfo** made) noexcept;
    void (*ReleaseEnv)(OrtEnv* one);
    void (*ReleaseStatus)(OrtStatus* one);
    void (*ReleaseMemoryInfo)(OrtMemoryInfo* one);
    void (*ReleaseSession)(OrtSession* one);
    void (*ReleaseValue)(OrtValue* one);
    void (*ReleaseSessionOptions)(OrtSessionOptions* one);
};

struct OrtApiBase {
    const OrtApi* (*GetApi)(std::uint32_t version) noexcept;
    const char* (*GetVersionString)() noexcept;
};

extern "C" const OrtApiBase* OrtGetApiBase() noexcept;
