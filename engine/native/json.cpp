#include "json.h"

#include <algorithm>

#include "error.h"

namespace pfdiff::json {
namespace {

constexpr std::size_t deepest = 32;            // an engine.json needs 6; bounds the recursion of ~Value
constexpr std::size_t most_values = 1u << 21;  // 84 MB of tree; 16 MiB of "0," would be 340 MB

std::string kind_of(const Value& value) {
    static const char* const names[] = {"null", "a boolean", "a number", "a string", "a list", "an object"};
    return names[value.data.index()];
}

}  // namespace

// Building the tree.
bool TreeBuilder::value(Value value) {
    if (++values_ > most_values) {
        problem_ = "more than " + std::to_string(most_values) + " values";
        return false;
    }
    if (open_.empty()) {
        root_ = std::move(value);
    } else if (auto* array = std::get_if<Array>(&open_.back()->data)) {
        array->push_back(std::move(value));
    } else {
        std::get<Object>(open_.back()->data).emplace_back(std::move(key_), std::move(value));
    }
    return true;
}

bool TreeBuilder::number(double number, std::optional<std::int64_t> integer, std::string_view written) {
    // Not zero as written, but zero as read, such as 1e-999.
    const auto digits = written.substr(0, written.find_first_of("eE"));
    if (number == 0 && digits.find_first_of("123456789") != std::string_view::npos) {
        problem_ = "the number " + quoted(written) + " is too small for float64";
        return false;
    }
    return value({Number{number, integer}});
}

bool TreeBuilder::open(Value container) {
    if (open_.size() == deepest) {
        problem_ = "more than " + std::to_string(deepest) + " levels";
        return false;
    }
    if (!value(std::move(container))) return false;
    Value* placed = &root_;
    if (!open_.empty()) {
        if (auto* array = std::get_if<Array>(&open_.back()->data))
            placed = &array->back();
        else
            placed = &std::get<Object>(open_.back()->data).back().second;
    }
    open_.push_back(placed);
    return true;
}

bool TreeBuilder::open_object() { return open({Object{}}); }
bool TreeBuilder::open_array() { return open({Array{}}); }
void TreeBuilder::close() { open_.pop_back(); }

bool TreeBuilder::key(std::string name) {
    const auto& fields = std::get<Object>(open_.back()->data);
    // Linear, since an object here has tens of fields; the bound keeps a hostile one from costing a square of many.
    if (fields.size() >= 4096) {
        problem_ = "an object has more than 4096 fields";
        return false;
    }
    if (std::any_of(fields.begin(), fields.end(), [&](const auto& field) { return field.first == name; })) {
        problem_ = "the key " + quoted(name) + " stands twice";
        return false;
    }
    key_ = std::move(name);
    return true;
}

// Reading the tree.
void Node::refuse(const std::string& got, const std::string& expected) const {
    throw file_error(printable(path_, 100) + " is " + got + ", expected " + expected +
                     "; rebuild the engine with `pfdiff build`");
}

template <class Kind>
const Kind& Node::as(const char* expected) const {
    if (const auto* found = std::get_if<Kind>(&value_->data)) return *found;
    refuse(kind_of(*value_), expected);
}

std::optional<Node> Node::find(std::string_view name) const {
    for (const auto& [key, value] : as<Object>("an object"))
        if (key == name && !std::holds_alternative<std::nullptr_t>(value.data))
            return Node(value, path_ + (path_.ends_with(':') ? " " : ".") + key);
    return std::nullopt;
}

Node Node::operator[](std::string_view name) const {
    if (auto found = find(name)) return *found;
    throw file_error(printable(path_, 100) + (path_.ends_with(':') ? " " : ".") + std::string(name) +
                     " is missing; rebuild the engine with `pfdiff build`");
}

std::vector<std::pair<std::string, Node>> Node::fields() const {
    std::vector<std::pair<std::string, Node>> result;
    for (const auto& [key, value] : as<Object>("an object"))
        result.emplace_back(key, Node(value, path_ + "." + quoted(key)));
    return result;
}

std::vector<Node> Node::items() const {
    std::vector<Node> result;
    const auto& array = as<Array>("a list");
    for (std::size_t i = 0; i < array.size(); ++i) result.emplace_back(array[i], path_ + "[" + std::to_string(i) + "]");
    return result;
}

const std::string& Node::string() const { return as<std::string>("a string"); }
double Node::number() const { return as<Number>("a number").value; }
bool Node::boolean() const { return as<bool>("true or false"); }

std::int64_t Node::integer(std::int64_t low, std::int64_t high) const {
    const auto expected = "an integer in " + std::to_string(low) + ".." + std::to_string(high);
    const auto& number = as<Number>(expected.c_str());
    if (!number.integer || *number.integer < low || *number.integer > high) refuse(decimal(number.value), expected);
    return *number.integer;
}

void Node::append_numbers(const std::vector<std::size_t>& sizes, std::size_t level, std::vector<double>& into) const {
    if (level == sizes.size()) return into.push_back(number());
    const auto& array = as<Array>("a list");
    if (array.size() != sizes[level])
        refuse("a list of " + std::to_string(array.size()), "a list of " + std::to_string(sizes[level]));
    for (std::size_t i = 0; i < array.size(); ++i)
        if (const auto* number = std::get_if<Number>(&array[i].data); number && level + 1 == sizes.size())
            into.push_back(number->value);  // the common case, without building a path for each number
        else
            Node(array[i], path_ + "[" + std::to_string(i) + "]").append_numbers(sizes, level + 1, into);
}

std::vector<double> Node::numbers(const std::vector<std::size_t>& sizes) const {
    std::vector<double> result;
    append_numbers(sizes, 0, result);
    return result;
}

}  // namespace pfdiff::json
