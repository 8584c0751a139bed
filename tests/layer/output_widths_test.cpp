// SPDX-License-Identifier: MIT
// Layers whose output is wider or narrower than their tokens.
#include "moe/expert/widths.hpp"

#include "layer/gradient_check.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/layer_expert.hpp"
#include "support/catch.hpp"

using moe::ExpertPool;
using moe::F32;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using moe::Widths;
using test::Mat;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;

namespace {

constexpr Widths kNarrow{.input = 11, .hidden = 9, .output = 3}, kWide{.input = 5, .hidden = 17, .output = 35},
    kOne{.input = 7, .hidden = 4, .output = 1};

template <class E, class Codec = F64, class Gate = TopKGate>
test::Layer<E, Gate, Codec> layer_of(Index num_experts, const Widths& widths, Gate gate = {},
                                     moe::WeightOn weight_on = moe::WeightOn::Output) {
  auto experts = ExpertPool<E>::random(num_experts, widths, 1, moe::Bias::Zero);
  test::randomise(experts, 2);
  return {moe::BasicLinearRouter<Codec>::random(num_experts, widths.input, 3), std::move(gate), std::move(experts),
          weight_on};
}

template <class E, class Codec>
void check_against_reference(const Widths& widths) {
  using S = typename Codec::Scalar;
  const auto layer = layer_of<E, Codec>(4, widths);
  for (const Index num_tokens : {0, 1, 6, 33}) {
    const auto tokens = test::random_matrix<S>(num_tokens, widths.input);
    typename decltype(layer_of<E, Codec>(4, widths))::Workspace ws;
    auto out = test::nan_matrix<S>(num_tokens, widths.output);
    layer.forward(tokens, out, ws);
    CAPTURE(num_tokens, widths.input, widths.output);
    CHECK(test::reference_of(layer, tokens.template cast<double>(), ws.routing).worst(out) <= 1);
    ws.max_tokens = 5;
    auto in_chunks = test::nan_matrix<S>(num_tokens, widths.output);
    layer.forward(tokens, in_chunks, ws);
    CHECK(test::same_bits(in_chunks, out));
  }
}

}  // namespace

TEST_CASE(
    "Widths: a layer is the weighted sum of its experts, in one pass and "
    "in chunks",
    "[layer]") {
  for (const Widths& widths : {kNarrow, kWide, kOne}) {
    check_against_reference<Glu, F64>(widths);
    check_against_reference<moe::BasicMlp<F32>, F32>(widths);
    check_against_reference<moe::BasicGlu<F32>, F32>(widths);
  }
}

TEST_CASE("Widths: gradients of a layer are central differences", "[layer]") {
  for (const Widths& widths : {kNarrow, kWide, kOne}) {
    CAPTURE(widths.input, widths.output);
    CHECK(test::layer_gradient_error(layer_of<Mlp>(4, widths), Step{}) < 1e-6);
    CHECK(test::layer_gradient_error(layer_of<Glu>(3, widths, moe::SoftmaxGate{}), Step{}) < 1e-6);
    CHECK(test::layer_gradient_error(layer_of<Mlp>(3, widths, TopKGate{}, moe::WeightOn::Input), Step{}) < 1e-6);
  }
}

TEST_CASE("Widths: replay gives the bits of forward", "[layer]") {
  for (const Widths& widths : {kNarrow, kWide}) {
    const auto layer = layer_of<Glu>(4, widths);
    const auto tokens = test::random_matrix<double>(9, widths.input),
               dout = test::random_matrix<double>(9, widths.output);
    test::TrainingPass pass(layer, tokens, dout);
    auto again = test::nan_matrix<double>(9, widths.output);
    layer.replay(tokens, again, pass.tape);
    CHECK(test::same_bits(again, pass.out));
    CHECK(test::same_bits(again, test::forward(layer, tokens)));
  }
}

TEST_CASE("Widths: branches change the width as their layer does", "[layer]") {
  for (const Widths& widths : {kNarrow, kWide}) {
    const auto layer = layer_of<Mlp>(3, widths);
    auto branch = Glu::random({.input = widths.input, .hidden = 6, .output = widths.output}, 4);
    const auto linear = moe::BasicLinear<F64>::random(widths.output, widths.input, 5);
    const moe::WithBranches both(layer, branch, linear);
    const auto tokens = test::random_matrix<double>(9, widths.input);
    const Mat expected = test::forward(layer, tokens) + test::run(branch, tokens) + test::run(linear, tokens);
    CHECK(test::same_bits(test::forward(both, tokens), expected));
    CHECK(test::layer_gradient_error(both, Step{}) < 1e-6);
    CHECK_THROWS_WITH(moe::WithBranches(layer, Glu(widths.input, 6)),
                      Catch::Matchers::ContainsSubstring("moe::WithBranches: branch 0 maps"));
  }
}

TEST_CASE("Widths: layers as experts change the width of the layer around them", "[layer]") {
  using Inner = moe::LayerExpert<test::Layer<Mlp>>;
  for (const Widths& widths : {kNarrow, kWide}) {
    const moe::MoeLayer outer(moe::BasicLinearRouter<F64>::random(2, widths.input, 6), TopKGate{},
                              ExpertPool<Inner>({Inner(layer_of<Mlp>(3, widths)), Inner(layer_of<Mlp>(2, widths))}));
    CHECK(outer.output_dim() == widths.output);
    CHECK(test::layer_gradient_error(outer, Step{}) < 1e-6);
  }
}

TEST_CASE("Widths: dropped tokens and padding are rows of zeros", "[layer]") {
  const moe::WithCapacity<TopKGate> limited{.gate = {.k = 1, .normalise = moe::Normalise::Off},
                                            .capacity = {.factor = 0.5, .min_capacity = 1}};
  const auto layer = layer_of<Glu>(3, kWide, limited);
  const auto tokens = test::random_matrix<double>(12, kWide.input);
  const std::vector<std::uint8_t> valid = {0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  Step step = Step::train(0);
  step.valid = valid;
  typename decltype(layer_of<Glu>(3, kWide, limited))::Workspace ws;
  auto out = test::nan_matrix<double>(12, kWide.output);
  layer.forward(tokens, step, out, ws);
  Index dropped = 0;
  for (Index t = 1; t < 12; ++t)
    if (ws.routing.dropped(t)[0]) {
      ++dropped;
      CHECK(test::all_zero(out.row(t)));
    }
  CHECK(dropped > 0);
  CHECK(test::all_zero(out.row(0)));
}

TEST_CASE("Widths: shapes that are those of the other side are refused", "[layer][error]") {
  const auto layer = layer_of<Glu>(3, kNarrow);
  Matrix<double> tokens = Matrix<double>::Zero(4, 11), out(4, 11);
  typename decltype(layer_of<Glu>(3, kNarrow))::Workspace ws;
  CHECK_THROWS_WITH(layer.forward(tokens, out, ws), "moe::MoeLayer::forward: out is [4, 11], expected [4, 3]");
  test::TrainingPass pass(layer, tokens, Matrix<double>(Matrix<double>::Zero(4, 3)));
  CHECK_THROWS_AS(layer.backward(tokens, pass.tape, tokens, pass.gradient, out), std::invalid_argument);
}
