// SPDX-License-Identifier: MIT
// Layers made of layers: branches, hierarchies, experts of several types.
#include <set>

#include "layer/gradient_check.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/stochastic.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/layer_expert.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using moe::ExpertPool;
using moe::F64;
using moe::Index;
using moe::LayerExpert;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using moe::WithBranches;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;
using Identity = moe::BasicScaledIdentity<F64>;
using Router = moe::BasicLinearRouter<F64>;
using Inner = test::Layer<Mlp>;
using InnerExpert = LayerExpert<Inner>;

namespace {

Router router_of(Index num_experts) { return Router::random(num_experts, kModelDim, 21); }

/// Two levels: 3 experts, each a layer of 2, 3 and 4 experts.
auto hierarchy() {
  std::vector<InnerExpert> experts;
  for (const Index e : {2, 3, 4}) experts.emplace_back(test::layer_of<Mlp>(e, TopKGate{.k = 2}));
  return moe::MoeLayer(router_of(3), TopKGate{.k = 2}, ExpertPool<InnerExpert>(std::move(experts)));
}

auto branches() {
  return WithBranches(test::layer_of<Mlp>(3, TopKGate{}), test::random_expert<Glu>(kModelDim, 5, 1),
                      Identity{kModelDim});
}

}  // namespace

TEST_CASE("WithBranches: adds the layer and every branch", "[layer]") {
  const auto layer = branches();
  const auto tokens = test::random_matrix<double>(9, kModelDim);
  const Matrix<double> expected = test::forward(layer.layer(), tokens) + test::run(layer.branch<0>(), tokens) + tokens;
  CHECK(test::same_bits(test::forward(layer, tokens), expected));
  CHECK(test::same_bits(test::TrainingPass(layer, tokens, tokens).out, expected));
}

TEST_CASE("WithBranches: gradients are central differences", "[layer]") {
  CHECK(test::layer_gradient_error(branches(), Step{}) < 1e-6);
}

TEST_CASE("WithBranches: padding gives zeros, gets no gradient and gives none", "[layer]") {
  const auto layer = branches();
  const auto tokens = test::random_matrix<double>(3, kModelDim), dout = test::random_matrix<double>(3, kModelDim, 2);
  const std::vector<std::uint8_t> valid = {1, 0, 0};
  Step step;
  step.valid = valid;
  const test::TrainingPass padded(layer, tokens, dout, step);
  const test::TrainingPass alone(layer, Matrix<double>(tokens.topRows(1)), Matrix<double>(dout.topRows(1)));
  CHECK(test::same_bits(padded.out.topRows(1), alone.out));
  CHECK(test::all_zero(padded.out.bottomRows(2)));
  CHECK(test::all_zero(padded.dtokens.bottomRows(2)));
  CHECK(test::largest(test::in_double(padded.gradient.branch<0>().gate_up()) -
                      test::in_double(alone.gradient.branch<0>().gate_up())) == 0);
}

TEST_CASE("WithBranches: a forward-only branch serves inference", "[layer]") {
  const WithBranches layer(test::layer_of<Mlp>(3, TopKGate{}), test::AddTokenId{kModelDim});
  const auto tokens = test::random_matrix<double>(1, kModelDim);
  CHECK(test::same_bits(test::forward(layer, tokens), test::forward(layer.layer(), tokens) + tokens));
}

TEST_CASE("WithBranches: parameters are those of the layer, then those of the branches", "[layer]") {
  const auto layer = branches();
  std::vector<std::string> names;
  moe::visit([&](const std::string& name, const auto&) { names.push_back(name); }, layer);
  REQUIRE(names.size() == 2 + 3 * 4 + 2);
  CHECK(names.front() == "router.weight");
  CHECK(names[2] == "experts.0.up.weight");
  CHECK(names.back() == "branches.0.down.weight");
}

TEST_CASE("WithBranches: a branch of other dimensions is refused", "[layer][error]") {
  CHECK_THROWS_WITH(WithBranches(test::layer_of<Mlp>(3, TopKGate{}), Identity{kModelDim}, Identity{5}),
                    "moe::WithBranches: branch 1 maps 5 to 5, expected 11 to 11 as the layer");
}

TEST_CASE("WithBranches: input and output of a branch are checked each", "[layer][error]") {
  using Linear = moe::BasicLinear<F64>;
  const auto layer = test::layer_of<Mlp>(3, TopKGate{});
  CHECK_THROWS_WITH(WithBranches(layer, Linear(kModelDim, 5)),
                    "moe::WithBranches: branch 0 maps 5 to 11, expected 11 to 11 as the layer");
  CHECK_THROWS_WITH(WithBranches(layer, Linear(5, kModelDim)),
                    "moe::WithBranches: branch 0 maps 11 to 5, expected 11 to 11 as the layer");
  CHECK_NOTHROW(WithBranches(layer, Linear(kModelDim, kModelDim)));
}

TEST_CASE("WithBranches: decides token by token if the layer and all branches do", "[layer]") {
  using Limited = test::Layer<Mlp, moe::WithCapacity<TopKGate>>;
  STATIC_REQUIRE(WithBranches<Inner, Glu, Identity>::kPerToken);
  STATIC_REQUIRE(WithBranches<Inner, InnerExpert>::kPerToken);
  STATIC_REQUIRE_FALSE(WithBranches<Limited, Glu>::kPerToken);
  STATIC_REQUIRE_FALSE(WithBranches<Inner, Glu, LayerExpert<Limited>>::kPerToken);
  STATIC_REQUIRE_FALSE(WithBranches<Inner, LayerExpert<Limited>, Glu>::kPerToken);
  STATIC_REQUIRE_FALSE(moe::GatedExpert<LayerExpert<Limited>, F64>::kPerToken);
  STATIC_REQUIRE(moe::GatedExpert<Glu, F64>::kPerToken);
}

