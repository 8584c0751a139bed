// SPDX-License-Identifier: MIT
// What holds for all gates alike.
#include "moe/gate/activation.hpp"
#include "moe/gate/dense_to_sparse.hpp"
#include "moe/gate/hash.hpp"
#include "moe/gate/hash_tables.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/null_expert.hpp"
#include "moe/gate/prototype.hpp"
#include "moe/gate/rank.hpp"
#include "moe/gate/relu.hpp"
#include "moe/gate/self_gate.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/stochastic.hpp"
#include "moe/gate/threshold.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/top_p.hpp"
#include "moe/gate/wrap/with_chance.hpp"
#include "moe/gate/wrap/with_skipping.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"
#include "support/thread_executor.hpp"

using moe::Index;
using moe::LearnableTemperature;
using moe::Step;

namespace {

/// HashGate with the id of a token as its key.
struct HashOfIds {
  moe::HashGate gate;
  static constexpr bool kPerToken = true;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}

  template <class S>
  void route(const moe::Logits<S>& logits, const moe::Context& context, moe::Routing<S>& routing) const {
    std::vector<std::int64_t> key;
    for (Index t = 0; t < logits.rows(); ++t) key.push_back(context.step.id(t));
    Step step = context.step;
    step.key = key;
    gate.route(logits, {step, context.scratch}, routing);
  }
  template <class S>
  void probabilities(const moe::Logits<S>& logits, const moe::Context& context, moe::Matrix<S>& p) const {
    gate.probabilities(logits, context, p);
  }
  template <class S>
  void replay(const moe::Logits<S>& logits, const moe::Context& context, moe::Routing<S>& routing) const {
    gate.replay(logits, context, routing);
  }
  template <class S>
  void backward(const moe::Logits<S>& logits, const moe::Context& context, const moe::Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const moe::MatrixView<S>& dprobability,
                moe::Matrix<S>& dlogits, HashOfIds& gradient) const {
    gate.backward(logits, context, routing, dweight, dprobability, dlogits, gradient.gate);
  }
};

/// Calls f(name, gate) for gates that choose by the logits of a token, all their parameters present.
template <class F>
void for_each_deterministic_gate(Index experts, F&& f) {
  f("softmax", moe::SoftmaxGate{});
  f("top-k", moe::TopKGate{.k = (experts + 1) / 2});
  f("raw top-k", moe::TopKGate{.k = (experts + 1) / 2, .normalise = moe::Normalise::Off});
  f("sigmoid top-k", moe::TopKGate{.k = 1, .score = moe::Score::Sigmoid, .normalise = moe::Normalise::Off});
  f("dense to sparse", moe::DenseToSparseGate<LearnableTemperature>{.threshold = 0.01});
  f("dense to sparse, clean weights", moe::DenseToSparseGate<>{.weights = moe::WeightLogits::Clean});
  f("top-p", moe::TopPGate{.p = 0.6});
  f("relu", moe::ReluGate{});
  f("threshold", moe::ThresholdGate{.threshold = 1.5 / static_cast<double>(experts), .score = moe::Score::Softmax});
  f("top-k with skipping",
    moe::WithSkipping<moe::TopKGate>{.gate = {.k = (experts + 1) / 2}, .skipped = moe::SkippedWeight::Shared});
  if (experts > 1) f("ranks", moe::RankGate{{1, 0}});
}

/// The same and those with noise, draws and biases.
template <class F>
void for_each_gate(Index experts, F&& f) {
  for_each_deterministic_gate(experts, f);
  moe::TopKGate biased{.k = (experts + 1) / 2, .score = moe::Score::Sigmoid, .epsilon = 1e-6, .scale = 2};
  biased.selection_bias = test::random_bias(experts, 31, 0.1);
  biased.weight_bias = test::random_bias(experts, 32, 0.5);
  f("biased top-k", biased);
  f("softplus top-k", moe::TopKGate{.k = (experts + 1) / 2, .score = moe::Score::SqrtSoftplus});
  f("noisy top-k", moe::NoisyTopKGate{.top_k = biased});
  f("gumbel top-k", moe::NoisyTopKGate::gumbel(moe::TopKGate::switch_transformer()));
  f("gumbel top-1 of weight 1", moe::NoisyTopKGate::gumbel({.k = 1, .constant_weights = moe::ConstantWeights::Accept}));
  f("top-k by chance", moe::WithChance<moe::TopKGate>{.gate = biased, .threshold = 1.5});
  f("skipping by chance", moe::WithChance<moe::WithSkipping<moe::TopKGate>>{
                              .gate = {.gate = biased, .skipped = moe::SkippedWeight::Shared}, .threshold = 1.5});
  f("dense to sparse with noise", moe::DenseToSparseGate<LearnableTemperature>{.gumbel = 1});
  f("activation", moe::ActivationGate<moe::Tanh, LearnableTemperature>{.bias = test::random_bias(experts, 33, 0.5),
                                                                       .sparse = {.threshold = 0.05, .gumbel = 0.5}});
  f("stochastic", moe::StochasticGate{.training = moe::DrawPer::Token});
  f("prototypes", moe::PrototypeGate{.groups = experts % 2 == 0 ? 2 : 1});
  f("null experts",
    moe::NullExpertGate{.k = (experts + 1) / 2, .nulls = experts / 4, .normalise = moe::Normalise::Off});
  f("self gate", moe::SelfGate{.own = experts / 3});
  f("hash", HashOfIds{{.table = moe::random_hash_table(300, experts - experts / 4, (experts + 2) / 3, 34),
                       .weight = moe::ChoiceWeight::Score,
                       .normalise = moe::Normalise::Off}});
}

