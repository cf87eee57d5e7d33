// pfdiff_tensorrt.h: one execution context for one batch size, fed from device memory that never moves.
//
// PFD_TENSORRT_RTX is defined by the build when the library is TensorRT-RTX, whose contexts are made from a runtime
// configuration: its own CUDA graphs stay off, since the sampler captures the whole loop.
#include <NvInfer.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "../cuda/device.h"
#include "../directory.h"
#include "../feed.h"
#include "../pfdiff_tensorrt.h"

namespace {

using pfdiff::cuda::check;

// Keeps the last complaint: it says more than the null pointer that comes with it.
class Logger final : public nvinfer1::ILogger {
   public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity == Severity::kERROR || severity == Severity::kINTERNAL_ERROR)
            std::snprintf(last_, sizeof last_, "%s", message);
    }
    std::string last() const { return last_[0] != '\0' ? last_ : "TensorRT gives no reason"; }

   private:
    char last_[400] = "";
};

nvinfer1::DataType data_type(const std::string& dtype) {
    if (dtype == "float16" || dtype == "fp16") return nvinfer1::DataType::kHALF;
    if (dtype == "bfloat16" || dtype == "bf16") return nvinfer1::DataType::kBF16;
    if (dtype == "int64") return nvinfer1::DataType::kINT64;
    if (dtype == "int32") return nvinfer1::DataType::kINT32;
    if (dtype == "bool") return nvinfer1::DataType::kBOOL;
    return nvinfer1::DataType::kFLOAT;
}

nvinfer1::Dims dims_of(const std::vector<std::int64_t>& sizes) {
    nvinfer1::Dims dims{};
    if (sizes.size() > static_cast<std::size_t>(nvinfer1::Dims::MAX_DIMS))
        throw pfdiff::input_error("a tensor of rank " + std::to_string(sizes.size()) + ", TensorRT takes at most 8");
    dims.nbDims = static_cast<std::int32_t>(sizes.size());
    for (std::size_t i = 0; i < sizes.size(); ++i) dims.d[i] = sizes[i];
    return dims;
}

std::string read_plan(const std::string& path) {
    const auto slash = path.rfind('/');
    const pfdiff::Directory folder(slash == std::string::npos ? "." : path.substr(0, slash + 1));
    return folder.read(path.substr(slash + 1), std::uint64_t{1} << 36);  // 64 GiB
}

