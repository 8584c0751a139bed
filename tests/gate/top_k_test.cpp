// SPDX-License-Identifier: MIT
#include "moe/gate/top_k.hpp"

#include "gate/top_k_reference.hpp"
#include "moe/gate/softmax.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::Normalise;
using moe::Score;
using moe::TopKGate;

namespace {

constexpr double kPrinted = 5e-7;  // the expected values are given to six decimals

template <class S>
void require_weights(const moe::Routing<S>& routing, std::initializer_list<double> expected) {
  REQUIRE(routing.weights(0).size() == expected.size());
  for (std::size_t s = 0; const double weight : expected)
    CHECK_THAT(static_cast<double>(routing.weights(0)[s++]), WithinAbs(weight, kPrinted));
}

}  // namespace

TEMPLATE_TEST_CASE("TopKGate: by default the weights are a softmax over the two best logits", "[gate]", float, double) {
  const auto routing = test::routed(TopKGate{}, test::row<TestType>({2, 1, 0.5, -1}));
  CHECK(test::experts_of(routing) == std::vector<Index>{0, 1});
  require_weights(routing, {0.731059, 0.268941});
}

TEMPLATE_TEST_CASE("TopKGate: raw weights are probabilities over all experts", "[gate]", float, double) {
  const TopKGate gate{.k = 2, .normalise = Normalise::Off};
  require_weights(test::routed(gate, test::row<TestType>({2, 1, 0.5, -1})), {0.609460, 0.224208});
}

TEST_CASE("TopKGate: sigmoid scores do not compete", "[gate]") {
  const TopKGate gate{.k = 1, .score = Score::Sigmoid, .normalise = Normalise::Off};  // Llama 4
  require_weights(test::routed(gate, test::row<float>({0.3, 2, 1.9})), {0.880797});
}

TEST_CASE("TopKGate: Euclidean normalisation gives weights of length one", "[gate]") {
  const TopKGate gate{.k = 3, .normalise = Normalise::Euclidean};
  const auto weights = test::dense(test::routed(gate, test::random_logits<double>(20, 9, 4)), 9);
  for (Index t = 0; t < 20; ++t) CHECK_THAT(test::inner(weights.row(t), weights.row(t)), WithinAbs(1, 1e-14));
}

TEMPLATE_TEST_CASE("TopKGate: every combination of its axes agrees with the definition", "[gate]", float, double) {
  // Sums over E scores: (E + 20) eps relative; weights are below scale / norm <= 2.5 * max score / norm <= 2.5.
  for (const Index experts : test::kExpertCounts) {
    const double tolerance =
        3 * static_cast<double>(experts + 20) * static_cast<double>(std::numeric_limits<TestType>::epsilon());
    const auto logits = test::random_logits<TestType>(3, experts, 9, 2);
    for (const Index k : {Index{1}, Index{2}, experts / 2, experts}) {
      if (k < 1 || k > experts) continue;
      test::for_each_top_k_gate(experts, k, [&](const TopKGate& gate) {
        const auto routing = test::routed(gate, logits);
        for (Index t = 0; t < 3; ++t) {
          std::vector<double> z(static_cast<std::size_t>(experts));
          for (Index e = 0; e < experts; ++e) z[static_cast<std::size_t>(e)] = static_cast<double>(logits(t, e));
          const auto expected = test::reference_top_k(gate, z);
          CAPTURE(experts, k, t, static_cast<int>(gate.score), static_cast<int>(gate.normalise), gate.epsilon,
                  gate.groups.count, gate.groups.best, gate.selection_bias.size(), gate.weight_bias.size());
          REQUIRE(test::experts_of(routing, t) == expected.experts);
          for (std::size_t s = 0; s < expected.weights.size(); ++s)
            REQUIRE_THAT(static_cast<double>(routing.weights(t)[s]), WithinAbs(expected.weights[s], tolerance));
        }
      });
    }
  }
}

TEMPLATE_TEST_CASE("TopKGate: ties go to the lower expert", "[gate]", float, double) {
  for (const Index experts : test::kExpertCounts) {
    const auto routing =
        test::routed(TopKGate{.k = (experts + 1) / 2}, moe::Matrix<TestType>(moe::Matrix<TestType>::Zero(1, experts)));
    CAPTURE(experts);
    for (std::size_t s = 0; s < routing.experts(0).size(); ++s) REQUIRE(routing.experts(0)[s] == static_cast<Index>(s));
  }
  const auto routing = test::routed(TopKGate{.k = 3}, test::row<TestType>({1, 5, 1, 5, 1}));
  CHECK(test::experts_of(routing) == std::vector<Index>{1, 3, 0});
}

