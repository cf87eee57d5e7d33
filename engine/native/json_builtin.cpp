// The JSON reader without dependencies: the grammar of RFC 8259, nothing more.
#include <cctype>
#include <charconv>

#include "error.h"
#include "json.h"

namespace pfdiff::json {
namespace {

class Reader final {
   public:
    Reader(std::string_view text, TreeBuilder& builder) : text_(text), builder_(builder) {}

    // True when the whole text is one value. The recursion is bounded by the builder's level limit.
    bool document() { return value() && (skip_space(), at_ == text_.size()); }
    std::size_t position() const { return at_; }

   private:
    bool value() {
        skip_space();
        switch (peek()) {
            case '{':
                return object();
            case '[':
                return array();
            case '"': {
                std::string read;
                return string(read) && builder_.value({std::move(read)});
            }
            case 't':
                return word("true") && builder_.value({true});
            case 'f':
                return word("false") && builder_.value({false});
            case 'n':
                return word("null") && builder_.value({});
            default:
                return number();
        }
    }

    bool object() {
        if (!builder_.open_object()) return false;
        ++at_, skip_space();
        if (!take('}')) {
            do {
                skip_space();
                std::string name;
                if (!string(name) || !builder_.key(std::move(name))) return false;
                skip_space();
                if (!take(':') || !value()) return false;
                skip_space();
            } while (take(','));
            if (!take('}')) return false;
        }
        return builder_.close(), true;
    }

    bool array() {
        if (!builder_.open_array()) return false;
        ++at_, skip_space();
        if (!take(']')) {
            do {
                if (!value()) return false;
                skip_space();
            } while (take(','));
            if (!take(']')) return false;
        }
        return builder_.close(), true;
    }

    bool number() {
        const auto start = at_;
        take('-');
        if (!take('0') && !digits()) return false;
        const bool fraction = take('.');
        if (fraction && !digits()) return false;
        const bool exponent = take('e') || take('E');
        if (exponent && (take('+') || take('-'), !digits())) return false;
        const auto written = text_.substr(start, at_ - start);
        const char *first = written.data(), *last = first + written.size();
        if (std::int64_t integer; !fraction && !exponent && std::from_chars(first, last, integer).ec == std::errc{})
            return builder_.number(static_cast<double>(integer), integer, {});
        double value = 0;
        const auto error = std::from_chars(first, last, value).ec;
        // Out of range is either far too large or too small; the builder refuses what is no zero but became one.
        if (error != std::errc{} && !too_small(written)) return false;
        return builder_.number(error == std::errc{} ? value : 0.0, std::nullopt, written);
    }

    static bool too_small(std::string_view written) {
        const auto exponent = written.find_first_of("eE");
        if (exponent != std::string_view::npos) return written.substr(exponent + 1).starts_with('-');
        return written.starts_with("0.") || written.starts_with("-0.");
    }

    bool string(std::string& into) {
        if (!take('"')) return false;
        while (at_ < text_.size()) {
            const auto byte = static_cast<unsigned char>(text_[at_]);
            if (byte == '"') return ++at_, true;
            if (byte < 0x20) return false;
            if (byte == '\\') {
                if (!escape(into)) return false;
            } else if (byte >= 0x80) {
                if (!utf8(into)) return false;
            } else {
                into += text_[at_++];
            }
        }
        return false;
    }

    bool escape(std::string& into) {
        static constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
        ++at_;
        if (take('u')) {
            std::uint32_t code = 0, low = 0;
            if (!hex4(code) || (code >= 0xDC00 && code < 0xE000)) return false;
            if (code >= 0xD800 && code < 0xDC00) {  // a pair of surrogates is one character
                if (!take('\\') || !take('u') || !hex4(low) || low < 0xDC00 || low >= 0xE000) return false;
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
            }
            return append(code, into), true;
        }
        const auto which = letters.find(peek());
        if (at_ == text_.size() || which == std::string_view::npos) return false;
        return ++at_, into += meanings[which], true;
    }

    bool hex4(std::uint32_t& code) {
        if (text_.size() - at_ < 4) return false;
        const char* first = text_.data() + at_;
        at_ += 4;
        for (int i = 0; i < 4; ++i)
            if (!std::isxdigit(static_cast<unsigned char>(first[i]))) return false;
        return std::from_chars(first, first + 4, code, 16).ec == std::errc{};
    }

    static void append(std::uint32_t code, std::string& into) {
        const auto tail = [&](int shift) { into += static_cast<char>(0x80 | (code >> shift & 0x3F)); };
        if (code < 0x80) {
            into += static_cast<char>(code);
        } else if (code < 0x800) {
            into += static_cast<char>(0xC0 | code >> 6), tail(0);
        } else if (code < 0x10000) {
            into += static_cast<char>(0xE0 | code >> 12), tail(6), tail(0);
        } else {
            into += static_cast<char>(0xF0 | code >> 18), tail(12), tail(6), tail(0);
        }
    }

    // One multi-byte character, refused when overlong, a surrogate or above U+10FFFF.
    bool utf8(std::string& into) {
        const auto lead = static_cast<unsigned char>(text_[at_]);
        const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
        static constexpr std::uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
        if (lead < 0xC2 || lead > 0xF4 || text_.size() - at_ < length) return false;
        std::uint32_t code = lead & (0xFFu >> (length + 1));
        for (std::size_t i = 1; i < length; ++i) {
            const auto byte = static_cast<unsigned char>(text_[at_ + i]);
            if ((byte & 0xC0) != 0x80) return false;
            code = code << 6 | (byte & 0x3Fu);
        }
        if (code < smallest[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return false;
        into.append(text_.substr(at_, length));
        return at_ += length, true;
    }

    bool digits() {
        const auto start = at_;
        while (peek() >= '0' && peek() <= '9') ++at_;
        return at_ > start;
    }
    bool word(std::string_view expected) {
        const bool found = text_.substr(at_).starts_with(expected);
        return found && (at_ += expected.size(), true);
    }
    void skip_space() {
        while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos) ++at_;
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    bool take(char expected) { return at_ < text_.size() && text_[at_] == expected && (++at_, true); }

    std::string_view text_;
    std::size_t at_ = 0;
    TreeBuilder& builder_;
};

}  // namespace

Value parse_builtin(std::string_view text, const std::string& what) {
    TreeBuilder builder;
    Reader reader(text, builder);
    if (!reader.document()) {
        const auto near = "no valid JSON near byte " + std::to_string(reader.position());
        throw file_error(what + ": " + (builder.problem().empty() ? near : builder.problem()) +
                         "; rebuild the engine or copy it again");
    }
    return builder.take();
}

}  // namespace pfdiff::json
