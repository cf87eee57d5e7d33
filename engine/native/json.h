// JSON as a small tree, read strictly: RFC 8259 and no more, no duplicate keys, at most 32 levels, 2^21 values.
//
// nlohmann-json reads the text (json_reader.cpp); TreeBuilder holds the limits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace pfdiff::json {

struct Value;
using Array = std::vector<Value>;
using Object = std::vector<std::pair<std::string, Value>>;

struct Number {
    double value;
    std::optional<std::int64_t> integer;  // only when written without fraction and exponent, and when it fits
};

struct Value {
    std::variant<std::nullptr_t, bool, Number, std::string, Array, Object> data = nullptr;
};

// Fills a tree from parse events. Each event returns false, with `problem` set, when the document must be refused.
class TreeBuilder final {
   public:
    bool value(Value value);
    bool number(double value, std::optional<std::int64_t> integer, std::string_view written);
    bool open_object();
    bool open_array();
    bool key(std::string name);
    void close();

    const std::string& problem() const { return problem_; }
    Value take() { return std::move(root_); }

   private:
    bool open(Value container);

    Value root_;
    std::size_t values_ = 0;
    std::vector<Value*> open_;  // stable: a container grows only while it is the innermost one
    std::string key_;
    std::string problem_;
};

// Parses `text`; `what` names the document in errors. Throws Error (PFD_ENGINE_FILE_ERROR).
Value parse(std::string_view text, const std::string& what);

// A value and the path that leads to it, for errors such as "engine.json: programs.8.W[3] has 2 ..., expected 3".
class Node final {
   public:
    Node(const Value& value, std::string path) : value_(&value), path_(std::move(path)) {}

    Node operator[](std::string_view name) const;           // a required field
    std::optional<Node> find(std::string_view name) const;  // nothing when absent or null
    std::vector<std::pair<std::string, Node>> fields() const;
    std::vector<Node> items() const;

    bool is_array() const { return std::holds_alternative<Array>(value_->data); }
    bool is_string() const { return std::holds_alternative<std::string>(value_->data); }
    bool is_boolean() const { return std::holds_alternative<bool>(value_->data); }
    const std::string& string() const;
    double number() const;
    bool boolean() const;
    std::int64_t integer(std::int64_t low, std::int64_t high) const;
    // Numbers of shape [sizes...] in nested lists, row after row.
    std::vector<double> numbers(const std::vector<std::size_t>& sizes) const;

    const std::string& path() const { return path_; }
    [[noreturn]] void refuse(const std::string& got, const std::string& expected) const;

   private:
    template <class Kind>
    const Kind& as(const char* expected) const;
    void append_numbers(const std::vector<std::size_t>& sizes, std::size_t level, std::vector<double>& into) const;

    const Value* value_;
    std::string path_;
};

}  // namespace pfdiff::json