TEST_CASE("TopKGate: ties between groups go to the lower group", "[gate]") {
  for (const Index best : {1, 2}) {
    const TopKGate gate{.k = 3, .score = Score::Sigmoid, .groups = {.count = 4, .kept = 2, .best = best}};
    const auto routing = test::routed(gate, test::row<float>({0, 0, 1, 1, 0, 0, 1, 1}));
    CHECK(test::experts_of(routing) == std::vector<Index>{2, 3, 6});
    const auto equal = test::routed(gate, test::row<float>({1, 1, 1, 1, 1, 1, 1, 1}));
    CHECK(test::experts_of(equal) == std::vector<Index>{0, 1, 2});
  }
}

TEST_CASE("TopKGate: the selection bias chooses and does not weigh", "[gate]") {
  TopKGate gate{.k = 2, .score = Score::Sigmoid, .normalise = Normalise::Off};
  gate.selection_bias = Eigen::RowVector3d(0, 0, 5);
  const auto routing = test::routed(gate, test::row<double>({2, 1, -3}));
  CHECK(test::experts_of(routing) == std::vector<Index>{2, 0});
  CHECK_THAT(routing.weights(0)[0], WithinAbs(0.047426, kPrinted));
  CHECK_THAT(routing.weights(0)[1], WithinAbs(0.880797, kPrinted));
}

TEST_CASE("TopKGate: the weight bias weighs and does not choose", "[gate]") {
  TopKGate gate{.k = 2};
  gate.weight_bias = Eigen::RowVector3d(0, 1, 100);
  const auto routing = test::routed(gate, test::row<double>({2, 1, 0}));
  CHECK(test::experts_of(routing) == std::vector<Index>{0, 1});
  CHECK_THAT(routing.weights(0)[0], WithinAbs(0.5, 1e-15));
}

TEST_CASE("TopKGate: groups are ranked by the sum of their best scores", "[gate]") {
  const auto logits = test::row<double>({3, -9, 2, 2, -9, -9});  // best expert in group 0, best pair in group 1
  const TopKGate by_best{.k = 2, .score = Score::Sigmoid, .groups = {.count = 3, .kept = 1, .best = 1}};
  CHECK(test::experts_of(test::routed(by_best, logits)) == std::vector<Index>{0, 1});
  const TopKGate by_pair{.k = 2, .score = Score::Sigmoid, .groups = {.count = 3, .kept = 1, .best = 2}};
  CHECK(test::experts_of(test::routed(by_pair, logits)) == std::vector<Index>{2, 3});
}

TEST_CASE("TopKGate: experts outside the kept groups are not chosen even with a negative bias inside", "[gate]") {
  TopKGate gate{.k = 2, .score = Score::Sigmoid, .groups = {.count = 2, .kept = 1, .best = 1}};
  gate.selection_bias = Eigen::RowVector4d(-0.1, -5, -0.2, -0.2);
  const auto routing = test::routed(gate, test::row<double>({4, 4, 1, 1}));
  CHECK(test::experts_of(routing) == std::vector<Index>{0, 1});
}

TEMPLATE_TEST_CASE("TopKGate: a masked expert is never chosen, whatever its bias", "[gate]", float, double) {
  for (const Score score : {Score::Softmax, Score::Sigmoid}) {
    TopKGate gate{.k = 2, .score = score};
    gate.selection_bias = Eigen::RowVector4d(0, 100, 0, 0);
    const auto routing = test::routed(gate, test::row<TestType>({1, -INFINITY, 3, 2}));
    CHECK(test::experts_of(routing) == std::vector<Index>{2, 3});
  }
}

TEST_CASE("TopKGate: masked experts add nothing to the rank of their group", "[gate]") {
  const TopKGate gate{.k = 1, .score = Score::Sigmoid, .groups = {.count = 2, .kept = 1, .best = 2}};
  const auto routing = test::routed(gate, test::row<double>({3, -INFINITY, -2, -2}));
  CHECK(test::experts_of(routing) == std::vector<Index>{0});  // sigmoid(3) > 2 sigmoid(-2)
}

