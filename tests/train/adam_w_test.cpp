// SPDX-License-Identifier: MIT
#include <cmath>

#include "moe/train/adam_w.hpp"
#include "support/catch.hpp"
#include "support/sample_layer.hpp"

namespace {

using Catch::Matchers::WithinAbs;
using test::flatten;
using test::Number;
using test::SampleLayer;

}  // namespace

TEST_CASE("AdamW: the first step moves by the learning rate against the gradient's sign", "[train]") {
  const moe::AdamW adam{.weight_decay = 0};
  for (const double gradient : {3.0, -1e-4, 1e6}) {
    CAPTURE(gradient);
    Number number{1};
    moe::AdamW::State state(number);
    adam.step(number, Number{gradient}, state, 0.125);
    // m / sqrt(v) is the sign, damped by epsilon / |gradient| <= 1e-4.
    REQUIRE_THAT(number.x, WithinAbs(1 - std::copysign(0.125, gradient), 1.3e-5));
  }
}

TEST_CASE("AdamW: decay is decoupled from the gradient", "[train]") {
  Number number{4};
  moe::AdamW::State state(number);
  moe::AdamW{.weight_decay = 0.5}.step(number, Number{0}, state, 0.25);
  REQUIRE(number.x == 3.5);  // 4 * (1 - 0.25 * 0.5); with L2 decay it would be about 4 - 0.25
  REQUIRE(state.first.x == 0);
}

TEST_CASE("AdamW: Decayed::Matrices spares vectors and numbers", "[train]") {
  SampleLayer<moe::F32> layer;
  test::fill(layer, [](moe::Index) { return 1.0; });
  moe::AdamW::State state(layer);
  moe::AdamW{.weight_decay = 1, .decayed = moe::Decayed::Matrices}.step(layer, moe::zeros_like(layer), state, 0.5);
  REQUIRE(layer.plain.weight(2, 3) == 0.5f);
  REQUIRE(layer.table(1, 1) == 0.5f);
  REQUIRE(layer.plain.bias(2, 0) == 1.0f);
  REQUIRE(layer.scale(2) == 1.0f);
  REQUIRE(layer.temperature == 1.0);
}

TEST_CASE("AdamW: a copied state continues with the same bits", "[train]") {
  const moe::AdamW adam;
  SampleLayer<moe::F32> layer, gradient;
  test::fill(gradient, [](moe::Index k) { return std::sin(static_cast<double>(k)); });
  moe::AdamW::State state(layer);
  adam.step(layer, gradient, state, 0.1);
  SampleLayer<moe::F32> other = layer;
  moe::AdamW::State restored(other);
  moe::visit([](const std::string&, auto& to, const auto& from) { to = from; }, restored, std::as_const(state));
  adam.step(layer, gradient, state, 0.1);
  adam.step(other, gradient, restored, 0.1);
  REQUIRE(flatten(layer) == flatten(other));
  REQUIRE(restored.update == 2);
}
