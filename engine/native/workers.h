// A team of threads for the length of one sampling call: `run` gives every member its share and waits for all.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace pfdiff {

class Workers final {
   public:
    // `threads` including the caller; fewer when the system gives no more.
    explicit Workers(int threads);
    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;
    ~Workers();

    // Calls task(begin, end) for disjoint ranges that cover [0, count), in parallel when that pays. `task` must not
    // throw.
    void run(std::int64_t count, const std::function<void(std::int64_t, std::int64_t)>& task);

   private:
    void serve(int member);
    void share(int member) const;

    std::vector<std::thread> threads_;
    std::atomic<std::uint32_t> round_{0};
    std::atomic<int> busy_{0};
    bool stopping_ = false;  // written before round_ is raised, read after
    std::int64_t count_ = 0;
    const std::function<void(std::int64_t, std::int64_t)>* task_ = nullptr;
};

}  // namespace pfdiff
