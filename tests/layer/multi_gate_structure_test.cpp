// SPDX-License-Identifier: MIT
// Layers with several gates made of the experts of others.
#include "moe/layer/multi_gate_structure.hpp"

#include <numeric>

#include "layer/structure_fixtures.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/self_gate.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::ExpertMask;
using moe::Index;
using moe::Matrix;
using moe::SelfGate;
using moe::SoftmaxGate;
using moe::Step;
using moe::TopKGate;
using test::kModelDim;
using Ids = std::vector<Index>;
using Groups = std::vector<Ids>;
using Mlp = moe::BasicMlp<moe::F64>;
using Router = moe::BasicLinearRouter<moe::F64>;
template <class G>
using Layer = moe::MultiGateLayer<Router, G, moe::ExpertPool<Mlp>>;

namespace {

constexpr Index kExperts = 6;

/// Experts 0 and 1 are shared, 2 and 3 belong to gate 0, 4 and 5 to gate 1.
ExpertMask blocks() { return ExpertMask(2, kExperts).allow(0, 0, 4).allow(1, 0, 2).allow(1, 4, 2); }

template <class G>
Layer<G> layer_of(const ExpertMask& mask, std::vector<G> gates, std::uint64_t seed = 1, Groups groups = {}) {
  std::vector<Router> routers;
  std::vector<Mlp> experts;
  for (Index g = 0; g < mask.num_gates(); ++g) {
    const Index count = std::ssize(mask.experts(g));
    routers.emplace_back(moe::detail::num_logits(gates[std::size_t(g)], count), kModelDim, moe::Bias::Zero);
    test::randomise(routers.back(), seed + 10 + std::uint64_t(g));
  }
  for (Index e = 0; e < mask.num_experts(); ++e)
    experts.push_back(test::random_expert<Mlp>(kModelDim, test::kHiddenDim, seed + 100 * std::uint64_t(e + 1)));
  return {std::move(routers), std::move(gates), moe::ExpertPool<Mlp>(std::move(experts)), mask, std::move(groups)};
}

/// Gate g of a layer over the experts that it may choose, alone.
template <class G>
auto plain_layer(const Layer<G>& layer, Index g) {
  return moe::MoeLayer(layer.router(g), layer.gate(g), layer.experts().take(layer.mask().experts(g)));
}

template <class G>
bool is_same(const Layer<G>& a, const Layer<G>& b) {
  return a.mask() == b.mask() && a.gates_of_group() == b.gates_of_group() &&
         test::is_same_layer(a, b, Step::train(3, 5));
}

/// A gate with an entry per expert.
TopKGate biased(Index experts, std::uint64_t seed) {
  TopKGate gate{.k = 2};
  gate.selection_bias = test::random_bias(experts, seed, 0.5);
  gate.weight_bias = test::random_bias(experts, seed + 1, 0.5);
  return gate;
}

const auto kTokens = test::random_matrix<double>(19, kModelDim, 3);

}  // namespace

TEST_CASE("ExpertMask: of some experts, and of those of two", "[layer]") {
  CHECK(blocks().take(Ids{4, 0, 2, 4}) == ExpertMask(2, 4).allow(0, 1, 2).allow(1, 0, 2).allow(1, 3));
  CHECK(ExpertMask(2, 3).allow(0, 1, 2).concatenate(ExpertMask(2, 2).allow(0, 0).allow(1, 1)) ==
        ExpertMask(2, 5).allow(0, 1, 3).allow(1, 4));
  CHECK_THROWS_WITH(blocks().take(Ids{6}), ContainsSubstring("ids[0] is 6, expected 0 <= id < 6"));
  CHECK_THROWS_WITH(blocks().take(Ids{}), ContainsSubstring("0 ids"));
  CHECK_THROWS_WITH(blocks().concatenate(ExpertMask::all(3, 2)), ContainsSubstring("other has 3 gates, expected 2"));
}

