// SPDX-License-Identifier: MIT
// Backward without dL/dtokens: the same gradient of the parameters, bit for bit, and less work.
#include "layer/fixtures.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/router/noisy.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using moe::WeightOn;
using test::kModelDim;
using Mlp = moe::BasicMlp<moe::F64>;
using Glu = moe::BasicGlu<moe::F64>;
using Identity = moe::BasicScaledIdentity<moe::F64>;
using Router = moe::BasicLinearRouter<moe::F64>;

namespace {

template <class Layer>
bool same_parameters(const Layer& a, const Layer& b) {
  bool same = true;
  moe::visit(
      [&](const std::string&, const auto& x, const auto& y) {
        const auto p = moe::parameter_span(x), q = moe::parameter_span(y);
        for (std::size_t i = 0; i < p.size(); ++i) same = same && test::same_bits(p[i], q[i]);
      },
      a, b);
  return same;
}

/// Gradients with an auxiliary loss, with dtokens and without, of 0, 1 and 17 tokens, padding among them.
template <class Layer>
void require_same_gradient(const char* name, const Layer& layer) {
  using S = typename Layer::Scalar;
  for (const Index count : {0, 1, 17}) {
    CAPTURE(name, count);
    const auto tokens = test::random_matrix<S>(count, layer.input_dim(), 1);
    const auto dout = test::random_matrix<S>(count, layer.output_dim(), 2);
    std::vector<std::uint8_t> valid(static_cast<std::size_t>(count), 1);
    if (count > 2) valid[2] = 0;
    Step step = Step::train(3, 4);
    step.valid = valid;
    Matrix<S> out(count, layer.output_dim()), dtokens(count, layer.input_dim());
    moe::RoutingGradient<S> losses;
    losses.logits = test::random_matrix<S>(count, layer.num_experts(), 5);
    Layer with = moe::zeros_like(layer), without = with;
    typename Layer::Tape with_tape, without_tape;
    layer.forward(tokens, step, out, with_tape);
    test::losses_of(with_tape) = losses;
    layer.backward(tokens, with_tape, dout, with, dtokens);
    layer.forward(tokens, step, out, without_tape);
    test::losses_of(without_tape) = losses;
    layer.backward(tokens, without_tape, dout, without);
    CHECK(same_parameters(with, without));
  }
}

auto hierarchy() {
  using Inner = moe::LayerExpert<test::Layer<Mlp>>;
  std::vector<Inner> experts;
  for (const Index e : {2, 3}) experts.emplace_back(test::layer_of<Mlp>(e, TopKGate{.k = 2}));
  return moe::MoeLayer(Router::random(2, kModelDim, 21), TopKGate{.k = 2}, moe::ExpertPool<Inner>(std::move(experts)));
}

template <class Experts>
auto with_experts(Experts experts) {
  return moe::MoeLayer(Router::random(2, kModelDim, 3), TopKGate{.k = 2}, std::move(experts));
}

/// A router that writes dtokens whether they are asked for or not.
auto with_noisy_router() {
  const auto plain = test::layer_of<Mlp>(4, TopKGate{.k = 2});
  return moe::MoeLayer(moe::BasicNoisyRouter<moe::F64>::random(4, kModelDim, 3), plain.gate(), plain.experts());
}

}  // namespace

TEST_CASE("Backward without dtokens: the same parameter gradients, bit for bit", "[layer][property]") {
  using Any = moe::OneOf<Glu, Identity>;
  const auto plain = test::layer_of<Glu>(5, TopKGate{.k = 3});
  require_same_gradient("panel experts", plain);
  require_same_gradient("panel experts in float", test::layer_of<moe::Mlp, TopKGate, moe::F32>(5, TopKGate{.k = 3}));
  require_same_gradient("weights on the inputs",
                        moe::MoeLayer(plain.router(), plain.gate(), plain.experts(), WeightOn::Input));
  require_same_gradient("layers as experts", hierarchy());
  require_same_gradient("a noisy router", with_noisy_router());
  require_same_gradient(
      "experts of several types",
      with_experts(moe::ExpertPool<Any>({test::random_expert<Glu>(kModelDim, 5, 1), Identity{kModelDim, 0.5}})));
  require_same_gradient("branches",
                        moe::WithBranches(test::layer_of<Mlp>(3, TopKGate{}), test::random_expert<Glu>(kModelDim, 5, 1),
                                          Identity{kModelDim}, moe::LayerExpert(test::layer_of<Mlp>(2, TopKGate{}))));
}

TEST_CASE("Backward without dtokens: panel experts leave the input gradient out", "[layer]") {
  const auto layer = test::layer_of<Glu>(5, TopKGate{.k = 3});
  const auto tokens = test::random_matrix<double>(9, kModelDim);
  Matrix<double> out(9, kModelDim);
  auto gradient = moe::zeros_like(layer);
  decltype(layer)::Tape tape;
  layer.forward(tokens, Step{}, out, tape);
  layer.backward(tokens, tape, tokens, gradient);
  auto& experts = tape.scratch.get<moe::detail::RoutedRows<double>>().experts;
  CHECK(experts.get<moe::StageMemoryOf<Glu>>().dpre[0].rows() > 0);
  CHECK(experts.get<moe::StageMemoryOf<Glu>>().drows.rows() == 0);
  CHECK(tape.dtokens.rows() == 0);
}

TEST_CASE("Backward without dtokens: what does not fit is refused", "[layer][error]") {
  const auto layer = moe::WithBranches(test::layer_of<Mlp>(3, TopKGate{}), Identity{kModelDim});
  auto gradient = moe::zeros_like(layer);
  decltype(layer)::Tape tape;
  const auto tokens = test::random_matrix<double>(2, kModelDim), wide = test::random_matrix<double>(2, kModelDim + 1);
  CHECK_THROWS_AS(layer.backward(tokens, tape, tokens, gradient), std::invalid_argument);
  Matrix<double> out(2, kModelDim);
  layer.forward(tokens, Step{}, out, tape);
  CHECK_THROWS_AS(layer.backward(tokens, tape, wide, gradient), std::invalid_argument);
  CHECK_THROWS_AS(layer.backward(wide, tape, tokens, gradient), std::invalid_argument);
  CHECK_THROWS_AS(layer.backward(tokens.topRows(1), tape, tokens.topRows(1), gradient), std::invalid_argument);
  CHECK(same_parameters(gradient, moe::zeros_like(layer)));
}
