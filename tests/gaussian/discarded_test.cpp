// SPDX-License-Identifier: MIT
// A fit tells of ends of higher likelihood that it has given up.
#include <cmath>

#include "gaussian/fit_check.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/inference/bootstrap.hpp"
#include "support/catch.hpp"

using moe::Index;

namespace {

/// Two lines of which every third row has an output of exactly 0.
moe::RegressionData with_zeros(Index n) {
  auto data = test::simulated(test::two_lines(), n, 1);
  for (Index i = 0; i < n; i += 3) data.y(i) = 0;
  return data;
}

}  // namespace

TEST_CASE("fit: an end at the variance floor that was given up for a lower one is told, with its value", "[gaussian]") {
  const auto data = with_zeros(300);
  const moe::FitOptions options{.starts = 20};
  const auto fit = moe::fit(data, 3, moe::SoftmaxGate{}, options);
  REQUIRE_FALSE(fit.flags.at_floor);
  CHECK(fit.flags.discarded);
  // 100 rows at a variance of 1e-5 of Var(y), about 1e-5 each: log(1 / sqrt(2 pi 1e-5)) = 4.8 for each of them, which
  // is 4 more than with a variance of 1.
  CHECK(fit.discarded_log_likelihood > fit.log_likelihood + 100);
  double highest = -INFINITY;
  for (const moe::StartReport& run : fit.runs)
    if (!run.interior && run.log_likelihood > highest) highest = run.log_likelihood;
  CHECK(fit.discarded_log_likelihood >= highest);
  CHECK(test::FitCheck(data, options, fit)() == "");
}

TEST_CASE("fit: what short runs on a sample of the rows found counts by its value on all rows", "[gaussian]") {
  const auto data = with_zeros(240);
  const auto fit = moe::fit(data, 3, moe::SoftmaxGate{}, {.starts = 30, .short_rows = 100, .long_runs = 5});
  REQUIRE_FALSE(fit.flags.at_floor);
  CHECK(fit.flags.discarded);
  CHECK(fit.discarded_log_likelihood > fit.log_likelihood + 100);
}

TEST_CASE("fit: ordinary data give nothing up", "[gaussian]") {
  const auto data = test::simulated(test::two_lines(), 300, 1);
  const auto fit = moe::fit(data, 2);
  CHECK_FALSE(fit.flags.discarded);
  CHECK(std::isnan(fit.discarded_log_likelihood));
  CHECK(std::isnan(moe::fit_from(data, test::two_lines()).discarded_log_likelihood));
  const auto ridge = moe::fit(with_zeros(300), 3, moe::SoftmaxGate{}, {.starts = 20, .ridge = 0.1});
  CHECK(ridge.flags.discarded);
  CHECK(ridge.discarded_log_likelihood > ridge.penalised_log_likelihood + 100);
}

TEST_CASE("bootstrap: counts the refits that gave an end of higher likelihood up", "[gaussian]") {
  auto narrow = moe::GaussianMoe<>::zero(3, 1);
  const auto lines = test::two_lines();
  narrow.gate_slope.topRows(2) = lines.gate_slope;
  narrow.slope.topRows(2) = lines.slope;
  narrow.intercept << lines.intercept, 0;
  narrow.variance << lines.variance, 1e-10;  // what is drawn from it is at the floor of every refit
  const auto x = test::simulated(lines, 150, 2).x;
  const auto out = moe::bootstrap(narrow, x, {.replications = 3, .random_starts = 12});
  Index interior = 0;
  for (const bool usable : out.usable) interior += usable;
  CHECK(out.num_discarded >= interior);  // an interior refit is one that was preferred to the narrow expert
  CHECK(interior > 0);
  const auto plain = moe::bootstrap(lines, x, {.replications = 3, .random_starts = 3});
  CHECK(plain.num_discarded == 0);
}