TEST_CASE("TopKGate: scores that all underflow give weights of zero, never NaN", "[gate]") {
  for (const Normalise normalise : {Normalise::Off, Normalise::Sum, Normalise::Euclidean}) {
    const TopKGate gate{.k = 2, .score = Score::Sigmoid, .normalise = normalise};
    const auto routing = test::routed(gate, test::row<float>({-300, -400, -500}));
    CHECK(test::experts_of(routing) == std::vector<Index>{0, 1});
    for (const float weight : routing.weights()) CHECK(weight == 0);
  }
}

TEST_CASE("TopKGate: the softmax over the chosen survives where their probabilities underflow", "[gate]") {
  TopKGate gate{.k = 2};
  gate.selection_bias = Eigen::RowVector3d(0, 5, 5);
  const auto routing = test::routed(gate, test::row<float>({0, -500, -501}));
  CHECK(test::experts_of(routing) == std::vector<Index>{1, 2});
  require_weights(routing, {0.731059, 0.268941});
}

TEST_CASE("TopKGate: reads logits from the middle of a wider matrix", "[gate]") {
  const auto wide = test::random_logits<float>(6, 20, 12);
  moe::Routing<float> of_block, of_copy;
  TopKGate{}.route(wide.block(1, 3, 4, 9), moe::Step{}, of_block);
  TopKGate{}.route(moe::Matrix<float>(wide.block(1, 3, 4, 9)), moe::Step{}, of_copy);
  CHECK(test::equal_bits(of_block, of_copy));
}

TEST_CASE("TopKGate: serves more experts than its scratch on the stack holds", "[gate]") {
  TopKGate gate{.k = 3, .score = Score::Sigmoid, .groups = {.count = 5, .kept = 2, .best = 2}};
  gate.selection_bias = test::random_bias(3000, 1, 0.1);
  const auto logits = test::random_logits<double>(2, 3000, 1);
  const auto routing = test::routed(gate, logits);
  for (Index t = 0; t < 2; ++t) {
    const std::vector<double> z(&logits(t, 0), &logits(t, 0) + 3000);
    CHECK(test::experts_of(routing, t) == test::reference_top_k(gate, z).experts);
  }
}

TEST_CASE("TopKGate: its probabilities are the scores with the weight bias and without the selection bias", "[gate]") {
  TopKGate gate{.k = 1, .score = Score::Sigmoid};
  gate.selection_bias = Eigen::RowVector2d(9, 9);
  gate.weight_bias = Eigen::RowVector2d(0, 1);
  const auto p = test::probabilities(gate, test::row<double>({0, 1}));
  CHECK_THAT(p(0, 0), WithinAbs(0.5, 1e-15));
  CHECK_THAT(p(0, 1), WithinAbs(0.880797, kPrinted));
}

TEMPLATE_TEST_CASE("TopKGate: with k = num_experts it is the dense softmax", "[gate][property]", float, double) {
  // Both orders of summation: n eps.
  for (const Index experts : test::kExpertCounts) {
    const auto logits = test::random_logits<TestType>(10, experts, 50);
    const auto expected = test::dense(test::routed(moe::SoftmaxGate{}, logits), experts);
    const double tolerance =
        static_cast<double>(experts + 8) * static_cast<double>(std::numeric_limits<TestType>::epsilon());
    for (const Normalise normalise : {Normalise::Off, Normalise::Sum}) {
      const auto weights = test::dense(test::routed(TopKGate{.k = experts, .normalise = normalise}, logits), experts);
      CAPTURE(experts, static_cast<int>(normalise));
      REQUIRE(test::largest(weights - expected) < tolerance);
    }
  }
}

TEST_CASE("TopKGate: only biases that are there are visited", "[gate]") {
  TopKGate gate;
  CHECK(moe::num_parameters(gate) == 0);
  gate.weight_bias = Eigen::RowVectorXd::Ones(4);
  std::vector<std::string> names;
  moe::visit([&](const std::string& name, auto&) { names.push_back(name); }, gate);
  CHECK(names == std::vector<std::string>{"weight_bias"});
  CHECK(moe::num_parameters(gate) == 4);
}

TEST_CASE("TopKGate: a selection bias is state, where there is one", "[gate]") {
  TopKGate gate{.weight_bias = Eigen::RowVectorXd::Ones(4)};
  CHECK(moe::num_state(gate) == 0);
  gate.selection_bias = Eigen::RowVectorXd::Ones(4);
  std::vector<std::string> names;
  moe::visit_state([&](const std::string& name, auto&) { names.push_back(name); }, gate);
  CHECK(names == std::vector<std::string>{"selection_bias"});
  CHECK(moe::num_parameters(gate) == 4);
}
