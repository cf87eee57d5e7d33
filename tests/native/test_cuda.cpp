// On a device: kernels against the CPU, graph against launches, one sampler against the CPU's. 77 without a device.
//
//     pfdiff_test_cuda [folder of `pfdiff kernels`]      also runs the ahead-of-time compiled Triton kernels of it
//     pfdiff_test_cuda_on_cpu                            the same with cuda_on_cpu/ in the place of a device
//
// Bitwise where the arithmetic is the same: the update (all dtypes, all widths), the noise against element.h, pictures,
// replay against eager launches. At the end the bandwidth of the update beside a device copy, for a look.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/cubins.h"
#include "cuda/device.h"
#include "cuda_fixture.h"
#include "element.h"
#include "launch.h"
#include "pfdiff_cuda.h"
#include "program.h"
#include "update.h"

namespace {

using pfdiff::add_draws;
using pfdiff::Dtype;
using pfdiff::fetch;
using pfdiff::from_dtype;
using pfdiff::in_dtype;
using pfdiff::numbers;
using pfdiff::random_program;
using pfdiff::send;
using pfdiff::cuda::allocate;
using pfdiff::cuda::check;

using LaunchStep = std::function<void(const pfdiff::Step&, const pfdiff::StepExtras&)>;

// Every row of a program, in place on the device and on the CPU; with `noise` drawn on the way, with a mask.
void compare_steps(std::mt19937& random, int buffers, bool clip, Dtype dtype, std::int64_t count, bool noise,
                   bool masked, const LaunchStep& launch) {
    auto program = random_program(random, buffers, clip);
    if (noise) add_draws(random, program);
    const auto access = pfdiff::accesses(program, true, masked);
    std::vector<float> table, factors, kept = numbers(random, 2 * (program.nfe + 1));
    for (int row = 0; row <= program.nfe; ++row) {
        const auto one = pfdiff::coefficient_row(program, row), V = pfdiff::noise_row(program, row);
        table.insert(table.end(), one.begin(), one.end());
        factors.insert(factors.end(), V.begin(), V.end());
    }
    const auto device_table = pfdiff::cuda::copied(table), device_factors = pfdiff::cuda::copied(factors);
    const auto device_kept = pfdiff::cuda::copied(kept);
    const std::int64_t samples = count % 4 == 0 ? 4 : 1, size = count / samples;  // of 4104 two begin inside a vector
    const std::vector<std::uint64_t> seeds{0, 1, ~std::uint64_t{0}, std::uint64_t{1} << 63};
    const auto picture = numbers(random, count), eps = numbers(random, count);
    std::vector<std::uint8_t> mask;
    for (std::int64_t i = 0; i < count; ++i) mask.push_back(random() % 2 != 0 ? 255 : 0);
    const auto device_seeds = pfdiff::cuda::copied(seeds);
    const auto device_picture = pfdiff::cuda::copied(picture), device_eps = pfdiff::cuda::copied(eps);
    const auto device_mask = pfdiff::cuda::copied(mask);
    pfdiff::Workers workers(1);
    for (int row = 0; row <= program.nfe; ++row) {
        const auto& one = access[static_cast<std::size_t>(row)];
        const auto out_dtype = row == program.nfe ? Dtype::fp32 : dtype;  // the noise is float32
        auto states = numbers(random, buffers * count);
        const auto out = in_dtype(numbers(random, count), out_dtype);
        const auto device_states = allocate<float>(buffers * count);
        const auto device_out = allocate<unsigned char>(static_cast<std::int64_t>(out.size()));
        const auto device_in = allocate<unsigned char>(4 * count);
        send(device_states, states), send(device_out, out);
        launch({device_states.get(), one.separate ? device_in.get() : nullptr, device_out.get(), device_table.get(),
                count, buffers, row, one.reads, one.writes, one.clip, out_dtype, dtype},
               {device_seeds.get(), device_factors.get(), size, one.noise, device_picture.get(), device_eps.get(),
                device_mask.get(), device_kept.get(), static_cast<int>(one.keeps)});
        check(cudaDeviceSynchronize(), "step");

        std::vector<float> input(static_cast<std::size_t>(count));
        float* pointers[pfdiff::most_buffers];
        for (int j = 0; j < buffers; ++j) pointers[j] = states.data() + j * count;
        const auto at = static_cast<std::size_t>(2 * row);
        const pfdiff::Extras extras{seeds.data(), nullptr,     size,     picture.data(),
                                    eps.data(),   mask.data(), kept[at], kept[at + 1]};
        pfdiff::Update(program, row, one)
            .run(pointers, from_dtype(out, out_dtype).data(), input.data(), count, workers, extras);
        const auto found = fetch(device_states.get(), buffers * count);
        for (int j = 0; j < buffers; ++j)
            if ((one.writes >> j & 1) != 0)
                for (std::int64_t i = 0; i < count; ++i) {
                    const auto place = static_cast<std::size_t>(j * count + i);
                    CHECK(found[place] == states[place]);
                }
        if (one.separate) {
            const auto expected = in_dtype(input, dtype);
            const auto fed = fetch(device_in.get(), static_cast<std::int64_t>(expected.size()));
            CHECK(from_dtype(fed, dtype) == from_dtype(expected, dtype));  // as numbers: -0 is 0
        }
    }
}

void test_steps(const LaunchStep& launch) {
    std::mt19937 random(1);
    for (int buffers = 1; buffers <= pfdiff::step_buffers; ++buffers)
        for (const bool clip : {false, true})
            for (const auto dtype : {Dtype::fp32, Dtype::fp16, Dtype::bf16})
                for (const std::int64_t count : {1, 7, 1024, 1025, 4104})
                    for (const auto& [noise, masked] : {std::pair{false, false}, std::pair{true, false},
                                                        std::pair{false, true}, std::pair{true, true}})
                        compare_steps(random, buffers, clip, dtype, count, noise, masked, launch);
}

void test_noise_and_images(const pfd_cuda_kernels_t* kernels) {
    const std::vector<std::uint64_t> seeds{0, 1, ~std::uint64_t{0}, std::uint64_t{1} << 63};
    const auto device_seeds = allocate<std::uint64_t>(4);
    send(device_seeds, seeds);
    for (const std::int64_t elements : {1, 13, 784, 49152}) {
        const auto z = allocate<float>(4 * elements);
        if (kernels != nullptr)
            kernels->noise(z.get(), device_seeds.get(), 4, elements, nullptr);
        else
            check(pfdiff::launch_noise(z.get(), device_seeds.get(), 4, elements, nullptr), "noise");
        const auto found = fetch(z.get(), 4 * elements);
        for (std::size_t i = 0; i < found.size(); ++i) {
            const auto element = i % static_cast<std::size_t>(elements);
            CHECK(found[i] == pfdiff::normal32(seeds[i / static_cast<std::size_t>(elements)], element));
            const float exact = pfdiff::normal(seeds[i / static_cast<std::size_t>(elements)], element);
            CHECK(std::abs(found[i] - exact) <= 2e-6f * std::max(1.0f, std::abs(exact)));
        }
    }
    std::mt19937 random(2);
    for (const int channels : {1, 3, 4})
        for (const int area : {1, 49, 4096}) {
            const auto x = numbers(random, 2 * channels * area);
            const auto device_x = allocate<float>(2 * channels * area);
            const auto pixels = allocate<std::uint8_t>(2 * channels * area);
            send(device_x, x);
            CHECK(pfd_cuda_images(pixels.get(), device_x.get(), -1, 1, 2, channels, area, nullptr) == PFD_OK);
            const auto found = fetch(pixels.get(), 2 * channels * area);
            for (int image = 0; image < 2; ++image)
                for (int place = 0; place < area; ++place)
                    for (int channel = 0; channel < channels; ++channel) {
                        const auto from = static_cast<std::size_t>((image * channels + channel) * area + place);
                        const auto to = static_cast<std::size_t>((image * area + place) * channels + channel);
                        CHECK(found[to] == pfdiff::pixel(x[from], -1.0f, 127.5f));
                    }
        }
}

// A network that the device can be trusted with: out = input. What it does not write shows as a NaN.
int copy_network(void* context, const pfd_evaluation_t* e, const void* input, void* output, pfd_stream_t stream) {
    const auto bytes = static_cast<std::size_t>(e->batch * e->elements) * *static_cast<std::size_t*>(context);
    return cudaMemcpyAsync(output, input, bytes, cudaMemcpyDeviceToDevice, stream) == cudaSuccess ? 0 : 1;
}

int cpu_copy_network(void*, const pfd_evaluation_t* e, const float* input, float* output) {
    std::copy_n(input, e->batch * e->elements, output);
    return 0;
}

std::vector<float> sample(const pfd_program_t& program, Dtype dtype, bool eager, const pfd_cuda_kernels_t* kernels,
                          const std::vector<std::uint64_t>* seeds, const std::vector<float>& noise,
                          std::int64_t elements) {
    std::size_t width = dtype == Dtype::fp32 ? 4 : 2;
    pfd_cuda_options_t options{sizeof options, 2, elements, static_cast<pfd_dtype_t>(dtype), eager, kernels, nullptr};
    pfd_cuda_sampler_t* sampler = nullptr;
    const auto status = pfd_cuda_sampler_create(&program, copy_network, &width, &options, &sampler);
    if (status != PFD_OK) std::fprintf(stderr, "%s\n", pfd_last_error());
    CHECK(status == PFD_OK);
    CHECK((std::string(pfd_cuda_sampler_not_captured(sampler)) == "") == !eager);
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream), "create a stream");
    std::vector<float> first, samples(static_cast<std::size_t>(2 * elements));
    for (int replay = 0; replay < 3; ++replay) {
        if (seeds == nullptr)
            check(cudaMemcpy(pfd_cuda_sampler_noise(sampler), noise.data(), noise.size() * sizeof(float),
                             cudaMemcpyHostToDevice),
                  "send");
        CHECK(pfd_cuda_sampler_run(sampler, seeds != nullptr ? seeds->data() : nullptr, stream) == PFD_OK);
        CHECK(pfd_cuda_sampler_copy(sampler, samples.data(), stream) == PFD_OK);
        if (replay == 0) first = samples;
        CHECK(first == samples);
        // What a replay leaves behind must not matter to the next.
        check(cudaMemset(const_cast<float*>(pfd_cuda_sampler_samples(sampler)), 0xFF, samples.size() * sizeof(float)),
              "poison");
    }
    pfd_cuda_sampler_free(sampler);
    check(cudaStreamDestroy(stream), "destroy a stream");
    return first;
}

