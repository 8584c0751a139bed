// SPDX-License-Identifier: MIT
// Experts without an intercept, in formulas, reports, predictions and files.
#include <cmath>
#include <string>
#include <vector>

#include "gaussian/simulated.hpp"
#include "moe/gaussian/design/regression.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/choose_experts.hpp"
#include "moe/gaussian/inference/cross_validation.hpp"
#include "moe/gaussian/inference/dendrogram.hpp"
#include "moe/gaussian/inference/prediction_intervals.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "moe/gaussian/inference/summary.hpp"
#include "moe/io/saved_fit.hpp"
#include "moe/likelihood.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"
#include "support/matrices.hpp"
#include "support/text.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Intercept;
using test::message_of;

/// Two lines through the origin, which the gate splits around 1.
moe::GaussianMoe<> two_rays() {
  auto model = moe::GaussianMoe<>::zero(2, 1);
  model.gate_slope(0, 0) = -2;
  model.gate_bias << 2, 0;
  model.slope << -1.5, 2;
  model.variance << 0.3, 0.15;
  model.expert_intercept = Intercept::Zero;
  return model;
}

moe::RegressionData data_of(const moe::GaussianMoe<>& model, Index n) {
  moe::RegressionData data{.x = test::random_matrix<double>(n, 1, 3)};
  data.x.array() += 1;
  data.y = moe::sample(model, data.x, 3);
  data.expert_intercept = Intercept::Zero;
  return data;
}

}  // namespace

TEST_CASE("no intercept: summaries, predictions, choices and files go with it", "[gaussian]") {
  const moe::DataFrame frame = [] {
    const auto rows = data_of(two_rays(), 200);
    const auto numbers = [](const char* name, const Eigen::VectorXd& column) {
      return moe::DataColumn{.name = name, .numbers = {column.begin(), column.end()}};
    };
    return moe::DataFrame{.num_rows = 200, .columns = {numbers("y", rows.y), numbers("x", rows.x.col(0))}};
  }();
  const auto r = moe::regression(frame, moe::parse_formula("y ~ x - 1"));
  CHECK(r.data().expert_intercept == Intercept::Zero);
  CHECK(moe::design_rows(r.design, frame).data.expert_intercept == Intercept::Zero);
  const auto fit = moe::fit(r.data(), 2);
  CHECK(fit.model.expert_intercept == Intercept::Zero);
  const std::string text = moe::summary(fit, r.data(), {.inputs = r.design.names()}).text();
  CHECK_THAT(text, !ContainsSubstring("intercept"));
  CHECK_THAT(text, ContainsSubstring("6 parameters"));
  const Eigen::VectorXd mean = moe::predict_mean(fit.model, moe::Matrix<double>(moe::Matrix<double>::Zero(1, 1)));
  CHECK(mean(0) == 0);
  const auto intervals = moe::prediction_intervals(fit, r.data(), r.data().x);
  Index inside = 0;
  for (Index i = 0; i < 200; ++i) inside += intervals.lower(i) < r.data().y(i) && r.data().y(i) < intervals.upper(i);
  CHECK(std::abs(double(inside) - 190) < 4 * std::sqrt(200 * 0.95 * 0.05));
  CHECK(moe::sweep_experts(r.data(), {1, 3}).best_bic == 2);
  CHECK(moe::cross_validate(r.data(), {1, 2}).rows.size() == 2);
  const test::TemporaryDirectory directory;
  moe::save_fit(directory / "fit.safetensors", fit, r.design);
  const auto saved = moe::load_fit(directory / "fit.safetensors");
  CHECK(saved.design == r.design);
  CHECK(saved.model.expert_intercept == Intercept::Zero);
  CHECK(saved.model.slope == fit.model.slope);
  moe::Design other = r.design;
  other.expert_intercept = Intercept::Free;
  CHECK_THAT(message_of([&] { moe::save_fit(directory / "g", fit, other); }), ContainsSubstring("has an intercept"));
}

