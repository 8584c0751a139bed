// SPDX-License-Identifier: MIT
#include "moe/gaussian/fit.hpp"

#include <string>

#include "catch.hpp"
#include "gaussian/fit_check.hpp"
#include "gaussian/mixtures.hpp"
#include "gaussian/reference_data.hpp"
#include "moe/gaussian/sample.hpp"
#include "thread_executor.hpp"

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

std::string message(const moe::RegressionData& data, Index k, const moe::FitOptions& options = {}) {
  try {
    moe::fit(data, k, moe::SoftmaxGate{}, options);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("fit: the best known maxima of published data, from the starts that others needed", "[gaussian][golden]") {
  struct Entry {
    const char* name;
    Index k, starts;
    double ridge, best;
  };
  // Independent multi-start runs of another program; see tests/data/gaussian/README.md.
  const Entry entries[] = {
      {"tonedata", 2, 150, 0, 145.65031501366053},        {"tonedata", 2, 150, 0.01, 145.64888423306914},
      {"mcycle", 2, 150, 0, -614.536741901036},           {"mcycle", 2, 150, 0.01, -618.1713266673175},
      {"mcycle", 3, 450, 0.01, -585.2109744340115},       {"mcycle", 4, 350, 0.01, -559.4047017896952},
      {"faithful", 2, 150, 0, -96.05158145377627},        {"faithful", 2, 150, 0.01, -96.48433563111196},
      {"faithful", 3, 450, 0, -80.70818419230636},        {"faithful", 3, 450, 0.01, -81.18765378811132},
      {"tempanomalies", 2, 150, 0.01, 98.9396641995974},  {"sim_k2_d1_n1000", 2, 12, 0, -1052.0922843770124},
      {"sim_k2_d5_n1000", 2, 12, 0, -1058.7919024856851}, {"sim_k3_d1_n1000", 3, 12, 0, -1159.5374858197697},
      {"sim_k3_d5_n1000", 3, 12, 0, -1140.9847482972436}};
  for (const Entry& entry : entries) {
    const moe::RegressionData data = test::reference_data(entry.name);
    const moe::FitOptions options{.starts = entry.starts, .ridge = entry.ridge};
    const auto fit = moe::fit(data, entry.k, moe::SoftmaxGate{}, options);
    CAPTURE(entry.name, entry.k, entry.ridge);
    CHECK(fit.converged);
    CHECK(std::abs(fit.penalised_log_likelihood - entry.best) < 1e-3);
    CHECK(test::FitCheck(data, options, fit)() == "");
  }
}

TEST_CASE("fit: activation and sparse gates reach the reference", "[gaussian][golden]") {
  const auto tau = moe::LearnableTemperature::starting_at(0.5);
  const auto best = [](const char* name, Index k, const auto& gate) {
    return moe::fit(test::reference_data(name), k, gate, {.starts = 20}).log_likelihood;
  };
  using Sigmoid = moe::ActivationGate<moe::Sigmoid, moe::LearnableTemperature>;
  using Tanh = moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>;
  CHECK(std::abs(best("sim_act_sigmoid_k2_d1_n5000", 2, Sigmoid{.sparse = {.temperature = tau}}) + 5616.446714571965) <
        1e-3);
  CHECK(std::abs(best("sim_act_tanh_k2_d1_n5000", 2, Tanh{.sparse = {.temperature = tau}}) + 5926.169926804205) < 1e-3);
  const moe::TopKGate inner{.k = 2, .weight_bias = Eigen::RowVectorXd::Zero(3)};
  CHECK(std::abs(best("sim_top2of3_innerproduct_d1_n5000", 3, inner) + 6158.897215443851) < 1e-3);
  const moe::RegressionData data = test::reference_data("sim_top1of2_logit_d1_n2000");
  const auto fit = moe::fit(data, 2, moe::TopKGate{.k = 1}, {.starts = 20});
  CHECK(std::abs(fit.log_likelihood + 646.4175677265532) < 1e-6);  // the exact scan
  const double border =
      (fit.model.gate_bias(1) - fit.model.gate_bias(0)) / (fit.model.gate_slope(0, 0) - fit.model.gate_slope(1, 0));
  CHECK((border > 0.3199420597 && border < 0.3200614945));
}

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

TEST_CASE("fit_from: from the truth, never below the likelihood of the truth", "[gaussian]") {
  const auto check = [](const auto& gate, Index k) {
    for (const std::uint64_t seed : {1, 2, 3}) {
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
  check(moe::TopKGate{.k = 2}, 3);
  check(moe::TopKGate{.k = 1}, 2);
  check(moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>{}, 2);
}

TEST_CASE("fit: bad input is refused by name", "[gaussian][error]") {
  const moe::RegressionData good = drawn(60, 1);
  moe::RegressionData data = good;
  data.y(7) = std::nan("");
  CHECK(has(message(data, 2), "moe::fit: y is nan in row 7"));
  data = good;
  data.x.setConstant(4);
  CHECK(has(message(data, 2), "column 0 of x is constant, 4"));
  data = {moe::Matrix<double>(60, 2), good.y};
  data.x << good.x, 3 * good.x;
  CHECK(has(message(data, 2), "columns 0 and 1 of x are the same up to shift and scale"));
  CHECK(has(message(good, 0), "num_experts is 0"));
  CHECK(has(message(good, 40), "there are 60 rows, expected at least as many as parameters, 198"));
  CHECK(has(message({}, 2), "expected at least one row"));
  CHECK(has(message({good.x, good.y.head(3)}, 2), "y has 3 rows, expected as many as x = 60"));
  CHECK(has(message(good, 2, {.starts = 0}), "starts is 0"));
  CHECK(has(message(good, 2, {.ridge = -1}), "ridge is -1"));
  CHECK_THROWS_AS(moe::fit(good, 2, moe::TopKGate{.k = 3}), std::invalid_argument);
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