void test_sampler(const pfd_cuda_kernels_t* kernels) {
    std::mt19937 random(3);
    for (const int buffers : {1, 2, 5, 8})
        for (const auto dtype : {Dtype::fp32, Dtype::fp16, Dtype::bf16})
            for (const std::int64_t elements : {784, 1001}) {
                auto program = random_program(random, buffers, false);
                if (elements % 2 == 0) add_draws(random, program);
                if (dtype == Dtype::fp32)
                    std::fill(program.c_in.begin(), program.c_in.end(), 1.0);  // input is s_0 itself
                const std::vector<std::uint64_t> seeds{5, 6};
                const auto noise = numbers(random, 2 * elements);
                CHECK(sample(program, dtype, false, kernels, &seeds, noise, elements) ==
                      sample(program, dtype, true, kernels, &seeds, noise, elements));
                if (!program.draws.empty()) continue;  // seeds are needed too
                const auto found = sample(program, dtype, false, kernels, nullptr, noise, elements);
                CHECK(found == sample(program, dtype, true, kernels, nullptr, noise, elements));
                if (dtype != Dtype::fp32) continue;
                auto expected = noise;
                CHECK(pfd_sample_cpu(&program, cpu_copy_network, nullptr, expected.data(), 2, elements, 1) == PFD_OK);
                CHECK(found == expected);
            }
}

