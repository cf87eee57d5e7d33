// The ahead-of-time compiled Triton kernels of a folder that `pfdiff kernels` wrote, loaded through the driver API.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "../../../kernels/native/launch.h"

// Opaque in pfdiff_cuda.h.
struct pfd_cuda_kernels_t final {
    explicit pfd_cuda_kernels_t(const std::string& directory);
    pfd_cuda_kernels_t(const pfd_cuda_kernels_t&) = delete;
    pfd_cuda_kernels_t& operator=(const pfd_cuda_kernels_t&) = delete;
    ~pfd_cuda_kernels_t();

    // The same meaning as the launchers of kernels/native/launch.h. Throws Error when no variant fits.
    void step(const pfdiff::Step& step, const pfdiff::StepExtras& extras, cudaStream_t stream) const;
    void noise(float* z, const std::uint64_t* seeds, std::int64_t samples, std::int64_t elements,
               cudaStream_t stream) const;

   private:
    struct Argument {
        std::string name;
        std::int64_t multiple;
    };
    struct Kernel {
        CUmodule module = nullptr;
        CUfunction function = nullptr;
        unsigned block = 0, threads = 0, shared_bytes = 0;
        std::vector<Argument> arguments;
    };
    struct Value {
        std::uint64_t bits;  // a pointer, an int64 or, in the low half, an int32
    };

    // The names of the kernels that serve a step, the best first.
    static std::vector<std::string> names_of(const pfdiff::Step& step, const pfdiff::StepExtras& extras);
    // The first of `names` that was loaded and whose promises the values keep.
    const Kernel& choose(const std::vector<std::string>& names, const std::map<std::string, Value>& values) const;
    void launch(const Kernel& kernel, std::int64_t blocks, const std::map<std::string, Value>& values,
                cudaStream_t stream) const;

    std::map<std::string, Kernel> kernels_;
};