TEST_CASE("no intercept: what does not go with it is refused by a sentence", "[gaussian][error]") {
  CHECK(moe::parse_formula("y ~ x - 1").intercept == Intercept::Zero);
  CHECK(moe::parse_formula("y ~ x + 0").intercept == Intercept::Zero);
  CHECK(moe::parse_formula("y ~ 0 + x | x").intercept == Intercept::Zero);
  CHECK(moe::parse_formula("y ~ -1 + x").terms.size() == 1);
  CHECK(moe::parse_formula("y ~ x - 1 + 1").intercept == Intercept::Free);
  CHECK(moe::parse_formula("y ~ x - 0").intercept == Intercept::Free);
  const auto refused = [](const auto& call, const char* why) { CHECK_THAT(message_of(call), ContainsSubstring(why)); };
  refused([] { moe::parse_formula("y ~ x | z - 1"); }, "has no intercept of the gate");
  const moe::DataFrame frame{.num_rows = 5,
                             .columns = {{.name = "y", .numbers = {1, 2, 4, 3, 2}},
                                         {.name = "x", .numbers = {0, 1, 3, 2, 5}},
                                         {.name = "one", .numbers = {1, 1, 1, 1, 1}}}};
  refused([&] { moe::regression(frame, moe::parse_formula("y ~ factor(x) - 1")); }, "without an intercept");
  refused([&] { moe::regression(frame, moe::parse_formula("y ~ x + one - 1")); }, "'one' is constant or follows");
  refused([&] { moe::regression(frame, moe::parse_formula("y ~ 0 | x")); }, "no intercept and no inputs");
  auto model = two_rays();
  moe::RegressionData data = data_of(model, 60);
  refused([&] { moe::fit_mixture<moe::Normal>(data, 2); }, "there is no intercept");
  refused([&] { moe::mixture_of<moe::Normal>(model); }, "no intercept");
  refused([&] { moe::dendrogram(model, data); }, "no intercept");
  refused([&] { moe::fit_from(data, test::two_lines()); }, "the data say no intercept");
  data.expert_inputs = std::vector<Index>();
  refused([&] { moe::fit(data, 2); }, "no intercept and no inputs");
  model.intercept(0) = 1;
  refused([&] { moe::log_likelihood(model, data); }, "an intercept is not 0");
}

// Lines through 0 at x = 200 are 200 times the difference of their slopes apart: a noise of 0.1 has 1e-6 of the
// variance of y, below the floor of few rows, which is there for what 200 rows cannot support.
TEST_CASE("no intercept: far from 0 a lower variance floor finds what the default is too high for", "[gaussian]") {
  moe::RegressionData data{.x = moe::Matrix<double>(200, 1), .y = Eigen::VectorXd(200)};
  const moe::RandomField random(moe::Purpose::User, 6, 19);
  for (Index i = 0; i < 200; ++i) {
    data.x(i, 0) = 200 + random.normal(i, 0);
    data.y(i) = (random.uniform(i, 1) < 0.5 ? 2 : 3) * data.x(i, 0) + 0.1 * random.normal(i, 2);
  }
  data.expert_intercept = Intercept::Zero;
  const auto high = moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 12});
  CHECK((high.flags.at_floor || high.flags.discarded));  // told
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 12, .variance_floor = 1e-8});
  CHECK(fit.converged);
  CHECK(fit.flags.interior());
  CHECK_FALSE(fit.flags.discarded);
  // A slope has a standard error of 0.1 / (200 sqrt(n_j)), n_j about 100: 5e-5.
  CHECK(std::abs(fit.model.slope.minCoeff() - 2) < 5 * 5e-5);
  CHECK(std::abs(fit.model.slope.maxCoeff() - 3) < 5 * 5e-5);
  CHECK(moe::standard_errors(fit, data).available());
  CHECK_FALSE(moe::standard_errors(fit.model, data).available());  // of a model that nobody knows the floor of
  CHECK((fit.model.variance.array() / 0.01 - 1).abs().maxCoeff() < 5 * std::sqrt(2.0 / 80));
}
