// SPDX-License-Identifier: MIT
// A gate that reads other columns of x than the experts do: y ~ x | z.
#include <Eigen/QR>
#include <cmath>
#include <string>
#include <vector>

#include "gaussian/samples.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/bootstrap.hpp"
#include "moe/gaussian/inference/choose_experts.hpp"
#include "moe/gaussian/inference/summary.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using test::message_of;
using Columns = std::vector<Index>;

/// The data, read as a model does.
template <class G>
moe::RegressionData read_as(const moe::GaussianMoe<G>& model, moe::RegressionData data) {
  data.gate_inputs = model.gate_inputs;
  data.expert_inputs = model.expert_inputs;
  return data;
}

/// The model without the coefficients of other columns.
template <class Model>
Model restricted(Model model, const moe::InputColumns& gate, const moe::InputColumns& experts) {
  model.gate_inputs = gate;
  model.expert_inputs = experts;
  for (Index c = 0; c < model.input_dim(); ++c) {
    if (!moe::detail::reads(gate, c)) model.gate_slope.col(c).setZero();
    if (!moe::detail::reads(experts, c)) model.slope.col(c).setZero();
  }
  return model;
}

/// Experts read columns 0 and 1, the gate 1 and 2.
moe::GaussianMoe<> overlapping() {
  auto model = moe::GaussianMoe<>::zero(2, 3);
  model.gate_slope.row(0) << 0, 1.5, -2;
  model.gate_bias << 0.4, 0;
  model.slope << -1.5, 0.5, 0, 1.5, 1, 0;
  model.intercept << -1, 1.5;
  model.variance << 0.3, 0.15;
  return restricted(model, Columns{1, 2}, Columns{0, 1});
}

/// X [n, inputs + 1] of some columns, and ones.
Eigen::MatrixXd with_ones(const moe::Matrix<double>& x, const Columns& columns) {
  Eigen::MatrixXd out(x.rows(), std::ssize(columns) + 1);
  out << x(Eigen::all, columns), Eigen::VectorXd::Ones(x.rows());
  return out;
}

/// Two experts by EM as in the books: weighted least squares by QR, logistic regression by Newton's method, until
/// nothing moves.
struct PlainEm {
  Eigen::VectorXd gate;  // of expert 0 against expert 1
  Eigen::MatrixXd line;  // [inputs + 1, 2]
  Eigen::Vector2d variance;
  double log_likelihood = 0;

  PlainEm(const moe::RegressionData& data, const moe::GaussianMoe<>& start) {
    const Columns of_gate = *start.gate_inputs, of_experts = *start.expert_inputs;
    const Eigen::MatrixXd z = with_ones(data.x, of_gate), x = with_ones(data.x, of_experts);
    gate.resize(z.cols());
    gate << start.gate_slope(0, of_gate).transpose(), start.gate_bias(0);
    line.resize(x.cols(), 2);
    for (Index j = 0; j < 2; ++j) line.col(j) << start.slope(j, of_experts).transpose(), start.intercept(j);
    variance = start.variance.transpose();
    double before = -INFINITY;
    for (int i = 0; i < 3000 && std::abs(log_likelihood - before) > 1e-11; ++i) {
      before = log_likelihood;
      step(data.y, z, x);
    }
  }

  void step(const Eigen::VectorXd& y, const Eigen::MatrixXd& z, const Eigen::MatrixXd& x) {
    Eigen::VectorXd r(y.size());  // of expert 0
    log_likelihood = 0;
    for (Index i = 0; i < y.size(); ++i) {
      const double pi = 1 / (1 + std::exp(-z.row(i).dot(gate)));
      const double a = pi * density(y(i), x.row(i), 0), b = (1 - pi) * density(y(i), x.row(i), 1);
      r(i) = a / (a + b);
      log_likelihood += std::log(a + b);
    }
    for (Index j = 0; j < 2; ++j) {
      const Eigen::VectorXd w = j == 0 ? r : Eigen::VectorXd(1 - r.array()), root = w.cwiseSqrt();
      line.col(j) = (root.asDiagonal() * x).colPivHouseholderQr().solve(root.cwiseProduct(y));
      variance(j) = w.dot((y - x * line.col(j)).cwiseAbs2()) / w.sum();
    }
    for (int i = 0; i < 2; ++i) {
      const Eigen::VectorXd pi = (1 + (-(z * gate).array()).exp()).inverse().matrix();
      const Eigen::VectorXd weight = pi.array() * (1 - pi.array());
      gate += (z.transpose() * weight.asDiagonal() * z).ldlt().solve(z.transpose() * (r - pi));
    }
  }

