// SPDX-License-Identifier: MIT
#include "moe/router/uncertain.hpp"

#include <Eigen/LU>
#include <cmath>
#include <numbers>

#include "moe/router/linear.hpp"
#include "moe/router/noisy.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"
#include "support/parameters.hpp"
#include "support/routings.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::RouterCalibration;
using moe::RouterDropout;
using moe::Step;
using moe::UncertainRouter;
using Linear = moe::BasicLinearRouter<F64>;
using Router = UncertainRouter<Linear>;

static_assert(moe::DifferentiableRouter<Router> && moe::RouterSkipsGradient<Router> && moe::TakesExperts<Router> &&
              moe::Concatenates<Router>);

namespace {

constexpr Index kTokens = 23, kExperts = 5, kDim = 9;
constexpr RouterCalibration kCalibrations[] = {RouterCalibration::LogitMoment, RouterCalibration::MeanProbability,
                                               RouterCalibration::Whitened};

Router router(const RouterDropout& dropout) {
  auto linear = Linear::random(kExperts, kDim, 3, moe::Bias::Zero);
  test::randomise(linear, 4, 1.0);
  return Router(linear, dropout);
}

template <class R>
Matrix<double> logits(const R& router, const Matrix<double>& tokens, const Step& step = {}) {
  auto out = test::nan_matrix<double>(tokens.rows(), router.num_experts());
  router.logits(tokens, step, out);
  return out;
}

moe::RouterUncertainty uncertainty(const Router& router, const Matrix<double>& tokens, const Step& step = {}) {
  moe::RouterUncertainty result;
  router.uncertainty(tokens, step, result);
  return result;
}

/// The logits of every pass, from the tape.
std::vector<Matrix<double>> passes_of(const Router& router, const Matrix<double>& tokens, const Step& step) {
  Router::Tape tape;
  Matrix<double> out(tokens.rows(), kExperts);
  router.logits(tokens, step, out, tape);
  std::vector<Matrix<double>> passes;
  for (Index m = 0; m < tape.num_passes; ++m) passes.emplace_back(tape.passes[std::size_t(m)].logits.matrix());
  return passes;
}

}  // namespace

TEST_CASE("UncertainRouter: without dropout it is the router, and sure of itself", "[router][property]") {
  const auto tokens = test::random_matrix<double>(kTokens, kDim, 1);
  for (const auto calibration : {RouterCalibration::LogitMoment, RouterCalibration::MeanProbability}) {
    const Router plain = router({.rate = 0, .calibration = calibration});
    CHECK(test::same_bits(logits(plain, tokens, Step::train(3)), logits(plain.router(), tokens)));
    const auto found = uncertainty(plain, tokens);
    for (Index t = 0; t < kTokens; ++t) {
      CHECK(found.mutual_information[std::size_t(t)] == 0);
      CHECK(found.variance[std::size_t(t)] == 0);
      CHECK(found.predictive_entropy[std::size_t(t)] > 0);
    }
  }
  const Router in_training = router({.rate = 0.3, .phase = moe::DropoutPhase::Training});
  CHECK(test::same_bits(logits(in_training, tokens), logits(in_training.router(), tokens)));
  CHECK_FALSE(test::same_bits(logits(in_training, tokens, Step::train(0)), logits(in_training.router(), tokens)));
}