// Noise on the way and a mask, in the loop: against the CPU, with the seeds given before and with the run.
void test_noise_and_mask() {
    constexpr std::int64_t elements = 784, count = 2 * elements;
    std::mt19937 random(7);
    for (const bool masked : {false, true}) {
        auto program = random_program(random, 2, false);
        add_draws(random, program);
        std::fill(program.c_in.begin(), program.c_in.end(), 1.0);
        const std::vector<double> factors{0.5, 0.25, 0.75, 0.125, 1.0, 0.0};
        const auto noise = numbers(random, count), picture = numbers(random, count);
        std::vector<std::uint8_t> mask;
        for (std::int64_t i = 0; i < count; ++i) mask.push_back(random() % 2 != 0);
        const std::vector<std::uint64_t> seeds{5, 6};
        std::size_t width = 4;
        pfd_cuda_options_t options{
            sizeof options, 2, elements, PFD_FLOAT32, 0, nullptr, masked ? factors.data() : nullptr};
        pfd_cuda_sampler_t* sampler = nullptr;
        CHECK(pfd_cuda_sampler_create(&program, copy_network, &width, &options, &sampler) == PFD_OK);
        CHECK((pfd_cuda_sampler_mask(sampler) != nullptr) == masked);
        CHECK(pfd_cuda_sampler_run(sampler, nullptr, nullptr) == PFD_INPUT_ERROR);  // no seeds yet
        CHECK(pfd_cuda_sampler_seeds(sampler, seeds.data(), nullptr) == PFD_OK);
        check(cudaMemcpy(pfd_cuda_sampler_noise(sampler), noise.data(), count * 4, cudaMemcpyHostToDevice), "send");
        if (masked) {
            check(cudaMemcpy(pfd_cuda_sampler_picture(sampler), picture.data(), count * 4, cudaMemcpyHostToDevice),
                  "send");
            check(cudaMemcpy(pfd_cuda_sampler_mask(sampler), mask.data(), count, cudaMemcpyHostToDevice), "send");
        }
        CHECK(pfd_cuda_sampler_run(sampler, nullptr, nullptr) == PFD_OK);
        std::vector<float> found(static_cast<std::size_t>(count));
        CHECK(pfd_cuda_sampler_copy(sampler, found.data(), nullptr) == PFD_OK);
        pfd_cuda_sampler_free(sampler);
        auto expected = noise;
        pfd_sampling_t given{};
        given.struct_size = sizeof given, given.threads = 1, given.seeds = seeds.data();
        if (masked) given.mask = mask.data(), given.picture = picture.data(), given.known_factors = factors.data();
        CHECK(pfd_sample_cpu_with(&program, cpu_copy_network, nullptr, expected.data(), 2, elements, &given) == PFD_OK);
        CHECK(found == expected);
    }
}

