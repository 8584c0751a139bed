// SPDX-License-Identifier: MIT
// The top-K gate on many tokens at once: against its definition, and bit for bit against a token alone.
#include <algorithm>
#include <vector>

#include "gate/top_k_reference.hpp"
#include "moe/gate/top_k.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"
#include "support/thread_executor.hpp"

using moe::Index;
using moe::Matrix;
using moe::Normalise;
using moe::Score;
using moe::TopKGate;

namespace {

template <class S>
std::vector<double> row_in_double(const Matrix<S>& logits, Index t) {
  return {logits.row(t).data(), logits.row(t).data() + logits.cols()};
}

/// Every token of `logits` is routed as it is alone.
template <class S>
void require_as_alone(const TopKGate& gate, const Matrix<S>& logits) {
  const auto together = test::routed(gate, logits);
  for (Index t = 0; t < logits.rows(); ++t) {
    const auto alone = test::routed(gate, Matrix<S>(logits.row(t)));
    CAPTURE(logits.rows(), logits.cols(), gate.k, t, static_cast<int>(gate.score), static_cast<int>(gate.normalise),
            gate.epsilon, gate.groups.count, gate.groups.best, gate.selection_bias.size(), gate.weight_bias.size());
    REQUIRE(test::equal_bits(alone.experts(), together.experts(t)));
    REQUIRE(test::equal_bits(alone.weights(), together.weights(t)));
  }
}

/// Numbers of tokens around whole blocks.
template <class S>
std::vector<Index> token_counts() {
  constexpr Index kLanes = moe::simd::kLanes<S>;
  return {0, 1, kLanes - 1, kLanes, kLanes + 1, 3 * kLanes + 2};
}

}  // namespace

TEMPLATE_TEST_CASE("TopKGate: blocks of tokens agree with the definition for any experts and choices",
                   "[gate][property]", float, double) {
  // Sums over k weights of at most 1, and exponentials: (k + 20) eps.
  for (const Index experts : {1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 60, 64, 71, 128, 256, 512, 1000, 1024, 1025}) {
    const auto logits = test::random_logits<TestType>(19, experts, 61, 2);
    for (const Index k : std::vector<Index>{1, 2, 3, 5, 8, 10, 12, 16, 17, 64, std::min<Index>(experts, 70)}) {
      if (k > experts) continue;
      const auto routing = test::routed(TopKGate{.k = k}, logits);
      const double tolerance =
          static_cast<double>(k + 20) * static_cast<double>(std::numeric_limits<TestType>::epsilon());
      for (Index t = 0; t < 19; ++t) {
        const auto expected = test::reference_top_k(TopKGate{.k = k}, row_in_double(logits, t));
        CAPTURE(experts, k, t);
        REQUIRE(test::experts_of(routing, t) == expected.experts);
        for (std::size_t s = 0; s < expected.weights.size(); ++s)
          REQUIRE(std::abs(static_cast<double>(routing.weights(t)[s]) - expected.weights[s]) <= tolerance);
      }
    }
  }
}

TEMPLATE_TEST_CASE("TopKGate: a token has the same bits in a batch of any size", "[gate][property]", float, double) {
  for (const Index num_tokens : token_counts<TestType>())
    for (const Index experts : {1, 8, 17, 64, 71, 130})
      for (const Index k : {1, 2, 4, 6, 7, 8, 11, 16, 33, 64})
        if (k <= experts)
          for (const Score score : {Score::Softmax, Score::Sigmoid, Score::SqrtSoftplus})
            require_as_alone(TopKGate{.k = k, .score = score},
                             test::random_logits<TestType>(num_tokens, experts, 62, 3));
}

TEMPLATE_TEST_CASE("TopKGate: so it has with every combination of its axes", "[gate][property]", float, double) {
  for (const Index experts : {4, 16, 36})
    for (const Index k : {1, 2, 7, 13})
      if (k <= experts)
        test::for_each_top_k_gate(experts, k, [&](const TopKGate& gate) {
          require_as_alone(gate, test::random_logits<TestType>(moe::simd::kLanes<TestType> + 5, experts, 63, 3));
        });
}

TEMPLATE_TEST_CASE("TopKGate: so it has with ties, masks, equal and huge logits", "[gate][property]", float, double) {
  constexpr TestType kMost = std::numeric_limits<TestType>::max();
  const Index num_tokens = 2 * moe::simd::kLanes<TestType> + 3;
  for (const Index experts : {20, 64})
    for (const Index k : {1, 2, 8, 12, 16})
      for (const Normalise normalise : {Normalise::Sum, Normalise::Off}) {
        Matrix<TestType> logits = test::random_logits<TestType>(num_tokens, experts, 64).array().round();
        const moe::RandomField random(moe::Purpose::User, 65);
        for (Index t = 0; t < num_tokens; ++t)
          for (Index e = 0; e < experts - 16; ++e)
            if (random.below(2, t, e) == 0) logits(t, e) = -INFINITY;
        logits.row(1).setConstant(0);
        logits.row(3) *= kMost / 8;
        logits.row(5).setConstant(-kMost);
        logits.row(6).setConstant(kMost);
        const TopKGate gate{.k = k, .normalise = normalise};
        require_as_alone(gate, logits);
        const auto routing = test::routed(gate, logits);
        for (Index t = 0; t < num_tokens; ++t) {
          auto best = test::descending(row_in_double(logits, t));
          best.resize(static_cast<std::size_t>(k));
          REQUIRE(test::experts_of(routing, t) == best);
        }
      }
}

