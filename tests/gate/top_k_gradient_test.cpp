// SPDX-License-Identifier: MIT
#include "gate/top_k_reference.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::Normalise;
using moe::Score;
using moe::TopKGate;

TEST_CASE("TopKGate: gradients agree with central differences for every combination of its axes", "[gate]") {
  for (const Index experts : {1, 8, 17})
    for (const Index k : {Index{1}, Index{3}, experts}) {
      if (k > experts) continue;
      const auto logits = test::random_logits<double>(2, experts, 21);
      test::for_each_top_k_gate(experts, k, [&](const TopKGate& gate) {
        CAPTURE(experts, k, static_cast<int>(gate.score), static_cast<int>(gate.normalise), gate.epsilon,
                gate.groups.count, gate.selection_bias.size(), gate.weight_bias.size());
        REQUIRE(test::gate_gradient_error(gate, logits) < 1e-6);
      });
    }
}

TEST_CASE("TopKGate: gradients with dropped choices agree with central differences", "[gate]") {
  const auto logits = test::random_logits<double>(3, 8, 22);
  test::for_each_top_k_gate(8, 3, [&](const TopKGate& gate) {
    auto routing = test::routed(gate, logits);
    for (const Index dropped : {0, 4, 6, 7, 8}) routing.drop(dropped, moe::kDroppedByCapacity);
    REQUIRE(test::gate_gradient_error(gate, logits, {}, routing) < 1e-6);
  });
}

TEMPLATE_TEST_CASE("TopKGate: with k = 1 and weights that sum to one the router gets exactly no gradient", "[gate]",
                   float, double) {
  const TopKGate gate{.k = 1, .constant_weights = moe::ConstantWeights::Accept};
  const auto logits = test::random_logits<TestType>(20, 9, 23);
  const auto routing = test::routed(gate, logits);
  moe::Matrix<TestType> dlogits;
  TopKGate gradient;
  gate.backward(logits, moe::Step{}, routing, std::vector<TestType>(20, 3), moe::Matrix<TestType>(), dlogits, gradient);
  CHECK(dlogits.isZero(0));
}

TEST_CASE("TopKGate: raw probabilities send gradient to logits that were not chosen, normalised ones do not",
          "[gate]") {
  const auto logits = test::row<double>({2, 1, 0.5, -1});
  const auto backward = [&](const TopKGate& gate) {
    moe::Matrix<double> dlogits;
    TopKGate gradient;
    gate.backward(logits, moe::Step{}, test::routed(gate, logits), std::vector<double>{1, -1}, moe::Matrix<double>(),
                  dlogits, gradient);
    return dlogits;
  };
  const auto raw = backward({.k = 2, .normalise = Normalise::Off});
  const double p[] = {0.609460, 0.224208, 0.135989, 0.030343}, mean = p[0] - p[1];
  for (Index e = 0; e < 4; ++e) {
    const double a = e == 0 ? 1 : e == 1 ? -1 : 0;
    CHECK_THAT(raw(0, e), WithinAbs(p[e] * (a - mean), 2e-6));  // p is given to six decimals
  }
  const auto normalised = backward({.k = 2});
  CHECK(normalised(0, 2) == 0);
  CHECK(normalised(0, 3) == 0);
  CHECK_THAT(normalised(0, 0), WithinAbs(2 * 0.731059 * 0.268941, 2e-6));
  CHECK_THAT(normalised(0, 0) + normalised(0, 1), WithinAbs(0, 1e-15));
}

TEST_CASE("TopKGate: with sigmoid scores only the chosen logits get gradient", "[gate]") {
  for (const Normalise normalise : {Normalise::Off, Normalise::Sum, Normalise::Euclidean}) {
    const TopKGate gate{.k = 2, .score = Score::Sigmoid, .normalise = normalise};
    const auto logits = test::row<double>({0.1, 2, -1, 1});
    moe::Matrix<double> dlogits;
    TopKGate gradient;
    gate.backward(logits, moe::Step{}, test::routed(gate, logits), std::vector<double>{1, -1}, moe::Matrix<double>(),
                  dlogits, gradient);
    CHECK(dlogits(0, 0) == 0);
    CHECK(dlogits(0, 2) == 0);
    CHECK(dlogits(0, 1) != 0);
    CHECK(dlogits(0, 3) != 0);
  }
}

TEMPLATE_TEST_CASE("TopKGate: masked experts get exactly no gradient, and nobody gets NaN", "[gate]", float, double) {
  auto logits = test::random_logits<TestType>(4, 9, 24);
  logits.col(3).setConstant(-INFINITY);
  test::for_each_top_k_gate(9, 3, [&](const TopKGate& gate) {
    const test::Backward<TestType, TopKGate> back(gate, logits, {}, test::routed(gate, logits));
    REQUIRE(back.dlogits.allFinite());
    REQUIRE(back.dlogits.col(3).isZero(0));
  });
}

TEST_CASE("TopKGate: gradients are added to what the gradient holds", "[gate]") {
  TopKGate gate;
  gate.weight_bias = test::random_bias(5, 1, 1);
  const auto logits = test::random_logits<double>(4, 5, 25);
  const auto routing = test::routed(gate, logits);
  test::Backward<double, TopKGate> back(gate, logits, {}, routing);
  const Eigen::RowVectorXd once = back.gradient.weight_bias;
  gate.backward(logits, moe::Step{}, routing, back.dweight, back.dprobability, back.dlogits, back.gradient);
  CHECK((back.gradient.weight_bias - 2 * once).isZero(0));
}
