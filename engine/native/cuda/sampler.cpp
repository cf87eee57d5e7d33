// The device loop {network; fused update} x N, captured once and replayed with one launch.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include "../pfdiff_cuda.h"
#include "../program.h"
#include "cubins.h"
#include "device.h"

using pfdiff::cuda::check;

// Opaque in pfdiff_cuda.h.
struct pfd_cuda_sampler_t final {
    pfd_cuda_sampler_t(const pfd_program_t& program, pfd_cuda_network_t network, void* context,
                       const pfd_cuda_options_t& options);
    pfd_cuda_sampler_t(const pfd_cuda_sampler_t&) = delete;
    pfd_cuda_sampler_t& operator=(const pfd_cuda_sampler_t&) = delete;
    ~pfd_cuda_sampler_t();

    void run(const std::uint64_t* host_seeds, cudaStream_t stream);
    void stage(const std::uint64_t* host_seeds, cudaStream_t stream);
    void copy(float* samples, cudaStream_t stream) const;

    float* noise() { return noise_.get(); }
    const float* samples() const { return states_.get(); }
    float* picture() { return picture_.get(); }
    std::uint8_t* mask() { return mask_.get(); }
    const std::string& not_captured() const { return not_captured_; }

   private:
    // Seeds on their way to the device, and when they have left.
    struct Staged {
        pfdiff::cuda::PinnedMemory<std::uint64_t> seeds;
        cudaEvent_t copied = nullptr;
    };

    void enqueue(bool from_seeds, cudaStream_t stream);
    void step(int row, const void* out, pfdiff::Dtype out_dtype, cudaStream_t stream) const;
    cudaGraphExec_t capture(bool from_seeds);
    void release();

    const pfd_program_t& program_;
    pfd_cuda_network_t network_;
    void* context_;
    std::int64_t batch_, elements_;
    pfdiff::Dtype dtype_;
    const pfd_cuda_kernels_t* kernels_;
    bool separate_, masked_, seeded_ = false;  // seeds_ holds some
    std::vector<pfdiff::Access> access_;
    pfdiff::cuda::Memory<float> states_, table_, noise_, factors_, picture_, kept_;
    pfdiff::cuda::Memory<std::uint8_t> mask_;
    pfdiff::cuda::Memory<std::uint64_t> seeds_;
    Staged staged_[2];  // in turn, so that a call waits for the copy of the call before the last at most
    int turn_ = 0;
    pfdiff::cuda::Memory<unsigned char> input_, output_;
    cudaStream_t stream_ = nullptr;  // of warm-up and capture; never the default stream, which cannot be captured
    cudaGraphExec_t graphs_[2] = {nullptr, nullptr};  // from the noise buffer, from seeds
    std::string not_captured_;
};