TEMPLATE_TEST_CASE("TopKGate: permuting experts permutes choices and weights, bit for bit", "[gate][property]", float,
                   double) {
  for (const Index experts : {9, 64, 257}) {
    const auto logits = test::random_logits<TestType>(37, experts, 66);
    const auto a = test::routed(TopKGate{.k = 8}, logits);
    const auto b = test::routed(TopKGate{.k = 8}, test::reversed_experts(logits));
    REQUIRE(test::equal_bits(a.weights(), b.weights()));
    for (std::size_t i = 0; i < a.experts().size(); ++i) REQUIRE(a.experts()[i] == experts - 1 - b.experts()[i]);
  }
}

TEST_CASE("TopKGate: threads and padding change no bit of the other tokens", "[gate][property]") {
  const Index num_tokens = 1000;
  auto logits = test::random_logits<float>(num_tokens, 64, 67);
  const TopKGate gate{.k = 8};
  const auto all = test::routed(gate, logits);
  std::vector<std::uint8_t> valid(num_tokens, 1);
  for (std::size_t t = 0; t < valid.size(); ++t) valid[t] = t % 7 != 3 && (t < 400 || t > 480);
  for (Index t = 0; t < num_tokens; ++t)
    if (!valid[static_cast<std::size_t>(t)]) logits.row(t).setConstant(static_cast<float>(NAN));
  moe::Step step;
  step.valid = valid;
  for (const Index workers : {1, 2, 3, 8}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    const auto routing = test::routed(gate, logits, step);
    for (Index t = 0; t < num_tokens; ++t) {
      CAPTURE(workers, t);
      REQUIRE(routing.experts(t).size() == (valid[static_cast<std::size_t>(t)] ? 8u : 0u));
      if (routing.experts(t).empty()) continue;
      REQUIRE(test::equal_bits(routing.experts(t), all.experts(t)));
      REQUIRE(test::equal_bits(routing.weights(t), all.weights(t)));
    }
  }
}

TEMPLATE_TEST_CASE("TopKGate: a bad logit is found in every place of a block", "[gate][error]", float, double) {
  const Index num_tokens = moe::simd::kLanes<TestType> + 1;
  const auto good = test::random_logits<TestType>(num_tokens, 21, 68);
  TopKGate biased{.k = 3};
  biased.selection_bias = Eigen::RowVectorXd::Zero(21);
  for (const TopKGate& gate : {TopKGate{.k = 3}, TopKGate{.k = 3, .score = Score::Sigmoid}, biased})
    for (Index t = 0; t < num_tokens; ++t)
      for (const Index e : {0, 15, 16, 20})
        for (const double bad : {std::nan(""), HUGE_VAL}) {
          auto logits = good;
          logits(t, e) = static_cast<TestType>(bad);
          const std::string message = test::message_of([&] { test::routed(gate, logits); });
          CAPTURE(t, e, bad, message);
          REQUIRE(test::contains(message, "moe::TopKGate::route: logit of token " + std::to_string(t) + " for expert " +
                                              std::to_string(e) + " is "));
        }
}

TEST_CASE("TopKGate: a token of a block with fewer finite logits than k is named", "[gate][error]") {
  for (const Index token : {0, 13, 34}) {
    auto logits = test::random_logits<float>(35, 12, 69);
    logits.row(token).tail(9).setConstant(-INFINITY);
    CHECK(test::message_of([&] { test::routed(TopKGate{.k = 3}, logits); }) == "");
    CHECK(test::message_of([&] { test::routed(TopKGate{.k = 4}, logits); }) ==
          "moe::TopKGate::route: token " + std::to_string(token) +
              " has 3 finite logits, which leaves fewer experts to choose from than the expected 4");
  }
}

TEST_CASE("TopKGate: blocks serve more experts than their scratch on the stack holds", "[gate]") {
  TopKGate gate{.k = 3, .score = Score::Sigmoid, .groups = {.count = 5, .kept = 2, .best = 2}};
  gate.selection_bias = test::random_bias(3000, 1, 0.1);
  const auto logits = test::random_logits<double>(19, 3000, 70);
  const auto routing = test::routed(gate, logits);
  for (Index t = 0; t < 19; ++t)
    CHECK(test::experts_of(routing, t) == test::reference_top_k(gate, row_in_double(logits, t)).experts);
}
