// json::parse on nlohmann-json's event interface.
#include <nlohmann/json.hpp>

#include "error.h"
#include "json.h"

namespace pfdiff::json {
namespace {

using Library = nlohmann::json;

class Events final : public nlohmann::json_sax<Library> {
   public:
    bool null() override { return builder.value({}); }
    bool boolean(bool value) override { return builder.value({value}); }
    bool number_integer(std::int64_t value) override { return builder.number(static_cast<double>(value), value, {}); }
    bool number_unsigned(std::uint64_t value) override {
        const bool fits = value <= static_cast<std::uint64_t>(INT64_MAX);
        return builder.number(static_cast<double>(value),
                              fits ? std::optional(static_cast<std::int64_t>(value)) : std::nullopt, {});
    }
    bool number_float(double value, const std::string& written) override {
        return builder.number(value, std::nullopt, written);
    }
    bool string(std::string& value) override { return builder.value({std::move(value)}); }
    bool binary(Library::binary_t&) override { return false; }  // JSON text has none
    bool start_object(std::size_t) override { return builder.open_object(); }
    bool key(std::string& name) override { return builder.key(std::move(name)); }
    bool end_object() override { return builder.close(), true; }
    bool start_array(std::size_t) override { return builder.open_array(); }
    bool end_array() override { return builder.close(), true; }
    bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
        problem = "no valid JSON near byte " + std::to_string(position);
        return false;
    }

    TreeBuilder builder;
    std::string problem;
};

// What the library lets pass and the grammar of RFC 8259 does not; empty when there is none of it.
std::string tolerated(std::string_view text) {
    if (text.starts_with("\xEF\xBB\xBF")) return "starts with a byte order mark";
    // The library takes a null byte for the end and would ignore the rest.
    if (const auto at = text.find('\0'); at != std::string_view::npos)
        return "no valid JSON near byte " + std::to_string(at);
    return {};
}

}  // namespace

Value parse(std::string_view text, const std::string& what) {
    Events events;
    auto problem = tolerated(text);
    if (problem.empty() && Library::sax_parse(text.begin(), text.end(), &events)) return events.builder.take();
    if (problem.empty()) problem = events.problem.empty() ? events.builder.problem() : events.problem;
    throw file_error(what + ": " + problem + "; rebuild the engine or copy it again");
}

}  // namespace pfdiff::json
