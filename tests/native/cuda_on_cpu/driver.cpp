// The functions of cuda.h.
#include <cstring>
#include <map>
#include <regex>
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

unsigned binary(const std::string& digits) {
    return digits.empty() ? 0 : static_cast<unsigned>(std::stoul(digits, nullptr, 2));
}

pfdiff::Dtype dtype(const std::string& name) {
    return name == "fp16" ? pfdiff::Dtype::fp16 : name == "bf16" ? pfdiff::Dtype::bf16 : pfdiff::Dtype::fp32;
}

template <class Element>
Element* pointer(const Bits& bits, const char* name) {
    const auto found = bits.find(name);
    return found == bits.end() ? nullptr : reinterpret_cast<Element*>(found->second);
}

cudaError_t run_step(const std::string& name, const Bits& bits, cudaStream_t stream) {
    // b2 r10 w11 n11 k2 clip fp16 fp16 any
    static const std::regex words(
        "step-b(\\d)-r([01]+)-w([01]+)(?:-n([01]+))?(?:-k([12]))?(-clip)?-(\\w+?)(?:-([bf]\\w+))?(-any)?");
    std::smatch word;
    if (!std::regex_match(name, word, words)) return cudaErrorInvalidValue;
    const auto at = [&](const char* one) { return bits.at(one); };
    const pfdiff::Step step{pointer<float>(bits, "states"),
                            word[8].matched ? pointer<void>(bits, "y_in") : nullptr,
                            pointer<void>(bits, "out"),
                            pointer<float>(bits, "table"),
                            static_cast<std::int64_t>(at("elements")),
                            std::stoi(word[1]),
                            static_cast<int>(at("row")),
                            binary(word[2]),
                            binary(word[3]),
                            word[6].matched,
                            dtype(word[7]),
                            dtype(word[8])};
    const unsigned noise = binary(word[4]);
    const pfdiff::StepExtras extras{pointer<std::uint64_t>(bits, "seeds"),
                                    pointer<float>(bits, "factors"),
                                    noise != 0 ? static_cast<std::int64_t>(at("size")) : 0,
                                    noise,
                                    pointer<float>(bits, "picture"),
                                    pointer<float>(bits, "eps"),
                                    pointer<std::uint8_t>(bits, "mask"),
                                    pointer<float>(bits, "kept"),
                                    word[5].matched ? std::stoi(word[5]) : 0};
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
