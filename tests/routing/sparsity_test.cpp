// SPDX-License-Identifier: MIT
#include "moe/routing/balance/sparsity.hpp"

#include "support/catch.hpp"
#include "support/routings.hpp"
#include "support/text.hpp"

using Catch::Matchers::WithinAbs;
using moe::RoutingGradient;
using moe::Step;
using moe::update_sparsity_coefficient;

TEST_CASE("activation_loss: is the mean score, and pulls at positive ones alike", "[loss]") {
  const auto p = test::matrix<double>({{1, 0, 2}, {0, 0, 0.5}});
  RoutingGradient<double> gradient;
  gradient.probability = test::matrix<double>({{1, 1, 1}, {1, 1, 1}});
  CHECK_THAT(moe::activation_loss(p, Step{}, 12.0, gradient), WithinAbs(3.5 / 6, 1e-15));
  CHECK(gradient.probability == test::matrix<double>({{3, 1, 3}, {1, 1, 3}}));
}

TEST_CASE("activation_loss: padding does not count, and no tokens cost nothing", "[loss]") {
  const std::vector<std::uint8_t> valid = {1, 0};
  Step step;
  step.valid = valid;
  RoutingGradient<float> gradient;
  CHECK(moe::activation_loss(test::matrix<float>({{1, 3}, {100, 100}}), step, 1.0, gradient) == 2);
  CHECK(gradient.probability == test::matrix<float>({{0.5f, 0.5f}, {0, 0}}));
  RoutingGradient<float> none;
  CHECK(moe::activation_loss(moe::Matrix<float>(0, 3), Step{}, 1.0, none) == 0);
}

TEST_CASE("activation_loss: the same bits for any number of threads", "[loss][property]") {
  const moe::Matrix<double> p = test::random_logits<double>(2000, 7, 1).cwiseMax(0.0);
  const auto results = test::on_thread_counts([&] {
    RoutingGradient<double> gradient;
    const double loss = moe::activation_loss(p, Step{}, 0.3, gradient);
    return std::pair(loss, gradient.probability);
  });
  CHECK(test::all_equal(results));
}

TEST_CASE("update_sparsity_coefficient: grows while too many experts are active, and shrinks while too few are",
          "[loss]") {
  CHECK(update_sparsity_coefficient(2, 0.5, 0.75) == 2 * 1.2);
  CHECK(update_sparsity_coefficient(2, 0.9, 0.75) == 2 / 1.2);
  CHECK(update_sparsity_coefficient(2, 0.75, 0.75) == 2);
  CHECK(update_sparsity_coefficient(2, 0, 1, 3) == 6);
}

TEST_CASE("update_sparsity_coefficient: brings a sparsity that follows it to the target", "[loss]") {
  const auto sparsity_at = [](double coefficient) { return coefficient / (coefficient + 1e-3); };
  double coefficient = 1e-8;
  for (int update = 0; update < 200; ++update)
    coefficient = update_sparsity_coefficient(coefficient, sparsity_at(coefficient), 0.75);
  CHECK(coefficient > 3e-3 / 1.2 / 1.2);  // 0.75 is reached at 3e-3, around which it goes up and down by a factor
  CHECK(coefficient < 3e-3 * 1.2 * 1.2);
}

TEST_CASE("update_sparsity_coefficient: never falls to zero, from where nothing leads back, nor grows to infinity",
          "[loss]") {
  double low = 1e-300, high = 1e300;
  for (int update = 0; update < 500; ++update) {
    low = update_sparsity_coefficient(low, 1, 0.5);
    high = update_sparsity_coefficient(high, 0, 0.5);
  }
  CHECK(low == std::numeric_limits<double>::min());
  CHECK(high == std::numeric_limits<double>::max());
}

TEST_CASE("sparsity: numbers out of range are refused by name", "[loss][error]") {
  const auto message = [](double coefficient, double sparsity, double target, double factor) {
    return test::message_of(
        [&] { static_cast<void>(update_sparsity_coefficient(coefficient, sparsity, target, factor)); });
  };
  CHECK(message(0, 0, 0, 2) == "moe::update_sparsity_coefficient: coefficient is 0, expected a finite number > 0");
  CHECK(message(1, 1.5, 0, 2) == "moe::update_sparsity_coefficient: sparsity is 1.5, expected a value in [0, 1]");
  CHECK(message(1, 1, NAN, 2) == "moe::update_sparsity_coefficient: target is nan, expected a value in [0, 1]");
  CHECK(message(1, 1, 0, 1) == "moe::update_sparsity_coefficient: factor is 1, expected a finite number > 1");
  RoutingGradient<double> gradient;
  gradient.probability.setZero(2, 2);
  CHECK_THROWS_AS(moe::activation_loss(moe::Matrix<double>(2, 3), Step{}, 1.0, gradient), std::invalid_argument);
}