TEST_CASE("UncertainRouter: what it makes of its passes is what their formulas say", "[router]") {
  const auto tokens = test::random_matrix<double>(kTokens, kDim, 1);
  for (const auto calibration : kCalibrations) {
    const Router uncertain = router({.passes = 4, .rate = 0.3, .calibration = calibration});
    const auto out = logits(uncertain, tokens);
    auto passes = passes_of(uncertain, tokens, Step{});
    std::vector<Matrix<double>> p;
    for (const auto& pass : passes) p.push_back(test::probabilities_of(pass));
    for (Index t = 0; t < kTokens; ++t) {
      Eigen::RowVectorXd expected(kExperts), mean = Eigen::RowVectorXd::Zero(kExperts);
      for (int m = 0; m < 4; ++m) mean += p[std::size_t(m)].row(t) / 4;
      if (calibration == RouterCalibration::MeanProbability) expected = mean.array().log().matrix();
      for (Index e = 0; e < kExperts && calibration == RouterCalibration::LogitMoment; ++e) {
        double average = 0, variance = 0;
        for (const auto& pass : passes) average += pass(t, e) / 4;
        for (const auto& pass : passes) variance += std::pow(pass(t, e) - average, 2) / 3;
        expected(e) = average / std::sqrt(1 + std::numbers::pi / 8 * variance);
      }
      if (calibration == RouterCalibration::Whitened) {
        Eigen::MatrixXd covariance = 1e-5 * Eigen::MatrixXd::Identity(kExperts, kExperts);
        for (int m = 0; m < 4; ++m)
          covariance += (p[std::size_t(m)].row(t) - mean).transpose() * (p[std::size_t(m)].row(t) - mean) / 3;
        const Eigen::VectorXd white = covariance.inverse() * (p[4].row(t) - mean).transpose();
        expected = white.transpose() / white.norm();
      }
      CHECK((out.row(t) - expected).cwiseAbs().maxCoeff() < 1e-8);
    }
  }
}

TEST_CASE("UncertainRouter: its uncertainty is what passes disagree about", "[router]") {
  const auto tokens = test::random_matrix<double>(kTokens, kDim, 1);
  const Router uncertain = router({.passes = 6, .rate = 0.4});
  const auto found = uncertainty(uncertain, tokens);
  const auto passes = passes_of(uncertain, tokens, Step{});
  const auto entropy = [](const Eigen::RowVectorXd& p) { return -(p.array() * p.array().log()).sum(); };
  for (Index t = 0; t < kTokens; ++t) {
    Eigen::RowVectorXd mean = Eigen::RowVectorXd::Zero(kExperts);
    double of_passes = 0, variance = 0;
    std::vector<Eigen::RowVectorXd> p;
    for (const auto& pass : passes) p.emplace_back(test::probabilities_of(pass).row(t));
    for (const auto& q : p) mean += q / 6;
    for (const auto& q : p) of_passes += entropy(q) / 6, variance += (q - mean).squaredNorm() / 5;
    const auto at = static_cast<std::size_t>(t);
    CHECK(std::abs(found.predictive_entropy[at] - entropy(mean)) < 1e-12);
    CHECK(std::abs(found.mutual_information[at] - (entropy(mean) - of_passes)) < 1e-12);
    CHECK(found.mutual_information[at] > 0);
    CHECK(std::abs(found.variance[at] - variance) < 1e-12);
  }
}

TEST_CASE("UncertainRouter: passes drop that share of features, and keep the mean", "[router]") {
  const Matrix<double> ones = Matrix<double>::Ones(400, kDim);
  const Router uncertain = router({.passes = 5, .rate = 0.3});
  Router::Tape tape;
  Matrix<double> out(400, kExperts);
  uncertain.logits(ones, Step::train(1, 2), out, tape);
  double dropped = 0;
  for (const auto& pass : tape.passes)
    for (Index t = 0; t < 400; ++t)
      for (Index c = 0; c < kDim; ++c) {
        const double kept = pass.tokens.row(t)[c];
        CHECK((kept == 0 || kept == 1 / 0.7));
        dropped += kept == 0 ? 1 : 0;
      }
  const double draws = 5 * 400 * kDim;
  CHECK(std::abs(dropped / draws - 0.3) < 4 * std::sqrt(0.21 / draws));  // four standard errors
}

