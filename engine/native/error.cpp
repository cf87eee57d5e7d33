#include "error.h"

#include <charconv>

namespace pfdiff {
namespace {

struct Messages {
    std::string last;
    std::string callback;
};

Messages& messages() {
    thread_local Messages mine;
    return mine;
}

}  // namespace

std::string quoted(std::string_view text) {
    constexpr std::size_t longest = 60;
    std::string result = "'";
    for (char character : text.substr(0, longest)) {
        const auto byte = static_cast<unsigned char>(character);
        result += byte < 0x20 || byte == 0x7f ? '?' : character;
    }
    return result + (text.size() > longest ? "...'" : "'");
}

std::string decimal(double number) {
    char text[32];
    const auto end = std::to_chars(text, text + sizeof text, number).ptr;
    return {text, end};
}

std::string take_callback_error() { return std::exchange(messages().callback, {}); }

pfd_status_t record_error(pfd_status_t status, const char* message) noexcept {
    try {
        messages().last = message;
    } catch (...) {
        // No memory even for the message: the status alone must do.
    }
    return status;
}

}  // namespace pfdiff

extern "C" const char* pfd_last_error(void) { return pfdiff::messages().last.c_str(); }

extern "C" void pfd_set_error(const char* message) {
    try {
        pfdiff::messages().callback = message != nullptr ? message : "";
    } catch (...) {
        // Out of memory: the failure is then reported without the callback's words.
    }
}