// Batches enqueued one upon another without a wait, from seeds that are gone when the call returns.
void test_queued_batches() {
    constexpr std::int64_t elements = 784, bytes = 2 * elements * sizeof(float);
    constexpr std::uint64_t batches = 7;
    std::mt19937 random(6);
    const auto program = random_program(random, 2, false);
    std::size_t width = 4;
    pfd_cuda_options_t options{sizeof options, 2, elements, PFD_FLOAT32, 0, nullptr, nullptr};
    pfd_cuda_sampler_t* sampler = nullptr;
    CHECK(pfd_cuda_sampler_create(&program, copy_network, &width, &options, &sampler) == PFD_OK);
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream), "create a stream");
    const auto kept = allocate<float>(2 * elements * static_cast<std::int64_t>(batches));
    for (std::uint64_t batch = 0; batch < batches; ++batch) {
        std::vector<std::uint64_t> seeds{100 + batch, 200 + batch};
        CHECK(pfd_cuda_sampler_run(sampler, seeds.data(), stream) == PFD_OK);
        seeds.assign(2, 0);
        check(cudaMemcpyAsync(kept.get() + batch * 2 * elements, pfd_cuda_sampler_samples(sampler), bytes,
                              cudaMemcpyDeviceToDevice, stream),
              "keep");
    }
    check(cudaStreamSynchronize(stream), "wait");
    const auto found = fetch(kept.get(), 2 * elements * static_cast<std::int64_t>(batches));
    for (std::uint64_t batch = 0; batch < batches; ++batch) {
        const std::vector<std::uint64_t> seeds{100 + batch, 200 + batch};
        const auto expected = sample(program, Dtype::fp32, true, nullptr, &seeds, {}, elements);
        CHECK(std::equal(expected.begin(), expected.end(),
                         found.begin() + static_cast<std::ptrdiff_t>(batch) * 2 * elements));
    }
    // A capture would keep the place of the seeds, not the seeds.
    const std::vector<std::uint64_t> seeds{1, 2};
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    CHECK(pfd_cuda_sampler_run(sampler, seeds.data(), stream) == PFD_INPUT_ERROR);
    CHECK(pfd_cuda_sampler_run(sampler, nullptr, stream) == PFD_OK);
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream, &graph), "end the capture");
    check(cudaGraphDestroy(graph), "destroy the graph");
    pfd_cuda_sampler_free(sampler);
    check(cudaStreamDestroy(stream), "destroy a stream");
}

