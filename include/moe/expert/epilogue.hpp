// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/simd.hpp"
#include "moe/kernel/panel_matrix.hpp"
#include "moe/numeric/activation.hpp"

namespace moe::inline MOE_ABI {

/// h(g, u) = Act(g) * u, the product of a GLU (Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202). A
/// product of your own (clamped, shifted) offers the same three functions, over batches.
template <Activation Act>
struct GatedBy {
  template <class V>
  static V value(const V& gate, const V& up) {
    return Act::value(gate) * up;
  }
  template <class V>
  static V gate_derivative(const V& gate, const V& up) {
    return Act::derivative(gate) * up;
  }
  template <class V>
  static V up_derivative(const V& gate, const V&) {
    return Act::value(gate);
  }
};

/// (u + 1) g sigmoid(1.702 g) for a gate g = min(gate, 7) and u = up clamped to [-7, 7], with derivative 0 where a
/// bound holds: the product of GPT-OSS. 1.702 makes x sigmoid(1.702 x) an approximation of GELU. OpenAI, "gpt-oss-120b
/// & gpt-oss-20b Model Card" (arXiv:2508.10925).
struct ClampedSwiGlu {
  static constexpr double kLimit = 7, kAlpha = 1.702, kUpOffset = 1;

  template <class V>
  static V value(const V& gate, const V& up) {
    return (up_of(up) + number<V>(kUpOffset)) * gated(gate_of(gate));
  }
  template <class V>
  static V gate_derivative(const V& gate, const V& up) {
    const V slope = Silu::derivative(gate_of(gate) * number<V>(kAlpha));  // of silu(alpha g) / alpha
    return simd::select(gate > number<V>(kLimit), number<V>(0), (up_of(up) + number<V>(kUpOffset)) * slope);
  }
  template <class V>
  static V up_derivative(const V& gate, const V& up) {
    return simd::select(simd::abs(up) > number<V>(kLimit), number<V>(0), gated(gate_of(gate)));
  }

 private:
  template <class V>
  static V number(double value) {
    return V(static_cast<simd::Scalar<V>>(value));
  }
  template <class V>
  static V gate_of(const V& gate) {
    return simd::select(gate > number<V>(kLimit), number<V>(kLimit), gate);
  }
  template <class V>
  static V up_of(const V& up) {
    const V limit = number<V>(kLimit), low = number<V>(-kLimit);
    return simd::select(up > limit, limit, simd::select(up < low, low, up));
  }
  template <class V>
  static V gated(const V& gate) {
    return gate * Sigmoid::value(gate * number<V>(kAlpha));
  }
};

using SwiGlu = GatedBy<Silu>;
using GeGlu = GatedBy<Gelu>;
using ReGlu = GatedBy<Relu>;

/// What follows a product, panel row by panel row and always on full registers: out = Act(pre), column by column.
template <Activation Act>
struct Elementwise {
  static constexpr PanelOrder kOrder = PanelOrder::Plain;
  static constexpr bool kIdentity = std::is_same_v<Act, Identity>;
  /// Registers of output per panel row.
  static constexpr Index kRegisters = 2;

  template <class S>
  static void forward(const S* pre, S* out) {
    for (Index half = 0; half < 2; ++half) {
      const Index c = half * simd::kLanes<S>;
      simd::store(out + c, Act::value(simd::load(pre + c)));
    }
  }
  template <class S>
  static void backward(const S* pre, const S* dout, S* dpre) {
    for (Index half = 0; half < 2; ++half) {
      const Index c = half * simd::kLanes<S>;
      simd::store(dpre + c, simd::load(dout + c) * Act::derivative(simd::load(pre + c)));
    }
  }
};

/// out = Product(gate, up) of the two registers of a paired panel row.
template <class Product>
struct Gated {
  static constexpr PanelOrder kOrder = PanelOrder::Paired;
  static constexpr bool kIdentity = false;
  static constexpr Index kRegisters = 1;

  template <class S>
  static void forward(const S* pre, S* out) {
    simd::store(out, Product::value(simd::load(pre), simd::load(pre + simd::kLanes<S>)));
  }
  template <class S>
  static void backward(const S* pre, const S* dout, S* dpre) {
    const auto gate = simd::load(pre), up = simd::load(pre + simd::kLanes<S>), d = simd::load(dout);
    simd::store(dpre, d * Product::gate_derivative(gate, up));
    simd::store(dpre + simd::kLanes<S>, d * Product::up_derivative(gate, up));
  }
};

}  // namespace moe::inline MOE_ABI
