#include "contract.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace pfdiff {
namespace {

template <class Value, class Read>
Value read_or(const json::Node& node, const char* name, Value otherwise, Read&& read) {
    const auto found = node.find(name);
    return found ? Value(read(*found)) : otherwise;
}

std::string read_name(const json::Node& node) {
    const auto& name = node.string();
    if (name.empty() || name.size() > 256 || name.find('\0') != std::string::npos)
        node.refuse(quoted(name), "a name of 1 to 256 characters");
    return name;
}

double read_positive(const json::Node& node) {
    const double number = read_finite(node);
    if (number <= 0) node.refuse(decimal(number), "a number above 0");
    return number;
}

Condition read_condition(const json::Node& node) {
    Condition condition;
    condition.name = read_name(node["name"]);
    condition.dtype = read_choice(node["dtype"], {"float32", "float16", "bfloat16", "int64", "int32", "bool"});
    if (const auto shape = node.find("shape")) condition.elements = read_shape(*shape, condition.shape);
    // A list has a number for each element, where this interface has one for all: such a condition must be set.
    if (const auto value = node.find("default"); value && !value->is_array())
        condition.default_value = value->is_boolean() ? static_cast<double>(value->boolean()) : read_finite(*value);
    const auto bound = [](const json::Node& found) { return found.integer(INT64_MIN, INT64_MAX); };
    condition.low = read_or(node, "low", condition.low, bound);
    condition.high = read_or(node, "high", condition.high, bound);
    return condition;
}

}  // namespace

double read_finite(const json::Node& node) {
    const double number = node.number();
    if (!std::isfinite(number)) node.refuse(decimal(number), "a finite number");
    return number;
}

std::string read_choice(const json::Node& node, const std::vector<std::string>& choices) {
    const auto& value = node.string();
    if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
        std::string expected = "one of";
        for (const auto& choice : choices) expected += (&choice == &choices.front() ? " " : ", ") + choice;
        node.refuse(quoted(value), expected);
    }
    return value;
}

std::int64_t read_shape(const json::Node& node, std::vector<std::int64_t>& shape) {
    constexpr std::int64_t largest = std::int64_t{1} << 40;
    std::int64_t elements = 1;
    const auto sizes = node.items();
    if (sizes.size() > 8) node.refuse("a list of " + std::to_string(sizes.size()), "at most 8 sizes");
    for (const auto& size : sizes) {
        shape.push_back(size.integer(1, largest));
        if (shape.back() > largest / elements) node.refuse("too large", "a sample of at most 2^40 elements");
        elements *= shape.back();
    }
    return elements;
}

Contract read_contract(const json::Node& node) {
    const auto name = [](const json::Node& found) { return read_name(found); };
    Contract contract;
    contract.name = read_name(node["name"]);
    contract.schedule = read_name(node["schedule"]);
    contract.prediction = read_choice(node["prediction"], {"eps", "x0", "v", "flow", "edm", "consistency"});
    contract.elements = read_shape(node["shape"], contract.shape);
    if (contract.shape.empty()) node["shape"].refuse("empty", "sizes such as [3, 64, 64]");
    contract.input = read_or(node, "input", std::string("x"), name);
    contract.time = read_or(node, "time", std::string("t"), name);
    contract.output = read_or(node, "output", std::string("out"), name);
    contract.precision = read_or(node, "precision", std::string("fp32"), [](const json::Node& found) {
        return read_choice(found, {"fp32", "fp16", "bf16"});
    });
    contract.time_dtype = read_or(node, "time_dtype", std::string("float32"), [](const json::Node& found) {
        return read_choice(found, {"float32", "int64"});
    });
    contract.time_scale = read_or(node, "time_scale", 1.0, read_positive);
    contract.sigma_data = read_or(node, "sigma_data", 0.5, read_positive);
    contract.time_rank =
        read_or(node, "time_rank", 1, [](const json::Node& found) { return static_cast<int>(found.integer(0, 1)); });
    contract.fixed_batch = read_or(node, "fixed_batch", std::int64_t{0},
                                   [](const json::Node& found) { return found.integer(1, 1 << 20); });
    if (const auto range = node.find("data_range")) {
        const auto numbers = range->numbers({2});
        if (!(std::isfinite(numbers[0]) && std::isfinite(numbers[1]) && numbers[0] < numbers[1]))
            range->refuse("no range", "two finite numbers, the lower first");
        std::copy(numbers.begin(), numbers.end(), contract.data_range);
    }
    if (const auto conditions = node.find("conditions"))
        for (const auto& condition : conditions->items()) contract.conditions.push_back(read_condition(condition));
    return contract;
}

Decoder read_decoder(const json::Node& node) {
    const auto name = [](const json::Node& found) { return read_name(found); };
    Decoder decoder;
    decoder.name = read_name(node["name"]);
    read_shape(node["shape"], decoder.shape);
    decoder.elements = read_shape(node["image"], decoder.image);
    if (decoder.image.size() != 3 && decoder.image.size() != 4)
        node["image"].refuse("of " + std::to_string(decoder.image.size()) + " sizes", "[C, H, W] or [C, frames, H, W]");
    decoder.input = read_or(node, "input", std::string("latents"), name);
    decoder.output = read_or(node, "output", std::string("image"), name);
    decoder.precision = read_or(node, "precision", std::string("fp32"), [](const json::Node& found) {
        return read_choice(found, {"fp32", "fp16", "bf16"});
    });
    decoder.fixed_batch = read_or(node, "fixed_batch", std::int64_t{0},
                                  [](const json::Node& found) { return found.integer(1, 1 << 20); });
    return decoder;
}

}  // namespace pfdiff
