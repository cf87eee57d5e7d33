// The functions of cuda.h.
#include <cstring>
#include <map>
#include <sstream>
#include <string>

#include "cuda.h"
#include "launch.h"

struct CUmod_st {
    std::string name;
    std::vector<std::string> arguments;
};

namespace {

using Bits = std::map<std::string, std::uint64_t>;

unsigned binary(const std::string& digits) { return static_cast<unsigned>(std::stoul(digits, nullptr, 2)); }

pfdiff::Dtype dtype(const std::string& name) {
    return name == "fp16" ? pfdiff::Dtype::fp16 : name == "bf16" ? pfdiff::Dtype::bf16 : pfdiff::Dtype::fp32;
}

template <class Element>
Element* pointer(const Bits& bits, const char* name) {
    const auto found = bits.find(name);
    return found == bits.end() ? nullptr : reinterpret_cast<Element*>(found->second);
}

// `name`: step-b2-r10-w11-n11-k2-clip-fp16-fp16-any, of which n, k, clip, the second dtype and `any` may be missing.
cudaError_t run_step(const std::string& name, const Bits& bits, cudaStream_t stream) {
    pfdiff::Step step{};
    pfdiff::StepExtras extras{};
    std::istringstream text(name);
    int dtypes = 0;
    for (std::string word; std::getline(text, word, '-');) {
        const auto rest = word.substr(1);
        if (word == "clip") step.clip = true;
        if (word.starts_with("fp") || word == "bf16")
            (dtypes++ == 0 ? step.out_dtype : step.y_dtype) = dtype(word);
        else if (word[0] == 'b')
            step.buffers = std::stoi(rest);
        else if (word[0] == 'r')
            step.reads = binary(rest);
        else if (word[0] == 'w')
            step.writes = binary(rest);
        else if (word[0] == 'n')
            extras.noise = binary(rest);
        else if (word[0] == 'k')
            extras.keeps = std::stoi(rest);
    }
    step.states = pointer<float>(bits, "states");
    step.y_in = dtypes == 2 ? pointer<void>(bits, "y_in") : nullptr;
    step.out = pointer<void>(bits, "out");
    step.table = pointer<float>(bits, "table");
    step.elements = static_cast<std::int64_t>(bits.at("elements"));
    step.row = static_cast<int>(bits.at("row"));
    extras.seeds = pointer<std::uint64_t>(bits, "seeds");
    extras.factors = pointer<float>(bits, "factors");
    if (extras.noise != 0) extras.size = static_cast<std::int64_t>(bits.at("size"));
    extras.picture = pointer<float>(bits, "picture");
    extras.eps = pointer<float>(bits, "eps");
    extras.mask = pointer<std::uint8_t>(bits, "mask");
    extras.kept = pointer<float>(bits, "kept");
    return pfdiff::launch_step(step, extras, stream);
}

}  // namespace

CUresult cuGetErrorString(CUresult, const char** words) { return *words = "invalid argument", CUDA_SUCCESS; }

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    std::istringstream text(static_cast<const char*>(image));
    auto* made = new CUmod_st;
    text >> made->name;
    for (std::string one; text >> one && one != "end";) made->arguments.push_back(one);
    return *module = made, CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) { return delete module, CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char*) {
    return *function = module, CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        CUstream stream, void** parameters, void**) {
    Bits bits;
    for (std::size_t i = 0; i < function->arguments.size(); ++i)
        std::memcpy(&bits[function->arguments[i]], parameters[i], sizeof(std::uint64_t));
    bits["row"] &= 0xFFFFFFFF;  // an int32
    if (function->name.starts_with("step"))
        return run_step(function->name, bits, stream) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    const auto elements = static_cast<std::int64_t>(bits.at("elements"));
    const std::int64_t samples = grid / ((elements + 511) / 512);  // BLOCK of kernels/noise.py
    const auto status = pfdiff::launch_noise(pointer<float>(bits, "z"), pointer<std::uint64_t>(bits, "seeds"), samples,
                                             elements, stream);
    return status == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

void* driver_function(const char* name) {
    const std::map<std::string, void*> known{{"cuGetErrorString", reinterpret_cast<void*>(&cuGetErrorString)},
                                             {"cuModuleLoadData", reinterpret_cast<void*>(&cuModuleLoadData)},
                                             {"cuModuleUnload", reinterpret_cast<void*>(&cuModuleUnload)},
                                             {"cuModuleGetFunction", reinterpret_cast<void*>(&cuModuleGetFunction)},
                                             {"cuLaunchKernel", reinterpret_cast<void*>(&cuLaunchKernel)}};
    const auto found = known.find(name);
    return found != known.end() ? found->second : nullptr;
}
