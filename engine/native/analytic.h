// The exact network of Gaussian data, for tests and for pfdiff-run without an adapter.
//
// Element e of the data is normal with mean m = 0.1 ((e mod 5) - 2) and deviation s = 0.5 + 0.1 (e mod 3). Then
//     E[x_0 | x_t] = m + alpha_t s^2 / (alpha_t^2 s^2 + sigma_t^2) (x_t - alpha_t m)
// is known in closed form, and with it every prediction. Schedules: linear, scaled_linear, cosine, vp, edm and flow,
// without parameters of their own but flow's shift, which moves only the grid.
#pragma once

#include <string>
#include <vector>

#include "pfdiff.h"

namespace pfdiff {

class GaussianNetwork final {
   public:
    // The schedule's and the prediction's names as in a program. Throws Error (PFD_INPUT_ERROR) on an unknown one.
    GaussianNetwork(const std::string& schedule, std::string prediction, double sigma_data);

    // A pfd_network_t whose context is a GaussianNetwork.
    static int call(void* context, const pfd_evaluation_t* evaluation, const float* input, float* output);

    // alpha_t and sigma_t in float64.
    void coefficients(double time, double& alpha, double& sigma) const;

   private:
    enum class Kind { discrete, vp, edm, flow };
    Kind kind_;
    std::vector<double> cumulative_;  // of a discrete schedule
    std::string prediction_;
    double sigma_data_;
};

}  // namespace pfdiff
