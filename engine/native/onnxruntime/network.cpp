// pfdiff_onnxruntime.h on ONNX Runtime's C++ interface: tensors over the sampler's own buffers, nothing copied in fp32.
#define ORT_API_MANUAL_INIT  // so that a library older than the header is an error message, not a null dereference
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <memory>

#include "../error.h"
#include "../feed.h"
#include "../halfs.h"
#include "../pfdiff_onnxruntime.h"

namespace {

ONNXTensorElementDataType element_type(const std::string& dtype) {
    if (dtype == "float16" || dtype == "fp16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    if (dtype == "bfloat16" || dtype == "bf16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    if (dtype == "int64") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    if (dtype == "int32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    if (dtype == "bool") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

void load_interface() {
    const auto* base = OrtGetApiBase();
    const auto* interface = base->GetApi(ORT_API_VERSION);
    if (interface == nullptr)
        throw pfdiff::backend_error(std::string("ONNX Runtime ") + base->GetVersionString() +
                                    " is older than the headers (1." + std::to_string(ORT_API_VERSION) +
                                    ") this was built with; update the library");
    Ort::InitApi(interface);
}

Ort::Value tensor(void* data, std::size_t bytes, const std::vector<std::int64_t>& shape, const std::string& dtype) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    return Ort::Value::CreateTensor(memory, data, bytes, shape.data(), shape.size(), element_type(dtype));
}

}  // namespace

struct pfd_onnxruntime_t final {
    pfd_onnxruntime_t(const pfd_engine_t* engine, const char* path, int threads)
        : feed(engine), environment(ORT_LOGGING_LEVEL_ERROR, "pfdiff"), session(nullptr) {
        Ort::SessionOptions options;
        options.SetIntraOpNumThreads(threads);
        session = Ort::Session(environment, path, options);
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
        std::vector<Ort::Value> inputs;
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
        auto output = tensor(last, count * element_bytes, shape, feed.precision);
        const char* output_name = feed.output.c_str();
        session.Run(Ort::RunOptions{nullptr}, names.data(), inputs.data(), inputs.size(), &output_name, &output, 1);
        if (half)
            std::transform(half_out.begin(), half_out.end(), out,
                           brain ? pfdiff::float_from_bfloat16 : pfdiff::float_from_float16);
    }

    pfdiff::Feed feed;
    Ort::Env environment;
    Ort::Session session;
};

namespace {

// ONNX Runtime's messages can span lines; ours are one.
template <class Body>
pfd_status_t translated(const char* what, Body&& body) {
    return pfdiff::guarded([&] {
        try {
            body();
        } catch (const Ort::Exception& error) {
            std::string line = error.what();
            std::replace(line.begin(), line.end(), '\n', ' ');
            throw pfdiff::backend_error(std::string("ONNX Runtime ") + what + ": " + line);
        }
    });
}

}  // namespace

extern "C" pfd_status_t pfd_onnxruntime_create(const pfd_engine_t* engine, int32_t threads,
                                               pfd_onnxruntime_t** network) {
    return translated("refuses network.onnx", [&] {
        if (engine == nullptr || network == nullptr || threads < 0)
            throw pfdiff::input_error("an ONNX Runtime network without an engine or a place, or with negative threads");
        *network = nullptr;
        load_interface();
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
    const auto status = translated("fails to run network.onnx",
                                   [&] { static_cast<pfd_onnxruntime_t*>(network)->run(*evaluation, input, output); });
    if (status != PFD_OK) pfd_set_error(pfd_last_error());
    return status;
}
