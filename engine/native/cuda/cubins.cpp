// Driver functions are asked of the runtime at load time, so nothing links libcuda and the library builds and starts on
// a machine without a driver. The index is described in kernels/ahead.py, the names of variants in kernels/variants.py.
#include "cubins.h"

#include "../directory.h"
#include "../json.h"
#include "../pfdiff_cuda.h"
#include "capability.h"
#include "device.h"

namespace {

using pfdiff::cuda::check;

template <class Function>
Function driver(const char* name) {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    // 12.0 is the interface that every driver of a runtime this new has.
    check(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result), "reach the driver");
    if (result != cudaDriverEntryPointSuccess || found == nullptr)
        throw pfdiff::backend_error(std::string("this driver has no ") + name +
                                    "; install a driver of CUDA 12 or newer");
    return reinterpret_cast<Function>(found);
}

void check_driver(CUresult result, const std::string& what) {
    if (result == CUDA_SUCCESS) return;
    const char* words = nullptr;
    driver<decltype(&cuGetErrorString)>("cuGetErrorString")(result, &words);
    throw pfdiff::backend_error("CUDA fails to " + what + ": " + (words != nullptr ? words : "unknown error"));
}

std::string binary(unsigned mask, int digits) {
    std::string text;
    for (int bit = digits - 1; bit >= 0; --bit) text += (mask >> bit & 1) != 0 ? '1' : '0';
    return text;
}

const char* name_of(pfdiff::Dtype dtype) {
    return dtype == pfdiff::Dtype::fp32 ? "fp32" : dtype == pfdiff::Dtype::fp16 ? "fp16" : "bf16";
}

int device_capability() {
    int device = 0, major = 0, minor = 0;
    check(cudaGetDevice(&device), "find a device");
    check(cudaFree(nullptr), "start on the device");  // modules need the runtime's context
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "ask the device");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "ask the device");
    return 10 * major + minor;
}

// The capability whose kernels are loaded: one that an index has kernels for, and that serves the current device.
int choose_capability(const pfdiff::json::Node& kernels, const std::string& path) {
    const int device = device_capability();
    std::set<int> compiled;
    for (const auto& entry : kernels.items()) compiled.insert(static_cast<int>(entry["capability"].integer(1, 1000)));
    if (const int capability = pfdiff::cuda::serving(compiled, device); capability != 0) return capability;
    std::string known;
    for (const int capability : compiled) known += (known.empty() ? "" : ", ") + std::to_string(capability);
    throw pfdiff::file_error(pfdiff::quoted(path) + " holds kernels for compute capability " +
                             (known.empty() ? "none" : pfdiff::printable(known, 60)) + ", which do not run on " +
                             std::to_string(device) + "; compile them with `pfdiff kernels --cc " +
                             std::to_string(device) + "`, or use the built-in kernels");
}

template <class Pointer>
std::uint64_t bits_of(Pointer* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer);
}

}  // namespace

pfd_cuda_kernels_t::pfd_cuda_kernels_t(const std::string& path) {
    const pfdiff::Directory directory(path);
    constexpr std::uint64_t largest_index_bytes = 64 << 20;  // nine capabilities of the standard kernels: 15 MB
    const auto document = pfdiff::json::parse(directory.read("index.json", largest_index_bytes), "index.json");
    const pfdiff::json::Node root(document, "index.json:");
    root["format"].integer(1, 1);
    const int capability = choose_capability(root["kernels"], path);
    const auto load = driver<decltype(&cuModuleLoadData)>("cuModuleLoadData");
    const auto find = driver<decltype(&cuModuleGetFunction)>("cuModuleGetFunction");
    for (const auto& entry : root["kernels"].items()) {
        if (entry["capability"].integer(1, 1000) != capability) continue;
        const auto name = entry["name"].string();
        Kernel kernel;
        kernel.block = static_cast<unsigned>(entry["block"].integer(1, 1 << 20));
        kernel.threads = static_cast<unsigned>(entry["threads"].integer(1, 1024));
        kernel.shared_bytes = static_cast<unsigned>(entry["shared_bytes"].integer(0, 48 << 10));
        for (const auto& argument : entry["arguments"].items())
            kernel.arguments.push_back({argument["name"].string(), argument["multiple_of"].integer(1, 16)});
        const auto cubin = directory.read(entry["cubin"].string(), 16 << 20);
        check_driver(load(&kernel.module, cubin.data()), "load the kernel " + name);
        auto& kept = kernels_[name] = kernel;  // before anything else can throw: the destructor unloads it
        check_driver(find(&kept.function, kept.module, entry["symbol"].string().c_str()), "find the kernel " + name);
    }
}

pfd_cuda_kernels_t::~pfd_cuda_kernels_t() {
    try {
        const auto unload = driver<decltype(&cuModuleUnload)>("cuModuleUnload");
        for (const auto& [name, kernel] : kernels_) unload(kernel.module);
    } catch (const pfdiff::Error&) {
        // The driver is gone, at the end of the process for instance, and the modules with it.
    }
}

