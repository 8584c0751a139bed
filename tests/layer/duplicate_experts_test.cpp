// SPDX-License-Identifier: MIT
// Layers with copies of experts, and with parts of experts, that compute what the layer computes.
#include <numeric>

#include "layer/structure_fixtures.hpp"
#include "moe/layer/structure.hpp"
#include "support/catch.hpp"

using moe::duplicate_experts;
using moe::F32;
using moe::F64;
using moe::Index;
using moe::Normalise;
using moe::Score;
using moe::TopKGate;
using test::kModelDim;
using Ids = std::vector<Index>;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;

namespace {

constexpr Index kExperts = 6;
const auto kTokens = test::random_matrix<double>(29, kModelDim, 3);

template <class Gate>
auto glu_layer(Gate gate) {
  return test::layer_of<Glu>(kExperts, std::move(gate), moe::Bias::Zero);
}

/// Every expert `times` times in a row.
Ids repeated(Index times) {
  Ids ids;
  for (Index e = 0; e < kExperts; ++e) ids.insert(ids.end(), static_cast<std::size_t>(times), e);
  return ids;
}

/// Largest difference of two layers' outputs, relative to the largest output.
template <class A, class B>
double difference(const A& a, const B& b) {
  const auto of_a = test::forward(a, kTokens), of_b = test::forward(b, kTokens);
  return test::largest(moe::Matrix<double>(of_a - of_b)) / test::largest(of_a);
}

/// Weights are products and quotients of sums of some 20 terms in double: off by less than 100 eps, with which up to 18
/// experts are added.
constexpr double kRounding = 1e-12;

/// The layer cut into so many parts of every expert, all of which a token gets with f times the weight of a copy.
template <class L>
auto in_parts(const L& layer, Index parts) {
  auto copies = duplicate_experts(layer, parts);
  std::vector<Glu> experts;
  for (Index e = 0; e < layer.num_experts(); ++e)
    for (Glu& part : moe::split_expert(layer.experts()[e], parts)) experts.push_back(std::move(part));
  return moe::with_experts(copies, moe::ExpertPool(std::move(experts)));
}

}  // namespace

TEST_CASE("take_experts: copies with as many choices, and normalised weights, are the layer", "[layer]") {
  for (const Index times : {2, 3}) {
    const auto layer = glu_layer(TopKGate{.k = 2});
    auto copies = moe::take_experts(layer, repeated(times));
    copies.gate().k *= times;
    CHECK(difference(layer, copies) < kRounding);
    const auto raw = glu_layer(TopKGate::switch_transformer());
    auto raw_copies = moe::take_experts(raw, repeated(times));
    CHECK(difference(raw, raw_copies) > 0.1);
    raw_copies.gate().scale = static_cast<double>(times);
    CHECK(difference(raw, raw_copies) < kRounding);
  }
}

TEST_CASE("duplicate_experts: the outputs of the layer, whatever a top-k gate is told", "[layer][property]") {
  for (const Score score : {Score::Softmax, Score::Sigmoid, Score::SqrtSoftplus})
    for (const Normalise normalise : {Normalise::Off, Normalise::Sum, Normalise::Euclidean, Normalise::PNorm})
      for (const Index k : {1, 2, 6})
        for (const double epsilon : {0.0, 0.25})
          for (const double floor : {0.0, 0.75})
            for (const Index times : {1, 2, 3}) {
              const TopKGate gate{.k = k,
                                  .score = score,
                                  .normalise = normalise,
                                  .epsilon = epsilon,
                                  .scale = 1.5,
                                  .floor = floor,
                                  .norm_p = 3};
              const auto layer = glu_layer(gate);
              const auto copies = duplicate_experts(layer, times);
              CAPTURE(static_cast<int>(score), static_cast<int>(normalise), k, epsilon, floor, times);
              REQUIRE(copies.num_experts() == times * kExperts);
              REQUIRE(copies.gate().k == (k == 1 ? 1 : k * times));
              REQUIRE(difference(layer, copies) < kRounding);
            }
}

TEST_CASE("duplicate_experts: biases and groups", "[layer]") {
  for (const Score score : {Score::Softmax, Score::Sigmoid})
    for (const Index k : {1, 2})
      for (const Index best : {1, 2})
        for (const bool grouped : {false, true})
          for (const Index times : {2, 3}) {
            TopKGate gate = test::biased_gate(kExperts, k);
            gate.score = score;
            if (grouped) gate.groups = {.count = 3, .kept = 2, .best = best};
            const auto layer = glu_layer(gate);
            CAPTURE(static_cast<int>(score), k, best, grouped, times);
            REQUIRE(difference(layer, duplicate_experts(layer, times)) < kRounding);
          }
  const auto by_logits = glu_layer(TopKGate{.groups = {3, 2, 2, moe::GroupRank::Logits}});
  CHECK(difference(by_logits, duplicate_experts(by_logits, 2)) < kRounding);
}

