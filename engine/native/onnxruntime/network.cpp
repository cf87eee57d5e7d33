// pfdiff_onnxruntime.h on ONNX Runtime's C interface: tensors over the sampler's own buffers, nothing copied in fp32.
#include <algorithm>
#include <memory>

#include "../error.h"
#include "../feed.h"
#include "../halfs.h"
#include "../pfdiff_onnxruntime.h"
#include "load.h"

namespace {

// What ONNX Runtime makes and takes back.
template <class Made>
using Owned = std::unique_ptr<Made, void (*)(Made*)>;

// ONNX Runtime's messages can span lines and go on for long; ours are one.
void check(const OrtApi& api, OrtStatus* status, const char* what) {
    if (status == nullptr) return;
    std::string words = api.GetErrorMessage(status);
    api.ReleaseStatus(status);
    std::replace(words.begin(), words.end(), '\n', ' ');
    throw pfdiff::backend_error(std::string("ONNX Runtime fails to ") + what + ": " + pfdiff::printable(words, 190));
}

ONNXTensorElementDataType element_type(const std::string& dtype) {
    if (dtype == "float16" || dtype == "fp16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    if (dtype == "bfloat16" || dtype == "bf16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    if (dtype == "int64") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    if (dtype == "int32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    if (dtype == "bool") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

}  // namespace

struct pfd_onnxruntime_t final {
    pfd_onnxruntime_t(const pfd_engine_t* engine, const char* path, int threads) : feed(engine) {
        OrtEnv* made_environment = nullptr;
        check(api, api.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "pfdiff", &made_environment), "start");
        environment.reset(made_environment);
        OrtSessionOptions* made_options = nullptr;
        check(api, api.CreateSessionOptions(&made_options), "start");
        const Owned<OrtSessionOptions> options(made_options, api.ReleaseSessionOptions);
        check(api, api.SetIntraOpNumThreads(made_options, threads), "take its number of threads");
        OrtSession* made_session = nullptr;
        check(api, api.CreateSession(made_environment, path, made_options, &made_session), "load network.onnx");
        session.reset(made_session);
        OrtMemoryInfo* made_memory = nullptr;
        check(api, api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &made_memory), "start");
        memory.reset(made_memory);
    }

    Owned<OrtValue> tensor(void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
                           const std::string& dtype) const {
        OrtValue* made = nullptr;
        check(api,
              api.CreateTensorWithDataAsOrtValue(memory.get(), data, bytes, shape.data(), shape.size(),
                                                 element_type(dtype), &made),
              "take a tensor");
        return {made, api.ReleaseValue};
    }

    void run(const pfd_evaluation_t& evaluation, const float* x, float* out) {
        const auto batch = evaluation.batch;
        if (evaluation.elements != feed.elements)
            throw pfdiff::input_error(std::to_string(evaluation.elements) +
                                      " elements a sample, but this network takes " + std::to_string(feed.elements));
        if (feed.fixed_batch != 0 && batch != feed.fixed_batch)
            throw pfdiff::input_error("batch " + std::to_string(batch) + ", but this network takes only " +
                                      std::to_string(feed.fixed_batch));
        const auto count = static_cast<std::size_t>(batch * feed.elements);
        const auto shape = pfdiff::Feed::batched(batch, feed.shape);
        const bool half = feed.precision != "fp32", brain = feed.precision == "bf16";
        std::vector<std::uint16_t> half_x(half ? count : 0), half_out(half ? count : 0);
        if (half)
            std::transform(x, x + count, half_x.begin(),
                           brain ? pfdiff::bfloat16_from_float : pfdiff::float16_from_float);

        std::vector<const char*> names{feed.input.c_str(), feed.time.c_str()};
        std::vector<std::vector<std::uint8_t>> fed{
            feed.times(evaluation.network_time, feed.time_rank == 1 ? batch : 1)};
        for (const auto& condition : feed.conditions) {
            names.push_back(condition.name.c_str());
            fed.push_back(feed.bytes(condition, batch));
        }
        std::vector<Owned<OrtValue>> inputs;
        // ONNX Runtime does not write to inputs, but its interface takes them without const.
        void* first = half ? static_cast<void*>(half_x.data()) : const_cast<float*>(x);
        const auto element_bytes = half ? sizeof(std::uint16_t) : sizeof(float);
        inputs.push_back(tensor(first, count * element_bytes, shape, feed.precision));
        std::vector<std::int64_t> time_shape(static_cast<std::size_t>(feed.time_rank), batch);
        inputs.push_back(tensor(fed[0].data(), fed[0].size(), time_shape, feed.time_dtype));
        for (std::size_t i = 0; i < feed.conditions.size(); ++i) {
            const auto& condition = feed.conditions[i];
            const auto condition_shape = pfdiff::Feed::batched(batch, condition.shape);
            inputs.push_back(tensor(fed[i + 1].data(), fed[i + 1].size(), condition_shape, condition.dtype));
        }
        void* last = half ? static_cast<void*>(half_out.data()) : out;
        const auto output = tensor(last, count * element_bytes, shape, feed.precision);
        const char* output_name = feed.output.c_str();
        std::vector<const OrtValue*> values;
        for (const auto& input : inputs) values.push_back(input.get());
        auto* written = output.get();
        check(api,
              api.Run(session.get(), nullptr, names.data(), values.data(), values.size(), &output_name, 1, &written),
              "run network.onnx");
        if (half)
            std::transform(half_out.begin(), half_out.end(), out,
                           brain ? pfdiff::float_from_bfloat16 : pfdiff::float_from_float16);
    }

    pfdiff::Feed feed;
    const OrtApi& api = pfdiff::onnxruntime();
    // In this order: the session goes before its environment.
    Owned<OrtEnv> environment{nullptr, api.ReleaseEnv};
    Owned<OrtMemoryInfo> memory{nullptr, api.ReleaseMemoryInfo};
    Owned<OrtSession> session{nullptr, api.ReleaseSession};
};

extern "C" pfd_status_t pfd_onnxruntime_create(const pfd_engine_t* engine, int32_t threads,
                                               pfd_onnxruntime_t** network) {
    return pfdiff::guarded([&] {
        if (engine == nullptr || network == nullptr || threads < 0)
            throw pfdiff::input_error("an ONNX Runtime network without an engine or a place, or with negative threads");
        *network = nullptr;
        const char* path = nullptr;
        if (const auto status = pfd_file_path(engine, "network.onnx", &path); status != PFD_OK)
            throw pfdiff::Error(status, pfd_last_error());
        *network = std::make_unique<pfd_onnxruntime_t>(engine, path, threads).release();
    });
}

extern "C" void pfd_onnxruntime_free(pfd_onnxruntime_t* network) { delete network; }

extern "C" pfd_status_t pfd_onnxruntime_set_condition(pfd_onnxruntime_t* network, const char* name,
                                                      const double* values, size_t count) {
    return pfdiff::guarded([&] {
        if (network == nullptr || name == nullptr || values == nullptr)
            throw pfdiff::input_error("a condition without a network, a name or values; give all three");
        network->feed.set(name, values, count);
    });
}

extern "C" int pfd_onnxruntime_network(void* network, const pfd_evaluation_t* evaluation, const float* input,
                                       float* output) {
    const auto status =
        pfdiff::guarded([&] { static_cast<pfd_onnxruntime_t*>(network)->run(*evaluation, input, output); });
    if (status != PFD_OK) pfd_set_error(pfd_last_error());
    return status;
}
