// SPDX-License-Identifier: MIT
// Layers whose tapes are live together work in one scratch: with the bits of those that have one each.
#include "layer/fixtures.hpp"
#include "moe/gate/expert_choice.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/layer_expert.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using test::kModelDim;
using F64 = moe::F64;
using Mlp = moe::BasicMlp<F64>;
using Glu = moe::BasicGlu<F64>;
using Router = moe::BasicLinearRouter<F64>;

namespace {

template <class Tape>
void borrow(Tape& tape, moe::Scratch& memory) {
  if constexpr (requires { tape.layer; }) borrow(tape.layer, memory);
  tape.scratch.borrow(memory);
}

/// Forward through both, then backward through both from the last: what one writes the other finds in the scratch.
template <class A, class B>
void require_same_together(const char* name, const A& a, const B& b) {
  for (const Index count : {0, 1, 17}) {
    CAPTURE(name, count);
    const auto tokens = test::random_matrix<double>(count, kModelDim, 1);
    const auto dout = test::random_matrix<double>(count, kModelDim, 2);
    const Step step = Step::train(3, 4);
    const test::TrainingPass<A> first(a, tokens, dout, step);
    const test::TrainingPass<B> second(b, tokens, dout, step);
    moe::Scratch memory;
    typename A::Tape of_a;
    typename B::Tape of_b;
    borrow(of_a, memory);
    borrow(of_b, memory);
    auto out = test::nan_matrix<double>(count, kModelDim), dtokens = out;
    A gradient_a = moe::zeros_like(a);
    B gradient_b = moe::zeros_like(b);
    a.forward(tokens, step, out, of_a);
    CHECK(test::same_bits(out, first.out));
    b.forward(tokens, step, out, of_b);
    CHECK(test::same_bits(out, second.out));
    b.backward(tokens, of_b, dout, gradient_b, dtokens);
    CHECK(test::same_bits(dtokens, second.dtokens));
    a.backward(tokens, of_a, dout, gradient_a, dtokens);
    CHECK(test::same_bits(dtokens, first.dtokens));
    CHECK(test::same_parameters(gradient_a, first.gradient));
    CHECK(test::same_parameters(gradient_b, second.gradient));
  }
}

auto hierarchy() {
  using Inner = moe::LayerExpert<test::Layer<Mlp>>;
  std::vector<Inner> experts;
  for (const Index e : {2, 3}) experts.emplace_back(test::layer_of<Mlp>(e, TopKGate{.k = 2}));
  return moe::MoeLayer(Router::random(2, kModelDim, 21), TopKGate{.k = 2}, moe::ExpertPool<Inner>(std::move(experts)));
}

}  // namespace

TEST_CASE("Scratch: layers whose tapes are live together share one, with the bits of one each", "[layer][property]") {
  const auto wide = test::layer_of<Glu>(5, TopKGate{.k = 3});
  const auto mlps = test::layer_of<Mlp>(7, moe::WithCapacity<TopKGate>{{.k = 2}, {.factor = 1}});
  require_same_together("layers of one type", wide, test::layer_of<Glu>(3, TopKGate{.k = 2}));
  require_same_together("layers of two types", mlps, wide);
  require_same_together("weights on the inputs",
                        moe::MoeLayer(wide.router(), wide.gate(), wide.experts(), moe::WeightOn::Input), wide);
  require_same_together("a gate over the batch", test::layer_of<Glu>(4, moe::ExpertChoiceGate{}), mlps);
  require_same_together("layers as experts", hierarchy(), mlps);
  require_same_together("branches",
                        moe::WithBranches(wide, test::random_expert<Glu>(kModelDim, 5, 1),
                                          moe::LayerExpert(test::layer_of<Mlp>(2, TopKGate{}))),
                        mlps);
}

TEST_CASE("Scratch: one for a layer and for the layers among its experts is refused", "[layer][error]") {
  const auto layer = hierarchy();
  const auto tokens = test::random_matrix<double>(5, kModelDim, 1);
  moe::Scratch memory;
  decltype(layer)::Tape tape;
  Matrix<double> out(5, kModelDim);
  layer.forward(tokens, Step{}, out, tape);
  tape.scratch.borrow(memory);
  for (auto& inner : tape.mixture.experts.experts) inner.scratch.borrow(memory);
  const char* const words = "tape.scratch is in use by";
  CHECK_THROWS_WITH(layer.forward(tokens, Step{}, out, tape), Catch::Matchers::ContainsSubstring(words));
}