pfd_cuda_sampler_t::pfd_cuda_sampler_t(const pfd_program_t& program, pfd_cuda_network_t network, void* context,
                                       const pfd_cuda_options_t& options)
    : program_(program),
      network_(network),
      context_(context),
      batch_(options.batch),
      elements_(options.elements),
      dtype_(static_cast<pfdiff::Dtype>(options.dtype)),
      kernels_(options.kernels),
      separate_(dtype_ != pfdiff::Dtype::fp32 ||
                std::any_of(program.c_in.begin(), program.c_in.end(), [](double c) { return c != 1; })),
      masked_(options.known_factors != nullptr),
      access_(pfdiff::accesses(program, separate_, masked_)) {
    if (!program.U.empty())
        throw pfdiff::input_error(program.solver +
                                  " takes the network's output twice, which these kernels do not; build with solver "
                                  "ddim, or sample on the CPU");
    const auto count = batch_ * elements_;
    const std::int64_t width = dtype_ == pfdiff::Dtype::fp32 ? 4 : 2;
    states_ = pfdiff::cuda::allocate<float>(count * program.buffers);
    noise_ = pfdiff::cuda::allocate<float>(count);
    seeds_ = pfdiff::cuda::allocate<std::uint64_t>(batch_);
    output_ = pfdiff::cuda::allocate<unsigned char>(count * width);
    if (separate_) input_ = pfdiff::cuda::allocate<unsigned char>(count * width);
    std::vector<float> table, factors, kept;
    for (int row = 0; row <= program.nfe; ++row) {
        const auto numbers = pfdiff::coefficient_row(program, row), noise = pfdiff::noise_row(program, row);
        table.insert(table.end(), numbers.begin(), numbers.end());
        factors.insert(factors.end(), noise.begin(), noise.end());
        for (int i = 0; masked_ && i < 2; ++i)
            kept.push_back(row < program.nfe ? static_cast<float>(options.known_factors[2 * row + i]) : 0.0f);
    }
    table_ = pfdiff::cuda::copied(table);
    if (!program.draws.empty()) factors_ = pfdiff::cuda::copied(factors);
    if (masked_) {
        kept_ = pfdiff::cuda::copied(kept);
        picture_ = pfdiff::cuda::allocate<float>(count);
        mask_ = pfdiff::cuda::allocate<std::uint8_t>(count);
    }
    try {
        for (auto& one : staged_) {
            one.seeds = pfdiff::cuda::allocate_pinned<std::uint64_t>(batch_);
            check(cudaEventCreateWithFlags(&one.copied, cudaEventDisableTiming), "create an event");
        }
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create a stream");
        check(cudaDeviceSynchronize(), "prepare the buffers");
        for (int warm_up = 0; warm_up < 2; ++warm_up) enqueue(true, stream_);
        check(cudaStreamSynchronize(stream_), "run the loop");
        if (options.eager != 0) {
            not_captured_ = "options.eager asks for single launches";
        } else {
            graphs_[1] = capture(true);
            if (graphs_[1] != nullptr) graphs_[0] = capture(false);
        }
    } catch (...) {
        release();
        throw;
    }
}

pfd_cuda_sampler_t::~pfd_cuda_sampler_t() {
    static_cast<void>(cudaDeviceSynchronize());  // a replay may still use the buffers
    release();
}

void pfd_cuda_sampler_t::release() {
    for (auto& graph : graphs_)
        if (graph != nullptr) static_cast<void>(cudaGraphExecDestroy(std::exchange(graph, nullptr)));
    for (auto& one : staged_)
        if (one.copied != nullptr) static_cast<void>(cudaEventDestroy(std::exchange(one.copied, nullptr)));
    if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(std::exchange(stream_, nullptr)));
}

void pfd_cuda_sampler_t::step(int row, const void* out, pfdiff::Dtype out_dtype, cudaStream_t stream) const {
    const auto& access = access_[static_cast<std::size_t>(row)];
    const pfdiff::Step one{states_.get(),
                           access.separate ? input_.get() : nullptr,
                           out,
                           table_.get(),
                           batch_ * elements_,
                           program_.buffers,
                           row,
                           access.reads,
                           access.writes,
                           access.clip,
                           out_dtype,
                           dtype_};
    const pfdiff::StepExtras extras{seeds_.get(), factors_.get(), elements_,
                                    access.noise, picture_.get(), noise_.get(),
                                    mask_.get(),  kept_.get(),    static_cast<int>(access.keeps)};
    if (kernels_ != nullptr)
        kernels_->step(one, extras, stream);
    else
        check(pfdiff::launch_step(one, extras, stream), "launch the update");
}

void pfd_cuda_sampler_t::enqueue(bool from_seeds, cudaStream_t stream) {
    if (from_seeds) {
        if (kernels_ != nullptr)
            kernels_->noise(noise_.get(), seeds_.get(), batch_, elements_, stream);
        else
            check(pfdiff::launch_noise(noise_.get(), seeds_.get(), batch_, elements_, stream), "launch the noise");
    }
    step(program_.nfe, noise_.get(), pfdiff::Dtype::fp32, stream);
    const void* input = separate_ ? static_cast<const void*>(input_.get()) : states_.get();
    for (int n = 0; n < program_.nfe; ++n) {
        const auto at = static_cast<std::size_t>(n);
        const pfd_evaluation_t evaluation{n,      program_.nfe, program_.times[at], program_.network_times[at],
                                          batch_, elements_};
        pfdiff::take_callback_error();
        if (const int status = network_(context_, &evaluation, input, output_.get(), stream); status != 0) {
            const auto words = pfdiff::take_callback_error();
            throw pfdiff::backend_error(
                "the network failed at evaluation " + std::to_string(n + 1) + " of " + std::to_string(program_.nfe) +
                ": " + (words.empty() ? "it returned " + std::to_string(status) : pfdiff::printable(words, 230)));
        }
        step(n, output_.get(), dtype_, stream);
    }
}

