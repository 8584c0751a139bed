// SPDX-License-Identifier: MIT
#include "moe/gate/token_gate.hpp"

#include <cmath>

#include "moe/gate/softmax.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/numeric/softmax.hpp"
#include "moe/numeric/top_k.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Step;
using moe::Token;

namespace {

/// k experts by their logits, each weighed by softplus(logit) / k: a fixed number of choices.
struct SoftplusRule {
  Index k = 2;

  Index choices(Index) const { return k; }
  template <class S>
  Index select(const Token<S>& token, std::span<Index> chosen) const {
    moe::top_k(token.logits.data(), std::ssize(token.logits), chosen);
    return token.logits[static_cast<std::size_t>(chosen.back())] > -INFINITY ? k : -1;
  }
  template <class S>
  void probabilities(const Token<S>& token, std::span<S> p) const {
    for (std::size_t e = 0; e < p.size(); ++e) p[e] = std::log1p(std::exp(token.logits[e]));
  }
  template <class S>
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    probabilities(token, token.scratch.first(token.logits.size()));
    for (std::size_t s = 0; s < weights.size(); ++s)
      weights[s] = token.scratch[static_cast<std::size_t>(experts[s])] / static_cast<S>(k);
  }
  template <class S>
  void backward(const Token<S>& token, const moe::Choices<S>& choices, std::span<S> d) const {
    for (std::size_t s = 0; s < choices.size(); ++s)
      d[static_cast<std::size_t>(choices.expert(s))] += choices.dweight(s) / static_cast<S>(k);
    for (std::size_t e = 0; e < d.size(); ++e) d[e] /= 1 + std::exp(-token.logits[e]);
  }
};

/// Every expert of probability above a threshold, in ascending order: the number differs from token to token.
struct ThresholdRule {
  double threshold = 0.2;

  template <class S>
  Index select(const Token<S>& token, std::span<Index> chosen) const {
    const auto p = token.scratch.first(token.logits.size());
    probabilities(token, p);
    std::size_t count = 0;
    for (std::size_t e = 0; e < p.size(); ++e)
      if (p[e] > static_cast<S>(threshold)) chosen[count++] = static_cast<Index>(e);
    return static_cast<Index>(count);
  }
  template <class S>
  void probabilities(const Token<S>& token, std::span<S> p) const {
    moe::softmax(token.logits.data(), std::ssize(token.logits), p.data());
  }
  template <class S>
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    probabilities(token, token.scratch.first(token.logits.size()));
    for (std::size_t s = 0; s < weights.size(); ++s) weights[s] = token.scratch[static_cast<std::size_t>(experts[s])];
  }
  template <class S>
  void backward(const Token<S>& token, const moe::Choices<S>& choices, std::span<S> d) const {
    const auto p = token.scratch.first(token.logits.size());
    probabilities(token, p);
    for (std::size_t s = 0; s < choices.size(); ++s)
      d[static_cast<std::size_t>(choices.expert(s))] += choices.dweight(s);
    moe::softmax_backward(p.data(), d.data(), std::ssize(d), d.data());
  }
};

using Fixed = moe::TokenGate<SoftplusRule>;
using Ragged = moe::TokenGate<ThresholdRule>;
static_assert(moe::DifferentiableGate<Fixed, float> && moe::DifferentiableGate<Fixed, double>);
static_assert(moe::DifferentiableGate<Ragged, float> && moe::DifferentiableGate<Ragged, double>);
static_assert(moe::DifferentiableGate<moe::WithCapacity<Ragged>, double>);

}  // namespace

TEMPLATE_TEST_CASE("TokenGate: gradients are central differences", "[gate]", Fixed, Ragged) {
  for (const Index experts : {2, 5, 35})
    CHECK(test::gate_gradient_error(TestType{}, test::random_logits<double>(9, experts, 3, 0.3)) < 1e-7);
}

TEMPLATE_TEST_CASE("TokenGate: the same bits alone, in a batch and for any number of threads", "[gate][property]",
                   Fixed, Ragged) {
  const TestType gate{};
  const auto logits = test::random_logits<float>(300, 4, 5);
  const auto all = test::routed(gate, logits);
  for (const Index t : {0, 123, 299}) {
    const auto one = test::routed(gate, moe::Matrix<float>(logits.row(t)));
    CHECK(test::equal_bits(one.experts(0), all.experts(t)));
    CHECK(test::equal_bits(one.weights(0), all.weights(t)));
  }
  for (const Index workers : {2, 5}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    CHECK(test::equal_bits(test::routed(gate, logits), all));
  }
}

