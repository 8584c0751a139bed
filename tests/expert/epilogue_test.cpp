// SPDX-License-Identifier: MIT
// What follows a product, for every activation: the activation itself is tested in numeric/.
#include "moe/expert/stage/epilogue.hpp"

#include <array>

#include "support/catch.hpp"
#include "support/matrices.hpp"

using moe::Index;

namespace {

template <class S>
inline constexpr Index kLanes = moe::simd::kLanes<S>;

/// A panel row: two registers of numbers of both signs.
template <class S>
std::array<S, 2 * kLanes<S>> panel_row(std::uint64_t seed) {
  std::array<S, 2 * kLanes<S>> row;
  const auto values = test::random_matrix<S>(1, 2 * kLanes<S>, seed);
  std::copy_n(values.data(), row.size(), row.begin());
  return row;
}

template <class Act, class S>
void check_elementwise() {
  const auto pre = panel_row<S>(1), dout = panel_row<S>(2);
  auto out = pre, dpre = pre;
  moe::Elementwise<Act>::forward(pre.data(), out.data());
  moe::Elementwise<Act>::backward(pre.data(), dout.data(), dpre.data());
  for (std::size_t c = 0; c < pre.size(); ++c) {
    CAPTURE(Act::kName, c, pre[c]);
    CHECK(test::same_bits(out[c], Act::value(pre[c])));
    CHECK(test::same_bits(dpre[c], dout[c] * Act::derivative(pre[c])));
  }
}

template <class Act, class S>
void check_gated() {
  constexpr std::size_t kHalf = kLanes<S>;
  const auto pre = panel_row<S>(1), dout = panel_row<S>(2);
  auto out = pre, dpre = pre;
  moe::Gated<moe::GatedBy<Act>>{}.forward(pre.data(), out.data());
  moe::Gated<moe::GatedBy<Act>>{}.backward(pre.data(), dout.data(), dpre.data());
  for (std::size_t c = 0; c < kHalf; ++c) {
    const S gate = pre[c], up = pre[c + kHalf];
    CAPTURE(Act::kName, c, gate, up);
    CHECK(test::same_bits(out[c], Act::value(gate) * up));
    CHECK(test::same_bits(dpre[c], dout[c] * (Act::derivative(gate) * up)));
    CHECK(test::same_bits(dpre[c + kHalf], dout[c] * Act::value(gate)));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("Elementwise: every activation is applied to every column, forward and backward", "[expert]",
                   moe::Identity, moe::Relu, moe::Tanh, moe::Sigmoid, moe::Softplus, moe::Silu, moe::Gelu,
                   moe::GeluTanh, moe::SquaredRelu) {
  check_elementwise<TestType, float>();
  check_elementwise<TestType, double>();
}

TEMPLATE_TEST_CASE("Gated: the first register gates the second, forward and backward", "[expert]", moe::Silu, moe::Gelu,
                   moe::Relu) {
  check_gated<TestType, float>();
  check_gated<TestType, double>();
}

TEMPLATE_TEST_CASE("Elementwise: zero padding gets a gradient of zero", "[expert]", moe::Identity, moe::Relu, moe::Tanh,
                   moe::Sigmoid, moe::Softplus, moe::Silu, moe::Gelu, moe::GeluTanh, moe::SquaredRelu) {
  std::array<float, 2 * kLanes<float>> zero = {}, dpre;
  moe::Elementwise<TestType>::backward(zero.data(), zero.data(), dpre.data());
  for (const float value : dpre) CHECK(value == 0);
}
