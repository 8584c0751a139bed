// SPDX-License-Identifier: MIT
// Precision weights: the variance of expert j in a row is nu_j / precision.
#include <array>
#include <cmath>
#include <limits>
#include <numbers>

#include "gaussian/samples.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/design/regression.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/bootstrap.hpp"
#include "moe/gaussian/inference/cross_validation.hpp"
#include "moe/gaussian/inference/summary.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using test::message_of;

/// Precisions from 0.1 to 8 in an order that is no pattern of the rows.
moe::RegressionData with_precisions(moe::RegressionData data) {
  const moe::RandomField random(moe::Purpose::User, 9, 400);
  data.precision =
      Eigen::VectorXd::NullaryExpr(data.num_rows(), [&](Index i) { return 0.1 * std::pow(80, random.uniform(i)); });
  return data;
}

/// The model that a row sees: log nu_j is shifted by a constant, so that all derivatives are those of the model.
template <class Gate>
moe::GaussianMoe<Gate> seen_by(moe::GaussianMoe<Gate> model, double precision) {
  model.variance /= precision;
  return model;
}

template <class A, class B>
double difference(const A& a, const B& b) {
  REQUIRE(a.size() == b.size());
  return a.size() == 0 ? 0 : (a - b).cwiseAbs().maxCoeff() / std::max(b.cwiseAbs().maxCoeff(), 1e-300);
}

/// Sums over the rows of passes over one row without precisions. 1e-12: some 130 terms, each of 30 roundings.
template <class Gate>
void require_passes(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  const Index p = moe::layout(model).size();
  double value = 0, size = 0;
  Eigen::VectorXd score = Eigen::VectorXd::Zero(p);
  Eigen::MatrixXd information = Eigen::MatrixXd::Zero(p, p), covariance = information;
  for (Index i = 0; i < data.num_rows(); ++i) {
    moe::RegressionData row = moe::detail::rows_of(data, std::array{i});
    row.precision.resize(0);
    row.weights.resize(0);
    const auto seen = seen_by(model, data.precision(i));
    const double w = data.weight(i), density = moe::log_density(seen, row)(0);
    CHECK(std::abs(moe::log_density(model, data)(i) - density) < 1e-13 * (10 + std::abs(density)));
    CHECK(difference(moe::responsibilities(model, data).row(i).eval(), moe::responsibilities(seen, row)) < 1e-12);
    value += w * density;
    size += w * (1 + std::abs(density));
    score += w * moe::score(seen, row);
    information += w * moe::observed_information(seen, row);
    covariance += w * moe::score_covariance(seen, row);
  }
  CHECK(std::abs(moe::log_likelihood(model, data) - value) < 1e-13 * size);
  CHECK(difference(moe::score(model, data), score) < 1e-12);
  CHECK(difference(moe::observed_information(model, data), information) < 1e-12);
  CHECK(difference(moe::score_covariance(model, data), covariance) < 1e-12);
}

moe::RegressionData weighted(moe::RegressionData data) {
  data.weights = Eigen::VectorXd::NullaryExpr(data.num_rows(), [](Index i) { return double(i * i / 3 % 4); });
  return data;
}

}  // namespace

TEST_CASE("precision: passes are sums over rows with variances of their own, for every gate", "[gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) {
    CAPTURE(name);
    require_passes(model, weighted(with_precisions(test::sample_data(model, 9))));
  });
  for (const auto& [n, k, d] : {test::Sizes{131, 1, 1}, {1, 3, 2}, {5, 9, 9}}) {
    const auto model = test::sample_model(k, d, moe::SoftmaxGate{});
    require_passes(model, with_precisions(test::sample_data(model, n)));
  }
}

TEST_CASE("precision: with one expert it is weighted least squares, as lm(weights =)", "[gaussian]") {
  moe::RegressionData data = with_precisions(test::simulated(test::two_lines(), 90, 9));
  Eigen::MatrixXd x(90, 2);
  x << data.x, Eigen::VectorXd::Ones(90);
  const Eigen::VectorXd& v = data.precision;
  const Eigen::Matrix2d gram = x.transpose() * v.asDiagonal() * x;
  const Eigen::Vector2d b = gram.ldlt().solve(x.transpose() * v.cwiseProduct(data.y));
  const double squares = v.dot((data.y - x * b).cwiseAbs2());
  const auto fit = moe::fit(data, 1);
  CHECK(std::abs(fit.model.slope(0, 0) - b(0)) < 1e-9);
  CHECK(std::abs(fit.model.intercept(0) - b(1)) < 1e-9);
  CHECK(std::abs(fit.model.variance(0) - squares / 90) < 1e-9);
  // logLik.lm: (sum(log(w)) - N * (log(2 * pi) + 1 - log(N) + log(sum(w * res^2)))) / 2
  const double expected =
      0.5 * (v.array().log().sum() - 90 * (std::log(2 * std::numbers::pi) + 1 - std::log(90) + std::log(squares)));
  CHECK(std::abs(fit.log_likelihood - expected) < 1e-9);
  CHECK(std::abs(moe::log_likelihood(fit.model, data) - expected) < 1e-9);
  const Eigen::Matrix2d of_lm = squares / 88 * gram.inverse();  // vcov(lm); maximum likelihood divides by n, not n - p
  const auto errors = moe::standard_errors(fit, data);
  CHECK(std::abs(errors["a[0,0]"].error->observed * std::sqrt(90.0 / 88) - std::sqrt(of_lm(0, 0))) < 1e-8);
  CHECK(std::abs(errors["b[0]"].error->observed * std::sqrt(90.0 / 88) - std::sqrt(of_lm(1, 1))) < 1e-8);
}

