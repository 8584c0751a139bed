// SPDX-License-Identifier: MIT
#include "moe/gate/wrap/with_levels.hpp"

#include <array>

#include "moe/gate/top_k.hpp"
#include "moe/gate/top_p.hpp"
#include "moe/gate/wrap/top_any.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/gate/wrap/with_level_capacity.hpp"
#include "moe/gate/wrap/with_levels_loss.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::Step;
using moe::TopKGate;
using moe::WithLevels;

namespace {

constexpr Index kExperts = 5, kLevels = 3, kLogits = kExperts * (1 + kLevels);

using Gate = WithLevels<TopKGate>;

Gate gate_of(Index k) {
  return {.gate = {.k = k}, .levels = kLevels, .temperature = {.start = 0.9, .end = 0.5, .updates = 10}};
}

}  // namespace

TEST_CASE("WithLevels: at inference each choice of the gate has its best level, with its weight", "[gate]") {
  const auto logits = test::random_logits<float>(40, kLogits, 1);
  const auto chosen = test::routed(TopKGate{.k = 2}, moe::Matrix<float>(logits.leftCols(kExperts)));
  const auto routing = test::routed(gate_of(2), logits);
  for (Index t = 0; t < 40; ++t)
    for (std::size_t s = 0; s < 2; ++s) {
      const Index e = routing.experts(t)[s] / kLevels, level = routing.experts(t)[s] % kLevels;
      CHECK(e == chosen.experts(t)[s]);
      CHECK(routing.weights(t)[s] == chosen.weights(t)[s]);
      for (Index l = 0; l < kLevels; ++l)
        CHECK(logits(t, kExperts + e * kLevels + level) >= logits(t, kExperts + e * kLevels + l));
    }
  moe::Matrix<float> alike = logits;
  alike.rightCols(kExperts * kLevels).setZero();
  const auto lowest = test::routed(gate_of(2), alike);  // ties go to fewer bits
  for (const Index e : lowest.experts()) CHECK(e % kLevels == 0);
}

TEST_CASE("WithLevels: in training a choice is shared out by a Gumbel softmax over its levels", "[gate]") {
  const Step step = Step::train(4, 9);
  const auto logits = test::random_logits<double>(30, kLogits, 2);
  const auto chosen = test::routed(TopKGate{.k = 2}, moe::Matrix<double>(logits.leftCols(kExperts)), step);
  const auto routing = test::routed(gate_of(2), logits, step);
  const double tau = 0.9 * std::pow(0.5 / 0.9, 0.4);
  const moe::RandomField gumbel = step.random(moe::Purpose::Gumbel);
  const auto p = test::probabilities(gate_of(2), logits, step);
  const auto of_gate = test::probabilities(TopKGate{.k = 2}, moe::Matrix<double>(logits.leftCols(kExperts)), step);
  REQUIRE(routing.choices_per_token() == 2 * kLevels);
  for (Index t = 0; t < 30; ++t)
    for (std::size_t s = 0; s < 2; ++s) {
      const Index e = chosen.experts(t)[s], first = kExperts + e * kLevels;
      double share[kLevels], sum = 0;
      for (Index l = 0; l < kLevels; ++l)
        sum += share[l] = std::exp((logits(t, first + l) + gumbel.gumbel(t, first + l)) / tau);
      for (Index l = 0; l < kLevels; ++l) {
        const auto at = s * kLevels + static_cast<std::size_t>(l);
        CHECK(routing.experts(t)[at] == e * kLevels + l);
        CHECK_THAT(routing.weights(t)[at], Catch::Matchers::WithinRel(chosen.weights(t)[s] * share[l] / sum, 1e-12));
        CHECK_THAT(p(t, e * kLevels + l), Catch::Matchers::WithinRel(of_gate(t, e) * share[l] / sum, 1e-12));
      }
    }
}

