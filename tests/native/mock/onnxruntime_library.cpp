// A library in ONNX Runtime's place, for tests of how the adapter loads and calls it. Its network is x / 2, its
// decoder a quarter of the latents, repeated; it fails, as told by the environment, to load or to run. MOCK_API is the
// newest interface that it has.
#include <onnxruntime_c_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

struct OrtStatus {
    std::string words;
};
struct OrtValue {
    float* data;
    std::size_t count, batch;
};

namespace {

constexpr const char* version = "1." MOCK_API ".0";

// What must be there before this library runs for the first time: real versions look at it now.
[[maybe_unused]] const bool quiet = [] {
    const char* telemetry = std::getenv("ORT_DISABLE_TELEMETRY");
    std::fprintf(stderr, "mock: loaded, telemetry disabled: %s\n", telemetry != nullptr ? telemetry : "no");
    return true;
}();

// Objects are counted, so that a leak or a second release shows.
int alive = 0;
template <class Made>
OrtStatus* make(Made** made) {
    *made = reinterpret_cast<Made*>(new char);
    ++alive;
    return nullptr;
}
template <class Made>
void release(Made* one) {
    if (one != nullptr) --alive, delete reinterpret_cast<char*>(one);
}

OrtStatus* fail(const char* variable) {
    const char* words = std::getenv(variable);
    return words != nullptr ? new OrtStatus{words} : nullptr;
}

const OrtApi* api_of(std::uint32_t wanted) noexcept {
    if (wanted > std::strtoul(MOCK_API, nullptr, 10)) return nullptr;
    static OrtApi api{};
    api.GetErrorMessage = [](const OrtStatus* status) noexcept { return status->words.c_str(); };
    api.ReleaseStatus = [](OrtStatus* status) { delete status; };
    api.CreateEnv = [](OrtLoggingLevel, const char*, OrtEnv** made) noexcept { return make(made); };
    api.CreateSessionOptions = [](OrtSessionOptions** made) noexcept { return make(made); };
    api.SetIntraOpNumThreads = [](OrtSessionOptions*, int) noexcept -> OrtStatus* { return nullptr; };
    api.CreateCpuMemoryInfo = [](OrtAllocatorType, OrtMemType, OrtMemoryInfo** made) noexcept { return make(made); };
    api.CreateSession = [](const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession** made) noexcept {
        auto* const failure = fail("MOCK_LOAD_FAILS");
        return failure != nullptr ? failure : make(made);
    };
    api.CreateTensorWithDataAsOrtValue = [](const OrtMemoryInfo*, void* data, std::size_t bytes,
                                            const std::int64_t* shape, std::size_t rank, ONNXTensorElementDataType,
                                            OrtValue** made) noexcept -> OrtStatus* {
        *made = new OrtValue{static_cast<float*>(data), bytes / sizeof(float),
                             rank > 0 ? static_cast<std::size_t>(shape[0]) : 1};
        ++alive;
        return nullptr;
    };
    api.Run = [](OrtSession*, const OrtRunOptions*, const char* const* names, const OrtValue* const* inputs,
                 std::size_t, const char* const*, std::size_t, OrtValue** outputs) noexcept -> OrtStatus* {
        if (std::strcmp(names[0], "latents") == 0) {
            const auto& latents = *inputs[0];
            auto& image = *outputs[0];
            const auto taken = latents.count / latents.batch, made = image.count / image.batch;
            for (std::size_t i = 0; i < image.count; ++i)
                image.data[i] = latents.data[i / made * taken + i % made % taken] / 4;
            return fail("MOCK_RUN_FAILS");
        }
        if (std::strcmp(names[0], "x") != 0) return new OrtStatus{"x is not the first input"};
        for (std::size_t i = 0; i < inputs[0]->count; ++i) outputs[0]->data[i] = inputs[0]->data[i] / 2;
        return fail("MOCK_RUN_FAILS");
    };
    api.ReleaseEnv = [](OrtEnv* one) {
        release(one);
        std::fprintf(stderr, "mock: %d objects left\n", alive);  // the environment is the last to go
    };
    api.ReleaseSessionOptions = [](OrtSessionOptions* one) { release(one); };
    api.ReleaseMemoryInfo = [](OrtMemoryInfo* one) { release(one); };
    api.ReleaseSession = [](OrtSession* one) { release(one); };
    api.ReleaseValue = [](OrtValue* value) { --alive, delete value; };
    return &api;
}

const OrtApiBase base{api_of, []() noexcept { return version; }};

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase* OrtGetApiBase() noexcept { return &base; }
