// SPDX-License-Identifier: MIT
#include "moe/routing/balance/entropy.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::RoutingGradient;
using moe::Step;

namespace {

enum class Loss { Entropy, MutualInformation };

template <class S>
double value(Loss loss, const moe::Matrix<S>& p, const Step& step, double weight, RoutingGradient<S>& gradient) {
  return loss == Loss::Entropy ? moe::entropy_loss(p, step, weight, gradient)
                               : moe::mutual_information_loss(p, step, weight, gradient);
}

template <class S>
double value(Loss loss, const moe::Matrix<S>& p, const Step& step = {}) {
  RoutingGradient<S> ignored;
  return value(loss, p, step, 1, ignored);
}

}  // namespace

TEST_CASE("entropy_loss: log num_experts when uniform, 0 when decided", "[loss]") {
  const moe::Matrix<double> uniform = moe::Matrix<double>::Constant(3, 8, 0.125);
  REQUIRE_THAT(value(Loss::Entropy, uniform), WithinAbs(std::log(8.0), 1e-15));
  REQUIRE(value(Loss::Entropy, moe::Matrix<double>(moe::Matrix<double>::Identity(4, 4))) == 0);
}

TEST_CASE("entropy_loss: is the mean over tokens of -sum p log p", "[loss]") {
  const auto p = test::matrix<double>({{.5, .5, 0}, {.7, .2, .1}});
  const double second = -(.7 * std::log(.7) + .2 * std::log(.2) + .1 * std::log(.1));
  REQUIRE_THAT(value(Loss::Entropy, p), WithinAbs((std::log(2.0) + second) / 2, 1e-15));
}

TEST_CASE("mutual_information_loss: -log num_experts when decided and balanced, 0 when tokens are alike", "[loss]") {
  const moe::Matrix<double> decided = moe::Matrix<double>::Identity(4, 4);
  REQUIRE_THAT(value(Loss::MutualInformation, decided), WithinAbs(-std::log(4.0), 1e-15));
  const auto alike = test::matrix<double>({{.7, .2, .1}, {.7, .2, .1}});
  REQUIRE_THAT(value(Loss::MutualInformation, alike), WithinAbs(0, 1e-15));
}

TEST_CASE("mutual_information_loss: is never positive", "[loss][property]") {
  const auto seed = GENERATE(range(1u, 20u));
  CAPTURE(seed);
  const auto p = test::probabilities_of(test::random_logits<double>(7, 5, seed));
  REQUIRE(value(Loss::MutualInformation, p) < 0);
}

TEST_CASE("entropy losses: gradients equal central differences", "[loss]") {
  const auto loss = GENERATE(Loss::Entropy, Loss::MutualInformation);
  const auto valid = test::every_nth_padding(11, 3);
  Step step;
  step.valid = valid;
  auto p = test::probabilities_of(test::random_logits<double>(11, 5));
  RoutingGradient<double> gradient;
  value(loss, p, step, 0.2, gradient);
  const auto at = [&] { return 0.2 * value(loss, p, step); };
  REQUIRE(test::gradient_error(at, p, gradient.probability) < 1e-6);
  REQUIRE(test::largest(gradient.probability) > 1e-3);
}

TEST_CASE("entropy losses: a probability of 0 counts 0 and has gradient 0", "[loss]") {
  const auto loss = GENERATE(Loss::Entropy, Loss::MutualInformation);
  const auto p = test::matrix<double>({{.5, .5, 0, 0}, {.25, 0, .75, 0}});
  RoutingGradient<double> gradient;
  REQUIRE(std::isfinite(value(loss, p, Step{}, 1, gradient)));
  REQUIRE(gradient.probability.allFinite());
  REQUIRE(gradient.probability(0, 2) == 0);
  REQUIRE(gradient.probability.col(3).isZero(0));
}

TEST_CASE("entropy losses: padding changes nothing", "[loss][property]") {
  const auto loss = GENERATE(Loss::Entropy, Loss::MutualInformation);
  const auto p = test::probabilities_of(test::random_logits<double>(10, 4));
  moe::Matrix<double> padded = moe::Matrix<double>::Constant(13, 4, std::nan(""));
  padded.bottomRows(10) = p;
  std::vector<std::uint8_t> valid(13, 1);
  valid[0] = valid[1] = valid[2] = 0;
  Step step;
  step.valid = valid;
  RoutingGradient<double> gradient, padded_gradient;
  REQUIRE(value(loss, padded, step, 1, padded_gradient) == value(loss, p, Step{}, 1, gradient));
  REQUIRE(padded_gradient.probability.bottomRows(10) == gradient.probability);
  REQUIRE(padded_gradient.probability.topRows(3).isZero(0));
}

TEMPLATE_TEST_CASE("entropy losses: any number of threads gives the same bits", "[loss][property]", float, double) {
  const auto loss = GENERATE(Loss::Entropy, Loss::MutualInformation);
  const auto p = test::probabilities_of(test::random_logits<TestType>(1300, 7));
  const auto results = test::on_thread_counts([&] {
    RoutingGradient<TestType> gradient;
    const double result = value(loss, p, Step{}, 0.001, gradient);
    return std::pair(result, gradient.probability);
  });
  REQUIRE(test::all_equal(results));
}

TEST_CASE("entropy losses: no valid token gives 0 with zero gradient", "[loss]") {
  const auto loss = GENERATE(Loss::Entropy, Loss::MutualInformation);
  const std::vector<std::uint8_t> none(2, 0);
  Step step;
  step.valid = none;
  RoutingGradient<double> gradient;
  CHECK(value(loss, test::probabilities_of(test::random_logits<double>(2, 3)), step, 1, gradient) == 0);
  CHECK(gradient.probability.isZero(0));
  CHECK(value(loss, moe::Matrix<double>(0, 3)) == 0);
}
