// CUDA's errors as ours, and device memory that frees itself.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../error.h"

namespace pfdiff::cuda {

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    static_cast<void>(cudaGetLastError());  // or the next, innocent call would report it again
    throw backend_error(std::string("CUDA fails to ") + what + ": " + cudaGetErrorString(status));
}

template <cudaError_t (*release)(void*)>
struct Free {
    void operator()(void* memory) const { static_cast<void>(release(memory)); }
};
template <class Element>
using Memory = std::unique_ptr<Element[], Free<cudaFree>>;
template <class Element>
using PinnedMemory = std::unique_ptr<Element[], Free<cudaFreeHost>>;

// Zeroed: kernels that read every state multiply what nobody wrote by zero, which must not be a NaN.
template <class Element>
Memory<Element> allocate(std::int64_t count) {
    void* memory = nullptr;
    const auto bytes = static_cast<std::size_t>(count > 0 ? count : 1) * sizeof(Element);
    check(cudaMalloc(&memory, bytes), ("allocate " + std::to_string(bytes >> 20) + " MiB").c_str());
    Memory<Element> owned(static_cast<Element*>(memory));
    check(cudaMemset(memory, 0, bytes), "clear memory");
    return owned;
}

template <class Element>
Memory<Element> copied(const std::vector<Element>& values) {
    auto memory = allocate<Element>(static_cast<std::int64_t>(values.size()));
    check(cudaMemcpy(memory.get(), values.data(), values.size() * sizeof(Element), cudaMemcpyHostToDevice),
          "copy the coefficients");
    return memory;
}

// Host memory that the device reads by itself: a copy from it does not wait for what the stream has to do before.
template <class Element>
PinnedMemory<Element> allocate_pinned(std::int64_t count) {
    void* memory = nullptr;
    check(cudaMallocHost(&memory, static_cast<std::size_t>(count) * sizeof(Element)), "allocate pinned memory");
    return PinnedMemory<Element>(static_cast<Element*>(memory));
}

}  // namespace pfdiff::cuda