/// Gates whose tokens may get no expert.
bool may_choose_nobody(const std::string& name) { return name == "relu" || name == "null experts"; }

}  // namespace

TEMPLATE_TEST_CASE("Gates: all bits are the same for any number of threads", "[gate][property]", float, double) {
  const auto logits = test::random_logits<TestType>(300, 9, 41);
  for_each_gate(9, [&]<class G>(const char* name, const G& gate) {
    const test::Everything<TestType, G> serial(gate, logits, Step::train(1));
    for (const Index workers : {1, 2, 3, 8}) {
      test::ThreadExecutor executor(workers);
      const moe::UseExecutor use(executor);
      CAPTURE(name, workers);
      REQUIRE(serial.equals(test::Everything<TestType, G>(gate, logits, Step::train(1))));
    }
  });
}

TEMPLATE_TEST_CASE("Gates: a token is routed alone as in any batch, bit for bit", "[gate][property]", float, double) {
  for (const Index experts : {2, 17, 64}) {
    const auto logits = test::random_logits<TestType>(40, experts, 42);
    for_each_gate(experts, [&]<class G>(const char* name, const G& gate) {
      STATIC_REQUIRE(G::kPerToken);
      const auto together = test::routed(gate, logits, Step::train(1));
      const auto p = test::probabilities(gate, logits, Step::train(1));
      for (const Index t : {0, 7, 39}) {
        const std::vector<std::int64_t> id = {t};
        Step step = Step::train(1);
        step.token_id = id;
        const auto alone = test::routed(gate, moe::Matrix<TestType>(logits.row(t)), step);
        CAPTURE(name, experts, t);
        REQUIRE(test::equal_bits(alone.experts(), together.experts(t)));
        REQUIRE(test::equal_bits(alone.weights(), together.weights(t)));
        REQUIRE(test::equal_bits(test::probabilities(gate, moe::Matrix<TestType>(logits.row(t)), step), p.row(t)));
      }
    });
  }
}

TEMPLATE_TEST_CASE("Gates: replaying a routing gives its weights, bit for bit", "[gate][property]", float, double) {
  for (const Index experts : {1, 8, 35}) {
    const auto logits = test::random_logits<TestType>(50, experts, 43);
    for_each_gate(experts, [&](const char* name, const auto& gate) {
      for (const Step& step : {Step{}, Step::train(5)}) {
        const auto routing = test::routed(gate, logits, step);
        auto replayed = routing;
        std::ranges::fill(replayed.weights(), TestType{-1});
        gate.replay(logits, step, replayed);
        CAPTURE(name, experts, step.training());
        REQUIRE(test::equal_bits(routing, replayed));
      }
    });
  }
}

TEST_CASE("Gates: a dropped choice is replayed with weight zero", "[gate]") {
  const auto logits = test::random_logits<float>(5, 4, 44);
  for_each_gate(4, [&](const char* name, const auto& gate) {
    auto routing = test::routed(gate, logits, Step::train(1));
    routing.drop(1, moe::kDroppedByCapacity);
    gate.replay(logits, Step::train(1), routing);
    CAPTURE(name);
    CHECK(routing.weights()[1] == 0);
  });
}

TEST_CASE("Gates: padding gets no experts, no probabilities and no gradient, and may hold anything", "[gate]") {
  auto logits = test::random_logits<float>(70, 8, 45);
  std::vector<std::uint8_t> valid(70, 1);
  for (const Index t : {0, 33, 69}) {
    valid[static_cast<std::size_t>(t)] = 0;
    logits.row(t).setConstant(static_cast<float>(NAN));
  }
  Step step = Step::train(1);
  step.valid = valid;
  for_each_gate(8, [&]<class G>(const char* name, const G& gate) {
    const auto routing = test::routed(gate, logits, step);
    const auto p = test::probabilities(gate, logits, step);
    const test::Backward<float, G> back(gate, logits, step, routing);
    CAPTURE(name);
    for (Index t = 0; t < 70; ++t)
      if (valid[static_cast<std::size_t>(t)]) {
        REQUIRE((may_choose_nobody(name) || !routing.experts(t).empty()));
      } else {
        REQUIRE(routing.experts(t).empty());
        REQUIRE(p.row(t).isZero(0));
        REQUIRE(back.dlogits.row(t).isZero(0));
      }
    REQUIRE(back.dlogits.allFinite());
  });
}