TEST_CASE("WithLevels: gradients agree with central differences, around several gates", "[gate]") {
  auto logits = test::random_logits<double>(14, kLogits, 2);
  for (const Step& step : {Step::train(2, 3), Step{}}) {
    const auto check = [&]<class G>(const G& inner, moe::Matrix<double> of) {
      const WithLevels<G> gate{.gate = inner, .levels = kLevels, .temperature = {.start = 0.7, .end = 0.7}};
      CAPTURE(step.training());
      const auto routing = test::routed(gate, of, step);
      auto replayed = routing;
      gate.replay(of, step, replayed);
      CHECK(test::equal_bits(routing, replayed));
      CHECK(test::gate_gradient_error(gate, of, step) < 1e-6);
    };
    check(TopKGate{.k = 2, .normalise = moe::Normalise::Off}, logits);
    check(moe::TopPGate{.p = 0.8, .most = 4}, logits);  // ragged
    check(moe::WithCapacity<TopKGate>{.gate = TopKGate{.k = 2}, .capacity = {.factor = 0.8, .min_capacity = 1}},
          logits);
    check(moe::TopAnyGate<TopKGate>{.gate = {.k = 2}, .k = 2, .temperature = {.start = 0.7, .end = 0.7}},
          test::random_logits<double>(14, kLogits + 2, 5));
  }
}

TEST_CASE("WithLevels: levels that are dropped take only themselves along", "[gate]") {
  const Step step = Step::train(4, 9);
  const auto logits = test::random_logits<double>(6, kLogits, 2);
  const auto whole = test::routed(gate_of(2), logits, step);
  auto routing = whole;
  for (const Index a : {0, 7, 12, 13, 14}) routing.drop(a, moe::kDroppedByCapacity);  // 12 to 14: a choice with all
  moe::Scratch scratch;
  gate_of(2).replay<double>(logits, {step, scratch}, routing);
  moe::Matrix<double> dlogits;
  std::vector<double> slope(whole.weights().size(), 1.0);
  Gate gradient = gate_of(2);
  const auto loss = [&](const moe::Matrix<double>& at) {  // of weights that are kept
    auto again = routing;
    gate_of(2).replay<double>(at, {step, scratch}, again);
    double sum = 0;
    for (std::size_t a = 0; a < slope.size(); ++a) sum += slope[a] * again.weights()[a];
    return sum;
  };
  for (std::size_t a = 0; a < slope.size(); ++a) {
    CHECK(routing.weights()[a] == (routing.dropped()[a] != 0 ? 0 : whole.weights()[a]));
    slope[a] = std::cos(static_cast<double>(a));
  }
  gate_of(2).backward<double>(logits, {step, scratch}, routing, slope, moe::Matrix<double>(), dlogits, gradient);
  for (Index i = 0; i < logits.size(); ++i) {
    moe::Matrix<double> up = logits, down = logits;
    up.data()[i] += 1e-5, down.data()[i] -= 1e-5;
    CAPTURE(i);
    CHECK(std::abs(dlogits.data()[i] - (loss(up) - loss(down)) / 2e-5) < 1e-8);
  }
  Index choices = 0;
  gate_of(2).for_each_choice<double>("test", logits, {step, scratch}, routing,
                                     [&](Index, Index, std::span<const double>) { ++choices; });
  CHECK(choices == 11);
}

TEST_CASE("mean_bits_loss: the expected bits of choices, with its gradient", "[gate]") {
  const std::array bits = {2.0, 3.0, 5.0};
  const Gate gate = gate_of(2);
  auto logits = test::random_logits<double>(9, kLogits, 4);
  std::vector<std::uint8_t> valid(9, 1);
  valid[4] = 0;
  Step step = Step::train(1, 2);
  step.valid = valid;
  const auto routing = test::routed(gate, logits, step);
  moe::RoutingGradient<double> gradient;
  const double loss = moe::mean_bits_loss(gate, bits, logits, routing, step, 0.3, gradient);
  double expected = 0;
  for (Index t = 0; t < 9; ++t)
    for (std::size_t s = 0; s < 2 && t != 4; ++s) {
      double weight = 0, sum = 0;
      for (std::size_t l = 0; l < kLevels; ++l) {
        weight += routing.weights(t)[s * kLevels + l];
        sum += routing.weights(t)[s * kLevels + l] * bits[l];
      }
      expected += sum / weight / 16;
    }
  CHECK_THAT(loss, Catch::Matchers::WithinRel(expected, 1e-12));
  const auto weighed = [&] {
    moe::RoutingGradient<double> ignored;
    return 0.3 * moe::mean_bits_loss(gate, bits, logits, routing, step, 0.0, ignored);
  };
  CHECK(test::gradient_error(weighed, logits, gradient.logits) < 1e-8);
  CHECK_THROWS_AS(moe::mean_bits_loss(gate, std::array{1.0}, logits, routing, step, 0.3, gradient),
                  std::invalid_argument);
}

