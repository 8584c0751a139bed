// SPDX-License-Identifier: MIT
// Experts without an intercept: y ~ x - 1.
#include <Eigen/QR>
#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "gaussian/samples.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/bootstrap.hpp"
#include "moe/gaussian/inference/criteria.hpp"
#include "moe/gaussian/inference/identifiability.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;
using moe::Intercept;

template <class Model>
Model through_origin(Model model) {
  model.expert_intercept = Intercept::Zero;
  model.intercept.setZero();
  return model;
}

/// Two lines through the origin, and inputs around `center`, which the gate splits there.
moe::GaussianMoe<> two_rays(double center = 0) {
  auto model = moe::GaussianMoe<>::zero(2, 1);
  model.gate_slope(0, 0) = -2;
  model.gate_bias << 2 * center, 0;
  model.slope << -1.5, 2;
  model.variance << 0.3, 0.15;
  return through_origin(model);
}

template <class G>
moe::RegressionData data_of(const moe::GaussianMoe<G>& model, Index n, double center = 0, std::uint64_t seed = 3) {
  moe::RegressionData data{.x = test::random_matrix<double>(n, model.input_dim(), seed)};
  data.x.array() += center;
  data.y = moe::sample(model, data.x, seed);
  data.expert_intercept = Intercept::Zero;
  return data;
}

/// Places in theta of a model with intercepts that are parameters without.
std::vector<Index> kept(const moe::ParameterLayout& whole) {
  std::vector<Index> out;
  for (Index i = 0; i < whole.size(); ++i)
    if (i < whole.intercept(0) || i >= whole.log_variance(0)) out.push_back(i);
  return out;
}

double loglik(moe::GaussianMoe<> m, const Eigen::VectorXd& theta, const moe::RegressionData& data) {
  moe::unpack(theta, moe::layout(m), m);
  return moe::log_likelihood(m, data);
}

/// Two experts by EM as in the books, without a column of ones for the experts: least squares by QR, logistic
/// regression on (1, x) by Newton's method, until nothing moves.
struct PlainEm {
  Eigen::VectorXd gate;
  Eigen::MatrixXd line;  // [d, 2]
  Eigen::Vector2d variance;
  double log_likelihood = 0;

  PlainEm(const moe::RegressionData& data, const moe::GaussianMoe<>& start, double center) {
    Eigen::MatrixXd z(data.num_rows(), data.input_dim() + 1);
    z << data.x.array() - center, Eigen::VectorXd::Ones(data.num_rows());  // conditioning alone
    gate.resize(z.cols());
    gate << start.gate_slope.row(0).transpose(), start.gate_bias(0) + center * start.gate_slope.row(0).sum();
    line = start.slope.transpose();
    variance = start.variance.transpose();
    double before = -INFINITY;
    for (int i = 0; i < 5000 && std::abs(log_likelihood - before) > 1e-12; ++i) {
      before = log_likelihood;
      step(data.y, z, data.x);
    }
  }

  void step(const Eigen::VectorXd& y, const Eigen::MatrixXd& z, const Eigen::MatrixXd& x) {
    Eigen::VectorXd r(y.size());
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
      gate += (z.transpose() * (pi.array() * (1 - pi.array())).matrix().asDiagonal() * z)
                  .ldlt()
                  .solve(z.transpose() * (r - pi));
    }
  }

  template <class Row>
  double density(double y, const Row& x, Index j) const {
    const double e = y - x.dot(line.col(j));
    return std::exp(-0.5 * e * e / variance(j)) / std::sqrt(2 * std::numbers::pi * variance(j));
  }
};