const pfd_cuda_kernels_t::Kernel& pfd_cuda_kernels_t::choose(const std::vector<std::string>& names,
                                                             const std::map<std::string, Value>& values) const {
    for (const auto& name : names) {
        const auto found = kernels_.find(name);
        if (found == kernels_.end()) continue;
        bool kept = true;
        for (const auto& argument : found->second.arguments)
            if (const auto value = values.find(argument.name); value != values.end())
                kept &= value->second.bits % static_cast<std::uint64_t>(argument.multiple) == 0;
        if (kept) return found->second;
    }
    throw pfdiff::file_error("the compiled kernels have no " + names.front() +
                             " and no substitute; compile them again, or use the built-in kernels");
}

void pfd_cuda_kernels_t::launch(const Kernel& kernel, std::int64_t blocks, const std::map<std::string, Value>& values,
                                cudaStream_t stream) const {
    static const auto start = driver<decltype(&cuLaunchKernel)>("cuLaunchKernel");
    if (blocks > 0x7FFFFFFF)
        throw pfdiff::input_error("the batch needs more blocks than a grid has; sample a smaller one");
    // What Triton appends (`scratch`) is null.
    std::vector<std::uint64_t> bits(kernel.arguments.size(), 0);
    std::vector<void*> pointers;
    for (std::size_t i = 0; i < bits.size(); ++i) {
        if (const auto value = values.find(kernel.arguments[i].name); value != values.end())
            bits[i] = value->second.bits;
        pointers.push_back(&bits[i]);
    }
    check_driver(start(kernel.function, static_cast<unsigned>(blocks), 1, 1, kernel.threads, 1, 1, kernel.shared_bytes,
                       stream, pointers.data(), nullptr),
                 "launch a kernel");
}

std::vector<std::string> pfd_cuda_kernels_t::names_of(const pfdiff::Step& step, const pfdiff::StepExtras& extras) {
    const unsigned everything = (1u << step.buffers) - 1, noisy = extras.noise != 0 ? everything : 0;
    const bool separate = step.y_in != nullptr;
    const unsigned touched = step.writes | (separate ? 1 : 0);
    struct Masks {
        unsigned reads, writes, noise;
    };
    std::vector<std::string> names;
    // First the kernel of these very masks, with noise for all that it touches; then those that touch everything, where
    // a coefficient of zero adds nothing. A clip that the row does not want is no substitute, so `clip` stays as it is.
    for (const auto& [reads, writes, noise] :
         {Masks{step.reads, step.writes, extras.noise}, Masks{step.reads, step.writes, noisy & touched},
          Masks{step.clip || noisy != 0 ? everything : step.reads, everything, noisy},
          Masks{everything, step.writes, noisy & touched}, Masks{everything, everything, noisy}}) {
        auto name = "step-b" + std::to_string(step.buffers) + "-r" + binary(reads, step.buffers) + "-w" +
                    binary(writes, step.buffers);
        if (noise != 0) name += "-n" + binary(noise, step.buffers);
        if (extras.keeps != 0) name += "-k" + std::to_string(extras.keeps);
        name += (step.clip ? "-clip" : "") + std::string("-") + name_of(step.out_dtype) +
                (separate ? "-" + std::string(name_of(step.y_dtype)) : "");
        names.push_back(name);
        names.push_back(name + "-any");
    }
    return names;
}

void pfd_cuda_kernels_t::step(const pfdiff::Step& step, const pfdiff::StepExtras& extras, cudaStream_t stream) const {
    const std::map<std::string, Value> values{
        {"states", {bits_of(step.states)}},
        {"y_in", {step.y_in != nullptr ? bits_of(step.y_in) : bits_of(step.states)}},
        {"out", {bits_of(step.out)}},
        {"table", {bits_of(step.table)}},
        {"row", {static_cast<std::uint64_t>(step.row)}},
        {"elements", {static_cast<std::uint64_t>(step.elements)}},
        {"seeds", {bits_of(extras.seeds)}},
        {"factors", {bits_of(extras.factors)}},
        {"size", {static_cast<std::uint64_t>(extras.size)}},
        {"picture", {bits_of(extras.picture)}},
        {"eps", {bits_of(extras.eps)}},
        {"mask", {bits_of(extras.mask)}},
        {"kept", {bits_of(extras.kept)}}};
    const auto& kernel = choose(names_of(step, extras), values);
    launch(kernel, (step.elements + kernel.block - 1) / kernel.block, values, stream);
}

void pfd_cuda_kernels_t::noise(float* z, const std::uint64_t* seeds, std::int64_t samples, std::int64_t elements,
                               cudaStream_t stream) const {
    const std::map<std::string, Value> values{
        {"z", {bits_of(z)}}, {"seeds", {bits_of(seeds)}}, {"elements", {static_cast<std::uint64_t>(elements)}}};
    const auto& kernel = choose({"noise", "noise-any"}, values);
    launch(kernel, samples * ((elements + kernel.block - 1) / kernel.block), values, stream);
}

extern "C" pfd_status_t pfd_cuda_kernels_load(const char* directory, pfd_cuda_kernels_t** kernels) {
    return pfdiff::guarded([&] {
        if (directory == nullptr || kernels == nullptr)
            throw pfdiff::input_error("compiled kernels without a directory or a place; give both");
        *kernels = nullptr;
        *kernels = std::make_unique<pfd_cuda_kernels_t>(directory).release();
    });
}

extern "C" void pfd_cuda_kernels_free(pfd_cuda_kernels_t* kernels) { delete kernels; }
