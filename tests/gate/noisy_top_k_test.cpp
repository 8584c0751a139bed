// SPDX-License-Identifier: MIT
#include "moe/gate/noisy_top_k.hpp"

#include "moe/gate/softmax.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::LogitNoise;
using moe::NoisyTopKGate;
using moe::Step;
using moe::TopKGate;
using moe::WeightLogits;

namespace {

constexpr Index kTokens = 60000;

std::vector<double> first_choice_counts(const NoisyTopKGate& gate, std::initializer_list<double> logits) {
  const moe::Matrix<double> tokens = test::row<double>(logits).replicate(kTokens, 1);
  const auto routing = test::routed(gate, tokens, Step::train(1, 2));
  std::vector<double> counts(logits.size());
  for (Index t = 0; t < kTokens; ++t) ++counts[static_cast<std::size_t>(routing.experts(t)[0])];
  return counts;
}

}  // namespace

TEMPLATE_TEST_CASE("NoisyTopKGate: at inference, or without noise, it is TopKGate bit for bit", "[gate]", float,
                   double) {
  const auto logits = test::random_logits<TestType>(30, 9, 1);
  const auto plain = test::routed(TopKGate{.k = 3}, logits);
  CHECK(test::equal_bits(plain, test::routed(NoisyTopKGate{.top_k = {.k = 3}}, logits)));
  CHECK(test::equal_bits(plain, test::routed(NoisyTopKGate::gumbel({.k = 3}), logits)));
  CHECK(test::equal_bits(plain, test::routed(NoisyTopKGate{.top_k = {.k = 3}, .scale = 0}, logits, Step::train(1))));
  CHECK(!test::equal_bits(plain, test::routed(NoisyTopKGate{.top_k = {.k = 3}}, logits, Step::train(1))));
}

TEST_CASE("NoisyTopKGate: with Gumbel noise the first choice is a draw from the softmax", "[gate]") {
  const auto counts = first_choice_counts(NoisyTopKGate::gumbel({.k = 1}), {2, 1, 0.5, -1});
  const std::vector<double> shares = {0.609460, 0.224208, 0.135989, 0.030343};
  CHECK(test::chi_square(counts, shares) < 16.27);  // p = 0.001 at 3 degrees of freedom
}

TEST_CASE("NoisyTopKGate: Gumbel-top-2 draws twice without replacement", "[gate]") {
  const std::vector<double> p = {0.665241, 0.244728, 0.090031};  // softmax of (2, 1, 0)
  const moe::Matrix<float> logits = test::row<float>({2, 1, 0}).replicate(kTokens, 1);
  const auto routing = test::routed(NoisyTopKGate::gumbel(), logits, Step::train(1, 2));
  std::vector<double> counts(6), shares(6);
  for (std::size_t a = 0; a < 3; ++a)
    for (std::size_t b = 0; b < 3; ++b)
      if (a != b) shares[a * 2 + (b > a ? b - 1 : b)] = p[a] * p[b] / (1 - p[a]);
  for (Index t = 0; t < kTokens; ++t) {
    const auto a = static_cast<std::size_t>(routing.experts(t)[0]), b = static_cast<std::size_t>(routing.experts(t)[1]);
    ++counts[a * 2 + (b > a ? b - 1 : b)];
  }
  CHECK(test::chi_square(counts, shares) < 20.52);  // p = 0.001 at 5 degrees of freedom
}

TEST_CASE("NoisyTopKGate: Gaussian noise has the standard deviation that was asked for", "[gate]") {
  // The first of two experts wins with probability Phi(difference / (scale sqrt 2)).
  const NoisyTopKGate gate{.top_k = {.k = 1}, .noise = LogitNoise::Gaussian, .scale = 0.5};
  const double win = 0.5 * std::erfc(-0.3 / (0.5 * std::sqrt(2.0)) / std::sqrt(2.0));
  CHECK(test::chi_square(first_choice_counts(gate, {0.3, 0}), std::vector<double>{win, 1 - win}) < 10.83);  // 1 degree
}

TEST_CASE("NoisyTopKGate: weights come from the clean or from the noisy logits, as asked", "[gate]") {
  const auto logits = test::random_logits<double>(200, 6, 2);
  const TopKGate raw{.k = 6, .normalise = moe::Normalise::Off};
  const auto p = test::probabilities(moe::SoftmaxGate{}, logits);
  const NoisyTopKGate clean{.top_k = raw, .weights = WeightLogits::Clean}, noisy{.top_k = raw};
  CHECK(test::dense(test::routed(clean, logits, Step::train(1)), 6) == p);
  const auto of_noisy = test::routed(noisy, logits, Step::train(1));
  CHECK(test::dense(of_noisy, 6) == test::probabilities(noisy, logits, Step::train(1)));
  CHECK(test::largest(test::dense(of_noisy, 6) - p) > 0.1);
  for (Index t = 0; t < 200; ++t)  // the choice follows the noisy scores
    for (std::size_t s = 1; s < 6; ++s) REQUIRE(of_noisy.weights(t)[s] <= of_noisy.weights(t)[s - 1]);
}

TEST_CASE("NoisyTopKGate: gradients agree with central differences for every combination of its axes", "[gate]") {
  for (const LogitNoise noise : {LogitNoise::Gaussian, LogitNoise::Gumbel})
    for (const WeightLogits weights : {WeightLogits::Selection, WeightLogits::Clean})
      for (const moe::Normalise normalise : {moe::Normalise::Off, moe::Normalise::Sum}) {
        NoisyTopKGate gate{.top_k = {.k = 3, .normalise = normalise}, .noise = noise, .weights = weights};
        gate.top_k.weight_bias = test::random_bias(7, 3, 1);
        CAPTURE(static_cast<int>(noise), static_cast<int>(weights), static_cast<int>(normalise));
        CHECK(test::gate_gradient_error(gate, test::random_logits<double>(4, 7, 3), Step::train(1)) < 1e-6);
      }
}

TEST_CASE("NoisyTopKGate: noise does not lift a mask", "[gate]") {
  const moe::Matrix<float> logits = test::row<float>({-INFINITY, 0, 0}).replicate(500, 1);
  for (const NoisyTopKGate& gate : {NoisyTopKGate{.scale = 100}, NoisyTopKGate::gumbel()})
    CHECK(test::dense(test::routed(gate, logits, Step::train(1)), 3).col(0).isZero(0));
}

TEST_CASE("NoisyTopKGate: bad numbers are refused, and its parameters are those of its top-K gate", "[gate][error]") {
  CHECK_THROWS_AS(NoisyTopKGate{.scale = -1}.validate(4), std::invalid_argument);
  CHECK_THROWS_AS(NoisyTopKGate{.scale = NAN}.validate(4), std::invalid_argument);
  CHECK_THROWS_AS(NoisyTopKGate{.top_k = {.k = 5}}.validate(4), std::invalid_argument);
  auto logits = test::random_logits<float>(3, 4, 1);
  logits(2, 3) = NAN;
  CHECK(test::contains(test::message_of([&] { test::routed(NoisyTopKGate{}, logits, Step::train(1)); }),
                       "moe::NoisyTopKGate::route: logit of token 2 for expert 3 is"));
  NoisyTopKGate gate;
  gate.top_k.weight_bias = Eigen::RowVectorXd::Zero(4);
  CHECK(moe::num_parameters(gate) == 4);
}
