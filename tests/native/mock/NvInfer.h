// The part of TensorRT's C++ interface that engine/native/tensorrt uses, declared from its documentation: the adapter's
// source is compiled against it where the true headers are missing. It proves that the source is well-formed C++, no
// more.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace nvinfer1 {

enum class DataType : std::int32_t {
    kFLOAT = 0,
    kHALF = 1,
    kINT8 = 2,
    kINT32 = 3,
    kBOOL = 4,
    kUINT8 = 5,
    kFP8 = 6,
    kBF16 = 7,
    kINT64 = 8
};
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class OptProfileSelector : std::int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };
enum class CudaGraphStrategy : std::int32_t { kDISABLED = 0, kWHOLE_GRAPH_CAPTURE = 1 };
enum class DynamicShapesKernelSpecializationStrategy : std::int32_t { kLAZY = 0, kEAGER = 1, kNONE = 2 };

struct Dims64 {
    static constexpr std::int32_t MAX_DIMS{8};
    std::int32_t nbDims;
    std::int64_t d[MAX_DIMS];
};
using Dims = Dims64;

class ILogger {
   public:
    enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, const char* message) noexcept = 0;
    virtual ~ILogger() = default;
};

class IRuntimeConfig {
   public:
    virtual ~IRuntimeConfig() noexcept = default;
    bool setCudaGraphStrategy(CudaGraphStrategy strategy) noexcept;
    void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy strategy) noexcept;
};

class IExecutionContext {
   public:
    virtual ~IExecutionContext() noexcept = default;
    bool setInputShape(const char* name, const Dims& dims) noexcept;
    std::int32_t inferShapes(std::int32_t count, const char** names) noexcept;
    bool setTensorAddress(const char* name, void* data) noexcept;
    bool enqueueV3(cudaStream_t stream) noexcept;
    bool setOptimizationProfileAsync(std::int32_t index, cudaStream_t stream) noexcept;
    bool isStreamCapturable(cudaStream_t stream) const noexcept;
};

class ICudaEngine {
   public:
    virtual ~ICudaEngine() noexcept = default;
    std::int32_t getNbIOTensors() const noexcept;
    DataType getTensorDataType(const char* name) const noexcept;
    TensorIOMode getTensorIOMode(const char* name) const noexcept;
    std::int32_t getNbOptimizationProfiles() const noexcept;
    Dims getProfileShape(const char* name, std::int32_t index, OptProfileSelector select) const noexcept;
    IExecutionContext* createExecutionContext() noexcept;
    IExecutionContext* createExecutionContext(IRuntimeConfig* config) noexcept;
    IRuntimeConfig* createRuntimeConfig() noexcept;
};

class IRuntime {
   public:
    virtual ~IRuntime() noexcept = default;
    ICudaEngine* deserializeCudaEngine(const void* plan, std::size_t size) noexcept;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1

extern "C" std::int32_t getInferLibVersion() noexcept;
