// SPDX-License-Identifier: MIT
// Rows of padding and experts that no token can reach may hold anything: every layer, wrapper and router gives the bits
// that zeros give.
#include "layer/fixtures.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/expert/offset.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/activation.hpp"
#include "moe/gate/expert_choice.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/sparse_mixer.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/gate/wrap/with_chance.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/router/cosine.hpp"
#include "moe/router/noisy.hpp"
#include "support/catch.hpp"

using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Linear = moe::BasicLinear<F64>;
using Mlp = moe::BasicMlp<F64>;
using Identity = moe::BasicScaledIdentity<F64>;
using Inner = moe::LayerExpert<test::Layer<Mlp>>;

namespace {

constexpr Index kTokens = 8;

/// A training pass and an inference, tokens 0, 3 and 7 being padding whose rows hold `filling` wherever a row can be
/// given.
template <class Layer>
auto pass_with(const Layer& layer, double filling) {
  const std::vector<std::uint8_t> valid = {0, 1, 1, 0, 1, 1, 1, 0};
  auto tokens = test::random_matrix<double>(kTokens, kModelDim),
       dout = test::random_matrix<double>(kTokens, kModelDim, 2);
  Step step = Step::train(1, 2);
  step.valid = valid;
  moe::RoutingGradient<double> losses;
  losses.logits.setConstant(kTokens, layer.num_experts(), 0.1);
  losses.probability.setConstant(kTokens, layer.num_experts(), 0.2);
  for (Index t = 0; t < kTokens; ++t) {
    if (step.is_valid(t)) continue;
    for (Matrix<double>* rows : {&tokens, &dout, &losses.logits, &losses.probability})
      rows->row(t).setConstant(filling);
  }
  struct {
    Matrix<double> inferred, out, replayed, dtokens;
    Layer gradient;
  } result{test::forward(layer, tokens, step), Matrix<double>(kTokens, kModelDim), Matrix<double>(kTokens, kModelDim),
           Matrix<double>(kTokens, kModelDim), moe::zeros_like(layer)};
  typename Layer::Tape tape;
  layer.forward(tokens, step, result.out, tape);
  test::losses_of(tape) = losses;
  layer.backward(tokens, tape, dout, result.gradient, result.dtokens);
  layer.replay(tokens, result.replayed, tape);
  for (const Index t : {Index{0}, Index{3}, Index{7}}) {
    CHECK(test::all_zero(result.out.row(t)));
    CHECK(test::all_zero(result.dtokens.row(t)));
  }
  return result;
}

template <class Layer>
void check_padding(const Layer& layer) {
  const auto zero = pass_with(layer, 0);
  for (const double filling : {test::kNan<double>, HUGE_VAL}) {
    const auto other = pass_with(layer, filling);
    CAPTURE(filling);
    CHECK(test::same_bits(other.inferred, zero.inferred));
    CHECK(test::same_bits(other.out, zero.out));
    CHECK(test::same_bits(other.replayed, zero.out));
    CHECK(test::same_bits(other.dtokens, zero.dtokens));
    CHECK(test::same_parameters(other.gradient, zero.gradient));
  }
}

auto layer() { return test::layer_of<Mlp>(3, TopKGate{}); }
auto pool() { return moe::ExpertPool<Glu>::random(3, kModelDim, 5, 1); }
moe::GatedExpert<Glu, F64> gated() {
  return {test::random_expert<Glu>(kModelDim, 5, 1), test::random_expert<Linear>(1, kModelDim, 2)};
}

/// Expert 1 of three has a logit of -infinity for all tokens; what its weights hold changes no bit and gets no
/// gradient.
template <class Gate>
void check_masked(const Gate& gate, const Step& step = Step::train(1, 2)) {
  auto zero = test::layer_of<Glu>(3, gate, moe::Bias::Zero);
  zero.router().bias()(1, 0) = -HUGE_VAL;
  auto other = zero;
  moe::set_zero(zero.experts()[1]);
  moe::visit(
      [](const std::string&, auto& leaf) {
        for (double& value : moe::parameter_span(leaf)) value = value < 0 ? HUGE_VAL : test::kNan<double>;
      },
      other.experts()[1]);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim),
             dout = test::random_matrix<double>(kTokens, kModelDim, 2);
  CHECK(test::same_bits(test::forward(other, tokens), test::forward(zero, tokens)));
  const test::TrainingPass expected(zero, tokens, dout, step), pass(other, tokens, dout, step);
  CHECK(test::largest(pass.out) < INFINITY);
  CHECK(test::same_bits(pass.out, expected.out));
  CHECK(test::same_bits(pass.dtokens, expected.dtokens));
  CHECK(test::same_parameters(pass.gradient, expected.gradient));
  CHECK(test::num_nonzero(pass.gradient.experts()[1]) == 0);
  CHECK(pass.tape.mixture.plan.rows_of(1) == 0);
}

}  // namespace

TEST_CASE("Gates: an expert that no token can reach is not computed", "[layer][gate][property]") {
  check_masked(moe::SoftmaxGate{});
  check_masked(TopKGate{});
  check_masked(moe::DenseToSparseGate<>{.threshold = 0, .at_inference = moe::AtInference::Dense});
  check_masked(moe::ActivationGate<>{.sparse = {.threshold = 0, .at_inference = moe::AtInference::Dense}});
  check_masked(moe::NoisyTopKGate{});
  check_masked(moe::SparseMixerGate{});
  check_masked(moe::ExpertChoiceGate{.factor = 3});
  check_masked(moe::WithCapacity<moe::SoftmaxGate>{.capacity = {.factor = 3}});
  check_masked(moe::WithChance<moe::SoftmaxGate>{});
}

TEST_CASE("MoeLayer: what padding holds changes no bit, with any router", "[layer][property]") {
  check_padding(test::layer_of<Glu>(3, TopKGate{}));
  check_padding(test::layer_of<Glu>(3, moe::SoftmaxGate{}));
  check_padding(moe::MoeLayer(moe::BasicNoisyRouter<F64>::random(3, kModelDim, 1), TopKGate{}, pool()));
  check_padding(moe::MoeLayer(moe::BasicCosineRouter<F64>::random(3, kModelDim, 2, 1), TopKGate{}, pool()));
  check_padding(
      moe::MoeLayer(moe::BasicLinearRouter<F64>::random(3, kModelDim, 1), TopKGate{}, pool(), moe::WeightOn::Input));
}

TEST_CASE("WithBranches: what padding holds changes no bit, with any branch", "[layer][property]") {
  check_padding(moe::WithBranches(layer(), test::random_expert<Glu>(kModelDim, 5, 1)));
  check_padding(moe::WithBranches(layer(), gated(), moe::BasicOffset<F64>(kModelDim)));
  check_padding(moe::WithBranches(moe::WithBranches(layer(), Inner(layer())), Identity{kModelDim, 0.5}));
}

TEST_CASE("Hierarchies: what padding holds changes no bit", "[layer][property]") {
  using Any = moe::OneOf<Inner, Glu, Identity>;
  const moe::ExpertPool<Any> experts(
      {Any(Inner(layer())), Any(test::random_expert<Glu>(kModelDim, 5, 1)), Any(Identity{kModelDim})});
  check_padding(moe::MoeLayer(moe::BasicLinearRouter<F64>::random(3, kModelDim, 1), TopKGate{}, experts));
}
