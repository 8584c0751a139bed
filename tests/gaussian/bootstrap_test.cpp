// SPDX-License-Identifier: MIT
#include "moe/gaussian/inference/bootstrap.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "gaussian/simulated.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;

}  // namespace

TEST_CASE("relabelled: undoes any order of the experts", "[gaussian][property]") {
  const auto truth = test::three_lines();
  const auto data = test::simulated(truth, 100, 7);
  std::vector<Index> order = {0, 1, 2};
  do {
    auto mixed = moe::detail::permuted(truth, order);
    moe::normalise(mixed);
    const auto back = moe::detail::relabelled(truth, mixed, data.x);
    CHECK(back.intercept == truth.intercept);
    CHECK((back.gate_slope - truth.gate_slope).cwiseAbs().maxCoeff() < 1e-14);
    CHECK((back.gate_bias - truth.gate_bias).cwiseAbs().maxCoeff() < 1e-14);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("bootstrap: the same for any number of threads", "[gaussian][property]") {
  const auto data = test::simulated(test::two_lines(), 120, 8);
  moe::BootstrapOptions options{.replications = 12, .random_starts = 2};
  options.fit.long_runs = 1;
  Index calls = 0, last = 0;
  options.progress = [&](Index done, Index all) {
    CHECK(all == 12);
    ++calls;
    last = done;
  };
  const auto serial = moe::bootstrap(test::two_lines(), data.x, options);
  test::ThreadExecutor threads(3);
  const moe::UseExecutor use(threads);
  const auto parallel = moe::bootstrap(test::two_lines(), data.x, options);
  CHECK(calls == 24);
  CHECK(last == 12);
  CHECK(serial.replicates == parallel.replicates);
  CHECK(serial.log_likelihood == parallel.log_likelihood);
}

TEST_CASE("bootstrap: agrees with standard errors where those are valid", "[gaussian][property]") {
  const auto data = test::simulated(test::two_lines(), 600, 9);
  const auto fit = moe::fit_from(data, test::two_lines());
  const moe::StandardErrors errors = moe::standard_errors(fit, data);
  constexpr Index kReplications = 200;
  const moe::Bootstrap boot = moe::bootstrap(fit, data.x, {.replications = kReplications});
  CHECK(boot.num_usable == kReplications);
  CHECK(boot.num_not_converged == 0);
  REQUIRE(boot.parameters.size() == errors.parameters.size());
  for (const auto& p : boot.parameters) {
    CAPTURE(p.name);
    const auto& other = errors[p.name];
    REQUIRE(p.error);
    CHECK(std::abs(p.estimate - other.estimate) < 1e-15);  // exp(log nu) against nu
    // standard deviation of 200 normal values: 5 % of it, four times; 10 % for observed against expected information
    CHECK(std::abs(p.error->standard_error / other.error->observed - 1) < 0.2 + 0.1);
    CHECK(p.error->lower < p.estimate);
    CHECK(p.error->upper > p.estimate);
  }
}

TEST_CASE("bootstrap: a free temperature is taken out, one active expert leaves the length of the gate", "[gaussian]") {
  const auto data = test::simulated(test::two_lines(), 150, 10);
  using Gate = moe::DenseToSparseGate<moe::LearnableTemperature>;
  moe::GaussianMoe<Gate> tempered(test::two_lines());
  tempered.temperature = 2;
  const auto boot = moe::bootstrap(tempered, data.x, {.replications = 8});
  CHECK(boot["beta1[0,0]/tau"].estimate == -1);
  CHECK_THROWS_WITH(boot["log tau"], ContainsSubstring("no parameter"));
  const moe::GaussianMoe<moe::TopKGate> hard(test::two_lines(), moe::TopKGate{.k = 1});
  const auto top1 = moe::bootstrap(hard, data.x, {.replications = 8});
  for (Index r = 0; r < 8; ++r) CHECK(std::abs(top1.replicates.row(r).head(2).norm() - std::hypot(2, 0.3)) < 1e-14);
}

TEST_CASE("bootstrap: keeps replicates in which an expert has few rows, as without them the spread is too small",
          "[gaussian]") {
  auto model = test::two_lines();
  model.gate_slope.setZero();
  model.gate_bias(0) = -1.5;  // 0.18 of 40 rows: fewer than the 2 (d + 2) = 6 of support in many samples
  const auto x = test::simulated(model, 40, 3).x;
  Index unsupported = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const auto flags = moe::fit_from({x, moe::sample(model, x, seed)}, model).flags;
    unsupported += flags.unsupported && !flags.collapsed();
  }
  REQUIRE(unsupported > 0);
  moe::BootstrapOptions options{.replications = 20};
  const auto boot = moe::bootstrap(model, x, options);
  options.fit.support = 0;  // one run from the model ends where it does, whatever the rule
  const auto other = moe::bootstrap(model, x, options);
  CHECK(boot.usable == other.usable);
  CHECK(boot.num_usable == other.num_usable);
  CHECK(boot.replicates == other.replicates);
}

TEST_CASE("bootstrap: percentiles and deviation of given values", "[gaussian]") {
  const auto error = moe::detail::bootstrap_error({4, 1, 3, 2, 5}, 2.5, 0.5);
  CHECK(std::abs(error.standard_error - std::sqrt(2.5)) < 1e-15);
  CHECK(std::abs(error.bias - 0.5) < 1e-15);
  CHECK(error.lower == 2);
  CHECK(error.upper == 4);
}

TEST_CASE("bootstrap: errors name what is wrong", "[gaussian][error]") {
  const moe::Matrix<double> x = moe::Matrix<double>::Random(20, 1);
  CHECK_THROWS_WITH(moe::bootstrap(test::two_lines(), x, {.replications = 1}), ContainsSubstring("replications is 1"));
  CHECK_THROWS_WITH(moe::bootstrap(test::two_lines(), x, {.level = 0}), ContainsSubstring("level is 0"));
  CHECK_THROWS_WITH(moe::bootstrap(test::two_lines(), x, {.random_starts = -1}), ContainsSubstring("random_starts"));
  CHECK_THROWS_WITH(moe::bootstrap(test::two_lines(), x.topRows(5), {}), ContainsSubstring("5 rows"));
}