TEST_CASE("precision: a factor of all only scales variances, whatever the search", "[gaussian]") {
  const auto truth = test::two_lines();
  const auto close = [](double a, double b) { return std::abs(a - b) < 1e-9 * (1 + std::abs(b)); };
  moe::RegressionData data = with_precisions(test::simulated(truth, 150, 8));
  const auto expected = moe::fit(data, 2);
  CHECK(expected.converged);
  for (const double factor : {4.0, 1e-7, 3e9}) {
    CAPTURE(factor);
    moe::RegressionData scaled = data;
    scaled.precision *= factor;
    const auto fit = moe::fit(scaled, 2);
    CHECK(close(fit.log_likelihood, expected.log_likelihood));
    CHECK(difference(fit.model.slope, expected.model.slope) < 1e-6);  // runs end within remaining_tolerance
    CHECK(difference(fit.model.variance, factor * expected.model.variance) < 1e-6);
    CHECK(difference(fit.expert_rows, expected.expert_rows) < 1e-6);
    CHECK(close(moe::summary(fit, scaled).distance, moe::summary(expected, data).distance));
  }
  moe::RegressionData plain = data;
  plain.precision.resize(0);
  data.precision.setConstant(4);
  for (const moe::FitOptions& options :
       {moe::FitOptions{}, moe::FitOptions{.ridge = 0.1, .variance_penalty = 0.02},
        moe::FitOptions{.em_iterations = 1000, .gate_step = moe::GateStep::Majorise}}) {
    const auto a = moe::fit_from(data, seen_by(truth, 0.25), options), b = moe::fit_from(plain, truth, options);
    CHECK(close(a.penalised_log_likelihood, b.penalised_log_likelihood));
    CHECK(difference(a.model.variance, 4 * b.model.variance) < 1e-6);
  }
}

TEST_CASE("precision: EM rises, and ends where the score is 0, borders of sparse gates too", "[gaussian]") {
  const auto rises = [](const auto& fit) {
    for (std::size_t i = 1; i < fit.path.size(); ++i)
      if (!(fit.path[i] >= fit.path[i - 1] - 1e-9 * std::abs(fit.path[i]))) return false;
    return fit.path.size() > 1;
  };
  const auto truth = test::two_lines();
  const moe::RegressionData data = weighted(with_precisions(test::simulated(truth, 200, 5)));
  const auto fit = moe::fit_from(data, truth, {.em_iterations = 2000, .direct = moe::DirectMethod::Off});
  CHECK(fit.converged);
  CHECK(rises(fit));
  CHECK(moe::score(fit.model, data).cwiseAbs().maxCoeff() < 1e-3 * data.total_weight());
  CHECK(std::abs(fit.expert_rows.sum() - data.total_weight()) < 1e-9 * data.total_weight());
  const Eigen::VectorXd w = data.weights;
  CHECK(difference(fit.expert_rows, (w.transpose() * moe::responsibilities(fit.model, data)).eval()) < 1e-9);
  const auto top = moe::GaussianMoe<moe::TopKGate>(test::three_lines(), {.k = 1});
  moe::RegressionData lines = with_precisions(test::simulated(top, 150, 3));
  auto start = top;
  start.gate_bias(0) += 0.5;
  const auto sparse = moe::fit_from(lines, start);
  CHECK(sparse.converged);
  CHECK(rises(sparse));
  CHECK(sparse.log_likelihood >= moe::log_likelihood(top, lines));
}