// The loop as a graph, or null with `not_captured_` set when the network cannot be captured.
cudaGraphExec_t pfd_cuda_sampler_t::capture(bool from_seeds) {
    // Thread-local: what other threads do with CUDA meanwhile is their affair.
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "begin the capture");
    std::string problem;
    try {
        enqueue(from_seeds, stream_);
    } catch (const pfdiff::Error& error) {
        problem = error.what();
    }
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    auto status = cudaStreamEndCapture(stream_, &graph);
    if (status == cudaSuccess && problem.empty()) status = cudaGraphInstantiate(&executable, graph, 0);
    if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
    static_cast<void>(cudaGetLastError());
    if (problem.empty() && status != cudaSuccess) problem = cudaGetErrorString(status);
    if (!problem.empty()) not_captured_ = "the network cannot be captured: " + problem;
    return executable;
}

// Enqueues the copy of the seeds, through pinned memory: from the caller's own, pageable memory it would first wait for
// all that the stream has to do. The caller's seeds may go when this returns.
void pfd_cuda_sampler_t::stage(const std::uint64_t* host_seeds, cudaStream_t stream) {
    auto capturing = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &capturing), "ask the stream");
    if (capturing != cudaStreamCaptureStatusNone)
        throw pfdiff::input_error(
            "seeds on a stream that is being captured, where every replay would read whatever seeds were last given; "
            "fill the noise buffer and pass NULL");
    auto& one = staged_[std::exchange(turn_, 1 - turn_)];
    check(cudaEventSynchronize(one.copied), "wait for earlier seeds");
    std::copy_n(host_seeds, batch_, one.seeds.get());
    check(cudaMemcpyAsync(seeds_.get(), one.seeds.get(), static_cast<std::size_t>(batch_) * sizeof(std::uint64_t),
                          cudaMemcpyHostToDevice, stream),
          "copy the seeds");
    check(cudaEventRecord(one.copied, stream), "mark the copy");
    seeded_ = true;
}

void pfd_cuda_sampler_t::run(const std::uint64_t* host_seeds, cudaStream_t stream) {
    if (host_seeds != nullptr) stage(host_seeds, stream);
    if (!seeded_ && !program_.draws.empty())
        throw pfdiff::input_error(program_.solver + " draws " + std::to_string(program_.draws.size()) +
                                  " noises on the way; give seeds too, by pfd_cuda_sampler_seeds");
    if (const auto graph = graphs_[host_seeds != nullptr ? 1 : 0]; graph != nullptr)
        check(cudaGraphLaunch(graph, stream), "replay the loop");
    else
        enqueue(host_seeds != nullptr, stream);
}

void pfd_cuda_sampler_t::copy(float* samples, cudaStream_t stream) const {
    const auto bytes = static_cast<std::size_t>(batch_ * elements_) * sizeof(float);
    check(cudaMemcpyAsync(samples, states_.get(), bytes, cudaMemcpyDeviceToHost, stream), "copy the samples");
    check(cudaStreamSynchronize(stream), "finish the samples");
}