  template <class Row>
  double density(double y, const Row& x, Index j) const {
    const double e = y - x.dot(line.col(j));
    return std::exp(-0.5 * e * e / variance(j)) / std::sqrt(2 * M_PI * variance(j));
  }
};

/// Requires score and information to be the derivatives of the log-likelihood, by central differences.
template <class Gate>
void require_derivatives(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  const moe::ParameterLayout at = moe::layout(model);
  const Eigen::VectorXd theta = moe::pack(model, at), score = moe::score(model, data);
  const Eigen::MatrixXd information = moe::observed_information(model, data);
  REQUIRE(score.size() == at.size());
  constexpr double h = 1e-5;
  const double scale = 1 + score.cwiseAbs().maxCoeff() + information.cwiseAbs().maxCoeff();
  for (Index i = 0; i < at.size(); ++i) {
    auto up = model, down = model;
    moe::unpack(theta + h * Eigen::VectorXd::Unit(at.size(), i), at, up);
    moe::unpack(theta - h * Eigen::VectorXd::Unit(at.size(), i), at, down);
    CAPTURE(at.names()[static_cast<std::size_t>(i)]);
    const double slope = (moe::log_likelihood(up, data) - moe::log_likelihood(down, data)) / (2 * h);
    CHECK(std::abs(score(i) - slope) < 1e-7 * scale);  // h^2 of third derivatives, and 1e-16 / h of the sum
    const Eigen::VectorXd bend = (moe::score(down, data) - moe::score(up, data)) / (2 * h);
    CHECK((information.col(i) - bend).cwiseAbs().maxCoeff() < 1e-7 * scale);
  }
}

/// Requires the score of a restricted model to be the same numbers as the model with all parameters has there.
template <class Gate>
void require_part_of_all(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  auto all = model;
  all.gate_inputs = all.expert_inputs = {};
  const moe::ParameterLayout part = moe::layout(model), whole = moe::layout(all);
  const Eigen::VectorXd score = moe::score(all, data);
  const Eigen::MatrixXd information = moe::observed_information(all, data);
  std::vector<Index> kept;
  const std::vector<std::string> names = whole.names(), some = part.names();
  for (const std::string& name : some) kept.push_back(std::find(names.begin(), names.end(), name) - names.begin());
  CHECK(moe::log_likelihood(model, data) == moe::log_likelihood(all, data));
  CHECK(moe::score(model, data) == Eigen::VectorXd(score(kept)));
  CHECK(moe::observed_information(model, data) == Eigen::MatrixXd(information(kept, kept)));
  CHECK(moe::score_covariance(model, data) == Eigen::MatrixXd(moe::score_covariance(all, data)(kept, kept)));
}

}  // namespace

TEST_CASE("gate_inputs: score and information are derivatives in what is free", "[gaussian]") {
  const auto check = [](const auto& model, const moe::InputColumns& gate, const moe::InputColumns& experts) {
    const auto part = restricted(model, gate, experts);
    const moe::RegressionData data = test::sample_data(part, 150);
    require_part_of_all(part, data);
    require_derivatives(part, data);
  };
  const auto softmax = test::sample_model(3, 4, moe::SoftmaxGate{});
  check(softmax, Columns{1, 3}, Columns{0, 1});
  check(softmax, Columns{}, Columns{0, 1, 2, 3});
  check(softmax, Columns{0, 2}, Columns{});
  check(softmax, {}, Columns{2});
  check(test::sample_model(4, 9, moe::TopKGate{.k = 3}), Columns{0, 8}, Columns{2, 3, 7});
  check(test::sample_model(3, 2, test::FreeTemperatureGate{.temperature = moe::LearnableTemperature::starting_at(1.4)}),
        Columns{0}, Columns{1});
}

