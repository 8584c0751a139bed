// SPDX-License-Identifier: MIT
#include "moe/gaussian/fit/fit.hpp"

#include "gaussian/fit_check.hpp"
#include "gaussian/mixtures.hpp"
#include "gaussian/shared_fits.hpp"
#include "moe/gaussian/predict/sample.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

namespace {

using moe::Index;

moe::RegressionData drawn(Index n, std::uint64_t seed) {
  auto truth = moe::GaussianMoe<moe::SoftmaxGate>::zero(2, 1);
  truth.gate_slope(0, 0) = 3;
  truth.slope << 1, -1;
  truth.intercept << -1, 1;
  truth.variance << 0.2, 0.3;
  const moe::RandomField random(moe::Purpose::User, seed);
  moe::RegressionData data{moe::Matrix<double>(n, 1), {}};
  for (Index i = 0; i < n; ++i) data.x(i, 0) = 2 * random.uniform(i) - 1;
  data.y = moe::sample(truth, data.x, seed);
  return data;
}

}  // namespace

TEST_CASE("fit: the same bits for any number of threads", "[gaussian][property]") {
  const moe::RegressionData data = drawn(1500, 3);
  const moe::FitOptions options{.starts = 8, .short_rows = 500};
  const auto alone = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  for (const Index threads : {1, 2, 3}) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
    CAPTURE(threads);
    CHECK(fit.log_likelihood == alone.log_likelihood);
    CHECK(fit.model.slope == alone.model.slope);
    CHECK(fit.path == alone.path);
  }
}

TEST_CASE("fit: another unit and origin of the data change nothing but scales", "[gaussian][property]") {
  const moe::RegressionData data = drawn(600, 4);
  moe::RegressionData moved{(100 + 7 * data.x.array()).matrix(), (3 * data.y.array() - 50).matrix()};
  const auto a = moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 6}),
             b = moe::fit(moved, 2, moe::SoftmaxGate{}, {.starts = 6});
  // Both end within 1e-6 of the maximum (remaining_tolerance).
  CHECK(std::abs(b.log_likelihood - (a.log_likelihood - 600 * std::log(3.0))) < 1e-5);
  CHECK(std::abs(b.model.variance(0) / a.model.variance(0) - 9) < 1e-3);
  CHECK(std::abs(b.model.gate_slope(0, 0) * 7 / a.model.gate_slope(0, 0) - 1) < 1e-3);
}

TEST_CASE("fit: gates without a bias to take up a shift of x fit other units of x alike", "[gaussian][property]") {
  const moe::RegressionData data = drawn(300, 6), moved{0.01 * data.x, (3 * data.y.array() - 50).matrix()};
  const auto check = [&](const auto& gate) {
    const auto a = moe::fit(data, 2, gate, {.starts = 6}), b = moe::fit(moved, 2, gate, {.starts = 6});
    CHECK(std::abs(b.log_likelihood - (a.log_likelihood - 300 * std::log(3.0))) < 1e-5);  // as above
    CHECK(std::abs(b.model.temperature / a.model.temperature - 1) < 1e-3);
  };
  check(moe::TopKGate{.k = 2, .weight_bias = Eigen::RowVectorXd::Zero(2)});
  check(moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>{});
}

TEST_CASE("fit: EM alone, Newton and L-BFGS end at the same maximum", "[gaussian]") {
  const moe::RegressionData data = drawn(500, 8);
  const auto with = [&](moe::DirectMethod direct, moe::GateStep step) {
    const moe::FitOptions options{.starts = 5, .max_iterations = 20'000, .gate_step = step, .direct = direct};
    const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
    CHECK(fit.converged);
    CHECK(test::FitCheck(data, options, fit)() == "");
    return fit.log_likelihood;
  };
  const double newton = with(moe::DirectMethod::Newton, moe::GateStep::Newton);
  // Each is within the remaining_tolerance of 1e-6 of the maximum.
  CHECK(std::abs(with(moe::DirectMethod::QuasiNewton, moe::GateStep::Newton) - newton) < 2e-6);
  CHECK(std::abs(with(moe::DirectMethod::Off, moe::GateStep::Newton) - newton) < 2e-6);
  CHECK(std::abs(with(moe::DirectMethod::Off, moe::GateStep::Majorise) - newton) < 2e-6);
}

TEST_CASE("fit: short runs on a sample of the rows lead to the maximum of all rows", "[gaussian]") {
  const moe::RegressionData data = drawn(2500, 9);
  const moe::FitOptions options{.starts = 8, .short_rows = 500};
  const auto sampled = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  const auto full = moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 8});
  CHECK(sampled.converged);
  CHECK(std::abs(sampled.log_likelihood - full.log_likelihood) < 2e-6);
  CHECK(test::FitCheck(data, options, sampled)() == "");
  // Criteria of short runs are scaled up from 500 rows: in the range of those of all.
  for (const moe::StartReport& start : sampled.runs) CHECK(start.short_log_likelihood < sampled.log_likelihood + 250);
}

