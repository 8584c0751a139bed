// SPDX-License-Identifier: MIT
#include "moe/router/noisy.hpp"

#include "support/catch.hpp"
#include "support/matrices.hpp"

using moe::Index;
using moe::Matrix;
using moe::Step;
using Router = moe::BasicNoisyRouter<moe::F64>;

namespace {

/// A router with different noise for every expert.
Router noisy_router(Index num_experts, Index model_dim) {
  auto router = Router::random(num_experts, model_dim, 1);
  router.noise() = moe::BasicLinearRouter<moe::F64>::random(num_experts, model_dim, 2);
  return router;
}

Matrix<double> logits(const Router& router, const Matrix<double>& tokens, const Step& step) {
  Matrix<double> out(tokens.rows(), router.num_experts());
  router.logits(tokens, step, out);
  return out;
}

}  // namespace

TEST_CASE("NoisyRouter: at inference it is its linear router, bit for bit", "[router]") {
  const auto router = noisy_router(5, 7);
  const auto tokens = test::random_matrix<double>(9, 7);
  Matrix<double> clean(9, 5);
  router.clean().logits(tokens, Step{}, clean);
  CHECK(test::same_bits(logits(router, tokens, Step{}), clean));
}

TEST_CASE("NoisyRouter: in training it adds draws times softplus of the noise logits plus the minimum", "[router]") {
  const auto router = noisy_router(5, 7);
  const auto tokens = test::random_matrix<double>(9, 7);
  const Step step = Step::train(3, 4);
  const auto out = logits(router, tokens, step);
  Matrix<double> clean(9, 5), spread(9, 5);
  router.clean().logits(tokens, step, clean);
  router.noise().logits(tokens, step, spread);
  for (Index t = 0; t < 9; ++t)
    for (Index e = 0; e < 5; ++e) {
      const double draw = step.random(moe::Purpose::Noise).normal(t, e);
      const double expected = clean(t, e) + draw * (std::log1p(std::exp(spread(t, e))) + 1e-2);
      CHECK_THAT(out(t, e), Catch::Matchers::WithinAbs(expected, 1e-14));  // a few ulp of numbers of order 1
    }
}

TEST_CASE("NoisyRouter: noise has mean 0 and the standard deviation that the tape tells", "[router]") {
  const Router router(1, 1);  // zero weights: s = log 2 + 0.01
  const Matrix<double> tokens = Matrix<double>::Zero(20000, 1);
  Router::Tape tape;
  Matrix<double> out(20000, 1);
  router.logits(tokens, Step::train(1), out, tape);
  CHECK_THAT(tape.noise_std(0, 0), Catch::Matchers::WithinAbs(std::log(2.0) + 0.01, 1e-15));
  double mean = 0, square = 0;
  for (Index t = 0; t < 20000; ++t) {
    mean += out(t, 0) / 20000;
    square += out(t, 0) * out(t, 0) / 20000;
  }
  const double s = tape.noise_std(0, 0);
  CHECK(std::abs(mean) < 5 * s / std::sqrt(20000.0));  // 5 standard errors
  CHECK(std::abs(square / (s * s) - 1) < 5 * std::sqrt(2.0 / 20000.0));
}

TEST_CASE("NoisyRouter: a token's noise follows its id, and is new in every update, layer and pass", "[router]") {
  const auto router = noisy_router(5, 7);
  const auto tokens = test::random_matrix<double>(9, 7);
  const std::vector<std::int64_t> ids = {10, 11, 12, 13, 14, 15, 16, 17, 18}, one = {14};
  Step step = Step::train(1, 2), alone = step;
  step.token_id = ids;
  alone.token_id = one;
  const auto out = logits(router, tokens, step);
  CHECK(test::same_bits(out.row(4), logits(router, Matrix<double>(tokens.row(4)), alone)));
  Step other[] = {step, step, step, step};
  other[0].update = 2;
  other[1].seed = 3;
  other[2].layer = 1;
  other[3].pass = 1;
  for (const Step& changed : other) {
    const auto redrawn = logits(router, tokens, changed);
    for (Index i = 0; i < out.size(); ++i) CHECK(redrawn.data()[i] != out.data()[i]);
  }
}

TEST_CASE("NoisyRouter: a new pass forgets the load-loss gradients of the last", "[router]") {
  const auto router = noisy_router(3, 4);
  const auto tokens = test::random_matrix<double>(2, 4);
  Router::Tape tape;
  Matrix<double> out(2, 3);
  router.logits(tokens, Step::train(1), out, tape);
  tape.dclean.setOnes(2, 3);
  tape.dnoise_std.setOnes(2, 3);
  router.logits(tokens, Step::train(2), out, tape);
  CHECK(tape.dclean.size() == 0);
  CHECK(tape.dnoise_std.size() == 0);
}

TEST_CASE("NoisyRouter: wrong numbers and shapes are refused", "[router][error]") {
  CHECK_THROWS_WITH(Router(0, 4), "moe::NoisyRouter: num_experts is 0, expected at least 1");
  CHECK_THROWS_WITH(Router::random(3, -4, 1), "moe::NoisyRouter: model_dim is -4, expected at least 1");
  CHECK_THROWS_WITH(Router(3, 4, 0), "moe::NoisyRouter: minimum_std = 0, expected > 0");
  CHECK_THROWS_WITH(Router(3, 4, std::nan("")), "moe::NoisyRouter: minimum_std = nan, expected > 0");
  auto router = noisy_router(3, 4);
  Router::Tape tape;
  Matrix<double> out(2, 3), tokens = Matrix<double>::Zero(2, 4);
  router.logits(tokens, Step::train(1), out, tape);
  tape.dclean.setOnes(2, 2);
  CHECK_THROWS_WITH(router.backward(tokens, Step::train(1), tape, out, router, tokens),
                    "moe::NoisyRouter::backward: tape.dclean is [2, 2], expected [2, 3]");
}