TEST_CASE("gate_inputs: all columns given are the model without any, to the bit", "[gaussian]") {
  const auto truth = test::two_lines();
  const moe::RegressionData data = test::simulated(truth, 200, 5);
  const moe::FitOptions options{.starts = 5};
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  auto said = data;
  said.gate_inputs = said.expert_inputs = Columns{0};
  const auto same = moe::fit(said, 2, moe::SoftmaxGate{}, options);
  CHECK(fit.log_likelihood == same.log_likelihood);
  CHECK(fit.model.gate_slope == same.model.gate_slope);
  CHECK(fit.model.slope == same.model.slope);
  CHECK(moe::standard_errors(fit, data).observed == moe::standard_errors(same, data).observed);
}

TEST_CASE("gate_inputs: of z = x in a column of its own all numbers are those of one column", "[gaussian]") {
  const auto truth = test::two_lines();
  const moe::RegressionData data = test::simulated(truth, 200, 5);
  moe::RegressionData twice = data;
  twice.x.resize(200, 2);
  twice.x << data.x, data.x;
  auto start = moe::GaussianMoe<>::zero(2, 2);
  start.gate_slope.col(1) = truth.gate_slope;
  start.slope.col(0) = truth.slope;
  start.gate_bias = truth.gate_bias;
  start.intercept = truth.intercept;
  start.variance = truth.variance;
  start = restricted(start, Columns{1}, Columns{0});
  const auto fit = moe::fit_from(data, truth), apart = moe::fit_from(twice, start);
  CHECK(std::abs(fit.log_likelihood - apart.log_likelihood) < 1e-9 * std::abs(fit.log_likelihood));
  CHECK((fit.model.slope.col(0) - apart.model.slope.col(0)).cwiseAbs().maxCoeff() < 1e-9);
  CHECK((fit.model.gate_slope.col(0) - apart.model.gate_slope.col(1)).cwiseAbs().maxCoeff() < 1e-9);
  CHECK(apart.model.gate_slope.col(0).isZero(0));
  CHECK(apart.model.slope.col(1).isZero(0));
  const auto errors = moe::standard_errors(fit, data), others = moe::standard_errors(apart, twice);
  REQUIRE(others.available());
  CHECK((errors.observed - others.observed).cwiseAbs().maxCoeff() < 1e-9);
  CHECK((errors.sandwich - others.sandwich).cwiseAbs().maxCoeff() < 1e-9);
  CHECK(moe::criteria(fit, data).num_parameters == moe::criteria(apart, twice).num_parameters);
  CHECK((moe::predict_mean(fit.model, data.x) - moe::predict_mean(apart.model, twice.x)).cwiseAbs().maxCoeff() < 1e-9);
}

TEST_CASE("gate_inputs: a fit ends where EM by the book does", "[gaussian]") {
  const auto truth = overlapping();
  const moe::RegressionData data = read_as(truth, test::simulated(truth, 400, 3));
  const PlainEm expected(data, truth);
  for (const auto step : {moe::GateStep::Newton, moe::GateStep::Majorise}) {
    const moe::FitOptions options{.gate_step = step};
    const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
    CHECK(fit.converged);
    CHECK(std::abs(fit.log_likelihood - expected.log_likelihood) < 1e-6);
    for (Index c = 0; c < 2; ++c) {
      CHECK(std::abs(fit.model.gate_slope(0, c + 1) - expected.gate(c)) < 1e-4);  // of a score of 1e-6 per row
      for (Index j = 0; j < 2; ++j) CHECK(std::abs(fit.model.slope(j, c) - expected.line(c, j)) < 1e-4);
    }
    CHECK(fit.model.gate_slope.col(0).isZero(0));
    CHECK(fit.model.slope.col(2).isZero(0));
    CHECK(fit.num_parameters == 11);
  }
}

