// A policy at a fixed rate: a thread that samples every tick, as a robot's would. Usage: control_loop ENGINE NFE HZ S
#include <pfdiff_control.h>
#ifdef WITH_ONNXRUNTIME
#include <pfdiff_onnxruntime.h>
#endif
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

// Every allocation of the program while it counts.
static std::atomic<std::int64_t> allocations{0};
static std::atomic<bool> counting{false};
void* operator new(std::size_t size) {
    if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
    if (void* memory = std::malloc(size != 0 ? size : 1)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

static int fail() { return std::fprintf(stderr, "%s\n", pfd_last_error()), 1; }

static std::int64_t now_ns() {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1'000'000'000LL + time.tv_nsec;
}

static void sleep_until(std::int64_t ns) {
    const timespec time{ns / 1'000'000'000LL, ns % 1'000'000'000LL};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) != 0) {
    }
}

// In the place of a network where ONNX Runtime is not there: x -> x / 2.
[[maybe_unused]] static int half(void*, const pfd_evaluation_t* evaluation, const float* input, float* output) {
    for (std::int64_t i = 0; i < evaluation->elements; ++i) output[i] = 0.5f * input[i];
    return 0;
}

struct Loop {
    pfd_control_t* control;
    pfd_network_t network;
    void* context;
    double hz;
    std::vector<std::int64_t> begun, ended;
    std::vector<float> actions;
    std::int64_t start = 0;
    bool failed = false, real_time = false;

    void run() {
        sched_param priority{};
        priority.sched_priority = 50;
        real_time = pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority) == 0;
        for (std::uint64_t tick = 0; tick < 20 && !failed; ++tick) failed = !act(tick);  // warm up
        const auto period = static_cast<std::int64_t>(1e9 / hz);
        start = now_ns() + period;
        counting = true;
        for (std::size_t tick = 0; tick < begun.size() && !failed; ++tick) {
            sleep_until(start + static_cast<std::int64_t>(tick) * period);
            begun[tick] = now_ns() - start;
            failed = !act(tick);
            ended[tick] = now_ns() - start;
        }
        counting = false;
    }

    bool act(std::uint64_t seed) {
        return pfd_control_sample(control, seed, network, context, actions.data()) == PFD_OK;
    }
};

static void print(const char* name, std::vector<double> ms) {
    std::sort(ms.begin(), ms.end());
    const auto at = [&](double part) { return ms[static_cast<std::size_t>(part * double(ms.size() - 1))]; };
    std::printf("%-9s p50 %.3f  p99 %.3f  p99.9 %.3f  max %.3f ms\n", name, at(0.5), at(0.99), at(0.999), at(1));
}

static void report(const Loop& loop) {
    const auto ticks = loop.begun.size();
    std::vector<double> call(ticks), late(ticks);
    double mean = 0, square = 0;
    int missed = 0;
    for (std::size_t tick = 0; tick < ticks; ++tick) {
        const double due = 1e3 * double(tick) / loop.hz, begun = 1e-6 * double(loop.begun[tick]);
        call[tick] = 1e-6 * double(loop.ended[tick]) - begun;
        late[tick] = begun - due;
        missed += 1e-6 * double(loop.ended[tick]) > due + 1e3 / loop.hz;
        mean += late[tick] / double(ticks);
    }
    for (const double one : late) square += (one - mean) * (one - mean) / double(ticks);
    std::printf("%zu ticks at %g Hz, %s: missed %d, jitter %.3f ms\n", ticks, loop.hz,
                loop.real_time ? "SCHED_FIFO" : "no real-time priority", missed, std::sqrt(square));
    print("call", call);
    print("late", late);
    std::printf("allocations: %.2f a tick\n", double(allocations) / double(ticks));
}

int main(int count, char** words) {
    pfd_engine_t* engine = nullptr;
    if (count != 5) return std::fprintf(stderr, "usage: control_loop ENGINE NFE HZ SECONDS\n"), 2;
    if (pfd_open(words[1], &engine) != PFD_OK) return fail();
    Loop loop{nullptr, half, nullptr, std::atof(words[3]), {}, {}, {}};
    if (!(loop.hz > 0) || !(std::atof(words[4]) > 0)) return std::fprintf(stderr, "a rate and a time above 0\n"), 2;
    if (pfd_control_create(engine, std::atoi(words[2]), &loop.control) != PFD_OK) return fail();
#ifdef WITH_ONNXRUNTIME
    pfd_onnxruntime_t* network = nullptr;
    if (pfd_onnxruntime_create(engine, 1, &network) != PFD_OK) return fail();
    pfd_contract_view_t contract{};
    pfd_condition_view_t condition{};
    contract.struct_size = sizeof contract, condition.struct_size = sizeof condition;
    if (pfd_contract(engine, &contract) != PFD_OK) return fail();
    for (std::size_t i = 0; i < contract.condition_count; ++i) {  // in a robot: what it observes, before each tick
        if (pfd_condition(engine, i, &condition) != PFD_OK) return fail();
        const std::vector<double> zeros(static_cast<std::size_t>(condition.elements));
        if (pfd_onnxruntime_set_condition(network, condition.name, zeros.data(), zeros.size()) != PFD_OK) return fail();
    }
    loop.network = pfd_onnxruntime_network, loop.context = network;
#endif
    pfd_control_view_t view{};
    view.struct_size = sizeof view;
    if (pfd_control_view(loop.control, &view) != PFD_OK) return fail();
    loop.actions.resize(static_cast<std::size_t>(view.count * view.actions));
    const auto ticks = static_cast<std::size_t>(loop.hz * std::atof(words[4]) + 0.5);
    loop.begun.resize(std::max<std::size_t>(ticks, 1)), loop.ended.resize(loop.begun.size());
    mlockall(MCL_CURRENT | MCL_FUTURE);
    std::thread thread([&loop] { loop.run(); });
    thread.join();
    if (loop.failed) return fail();
    report(loop);
#ifdef WITH_ONNXRUNTIME
    pfd_onnxruntime_free(network);
#endif
    pfd_control_free(loop.control);
    pfd_close(engine);
}
