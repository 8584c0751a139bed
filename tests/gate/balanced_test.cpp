// SPDX-License-Identifier: MIT
#include "moe/gate/balanced.hpp"

#include <map>

#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using moe::AssignmentSolver;
using moe::BalancedGate;
using moe::Index;
using moe::Step;

namespace {

const Step kTrain = Step::train(3);

/// Whether every group of valid tokens is shared out evenly.
bool is_even(const moe::Routing<double>& routing, const Step& step, Index experts) {
  std::map<std::int64_t, std::vector<Index>> loads;
  std::map<std::int64_t, Index> tokens;
  for (Index t = 0; t < routing.num_tokens(); ++t) {
    if (routing.experts(t).size() != (step.is_valid(t) ? 1u : 0u)) return false;
    if (!step.is_valid(t)) continue;
    auto& load = loads[step.group(t)];
    load.resize(static_cast<std::size_t>(experts));
    ++load[static_cast<std::size_t>(routing.experts(t)[0])];
    ++tokens[step.group(t)];
  }
  for (const auto& [group, load] : loads)
    for (const Index n : load)
      if (n < tokens[group] / experts || n > (tokens[group] + experts - 1) / experts) return false;
  return true;
}

}  // namespace

TEST_CASE("BalancedGate: shares four tokens out in training, and lets each choose at inference", "[gate]") {
  const auto logits = test::matrix<double>({{3, 1}, {2, 2.5}, {4, 3.9}, {1, 0}});
  const auto trained = test::routed(BalancedGate{}, logits, kTrain), inferred = test::routed(BalancedGate{}, logits);
  CHECK(test::copy_of(trained.experts()) == std::vector<Index>{0, 1, 1, 0});
  CHECK(test::copy_of(inferred.experts()) == std::vector<Index>{0, 1, 0, 0});
  for (Index t = 0; t < 4; ++t) {
    CHECK_THAT(trained.weights(t)[0], WithinAbs(1 / (1 + std::exp(-logits(t, trained.experts(t)[0]))), 1e-15));
    CHECK_THAT(inferred.weights(t)[0], WithinAbs(1 / (1 + std::exp(-logits(t, inferred.experts(t)[0]))), 1e-15));
  }
}

TEST_CASE("BalancedGate: groups are shared out by themselves, without padding", "[gate][property]") {
  for (const Index tokens : {1, 5, 70})
    for (const Index experts : {1, 4, 9})
      for (const auto solver : {AssignmentSolver::Exact, AssignmentSolver::Auction}) {
        CAPTURE(tokens, experts);
        const BalancedGate gate{.assignment = {.solver = solver}};
        const auto logits = test::random_logits<double>(tokens, experts, 5);
        const auto valid = test::every_nth_padding(tokens, 4);
        std::vector<std::int64_t> groups;
        for (Index t = 0; t < tokens; ++t) groups.push_back(t % 3 == 0 ? 7 : -1);
        Step step = kTrain;
        CHECK(is_even(test::routed(gate, logits, step), step, experts));
        step.group_id = groups;
        step.valid = valid;
        const auto routing = test::routed(gate, logits, step);
        CHECK(is_even(routing, step, experts));
        // A group alone, as a batch of its own.
        std::vector<Index> members;
        for (Index t = 0; t < tokens; ++t)
          if (valid[static_cast<std::size_t>(t)] && groups[static_cast<std::size_t>(t)] == -1) members.push_back(t);
        moe::Matrix<double> alone(static_cast<Index>(members.size()), experts);
        for (Index i = 0; i < alone.rows(); ++i) alone.row(i) = logits.row(members[static_cast<std::size_t>(i)]);
        const auto own = test::routed(gate, alone, kTrain);
        for (Index i = 0; i < alone.rows(); ++i)
          CHECK(own.experts(i)[0] == routing.experts(members[static_cast<std::size_t>(i)])[0]);
      }
}

