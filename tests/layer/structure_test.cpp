// SPDX-License-Identifier: MIT
#include "moe/layer/structure.hpp"

#include <numeric>

#include "layer/structure_fixtures.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/token_gate.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/router/cosine.hpp"
#include "moe/router/noisy.hpp"
#include "moe/router/none.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::F32;
using moe::F64;
using moe::Index;
using moe::Step;
using moe::take_experts;
using moe::TopKGate;
using test::is_same_layer;
using test::kModelDim;
using test::leaves_of;
using Ids = std::vector<Index>;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;
using Linear = moe::BasicLinearRouter<F64>;

namespace {

constexpr Index kExperts = 6;

Ids all_of(Index count) {
  Ids ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

template <class Codec, class Gate>
auto glu_layer(Gate gate) {
  return test::layer_of<moe::BasicGlu<Codec>, Gate, Codec>(kExperts, std::move(gate), moe::Bias::Zero);
}

template <class L>
bool is_taken(const L& whole, const L& taken, const Ids& ids) {
  return test::is_taken(leaves_of(whole), leaves_of(taken), whole.num_experts(), ids);
}

/// Calls f(name, layer) for layers with each shipped router.
template <class F>
void for_each_router(F&& f) {
  const auto with = [&](const char* name, auto router) {
    test::randomise(router, 9);
    f(name, moe::MoeLayer(std::move(router), TopKGate{.k = 2}, glu_layer<F64>(TopKGate{}).experts()));
  };
  with("linear", Linear(kExperts, kModelDim));
  with("linear with bias", Linear(kExperts, kModelDim, moe::Bias::Zero));
  with("cosine", moe::BasicCosineRouter<F64>(kExperts, kModelDim, 5));
  with("noisy", moe::BasicNoisyRouter<F64>(kExperts, kModelDim));
  with("none", moe::BasicNoRouter<F64>(kExperts, kModelDim));
}

/// A router that masks all experts but those of `keep` by -infinity.
struct MaskedRouter {
  using Scalar = double;
  Linear router;
  Ids keep;

  Index num_experts() const { return router.num_experts(); }
  Index model_dim() const { return router.model_dim(); }
  void logits(const moe::ConstMatrixRef<double>& tokens, const moe::Context& context,
              moe::MatrixRef<double> out) const {
    router.logits(tokens, context, out);
    for (Index e = 0; e < out.cols(); ++e)
      if (std::ranges::find(keep, e) == keep.end()) out.col(e).setConstant(-std::numeric_limits<double>::infinity());
  }
};

/// The output of `layer` with all experts but those of `keep` masked.
template <class L>
moe::Matrix<double> masked_forward(const L& layer, const Ids& keep, const moe::Matrix<double>& tokens) {
  return test::forward(moe::MoeLayer(MaskedRouter{layer.router(), keep}, layer.gate(), layer.experts()), tokens);
}

const auto kTokens = test::random_matrix<double>(23, kModelDim, 3);

}  // namespace

TEMPLATE_TEST_CASE("take_experts: all experts in their order are the layer, bit for bit, with every gate", "[layer]",
                   F32, F64) {
  test::for_each_shipped_gate(kExperts, [&](const char* name, const auto& gate) {
    const auto layer = glu_layer<TestType>(gate);
    CAPTURE(name);
    CHECK(is_same_layer(layer, take_experts(layer, all_of(kExperts)), Step::train(3)));
  });
}

TEMPLATE_TEST_CASE("take_experts: a permutation and its inverse give the layer back, with every gate", "[layer]", F32,
                   F64) {
  const Ids order = {4, 0, 5, 2, 1, 3}, inverse = moe::inverse_permutation(order);
  test::for_each_shipped_gate(kExperts, [&](const char* name, const auto& gate) {
    const auto layer = glu_layer<TestType>(gate);
    const auto permuted = take_experts(layer, order);
    CAPTURE(name);
    CHECK(is_taken(layer, permuted, order));
    CHECK(!(leaves_of(permuted) == leaves_of(layer)));
    CHECK(is_same_layer(layer, take_experts(permuted, inverse), Step::train(3)));
  });
}

TEST_CASE("take_experts: prunes, permutes and duplicates gate, router and experts together", "[layer]") {
  for (const Ids& ids : {Ids{1, 2, 5}, Ids{5, 1, 2, 0}, Ids{3, 3, 0, 0, 3}, Ids{4, 2}})
    test::for_each_shipped_gate(kExperts, [&](const char* name, const auto& gate) {
      const auto layer = glu_layer<F64>(gate);
      const auto taken = take_experts(layer, ids);
      CAPTURE(name);
      CHECK(taken.num_experts() == std::ssize(ids));
      CHECK(is_taken(layer, taken, ids));
      test::forward(taken, kTokens);
    });
}

TEST_CASE("take_experts: every router", "[layer]") {
  const Ids order = {4, 0, 5, 2, 1, 3};
  for_each_router([&](const char* name, const auto& layer) {
    CAPTURE(name);
    const auto permuted = take_experts(layer, order);
    CHECK(is_taken(layer, permuted, order));
    CHECK(is_taken(layer, take_experts(layer, Ids{2, 2, 1}), {2, 2, 1}));
    CHECK(is_same_layer(layer, take_experts(layer, all_of(kExperts)), Step::train(1)));
    CHECK(is_same_layer(layer, take_experts(permuted, moe::inverse_permutation(order)), Step::train(1)));
  });
}

TEST_CASE("take_experts: a permutation permutes choices and keeps outputs, bit for bit where they are ordered",
          "[layer]") {
  const auto layer = glu_layer<F64>(test::biased_gate(kExperts));
  const Ids order = {4, 0, 5, 2, 1, 3};
  const auto permuted = take_experts(layer, order);
  moe::BasicWorkspace<double> ws, permuted_ws;
  moe::Matrix<double> out(23, kModelDim), permuted_out(23, kModelDim);
  layer.forward(kTokens, out, ws);
  permuted.forward(kTokens, permuted_out, permuted_ws);
  for (std::size_t a = 0; a < ws.routing.experts().size(); ++a)
    REQUIRE(order[static_cast<std::size_t>(permuted_ws.routing.experts()[a])] == ws.routing.experts()[a]);
  CHECK(test::same_bits(out, permuted_out));
}

TEST_CASE("take_experts: is the layer with the other logits masked, bit for bit where choices alone weigh",
          "[layer][property]") {
  for (const Ids& keep : {Ids{0, 1, 2}, Ids{1, 2, 4, 5}, Ids{2, 5}})
    test::for_each_gate_of_chosen_logits(kExperts, [&](const char* name, const auto& gate) {
      const auto layer = glu_layer<F64>(gate);
      CAPTURE(name);
      CHECK(test::same_bits(test::forward(take_experts(layer, keep), kTokens), masked_forward(layer, keep, kTokens)));
    });
}

TEST_CASE("take_experts: is the layer with the other logits masked, where a softmax over all weighs", "[layer]") {
  // Sums of 6 terms in another order: a weight is off by less than 16 eps; outputs are below 2^6.
  for (const Ids& keep : {Ids{0, 1, 2}, Ids{1, 2, 4, 5}, Ids{2, 5}})
    test::for_each_gate_of_all_logits(kExperts, [&](const char* name, const auto& gate) {
      const auto layer = glu_layer<F64>(gate);
      CAPTURE(name);
      const auto taken = test::forward(take_experts(layer, keep), kTokens);
      CHECK(test::largest(taken) < 64);
      CHECK(test::largest(moe::Matrix<double>(taken - masked_forward(layer, keep, kTokens))) < 1e-12);
    });
}

TEST_CASE("take_experts: whole groups and equal parts of groups stay groups", "[layer]") {
  TopKGate gate = test::biased_gate(kExperts);
  gate.groups = {.count = 3, .kept = 2};
  const auto layer = glu_layer<F64>(gate);
  const auto same_as_masked = [&](const Ids& keep) {
    return test::same_bits(test::forward(take_experts(layer, keep), kTokens), masked_forward(layer, keep, kTokens));
  };
  CHECK(is_same_layer(layer, take_experts(layer, all_of(kExperts)), Step::train(3)));
  CHECK(same_as_masked({0, 1, 4, 5}));
  CHECK(same_as_masked({1, 3, 4}));
  CHECK(same_as_masked({2, 3}));  // one group is left, of which two are kept
  CHECK(take_experts(layer, {0, 1, 4, 5}).gate().groups == moe::ExpertGroups{.count = 2, .kept = 2});
  CHECK(take_experts(layer, {5, 2, 0}).gate().groups == moe::ExpertGroups{.count = 3, .kept = 2});
  CHECK(take_experts(layer, {5, 4, 1, 0, 3, 2}).gate().groups == gate.groups);
  CHECK(take_experts(layer, {0, 0, 1, 2, 3, 3}).gate().groups.count == 2);
}

TEST_CASE("take_experts: groups that would not be equal are refused", "[layer][error]") {
  TopKGate gate{.k = 2, .groups = {.count = 3, .kept = 2, .best = 2}};
  const auto layer = glu_layer<F64>(gate);
  CHECK_THROWS_WITH(take_experts(layer, {0, 1, 2}),
                    "moe::TopKGate::take: ids name 1 experts of group 1 and 2 of group 0, expected equally many of "
                    "each group");
  CHECK_THROWS_WITH(take_experts(layer, {0, 2, 1, 3}),
                    "moe::TopKGate::take: ids[2] is 1 of group 0 behind experts of group 1, expected the experts of a "
                    "group to stand together");
  CHECK_THROWS_WITH(take_experts(layer, {0, 2, 4}), ContainsSubstring("groups.best is 2"));
}

TEST_CASE("take_experts: fewer experts than a gate chooses are refused with its k", "[layer][error]") {
  CHECK_THROWS_WITH(take_experts(glu_layer<F64>(TopKGate{.k = 3}), {0, 1}),
                    "moe::TopKGate::take: 2 experts are left, expected at least k = 3");
  CHECK_THROWS_WITH(take_experts(glu_layer<F64>(moe::StochasticGate{.k = 3}), {0, 1}), ContainsSubstring("k is 3"));
  CHECK_THROWS_WITH(take_experts(glu_layer<F64>(moe::SparseMixerGate{}), {1}), ContainsSubstring("num_experts is 1"));
}

TEST_CASE("take_experts: ids and layers that cannot be", "[layer][error]") {
  auto layer = glu_layer<F64>(TopKGate{.k = 2});
  CHECK_THROWS_WITH(take_experts(layer, {}), "moe::take_experts: 0 ids, expected at least 1");
  CHECK_THROWS_WITH(take_experts(layer, {0, 1, 6}), "moe::take_experts: ids[2] is 6, expected 0 <= id < 6");
  CHECK_THROWS_WITH(take_experts(layer, {-1, 1}), "moe::take_experts: ids[0] is -1, expected 0 <= id < 6");
  const auto moved = std::move(layer);
  CHECK_THROWS_WITH(take_experts(layer, {0, 1}), "moe::take_experts: the layer has no experts: it has been moved from");
  auto half = moved;
  const auto router = std::move(half.router());
  CHECK_THROWS_WITH(take_experts(half, {0, 1}),
                    "moe::take_experts: the router scores 0 experts, expected 6 as in the expert set");
  CHECK_THROWS_WITH(moe::inverse_permutation({0, 2, 2}),
                    "moe::inverse_permutation: ids[2] is 2 as is ids[1], expected each id once");
  CHECK_THROWS_AS(moe::inverse_permutation({0, 3, 1}), std::invalid_argument);
}

TEST_CASE("take_experts: branches stay, however they nest", "[layer]") {
  const moe::WithBranches one(glu_layer<F64>(TopKGate{.k = 2}), test::random_expert<Mlp>(kModelDim, 4, 5));
  const moe::WithBranches layer(one, moe::BasicScaledIdentity<F64>{kModelDim, 0.5});
  const auto taken = take_experts(layer, {5, 0, 2});
  CHECK(is_same_layer(layer, take_experts(layer, all_of(kExperts)), Step::train(2)));
  CHECK(is_taken(layer, taken, {5, 0, 2}));
  CHECK(taken.branch<0>().scale == 0.5);
}

TEST_CASE("take_experts: layers as experts, and experts of inner layers", "[layer]") {
  using Inner = test::Layer<Mlp, moe::NoisyTopKGate>;
  std::vector<moe::LayerExpert<Inner>> experts;
  for (Index e = 0; e < 4; ++e)
    experts.emplace_back(test::layer_of<Mlp>(2 + e, moe::NoisyTopKGate{.top_k = test::biased_gate(2 + e)}));
  moe::MoeLayer outer(Linear::random(4, kModelDim, 3), TopKGate{.k = 2}, moe::ExpertPool(std::move(experts)));
  CHECK(is_same_layer(outer, take_experts(outer, all_of(4)), Step::train(2)));
  CHECK(is_taken(outer, take_experts(outer, {3, 1, 1}), {3, 1, 1}));
  const Inner before = outer.experts()[2].layer();
  Inner& inner = outer.experts()[2].layer();
  inner = take_experts(inner, {3, 1});
  CHECK(is_taken(before, inner, {3, 1}));
  test::forward(outer, kTokens);
}

TEST_CASE("take_experts: sets side by side keep their order, and at least one expert each", "[layer]") {
  using Identity = moe::BasicScaledIdentity<F64>;
  const moe::Concatenated set(glu_layer<F64>(TopKGate{}).experts(),
                              moe::ExpertPool(std::vector<Identity>{{kModelDim, 1}, {kModelDim, 2}}));
  const moe::MoeLayer layer(Linear::random(8, kModelDim, 3), TopKGate{.k = 2}, set);
  CHECK(is_same_layer(layer, take_experts(layer, all_of(8)), Step::train(2)));
  const auto taken = take_experts(layer, {4, 1, 1, 7});
  CHECK(taken.experts().set<0>().size() == 3);
  CHECK(leaves_of(taken.experts().set<0>()[0]) == leaves_of(set.set<0>()[4]));
  CHECK(taken.experts().set<1>()[0].scale == 2);
  CHECK(test::same_bits(test::forward(take_experts(layer, {0, 3, 6}), kTokens),
                        masked_forward(layer, {0, 3, 6}, kTokens)));
  CHECK_THROWS_WITH(take_experts(layer, {0, 6, 1}),
                    "moe::Concatenated::take: ids[2] is 1 of set 0 behind one of set 1, expected ids in the order of "
                    "the sets");
  CHECK_THROWS_WITH(take_experts(layer, {0, 1}),
                    "moe::Concatenated::take: ids name 0 experts of set 1, expected at least 1 of each set");
}

TEST_CASE("take_experts: weights stay on the side they are on", "[layer]") {
  auto source = glu_layer<F64>(TopKGate{.k = 2});
  const moe::MoeLayer layer(source.router(), source.gate(), source.experts(), moe::WeightOn::Input);
  CHECK(take_experts(layer, {1, 2}).mixture().weight_on() == moe::WeightOn::Input);
  CHECK(is_same_layer(layer, take_experts(layer, all_of(kExperts)), Step::train(2)));
}

namespace {

/// Two scores per expert, e and E + e, of which the better one counts; a number per expert, too.
struct PairGate {
  static constexpr bool kPerToken = true;
  std::vector<double> factor;