TEST_CASE("UncertainRouter: gradients are central differences", "[router][property]") {
  for (const auto calibration : kCalibrations) {
    CAPTURE(static_cast<int>(calibration));
    Router uncertain = router({.passes = 4, .rate = 0.3, .calibration = calibration, .ridge = 1e-2});
    auto tokens = test::random_matrix<double>(5, kDim, 1);
    const auto dlogits = test::random_matrix<double>(5, kExperts, 2);
    const Step step = Step::train(4, 5);
    Router::Tape tape;
    Matrix<double> out(5, kExperts), dtokens = Matrix<double>::Ones(5, kDim);  // added to
    uncertain.logits(tokens, step, out, tape);
    Router gradient = moe::zeros_like(uncertain);
    uncertain.backward(tokens, step, tape, dlogits, gradient, dtokens);
    Matrix<double> frozen = Matrix<double>::Ones(5, kDim);
    uncertain.backward(tokens, step, tape, dlogits, moe::NoGradient{}, frozen);
    CHECK(test::same_bits(frozen, dtokens));
    dtokens.array() -= 1;
    const auto loss = [&] { return logits(uncertain, tokens, step).cwiseProduct(dlogits).sum(); };
    CHECK(test::gradient_error(loss, tokens, dtokens) < 1e-6);
    CHECK(test::parameter_gradient_error(loss, uncertain, gradient) < 1e-6);
  }
}

TEST_CASE("UncertainRouter: a token's logits depend on its id and step alone", "[router][property]") {
  const auto tokens = test::random_matrix<double>(kTokens, kDim, 1);
  const Router uncertain = router({.rate = 0.2});
  const Step step = Step::train(3, 9);
  const auto out = logits(uncertain, tokens, step);
  for (const auto& other : test::on_thread_counts([&] { return logits(uncertain, tokens, step); }))
    CHECK(test::same_bits(other, out));
  Step of_one = step;
  const std::vector<std::int64_t> id = {7};
  of_one.token_id = id;
  CHECK(test::same_bits(logits(uncertain, Matrix<double>(tokens.row(7)), of_one), Matrix<double>(out.row(7))));
  CHECK_FALSE(test::same_bits(logits(uncertain, tokens, Step::train(4, 9)), out));
  const UncertainRouter noisy(moe::BasicNoisyRouter<F64>::random(kExperts, kDim, 1), {.rate = 0.2});
  CHECK(logits(noisy, tokens, step).allFinite());
  CHECK(logits(uncertain, Matrix<double>(0, kDim)).rows() == 0);
}

TEST_CASE("UncertainRouter: disagreement shrinks logits, and many experts with few passes are finite", "[router]") {
  const auto tokens = test::random_matrix<double>(kTokens, kDim, 1);
  const auto largest = [&](double scale) {
    return logits(router({.rate = 0.5}), Matrix<double>(scale * tokens)).cwiseAbs().maxCoeff();
  };
  // Of logits s l the moment form tends to mean / (deviation sqrt(pi / 8)), whatever s.
  CHECK(largest(1e8) / largest(1e6) < 1.01);
  const UncertainRouter many(Linear::random(64, kDim, 1),
                             {.passes = 5, .rate = 0.5, .calibration = RouterCalibration::Whitened});
  const auto out = logits(many, tokens);
  CHECK(out.allFinite());
  for (Index t = 0; t < kTokens; ++t) CHECK(std::abs(out.row(t).norm() - 1) < 1e-9);
}