TEST_CASE("gate_inputs: standard errors invert the information, and summaries name the columns", "[gaussian]") {
  const auto truth = overlapping();
  const moe::RegressionData data = test::simulated(truth, 400, 7);
  const auto fit = moe::fit_from(data, truth);
  const auto errors = moe::standard_errors(fit, data);
  REQUIRE(errors.available());
  const Eigen::MatrixXd covariance = moe::observed_information(fit.model, data).inverse();
  CHECK((errors.observed - covariance).cwiseAbs().maxCoeff() < 1e-8 * covariance.cwiseAbs().maxCoeff());
  CHECK(errors["beta1[0,2]"].estimate == fit.model.gate_slope(0, 2));
  CHECK(errors["a[1,0]"].estimate == fit.model.slope(1, 0));
  CHECK_THROWS_AS(errors["beta1[0,0]"], std::invalid_argument);
  const auto summary = moe::summary(fit, data, {.inputs = {"dose", "age", "site"}});
  CHECK(summary.blocks[0].lines[2].label == "site");
  CHECK(summary.blocks[1].lines[1].label == "dose");
  CHECK(summary.blocks[1].lines.size() == 4);
  CHECK_THAT(summary.text(), ContainsSubstring("3 inputs (2 of the experts, 2 of the gate), 2 experts"));
  const moe::Bootstrap bootstrap = moe::bootstrap(fit, data.x, {.replications = 4, .random_starts = 1});
  CHECK(bootstrap.replicates.cols() == 13);  // 11 and two variances
  CHECK(bootstrap.num_usable == 4);
}

TEST_CASE("gate_inputs: units, origin and order of the columns change nothing", "[gaussian][property]") {
  const auto truth = overlapping();
  const moe::RegressionData data = read_as(truth, test::simulated(truth, 300, 4));
  const moe::FitOptions options{.starts = 6};
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  moe::RegressionData other = data;  // columns 2, 0, 1 of other units; experts read 1 and 2, the gate 0 and 2
  other.x.col(0) = 1e3 * data.x.col(2).array() - 7;
  other.x.col(1) = -0.01 * data.x.col(0).array() + 1e4;
  other.x.col(2) = 5 * data.x.col(1).array() + 3;
  other.gate_inputs = Columns{0, 2};
  other.expert_inputs = Columns{1, 2};
  const auto moved = moe::fit(other, 2, moe::SoftmaxGate{}, options);
  CHECK(std::abs(moved.log_likelihood - fit.log_likelihood) < 1e-6);
  CHECK(std::abs(1e3 * moved.model.gate_slope(0, 0) - fit.model.gate_slope(0, 2)) < 1e-4);
  CHECK(std::abs(-0.01 * moved.model.slope(1, 1) - fit.model.slope(1, 0)) < 1e-4);
  const auto errors = moe::standard_errors(fit, data), others = moe::standard_errors(moved, other);
  CHECK(std::abs(1e3 * others["beta1[0,0]"].error->observed / errors["beta1[0,2]"].error->observed - 1) < 1e-4);
}