TEST_CASE("take_experts of several gates: all in their order are the layer, and permutations go back", "[layer]") {
  const Ids order = {3, 0, 5, 1, 4, 2}, all = {0, 1, 2, 3, 4, 5};
  const auto check = [&](const auto& layer) {
    CHECK(is_same(moe::take_experts(layer, all), layer));
    const auto permuted = moe::take_experts(layer, order);
    CHECK_FALSE(permuted.mask() == layer.mask());
    CHECK(is_same(moe::take_experts(permuted, moe::inverse_permutation(order)), layer));
    // Sums over experts have another order.
    const Matrix<double> difference = test::forward(permuted, kTokens) - test::forward(layer, kTokens);
    CHECK(test::largest(difference) < 1e-13);
  };
  check(layer_of<SoftmaxGate>(blocks(), {{}, {}}));
  check(layer_of<TopKGate>(blocks(), {biased(4, 5), biased(4, 7)}));
  check(layer_of<SoftmaxGate>(blocks(), {{}, {}}, 1, {{1, 0}}));
}

TEST_CASE("take_experts of several gates: each gate is the one of the experts that are left to it", "[layer]") {
  const auto check = [&](const auto& layer, const Ids& ids) {
    CAPTURE(ids);
    const auto taken = moe::take_experts(layer, ids);
    const auto out = test::forward(taken, kTokens);
    for (Index g = 0; g < 2; ++g) {
      Ids own;  // as the plain layer of the gate calls them
      for (const Index id : ids)
        for (std::size_t i = 0; i < layer.mask().experts(g).size(); ++i)
          if (layer.mask().experts(g)[i] == id) own.push_back(Index(i));
      const auto plain = moe::take_experts(plain_layer(layer, g), own);
      CHECK(test::same_bits(out.middleCols(g * kModelDim, kModelDim), test::forward(plain, kTokens)));
    }
  };
  for (const Ids& ids : {Ids{1, 2, 4, 5}, Ids{5, 0, 3, 1}, Ids{0, 0, 2, 5, 0}}) {
    check(layer_of<SoftmaxGate>(blocks(), {{}, {}}), ids);
    check(layer_of<TopKGate>(blocks(), {biased(4, 5), biased(4, 7)}), ids);
  }
  const auto home = layer_of<SelfGate>(blocks(), {{.own = 2}, {.own = 1}});
  for (const Ids& ids : {Ids{0, 1, 2, 3, 4, 5}, Ids{1, 3, 2, 5}, Ids{1, 0, 4}, Ids{0, 2, 3}}) check(home, ids);
}

TEST_CASE("take_experts of several gates: what would be another function is refused", "[layer][error]") {
  const auto layer = layer_of<SoftmaxGate>(blocks(), {{}, {}});
  CHECK_THROWS_WITH(moe::take_experts(layer, {2, 3}),
                    "moe::take_experts: ids leave 0 experts to gate 1, expected at least 1");
  CHECK_THROWS_WITH(moe::take_experts(layer, {0, 6}), ContainsSubstring("ids[1] is 6"));
  CHECK_THROWS_WITH(moe::take_experts(layer_of<TopKGate>(blocks(), {{}, {}}), {0, 2, 3}),
                    ContainsSubstring("1 experts are left, expected at least k = 2"));
  const auto home = layer_of<SelfGate>(blocks(), {{.own = 2}, {.own = 1}});
  CHECK_THROWS_WITH(moe::take_experts(home, {0, 2, 4}),
                    ContainsSubstring("1 of 2 experts of the self gate is left, expected none, or at least 2"));
  CHECK_THROWS_WITH(moe::take_experts(home, {2, 0, 3}),
                    ContainsSubstring("ids[1] is 0 behind an expert of the self gate, expected these last"));
}

