#include "error.h"

#include <charconv>
#include <cstdint>
#include <cstdio>

namespace pfdiff {
namespace {

constexpr std::size_t longest_message = 296;  // and "..."

// The code point that begins at text[0] and its length in bytes; length 1 and no code point where it is no UTF-8.
struct Character {
    std::int32_t code;
    std::size_t length;
};

Character first_of(std::string_view text) {
    const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(text[at]); };
    const auto lead = byte(0);
    if (lead < 0x80) return {lead, 1};
    const std::size_t length = lead >= 0xC2 && lead < 0xE0 ? 2
                               : (lead & 0xF0) == 0xE0     ? 3
                               : (lead & 0xF8) == 0xF0     ? 4
                                                           : 0;
    if (length == 0 || text.size() < length) return {-1, 1};
    std::int32_t code = lead & (0xFF >> (length + 1));
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xC0) != 0x80) return {-1, 1};
        code = code << 6 | (byte(i) & 0x3F);
    }
    constexpr std::int32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    return code < smallest[length] || code > 0x10FFFF || surrogate ? Character{-1, 1} : Character{code, length};
}

// C0, DEL and C1; line and paragraph separators; left-to-right and right-to-left marks, embeddings and isolates.
bool is_control(std::int32_t code) {
    return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x200E || code == 0x200F ||
           (code >= 0x2028 && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069);
}

struct Messages {
    std::string last;
    std::string callback;
};

Messages& messages() {
    thread_local Messages mine;
    return mine;
}

}  // namespace

std::string printable(std::string_view text, std::size_t longest) {
    std::string result;
    while (!text.empty()) {
        const auto [code, length] = first_of(text);
        std::string written(text.substr(0, length));
        if (is_control(code)) {  // no UTF-8 is below zero, and so written too
            char escape[8];
            const bool wide = code > 0xFF;
            std::snprintf(
                escape, sizeof escape, wide ? "\\u%04x" : "\\x%02x",
                code < 0 ? static_cast<unsigned>(static_cast<unsigned char>(text[0])) : static_cast<unsigned>(code));
            written = escape;
        }
        if (result.size() + written.size() > longest) return result + "...";
        result += written;
        text.remove_prefix(length);
    }
    return result;
}

std::string quoted(std::string_view text) { return "'" + printable(text, 60) + "'"; }

std::string decimal(double number) {
    char text[32];
    const auto end = std::to_chars(text, text + sizeof text, number).ptr;
    return {text, end};
}

std::string take_callback_error() { return std::exchange(messages().callback, {}); }

pfd_status_t record_error(pfd_status_t status, const char* message) noexcept {
    try {
        messages().last = printable(message, longest_message);
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
