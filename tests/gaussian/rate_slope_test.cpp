// SPDX-License-Identifier: MIT
#include "moe/gaussian/theory/rate_slope.hpp"

#include "gaussian/models.hpp"
#include "moe/gaussian/theory/rate_experiment.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;
using Losses = std::vector<std::vector<double>>;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();

/// constant n^slope times a lognormal of deviation 0.7, `count` times at each n.
Losses noisy(const std::vector<Index>& rows, double slope, Index count, int seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  Losses losses(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i)
    for (Index r = 0; r < count; ++r)
      losses[i].push_back(3 * std::pow(static_cast<double>(rows[i]), slope) *
                          std::exp(0.7 * random.normal(static_cast<Index>(i), r)));
  return losses;
}

moe::GaussianMoe<moe::SoftmaxGate> truth() {
  return {test::parameters_of(
      {.gate_slope = {3, 0}, .gate_bias = {0.5, 0}, .slope = {1, -1}, .intercept = {1, -1}, .variance = {0.3, 0.4}})};
}

/// An estimator that throws on one row number and else answers the start, not converged.
moe::GaussianFit<moe::SoftmaxGate> guess(const moe::RegressionData& data,
                                         const moe::GaussianMoe<moe::SoftmaxGate>& start) {
  if (data.num_rows() == 50) moe::fail("no fit of 50 rows");
  return {.model = start, .log_likelihood = moe::log_likelihood(start, data), .converged = false};
}

}  // namespace

TEST_CASE("rate_slope: medians ignore outliers, missing values and small n are left out", "[gaussian]") {
  const std::vector<Index> rows = {100, 1000, 10'000, 100'000};
  Losses losses;
  for (const Index n : rows) {
    const double loss = 2 / std::sqrt(static_cast<double>(n));
    losses.push_back({loss, loss, kNaN, 1e6, kInfinity, loss});
  }
  losses[0] = {1e9, 1e9};  // below smallest_rows
  const moe::RateSlope median = moe::rate_slope(rows, losses, {.statistic = moe::RateStatistic::Median});
  CHECK(std::abs(median.slope + 0.5) < 1e-12);
  CHECK(std::abs(median.constant - 2) < 1e-10);
  CHECK(std::abs(moe::rate_slope(rows, losses).slope) < 0.01);  // of means: the outlier's
}

TEST_CASE("rate_slope: intervals hold the true slope about as often as they say", "[gaussian][property]") {
  const std::vector<Index> rows = {1000, 3162, 10'000, 31'623, 100'000};
  for (const auto statistic : {moe::RateStatistic::Mean, moe::RateStatistic::Median}) {
    int held = 0;
    for (int seed = 0; seed < 100; ++seed) {
      const moe::RateSlope slope =
          moe::rate_slope(rows, noisy(rows, -0.5, 20, seed), {.statistic = statistic, .bootstrap_draws = 200});
      CHECK(std::abs(slope.slope + 0.5) < 0.22);  // standard error 0.7 (median: 0.88) / sqrt(20) / 3.64: five of them
      held += slope.low <= -0.5 && -0.5 <= slope.high;
    }
    // Percentile intervals of 20 values are short by a few per cent: 92 of 100 expected, deviation 2.7; four of them.
    CHECK(held >= 81);
    CHECK(held < 100);
  }
}

TEST_CASE("rate_slope: a pure function of its arguments; without two n there is no slope", "[gaussian]") {
  const std::vector<Index> rows = {1000, 10'000};
  const Losses losses = noisy(rows, -1, 5, 1);
  CHECK(moe::rate_slope(rows, losses, {.seed = 4}).low == moe::rate_slope(rows, losses, {.seed = 4}).low);
  CHECK(moe::rate_slope(rows, losses, {.seed = 4}).low != moe::rate_slope(rows, losses, {.seed = 5}).low);
  CHECK(std::isnan(moe::rate_slope(rows, losses, {.smallest_rows = 5000}).slope));
  CHECK(std::isnan(moe::rate_slope(rows, Losses{{0, 0}, {1, 2}}, {}).slope));
  CHECK(std::isnan(moe::rate_slope(rows, losses, {.bootstrap_draws = 0}).low));
  CHECK_THROWS_WITH(moe::rate_slope(rows, Losses{{1}}, {}),
                    "moe::rate_slope: losses has 1 entries, expected one per n = 2");
  CHECK_THROWS_WITH(moe::rate_slope(rows, losses, {.level = 1}),
                    "moe::rate_slope: level is 1, expected a number in (0, 1)");
}

TEST_CASE("rate_experiment: fits that throw, stop early or lose to the truth are counted", "[gaussian]") {
  moe::RateOptions options{.rows = {50, 60, 2000}, .replications = {3}, .distance_inputs = 4};
  options.noise.expert = {.scale = 1};  // a start far from the maximum
  const moe::RateExperiment result = moe::rate_experiment(truth(), options, guess);
  CHECK((result.failures[0].thrown == 3 && result.failures[0].first_error == "no fit of 50 rows"));
  CHECK(
      (result.failures[2].thrown == 0 && result.failures[2].not_converged == 3 && result.failures[2].below_truth == 3));
  CHECK((result("D").counts == std::vector<Index>{0, 3, 3} && std::isnan(result("D").mean[0])));
}

TEST_CASE("rate_experiment: draws do not depend on the estimator, and progress ends at 1", "[gaussian]") {
  moe::RateOptions options{.rows = {60, 90}, .replications = {4, 2}, .distance_inputs = 0};
  std::vector<double> fractions;
  options.progress = [&](const moe::RateProgress& p) { fractions.push_back(p.fraction); };
  const auto shifted = [](double by) {  // answers with a digest of the data as its iterations
    return [by](const moe::RegressionData& data, const moe::GaussianMoe<moe::SoftmaxGate>& start) {
      auto fit = guess(data, start);
      fit.iterations = static_cast<Index>(1e6 * (data.y.sum() + data.x.sum()));
      fit.model.intercept.array() += by;
      return fit;
    };
  };
  const moe::RateExperiment one = moe::rate_experiment(truth(), options, shifted(0));
  CHECK((fractions.size() == 6 && std::is_sorted(fractions.begin(), fractions.end()) && fractions.back() == 1));
  const moe::RateExperiment two = moe::rate_experiment(truth(), options, shifted(1));
  const auto& digests = one("iterations").values;
  CHECK((digests == two("iterations").values && one("b").values != two("b").values));
  CHECK((digests[0].size() == 4 && digests[1].size() == 2 && digests[0][0] != digests[0][1]));
}