TEST_CASE("UncertainRouter: huge logits have their limits, and none of it is NaN", "[router]") {
  const auto tokens = test::random_matrix<double>(kTokens, kDim, 1);
  const Router moment = router({.rate = 0.5}),
               mean = router({.rate = 0.5, .calibration = RouterCalibration::MeanProbability}),
               white = router({.rate = 0.5, .calibration = RouterCalibration::Whitened});
  const auto scaled = [&](const Router& of, double scale) {
    Router other = of;
    other.router().bias() = Linear(kExperts, kDim, moe::Bias::Zero).bias();  // so that logits are the scale times some
    return logits(other, Matrix<double>(scale * tokens));
  };
  // mean / (deviation sqrt(pi / 8)), whatever the scale: of 1e6 it is reached to 1e-6 where the deviation is above 1
  const auto limit = scaled(moment, 1e8);
  for (const double scale : {1e20, 1e150, 1e160, 1e300}) {
    CAPTURE(scale);
    CHECK(test::largest(Matrix<double>(scaled(moment, scale) - limit)) < 1e-6);
    const auto out = scaled(mean, scale);
    auto passes = router({.rate = 0.5, .calibration = RouterCalibration::MeanProbability});
    passes.router().bias() = Linear(kExperts, kDim, moe::Bias::Zero).bias();
    const auto all = passes_of(passes, Matrix<double>(scale * tokens), Step{});
    for (Index t = 0; t < kTokens; ++t) {
      CHECK(out.row(t).allFinite());  // no expert counts as masked
      for (Index e = 0; e < kExperts; ++e) {
        double most = -INFINITY;  // of log p, beside which log(passes) is nothing
        for (const auto& pass : all) most = std::max(most, pass(t, e) - pass.row(t).maxCoeff());
        CHECK(std::abs(out(t, e) - most) <= 1e-12 * std::abs(most) + 2 * std::log(5));
      }
    }
    CHECK(scaled(white, scale).allFinite());
    const auto found = uncertainty(mean, Matrix<double>(scale * tokens));
    for (const double information : found.mutual_information)
      CHECK((information >= 0 && information <= std::log(5) + 1e-12));
    for (const Router& any : {moment, mean, white}) {
      Router::Tape tape;
      const Matrix<double> huge = scale * tokens;
      Matrix<double> to(kTokens, kExperts), dtokens = Matrix<double>::Zero(kTokens, kDim);
      any.logits(huge, Step{}, to, tape);
      Router gradient = moe::zeros_like(any);
      any.backward(huge, Step{}, tape, Matrix<double>::Ones(kTokens, kExperts), gradient, dtokens);
      CHECK(dtokens.allFinite());
    }
  }
  using Single = UncertainRouter<moe::LinearRouter>;
  const Single narrow(moe::LinearRouter::random(kExperts, kDim, 3), {.rate = 0.5});
  const auto in_float = [&](float scale) {
    Matrix<float> out(kTokens, kExperts);
    narrow.logits(Matrix<float>(scale * tokens.cast<float>()), Step{}, out);
    return out;
  };
  CHECK(test::largest(Matrix<float>(in_float(1e37f) - in_float(1e10f))) < 1e-4);
}

TEST_CASE("UncertainRouter: takes and joins logits, and refuses numbers out of range", "[router][error]") {
  const Router uncertain = router({.rate = 0.2});
  const auto tokens = test::random_matrix<double>(kTokens, kDim, 1);
  const std::vector<Index> ids = {4, 1};
  const auto taken = logits(uncertain.take(ids), tokens), all = logits(uncertain, tokens);
  CHECK(test::same_bits(Matrix<double>(taken.col(0)), Matrix<double>(all.col(4))));
  CHECK(logits(uncertain.concatenate(uncertain), tokens).cols() == 2 * kExperts);
  CHECK_THROWS_WITH(uncertain.concatenate(router({.rate = 0.3})), ContainsSubstring("dropout is not the same"));
  CHECK_THROWS_WITH(router({.passes = 1}), "moe::UncertainRouter: passes is 1, expected at least 2");
  CHECK_THROWS_WITH(router({.rate = 1}), ContainsSubstring("rate is 1, expected 0 <= rate < 1"));
  CHECK_THROWS_WITH(router({.rate = 0, .calibration = RouterCalibration::Whitened}),
                    ContainsSubstring("no covariance"));
  Router::Tape tape;
  auto gradient = moe::zeros_like(uncertain);
  CHECK_THROWS_WITH(uncertain.require_backward(kTokens, tape, gradient), ContainsSubstring("the tape is of -1 tokens"));
}
