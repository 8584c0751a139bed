// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "moe/core/error.hpp"
#include "moe/core/simd.hpp"
#include "moe/kernel/panel_matrix.hpp"
#include "moe/numeric/activation.hpp"

namespace moe::inline MOE_ABI {

/// h(g, u) = Act(g) * u, the product of a GLU (Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202). A
/// product of your own (clamped, shifted) offers the same three functions, over batches, static or const; it may hold
/// numbers, which an expert gets in its constructor.
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

/// (u + up_offset) g sigmoid(alpha g) for a gate g = min(gate, limit) and u = up clamped to [-limit, limit], with
/// derivative 0 where a bound holds: the product of GPT-OSS, whose numbers are the defaults. 1.702 makes
/// x sigmoid(1.702 x) an approximation of GELU. OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card" (arXiv:2508.10925).
struct ClampedSwiGlu {
  double limit = 7;  ///< > 0
  double alpha = 1.702, up_offset = 1;

  /// Throws std::invalid_argument unless the numbers are finite and limit is positive.
  void validate() const {
    if (!(limit > 0 && std::isfinite(limit))) fail("moe::ClampedSwiGlu: limit is ", limit, ", expected above 0");
    if (!std::isfinite(alpha)) fail("moe::ClampedSwiGlu: alpha is ", alpha, ", expected a finite number");
    if (!std::isfinite(up_offset)) fail("moe::ClampedSwiGlu: up_offset is ", up_offset, ", expected a finite number");
  }

  template <class V>
  V value(const V& gate, const V& up) const {
    return (up_of(up) + number<V>(up_offset)) * gated(gate_of(gate));
  }
  template <class V>
  V gate_derivative(const V& gate, const V& up) const {
    const V slope = Silu::derivative(gate_of(gate) * number<V>(alpha));  // of silu(alpha g) / alpha
    return simd::select(gate > number<V>(limit), number<V>(0), (up_of(up) + number<V>(up_offset)) * slope);
  }
  template <class V>
  V up_derivative(const V& gate, const V& up) const {
    return simd::select(simd::abs(up) > number<V>(limit), number<V>(0), gated(gate_of(gate)));
  }

 private:
  template <class V>
  static V number(double value) {
    return V(static_cast<simd::Scalar<V>>(value));
  }
  template <class V>
  V gate_of(const V& gate) const {
    return simd::select(gate > number<V>(limit), number<V>(limit), gate);
  }
  template <class V>
  V up_of(const V& up) const {
    const V high = number<V>(limit), low = number<V>(-limit);
    return simd::select(up > high, high, simd::select(up < low, low, up));
  }
  template <class V>
  V gated(const V& gate) const {
    return gate * Sigmoid::value(gate * number<V>(alpha));
  }
};

/// b tanh(g / b) sigmoid(g) times c tanh(u / c): near zero silu(g) u, and nowhere beyond b c. b is beta and c
/// linear_beta, where 0 leaves u as it is: SiTU, the product of Kimi K3, whose numbers are the defaults.
struct SituGlu {
  double beta = 4;          ///< > 0
  double linear_beta = 25;  ///< > 0, or 0 for no bound of u

  /// Throws std::invalid_argument unless the numbers are finite and in range.
  void validate() const {
    if (!(beta > 0 && std::isfinite(beta))) fail("moe::SituGlu: beta is ", beta, ", expected above 0");
    if (!(linear_beta >= 0 && std::isfinite(linear_beta)))
      fail("moe::SituGlu: linear_beta is ", linear_beta, ", expected at least 0");
  }

  template <class V>
  V value(const V& gate, const V& up) const {
    return gate_of(gate) * up_of(up);
  }
  template <class V>
  V gate_derivative(const V& gate, const V& up) const {
    const V inner = gate * number<V>(1 / beta);
    const V bend = number<V>(beta) * Tanh::value(inner) * Sigmoid::derivative(gate);
    return simd::fma(Tanh::derivative(inner), Sigmoid::value(gate), bend) * up_of(up);
  }
  template <class V>
  V up_derivative(const V& gate, const V& up) const {
    return linear_beta == 0 ? gate_of(gate) : gate_of(gate) * Tanh::derivative(up * number<V>(1 / linear_beta));
  }

 private:
  template <class V>
  static V number(double value) {
    return V(static_cast<simd::Scalar<V>>(value));
  }
  template <class V>
  V gate_of(const V& gate) const {
    return number<V>(beta) * Tanh::value(gate * number<V>(1 / beta)) * Sigmoid::value(gate);
  }
  template <class V>
  V up_of(const V& up) const {
    return linear_beta == 0 ? up : number<V>(linear_beta) * Tanh::value(up * number<V>(1 / linear_beta));
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

/// out = product(gate, up) of the two registers of a paired panel row.
template <class Product>
struct Gated {
  [[no_unique_address]] Product product = {};

  static constexpr PanelOrder kOrder = PanelOrder::Paired;
  static constexpr bool kIdentity = false;
  static constexpr Index kRegisters = 1;

  template <class S>
  void forward(const S* pre, S* out) const {
    simd::store(out, product.value(simd::load(pre), simd::load(pre + simd::kLanes<S>)));
  }
  template <class S>
  void backward(const S* pre, const S* dout, S* dpre) const {
    const auto gate = simd::load(pre), up = simd::load(pre + simd::kLanes<S>), d = simd::load(dout);
    simd::store(dpre, d * product.gate_derivative(gate, up));
    simd::store(dpre + simd::kLanes<S>, d * product.up_derivative(gate, up));
  }
};

}  // namespace moe::inline MOE_ABI
