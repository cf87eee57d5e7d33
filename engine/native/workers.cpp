#include "workers.h"

#include <algorithm>
#include <system_error>

namespace pfdiff {
namespace {

// Below this many elements waking a thread (about 10 us) costs more than it saves.
constexpr std::int64_t least_parallel = 32768;
// Shares begin at multiples of this: a cache line and any vector register belong to one thread.
constexpr std::int64_t grain = 64;

}  // namespace

Workers::Workers(int threads) {
    try {
        for (int member = 1; member < threads; ++member) threads_.emplace_back([this, member] { serve(member); });
    } catch (const std::system_error&) {
        // The system has no more threads: the team is smaller, the result the same.
    }
}

Workers::~Workers() {
    stopping_ = true;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void Workers::run(std::int64_t count, const std::function<void(std::int64_t, std::int64_t)>& task) {
    if (threads_.empty() || count < least_parallel) return task(0, count);
    count_ = count;
    task_ = &task;
    busy_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    share(0);
    for (int left = busy_.load(std::memory_order_acquire); left > 0; left = busy_.load(std::memory_order_acquire))
        busy_.wait(left, std::memory_order_acquire);
}

void Workers::share(int member) const {
    const auto team = static_cast<std::int64_t>(threads_.size()) + 1;
    const auto each = ((count_ + team - 1) / team + grain - 1) / grain * grain;
    const auto begin = std::min(count_, each * member), end = std::min(count_, begin + each);
    if (begin < end) (*task_)(begin, end);
}

void Workers::serve(int member) {
    for (std::uint32_t seen = 0;;) {
        round_.wait(seen, std::memory_order_acquire);
        ++seen;
        if (stopping_) return;
        share(member);
        if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
}

}  // namespace pfdiff