TEST_CASE("Gates: no tokens give an empty routing and matrices of the right width", "[gate]") {
  const moe::Matrix<float> logits(0, 6);
  for_each_gate(6, [&]<class G>(const char* name, const G& gate) {
    const auto routing = test::routed(gate, logits, Step::train(1));
    const test::Backward<float, G> back(gate, logits, Step::train(1), routing);
    CAPTURE(name);
    CHECK(routing.num_tokens() == 0);
    CHECK(routing.num_assignments() == 0);
    const moe::Index other_logits = std::string(name) == "null experts" ? 1 : std::string(name) == "self gate" ? 2 : 0;
    CHECK(test::probabilities(gate, logits).cols() == 6 - other_logits);  // of experts
    CHECK(back.dlogits.cols() == 6);
  });
}

TEMPLATE_TEST_CASE("Gates: permuting tokens permutes routing, probabilities and gradients, bit for bit",
                   "[gate][property]", float, double) {
  const auto logits = test::random_logits<TestType>(100, 9, 46);
  const moe::Matrix<TestType> reversed = logits.colwise().reverse();
  std::vector<std::int64_t> id(100);
  for (std::size_t t = 0; t < 100; ++t) id[t] = 99 - static_cast<std::int64_t>(t);
  Step step = Step::train(1), reversed_step = step;
  reversed_step.token_id = id;
  for_each_gate(9, [&](const char* name, const auto& gate) {
    const auto a = test::routed(gate, logits, step), b = test::routed(gate, reversed, reversed_step);
    CAPTURE(name);
    for (Index t = 0; t < 100; ++t) {
      REQUIRE(test::equal_bits(a.experts(t), b.experts(99 - t)));
      REQUIRE(test::equal_bits(a.weights(t), b.weights(99 - t)));
    }
    const moe::Matrix<TestType> p = test::probabilities(gate, reversed, reversed_step).colwise().reverse();
    REQUIRE(test::equal_bits(test::probabilities(gate, logits, step), p));
  });
}

TEST_CASE("Gates: permuting experts permutes the weights", "[gate][property]") {
  // Not bitwise where the sum over all experts is taken in another order: n eps of sums of numbers below 1.
  for (const Index experts : {2, 9, 35}) {
    const auto logits = test::random_logits<double>(40, experts, 47), reversed = test::reversed_experts(logits);
    for_each_deterministic_gate(experts, [&](const char* name, const auto& gate) {
      const auto a = test::dense(test::routed(gate, logits, Step::train(1)), experts);
      const auto b = test::dense(test::routed(gate, reversed, Step::train(1)), experts);
      CAPTURE(name, experts);
      REQUIRE(test::largest(a - test::reversed_experts(b)) < 1e-13);
    });
    const moe::TopKGate gate{.k = (experts + 1) / 2};  // sums over the chosen, in order of choice: bitwise
    const auto b = test::dense(test::routed(gate, reversed), experts);
    REQUIRE(test::equal_bits(test::dense(test::routed(gate, logits), experts), test::reversed_experts(b)));
  }
}

TEMPLATE_TEST_CASE("Gates: adding a constant to the logits of a token changes no bit of a softmax", "[gate][property]",
                   float, double) {
  // Logits and constant are multiples of 1/64 below 2^10, so the sums are exact, and only differences are used.
  const auto logits = test::exact_logits<TestType>(30, 17, 48);
  const moe::Matrix<TestType> shifted = logits.array() + TestType(100.25);
  for_each_deterministic_gate(17, [&](const std::string& name, const auto& gate) {
    if (name == "sigmoid top-k" || name == "relu") return;
    CAPTURE(name);
    REQUIRE(test::equal_bits(test::routed(gate, logits, Step::train(1)), test::routed(gate, shifted, Step::train(1))));
    REQUIRE(test::equal_bits(test::probabilities(gate, logits), test::probabilities(gate, shifted)));
  });
}

TEMPLATE_TEST_CASE("Gates: weights sum to one where they are said to", "[gate][property]", float, double) {
  for (const Index experts : test::kExpertCounts) {
    const auto logits = test::random_logits<TestType>(20, experts, 49, 5);
    const double tolerance =
        static_cast<double>(experts + 8) * static_cast<double>(std::numeric_limits<TestType>::epsilon());
    const auto check = [&](const auto& gate) {
      const auto weights = test::dense(test::routed(gate, logits, Step::train(1)), experts);
      CAPTURE(experts);
      for (Index t = 0; t < 20; ++t)
        REQUIRE(std::abs(test::total(moe::Matrix<double>(weights.row(t))) - 1) < tolerance);
    };
    check(moe::SoftmaxGate{});
    check(moe::TopKGate{.k = (experts + 1) / 2});
    check(moe::TopKGate{.k = (experts + 1) / 2, .score = moe::Score::Sigmoid});
    check(moe::NoisyTopKGate{.top_k = {.k = (experts + 1) / 2}});
    check(moe::DenseToSparseGate<>{.threshold = 0});
    check(moe::ActivationGate<>{.sparse = {.threshold = 0}});
    check(moe::StochasticGate{.k = (experts + 1) / 2});
  }
}