TEST_CASE("WithBranches: the layer's experts and every branch draw their own numbers", "[layer]") {
  constexpr Index kDrawn = 10, kTokens = 64, kParts = 4;
  using Random = moe::MoeLayer<Router, moe::StochasticGate, ExpertPool<test::Diagonal>>;
  // Multiplies by e * scale with an expert e that is drawn: with scales of 1, 10, 100, ... a digit per part.
  const auto drawing = [](double scale) {
    std::vector<test::Diagonal> experts;
    for (Index e = 0; e < kDrawn; ++e) experts.push_back({moe::RowVector<double>::Constant(1, double(e) * scale)});
    return Random(Router(kDrawn, 1), {.k = 1, .training = moe::DrawPer::Token}, ExpertPool(std::move(experts)));
  };
  using Drawing = LayerExpert<Random>;
  const WithBranches layer(
      moe::MoeLayer(Router(2, 1), TopKGate{.k = 1}, ExpertPool<Drawing>({Drawing(drawing(1)), Drawing(drawing(1))})),
      Drawing(drawing(10)), Drawing(drawing(100)), Drawing(drawing(1000)));
  const Matrix<double> tokens = Matrix<double>::Ones(kTokens, 1);
  const auto out = test::forward(layer, tokens, Step::train(1, 2));
  std::set<std::vector<Index>> drawn;
  for (Index part = 0; part < kParts; ++part) {
    std::vector<Index> digits;
    for (Index t = 0; t < kTokens; ++t)
      digits.push_back(static_cast<Index>(out(t, 0)) / static_cast<Index>(std::pow(10, part)) % 10);
    drawn.insert(digits);
  }
  drawn.insert([&] {  // a layer that is no part of another
    std::vector<Index> digits;
    const auto alone = test::forward(drawing(1), tokens, Step::train(1, 2));
    for (Index t = 0; t < kTokens; ++t) digits.push_back(static_cast<Index>(alone(t, 0)));
    return digits;
  }());
  CHECK(drawn.size() == kParts + 1);  // two equal by chance: 10^-64
}

TEST_CASE("LayerExpert: a hierarchy is the mixture of its layers", "[layer]") {
  const auto layer = hierarchy();
  const auto tokens = test::random_matrix<double>(9, kModelDim);
  moe::BasicWorkspace<double> ws;
  Matrix<double> out(9, kModelDim), expected = Matrix<double>::Zero(9, kModelDim);
  layer.forward(tokens, out, ws);
  for (Index t = 0; t < 9; ++t)
    for (std::size_t s = 0; s < 2; ++s) {
      const auto y = test::forward(layer.experts()[ws.routing.experts(t)[s]].layer(), Matrix<double>(tokens.row(t)));
      const double weight = ws.routing.weights(t)[s];
      for (Index c = 0; c < kModelDim; ++c) expected(t, c) = moe::simd::fma(weight, y(0, c), expected(t, c));
    }
  CHECK(test::same_bits(out, expected));
}

TEST_CASE("LayerExpert: gradients of a hierarchy are central differences", "[layer]") {
  CHECK(test::layer_gradient_error(hierarchy(), Step{}) < 1e-6);
}

TEST_CASE("LayerExpert: inner layers draw by token, each its own numbers", "[layer]") {
  using Random = test::Layer<Mlp, moe::StochasticGate>;
  const auto inner = test::layer_of<Mlp>(4, moe::StochasticGate{.k = 1, .training = moe::DrawPer::Token});
  const moe::MoeLayer layer(router_of(2), TopKGate{.k = 2},
                            ExpertPool<LayerExpert<Random>>({LayerExpert<Random>(inner), LayerExpert<Random>(inner)}));
  const auto tokens = test::random_matrix<double>(40, kModelDim);
  std::vector<std::int64_t> id(40);
  for (std::size_t t = 0; t < id.size(); ++t) id[t] = std::int64_t(1000 + t);
  Step step = Step::train(1, 2), last = step;
  step.token_id = id;
  last.token_id = std::span(id).last(1);
  const auto all = test::forward(layer, tokens, step);
  CHECK(test::same_bits(all.bottomRows(1), test::forward(layer, Matrix<double>(tokens.bottomRows(1)), last)));

  moe::DispatchPlan plan;  // both experts see every token
  plan.build(test::routing_of<double>(std::vector<std::vector<Index>>(40, {0, 1})), 2);
  moe::RowBuffer<double> rows;
  rows.resize(plan.num_rows(), kModelDim);
  layer.experts().forward(tokens, plan, step, rows);
  Index same = 0;
  for (Index t = 0; t < 40; ++t) same += rows.matrix().row(t) == rows.matrix().row(40 + t) ? 1 : 0;
  CHECK(same < 25);  // expected 10 of 40 by chance; 25 or more has a probability below 1e-6
}

TEST_CASE("Layers: three levels, branches and experts of several types work together", "[layer]") {
  using Middle = decltype(branches());
  using Any = moe::OneOf<LayerExpert<Middle>, InnerExpert, Identity, Glu>;
  const ExpertPool<Any> pool({Any(LayerExpert<Middle>(branches())),
                              Any(InnerExpert(test::layer_of<Mlp>(2, TopKGate{}))), Any(Identity{kModelDim, 0}),
                              Any(test::random_expert<Glu>(kModelDim, 5, 1))});
  const WithBranches layer(moe::MoeLayer(router_of(4), TopKGate{.k = 3}, pool), Identity{kModelDim, 0.5});
  CHECK(test::layer_gradient_error(layer, Step{}) < 1e-6);
}
