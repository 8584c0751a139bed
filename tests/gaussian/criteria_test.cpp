// SPDX-License-Identifier: MIT
#include "moe/gaussian/inference/criteria.hpp"

#include <cmath>

#include "gaussian/simulated.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;

template <class Gate>
Index parameters(Index k, Index d, Gate gate, moe::LastSlope last = moe::LastSlope::Zero) {
  auto model = moe::GaussianMoe<Gate>::zero(k, d, gate);
  model.last_slope = last;
  return moe::num_identified_parameters(model);
}

}  // namespace

TEST_CASE("num_identified_parameters: experts have k (d + 2), gates what tells them apart", "[gaussian]") {
  constexpr Index k = 3, d = 4, experts = k * (d + 2), linear = (k - 1) * (d + 1);
  using FreeTau = moe::LearnableTemperature;
  CHECK(parameters(k, d, moe::SoftmaxGate{}) == experts + linear);
  CHECK(parameters(1, d, moe::SoftmaxGate{}) == d + 2);
  CHECK(parameters(k, d, moe::DenseToSparseGate<moe::ConstantSchedule>{}) == experts + linear);
  CHECK(parameters(k, d, moe::DenseToSparseGate<FreeTau>{}) == experts + linear);
  CHECK(parameters(1, d, moe::DenseToSparseGate<FreeTau>{}) == d + 2);
  CHECK(parameters(k, d, moe::TopKGate{.k = 2}) == experts + linear);
  CHECK(parameters(k, d, moe::TopKGate{.k = 1}) == experts + linear - 1);
  const Eigen::RowVectorXd zeros = Eigen::RowVectorXd::Zero(k);
  CHECK(parameters(k, d, moe::TopKGate{.k = 2, .weight_bias = zeros}) == experts + linear);
  CHECK(parameters(k, d, moe::TopKGate{.k = 1, .weight_bias = zeros}) == experts + (k - 1) * d - 1);
  CHECK(parameters(k, d, moe::ActivationGate<moe::Tanh, FreeTau>{}) == experts + linear + 1);
  CHECK(parameters(k, d, moe::ActivationGate<moe::Tanh, FreeTau>{}, moe::LastSlope::Free) == experts + k * d + k);
  CHECK(parameters(k, d, moe::ActivationGate<moe::Relu, FreeTau>{}) == experts + linear);
  CHECK(parameters(k, d, moe::ActivationGate<moe::Relu, moe::ConstantSchedule>{}) == experts + linear);
}

TEST_CASE("criteria: AIC, BIC and ICL by their definition", "[gaussian]") {
  const auto model = test::two_lines();
  const auto data = test::simulated(model, 100, 3);
  const moe::Criteria c = moe::criteria(model, data);
  double log_likelihood = 0, entropy = 0;
  const moe::Matrix<double> pi = moe::gate_weights(model, data.x), m = moe::expert_means(model, data.x);
  for (Index i = 0; i < 100; ++i) {
    double joint[2], density = 0;
    for (Index j = 0; j < 2; ++j) {
      const double e = data.y(i) - m(i, j), nu = model.variance(j);
      density += joint[j] = pi(i, j) * std::exp(-e * e / (2 * nu)) / std::sqrt(2 * std::acos(-1.0) * nu);
    }
    log_likelihood += std::log(density);
    for (const double p : joint)
      if (p > 0) entropy -= p / density * std::log(p / density);
  }
  // sums of 100 terms of order 1 with some ulp each
  CHECK(c.num_parameters == 8);
  CHECK(std::abs(c.log_likelihood - log_likelihood) < 1e-11);
  CHECK(std::abs(c.entropy - entropy) < 1e-11);
  CHECK(std::abs(c.aic - (-2 * log_likelihood + 16)) < 1e-11);
  CHECK(std::abs(c.bic - (-2 * log_likelihood + 8 * std::log(100.0))) < 1e-11);
  CHECK(std::abs(c.icl - c.bic - 2 * entropy) < 1e-11);
}
