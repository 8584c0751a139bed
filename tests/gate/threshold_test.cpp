// SPDX-License-Identifier: MIT
#include "moe/gate/threshold.hpp"

#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::ChoiceWeight;
using moe::Index;
using moe::Score;
using moe::ThresholdGate;
using moe::Unclaimed;

namespace {

double score_of(Score score, double z) {
  return score == Score::Sigmoid ? 1 / (1 + std::exp(-z)) : std::sqrt(std::log(1 + std::exp(z)));
}

}  // namespace

TEST_CASE("ThresholdGate: sigmoids above one half are active, that of zero is not", "[gate]") {
  const auto logits = test::row<double>({2, 0, -1, 1e-9, -INFINITY});
  const auto routing = test::routed(ThresholdGate{}, logits);
  CHECK(test::experts_of(routing) == std::vector<Index>{0, 3});
  CHECK_THAT(routing.weights(0)[0], Catch::Matchers::WithinAbs(1 / (1 + std::exp(-2.0)), 1e-15));
  const auto unit = test::routed(ThresholdGate{.weight = ChoiceWeight::Unit}, logits);
  CHECK(test::experts_of(unit) == std::vector<Index>{0, 3});
  CHECK(unit.weights(0)[0] == 1);
  CHECK(unit.weights(0)[1] == 1);
}

TEST_CASE("ThresholdGate: choices and weights are those of the definition", "[gate]") {
  for (const Score score : {Score::Sigmoid, Score::SqrtSoftplus})
    for (const bool own : {false, true}) {
      const auto logits = test::random_logits<double>(60, 9, 1);
      ThresholdGate gate{.threshold = 0.6, .score = score, .unclaimed = Unclaimed::Nobody};
      if (own) gate.thresholds = test::random_bias(9, 2, 0.2).array() + 0.7;
      const auto routing = test::routed(gate, logits);
      for (Index t = 0; t < 60; ++t) {
        std::size_t s = 0;
        for (Index e = 0; e < 9; ++e) {
          const double value = score_of(score, logits(t, e));
          if (!(value > (own ? gate.thresholds(e) : 0.6))) continue;
          REQUIRE(s < routing.experts(t).size());
          CHECK(routing.experts(t)[s] == e);
          CHECK_THAT(routing.weights(t)[s++], Catch::Matchers::WithinRel(value, 1e-14));
        }
        CHECK(s == routing.experts(t).size());
      }
    }
}

TEST_CASE("ThresholdGate: a softmax above a threshold", "[gate]") {
  const auto logits = test::row<double>({std::log(0.5), std::log(0.2), std::log(0.3)});
  const ThresholdGate gate{.threshold = 0.25, .score = Score::Softmax};
  CHECK(test::experts_of(test::routed(gate, logits)) == std::vector<Index>{0, 2});
  CHECK_THAT(test::routed(gate, logits).weights(0)[1], Catch::Matchers::WithinAbs(0.3, 1e-15));
}

TEST_CASE("ThresholdGate: a token that no expert is active for goes to its best one, or nowhere", "[gate]") {
  const auto logits = test::row<float>({-3, -1, -1, -2});
  CHECK(test::experts_of(test::routed(ThresholdGate{}, logits)) == std::vector<Index>{1});
  CHECK(test::routed(ThresholdGate{.unclaimed = Unclaimed::Nobody}, logits).num_assignments() == 0);
  const auto masked = test::row<float>({-INFINITY, -INFINITY});
  CHECK_THROWS_AS(test::routed(ThresholdGate{}, masked), std::invalid_argument);
  CHECK(test::routed(ThresholdGate{.unclaimed = Unclaimed::Nobody}, masked).num_assignments() == 0);
  CHECK(test::routed(ThresholdGate{.threshold = -1, .unclaimed = Unclaimed::Nobody}, masked).num_assignments() == 0);
}

TEST_CASE("ThresholdGate: any number of thousands of experts", "[gate]") {
  const auto logits = test::random_logits<float>(2, 5000, 3);
  CHECK(test::routed(ThresholdGate{.threshold = 0}, logits).num_assignments() == 2 * 5000);
  const auto half = test::routed(ThresholdGate{}, logits).num_assignments();
  CHECK(half == (logits.array() > 0).count());
}

TEST_CASE("ThresholdGate: gradients agree with central differences", "[gate]") {
  const auto logits = test::random_logits<double>(6, 7, 4);
  for (const Score score : {Score::Sigmoid, Score::SqrtSoftplus, Score::Softmax})
    for (const ChoiceWeight weight : {ChoiceWeight::Score, ChoiceWeight::Unit}) {
      CAPTURE(int(score), int(weight));
      CHECK(test::gate_gradient_error(ThresholdGate{.threshold = 0.2, .score = score, .weight = weight}, logits) <
            1e-6);
    }
}

TEST_CASE("ThresholdGate: thresholds are state that goes with its experts", "[gate]") {
  ThresholdGate gate, other;
  gate.thresholds = test::row<double>({0.1, 0.2, 0.3}).row(0);
  other.thresholds = test::row<double>({0.4}).row(0);
  CHECK(moe::num_parameters(gate) == 0);
  CHECK(moe::num_state(gate) == 3);
  CHECK(gate.take(std::vector<Index>{2, 0}, 3).thresholds == test::row<double>({0.3, 0.1}).row(0));
  CHECK(gate.concatenate(other, 3, 1).thresholds == test::row<double>({0.1, 0.2, 0.3, 0.4}).row(0));
  CHECK_THROWS_AS(gate.concatenate(ThresholdGate{}, 3, 1), std::invalid_argument);
  other.weight = ChoiceWeight::Unit;
  CHECK_THROWS_AS(gate.concatenate(other, 3, 1), std::invalid_argument);
}

TEST_CASE("ThresholdGate: thresholds that are no numbers, too few of them and NaN are refused", "[gate][error]") {
  ThresholdGate gate{.thresholds = Eigen::RowVectorXd::Zero(3)};
  CHECK(test::message_of([&] { gate.validate(4); }) ==
        "moe::ThresholdGate: thresholds has 3 entries, expected 0 or num_experts = 4");
  gate.thresholds(1) = NAN;
  CHECK(test::message_of([&] { gate.validate(3); }) ==
        "moe::ThresholdGate: thresholds of expert 1 is nan, expected a number that is finite in float");
  CHECK_THROWS_WITH(ThresholdGate{.threshold = INFINITY}.validate(4),
                    "moe::ThresholdGate: threshold is inf, expected a finite number");
  CHECK_THROWS_AS(test::routed(ThresholdGate{}, test::row<double>({1, NAN, 2})), std::invalid_argument);
}