TEST_CASE("WithLevels: its bits do not depend on what else is in the batch", "[gate][property]") {
  const auto logits = test::random_logits<float>(30, kLogits, 6);
  const Gate gate = gate_of(2);
  const auto gradient_of = [&](const moe::Matrix<float>& of, const Step& step) {
    const auto routing = test::routed(gate, of, step);
    std::vector<float> slope(routing.weights().size());
    for (std::size_t a = 0; a < slope.size(); ++a) slope[a] = 0.5f + static_cast<float>(a % 6);  // alike for tokens
    moe::Matrix<float> dlogits;
    Gate own = gate;
    gate.backward(moe::Logits<float>(of), step, routing, std::span<const float>(slope), moe::Matrix<float>(), dlogits,
                  own);
    return dlogits;
  };
  const Step all = Step::train(2, 8);
  const auto routing = test::routed(gate, logits, all);
  for (const Index t : {0, 7, 29}) {
    const std::vector<std::int64_t> id = {t};
    Step step = all;
    step.token_id = id;
    const moe::Matrix<float> alone = logits.row(t);
    CHECK(test::equal_bits(test::routed(gate, alone, step).weights(), routing.weights(t)));
    CHECK(test::equal_bits(test::probabilities(gate, alone, step),
                           moe::Matrix<float>(test::probabilities(gate, logits, all).row(t))));
    CHECK(test::equal_bits(gradient_of(alone, step), moe::Matrix<float>(gradient_of(logits, all).row(t))));
  }
}

