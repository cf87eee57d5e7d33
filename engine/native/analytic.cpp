#include "analytic.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>

#include "error.h"

namespace pfdiff {
namespace {

// Cumulative products of 1 - beta_t; the formulas and their sources are those of engine/schedule.py.
std::vector<double> cumulative_products(const std::string& name, int length) {
    std::vector<double> result;
    const auto at = [&](double first, double last, int t) { return first + t * (last - first) / (length - 1); };
    const auto alphabar = [&](int t) {
        const double cosine = std::cos((static_cast<double>(t) / length + 0.008) / 1.008 * std::numbers::pi / 2);
        return cosine * cosine;
    };
    double product = 1;
    for (int t = 0; t < length; ++t) {
        double beta;
        if (name == "linear")
            beta = at(1e-4, 0.02, t);
        else if (name == "scaled_linear")
            beta = std::pow(at(std::sqrt(0.00085), std::sqrt(0.012), t), 2);
        else
            beta = std::clamp(1 - alphabar(t + 1) / alphabar(t), 1e-4, 0.9999);
        result.push_back(product *= 1 - beta);
    }
    return result;
}

}  // namespace

GaussianNetwork::GaussianNetwork(const std::string& schedule, std::string prediction, double sigma_data)
    : kind_(Kind::discrete), prediction_(std::move(prediction)), sigma_data_(sigma_data) {
    const auto colon = std::min(schedule.find(':'), schedule.size());
    const auto name = schedule.substr(0, colon), argument = schedule.substr(std::min(colon + 1, schedule.size()));
    if (name == "vp" && argument.empty()) {
        kind_ = Kind::vp;
    } else if (name == "edm" && argument.empty()) {
        kind_ = Kind::edm;
    } else if (name == "flow" && (argument.empty() || argument.starts_with("shift="))) {
        kind_ = Kind::flow;
    } else if (name == "linear" || name == "scaled_linear" || name == "cosine") {
        int length = 0;
        const auto end = argument.data() + argument.size();
        const auto read = std::from_chars(argument.data(), end, length);
        if (read.ec != std::errc{} || read.ptr != end || length < 2 || length > 1000000)
            throw input_error("the gaussian network does not know the schedule " + quoted(schedule) +
                              "; it knows it with a plain number of times, such as " + name + ":1000");
        cumulative_ = cumulative_products(name, length);
    } else {
        throw input_error("the gaussian network does not know the schedule " + quoted(schedule) +
                          "; it knows linear:T, scaled_linear:T, cosine:T, vp, edm and flow");
    }
    for (const char* known : {"eps", "x0", "v", "flow", "edm"})
        if (prediction_ == known) return;
    throw input_error("unknown prediction " + quoted(prediction_) + "; known: eps, x0, v, flow, edm");
}

void GaussianNetwork::coefficients(double time, double& alpha, double& sigma) const {
    if (kind_ == Kind::discrete) {
        if (!(time >= 0 && time < static_cast<double>(cumulative_.size()) && time == std::floor(time)))
            throw input_error("time " + decimal(time) + " is none of this schedule's 0.." +
                              std::to_string(cumulative_.size() - 1));
        const double product = cumulative_[static_cast<std::size_t>(time)];
        alpha = std::sqrt(product), sigma = std::sqrt(1 - product);
    } else if (kind_ == Kind::vp) {
        const double log_alpha = -(time * time) * (20.0 - 0.1) / 4 - time * 0.1 / 2;
        alpha = std::exp(log_alpha), sigma = std::sqrt(-std::expm1(2 * log_alpha));
    } else {
        alpha = kind_ == Kind::edm ? 1 : 1 - time, sigma = time;
    }
}

int GaussianNetwork::call(void* context, const pfd_evaluation_t* evaluation, const float* input, float* output) {
    const auto& self = *static_cast<const GaussianNetwork*>(context);
    const auto status = guarded([&] {
        double alpha, sigma;
        self.coefficients(evaluation->time, alpha, sigma);
        const double total = std::sqrt(sigma * sigma + self.sigma_data_ * self.sigma_data_);
        const double c_skip = self.sigma_data_ * self.sigma_data_ / (total * total),
                     c_out = sigma * self.sigma_data_ / total;
        // x_0 given x_t, then the prediction as a combination a x_t + b x_0.
        double a = 0, b = 1, x_scale = 1;
        if (self.prediction_ == "eps") a = 1 / sigma, b = -alpha / sigma;
        if (self.prediction_ == "v") a = alpha / sigma, b = -(alpha * alpha / sigma + sigma);
        if (self.prediction_ == "flow") a = 1 / sigma, b = -(alpha / sigma + 1);
        if (self.prediction_ == "edm") a = -c_skip / c_out, b = 1 / c_out, x_scale = total;  // fed c_in x = x / total
        for (std::int64_t i = 0; i < evaluation->batch * evaluation->elements; ++i) {
            const auto e = i % evaluation->elements;
            const double mean = 0.1 * (static_cast<double>(e % 5) - 2),
                         deviation = 0.5 + 0.1 * static_cast<double>(e % 3);
            const double gain = alpha * deviation * deviation / (alpha * alpha * deviation * deviation + sigma * sigma);
            const double x = input[i] * x_scale;
            output[i] = static_cast<float>(a * x + b * (mean + gain * (x - alpha * mean)));
        }
    });
    if (status != PFD_OK) pfd_set_error(pfd_last_error());
    return status;
}

}  // namespace pfdiff
