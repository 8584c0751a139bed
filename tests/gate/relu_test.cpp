// SPDX-License-Identifier: MIT
#include "moe/gate/relu.hpp"

#include "moe/routing/balance/load_balancing.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::ReluGate;

TEST_CASE("ReluGate: positive logits are the weights, and nobody else is chosen", "[gate]") {
  moe::Matrix<double> logits(4, 4);
  logits << 0.5, -1, 2, 0, -1, -2, -0.0, 0, 1, 1, 1, 1, 3, -INFINITY, -INFINITY, -INFINITY;
  const auto routing = test::routed(ReluGate{}, logits);
  CHECK(test::experts_of(routing, 0) == std::vector<Index>{0, 2});
  CHECK(routing.weights(0)[0] == 0.5);
  CHECK(routing.weights(0)[1] == 2);
  CHECK(routing.experts(1).empty());
  CHECK(test::experts_of(routing, 2) == std::vector<Index>{0, 1, 2, 3});
  CHECK(test::experts_of(routing, 3) == std::vector<Index>{0});
  const auto p = test::probabilities(ReluGate{}, logits);
  CHECK(p.row(0) == Eigen::RowVector4d(0.5, 0, 2, 0));
  CHECK(p.row(3) == Eigen::RowVector4d(3, 0, 0, 0));
}

TEST_CASE("ReluGate: its gradient is the true one, choices made anew", "[gate]") {
  auto logits = test::random_logits<double>(8, 7, 1);
  for (Index i = 0; i < logits.size(); ++i)  // further from 0 than a step of the difference
    if (std::abs(logits.data()[i]) < 1e-3) logits.data()[i] = 0.1;
  const moe::Matrix<double> target = test::random_logits<double>(8, 7, 2);
  // Half the squared distance of the dense weights from a target, plus a term of the scores.
  const auto loss = [&] {
    const moe::Matrix<double> off = test::dense(test::routed(ReluGate{}, logits), 7) - target;
    return test::inner(off, off) / 2 + test::inner(target, test::probabilities(ReluGate{}, logits));
  };
  const auto routing = test::routed(ReluGate{}, logits);
  std::vector<double> dweight;
  for (Index t = 0; t < 8; ++t)
    for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
      dweight.push_back(routing.weights(t)[s] - target(t, routing.experts(t)[s]));
  moe::Matrix<double> dlogits;
  ReluGate gradient;
  ReluGate{}.backward(logits, moe::Step{}, routing, std::span<const double>(dweight), target, dlogits, gradient);
  CHECK(test::gradient_error(loss, logits, dlogits) < 1e-8);
  CHECK(test::gate_gradient_error(ReluGate{}, logits) < 1e-8);
}

TEST_CASE("ReluGate: a recorded choice that is not positive has weight zero and no gradient", "[gate]") {
  const auto logits = test::row<double>({-1, 2});
  moe::Routing<double> routing = test::routing_of({{0, 1}});
  ReluGate{}.replay(logits, moe::Step{}, routing);
  CHECK(routing.weights(0)[0] == 0);
  CHECK(routing.weights(0)[1] == 2);
  const std::vector<double> dweight = {3, 5};
  moe::Matrix<double> dlogits;
  ReluGate gradient;
  ReluGate{}.backward(logits, moe::Step{}, routing, std::span<const double>(dweight), moe::Matrix<double>(), dlogits,
                      gradient);
  CHECK(dlogits == test::row<double>({0, 5}));
}

TEST_CASE("ReluGate: any number of thousands of experts", "[gate]") {
  const auto logits = test::random_logits<float>(2, 5000, 3);
  CHECK(test::routed(ReluGate{}, logits).num_assignments() == (logits.array() > 0).count());
  const moe::Matrix<float> all = logits.cwiseAbs();
  CHECK(test::routed(ReluGate{}, all).num_assignments() == 2 * 5000);
}

TEST_CASE("ReluGate: the balance loss on its scores pulls at an expert by its share of choices", "[gate][loss]") {
  // f = (2/3, 1/3), mean scores (1, 1.5): 2 * (2/3 + 1/2); slopes 2 f / B.
  moe::Matrix<double> logits(2, 2);
  logits << 1, 3, 1, -1;
  moe::RoutingGradient<double> gradient;
  const double loss = moe::load_balancing_loss(test::probabilities(ReluGate{}, logits),
                                               test::routed(ReluGate{}, logits), moe::Step{}, 1.0, gradient);
  CHECK_THAT(loss, Catch::Matchers::WithinAbs(7.0 / 3, 1e-15));
  CHECK_THAT(gradient.probability(0, 0), Catch::Matchers::WithinAbs(2.0 / 3, 1e-15));
  CHECK_THAT(gradient.probability(1, 1), Catch::Matchers::WithinAbs(1.0 / 3, 1e-15));
}

TEST_CASE("ReluGate: NaN, infinity and no experts are refused", "[gate][error]") {
  CHECK_THROWS_WITH(
      test::routed(ReluGate{}, test::row<double>({1, INFINITY})),
      "moe::ReluGate::route: logit of token 0 for expert 1 is inf, expected a finite number, or -infinity "
      "as a mask");
  CHECK_THROWS_AS(test::routed(ReluGate{}, test::row<double>({1, NAN})), std::invalid_argument);
  CHECK_THROWS_AS(ReluGate{}.validate(0), std::invalid_argument);
}
