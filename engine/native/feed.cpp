#include "feed.h"

#include <cmath>
#include <cstring>

#include "error.h"
#include "halfs.h"

namespace pfdiff {
namespace {

template <class Element>
void append(std::vector<std::uint8_t>& bytes, Element element) {
    const auto at = bytes.size();
    bytes.resize(at + sizeof element);
    std::memcpy(bytes.data() + at, &element, sizeof element);
}

// Whether the dtype has this number; the cast of another is undefined, or gives infinity.
bool holds(const std::string& dtype, double value) {
    if (dtype == "bool") return value == 0 || value == 1;
    if (dtype.starts_with("int")) {
        const double end = dtype == "int32" ? 0x1p31 : 0x1p63;
        return value == std::floor(value) && -end <= value && value < end;
    }
    return std::abs(value) <= (dtype == "float16" ? 65504 : dtype == "bfloat16" ? 0x1.FEp127 : 0x1.FFFFFEp127);
}

}  // namespace

void append_value(std::vector<std::uint8_t>& bytes, const std::string& dtype, double value) {
    if (dtype == "float32") return append(bytes, static_cast<float>(value));
    if (dtype == "float16") return append(bytes, float16_from_float(static_cast<float>(value)));
    if (dtype == "bfloat16") return append(bytes, bfloat16_from_float(static_cast<float>(value)));
    if (dtype == "int64") return append(bytes, static_cast<std::int64_t>(value));
    if (dtype == "int32") return append(bytes, static_cast<std::int32_t>(value));
    append(bytes, static_cast<std::uint8_t>(value != 0));  // bool
}

Feed::Feed(const pfd_engine_t* engine) {
    const auto check = [](pfd_status_t status) {
        if (status != PFD_OK) throw Error(status, pfd_last_error());
    };
    pfd_contract_view_t contract{};
    contract.struct_size = sizeof contract;
    check(pfd_contract(engine, &contract));
    input = contract.input, time = contract.time, output = contract.output;
    precision = contract.precision, time_dtype = contract.time_dtype;
    time_scale = contract.time_scale, time_rank = contract.time_rank;
    shape.assign(contract.shape, contract.shape + contract.rank);
    elements = contract.elements, fixed_batch = contract.fixed_batch;
    for (std::size_t i = 0; i < contract.condition_count; ++i) {
        pfd_condition_view_t view{};
        view.struct_size = sizeof view;
        check(pfd_condition(engine, i, &view));
        Condition condition{view.name,     view.dtype,        {view.shape, view.shape + view.rank},
                            view.elements, view.has_low != 0, view.has_high != 0,
                            view.low,      view.high,         {}};
        conditions.push_back(std::move(condition));
        if (view.has_default != 0) set(view.name, &view.default_value, 1);
    }
}

void Feed::set(const std::string& name, const double* values, std::size_t count) {
    for (auto& condition : conditions) {
        if (condition.name != name) continue;
        if (count == 0 || (count != 1 && count % static_cast<std::size_t>(condition.elements) != 0))
            throw input_error("condition " + quoted(name) + ": " + std::to_string(count) +
                              " values, expected a multiple of " + std::to_string(condition.elements));
        for (std::size_t i = 0; i < count; ++i) {
            const double value = values[i];
            if (!std::isfinite(value))
                throw input_error("condition " + quoted(name) + ": " + decimal(value) + " is not finite");
            if (!holds(condition.dtype, value))
                throw input_error("condition " + quoted(name) + ": " + decimal(value) + " is no " + condition.dtype);
            if ((condition.has_low && value < static_cast<double>(condition.low)) ||
                (condition.has_high && value > static_cast<double>(condition.high)))
                throw input_error("condition " + quoted(name) + ": " + decimal(value) + ", expected " +
                                  (condition.has_low ? std::to_string(condition.low) : "") + ".." +
                                  (condition.has_high ? std::to_string(condition.high) : ""));
        }
        condition.values.assign(values, values + count);
        return;
    }
    std::string known;
    for (const auto& condition : conditions) known += (known.empty() ? "" : ", ") + condition.name;
    throw input_error("unknown condition " + quoted(name) + "; this network takes " +
                      (known.empty() ? "none" : printable(known, 120)));
}

std::vector<std::uint8_t> Feed::bytes(const Condition& condition, std::int64_t batch) const {
    const auto& values = condition.values;
    const auto total = static_cast<std::size_t>(batch * condition.elements);
    if (values.empty()) throw input_error("condition " + quoted(condition.name) + " is missing; give it a value");
    if (values.size() != 1 && values.size() != static_cast<std::size_t>(condition.elements) && values.size() != total)
        throw input_error("condition " + quoted(condition.name) + ": " + std::to_string(values.size()) +
                          " values, expected " + std::to_string(total) + " for a batch of " + std::to_string(batch));
    std::vector<std::uint8_t> result;
    for (std::size_t i = 0; i < total; ++i) append_value(result, condition.dtype, values[i % values.size()]);
    return result;
}

std::vector<std::uint8_t> Feed::times(double network_time, std::int64_t count) const {
    const double fed = network_time * time_scale;
    if (time_dtype == "int64" && std::abs(fed - std::nearbyint(fed)) > 1e-6)
        throw input_error("time " + decimal(fed) +
                          " is no integer, but this network takes int64 times; build the engine "
                          "with a discrete schedule and a grid of integer times");
    std::vector<std::uint8_t> result;
    for (std::int64_t i = 0; i < count; ++i)
        append_value(result, time_dtype, time_dtype == "int64" ? std::nearbyint(fed) : fed);
    return result;
}

std::vector<std::int64_t> Feed::batched(std::int64_t batch, const std::vector<std::int64_t>& shape) {
    std::vector<std::int64_t> result{batch};
    result.insert(result.end(), shape.begin(), shape.end());
    return result;
}

}  // namespace pfdiff
