// SPDX-License-Identifier: MIT
#include <cmath>

#include "gaussian/golden.hpp"
#include "gaussian/shared_fits.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;

/// Both programs agree on the maximum to 1e-9 per row of the score, hence on estimates to about 1e-7 of their error;
/// the information of the other one is exact to about 1e-6.
constexpr double kTolerance = 1e-5;

template <class Gate>
void check_golden(const test::Golden& golden, const Gate& gate) {
  const moe::RegressionData data = test::golden_data(golden);
  const moe::GaussianMoe<Gate> reference(test::parameters_of(golden.line), gate);
  REQUIRE(std::abs(moe::log_likelihood(reference, data) - golden.log_likelihood) < 1e-6);
  const moe::StandardErrors errors = moe::standard_errors(reference, data);
  CAPTURE(golden.file, errors.explanation, errors.distance);
  REQUIRE(errors.available());
  CHECK(errors.distance < 1e-3);
  REQUIRE(errors.coordinates.size() == golden.observed.size());
  for (std::size_t i = 0; i < golden.observed.size(); ++i) {
    CAPTURE(errors.parameters[i].name);
    REQUIRE(errors.parameters[i].error);
    const moe::StandardError& error = *errors.parameters[i].error;
    CHECK(std::abs(error.observed / golden.observed[i] - 1) < kTolerance);
    if (!golden.sandwich.empty()) CHECK(std::abs(error.sandwich / golden.sandwich[i] - 1) < kTolerance);
  }
}

/// From the fit as well: experts are sorted by intercept, which leaves the errors of their variances with them.
template <class Gate>
void check_fit(const test::Golden& golden, const Gate& gate) {
  const moe::RegressionData data = test::golden_data(golden);
  const moe::GaussianMoe<Gate> reference(test::parameters_of(golden.line), gate);
  const auto fit = moe::fit_from(data, reference);
  const moe::StandardErrors errors = moe::standard_errors(fit, data);
  CAPTURE(golden.file, errors.explanation);
  REQUIRE(errors.available());
  const Index k = reference.num_experts(), first = moe::layout(reference).log_variance(0);
  for (Index j = 0; j < k; ++j)
    for (Index l = 0; l < k; ++l) {
      if (std::abs(fit.model.intercept(j) - reference.intercept(l)) > 1e-3) continue;
      const auto& p = errors["variance[" + std::to_string(j) + ']'];
      const double expected = reference.variance(l) * golden.observed[static_cast<std::size_t>(first + l)];
      CHECK(std::abs(p.error->observed / expected - 1) < kTolerance);
    }
}

}  // namespace

TEST_CASE("standard_errors: agree with another program, softmax gate", "[gaussian][golden]") {
  check_golden(test::kK2D1N1000, moe::SoftmaxGate{});
  check_golden(test::kK3D1N1000, moe::SoftmaxGate{});
  check_fit(test::kK2D1N1000, moe::SoftmaxGate{});
  check_fit(test::kK3D1N1000, moe::SoftmaxGate{});
}

TEST_CASE("standard_errors: agree with another program, tanh gate and its temperature", "[gaussian][golden]") {
  using Gate = moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>;
  check_golden(test::kActTanhK2D1N5000, Gate{});
  check_fit(test::kActTanhK2D1N5000, Gate{});
}

TEST_CASE("standard_errors: agree with another program, top-2 of 3 experts", "[gaussian][golden]") {
  const moe::TopKGate gate{.k = 2, .weight_bias = Eigen::RowVectorXd::Zero(3).eval()};
  check_golden(test::kTop2of3InnerproductD1N5000, gate);
}
