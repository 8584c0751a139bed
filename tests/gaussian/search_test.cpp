// SPDX-License-Identifier: MIT
// The search that decides by itself how many starts it takes, and what it takes for a maximum.
#include <cmath>

#include "gaussian/fit_check.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/inference/choose_experts.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

namespace {

using moe::Index;

/// y = intercept + slope x + noise.
moe::RegressionData line(Index n, double slope, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  moe::RegressionData data{moe::Matrix<double>(n, 1), Eigen::VectorXd(n)};
  for (Index i = 0; i < n; ++i) {
    data.x(i, 0) = random.normal(i, 0);
    data.y(i) = 1 + slope * data.x(i, 0) + random.normal(i, 1);
  }
  return data;
}

}  // namespace

TEST_CASE("fit: searches until several have ended at the best maximum, with the bits of any thread", "[gaussian]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 150, 61);
  const moe::FitOptions options;
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  CHECK(fit.hits >= options.wanted_hits);
  CHECK_FALSE(fit.flags.not_reproduced);
  CHECK(fit.starts == 72);  // six searches of twelve, all at one maximum
  CHECK(test::FitCheck(data, options, fit)() == "");
  test::ThreadExecutor executor(3);
  const moe::UseExecutor use(executor);
  const auto other = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  CHECK(other.path == fit.path);
  CHECK(other.hits == fit.hits);
  CHECK(other.model.gate_slope == fit.model.gate_slope);
}

TEST_CASE("fit: a budget ends a search, and the result says that it has not been reproduced", "[gaussian]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 100, 62);
  const moe::FitOptions options{.wanted_hits = 2, .most_starts = 12};
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  CHECK(fit.starts == 12);
  CHECK(fit.hits == 1);
  CHECK(fit.flags.not_reproduced);
  CHECK_FALSE(moe::fit(data, 1).flags.not_reproduced);  // a line has one maximum
}

TEST_CASE("fit: a search on a sample of the rows ends at the maximum on all", "[gaussian]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 500, 63);
  const moe::FitOptions options{.wanted_hits = 1, .most_starts = 12, .short_rows = 200};
  const auto sampled = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  const auto full = moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 6});
  CHECK(std::abs(sampled.log_likelihood - full.log_likelihood) < 1e-5);  // both within remaining_tolerance
  CHECK(test::FitCheck(data, options, sampled)() == "");
}

TEST_CASE("Moves: are models in normal form, the same for the same number", "[gaussian][property]") {
  const auto truth = test::three_lines();
  const moe::RegressionData data = test::simulated(truth, 120, 64);
  const moe::detail::RowBlocks rows(data, moe::detail::Standardisation::none(1));
  const moe::detail::Starts<> starts(rows, moe::layout(truth), truth.form(), nullptr, 5);
  const moe::detail::Moves<> moves(starts);
  const Eigen::MatrixXd r = starts.responsibilities(truth);
  CHECK((r - moe::responsibilities(truth, data)).cwiseAbs().maxCoeff() < 1e-12);  // a few units of logarithms near 10
  for (Index move = 0; move < 60; ++move) {
    CAPTURE(move);
    const moe::GaussianMoe<> moved(moves(truth, 3, move)), again(moves(truth, 3, move)), other(moves(truth, 4, move));
    moved.validate("test");
    moe::detail::require_normal_form("test", moved);
    CHECK(moved.slope == again.slope);
    CHECK(moved.slope != other.slope);
    CHECK(moved.slope != truth.slope);
  }
}

TEST_CASE("fit: what an expert must rest on", "[gaussian]") {
  const auto supported = [](double rows, double ratio, double support) {
    return moe::detail::experts_are_supported(Eigen::RowVector2d(100 - rows, rows),
                                              Eigen::RowVector2d(1, ratio * ratio),
                                              /*num_rows=*/100, /*input_dim=*/1, support);
  };
  CHECK(supported(6, 0.5, 3));
  CHECK_FALSE(supported(5.9, 0.5, 3));  // 2 (d + 2)
  // log C(100, 2) = 8.507, so with a ratio of 0.1, log 10 = 2.303, it takes 2 + 3 * 8.507 / 2.303 = 13.08 rows
  CHECK(supported(13.1, 0.1, 3));
  CHECK_FALSE(supported(13.0, 0.1, 3));
  CHECK(supported(9.4, 0.1, 2));
  CHECK_FALSE(supported(9.3, 0.1, 2));
  CHECK(supported(1, 1e-4, 0));
  CHECK(moe::detail::experts_are_supported(Eigen::RowVectorXd::Constant(1, 3), Eigen::RowVectorXd::Ones(1), 3, 1, 3));
}

TEST_CASE("sweep_experts: takes noise and lines for one expert, which without the rule it does not", "[gaussian]") {
  Index right = 0, without = 0;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const moe::RegressionData data = line(30, seed % 2 == 0 ? 2 : 0, seed);
    const auto best = [&](double support) {
      return moe::sweep_experts(data, {.least = 1, .most = 2}, moe::SoftmaxGate{},
                                {.most_starts = 24, .support = support})
          .best_bic;
    };
    right += best(3) == 1;
    without += best(0) == 1;
  }
  CHECK(right >= 9);
  CHECK(without < right);
}