TEST_CASE("concatenate of several gates: each gate chooses among what it had in both", "[layer]") {
  const auto a = layer_of<SoftmaxGate>(blocks(), {{}, {}}, 1, {{0}, {1, 0}});
  const auto b = layer_of<SoftmaxGate>(ExpertMask(2, 3).allow(0, 1, 2).allow(1, 0), {{}, {}}, 50, {{0}, {1, 0}});
  const auto both = moe::concatenate(a, b);
  CHECK(both.num_experts() == 9);
  CHECK(both.gates_of_group() == a.gates_of_group());
  CHECK(is_same(moe::take_experts(both, {0, 1, 2, 3, 4, 5}), a));
  CHECK(is_same(moe::take_experts(both, {6, 7, 8}), b));
  for (Index g = 0; g < 2; ++g) {
    const auto joined = moe::concatenate(plain_layer(a, g), plain_layer(b, g)), own = plain_layer(both, g);
    CHECK(test::same_bits(test::forward(own, kTokens), test::forward(joined, kTokens)));
  }
  // Sets of two types stand side by side.
  const moe::MultiGateLayer identity(std::vector(2, Router(1, kModelDim, moe::Bias::Zero)), SoftmaxGate{},
                                     moe::ExpertPool(std::vector<moe::BasicScaledIdentity<moe::F64>>(1, {kModelDim})),
                                     ExpertMask::all(2, 1));
  const auto mixed = moe::concatenate(layer_of<SoftmaxGate>(blocks(), {{}, {}}), identity);
  CHECK(mixed.num_experts() == 7);
  CHECK(mixed.mask().experts(1).back() == 6);
  CHECK(test::forward(mixed, kTokens).allFinite());

  const auto other_groups = layer_of<SoftmaxGate>(blocks(), {{}, {}});
  CHECK_THROWS_WITH(moe::concatenate(a, other_groups), ContainsSubstring("groups of gates differ: "));
  const auto three = layer_of<SoftmaxGate>(ExpertMask::all(3, 2), {{}, {}, {}});
  CHECK_THROWS_WITH(moe::concatenate(other_groups, three), ContainsSubstring("other has 3 gates, expected 2"));
  const auto home = layer_of<SelfGate>(blocks(), {{.own = 2}, {.own = 1}});
  CHECK_THROWS_WITH(moe::concatenate(home, home), ContainsSubstring("gates 0 want 6 and 6 logits for 4 and 4 experts"));
}

TEST_CASE("with_experts of several gates: routers, gates and masks stay", "[layer]") {
  const auto layer = layer_of<TopKGate>(blocks(), {biased(4, 5), biased(4, 7)}, 1, {{0, 1}});
  const auto same = moe::transform_experts(layer, [](const auto& pool) { return pool; });
  CHECK(is_same(same, layer));
  CHECK(&moe::experts_of(layer) == &layer.experts());
  CHECK_THROWS_WITH(moe::with_experts(layer, moe::ExpertPool<Mlp>::random(5, kModelDim, 3, 1)),
                    ContainsSubstring("there are 5 experts with 11 inputs, expected 6 with 11"));
}

TEST_CASE("MultiGateLayer: one that has been moved from is refused by name", "[layer][error]") {
  auto layer = layer_of<SoftmaxGate>(blocks(), {{}, {}});
  Layer<SoftmaxGate>::Tape tape;
  auto out = test::nan_matrix<double>(19, 2 * kModelDim), dtokens = test::nan_matrix<double>(19, kModelDim);
  layer.forward(kTokens, Step{}, out, tape);
  const auto before = out;
  const auto to = std::move(layer);
  CHECK(layer.num_gates() == 0);
  CHECK(layer.num_experts() == 0);
  CHECK(layer.input_dim() == 0);
  CHECK(layer.gate_dim() == 0);
  CHECK(layer.output_dim() == 0);
  CHECK(moe::num_parameters(layer) == 0);
  Layer<SoftmaxGate>::Workspace ws;
  const auto refused = ContainsSubstring("there are 0 gates and 0 experts, expected some");
  out = test::nan_matrix<double>(19, 2 * kModelDim);
  CHECK_THROWS_WITH(layer.forward(kTokens, out, ws), refused);
  CHECK_THROWS_WITH(layer.forward(kTokens, Step{}, out, tape), refused);
  CHECK_THROWS_AS(layer.replay(kTokens, out, tape), std::invalid_argument);
  auto gradient = moe::zeros_like(to);
  CHECK_THROWS_WITH(layer.backward(kTokens, tape, out, gradient, dtokens), refused);
  CHECK_THROWS_WITH(moe::take_experts(layer, {0}), refused);
  CHECK_THROWS_WITH(moe::concatenate(to, layer), refused);
  CHECK_THROWS_WITH(moe::with_experts(layer, to.experts()), refused);
  CHECK(std::isnan(out(0, 0)));
  CHECK(std::isnan(dtokens(0, 0)));
  CHECK_THROWS_AS(to.backward(kTokens, tape, before, layer, dtokens), std::invalid_argument);  // as a gradient
  layer = to;                                                                                  // and may be used again
  CHECK(test::same_bits(test::forward(layer, kTokens), before));
  auto parts = to;
  const auto experts = std::move(parts.experts());
  CHECK_THROWS_WITH(parts.forward(kTokens, out, ws), ContainsSubstring("there are 2 gates and 0 experts"));
}