TEST_CASE("TokenGate: a ragged rule gives each token as many choices as it selects", "[gate]") {
  const auto logits = test::random_logits<double>(40, 6, 7);
  const auto routing = test::routed(Ragged{{.threshold = 0.15}}, logits);
  const auto p = test::probabilities(moe::SoftmaxGate{}, logits);
  for (Index t = 0; t < 40; ++t) {
    std::vector<Index> expected;
    for (Index e = 0; e < 6; ++e)
      if (p(t, e) > 0.15) expected.push_back(e);
    CHECK(test::experts_of(routing, t) == expected);
    for (std::size_t s = 0; s < expected.size(); ++s) CHECK(routing.weights(t)[s] == p(t, expected[s]));
  }
  CHECK(test::routed(Ragged{{.threshold = 1}}, logits).num_assignments() == 0);  // a token may go nowhere
}

TEMPLATE_TEST_CASE("TokenGate: padding goes nowhere, and has no gradient", "[gate][property]", Fixed, Ragged) {
  auto logits = test::random_logits<double>(5, 3, 9);
  logits.row(1).setConstant(NAN);
  const std::vector<std::uint8_t> valid = {1, 0, 1, 1, 1};
  Step step;
  step.valid = valid;
  const auto routing = test::routed(TestType{}, logits, step);
  CHECK(routing.experts(1).empty());
  const test::Backward<double, TestType> back(TestType{}, logits, step, routing);
  CHECK(back.dlogits.row(1).isZero(0));
  CHECK(test::probabilities(TestType{}, logits, step).row(1).isZero(0));
}

TEST_CASE("TokenGate: logits that a rule or the library refuses are named", "[gate][error]") {
  auto logits = test::random_logits<float>(4, 3, 1);
  logits(2, 1) = NAN;
  CHECK_THROWS_WITH(test::routed(Fixed{}, logits),
                    ContainsSubstring("moe::TokenGate::route: logit of token 2 for expert 1 is nan"));
  CHECK_THROWS_WITH(test::routed(Ragged{}, logits), ContainsSubstring("logit of token 2 for expert 1 is nan"));
  logits.row(2) << -INFINITY, 1, -INFINITY;
  CHECK_THROWS_WITH(
      test::routed(Fixed{}, logits),
      "moe::TokenGate::route: token 2 has 1 finite logits, which leaves fewer experts to choose from than "
      "the expected 2");
  CHECK_THROWS_WITH(test::routed(Fixed{{.k = 4}}, logits),
                    "moe::TokenGate: the rule makes 4 choices, expected 1 to num_experts = 3");
  CHECK_THROWS_WITH(test::routed(Fixed{{.k = 0}}, logits), ContainsSubstring("the rule makes 0 choices"));
  CHECK_THROWS_WITH(Ragged{}.validate(0), "moe::TokenGate: num_experts is 0, expected at least 1");
  CHECK(test::routed(Ragged{}, moe::Matrix<float>(0, 3)).num_tokens() == 0);
}

namespace {

/// Uses all of its room, claims `found`, and writes one expert too far.
struct BadRule : ThresholdRule {
  Index found = 1, expert = 0;
  template <class S>
  Index select(const Token<S>&, std::span<Index> chosen) const {
    std::ranges::fill(chosen, expert);
    return found;
  }
};
struct BadFixedRule : BadRule {
  Index choices(Index) const { return 2; }
};

}  // namespace

TEST_CASE("TokenGate: what a rule selects is checked, and its room is its own", "[gate][error]") {
  const auto logits = test::random_logits<double>(5, 3, 1);
  const auto routing = test::routed(moe::TokenGate<BadRule>{}, logits);
  CHECK(routing.num_assignments() == 5);
  BadRule rule;
  rule.found = 4;
  CHECK_THROWS_WITH(test::routed(moe::TokenGate{rule}, logits),
                    ContainsSubstring("select() chose 4 experts, expected at most"));
  rule.found = 1;
  rule.expert = 3;
  CHECK_THROWS_WITH(test::routed(moe::TokenGate{rule}, logits), ContainsSubstring("select() chose expert 3 for token"));
  CHECK_THROWS_WITH(test::routed(moe::TokenGate<BadFixedRule>{}, logits),
                    ContainsSubstring("select() chose 1 experts for token"));
}
