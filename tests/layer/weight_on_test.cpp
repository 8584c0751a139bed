// SPDX-License-Identifier: MIT
#include "layer/gradient_check.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using moe::WeightOn;
using Glu = moe::BasicGlu<moe::F64>;
using Identity = moe::BasicScaledIdentity<moe::F64>;

namespace {

TopKGate sigmoid_gate(Index k) { return {.k = k, .score = moe::Score::Sigmoid, .normalise = moe::Normalise::Off}; }

template <class E>
auto on_input(const test::Layer<E>& layer) {
  return moe::MoeLayer(layer.router(), layer.gate(), layer.experts(), WeightOn::Input);
}

}  // namespace

TEST_CASE("WeightOn::Input: experts see their rows scaled, and nothing scales what they give", "[layer]") {
  const auto layer = on_input(test::layer_of<Glu>(5, sigmoid_gate(3)));
  const auto tokens = test::random_matrix<double>(21, test::kModelDim);
  typename decltype(layer)::Workspace ws;
  Matrix<double> out(21, test::kModelDim);
  layer.forward(tokens, out, ws);
  for (Index t = 0; t < tokens.rows(); ++t) {
    Matrix<double> expected = Matrix<double>::Zero(1, test::kModelDim);
    for (std::size_t s = 0; s < 3; ++s) {
      const double weight = ws.routing.weights(t)[s];
      expected += test::run(layer.experts()[ws.routing.experts(t)[s]], Matrix<double>(weight * tokens.row(t)));
    }
    CHECK(test::largest(Matrix<double>(out.row(t)) - expected) < 1e-13);
  }
  CHECK(test::same_bits(test::TrainingPass(layer, tokens, tokens).out, out));
}

TEST_CASE("WeightOn::Input: with weights of one it is WeightOn::Output, bit for bit", "[layer]") {
  const auto layer = test::layer_of<Glu>(4, TopKGate{.k = 1});
  const auto tokens = test::random_matrix<double>(9, test::kModelDim);
  CHECK(test::same_bits(test::forward(on_input(layer), tokens), test::forward(layer, tokens)));
}

TEST_CASE("WeightOn::Input: gradients are central differences, the router's included", "[layer]") {
  for (const Index k : {1, 3}) {
    CAPTURE(k);
    CHECK(test::layer_gradient_error(on_input(test::layer_of<Glu>(5, sigmoid_gate(k))), Step{}) < 1e-6);
  }
}

TEST_CASE("WeightOn::Input: experts of several types and padding do as with outputs", "[layer]") {
  using Any = moe::OneOf<Glu, Identity>;
  std::vector<Any> experts{test::random_expert<Glu>(test::kModelDim, 5, 1), Identity{test::kModelDim, 0.5}};
  const moe::MoeLayer layer(moe::BasicLinearRouter<moe::F64>::random(2, test::kModelDim, 3), sigmoid_gate(2),
                            moe::ExpertPool<Any>(std::move(experts)), WeightOn::Input);
  CHECK(test::layer_gradient_error(layer, Step{}) < 1e-6);
  const std::vector<std::uint8_t> valid = {1, 0, 1};
  Step step;
  step.valid = valid;
  const auto tokens = test::random_matrix<double>(3, test::kModelDim);
  const test::TrainingPass pass(layer, tokens, tokens, step);
  CHECK(test::all_zero(pass.out.row(1)));
  CHECK(test::all_zero(pass.dtokens.row(1)));
  CHECK(test::same_bits(pass.out.row(2), test::forward(layer, tokens).row(2)));
}
