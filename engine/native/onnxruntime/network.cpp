// The network of pfdiff_onnxruntime.h: tensors over the sampler's own buffers, nothing copied in fp32.
#include <memory>

#include "../error.h"
#include "../feed.h"
#include "../halfs.h"
#include "../pfdiff_onnxruntime.h"
#include "session.h"

struct pfd_onnxruntime_t final {
    pfd_onnxruntime_t(const pfd_engine_t* engine, int threads)
        : feed(engine), session(engine, "network.onnx", threads) {}

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
        const bool half = feed.precision != "fp32";
        std::vector<std::uint16_t> half_x, half_out(half ? count : 0);
        if (half) half_x = pfdiff::halves_from(x, count, feed.precision);

        std::vector<const char*> names{feed.input.c_str(), feed.time.c_str()};
        std::vector<std::vector<std::uint8_t>> fed{
            feed.times(evaluation.network_time, feed.time_rank == 1 ? batch : 1)};
        for (const auto& condition : feed.conditions) {
            names.push_back(condition.name.c_str());
            fed.push_back(feed.bytes(condition, batch));
        }
        std::vector<pfdiff::Owned<OrtValue>> inputs;
        // ONNX Runtime does not write to inputs, but its interface takes them without const.
        void* first = half ? static_cast<void*>(half_x.data()) : const_cast<float*>(x);
        const auto bytes = count * (half ? sizeof(std::uint16_t) : sizeof(float));
        inputs.push_back(session.tensor(first, bytes, shape, feed.precision));
        std::vector<std::int64_t> time_shape(static_cast<std::size_t>(feed.time_rank), batch);
        inputs.push_back(session.tensor(fed[0].data(), fed[0].size(), time_shape, feed.time_dtype));
        for (std::size_t i = 0; i < feed.conditions.size(); ++i) {
            const auto& condition = feed.conditions[i];
            const auto condition_shape = pfdiff::Feed::batched(batch, condition.shape);
            inputs.push_back(session.tensor(fed[i + 1].data(), fed[i + 1].size(), condition_shape, condition.dtype));
        }
        void* last = half ? static_cast<void*>(half_out.data()) : out;
        const auto output = session.tensor(last, bytes, shape, feed.precision);
        session.run(names, inputs, feed.output.c_str(), output.get());
        if (half) pfdiff::floats_from(half_out, out, feed.precision);
    }

    pfdiff::Feed feed;
    pfdiff::Session session;
};

extern "C" pfd_status_t pfd_onnxruntime_create(const pfd_engine_t* engine, int32_t threads,
                                               pfd_onnxruntime_t** network) {
    return pfdiff::guarded([&] {
        pfdiff::check_place(engine, network, threads, "network");
        *network = std::make_unique<pfd_onnxruntime_t>(engine, threads).release();
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
