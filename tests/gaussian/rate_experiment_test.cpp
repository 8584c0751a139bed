// SPDX-License-Identifier: MIT
#include "moe/gaussian/theory/rate_experiment.hpp"

#include "gaussian/shared_fits.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

namespace {

using moe::Index;

moe::GaussianMoe<moe::SoftmaxGate> truth() {
  auto m = moe::GaussianMoe<moe::SoftmaxGate>::zero(2, 1);
  m.gate_slope(0, 0) = 3;
  m.gate_bias(0) = 0.5;
  m.slope << 1, -1;
  m.intercept << 1, -1;
  m.variance << 0.3, 0.4;
  return m;
}

moe::RateOptions small() {
  moe::RateOptions options{.rows = {200, 400, 800}, .replications = {4}, .distance_inputs = 16};
  options.slope.smallest_rows = 100;
  return options;
}

}  // namespace

TEST_CASE("rate_slope: a power of n is found, and the interval holds it", "[gaussian]") {
  const std::vector<Index> rows = {1000, 3000, 10000, 30000};
  const moe::RandomField random(moe::Purpose::User, 3);
  std::vector<std::vector<double>> exact, noisy;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const double loss = 7 * std::pow(static_cast<double>(rows[i]), -0.25);
    exact.push_back({loss, loss, loss});
    std::vector<double> values;
    for (Index r = 0; r < 40; ++r) values.push_back(loss * (0.5 + random.uniform(static_cast<Index>(i), r)));
    noisy.push_back(values);
  }
  const moe::RateSlope slope = moe::rate_slope(rows, exact, {});
  CHECK(std::abs(slope.slope + 0.25) < 1e-12);
  CHECK(std::abs(slope.constant - 7) < 1e-10);
  const moe::RateSlope measured = moe::rate_slope(rows, noisy, {});
  // Deviation of a mean of 40 uniform factors is 0.046; of the slope over these n, 0.018: five of them.
  CHECK(std::abs(measured.slope + 0.25) < 0.09);
  CHECK((measured.low < measured.slope && measured.slope < measured.high && measured.high - measured.low < 0.15));
}

TEST_CASE("rate_experiment: the same numbers for any number of threads", "[gaussian][property]") {
  const moe::RateExperiment alone = moe::rate_experiment(truth(), small());
  for (const Index threads : {2, 3}) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    const moe::RateExperiment result = moe::rate_experiment(truth(), small());
    for (const char* name : {"D", "hellinger", "excess", "beta1"}) {
      CAPTURE(threads, name);
      CHECK(result(name).values == alone(name).values);
      CHECK(result(name).slope_of_mean.low == alone(name).slope_of_mean.low);
    }
  }
}

TEST_CASE("rate_experiment: fits are never below the truth, and errors shrink", "[gaussian]") {
  moe::RateOptions options = small();
  options.rows = {200, 3200};
  options.replications = {12};
  const moe::RateExperiment result = moe::rate_experiment(truth(), options);
  for (const moe::RateFailures& failures : result.failures) CHECK(failures.below_truth + failures.thrown == 0);
  for (const auto& values : result("excess").values)
    for (const double value : values) CHECK(value >= 0);
  for (const char* name : {"D", "hellinger", "a", "nu"}) {
    CAPTURE(name);
    CHECK(result(name).mean[1] < 0.5 * result(name).mean[0]);  // 1/4 by theory
  }
}

TEST_CASE("rate_experiment: surplus experts start at every allocation, sparse borders are scanned", "[gaussian]") {
  moe::RateOptions options = small();
  options.rows = {400};
  options.num_experts = 3;
  const moe::RateExperiment over = moe::rate_experiment(truth(), options);
  CHECK(over.failures[0].below_truth == 0);
  CHECK(over("shared b").counts[0] > 0);
  moe::GaussianMoe<moe::TopKGate> sharp(truth(), moe::TopKGate{.k = 1});
  options.num_experts = 0;
  CHECK(moe::rate_experiment(sharp, options)("boundary").mean[0] < 0.1);
}

TEST_CASE("rate_experiment: bad options are refused by name", "[gaussian][error]") {
  moe::RateOptions options = small();
  options.rows = {400, 400};
  CHECK_THROWS_WITH(moe::rate_experiment(truth(), options),
                    "moe::rate_experiment: rows[1] is 400, expected ascending numbers >= 1");
  options = small();
  options.num_experts = 1;
  CHECK_THROWS_AS(moe::rate_experiment(truth(), options), std::invalid_argument);
  CHECK_THROWS_AS(moe::uniform_inputs(1, 1), std::invalid_argument);
  CHECK_THROWS_AS(moe::rate_experiment(truth(), small())("nothing"), std::invalid_argument);
}