TEST_CASE("gate_inputs: columns may be alike between gate and experts, not within", "[gaussian][error]") {
  const auto truth = overlapping();
  moe::RegressionData data = test::simulated(truth, 200, 4);
  data.x.col(2) = 2 * data.x.col(0).array() + 1;
  const moe::FitOptions options{.starts = 3};
  data.gate_inputs = Columns{1, 2};
  data.expert_inputs = Columns{0, 1};
  CHECK(moe::fit(data, 2, moe::SoftmaxGate{}, options).converged);
  data.expert_inputs = Columns{0, 1, 2};
  CHECK_THAT(message_of([&] { moe::fit(data, 2, moe::SoftmaxGate{}, options); }),
             ContainsSubstring("columns 0 and 2 of x are the same up to shift and scale"));
  data.expert_inputs = Columns{1, 0};
  CHECK_THAT(message_of([&] { moe::fit(data, 2, moe::SoftmaxGate{}, options); }),
             ContainsSubstring("expert_inputs has column 0, expected different ones in ascending order, below 3"));
  data.expert_inputs = Columns{3};
  CHECK_THAT(message_of([&] { moe::fit(data, 2, moe::SoftmaxGate{}, options); }), ContainsSubstring("has column 3"));
  data.gate_inputs = Columns{};
  data.expert_inputs = {};
  CHECK_THAT(message_of([&] { moe::fit(data, 2, moe::TopKGate{.k = 1}, options); }),
             ContainsSubstring("gate_inputs is empty"));
  auto model = truth;
  model.slope(0, 2) = 1;
  CHECK_THAT(message_of([&] { moe::log_likelihood(model, data); }),
             ContainsSubstring("a coefficient of column 2, which is none of expert_inputs, is not 0"));
}

TEST_CASE("gate_inputs: none are constant weights, a mixture of regressions", "[gaussian]") {
  auto truth = restricted(overlapping(), Columns{}, Columns{0, 1, 2});
  truth.gate_bias(0) = 0.4;
  const moe::RegressionData data = read_as(truth, test::simulated(truth, 300, 6));
  const PlainEm expected(data, truth);
  const moe::FitOptions options{};
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  CHECK(fit.converged);
  CHECK(std::abs(fit.log_likelihood - expected.log_likelihood) < 1e-6);
  CHECK(fit.num_parameters == 11);  // of the gate one
  // At a maximum the weight is the mean of the responsibilities.
  const double weight = 1 / (1 + std::exp(-fit.model.gate_bias(0)));
  CHECK(std::abs(weight - fit.expert_rows(0) / 300) < 1e-6);
  CHECK(moe::standard_errors(fit, data).available());
  CHECK(moe::sweep_experts(data, {1, 2}, moe::SoftmaxGate{}, options).best_bic == 2);
}

TEST_CASE("gate_inputs: borders of sparse gates move in the columns of the gate", "[gaussian]") {
  auto truth = moe::GaussianMoe<moe::TopKGate>(overlapping(), {.k = 1});
  truth.gate_slope *= 3;
  const moe::RegressionData data = read_as(truth, test::simulated(truth, 300, 6));
  const moe::FitOptions options{.starts = 12};
  const auto fit = moe::fit(data, 2, moe::TopKGate{.k = 1}, options);
  CHECK(fit.log_likelihood > moe::log_likelihood(truth, data) - 1);  // at a maximum it is higher by half a chi^2(10)
  CHECK(fit.model.gate_slope.col(0).isZero(0));
  CHECK(fit.model.slope.col(2).isZero(0));
}

TEST_CASE("Starts: gates with an activation keep to their columns", "[gaussian]") {
  using Gate = test::FreeActivationGate<moe::Tanh>;
  const auto model = restricted(test::sample_model(3, 4, Gate{}), Columns{0, 3}, Columns{1, 2});
  const moe::RegressionData data = test::sample_data(model, 90);
  const moe::detail::RowBlocks rows(data, moe::detail::Standardisation::none(4));
  const moe::detail::Starts<> starts(rows, moe::layout(model), model.form(),
                                     moe::detail::Starts<>::function<moe::Tanh>(), 1);
  auto zero = moe::GaussianMoe<Gate>::zero(3, 4);
  zero.gate_inputs = model.gate_inputs;
  zero.expert_inputs = model.expert_inputs;
  for (Index s = 0; s < 12; ++s) {
    const moe::GaussianParameters start = starts(s, zero);
    CHECK_NOTHROW(moe::GaussianMoe<Gate>(start).validate("test"));
    CHECK_FALSE(start.gate_slope.col(3).isZero(0));
    CHECK_FALSE(start.slope.col(1).isZero(0));
  }
}