TEST_CASE("precision: beside weights, these are still repetitions", "[gaussian]") {
  const auto truth = test::two_lines();
  const moe::RegressionData data = weighted(with_precisions(test::simulated(truth, 200, 8)));
  const moe::RegressionData repeated = moe::repeated_rows(data);
  const auto fit = moe::fit_from(data, truth), other = moe::fit_from(repeated, truth);
  CHECK(std::abs(fit.log_likelihood - other.log_likelihood) < 1e-9 * (1 + std::abs(other.log_likelihood)));
  const auto theta = [](const auto& model) { return moe::pack(model, moe::layout(model)); };
  CHECK(difference(theta(fit.model), theta(other.model)) < 1e-9);
  const auto errors = moe::standard_errors(fit, data), expected = moe::standard_errors(other, repeated);
  REQUIRE(errors.available());
  CHECK(difference(errors.observed, expected.observed) < 1e-9);
  CHECK(difference(errors.sandwich, expected.sandwich) < 1e-9);
  const moe::BootstrapOptions options{.replications = 2};
  CHECK(moe::bootstrap(fit, data, options).replicates == moe::bootstrap(fit.model, repeated, options).replicates);
}

TEST_CASE("precision: predictions and draws have the variance of their row", "[gaussian]") {
  const auto model = test::three_lines();
  const moe::RegressionData data = with_precisions(test::simulated(model, 60, 3));
  const auto moments = moe::predict_moments(model, data);
  const std::array levels = {0.05, 0.5, 0.99};
  const moe::Matrix<double> quantiles = moe::predict_quantiles(model, data, levels);
  const Eigen::VectorXd residuals = moe::quantile_residuals(model, data, data.y), draws = moe::sample(model, data, 5);
  for (Index i = 0; i < data.num_rows(); ++i) {
    const auto seen = seen_by(model, data.precision(i));
    const auto at = moe::conditional(seen, data.x.row(i));
    CHECK(moments.variance(i) == at.variance());
    CHECK(quantiles(i, 2) == at.quantile(0.99));
    CHECK(residuals(i) == moe::quantile_residuals(seen, data.x, data.y)(i));
    CHECK(draws(i) == moe::sample(seen, data.x, 5)(i));
  }
}

TEST_CASE("precision: held out rows are judged by theirs", "[gaussian]") {
  moe::RegressionData data = with_precisions(test::simulated(test::two_lines(), 60, 4));
  const moe::CrossValidationOptions options{.folds = 2};
  const auto folds = moe::detail::random_folds(60, 2, options.seed);
  const auto in = [&](Index f) { return [&folds, f](Index i) { return folds[static_cast<std::size_t>(i)] == f; }; };
  double sum = 0;
  for (const Index f : {0, 1})
    sum += moe::log_density(moe::fit(moe::detail::some_rows(data, in(1 - f)), 1).model,
                            moe::detail::some_rows(data, in(f)))
               .sum();
  CHECK(std::abs(moe::cross_validate(data, {1, 1}, moe::SoftmaxGate{}, options).rows[0].log_density - sum / 60) <
        1e-12);
}

TEST_CASE("precision: a formula names its column, which a design keeps", "[gaussian]") {
  moe::DataFrame frame{.num_rows = 4};
  const auto column = [&](const char* name, std::vector<double> numbers) {
    frame.columns.push_back({.name = name, .numbers = std::move(numbers)});
  };
  column("y", {1, 2, 4, 7});
  column("z", {0, 1, 2, 4});
  column("v", {1, 0.5, 3, 2});
  moe::Formula formula = moe::parse_formula("y ~ .");
  formula.precision = "v";
  const moe::Regression r = moe::regression(frame, formula);
  CHECK(r.design.names() == std::vector<std::string>{"z"});
  CHECK(r.data().precision == Eigen::Vector4d(1, 0.5, 3, 2));
  CHECK(moe::design_rows(r.design, frame).data.precision == r.data().precision);
  frame.columns[2].numbers[1] = 0;
  CHECK_THAT(message_of([&] { moe::regression(frame, formula); }),
             ContainsSubstring("the precision 'v' is 0 in row 2, expected 1e-100 to 1e100"));
  formula.precision = "y";
  CHECK_THAT(message_of([&] { moe::regression(frame, formula); }), ContainsSubstring("the response and the precision"));
}

TEST_CASE("precision: what is none is refused by name", "[gaussian][error]") {
  const auto truth = test::two_lines();
  moe::RegressionData data = test::simulated(truth, 20, 2);
  data.precision.setOnes(19);
  CHECK_THAT(message_of([&] { moe::fit(data, 2); }), ContainsSubstring("moe::fit: precision has 19 numbers, expected"));
  CHECK_THAT(message_of([&] { moe::predict_mean(truth, data); }), ContainsSubstring("precision"));
  for (const double bad : {0.0, -1.0, std::nan(""), double(INFINITY), 1e-200}) {
    data.precision.setOnes(20);
    data.precision(3) = bad;
    CHECK_THAT(message_of([&] { moe::log_likelihood(truth, data); }), ContainsSubstring("in row 3, expected 1e-100"));
    CHECK_THAT(message_of([&] { moe::draw(truth, data, 1); }), ContainsSubstring("in row 3, expected 1e-100"));
  }
}