/// Passes are those of the same model with intercepts that happen to be 0, without their coordinates. 1e-12: sums of
/// the same rows in the same order.
template <class Gate>
void require_passes(const moe::GaussianMoe<Gate>& with) {
  auto free = through_origin(with), held = free;
  free.expert_intercept = Intercept::Free;
  const moe::RegressionData data = test::sample_data(held, 131);
  const std::vector<Index> some = kept(moe::layout(free));
  REQUIRE(moe::layout(held).size() == std::ssize(some));
  const auto close = [](const auto& a, const auto& b) {
    return a.size() == 0 || (a - b).cwiseAbs().maxCoeff() <= 1e-12 * (1 + b.cwiseAbs().maxCoeff());
  };
  CHECK(moe::log_likelihood(held, data) == moe::log_likelihood(free, data));
  CHECK(close(moe::score(held, data), moe::score(free, data)(some).eval()));
  CHECK(close(moe::observed_information(held, data), moe::observed_information(free, data)(some, some).eval()));
  CHECK(close(moe::score_covariance(held, data), moe::score_covariance(free, data)(some, some).eval()));
}

}  // namespace

TEST_CASE("no intercept: passes lack the coordinates of intercepts, for every gate", "[gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) {
    CAPTURE(name);
    require_passes(model);
  });
  require_passes(test::sample_model(3, 2, moe::CosineGate<>{}, 1, moe::LastSlope::Free));
  require_passes(test::sample_model(3, 2, moe::LaplaceGate<>{}, 1, moe::LastSlope::Free));
  require_passes(test::sample_model(1, 1, moe::SoftmaxGate{}));
}

TEST_CASE("no intercept: score and information are derivatives", "[gaussian]") {
  const auto model = through_origin(test::sample_model(3, 2, moe::SoftmaxGate{}));
  const moe::RegressionData data = test::sample_data(model, 90);
  const Eigen::VectorXd theta = moe::pack(model, moe::layout(model)), score = moe::score(model, data);
  const Eigen::MatrixXd information = moe::observed_information(model, data);
  const double h = 1e-5;  // error h^2 f''' / 6 + 1e-16 |f| / h: below 1e-7
  for (Index i = 0; i < theta.size(); ++i) {
    const Eigen::VectorXd up = theta + h * Eigen::VectorXd::Unit(theta.size(), i), down = 2 * theta - up;
    CHECK(std::abs((loglik(model, up, data) - loglik(model, down, data)) / (2 * h) - score(i)) < 1e-6);
    auto a = model, b = model;
    moe::unpack(up, moe::layout(model), a);
    moe::unpack(down, moe::layout(model), b);
    const Eigen::VectorXd change = (moe::score(b, data) - moe::score(a, data)) / (2 * h);
    CHECK((change - information.col(i)).cwiseAbs().maxCoeff() < 1e-5 * (1 + information.cwiseAbs().maxCoeff()));
  }
}

TEST_CASE("no intercept: with one expert it is lm(y ~ x - 1), with offset, weights and precisions", "[gaussian]") {
  const Index n = 80, d = 2;
  const moe::RandomField random(moe::Purpose::User, 5, 6);
  moe::RegressionData data{.x = test::random_matrix<double>(n, d, 4), .expert_intercept = Intercept::Zero};
  data.x.col(1).array() += 30;
  const auto column = [&](std::int64_t c) {
    return Eigen::VectorXd(Eigen::VectorXd::NullaryExpr(n, [&](Index i) { return random.uniform(i, c); }));
  };
  data.y = data.x * Eigen::Vector2d(2, -0.5) + column(0) * 3;
  data.offset = column(1);
  data.weights = (3 * column(2)).array().floor();
  data.precision = column(3).array() + 0.2;
  const double rows = data.weights.sum();
  const Eigen::VectorXd v = data.weights.cwiseProduct(data.precision), y = data.y - data.offset;
  const Eigen::MatrixXd x = data.x, gram = x.transpose() * v.asDiagonal() * x;
  const Eigen::VectorXd b = gram.ldlt().solve(x.transpose() * v.cwiseProduct(y));
  const double squares = v.dot((y - x * b).cwiseAbs2());
  const auto fit = moe::fit(data, 1);
  CHECK((fit.model.slope.row(0).transpose() - b).cwiseAbs().maxCoeff() < 1e-8);
  CHECK(fit.model.intercept(0) == 0);
  CHECK(std::abs(fit.model.variance(0) - squares / rows) < 1e-8);
  const double expected = 0.5 * (data.weights.dot(data.precision.array().log().matrix()) -
                                 rows * (std::log(2 * std::numbers::pi) + 1 - std::log(rows) + std::log(squares)));
  CHECK(std::abs(fit.log_likelihood - expected) < 1e-8);
  const Eigen::MatrixXd of_lm = squares / rows * gram.inverse();  // lm divides by rows - d
  const auto errors = moe::standard_errors(fit, data);
  for (Index c = 0; c < d; ++c) {
    const std::string name = "a[0," + std::to_string(c) + ']';
    CHECK(std::abs(errors[name].error->observed - std::sqrt(of_lm(c, c))) < 1e-8);
  }
  CHECK(std::abs(errors["variance[0]"].error->observed - squares / rows * std::sqrt(2 / rows)) < 1e-8);
  CHECK(errors.parameters.size() == 4);  // two slopes, log variance, variance
  CHECK(moe::criteria(fit, data).num_parameters == 3);
  CHECK(fit.num_parameters == 3);
}

