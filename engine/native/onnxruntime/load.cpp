// dlopen in place of a link: a binary linked to ONNX Runtime 1.30 would not start with 1.32, whose symbols have another
// version, nor beside a Python wheel, which has no file of the library's SONAME. OrtGetApiBase is the one symbol
// needed.
#include "load.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "../error.h"

#ifndef PFD_ONNXRUNTIME_LIBRARY
#define PFD_ONNXRUNTIME_LIBRARY ""
#endif

namespace pfdiff {
namespace {

// 1.18 is the first that runs opset 21, which `pfdiff build` exports. Every function that is called here is of version
// 1, and each OrtApi only appends to the one before, so headers and library may be of any later version.
constexpr std::uint32_t needed_api = 18;
static_assert(ORT_API_VERSION >= needed_api, "these ONNX Runtime headers are older than 1.18");

#ifdef __APPLE__
constexpr const char* system_library = "libonnxruntime.dylib";
#else
constexpr const char* system_library = "libonnxruntime.so.1";
#endif

std::vector<std::string> candidates() {
    if (const char* named = std::getenv("PFDIFF_ONNXRUNTIME"); named != nullptr && *named != '\0') return {named};
    std::vector<std::string> result{system_library};
    if (const std::string given = PFD_ONNXRUNTIME_LIBRARY; !given.empty()) result.push_back(given);
    return result;
}

// The interface of one library, or null and why not.
const OrtApi* open(const std::string& library, std::string& why) {
    void* const handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: it keeps threads
    if (handle == nullptr) return why = ::dlerror(), nullptr;
    const auto get_base = reinterpret_cast<decltype(&OrtGetApiBase)>(::dlsym(handle, "OrtGetApiBase"));
    if (get_base == nullptr) return why = library + " has no OrtGetApiBase", nullptr;
    const auto* const base = get_base();
    const auto* const api = base->GetApi(needed_api);
    if (api == nullptr) why = library + " is version " + base->GetVersionString();
    return api;
}

const OrtApi* load() {
    // Versions 1.29 and later send telemetry from the moment they are loaded unless this is set.
    ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);
    std::string reasons;
    for (const auto& library : candidates()) {
        std::string why;
        if (const auto* const api = open(library, why)) return api;
        reasons += (reasons.empty() ? "" : ", ") + printable(why, 90);
    }
    throw backend_error("no ONNX Runtime of version 1." + std::to_string(needed_api) + " or newer: " + reasons +
                        "; install one, or name its library in PFDIFF_ONNXRUNTIME");
}

}  // namespace

const OrtApi& onnxruntime() {
    static const OrtApi* const api = load();  // one that throws is tried again at the next call
    return *api;
}

}  // namespace pfdiff
