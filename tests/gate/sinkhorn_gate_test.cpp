// SPDX-License-Identifier: MIT
#include "moe/gate/sinkhorn.hpp"

#include "moe/numeric/balanced_assignment.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Normalise;
using moe::Score;
using moe::SinkhornGate;
using moe::Step;
using moe::TopKGate;

namespace {

const Step kTrain = Step::train(3);
const moe::SinkhornOptions kHard{.tolerance = 1e-10, .max_iterations = 20000, .temperature = 0.02};

}  // namespace

TEST_CASE("SinkhornGate: takes the largest shares of the plan in training, the largest logits at inference", "[gate]") {
  const auto logits = test::random_logits<double>(40, 6, 1);
  moe::Matrix<double> plan;
  moe::sinkhorn<double>(logits, kTrain, {.temperature = 0.5}, plan);
  for (const Index k : {1, 2, 6}) {
    const SinkhornGate gate{.top_k = {.k = k, .normalise = Normalise::Off}, .balance = {.temperature = 0.5}};
    const auto trained = test::routed(gate, logits, kTrain);
    const auto by_plan = test::top_k_routing(plan, k);
    CHECK(test::copy_of(trained.experts()) == test::copy_of(by_plan.experts()));
    CHECK(test::equal_bits(test::routed(gate, logits), test::routed(gate.top_k, logits)));
    const auto p = test::probabilities_of(logits);
    for (Index t = 0; t < 40; ++t)
      for (std::size_t s = 0; s < trained.experts(t).size(); ++s)
        CHECK(std::abs(trained.weights(t)[s] - p(t, trained.experts(t)[s])) < 1e-15);
  }
}

TEST_CASE("SinkhornGate: low temperatures give the balanced assignment", "[gate]") {
  const auto example = test::matrix<double>({{3, 1}, {2, 2.5}, {4, 3.9}, {1, 0}});
  CHECK(test::copy_of(test::routed(SinkhornGate{.balance = kHard}, example, kTrain).experts()) ==
        std::vector<Index>{0, 1, 1, 0});
  // Noise that is the same for all experts or all tokens, and 0.1 for the expert that a token shall have.
  auto logits = test::random_logits<double>(24, 4, 3, 0.005);
  std::vector<Index> hidden;
  for (Index t = 0; t < 24; ++t) {
    hidden.push_back((t * 7 + t / 4) % 4);
    for (Index e = 0; e < 4; ++e) logits(t, e) += 0.1 * static_cast<double>(t % 5) + 0.08 * static_cast<double>(e);
    logits(t, hidden.back()) += 0.1;
  }
  CHECK(moe::balanced_assignment(logits) == hidden);
  CHECK(test::copy_of(test::routed(SinkhornGate{.balance = kHard}, logits, kTrain).experts()) == hidden);
  CHECK(test::copy_of(test::routed(SinkhornGate{.balance = kHard}, logits).experts()) != hidden);
}

TEST_CASE("SinkhornGate: a number added to all logits of a token changes no choice", "[gate][property]") {
  auto logits = test::exact_logits<double>(30, 5, 2);
  const auto before = test::routed(SinkhornGate{}, logits, kTrain);
  for (Index t = 0; t < 30; ++t) logits.row(t).array() += static_cast<double>(t % 7) * 8;
  const auto after = test::routed(SinkhornGate{}, logits, kTrain);
  CHECK(test::copy_of(after.experts()) == test::copy_of(before.experts()));
}

TEST_CASE("SinkhornGate: equal logits go to the first experts, with equal weights", "[gate]") {
  const SinkhornGate gate{.top_k = {.k = 2, .normalise = Normalise::Off}};
  const auto routing = test::routed(gate, moe::Matrix<double>(moe::Matrix<double>::Constant(6, 4, 3)), kTrain);
  for (Index t = 0; t < 6; ++t) {
    CHECK(test::experts_of(routing, t) == std::vector<Index>{0, 1});
    for (const double weight : routing.weights(t)) CHECK(weight == 0.25);
  }
}

TEST_CASE("SinkhornGate: gradients agree with central differences, by softmax and sigmoid", "[gate]") {
  const auto logits = test::random_logits<double>(9, 5, 9);
  CHECK(test::gate_gradient_error(SinkhornGate{}, logits, kTrain) < 1e-6);
  const SinkhornGate megatron{.top_k = {.k = 1, .score = Score::Sigmoid, .normalise = Normalise::Off}};
  CHECK(test::gate_gradient_error(megatron, logits, kTrain) < 1e-6);
  const SinkhornGate biased{.top_k = {.k = 2, .weight_bias = test::random_bias(5, 3, 1)}};
  CHECK(test::gate_gradient_error(biased, logits, kTrain) < 1e-6);
}

TEST_CASE("SinkhornGate: padding and masked experts get nothing", "[gate]") {
  auto logits = test::random_logits<float>(12, 4, 8);
  logits.topLeftCorner(5, 2).setConstant(-INFINITY);
  const auto valid = test::every_nth_padding(12, 4);
  Step step = kTrain;
  step.valid = valid;
  logits.row(4).setConstant(NAN);
  const SinkhornGate gate{.top_k = {.k = 2}, .balance = {.temperature = 1e-4}};  // where most shares underflow
  const auto routing = test::routed(gate, logits, step);
  for (Index t = 0; t < 12; ++t) {
    CHECK(routing.experts(t).size() == (t % 4 == 0 ? 0u : 2u));
    for (const Index e : routing.experts(t)) CHECK(logits(t, e) > -INFINITY);
  }
}

TEST_CASE("SinkhornGate: any number of threads gives the same bits", "[gate][property]") {
  const auto logits = test::random_logits<double>(600, 9, 10);
  const auto results = test::on_thread_counts([&] { return test::routed(SinkhornGate{}, logits, kTrain); });
  for (const auto& result : results) CHECK(test::equal_bits(result, results.front()));
}

TEST_CASE("SinkhornGate: bad numbers, logits and masks are refused", "[gate][error]") {
  CHECK_THROWS_AS((SinkhornGate{.top_k = {.k = 4}}.validate(3)), std::invalid_argument);
  CHECK_THROWS_AS((SinkhornGate{.balance = {.temperature = 0}}.validate(3)), std::invalid_argument);
  CHECK_THROWS_WITH((SinkhornGate{.top_k = {.selection_bias = test::random_bias(4, 1, 1)}}.validate(4)),
                    "moe::SinkhornGate: selection_bias has 4 entries, expected none, as the plan selects");
  CHECK_THROWS_WITH((SinkhornGate{.top_k = {.groups = {.count = 2}}}.validate(4)),
                    "moe::SinkhornGate: groups.count is 2, expected 1, as the plan selects");
  CHECK_THROWS_WITH(test::routed(SinkhornGate{}, test::row<double>({1, NAN, 2}), kTrain),
                    ContainsSubstring("logit of token 0 for expert 1 is nan"));
  CHECK_THROWS_WITH(test::routed(SinkhornGate{.top_k = {.k = 2}}, test::row<double>({1, -INFINITY}), kTrain),
                    ContainsSubstring("token 0 has 1 finite logits"));
}