TEST_CASE("fit: a ridge leaves the gate of one active expert alone", "[gaussian]") {
  const moe::RegressionData data = drawn(200, 11);
  const auto check = [&](moe::Index k, const moe::RegressionData& rows) {
    const moe::FitOptions plain{.starts = 4}, ridge{.starts = 4, .ridge = 1};
    const auto a = moe::fit(rows, k, moe::TopKGate{.k = 1}, plain), b = moe::fit(rows, k, moe::TopKGate{.k = 1}, ridge);
    CHECK(b.penalised_log_likelihood == b.log_likelihood);
    CHECK(b.log_likelihood == a.log_likelihood);
    CHECK(b.model.gate_slope.cwiseAbs().maxCoeff() > 1e-3);
    CHECK(test::FitCheck(rows, ridge, b)() == "");
  };
  check(2, data);
  moe::RegressionData wide{moe::Matrix<double>(200, 2), data.y};
  wide.x << data.x, data.x.array().square().matrix();
  check(3, wide);
}

TEST_CASE("fit_from: from the truth, never below the likelihood of the truth", "[gaussian]") {
  const auto check = [](const auto& gate, Index k) {
    for (const std::uint64_t seed : {1U, 2U, 3U}) {
      auto truth = moe::GaussianMoe<std::decay_t<decltype(gate)>>::zero(k, 1, gate);
      for (Index j = 0; j < k; ++j) {
        truth.intercept(j) = 2.0 * static_cast<double>(j);
        truth.gate_slope(j, 0) = 2.0 * static_cast<double>(k - 1 - j);
      }
      truth.variance.setConstant(0.1);
      moe::RegressionData data = drawn(400, seed);
      data.y = moe::sample(truth, data.x, seed);
      const auto fit = moe::fit_from(data, truth);
      CAPTURE(seed, k);
      CHECK(fit.log_likelihood >= moe::log_likelihood(truth, data));
    }
  };
  check(moe::SoftmaxGate{}, 3);
  check(moe::DenseToSparseGate<moe::LearnableTemperature>{}, 2);
  check(moe::TopKGate{.k = 2}, 3);
  check(moe::TopKGate{.k = 1}, 2);
  check(moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>{}, 2);
}

TEST_CASE("fit: degenerate data end with flags", "[gaussian]") {
  moe::RegressionData data = drawn(80, 2);
  data.y = 2 * data.x.col(0);
  CHECK(moe::fit(data, 1).flags.at_floor);
  data.y.setConstant(3);
  CHECK(moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 3}).flags.at_floor);
  for (Index i = 0; i < 80; ++i)
    data.y(i) = data.x(i, 0) > 0 ? 10 + data.x(i, 0) * data.x(i, 0) : data.x(i, 0) * data.x(i, 0);
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 5});
  CHECK(fit.flags.separated);
  CHECK(test::FitCheck(data, moe::FitOptions{.starts = 5}, fit)() == "");
}

TEST_CASE("fit: exact lines, ties and two lines that meet end finite and consistent", "[gaussian]") {
  moe::RegressionData data = drawn(90, 12);
  const auto check = [&](const char* kind, Index k, bool at_floor) {
    const moe::FitOptions options{.starts = 4};
    const auto fit = moe::fit(data, k, moe::SoftmaxGate{}, options);
    CAPTURE(kind, k);
    CHECK(test::FitCheck(data, options, fit)() == "");
    if (at_floor) CHECK(fit.flags.at_floor);
  };
  data.y = (2 * data.y.array()).round();
  check("ties", 2, false);
  check("ties", 3, false);
  data.y = (1 - 2 * data.x.col(0).array()).matrix();
  check("a line", 2, true);
  data.y = data.x.col(0).cwiseAbs();
  check("two lines", 2, true);
}