TEST_CASE("WithLevelCapacity: levels take their share of choices, by lot, and overflow is counted exactly", "[gate]") {
  using Limited = moe::WithLevelCapacity<TopKGate>;
  auto logits = test::random_logits<double>(40, kLogits, 7);
  for (Index t = 0; t < 40; ++t)
    for (Index e = 0; e < kExperts; ++e) logits(t, kExperts + e * kLevels + 2) += 2;  // most want all bits
  std::vector<std::uint8_t> valid(40, 1);
  valid[3] = valid[17] = 0;
  const Gate inner = gate_of(2);
  const Limited gate{.gate = inner, .capacity = {0.3, 0.4, 0.3}};
  std::vector<Index> dropped_by_lot[2];
  for (const std::size_t lot : {0u, 1u}) {
    Step step = Step::train(4, 9 + lot);
    step.valid = valid;
    const auto whole = test::routed(inner, logits, step), limited = test::routed(gate, logits, step);
    Index prefer[kLevels] = {}, dropped[kLevels] = {};
    for (Index a = 0; a < whole.num_assignments(); a += kLevels) {
      const auto weights = whole.weights().subspan(static_cast<std::size_t>(a), kLevels);
      const Index best = std::ranges::max_element(weights) - weights.begin();
      ++prefer[best];
      for (Index l = 0; l < kLevels; ++l) {
        const auto at = static_cast<std::size_t>(a + l);
        const bool is_over = limited.dropped()[at] == moe::kDroppedByCapacity;
        CHECK((!is_over || l == best));  // of a choice, no more than the level that it prefers
        CHECK(limited.experts()[at] == whole.experts()[at]);
        CHECK(limited.weights()[at] == (is_over ? 0 : whole.weights()[at]));
        if (is_over) ++dropped[l], dropped_by_lot[lot].push_back(a + l);
      }
    }
    const Index capacity[kLevels] = {23, 31, 23};  // .3 and .4, rounded up, of 38 tokens with two choices
    REQUIRE(prefer[2] > capacity[2]);
    REQUIRE(prefer[0] + prefer[1] + prefer[2] == 76);
    for (Index l = 0; l < kLevels; ++l) CHECK(dropped[l] == std::max<Index>(0, prefer[l] - capacity[l]));
    auto replayed = limited;
    gate.replay(logits, step, replayed);
    CHECK(test::equal_bits(limited, replayed));
    CHECK(test::gate_gradient_error(gate, logits, step, limited) < 1e-6);
    std::vector<std::int64_t> ids(40);
    std::vector<std::uint8_t> turned_valid(valid.rbegin(), valid.rend());
    for (std::size_t t = 0; t < 40; ++t) ids[t] = static_cast<std::int64_t>(39 - t);
    Step turned_step = step;  // the lot is the token's, not that of its place
    turned_step.valid = turned_valid;
    turned_step.token_id = ids;
    const auto turned = test::routed(gate, moe::Matrix<double>(logits.colwise().reverse()), turned_step);
    for (Index t = 0; t < 40; ++t) CHECK(test::equal_bits(turned.weights(39 - t), limited.weights(t)));
  }
  CHECK(dropped_by_lot[0] != dropped_by_lot[1]);
  CHECK(test::equal_bits(test::routed(gate, logits), test::routed(inner, logits)));  // no limit at inference
  CHECK(test::routed(gate, moe::Matrix<double>(0, kLogits), Step::train(1)).num_assignments() == 0);
  CHECK(gate.num_logits(15) == 20);
  for (const std::vector<double>& refused : {std::vector{0.3, 0.4}, {0.3, 0.4, 0.2}, {0.7, 0.5, -0.2}, {0.3, 0.7, NAN}})
    CHECK_THROWS_AS((Limited{.gate = inner, .capacity = refused}.validate(15)), std::invalid_argument);
  CHECK_NOTHROW(gate.validate(15));
}

TEST_CASE("WithLevels: numbers out of range and levels that say nothing are refused", "[gate][error]") {
  CHECK_THROWS_AS((Gate{.levels = 0}.num_logits(kExperts)), std::invalid_argument);  // a layer asks this first
  CHECK_THROWS_WITH(gate_of(1).validate(7),
                    "moe::WithLevels: 7 virtual experts, expected a multiple of levels = 3, at least 1");
  CHECK_THROWS_AS((Gate{.levels = 0}.validate(4)), std::invalid_argument);
  CHECK_THROWS_AS((Gate{.temperature = {.start = 0.1, .end = 1}}.validate(4)), std::invalid_argument);
  CHECK(gate_of(1).num_logits(15) == 20);
  CHECK_THROWS_WITH(test::routed(gate_of(1), test::row<double>({1, 2})),
                    "moe::WithLevels::route: logits have 2 columns, expected those of the gate and 3 levels, at least "
                    "1, of each expert");
  CHECK_THROWS_WITH(test::routed(gate_of(1), test::row<double>({1, NAN, 1, 1})),
                    "moe::WithLevels::route: level 0 of expert 0 of token 0 is nan, expected a number");
  CHECK_THROWS_WITH(test::routed(gate_of(1), test::row<double>({1, -INFINITY, -INFINITY, -INFINITY})),
                    "moe::WithLevels::route: the largest level of expert 0 of token 0 is -inf, expected a finite one");
  Step padding;
  const std::vector<std::uint8_t> valid = {0};
  padding.valid = valid;
  CHECK_NOTHROW(test::routed(gate_of(1), test::row<double>({1, NAN, NAN, NAN}), padding));
  const auto logits = test::random_logits<double>(2, kLogits, 1);
  auto at_inference = test::routed(gate_of(2), logits);
  CHECK_THROWS_AS(gate_of(2).replay(logits, Step::train(1), at_inference), std::invalid_argument);
}
