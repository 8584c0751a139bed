// SPDX-License-Identifier: MIT
// A mixture that is run anew in backward: the bits of the one that keeps a tape.
#include "moe/layer/recomputed.hpp"
#include "layer/fixtures.hpp"
#include "moe/expert/concatenated.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/layer/structure.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;
using moe::Recomputed;
using moe::Step;
using moe::TopKGate;
using test::kModelDim;
using F64 = moe::F64;
using Mlp = moe::BasicMlp<F64>;
using Glu = moe::BasicGlu<F64>;

namespace {

template <class Layer>
auto recomputed(const Layer& layer) {
  return moe::MoeLayer(layer.router(), layer.gate(), Recomputed(layer.mixture()));
}

/// Forward, backward with and without dL/dtokens, padding among the tokens, two steps over one tape.
template <class Layer>
void require_same_bits(const char* name, const Layer& layer) {
  using S = typename Layer::Scalar;
  const auto again = recomputed(layer);
  typename decltype(again)::Tape tape;
  for (const Index count : {0, 1, 17, 5}) {
    CAPTURE(name, count);
    const auto tokens = test::random_matrix<S>(count, layer.input_dim(), 1);
    const auto dout = test::random_matrix<S>(count, layer.output_dim(), 2);
    std::vector<std::uint8_t> valid(static_cast<std::size_t>(count), 1);
    if (count > 2) valid[2] = 0;
    Step step = Step::train(3, 4);
    step.valid = valid;
    const test::TrainingPass<Layer> kept(layer, tokens, dout, step);
    auto out = test::nan_matrix<S>(count, layer.output_dim()), dtokens = test::nan_matrix<S>(count, layer.input_dim());
    auto gradient = moe::zeros_like(again), without = gradient;
    again.forward(tokens, step, out, tape);
    CHECK(test::same_bits(out, kept.out));
    again.backward(tokens, tape, dout, gradient, dtokens);
    CHECK(test::same_bits(dtokens, kept.dtokens));
    again.backward(tokens, tape, dout, without);
    CHECK(test::same_parameters(gradient, without));
    const Layer unwrapped(gradient.router(), gradient.gate(), gradient.mixture().mixture());
    CHECK(test::same_parameters(unwrapped, kept.gradient));
    CHECK(test::same_bits(test::forward(again, tokens, step), test::forward(layer, tokens, step)));
  }
}

}  // namespace

TEST_CASE("Recomputed: outputs and gradients have the bits of the mixture with a tape", "[layer][property]") {
  const auto plain = test::layer_of<Glu>(5, TopKGate{.k = 3});
  require_same_bits("panel experts", plain);
  require_same_bits("in float", test::layer_of<moe::Mlp, TopKGate, moe::F32>(4, TopKGate{.k = 2}));
  require_same_bits("drops", test::layer_of<Mlp>(4, moe::WithCapacity<TopKGate>{{.k = 2}, {.factor = 1}}));
  require_same_bits("weights on the inputs",
                    moe::MoeLayer(plain.router(), plain.gate(), plain.experts(), moe::WeightOn::Input));
  using Identity = moe::BasicScaledIdentity<F64>;
  require_same_bits("sets side by side",
                    moe::MoeLayer(plain.router(), plain.gate(),
                                  moe::Concatenated(test::layer_of<Glu>(3, TopKGate{}).experts(),
                                                    moe::ExpertPool<Identity>({{kModelDim, 0.5}, {kModelDim, 2}}))));
  require_same_bits("gathered experts",
                    moe::MoeLayer(moe::BasicLinearRouter<F64>::random(2, kModelDim, 1), TopKGate{.k = 2},
                                  moe::ExpertPool<test::Diagonal>(
                                      {test::Diagonal{moe::RowVector<double>::Constant(kModelDim, 2)},
                                       test::Diagonal{moe::RowVector<double>::Constant(kModelDim, -1)}})));
}

TEST_CASE("Recomputed: its parameters are named as without it, and experts are taken", "[layer]") {
  const auto plain = test::layer_of<Mlp>(4, TopKGate{.k = 2});
  const auto layer = recomputed(plain);
  std::vector<std::string> a, b;
  moe::visit([&](const std::string& name, const auto&) { a.push_back(name); }, plain);
  moe::visit([&](const std::string& name, const auto&) { b.push_back(name); }, layer);
  CHECK(a == b);
  const std::vector<Index> keep{3, 1};
  const auto tokens = test::random_matrix<double>(6, kModelDim);
  CHECK(test::same_bits(test::forward(moe::take_experts(layer, keep), tokens),
                        test::forward(moe::take_experts(plain, keep), tokens)));
}

TEST_CASE("Recomputed: a tape and a gradient of other passes are refused, nothing written", "[layer][error]") {
  const auto layer = recomputed(test::layer_of<Mlp>(4, TopKGate{.k = 2}));
  const auto other = recomputed(test::layer_of<Mlp>(3, TopKGate{.k = 2}));
  const auto tokens = test::random_matrix<double>(6, kModelDim);
  const auto& mixture = layer.mixture();
  const std::vector<Index> ids{0, 1, 2};
  const std::vector<double> ones(3, 1);
  const auto routing = moe::Routing<double>::from(3, std::span<const Index>(ids), ones, 4);
  auto gradient = moe::zeros_like(mixture);
  std::vector<double> dweight(3, 7);
  Matrix<double> out(6, kModelDim), three = tokens.topRows(3), dtokens = three;
  const Step step;
  moe::Scratch scratch;
  const moe::Context context(step, scratch);
  Recomputed<moe::RoutedExperts<moe::ExpertPool<Mlp>>>::Tape tape;
  const auto backward = [&](auto& to) {
    mixture.backward(three, routing, context, tape, three, to, std::span(dweight), dtokens);
  };
  CHECK_THROWS_WITH(backward(gradient), ContainsSubstring("holds no forward pass"));
  tape.num_tokens = 6;
  CHECK_THROWS_WITH(backward(gradient), ContainsSubstring("routing has 3 tokens, expected 6"));
  tape.num_tokens = 3;
  auto wrong = moe::zeros_like(other.mixture());
  CHECK_THROWS_WITH(backward(wrong), ContainsSubstring("moe::Recomputed::backward"));
  CHECK(dweight == std::vector<double>(3, 7));
  CHECK_THROWS_WITH(mixture.forward(tokens, routing, context, out, tape), ContainsSubstring("tokens"));
  CHECK_THROWS_WITH(backward(gradient), ContainsSubstring("holds no forward pass"));
}
