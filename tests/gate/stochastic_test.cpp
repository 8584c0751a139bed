// SPDX-License-Identifier: MIT
#include "moe/gate/stochastic.hpp"

#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::DrawPer;
using moe::Index;
using moe::Passes;
using moe::Step;
using moe::StochasticGate;

namespace {

moe::Matrix<float> shape(Index tokens, Index experts) { return moe::Matrix<float>::Zero(tokens, experts); }

/// How often each pair (expert in a, expert in b) occurs, as one list.
std::vector<double> joint_counts(const moe::Routing<float>& a, const moe::Routing<float>& b, Index experts) {
  std::vector<double> counts(static_cast<std::size_t>(experts * experts));
  for (std::size_t i = 0; i < a.experts().size(); ++i)
    ++counts[static_cast<std::size_t>(a.experts()[i] * experts + b.experts()[i])];
  return counts;
}

}  // namespace

TEST_CASE("StochasticGate: one expert of weight one per token by default", "[gate]") {
  const auto routing = test::routed(StochasticGate{}, shape(50, 4));
  REQUIRE(routing.num_assignments() == 50);
  for (const float weight : routing.weights()) CHECK(weight == 1);
}

TEST_CASE("StochasticGate: draws per token are uniform", "[gate]") {
  const auto routing = test::routed(StochasticGate{}, shape(100000, 8));
  std::vector<double> counts(8);
  for (const Index e : routing.experts()) ++counts[static_cast<std::size_t>(e)];
  CHECK(test::chi_square(counts, std::vector<double>(8, 1.0 / 8)) < 24.32);  // p = 0.001 at 7 degrees of freedom
}

TEST_CASE("StochasticGate: every set of k distinct experts is equally likely, each with weight 1 / k", "[gate]") {
  const auto routing = test::routed(StochasticGate{.k = 2}, shape(60000, 4));
  std::vector<double> counts(12);  // ordered pairs of distinct experts
  for (Index t = 0; t < 60000; ++t) {
    const Index a = routing.experts(t)[0], b = routing.experts(t)[1];
    REQUIRE(a != b);
    REQUIRE(routing.weights(t)[0] == 0.5f);
    ++counts[static_cast<std::size_t>(a * 3 + (b > a ? b - 1 : b))];
  }
  CHECK(test::chi_square(counts, std::vector<double>(12, 1.0 / 12)) < 31.26);  // p = 0.001 at 11
}

TEST_CASE("StochasticGate: k = num_experts takes every expert", "[gate]") {
  auto experts = test::experts_of(test::routed(StochasticGate{.k = 5}, shape(1, 5)));
  std::sort(experts.begin(), experts.end());
  CHECK(experts == std::vector<Index>{0, 1, 2, 3, 4});
}

TEST_CASE("StochasticGate: in training the batch shares a draw, and updates differ", "[gate]") {
  std::vector<double> counts(4);
  for (std::uint64_t update = 0; update < 400; ++update) {
    const auto routing = test::routed(StochasticGate{}, shape(10, 4), Step::train(update));
    for (const Index e : routing.experts()) REQUIRE(e == routing.experts()[0]);
    ++counts[static_cast<std::size_t>(routing.experts()[0])];
  }
  CHECK(test::chi_square(counts, std::vector<double>(4, 0.25)) < 16.27);  // p = 0.001 at 3 degrees of freedom
}

TEST_CASE("StochasticGate: tokens of a group share a draw, groups differ", "[gate]") {
  std::vector<std::int64_t> group(300);
  for (std::size_t t = 0; t < group.size(); ++t) group[t] = static_cast<std::int64_t>(t / 3);
  Step step;
  step.group_id = group;
  const auto routing = test::routed(StochasticGate{.inference = DrawPer::Group}, shape(300, 4), step);
  std::vector<double> counts(4);
  for (Index t = 0; t < 300; ++t) {
    REQUIRE(routing.experts(t)[0] == routing.experts(t - t % 3)[0]);
    ++counts[static_cast<std::size_t>(routing.experts(t)[0])];
  }
  for (const double count : counts) CHECK(count > 0);
}

TEST_CASE("StochasticGate: draws of layers, passes, seeds and updates are independent", "[gate]") {
  Step layer, pass, seed, update;
  layer.layer = 1;
  pass.pass = 1;
  seed.seed = 1;
  update.update = 1;
  const auto first = test::routed(StochasticGate{}, shape(40000, 3));
  for (const Step& other : {layer, pass, seed, update}) {
    const auto counts = joint_counts(first, test::routed(StochasticGate{}, shape(40000, 3), other), 3);
    CHECK(test::chi_square(counts, std::vector<double>(9, 1.0 / 9)) < 26.12);  // p = 0.001 at 8 degrees of freedom
  }
}

TEST_CASE("StochasticGate: distinct passes never meet, and all pairs are equally likely", "[gate]") {
  Step second;
  second.pass = 1;
  const StochasticGate gate{.passes = Passes::Distinct};
  const auto counts = joint_counts(test::routed(gate, shape(40000, 3)), test::routed(gate, shape(40000, 3), second), 3);
  CHECK(counts[0] + counts[4] + counts[8] == 0);
  const std::vector<double> pairs = {counts[1], counts[2], counts[3], counts[5], counts[6], counts[7]};
  CHECK(test::chi_square(pairs, std::vector<double>(6, 1.0 / 6)) < 20.52);  // p = 0.001 at 5 degrees of freedom
}

TEST_CASE("StochasticGate: more distinct passes than experts allow are refused", "[gate][error]") {
  Step step;
  step.pass = 2;
  const StochasticGate gate{.k = 2, .passes = Passes::Distinct};
  CHECK(test::routed(gate, shape(3, 6), step).num_assignments() == 6);
  CHECK(test::contains(test::message_of([&] { test::routed(gate, shape(3, 5), step); }),
                       "takes 6 distinct experts, expected at most num_experts = 5"));
}

TEST_CASE("StochasticGate: probabilities are uniform and no gradient flows", "[gate]") {
  const auto logits = test::random_logits<double>(5, 4, 1);
  CHECK(test::probabilities(StochasticGate{}, logits).isApproxToConstant(0.25, 0));
  const test::Backward<double, StochasticGate> back(StochasticGate{}, logits, {},
                                                    test::routed(StochasticGate{}, logits));
  CHECK(back.dlogits.isZero(0));
  CHECK(test::gate_gradient_error(StochasticGate{.k = 2}, logits) < 1e-6);
}

TEST_CASE("StochasticGate: k outside [1, num_experts] is refused", "[gate][error]") {
  CHECK_THROWS_AS(StochasticGate{.k = 0}.validate(3), std::invalid_argument);
  CHECK_THROWS_AS(StochasticGate{.k = 4}.validate(3), std::invalid_argument);
  CHECK_THROWS_AS(StochasticGate{}.validate(0), std::invalid_argument);
  CHECK_THROWS_AS(test::routed(StochasticGate{.k = 4}, shape(1, 3)), std::invalid_argument);
}