  Index num_logits(Index num_experts) const { return 2 * num_experts; }
  PairGate take(std::span<const Index> ids, Index) const {
    PairGate gate;
    for (const Index e : ids) gate.factor.push_back(factor[static_cast<std::size_t>(e)]);
    return gate;
  }
  Ids logits_of(std::span<const Index> ids, Index num_experts) const {
    Ids logits(ids.begin(), ids.end());
    for (const Index e : ids) logits.push_back(num_experts + e);
    return logits;
  }
  void route(const moe::Logits<double>& logits, const moe::Context&, moe::Routing<double>& routing) const {
    const Index experts = logits.cols() / 2;
    routing.resize(logits.rows(), 1);
    for (Index t = 0; t < logits.rows(); ++t) {
      Index best = 0;
      for (Index c = 1; c < logits.cols(); ++c)
        if (logits(t, c) > logits(t, best)) best = c;
      routing.experts(t)[0] = best % experts;
      routing.weights(t)[0] = factor[static_cast<std::size_t>(best % experts)];
    }
  }
};

/// The same without a word about whose logits are whose.
struct SilentPairGate {
  static constexpr bool kPerToken = true;
  Index num_logits(Index num_experts) const { return 2 * num_experts; }
  void route(const moe::Logits<double>& logits, const moe::Context&, moe::Routing<double>& routing) const {
    routing.resize(logits.rows(), 1);
  }
};

/// Sends every token to the experts with the largest logits, by weights of its own for each expert.
struct OwnRule {
  Index k = 1;
  std::vector<double> weight = {};