TEST_CASE("BalancedGate: the sum of the chosen logits is the largest of balanced_assignment", "[gate]") {
  const auto logits = test::random_logits<float>(37, 6, 5);
  const auto routing = test::routed(BalancedGate{}, logits, kTrain);
  CHECK(test::copy_of(routing.experts()) == moe::balanced_assignment(logits));
}

TEST_CASE("BalancedGate: gradients agree with central differences", "[gate]") {
  const auto logits = test::random_logits<double>(9, 5, 9);
  CHECK(test::gate_gradient_error(BalancedGate{}, logits, kTrain) < 1e-6);
  CHECK(test::gate_gradient_error(BalancedGate{}, logits) < 1e-6);
}

TEST_CASE("BalancedGate: only the chosen logit learns from the weight", "[gate]") {
  const auto logits = test::random_logits<double>(9, 5, 9);
  const auto routing = test::routed(BalancedGate{}, logits, kTrain);
  const std::vector<double> dweight(9, 1);
  moe::Matrix<double> dlogits;
  BalancedGate gradient;
  BalancedGate{}.backward<double>(logits, kTrain, routing, dweight, moe::Matrix<double>(), dlogits, gradient);
  for (Index t = 0; t < 9; ++t)
    for (Index e = 0; e < 5; ++e) {
      const double g = routing.weights(t)[0];
      CHECK_THAT(dlogits(t, e), WithinAbs(e == routing.experts(t)[0] ? g * (1 - g) : 0, 1e-15));
    }
}

TEST_CASE("BalancedGate: any number of threads gives the same bits", "[gate][property]") {
  const auto logits = test::random_logits<float>(300, 9, 10);
  std::vector<std::int64_t> groups;
  for (Index t = 0; t < 300; ++t) groups.push_back(t % 7);
  Step step = kTrain;
  step.group_id = groups;
  const auto results = test::on_thread_counts([&] { return test::routed(BalancedGate{}, logits, step); });
  for (const auto& result : results) CHECK(test::equal_bits(result, results.front()));
}

TEST_CASE("BalancedGate: masked experts get no token while there are others", "[gate]") {
  auto logits = test::random_logits<double>(8, 4, 8);
  logits.topLeftCorner(4, 2).setConstant(-INFINITY);
  const auto routing = test::routed(BalancedGate{}, logits, kTrain);
  CHECK(is_even(routing, kTrain, 4));
  for (Index t = 0; t < 4; ++t) CHECK(routing.experts(t)[0] >= 2);
}

TEST_CASE("BalancedGate: no tokens make an empty routing", "[gate]") {
  CHECK(test::routed(BalancedGate{}, moe::Matrix<double>(0, 4), kTrain).num_assignments() == 0);
}

TEST_CASE("BalancedGate: bad numbers, logits and masks without even shares are refused", "[gate][error]") {
  CHECK_THROWS_AS(BalancedGate{}.validate(0), std::invalid_argument);
  CHECK_THROWS_WITH((BalancedGate{.assignment = {.epsilon = -1}}.validate(3)),
                    "moe::BalancedGate: epsilon is -1, expected a finite value above 0");
  auto logits = test::random_logits<double>(8, 4, 8);
  logits.col(2).setConstant(-INFINITY);
  CHECK_THROWS_WITH(test::routed(BalancedGate{}, logits, kTrain),
                    ContainsSubstring("would have to go to expert 2, which is masked: the 8 tokens of its group"));
  logits.row(5).setConstant(-INFINITY);
  CHECK_THROWS_WITH(test::routed(BalancedGate{}, logits, kTrain), ContainsSubstring("token 5 has 0 finite logits"));
  for (const Step& step : {Step{}, kTrain})
    CHECK_THROWS_WITH(test::routed(BalancedGate{}, test::row<double>({1, NAN, 2}), step),
                      ContainsSubstring("moe::BalancedGate::route: logit of token 0 for expert 1 is nan"));
}