pfdiff::cuda::Memory<unsigned char> upload(const std::vector<std::uint8_t>& bytes) {
    auto memory = pfdiff::cuda::allocate<unsigned char>(static_cast<std::int64_t>(bytes.size()));
    check(cudaMemcpy(memory.get(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "copy to the device");
    return memory;
}

}  // namespace

struct pfd_tensorrt_t final {
    pfd_tensorrt_t(const pfd_engine_t* owner, const pfd_program_t* program, const char* path, std::int64_t size)
        : feed(owner), batch(size) {
        if (feed.fixed_batch != 0 && batch != feed.fixed_batch)
            throw pfdiff::input_error("batch " + std::to_string(batch) + ", but this network takes only " +
                                      std::to_string(feed.fixed_batch));
        open(path);
        choose_profile();
        // The tensors that the contract names, with the dtypes it names: a plan of another network is refused here.
        const auto shape = pfdiff::Feed::batched(batch, feed.shape);
        expect(feed.input, nvinfer1::TensorIOMode::kINPUT, feed.precision, shape);
        expect(feed.output, nvinfer1::TensorIOMode::kOUTPUT, feed.precision, {});
        expect(feed.time, nvinfer1::TensorIOMode::kINPUT, feed.time_dtype,
               std::vector<std::int64_t>(static_cast<std::size_t>(feed.time_rank), batch));
        for (const auto& condition : feed.conditions) {
            expect(condition.name, nvinfer1::TensorIOMode::kINPUT, condition.dtype,
                   pfdiff::Feed::batched(batch, condition.shape));
            std::vector<std::uint8_t> one;
            pfdiff::append_value(one, condition.dtype, 0);
            const auto bytes = static_cast<std::int64_t>(one.size()) * batch * condition.elements;
            conditions.push_back(pfdiff::cuda::allocate<unsigned char>(bytes));
            bind(condition.name, conditions.back().get());
            if (!condition.values.empty()) send(conditions.size() - 1);
        }
        if (engine->getNbIOTensors() != static_cast<std::int32_t>(3 + conditions.size()))
            throw pfdiff::file_error("the plan has " + std::to_string(engine->getNbIOTensors()) +
                                     " tensors, the engine's network " + std::to_string(3 + conditions.size()) +
                                     "; rebuild the plan");
        const char* unset = nullptr;
        if (context->inferShapes(1, &unset) != 0)
            throw pfdiff::backend_error("TensorRT misses the shape of " +
                                        pfdiff::quoted(unset != nullptr ? unset : "a tensor"));
        fill_times(program);
    }

    void run(const pfd_evaluation_t& evaluation, const void* input, void* output, cudaStream_t stream) {
        if (evaluation.batch != batch || evaluation.elements != feed.elements || evaluation.index >= nfe)
            throw pfdiff::input_error("this plan was prepared for another batch or program");
        for (const auto& condition : feed.conditions)
            if (condition.values.empty())
                throw pfdiff::input_error("condition '" + condition.name + "' is missing; give it a value");
        bind(feed.input, const_cast<void*>(input));  // an input: TensorRT does not write to it
        bind(feed.output, output);
        bind(feed.time, times.get() + evaluation.index * time_stride);
#if defined(PFD_TENSORRT_RTX)
        cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
        check(cudaStreamIsCapturing(stream, &status), "ask the stream");
        if (status != cudaStreamCaptureStatusNone && !context->isStreamCapturable(stream))
            throw pfdiff::backend_error("TensorRT-RTX says that this plan cannot be captured");
#endif
        if (!context->enqueueV3(stream))
            throw pfdiff::backend_error("TensorRT fails to run the plan: " + logger.last());
    }

    void set(const char* name, const double* values, std::size_t count) {
        feed.set(name, values, count);
        for (std::size_t i = 0; i < feed.conditions.size(); ++i)
            if (feed.conditions[i].name == name) send(i);
    }

    pfdiff::Feed feed;

   private:
    void open(const char* path) {
        const auto plan = read_plan(path);
        runtime.reset(nvinfer1::createInferRuntime(logger));
        if (!runtime) throw pfdiff::backend_error("TensorRT does not start: " + logger.last());
        engine.reset(runtime->deserializeCudaEngine(plan.data(), plan.size()));
        if (!engine)
            throw pfdiff::file_error("TensorRT " + std::to_string(getInferLibVersion()) + " refuses the plan " +
                                     pfdiff::quoted(path) + ": " + logger.last() + "; rebuild it on this machine");
#if defined(PFD_TENSORRT_RTX)
        const std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine->createRuntimeConfig());
        if (!config || !config->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kDISABLED))
            throw pfdiff::backend_error("TensorRT-RTX refuses its configuration: " + logger.last());
        config->setDynamicShapesKernelSpecializationStrategy(
            nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
        context.reset(engine->createExecutionContext(config.get()));
#else
        context.reset(engine->createExecutionContext());
#endif
        if (!context) throw pfdiff::backend_error("TensorRT makes no context for the plan: " + logger.last());
    }

    // A plan has one optimisation profile for each batch that the engine was built for (engine/plans.py).
    void choose_profile() {
        for (std::int32_t i = 0; i < engine->getNbOptimizationProfiles(); ++i) {
            const auto shape = engine->getProfileShape(feed.input.c_str(), i, nvinfer1::OptProfileSelector::kOPT);
            if (shape.nbDims < 1 || shape.d[0] != batch) continue;
            if (!context->setOptimizationProfileAsync(i, nullptr))
                throw pfdiff::backend_error("TensorRT refuses the profile of batch " + std::to_string(batch) + ": " +
                                            logger.last());
            check(cudaStreamSynchronize(nullptr), "choose the profile");
            return;
        }
        throw pfdiff::input_error("the plan was not built for batch " + std::to_string(batch) +
                                  "; build the engine with --batch " + std::to_string(batch));
    }

    // `sizes` empty: an output, whose shape follows.
    void expect(const std::string& name, nvinfer1::TensorIOMode mode, const std::string& dtype,
                const std::vector<std::int64_t>& sizes) {
        if (engine->getTensorIOMode(name.c_str()) != mode ||
            engine->getTensorDataType(name.c_str()) != data_type(dtype))
            throw pfdiff::file_error("the plan has no " + dtype + " tensor " + pfdiff::quoted(name) +
                                     " as the engine's network has; rebuild the plan");
        if (mode == nvinfer1::TensorIOMode::kINPUT && !context->setInputShape(name.c_str(), dims_of(sizes)))
            throw pfdiff::input_error("the plan refuses batch " + std::to_string(batch) + " for " +
                                      pfdiff::quoted(name) + "; build the engine with --batch " +
                                      std::to_string(batch));
    }

    void bind(const std::string& name, void* address) {
        if (!context->setTensorAddress(name.c_str(), address))
            throw pfdiff::backend_error("TensorRT refuses the address of " + pfdiff::quoted(name) + ": " +
                                        logger.last());
    }

    void send(std::size_t index) {
        const auto bytes = feed.bytes(feed.conditions[index], batch);
        check(cudaMemcpy(conditions[index].get(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice),
              "copy a condition");
        // From pageable memory the copy may still be on its way, and a sampler's stream does not wait for this one.
        check(cudaStreamSynchronize(nullptr), "copy a condition");
    }

    // Each evaluation's times stand ready on the device, 256 bytes apart at least: TensorRT wants aligned addresses.
    void fill_times(const pfd_program_t* program) {
        pfd_program_view_t view{};
        view.struct_size = sizeof view;
        if (const auto status = pfd_program_view(program, &view); status != PFD_OK)
            throw pfdiff::Error(status, pfd_last_error());
        nfe = view.nfe;
        std::vector<std::uint8_t> all;
        for (int n = 0; n < nfe; ++n) {
            auto row = feed.times(view.network_times[n], feed.time_rank == 1 ? batch : 1);
            time_stride = static_cast<std::int64_t>((row.size() + 255) / 256 * 256);
            row.resize(static_cast<std::size_t>(time_stride));
            all.insert(all.end(), row.begin(), row.end());
        }
        times = upload(all);
    }

    Logger logger;  // first: it must outlive the runtime
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    std::int64_t batch;
    int nfe = 0;
    std::int64_t time_stride = 0;
    pfdiff::cuda::Memory<unsigned char> times;
    std::vector<pfdiff::cuda::Memory<unsigned char>> conditions;
};

extern "C" pfd_status_t pfd_tensorrt_create(const pfd_engine_t* engine, const pfd_program_t* program, const char* plan,
                                            int64_t batch, pfd_tensorrt_t** network) {
    return pfdiff::guarded([&] {
        if (engine == nullptr || program == nullptr || plan == nullptr || network == nullptr || batch < 1)
            throw pfdiff::input_error(
                "a TensorRT network without an engine, program, plan or place, or with batch below 1");
        *network = nullptr;
        *network = std::make_unique<pfd_tensorrt_t>(engine, program, plan, batch).release();
    });
}

extern "C" void pfd_tensorrt_free(pfd_tensorrt_t* network) { delete network; }

extern "C" pfd_status_t pfd_tensorrt_set_condition(pfd_tensorrt_t* network, const char* name, const double* values,
                                                   size_t count) {
    return pfdiff::guarded([&] {
        if (network == nullptr || name == nullptr || values == nullptr)
            throw pfdiff::input_error("a condition without a network, a name or values; give all three");
        network->set(name, values, count);
    });
}

extern "C" pfd_dtype_t pfd_tensorrt_dtype(const pfd_tensorrt_t* network) {
    if (network == nullptr || network->feed.precision == "fp32") return PFD_FLOAT32;
    return network->feed.precision == "fp16" ? PFD_FLOAT16 : PFD_BFLOAT16;
}

extern "C" int pfd_tensorrt_network(void* network, const pfd_evaluation_t* evaluation, const void* input, void* output,
                                    pfd_stream_t stream) {
    const auto status =
        pfdiff::guarded([&] { static_cast<pfd_tensorrt_t*>(network)->run(*evaluation, input, output, stream); });
    if (status != PFD_OK) pfd_set_error(pfd_last_error());
    return status;
}
