// SPDX-License-Identifier: MIT
// Layers of the experts of two layers, and layers over other experts.
#include <numeric>

#include "layer/structure_fixtures.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/token_gate.hpp"
#include "moe/layer/structure.hpp"
#include "moe/router/cosine.hpp"
#include "moe/router/noisy.hpp"
#include "moe/router/none.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::concatenate;
using moe::F32;
using moe::F64;
using moe::Index;
using moe::Step;
using moe::take_experts;
using moe::TopKGate;
using moe::with_experts;
using test::is_same_layer;
using test::kModelDim;
using Ids = std::vector<Index>;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;
using Linear = moe::BasicLinearRouter<F64>;
using Identity = moe::BasicScaledIdentity<F64>;

namespace {

Ids range(Index first, Index count) {
  Ids ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

template <class Codec, class Gate>
auto glu_layer(Gate gate, Index experts, std::uint64_t seed) {
  auto layer = test::layer_of<moe::BasicGlu<Codec>, Gate, Codec>(experts, std::move(gate), moe::Bias::Zero);
  test::randomise(layer, seed);
  return layer;
}

/// Calls f(name, gate of 6 experts, gate of 4) for every shipped gate.
template <class F>
void for_each_pair_of_gates(F&& f) {
  test::for_each_shipped_gate(6, [&]<class G>(const char* name, const G& gate) {
    test::for_each_shipped_gate(4, [&]<class H>(const std::string& other_name, const H& other) {
      if constexpr (std::is_same_v<G, H>)
        if (other_name == name) f(name, gate, other);
    });
  });
}

template <class R>
auto topped(R router) {
  const Index experts = router.num_experts();
  test::randomise(router, 11);
  return moe::MoeLayer(std::move(router), TopKGate{.k = 2}, glu_layer<F64>(TopKGate{}, experts, 5).experts());
}

/// Whether the experts of `both` are those of `a`, then those of `b`, with all that is theirs.
template <class L>
bool is_union(const L& both, const L& a, const L& b) {
  return is_same_layer(take_experts(both, range(0, a.num_experts())), a, Step::train(2)) &&
         is_same_layer(take_experts(both, range(a.num_experts(), b.num_experts())), b, Step::train(2));
}

const auto kTokens = test::random_matrix<double>(17, kModelDim, 3);

}  // namespace

TEMPLATE_TEST_CASE("concatenate: the experts of both, in order, with every gate", "[layer]", F32, F64) {
  for_each_pair_of_gates([]<class G>(const char* name, const G& gate, const G& other) {
    if constexpr (moe::HasParameters<G>) {
      const auto a = glu_layer<TestType>(gate, 6, 1);
      auto b = glu_layer<TestType>(other, 4, 50);
      CAPTURE(name);
      if constexpr (requires { b.gate().temperature; }) {
        CHECK_THROWS_WITH(concatenate(a, b), "moe::concatenate: the gates are not equal, expected equal options");
        b.gate().temperature = a.gate().temperature;
      }
      const auto both = concatenate(a, b);
      CHECK(both.num_experts() == 10);
      CHECK(is_union(both, a, b));
    }
  });
}

TEST_CASE("concatenate: the router gives the logits of both, and the layer adds up over all experts", "[layer]") {
  const auto a = glu_layer<F64>(TopKGate{.k = 3}, 6, 1), b = glu_layer<F64>(TopKGate{.k = 3}, 4, 50);
  const auto both = concatenate(a, b);
  moe::BasicWorkspace<double> ws, ws_a, ws_b;
  moe::Matrix<double> out(17, kModelDim), other(17, kModelDim);
  both.forward(kTokens, out, ws);
  a.forward(kTokens, other, ws_a);
  b.forward(kTokens, other, ws_b);
  const moe::Matrix<double> logits = ws.logits.matrix();
  CHECK(test::same_bits(logits.leftCols(6), moe::Matrix<double>(ws_a.logits.matrix())));
  CHECK(test::same_bits(logits.rightCols(4), moe::Matrix<double>(ws_b.logits.matrix())));
  CHECK(test::reference_of(both, kTokens, ws.routing).worst(out) <= 1);
  bool of_a = false, of_b = false;
  for (const Index e : ws.routing.experts()) (e < 6 ? of_a : of_b) = true;
  CHECK((of_a && of_b));
}

TEST_CASE("concatenate: every router", "[layer]") {
  const auto check = [](const auto& a, const auto& b) { CHECK(is_union(concatenate(a, b), a, b)); };
  check(topped(Linear(6, kModelDim, moe::Bias::Zero)), topped(Linear(4, kModelDim, moe::Bias::Zero)));
  check(topped(moe::BasicNoisyRouter<F64>(6, kModelDim)), topped(moe::BasicNoisyRouter<F64>(4, kModelDim)));
  check(topped(moe::BasicNoRouter<F64>(6, kModelDim)), topped(moe::BasicNoRouter<F64>(4, kModelDim)));
  const auto a = topped(moe::BasicCosineRouter<F64>(6, kModelDim, 5));
  auto b = topped(moe::BasicCosineRouter<F64>(4, kModelDim, 5));
  b.router().temperature() = a.router().temperature();
  check(a, b);
}

TEST_CASE("concatenate: routers that cannot be one are refused", "[layer][error]") {
  const auto biased = topped(Linear(6, kModelDim, moe::Bias::Zero)), plain = topped(Linear(4, kModelDim));
  CHECK_THROWS_WITH(concatenate(biased, plain),
                    "moe::LinearRouter::concatenate: the biases have 6 and 0 entries, expected both to have some, or "
                    "none");
  CHECK_THROWS_WITH(concatenate(topped(moe::BasicNoisyRouter<F64>(6, kModelDim)),
                                topped(moe::BasicNoisyRouter<F64>(4, kModelDim, 0.5))),
                    ContainsSubstring("minimum_std"));
  const auto a = topped(moe::BasicCosineRouter<F64>(6, kModelDim, 5));
  auto b = a;
  b.router().temperature() += 1;
  CHECK_THROWS_WITH(concatenate(a, b), ContainsSubstring("temperature"));
  b.router().temperature() = a.router().temperature();
  b.router().projection().weight()(4, 10) += 1;
  CHECK_THROWS_WITH(concatenate(a, b), ContainsSubstring("expected the same projection"));
}

TEST_CASE("concatenate: sets of two types stand side by side", "[layer]") {
  const auto a = glu_layer<F64>(TopKGate{.k = 2}, 6, 1);
  const auto b = with_experts(glu_layer<F64>(TopKGate{.k = 2}, 2, 50),
                              moe::ExpertPool(std::vector<Identity>{{kModelDim, 1}, {kModelDim, 2}}));
  const auto both = concatenate(a, b);
  const auto more = concatenate(both, a);
  CHECK(both.experts().set<1>()[1].scale == 2);
  CHECK(more.num_experts() == 14);
  const auto taken = take_experts(both, {0, 1, 2, 3, 4, 5, 6});
  CHECK(test::leaves_of(taken.experts().set<0>()) == test::leaves_of(a.experts()));
  test::forward(more, kTokens);
}

TEST_CASE("concatenate: branches around the first layer stay, WeightOn is that of both", "[layer]") {
  const auto a = glu_layer<F64>(TopKGate{.k = 2}, 6, 1), b = glu_layer<F64>(TopKGate{.k = 2}, 4, 50);
  const moe::WithBranches branched(a, test::random_expert<Mlp>(kModelDim, 4, 5));
  const auto both = concatenate(branched, b);
  CHECK(is_union(both.layer(), a, b));
  CHECK(test::leaves_of(both.branch<0>()) == test::leaves_of(branched.branch<0>()));
  const auto on_inputs = [](const auto& layer) {
    return moe::MoeLayer(layer.router(), layer.gate(), layer.experts(), moe::WeightOn::Input);
  };
  CHECK(concatenate(on_inputs(a), on_inputs(b)).mixture().weight_on() == moe::WeightOn::Input);
  CHECK_THROWS_WITH(concatenate(a, on_inputs(b)), ContainsSubstring("WeightOn"));
}

TEST_CASE("concatenate: gates that differ are refused by the name of what differs", "[layer][error]") {
  const auto refused = [](const auto& a, const auto& b, const char* name) {
    CHECK_THROWS_WITH(concatenate(glu_layer<F64>(a, 6, 1), glu_layer<F64>(b, 4, 1)), ContainsSubstring(name));
  };
  const TopKGate gate{.k = 2};
  refused(gate, TopKGate{.k = 1}, "TopKGate::concatenate: k is");
  refused(gate, TopKGate{.score = moe::Score::Sigmoid}, "score is");
  refused(gate, TopKGate{.normalise = moe::Normalise::Off}, "normalise is");
  refused(gate, TopKGate{.epsilon = 1e-3}, "epsilon is");
  refused(gate, TopKGate{.scale = 2}, "scale is");
  refused(gate, TopKGate{.floor = 1e-3}, "floor is");
  refused(gate, TopKGate{.norm_p = 3}, "norm_p is");
  refused(gate, TopKGate{.constant_weights = moe::ConstantWeights::Accept}, "constant_weights is");
  refused(gate, TopKGate{.selection_bias = test::random_bias(4, 1, 1)}, "selection_bias has 0 and 4");
  refused(gate, TopKGate{.weight_bias = test::random_bias(4, 1, 1)}, "weight_bias has 0 and 4");
  refused(gate, TopKGate{.groups = {.count = 2, .kept = 1}}, "groups is");
  refused(TopKGate{.groups = {.count = 2, .kept = 1}}, TopKGate{.groups = {.count = 2, .kept = 1}}, "size of groups");
  refused(moe::NoisyTopKGate{}, moe::NoisyTopKGate{.scale = 2}, "scale");
  refused(moe::StochasticGate{.k = 1}, moe::StochasticGate{.k = 2}, "the gates are not equal");
  refused(moe::ActivationGate<>{}, moe::ActivationGate<>{.bias_place = moe::BiasPlace::Inside}, "bias_place");
  refused(moe::ActivationGate<>{}, moe::ActivationGate<>{.sparse = {.threshold = 0.5}}, "sparse");
  refused(moe::WithCapacity<TopKGate>{gate}, moe::WithCapacity<TopKGate>{gate, {.factor = 2}}, "capacity");
  refused(moe::WithChance<TopKGate>{gate}, moe::WithChance<TopKGate>{gate, 0.25}, "threshold");
}

TEST_CASE("concatenate: groups of equal size are those of both", "[layer]") {
  const auto a = glu_layer<F64>(TopKGate{.k = 2, .groups = {.count = 3, .kept = 2}}, 6, 1);
  const auto b = glu_layer<F64>(TopKGate{.k = 2, .groups = {.count = 2, .kept = 2}}, 4, 50);
  const auto both = concatenate(a, b);
  CHECK(both.gate().groups == moe::ExpertGroups{.count = 5, .kept = 2});
  CHECK(is_union(both, a, b));
}

namespace {

/// A gate of plain numbers without a word about experts; `logits` of them for each.
struct PlainGate {
  static constexpr bool kPerToken = true;
  Index logits = 1;

