// SPDX-License-Identifier: MIT
// The search that decides by itself how many starts it takes, and what it takes for a maximum.
#include <cmath>
#include <limits>
#include <set>

#include "gaussian/fit_check.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/inference/choose_experts.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
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
  CHECK(fit.searches == 6);
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
  // 12 starts and at least 12 moves: 25 short runs take a second search at most, and no third
  const auto two = moe::fit(data, 2, moe::SoftmaxGate{}, {.wanted_hits = 9, .most_starts = 25});
  CHECK(two.searches <= 2);
  CHECK(two.starts == 12 * two.searches);
}

TEST_CASE("fit: a search without a budget ends when enough agree, the same on more threads than it needs",
          "[gaussian]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 100, 62);
  const moe::FitOptions options{.wanted_hits = 7, .most_starts = std::numeric_limits<Index>::max()};
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  CHECK(fit.hits == 7);
  CHECK_FALSE(fit.flags.not_reproduced);
  test::ThreadExecutor executor(17);
  const moe::UseExecutor use(executor);
  const auto other = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  CHECK(other.searches == fit.searches);
  CHECK(other.path == fit.path);
  CHECK_THROWS_WITH(moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = options.most_starts}),
                    ContainsSubstring("starts is 9223372036854775807, expected at most"));
}

TEST_CASE("fit: begins no search but the first when its time is over", "[gaussian]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 100, 62);
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, {.seconds = 1e-9});
  CHECK(fit.searches == 1);
  CHECK(fit.starts == 12);
  CHECK(fit.flags.not_reproduced);
}

TEST_CASE("fit: given starts on a sample of the rows count how many long runs ended at the best", "[gaussian]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 500, 63);
  const moe::FitOptions options{.starts = 6, .short_rows = 200};
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  CHECK(fit.searches == 5);
  CHECK(fit.hits >= 4);  // separated so well that nearly all runs end there
  CHECK_FALSE(fit.flags.not_reproduced);
  CHECK(test::FitCheck(data, options, fit)() == "");
  for (const Index rows : {200, 1000}) {
    CAPTURE(rows);
    const auto one = moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 6, .short_rows = rows, .long_runs = 1});
    CHECK(one.searches == 1);
    CHECK_FALSE(one.flags.not_reproduced);  // what was asked for agrees
  }
}

TEST_CASE("fit: reports progress that is on the scale of all rows and ends where it said", "[gaussian]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 500, 63);
  for (const Index rows : {200, 1000})
    for (const Index starts : {0, 6}) {
      CAPTURE(rows, starts);
      moe::FitProgress last;
      moe::FitOptions options{.starts = starts, .short_rows = rows};
      double first = 0;
      options.progress = [&](const moe::FitProgress& p) {
        CHECK(p.starts_done <= p.starts);
        CHECK(p.runs_done <= p.runs);
        if (last.starts_done == 0) first = p.log_likelihood;
        last = p;
      };
      const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
      CHECK(last.starts_done == last.starts);
      CHECK(last.starts >= fit.starts);
      CHECK(last.runs_done == last.runs);
      CHECK(std::abs(last.log_likelihood - fit.log_likelihood) < 1e-3);
      // A row's log density deviates by 0.7, so 500 times the mean of 200 of 500 by 500 * 0.7 * sqrt(1/200 - 1/500), 19
      CHECK(std::abs(first - fit.log_likelihood) < (starts == 0 ? 60 : 400));
    }
}

TEST_CASE("Starts: behind an activation every search sees slopes of all sizes", "[gaussian][property]") {
  const auto truth = test::two_lines();
  moe::RegressionData data{moe::Matrix<double>(40, 1), Eigen::VectorXd(40)};
  for (Index i = 0; i < 40; ++i) {
    data.x(i, 0) = i % 2 == 0 ? 1 + 0.125 * static_cast<double>(i) : -data.x(i - 1, 0);  // of mean 0
    data.y(i) = static_cast<double>((7 * i) % 11);
  }
  const moe::detail::RowBlocks rows(data, moe::detail::Standardisation::none(1));
  const moe::detail::Starts<> starts(
      rows, moe::layout(truth), truth.form(), [](double u) { return std::tanh(u); }, 5);
  for (const Index parity : {0, 1}) {
    std::set<double> sizes;
    for (Index search = parity; search < 12; search += 2)
      for (Index s = 12 * search; s < 12 * (search + 1); ++s) {
        const double normal = moe::RandomField(moe::Purpose::Initialise, 5, s).normal(0, 9);
        sizes.insert(std::round(100 * starts(s, truth).gate_slope(0, 0) / normal));
      }
    CAPTURE(parity);
    CHECK(sizes == std::set<double>{50, 100, 200, 400});
  }
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
  for (const Index n : {30, 50}) {
    Index right = 0, without = 0;
    for (std::uint64_t seed = 1; seed <= 10; ++seed) {
      const moe::RegressionData data = line(n, seed % 2 == 0 ? 2 : 0, seed);
      const auto best = [&](double support) {
        return moe::sweep_experts(data, {.least = 1, .most = 2}, moe::SoftmaxGate{}, {.support = support}).best_bic;
      };
      right += best(3) == 1;
      without += best(0) == 1;
    }
    CAPTURE(n);
    CHECK(right >= 9);  // a few per cent are taken for two: more than one of ten in less than 2 % of such tests
    CHECK(without < right);
  }
}

TEST_CASE("sweep_experts: the rule does not hide experts that are there", "[gaussian]") {
  for (const Index n : {200, 400})
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      CAPTURE(n, seed);
      const auto two = moe::sweep_experts(test::simulated(test::two_lines(), n, seed), {.least = 1, .most = 2});
      CHECK(two.best_bic == 2);
      const auto three = moe::sweep_experts(test::simulated(test::three_lines(), n, seed), {.least = 2, .most = 3});
      CHECK(three.best_bic == 3);
    }
}
