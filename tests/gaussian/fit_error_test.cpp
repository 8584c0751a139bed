// SPDX-License-Identifier: MIT
#include <cmath>
#include <string>

#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "support/catch.hpp"

namespace {

using moe::FitOptions;
using moe::Index;
using moe::RegressionData;

template <class Call>
void require_message(const std::string& part, Call&& call) {
  std::string message = "(nothing was thrown)";
  try {
    call();
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  CAPTURE(message, part);
  CHECK(message.find(part) != std::string::npos);
}

void require_refused(const std::string& part, const RegressionData& data, Index k, const FitOptions& options = {}) {
  require_message("moe::fit: " + part, [&] { moe::fit(data, k, moe::SoftmaxGate{}, options); });
}

RegressionData good() { return test::simulated(test::two_lines(), 60, 1); }

/// With these columns beside the one of the data.
RegressionData with_columns(const RegressionData& data, const moe::Matrix<double>& more) {
  RegressionData out{moe::Matrix<double>(data.num_rows(), 1 + more.cols()), data.y};
  out.x << data.x, more;
  return out;
}

}  // namespace

TEST_CASE("fit: refuses numbers that are not finite and shapes that disagree", "[gaussian][error]") {
  RegressionData data = good();
  data.y(7) = std::nan("");
  require_refused("y is nan in row 7, expected finite", data, 2);
  data = good();
  data.x(59, 0) = -INFINITY;
  require_refused("x is -inf in row 59, column 0, expected finite", data, 2);
  data = good();
  data.y.conservativeResize(3);
  require_refused("y has 3 rows, expected as many as x = 60", data, 2);
  require_refused("x is [0, 0], expected at least one row", {}, 2);
  require_refused("x is [5, 0], expected at least one row and one column",
                  {moe::Matrix<double>(5, 0), Eigen::VectorXd::Ones(5)}, 2);
}

TEST_CASE("fit: refuses columns that carry nothing of their own", "[gaussian][error]") {
  const RegressionData data = good();
  RegressionData constant = data;
  constant.x.setConstant(4);
  require_refused("column 0 of x is constant, 4, expected columns that vary", constant, 2);
  require_refused("columns 0 and 1 of x are the same up to shift and scale",
                  with_columns(data, (2 - 3 * data.x.array()).matrix()), 2);
  moe::Matrix<double> more(60, 2);
  more.col(0) = data.x.array().square();
  more.col(1) = data.x.col(0) - 2 * more.col(0);
  require_message("of x is a linear combination of others, expected independent columns",
                  [&] { moe::fit(with_columns(data, more), 2); });
}

TEST_CASE("fit: refuses numbers of experts that the data or the gate do not allow", "[gaussian][error]") {
  const RegressionData data = good();
  require_refused("num_experts is 0, expected at least 1", data, 0);
  require_refused("num_experts is -1, expected at least 1", data, -1);
  // 5 k - 2 parameters: gate slopes and biases of all but one, and a line and a variance of each.
  require_refused("there are 60 rows, expected at least as many as parameters, 63", data, 13);
  require_message("moe::TopKGate: k is 3, expected 1 <= k <= num_experts = 2",
                  [&] { moe::fit(data, 2, moe::TopKGate{.k = 3}); });
  require_message("last_slope is Free with a linear gate",
                  [&] { moe::fit(data, 2, moe::SoftmaxGate{}, {.last_slope = moe::LastSlope::Free}); });
}

TEST_CASE("fit: refuses options that are out of range, by name", "[gaussian][error]") {
  const RegressionData data = good();
  require_refused("starts is -1, expected a finite number >= 0", data, 2, {.starts = -1});
  require_refused("short_iterations is -1, ", data, 2, {.short_iterations = -1});
  require_refused("short_rows is 99, expected a finite number >= 100", data, 2, {.short_rows = 99});
  require_refused("long_runs is -2, ", data, 2, {.long_runs = -2});
  require_refused("max_iterations is 0, ", data, 2, {.max_iterations = 0});
  require_refused("score_tolerance is nan, ", data, 2, {.score_tolerance = std::nan("")});
  require_refused("ridge is -1, ", data, 2, {.ridge = -1});
  require_refused("variance_floor is -1, ", data, 2, {.variance_floor = -1});
  require_refused("variance_penalty is inf, ", data, 2, {.variance_penalty = INFINITY});
  require_refused("gate_box is 0, expected > 0", data, 2, {.gate_box = 0});
}

TEST_CASE("fit_from: refuses models that are bad, out of normal form or of another width", "[gaussian][error]") {
  const RegressionData data = good();
  const auto refuse = [&](const std::string& part, auto&& spoil) {
    auto model = test::two_lines();
    spoil(model);
    require_message("moe::fit_from: " + part, [&] { moe::fit_from(data, model); });
  };
  refuse("the variance of expert 1 is 0", [](auto& model) { model.variance(1) = 0; });
  refuse("", [](auto& model) { model.gate_bias(1) = 1; });
  refuse("a coefficient of the model is not finite", [](auto& model) { model.slope(0, 0) = std::nan(""); });
  refuse("", [](auto& model) { model = moe::GaussianMoe<>::zero(2, 3); });
  require_message("moe::fit_from: ridge is -1", [&] { moe::fit_from(data, test::two_lines(), {.ridge = -1}); });
}