  Index num_logits(Index num_experts) const { return logits * num_experts; }
  friend bool operator==(const PlainGate&, const PlainGate&) = default;
  void route(const moe::Logits<double>& scores, const moe::Context&, moe::Routing<double>& routing) const {
    routing.resize(scores.rows(), 1);
    for (Index t = 0; t < scores.rows(); ++t) {
      moe::top_k(scores.row(t).data(), scores.cols(), routing.experts(t));
      routing.weights(t)[0] = 1;
    }
  }
};

/// The rule of one token: its best expert, with weight 1.
struct PlainRule {
  double weight = 1;

  friend bool operator==(const PlainRule&, const PlainRule&) = default;
  Index choices(Index) const { return 1; }
  void probabilities(const moe::Token<double>&, std::span<double> p) const { std::ranges::fill(p, 0.0); }
  Index select(const moe::Token<double>& token, std::span<Index> chosen) const {
    moe::top_k(token.logits.data(), std::ssize(token.logits), chosen);
    return 1;
  }
  void weigh(const moe::Token<double>&, std::span<const Index>, std::span<double> weights) const {
    weights[0] = weight;
  }
  void backward(const moe::Token<double>&, const moe::Choices<double>&, std::span<double>) const {}
};

auto plain_layer(Index experts, Index logits) {
  return moe::MoeLayer(Linear::random(experts * logits, kModelDim, 1), PlainGate{logits},
                       moe::RoutedExperts(moe::ExpertPool<Mlp>::random(experts, kModelDim, 5, 4)));
}

}  // namespace

TEST_CASE("concatenate: gates of plain numbers are compared and copied, mixtures put together", "[layer]") {
  const auto a = plain_layer(3, 1), b = plain_layer(2, 1);
  const auto both = concatenate(a, b);
  CHECK(test::leaves_of(take_experts(both, range(0, 3))) == test::leaves_of(a));
  CHECK(test::same_bits(test::forward(take_experts(both, range(3, 2)), kTokens), test::forward(b, kTokens)));
  CHECK_THROWS_WITH(concatenate(a, plain_layer(2, 2)),
                    "moe::concatenate: the gates want 3 and 4 logits for 3 and 2 experts, expected one each");
  CHECK_THROWS_WITH(concatenate(plain_layer(2, 2), plain_layer(1, 2)),
                    "moe::concatenate: the gates want 4 and 2 logits for 2 and 1 experts, expected one each");
}

TEST_CASE("concatenate: rules of plain numbers are compared and copied", "[layer]") {
  const auto layer = [](double weight) {
    return moe::MoeLayer(Linear::random(3, kModelDim, 1), moe::TokenGate{PlainRule{weight}},
                         moe::ExpertPool<Mlp>::random(3, kModelDim, 5, 4));
  };
  const auto both = concatenate(layer(2), layer(2));
  CHECK(both.gate().rule.weight == 2);
  CHECK(test::same_bits(test::forward(take_experts(both, {3, 4, 5}), kTokens), test::forward(layer(2), kTokens)));
  CHECK_THROWS_WITH(concatenate(layer(2), layer(3)), ContainsSubstring("the gates are not equal"));
}

TEST_CASE("concatenate: layers that do not fit", "[layer][error]") {
  auto a = glu_layer<F64>(TopKGate{.k = 2}, 6, 1);
  const moe::MoeLayer wider(Linear::random(4, kModelDim, 1), TopKGate{.k = 2},
                            moe::ExpertPool<Glu>::random(4, {.input = kModelDim, .hidden = 3, .output = 12}, 1));
  CHECK_THROWS_WITH(concatenate(a, wider), "moe::concatenate: b maps 11 to 12, expected 11 to 11 as a");
  const auto moved = std::move(a);
  CHECK_THROWS_WITH(concatenate(moved, a), ContainsSubstring("it has been moved from"));
  CHECK_THROWS_WITH(concatenate(a, moved), ContainsSubstring("it has been moved from"));
}

TEST_CASE("with_experts: the same choices and weights for other experts", "[layer]") {
  const auto layer = glu_layer<F64>(test::biased_gate(6), 6, 1);
  const auto pool = moe::ExpertPool<Mlp>::random(6, kModelDim, 5, 4);
  const auto own = with_experts(layer, pool);
  moe::BasicWorkspace<double> ws;
  moe::Matrix<double> out(17, kModelDim), expected(17, kModelDim);
  layer.forward(kTokens, out, ws);
  moe::Scratch scratch;
  const Step step;
  moe::RoutedExperts(pool).forward(kTokens, ws.routing, {step, scratch}, expected);
  CHECK(test::same_bits(test::forward(own, kTokens), expected));
  CHECK(test::same_bits(test::forward(with_experts(layer, moe::RoutedExperts(pool)), kTokens), expected));
  CHECK(is_same_layer(with_experts(layer, layer.experts()), layer, Step::train(1)));
}

TEST_CASE("with_experts: branches and WeightOn stay, outputs may be wider", "[layer]") {
  const auto plain = glu_layer<F64>(TopKGate{.k = 2}, 6, 1);
  const moe::MoeLayer layer(plain.router(), plain.gate(), plain.experts(), moe::WeightOn::Input);
  const moe::WithBranches branched(layer, test::random_expert<Mlp>(kModelDim, 4, 5));
  const auto own = with_experts(branched, moe::ExpertPool<Mlp>::random(6, kModelDim, 5, 4));
  CHECK(own.layer().mixture().weight_on() == moe::WeightOn::Input);
  CHECK(test::leaves_of(own.branch<0>()) == test::leaves_of(branched.branch<0>()));
  const moe::Widths wide{.input = kModelDim, .hidden = 3, .output = 12};
  CHECK(with_experts(layer, moe::ExpertPool<Mlp>::random(6, wide, 4)).output_dim() == 12);
  CHECK_THROWS_WITH(with_experts(branched, moe::ExpertPool<Mlp>::random(6, wide, 4)), ContainsSubstring("branch 0"));
}

TEST_CASE("with_experts: sets that do not fit", "[layer][error]") {
  auto layer = glu_layer<F64>(TopKGate{.k = 2}, 6, 1);
  CHECK_THROWS_WITH(with_experts(layer, moe::ExpertPool<Mlp>::random(5, kModelDim, 5, 4)),
                    "moe::with_experts: there are 5 experts with 11 inputs, expected 6 with 11 as in the layer");
  CHECK_THROWS_WITH(with_experts(layer, moe::ExpertPool<Mlp>::random(6, 12, 5, 4)),
                    "moe::with_experts: there are 6 experts with 12 inputs, expected 6 with 11 as in the layer");
  auto pool = moe::ExpertPool<Mlp>::random(6, kModelDim, 5, 4);
  const auto moved_pool = std::move(pool);
  CHECK_THROWS_WITH(with_experts(layer, pool), ContainsSubstring("there are 0 experts"));
  const auto moved = std::move(layer);
  CHECK_THROWS_WITH(with_experts(layer, moved_pool), ContainsSubstring("it has been moved from"));
}