  Index choices(Index) const { return k; }
  OwnRule take(std::span<const Index> ids, Index) const {
    OwnRule rule{k};
    for (const Index e : ids) rule.weight.push_back(weight[static_cast<std::size_t>(e)]);
    return rule;
  }
  void probabilities(const moe::Token<double>&, std::span<double> p) const { std::ranges::fill(p, 0.0); }
  Index select(const moe::Token<double>& token, std::span<Index> chosen) const {
    moe::top_k(token.logits.data(), std::ssize(token.logits), chosen);
    return std::ssize(chosen);
  }
  void weigh(const moe::Token<double>&, std::span<const Index> experts, std::span<double> weights) const {
    for (std::size_t s = 0; s < experts.size(); ++s) weights[s] = weight[static_cast<std::size_t>(experts[s])];
  }
  void backward(const moe::Token<double>&, const moe::Choices<double>&, std::span<double>) const {}
};

/// A set of one's own: expert e adds shift[e].
struct Shifts {
  using Scalar = double;
  std::vector<double> shift;

  Index size() const { return std::ssize(shift); }
  Index input_dim() const { return kModelDim; }
  Index output_dim() const { return kModelDim; }
  Shifts take(std::span<const Index> ids) const {
    Shifts taken;
    for (const Index e : ids) taken.shift.push_back(shift[static_cast<std::size_t>(e)]);
    return taken;
  }
  void forward(const moe::ConstMatrixRef<double>& tokens, const moe::PlanView& plan, const moe::Context&,
               moe::RowBuffer<double>& rows) const {
    for (Index e = 0; e < plan.num_experts(); ++e)
      for (Index r = plan.offset(e); r < plan.offset(e + 1); ++r)
        for (Index c = 0; c < kModelDim; ++c)
          rows.row(r)[c] = tokens(plan.token_of_row(r), c) + shift[static_cast<std::size_t>(e)];
  }
};

}  // namespace

TEST_CASE("take_experts: parts of one's own that say how, also with more logits than experts", "[layer]") {
  const Shifts set{{1, 2, 3}};
  const moe::MoeLayer pairs(Linear::random(6, kModelDim, 4), PairGate{{0.5, 1.5, 2.5}}, set);
  const auto taken = take_experts(pairs, {2, 0});
  CHECK(taken.gate().factor == std::vector<double>{2.5, 0.5});
  CHECK(taken.router().num_experts() == 4);
  CHECK(test::same_bits(test::forward(taken, kTokens), masked_forward(pairs, {0, 2, 3, 5}, kTokens)));
  const moe::MoeLayer chance(pairs.router(), moe::WithChance<PairGate>{pairs.gate()}, set);
  CHECK(test::same_bits(test::forward(take_experts(chance, {2, 0}), kTokens), test::forward(taken, kTokens)));

  const moe::MoeLayer by_rule(Linear::random(3, kModelDim, 4), moe::TokenGate{OwnRule{1, {1, 2, 3}}}, set);
  CHECK(
      test::same_bits(test::forward(take_experts(by_rule, {1, 2}), kTokens), masked_forward(by_rule, {1, 2}, kTokens)));

  const moe::MoeLayer silent(Linear::random(6, kModelDim, 4), SilentPairGate{}, set);
  CHECK_THROWS_WITH(take_experts(silent, {0, 1}),
                    "moe::take_experts: the gate wants 6 logits for 3 experts, expected one each, or a gate with "
                    "logits_of (see moe/gate/concept.hpp)");
}