extern "C" pfd_status_t pfd_cuda_sampler_create(const pfd_program_t* program, pfd_cuda_network_t network, void* context,
                                                const pfd_cuda_options_t* options, pfd_cuda_sampler_t** sampler) {
    return pfdiff::guarded([&] {
        if (program == nullptr || network == nullptr || options == nullptr || sampler == nullptr)
            throw pfdiff::input_error("a CUDA sampler without a program, network, options or place; give all four");
        *sampler = nullptr;
        // Programs compiled before masks have a shorter structure, whose last field is `kernels`.
        if (options->struct_size < offsetof(pfd_cuda_options_t, known_factors))
            throw pfdiff::input_error("options whose struct_size is " + std::to_string(options->struct_size) +
                                      "; set it to sizeof");
        pfd_cuda_options_t known{};
        std::memcpy(&known, options, std::min(options->struct_size, sizeof known));
        options = &known;
        if (options->batch < 1 || options->elements < 1 || options->elements > (std::int64_t{1} << 36) / options->batch)
            throw pfdiff::input_error("batch " + std::to_string(options->batch) + " of " +
                                      std::to_string(options->elements) +
                                      " elements, expected at least 1 of each and at most 2^36 together");
        if (options->dtype < PFD_FLOAT32 || options->dtype > PFD_BFLOAT16)
            throw pfdiff::input_error("dtype " + std::to_string(options->dtype) + ", expected one of pfd_dtype_t");
        static_assert(pfdiff::step_buffers >= pfdiff::most_buffers, "the kernels take every program");
        *sampler = std::make_unique<pfd_cuda_sampler_t>(*program, network, context, *options).release();
    });
}

extern "C" void pfd_cuda_sampler_free(pfd_cuda_sampler_t* sampler) { delete sampler; }

extern "C" const char* pfd_cuda_sampler_not_captured(const pfd_cuda_sampler_t* sampler) {
    return sampler != nullptr ? sampler->not_captured().c_str() : "";
}

extern "C" float* pfd_cuda_sampler_noise(pfd_cuda_sampler_t* sampler) {
    return sampler != nullptr ? sampler->noise() : nullptr;
}

extern "C" const float* pfd_cuda_sampler_samples(const pfd_cuda_sampler_t* sampler) {
    return sampler != nullptr ? sampler->samples() : nullptr;
}

extern "C" float* pfd_cuda_sampler_picture(pfd_cuda_sampler_t* sampler) {
    return sampler != nullptr ? sampler->picture() : nullptr;
}

extern "C" uint8_t* pfd_cuda_sampler_mask(pfd_cuda_sampler_t* sampler) {
    return sampler != nullptr ? sampler->mask() : nullptr;
}

extern "C" pfd_status_t pfd_cuda_sampler_seeds(pfd_cuda_sampler_t* sampler, const uint64_t* seeds,
                                               pfd_stream_t stream) {
    return pfdiff::guarded([&] {
        if (sampler == nullptr || seeds == nullptr)
            throw pfdiff::input_error("NULL instead of a CUDA sampler or of seeds");
        sampler->stage(seeds, stream);
    });
}

extern "C" pfd_status_t pfd_cuda_sampler_run(pfd_cuda_sampler_t* sampler, const uint64_t* seeds, pfd_stream_t stream) {
    return pfdiff::guarded([&] {
        if (sampler == nullptr) throw pfdiff::input_error("NULL instead of a CUDA sampler");
        sampler->run(seeds, stream);
    });
}

extern "C" pfd_status_t pfd_cuda_sampler_copy(pfd_cuda_sampler_t* sampler, float* samples, pfd_stream_t stream) {
    return pfdiff::guarded([&] {
        if (sampler == nullptr || samples == nullptr)
            throw pfdiff::input_error("NULL instead of a CUDA sampler or of samples");
        sampler->copy(samples, stream);
    });
}

extern "C" pfd_status_t pfd_cuda_noise(float* noise, const uint64_t* seeds, int64_t batch, int64_t elements,
                                       pfd_stream_t stream) {
    return pfdiff::guarded(
        [&] { check(pfdiff::launch_noise(noise, seeds, batch, elements, stream), "launch the noise"); });
}

extern "C" pfd_status_t pfd_cuda_images(uint8_t* pixels, const float* x, double low, double high, int64_t batch,
                                        int32_t channels, int32_t area, pfd_stream_t stream) {
    return pfdiff::guarded([&] {
        if (!(std::isfinite(low) && std::isfinite(high) && low < high))
            throw pfdiff::input_error("a data range of " + pfdiff::decimal(low) + ".." + pfdiff::decimal(high) +
                                      "; the lower comes first");
        const auto factor = static_cast<float>(255.0 / (high - low));
        check(pfdiff::launch_images(pixels, x, static_cast<float>(low), factor, batch, channels, area, stream),
              "launch the images");
    });
}
