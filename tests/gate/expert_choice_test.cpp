// SPDX-License-Identifier: MIT
#include "moe/gate/expert_choice.hpp"

#include "support/catch.hpp"
#include "support/gates.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::WithinAbs;
using moe::ExpertChoiceGate;
using moe::Index;
using moe::Step;

namespace {

using Choice = std::vector<std::vector<Index>>;  // tokens of each expert, ascending

template <class S>
Choice tokens_of_experts(const moe::Routing<S>& routing, Index experts) {
  Choice tokens(static_cast<std::size_t>(experts));
  for (Index t = 0; t < routing.num_tokens(); ++t) {
    REQUIRE(std::is_sorted(routing.experts(t).begin(), routing.experts(t).end()));
    for (const Index e : routing.experts(t)) tokens[static_cast<std::size_t>(e)].push_back(t);
  }
  return tokens;
}

/// Straight from the definition: sort the tokens of a group by probability, take the first.
template <class S>
Choice by_definition(const moe::Matrix<S>& p, const Step& step, Index places) {
  Choice choice(static_cast<std::size_t>(p.cols()));
  for (Index e = 0; e < p.cols(); ++e) {
    auto& chosen = choice[static_cast<std::size_t>(e)];
    for (Index t = 0; t < p.rows(); ++t) {
      if (!step.is_valid(t)) continue;
      Index better = 0;
      for (Index other = 0; other < p.rows(); ++other)
        if (step.is_valid(other) && step.group(other) == step.group(t))
          better += p(other, e) > p(t, e) || (p(other, e) == p(t, e) && other < t) ? 1 : 0;
      if (better < places) chosen.push_back(t);
    }
  }
  return choice;
}

}  // namespace

TEST_CASE("ExpertChoiceGate: the worked example of four tokens", "[gate]") {
  moe::Matrix<double> logits(4, 3);
  logits << 2, 0, 0, 1, 1, 0, 0, 2, 0, 0, 0, 0;
  const auto routing = test::routed(ExpertChoiceGate{.factor = 1}, logits);
  CHECK(tokens_of_experts(routing, 3) == Choice{{0, 1}, {1, 2}, {1, 3}});
  const auto weights = test::dense(routing, 3);
  CHECK_THAT(weights(0, 0), WithinAbs(.786986, 1e-6));  // given to six digits
  CHECK_THAT(weights(1, 1), WithinAbs(.422319, 1e-6));
  CHECK_THAT(weights(3, 2), WithinAbs(.333333, 1e-6));
}

TEMPLATE_TEST_CASE("ExpertChoiceGate: equals its definition, in groups and with padding", "[gate]", float, double) {
  for (const Index tokens : {1, 2, 33, 70})
    for (const Index experts : {1, 3, 17})
      for (const Index capacity : {1, 4, 200}) {
        CAPTURE(tokens, experts, capacity);
        std::vector<std::int64_t> groups;
        std::vector<std::uint8_t> valid;
        for (Index t = 0; t < tokens; ++t) {
          groups.push_back(t % 3 == 0 ? 7 : -1);
          valid.push_back(t % 5 != 1);
        }
        Step step;
        const auto logits = test::random_logits<TestType>(tokens, experts, 5);
        const auto p = test::probabilities(moe::SoftmaxGate{}, logits);
        for (const int mode : {0, 1, 2}) {
          if (mode > 0) step.group_id = groups;
          if (mode > 1) step.valid = valid;
          const auto routing = test::routed(ExpertChoiceGate{.capacity = capacity}, logits, step);
          CHECK(tokens_of_experts(routing, experts) == by_definition(p, step, capacity));
          for (Index t = 0; t < tokens; ++t)
            for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
              CHECK(routing.weights(t)[s] == p(t, routing.experts(t)[s]));
        }
      }
}

TEST_CASE("ExpertChoiceGate: the factor is the mean number of experts per token", "[gate]") {
  CHECK(ExpertChoiceGate{.factor = 1}.places(4, 3) == 2);
  CHECK(ExpertChoiceGate{.factor = 2}.places(32, 8) == 8);
  CHECK(ExpertChoiceGate{.factor = 1.1}.places(100, 10) == 11);
  CHECK(ExpertChoiceGate{.factor = 0.01}.places(3, 8) == 1);
  CHECK(ExpertChoiceGate{.factor = INFINITY}.places(5, 8) == 5);
  CHECK(ExpertChoiceGate{.factor = 1}.places(0, 8) == 0);
  CHECK(ExpertChoiceGate{.capacity = 3}.places(2, 8) == 2);
}

TEST_CASE("ExpertChoiceGate: equal tokens are taken from the first on", "[gate]") {
  const auto routing =
      test::routed(ExpertChoiceGate{.capacity = 2}, moe::Matrix<double>(moe::Matrix<double>::Zero(5, 3)));
  CHECK(tokens_of_experts(routing, 3) == Choice{{0, 1}, {0, 1}, {0, 1}});
}

TEST_CASE("ExpertChoiceGate: masked experts are not sent a token, even where there is room", "[gate]") {
  auto logits = test::random_logits<double>(6, 4, 8);
  logits.row(2).leftCols(2).setConstant(-INFINITY);
  const auto tokens = tokens_of_experts(test::routed(ExpertChoiceGate{.capacity = 6}, logits), 4);
  CHECK(tokens == Choice{{0, 1, 3, 4, 5}, {0, 1, 3, 4, 5}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}});
}

TEST_CASE("ExpertChoiceGate: gradients agree with central differences", "[gate]") {
  for (const Index capacity : {1, 3}) {
    CAPTURE(capacity);
    const auto logits = test::random_logits<double>(9, 5, 9);
    CHECK(test::gate_gradient_error(ExpertChoiceGate{.capacity = capacity}, logits) < 1e-6);
  }
}

TEMPLATE_TEST_CASE("ExpertChoiceGate: any number of threads gives the same bits", "[gate][property]", float, double) {
  const auto logits = test::random_logits<TestType>(300, 9, 10);
  const auto once = test::routed(ExpertChoiceGate{}, logits);
  for (const Index workers : {2, 3, 8}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    CHECK(test::equal_bits(test::routed(ExpertChoiceGate{}, logits), once));
  }
}

TEST_CASE("ExpertChoiceGate: no tokens make an empty routing", "[gate]") {
  const auto routing = test::routed(ExpertChoiceGate{}, moe::Matrix<double>(0, 4));
  CHECK((routing.num_tokens() == 0 && routing.num_assignments() == 0));
}

TEST_CASE("ExpertChoiceGate: bad numbers and logits are refused", "[gate][error]") {
  CHECK_THROWS_AS(ExpertChoiceGate{}.validate(0), std::invalid_argument);
  CHECK_THROWS_AS(ExpertChoiceGate{.factor = 0}.validate(3), std::invalid_argument);
  CHECK_THROWS_AS(ExpertChoiceGate{.factor = NAN}.validate(3), std::invalid_argument);
  CHECK_THROWS_AS(ExpertChoiceGate{.capacity = -1}.validate(3), std::invalid_argument);
  CHECK(test::contains(test::message_of([] {
                         test::routed(ExpertChoiceGate{}, test::row<double>({1, NAN, 2}));
                       }),
                       "moe::ExpertChoiceGate::route: logit of token 0 for expert 1 is nan"));
}