[[maybe_unused]] void print_bandwidth() {
    constexpr std::int64_t count = 1 << 26;  // states of 256 MiB
    std::mt19937 random(4);
    auto program = random_program(random, 2, false);
    program.W = {1, 0, 1, 0, 0, 2, 0, 3, 0, 1, 0, 0};  // PFDiff's middle update reads and writes as row 1
    const auto row = pfdiff::coefficient_row(program, 1);
    const auto table = allocate<float>(30);
    const auto states = allocate<float>(2 * count), out = allocate<float>(count);
    check(cudaMemcpy(table.get() + row.size(), row.data(), row.size() * sizeof(float), cudaMemcpyHostToDevice), "send");
    cudaEvent_t start, end;
    check(cudaEventCreate(&start), "time"), check(cudaEventCreate(&end), "time");
    float copy = 1e9f, step = 1e9f, ms = 0;
    for (int round = 0; round < 20; ++round) {
        check(cudaEventRecord(start), "time");
        check(cudaMemcpyAsync(states.get(), out.get(), count * sizeof(float), cudaMemcpyDeviceToDevice), "copy");
        check(cudaEventRecord(end), "time"), check(cudaEventSynchronize(end), "time");
        check(cudaEventElapsedTime(&ms, start, end), "time"), copy = std::min(copy, ms);
        check(cudaEventRecord(start), "time");
        check(pfdiff::launch_step(
                  {states.get(), nullptr, out.get(), table.get(), count, 2, 1, 2, 3, false, Dtype::fp32, Dtype::fp32},
                  nullptr),
              "step");
        check(cudaEventRecord(end), "time"), check(cudaEventSynchronize(end), "time");
        check(cudaEventElapsedTime(&ms, start, end), "time"), step = std::min(step, ms);
    }
    const double bytes = static_cast<double>(count) * sizeof(float);
    std::printf("{\"copy_GB_per_s\": %.0f, \"step_GB_per_s\": %.0f, \"ratio\": %.3f}\n", 2 * bytes / copy * 1e-6,
                4 * bytes / step * 1e-6, 2.0 * copy / step);
}

}  // namespace

int main(int count, char** words) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        // Without a device every call must say so in one line, and nothing may crash.
        std::mt19937 random(5);
        const auto program = random_program(random, 2, false);
        std::size_t width = 4;
        pfd_cuda_options_t options{sizeof options, 1, 16, PFD_FLOAT32, 0, nullptr, nullptr};
        pfd_cuda_sampler_t* sampler = nullptr;
        CHECK(pfd_cuda_sampler_create(&program, copy_network, &width, &options, &sampler) == PFD_BACKEND_ERROR &&
              sampler == nullptr);
        CHECK(std::string(pfd_last_error()).starts_with("CUDA fails to "));
        pfd_cuda_kernels_t* kernels = nullptr;
        CHECK(pfd_cuda_kernels_load("no such folder", &kernels) == PFD_ENGINE_FILE_ERROR);
        options.batch = 0;
        CHECK(pfd_cuda_sampler_create(&program, copy_network, &width, &options, &sampler) == PFD_INPUT_ERROR);
        std::printf("no CUDA device: %s\n", cudaGetErrorString(cudaGetLastError()));
        return 77;
    }
    const auto status = pfdiff::guarded([&] {
        test_steps([](const pfdiff::Step& step, const pfdiff::StepExtras& extras) {
            check(pfdiff::launch_step(step, extras, nullptr), "launch");
        });
        test_noise_and_mask();
        test_noise_and_images(nullptr);
        test_sampler(nullptr);
        test_queued_batches();
        if (count > 1) {
            const pfd_cuda_kernels_t kernels(words[1]);
            test_steps([&](const pfdiff::Step& step, const pfdiff::StepExtras& extras) {
                kernels.step(step, extras, nullptr);
            });
            test_noise_and_images(&kernels);
            test_sampler(&kernels);
        }
#ifndef PFDIFF_CUDA_ON_CPU
        print_bandwidth();
#endif
    });
    if (status != PFD_OK) std::fprintf(stderr, "%s\n", pfd_last_error());
    return status == PFD_OK ? 0 : 1;
}
