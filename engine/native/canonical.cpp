#include "canonical.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "sha256.h"

namespace pfdiff::json {
namespace {

// repr() of a float: the shortest digits that read back, in positions for 1e-4 <= |x| < 1e16 and else with an exponent.
void append_float(double number, std::string& into) {
    char text[40];
    const auto end = std::to_chars(text, text + sizeof text, number, std::chars_format::scientific).ptr;
    std::string written(text, end);
    if (written.front() == '-') into += '-', written.erase(0, 1);
    const auto e = written.find('e');
    const int exponent = std::atoi(written.c_str() + e + 1);
    std::string digits = written.substr(0, e);
    if (digits.size() > 1) digits.erase(1, 1);
    const int count = static_cast<int>(digits.size());
    if (number != 0 && (exponent < -4 || exponent >= 16)) {
        into += digits.front();
        if (count > 1) into.append(".").append(digits, 1);
        std::snprintf(text, sizeof text, "e%c%02d", exponent < 0 ? '-' : '+', std::abs(exponent));
        into += text;
    } else if (exponent < 0) {
        into.append("0.").append(static_cast<std::size_t>(-exponent - 1), '0').append(digits);
    } else {
        if (count <= exponent) digits.append(static_cast<std::size_t>(exponent + 1 - count), '0');
        const auto point = static_cast<std::size_t>(exponent + 1);
        into.append(digits, 0, point).append(".").append(digits.size() > point ? digits.substr(point) : "0");
    }
}

void append_unit(std::uint32_t unit, std::string& into) {
    char text[8];
    std::snprintf(text, sizeof text, "\\u%04x", unit);
    into += text;
}

// The reader has checked that the text is UTF-8.
void append_string(const std::string& text, std::string& into) {
    static constexpr std::string_view plain = "\"\\\b\f\n\r\t", letters = "\"\\bfnrt";
    into += '"';
    for (std::size_t at = 0; at < text.size();) {
        const auto lead = static_cast<unsigned char>(text[at]);
        const std::size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
        std::uint32_t code = length == 1 ? lead : lead & (0xFFu >> (length + 1));
        for (std::size_t i = 1; i < length; ++i) code = code << 6 | (static_cast<unsigned char>(text[at + i]) & 0x3Fu);
        if (const auto which = plain.find(text[at]); which != std::string_view::npos) {
            into += '\\', into += letters[which];
        } else if (code >= 0x10000) {
            append_unit(0xD800 + ((code - 0x10000) >> 10), into);
            append_unit(0xDC00 + ((code - 0x10000) & 0x3FF), into);
        } else if (code < 0x20 || code >= 0x7F) {
            append_unit(code, into);
        } else {
            into += text[at];
        }
        at += length;
    }
    into += '"';
}

void append(const Value& value, std::string_view without, std::string& into) {
    if (const auto* array = std::get_if<Array>(&value.data)) {
        into += '[';
        for (const auto& item : *array) {
            if (&item != array->data()) into += ',';
            append(item, {}, into);
        }
        into += ']';
    } else if (const auto* object = std::get_if<Object>(&value.data)) {
        std::vector<const std::pair<std::string, Value>*> sorted;
        for (const auto& field : *object)
            if (without.empty() || field.first != without) sorted.push_back(&field);
        // Bytes of UTF-8 sort as the code points do.
        std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
        into += '{';
        for (const auto* field : sorted) {
            if (field != sorted.front()) into += ',';
            append_string(field->first, into);
            into += ':';
            append(field->second, {}, into);
        }
        into += '}';
    } else if (const auto* string = std::get_if<std::string>(&value.data)) {
        append_string(*string, into);
    } else if (const auto* number = std::get_if<Number>(&value.data)) {
        if (number->integer)
            into += std::to_string(*number->integer);
        else
            append_float(number->value, into);
    } else if (const auto* boolean = std::get_if<bool>(&value.data)) {
        into += *boolean ? "true" : "false";
    } else {
        into += "null";
    }
}

}  // namespace

std::string canonical(const Value& value) {
    std::string result;
    append(value, {}, result);
    return result;
}

std::string manifest_digest(const Value& manifest) {
    std::string text;
    append(manifest, "digest", text);
    Sha256 hash;
    hash.update(text.data(), text.size());
    return hash.finish();
}

}  // namespace pfdiff::json