TEST_CASE("no intercept: the maximum is that of EM without a column of ones, wherever x is", "[gaussian]") {
  for (const double center : {0.0, 5.0}) {  // farther off, variances are below the floor, as Var(y) is large
    CAPTURE(center);
    const auto truth = two_rays(center);
    const moe::RegressionData data = data_of(truth, 300, center);
    const auto fit = moe::fit(data, 2);
    CHECK(fit.converged);
    CHECK(fit.flags.interior());
    const PlainEm plain(data, truth, center);
    CHECK(std::abs(fit.log_likelihood - plain.log_likelihood) < 1e-7);
    CHECK(std::abs(moe::log_likelihood(fit.model, data) - fit.log_likelihood) < 1e-7);
    for (Index j = 0; j < 2; ++j) {  // ascending slopes, as in the truth; from the likelihoods: sqrt(1e-7 / n)
      CHECK(std::abs(fit.model.slope(j, 0) - plain.line(0, j)) < 2e-5);
      CHECK(std::abs(fit.model.variance(j) - plain.variance(j)) < 2e-4);
      CHECK(fit.model.intercept(j) == 0);
    }
    // Four standard errors: 300 rows, deviations below .6, inputs of size 1 at least.
    CHECK((fit.model.slope - truth.slope).cwiseAbs().maxCoeff() < 4 * 0.6 / std::sqrt(100));
    CHECK(moe::score(fit.model, data).norm() < 1e-3 * (1 + center) * (1 + center));
    for (std::size_t i = 1; i < fit.path.size(); ++i) CHECK(fit.path[i] >= fit.path[i - 1] - 1e-9);
  }
}

TEST_CASE("no intercept: EM is monotone and starts and ends through the origin, for every kind of gate", "[gaussian]") {
  const auto check = [](const auto& gate) {
    const moe::RegressionData data = data_of(two_rays(1), 200, 1);
    const auto fit = moe::fit(data, 2, gate, {.starts = 6, .direct = moe::DirectMethod::Off});
    CHECK_FALSE(fit.flags.decreased);
    CHECK(fit.path.size() >= 2);  // a hard gate may be there after one step
    for (std::size_t i = 1; i < fit.path.size(); ++i) CHECK(fit.path[i] >= fit.path[i - 1] - 1e-9);
    CHECK(fit.model.intercept.isZero(0));
    CHECK(std::abs(moe::log_likelihood(fit.model, data) - fit.log_likelihood) < 1e-8 * 200);
  };
  check(moe::SoftmaxGate{});
  check(moe::TopKGate{.k = 1});
  check(moe::LaplaceGate<>{});
  check(moe::CosineGate<>{});
  check(test::FixedActivationGate<moe::Tanh>{});
}