TEST_CASE("duplicate_experts: one copy is the layer, bit for bit", "[layer]") {
  const auto check = [](const auto& gate) {
    const auto layer = glu_layer(gate);
    CHECK(test::is_same_layer(layer, duplicate_experts(layer, 1), moe::Step::train(1)));
  };
  check(test::biased_gate(kExperts));
  check(TopKGate::switch_transformer());
  check(moe::SoftmaxGate{});
  check(moe::ExpertChoiceGate{});
  check(moe::NoisyTopKGate{.top_k = test::biased_gate(kExperts)});
}

TEST_CASE("duplicate_experts: other gates that can make up for copies, and branches", "[layer]") {
  const auto check = [](const auto& layer) {
    for (const Index times : {2, 3, 5}) CHECK(difference(layer, duplicate_experts(layer, times)) < kRounding);
  };
  check(glu_layer(moe::SoftmaxGate{}));
  check(glu_layer(moe::ExpertChoiceGate{.factor = 1.25}));
  check(glu_layer(moe::ExpertChoiceGate{.capacity = 4}));
  check(glu_layer(moe::NoisyTopKGate{.top_k = test::biased_gate(kExperts)}));
  check(moe::WithBranches(glu_layer(TopKGate{.k = 2}), test::random_expert<Mlp>(kModelDim, 4, 5)));
}

TEST_CASE("duplicate_experts: numbers of copies that cannot be", "[layer][error]") {
  auto layer = glu_layer(TopKGate{.k = 2});
  CHECK_THROWS_WITH(duplicate_experts(layer, 0), "moe::duplicate_experts: times is 0, expected at least 1");
  for (const Index times : {std::numeric_limits<Index>::max(), Index{1} << 58})
    CHECK_THROWS_AS(duplicate_experts(layer, times), std::invalid_argument);
  const auto moved = std::move(layer);
  CHECK_THROWS_AS(duplicate_experts(layer, 2), std::invalid_argument);
}

TEST_CASE("split_expert: a layer whose tokens get all parts of their experts is the layer", "[layer]") {
  const auto layer = glu_layer(TopKGate{.k = 2});
  for (const Index parts : {1, 2, 4, 9}) {
    const auto cut = in_parts(layer, parts);
    moe::BasicWorkspace<double> ws;
    moe::Matrix<double> whole(29, kModelDim), sum(29, kModelDim);
    layer.forward(kTokens, whole, ws);
    Ids ids;
    std::vector<double> weights;
    for (std::size_t a = 0; a < ws.routing.experts().size(); ++a)
      for (Index p = 0; p < parts; ++p) {
        ids.push_back(ws.routing.experts()[a] * parts + p);
        weights.push_back(ws.routing.weights()[a]);
      }
    moe::Scratch scratch;
    const moe::Step step;
    const auto routing = moe::Routing<double>::from(29, ids, weights, kExperts * parts);
    cut.mixture().forward(kTokens, routing, {step, scratch}, sum);
    CAPTURE(parts);
    CHECK(test::largest(moe::Matrix<double>(whole - sum)) / test::largest(whole) < kRounding);
  }
}

TEST_CASE("split_expert: a gate that picks all parts, at the weight of the whole, gives the layer", "[layer]") {
  for (const Normalise normalise : {Normalise::Sum, Normalise::Off}) {
    const auto layer = glu_layer(TopKGate{.k = 2, .normalise = normalise});
    for (const Index parts : {2, 4, 9}) {
      auto cut = in_parts(layer, parts);
      cut.gate().scale *= static_cast<double>(parts);
      CAPTURE(parts);
      CHECK(difference(layer, cut) < kRounding);
    }
  }
}

TEMPLATE_TEST_CASE("split_expert: parts under a dense gate are the layer, times their number", "[layer]", F32, F64) {
  using S = typename TestType::Scalar;
  using E = moe::BasicMlp<TestType>;
  const auto layer = test::layer_of<E, moe::SoftmaxGate, TestType>(kExperts, {});
  std::vector<E> experts;
  for (Index e = 0; e < kExperts; ++e)
    for (E& part : moe::split_expert(layer.experts()[e], 3)) experts.push_back(std::move(part));
  const auto cut = moe::with_experts(duplicate_experts(layer, 3), moe::ExpertPool(std::move(experts)));
  const auto tokens = test::random_matrix<S>(29, kModelDim, 3);
  const moe::Matrix<S> whole = test::forward(layer, tokens), sum = 3 * test::forward(cut, tokens);
  // Sums of 18 experts of 10 terms and of products of 11: 64 eps of the largest
  const double tolerance = 64 * static_cast<double>(std::numeric_limits<S>::epsilon());
  CHECK(test::largest(moe::Matrix<S>(whole - sum)) / test::largest(whole) < tolerance);
}
