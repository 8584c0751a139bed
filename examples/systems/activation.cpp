// SPDX-License-Identifier: MIT
// Can a temperature be estimated? Behind a linear gate, or one with a ReLU, it cannot: router and temperature grow
// together without any change of the weights, so that the Fisher information is singular. An activation between the
// inner products and the temperature, sigmoid or tanh, breaks that tie. Nguyen, Akbarian & Ho, "Is temperature sample
// efficient for softmax Gaussian mixture of experts?" (arXiv:2401.13875).
// Here: two linear experts on one input, the smallest over the largest eigenvalue of the mean of the rows' scores'
// outer products at the truth. Not here: rates of estimation; examples/convergence_rates.cpp measures those.
#include <cmath>

#include <Eigen/Eigenvalues>

#include <moe/gate/activation.hpp>
#include <moe/gaussian/pass/likelihood.hpp>
#include <moe/gaussian/predict/sample.hpp>

#include "support/page.hpp"

namespace {

using moe::Index;
using Temperature = moe::LearnableTemperature;

/// The same numbers for every gate, but that a linear one knows beta_1 up to a common shift: its last is 0.
template <class Gate>
moe::GaussianMoe<Gate> truth(const Gate& gate, moe::LastSlope last) {
  moe::GaussianMoe<Gate> model = moe::GaussianMoe<Gate>::zero(2, 1, gate);
  model.last_slope = last;
  model.gate_slope << 1.5, last == moe::LastSlope::Free ? -0.7 : 0;
  model.gate_bias << 0.3, 0;
  model.temperature = 0.5;
  model.slope << 1, -0.8;
  model.intercept << -1, 1.2;
  model.variance << 0.16, 0.25;
  return model;
}

/// What the information says of the direction that it knows least of, relative to what it knows best.
template <class Gate>
double eigenvalue_ratio(const moe::GaussianMoe<Gate>& model, std::uint64_t seed, Index rows) {
  const moe::RandomField random(moe::Purpose::User, seed);
  const auto x = moe::Matrix<double>::NullaryExpr(rows, 1, [&](Index i, Index) { return 6 * random.uniform(i) - 3; });
  const moe::RegressionData data{x, moe::sample(model, x, seed)};
  const Eigen::VectorXd values =
      Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(moe::score_covariance(model, data)).eigenvalues();
  return std::abs(values(0)) / values(values.size() - 1);  // rounding may make a zero negative
}

template <class Act>
double ratio_of(std::uint64_t seed, Index rows) {
  const moe::ActivationGate<Act, Temperature> gate{.sparse = {.temperature = Temperature::starting_at(0.5)}};
  return eigenvalue_ratio(truth(gate, moe::LastSlope::Free), seed, rows);
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"activation", "2401.13875", "moe/gate/activation.hpp"}, [](systems::Page& page) {
        const Index rows = page.amount<Index>(5000, 500);
        const auto s = page.over_seeds([&](std::uint64_t seed) -> std::vector<double> {
          const moe::DenseToSparseGate<Temperature> linear{.temperature = Temperature::starting_at(0.5)};
          return {eigenvalue_ratio(truth(linear, moe::LastSlope::Zero), seed, rows), ratio_of<moe::Relu>(seed, rows),
                  ratio_of<moe::Sigmoid>(seed, rows), ratio_of<moe::Tanh>(seed, rows)};
        });
        page.table({"gate", "eigenvalue ratio"});
        for (std::size_t i = 0; i < s.size(); ++i) page.row(std::array{"linear", "ReLU", "sigmoid", "tanh"}[i], {s[i]});
        page.expect("linear", s[0], {.low = 0, .high = 1e-12});
        page.expect("ReLU", s[1], {.low = 0, .high = 1e-12});
        page.expect("tanh", s[3], {.low = 1e-7, .high = 1});
        page.claim("smallest over largest eigenvalue of the information, sigmoid", s[2], {.low = 1e-7, .high = 1});
      });
}