TEST_CASE("no intercept: a top-1 gate on a line finds the best cut", "[gaussian]") {
  moe::RegressionData data = data_of(two_rays(1), 120, 1);
  std::vector<Index> order(120);
  for (Index i = 0; i < 120; ++i) order[static_cast<std::size_t>(i)] = i;
  std::sort(order.begin(), order.end(), [&](Index a, Index b) { return data.x(a, 0) < data.x(b, 0); });
  const auto value = [&](std::size_t from, std::size_t to) {  // of the best line through 0
    double xx = 0, xy = 0, yy = 0;
    for (std::size_t i = from; i < to; ++i) {
      const double x = data.x(order[i], 0), y = data.y(order[i]);
      xx += x * x, xy += x * y, yy += y * y;
    }
    const double n = static_cast<double>(to - from);
    return -0.5 * n * (std::log(2 * std::numbers::pi * (yy - xy * xy / xx) / n) + 1);
  };
  double best = -INFINITY;
  for (std::size_t cut = 12; cut <= 108; ++cut) best = std::max(best, value(0, cut) + value(cut, 120));
  const auto fit = moe::fit(data, 2, moe::TopKGate{.k = 1});
  CHECK(fit.log_likelihood > best - 1e-8);
  CHECK(std::abs(moe::log_likelihood(fit.model, data) - fit.log_likelihood) < 1e-8);
}

TEST_CASE("no intercept: units of x and y change nothing else", "[gaussian]") {
  const moe::RegressionData data = data_of(two_rays(2), 200, 2);
  const auto expected = moe::fit(data, 2);
  for (const auto& [a, b] : {std::pair{10.0, 0.01}, {1e-6, 1e5}}) {
    moe::RegressionData other = data;
    other.x *= a;
    other.y *= b;
    const auto fit = moe::fit(other, 2);
    CHECK(std::abs(fit.log_likelihood + 200 * std::log(b) - expected.log_likelihood) < 1e-8);
    for (Index j = 0; j < 2; ++j) {
      CHECK(std::abs(fit.model.slope(j, 0) * a / b - expected.model.slope(j, 0)) < 1e-6);
      CHECK(std::abs(fit.model.variance(j) / (b * b) - expected.model.variance(j)) < 1e-6);
    }
  }
}

TEST_CASE("no intercept: weights are rows, in fits and standard errors", "[gaussian]") {
  moe::RegressionData data = data_of(two_rays(1), 150, 1);
  data.weights = Eigen::VectorXd::NullaryExpr(150, [](Index i) { return double(i % 4); });
  const moe::RegressionData rows = moe::repeated_rows(data);
  CHECK(rows.expert_intercept == Intercept::Zero);
  const auto a = moe::fit_from(data, two_rays(1)), b = moe::fit_from(rows, two_rays(1));
  CHECK(std::abs(a.log_likelihood - b.log_likelihood) < 1e-9 * std::abs(b.log_likelihood));
  CHECK((a.model.slope - b.model.slope).cwiseAbs().maxCoeff() < 1e-9);
  const auto of_a = moe::standard_errors(a.model, data), of_b = moe::standard_errors(a.model, rows);
  REQUIRE(of_a.available());
  for (std::size_t i = 0; i < of_a.parameters.size(); ++i)
    CHECK(std::abs(of_a.parameters[i].error->sandwich - of_b.parameters[i].error->sandwich) <
          1e-9 * of_b.parameters[i].error->sandwich);
}

TEST_CASE("no intercept: standard errors do not see that inputs are standardised in between", "[gaussian]") {
  const moe::RegressionData data = data_of(two_rays(3), 300, 3);
  const auto fit = moe::fit(data, 2);
  const auto errors = moe::standard_errors(fit, data);
  REQUIRE(errors.available());
  const Eigen::MatrixXd inverse = moe::observed_information(fit.model, data).inverse();
  REQUIRE(inverse.rows() == 6);
  CHECK((errors.observed - inverse).cwiseAbs().maxCoeff() < 1e-8 * inverse.cwiseAbs().maxCoeff());
  CHECK(moe::identifiability(fit.model, data).rank == 6);
  const auto boot = moe::bootstrap(fit, data, {.replications = 60});
  for (const auto& p : boot.parameters) {  // a deviation of 60 has an error of 9 %; four of them, and the skewness
    if (p.name.starts_with("a[") && p.error)
      CHECK(std::abs(p.error->standard_error / errors[p.name].error->observed - 1) < 0.5);
    CHECK_FALSE(p.name.starts_with("b["));
  }
}
