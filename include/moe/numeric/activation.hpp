// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <limits>
#include <numbers>

#include "moe/numeric/elementary.hpp"

// Elementwise nonlinearities. Each has a value and two derivatives, for a register or a scalar, with the same bits for
// both. NaN gives NaN (but for derivatives that are constants); huge arguments and +-inf give the limit, never NaN.
// Errors are the worst of dense sweeps over float and double against long double, rounded up. "n ulp" (units in the
// last place) are relative and hold where the result is a normal number; a smaller one may be flushed to 0. "n epsilon"
// are absolute, for derivatives that cross zero, near which relative accuracy would take a second precision.
namespace moe::inline MOE_ABI {

namespace detail {

/// The smaller of |x| and `limit`, so that it may be multiplied by 0; NaN stays.
template <class V>
V bounded_magnitude(const V& x, double limit) {
  const V magnitude = simd::abs(x), bound(static_cast<simd::Scalar<V>>(limit));
  return simd::select(magnitude > bound, bound, magnitude);
}

/// For f(x) = max(x, 0) - |x| tail(|x|) and its slope f'(-a) = p q on the negative side: f'(x).
template <class V>
V slope_of_gated(const V& x, const V& p, const V& q) {
  using S = simd::Scalar<V>;
  return simd::select(x < V(S{0}), p * q, simd::fnma(p, q, V(S{1})));
}

}  // namespace detail

/// x.
struct Identity {
  static constexpr const char* kName = "identity";
  template <class V>
  static V value(const V& x) {
    return x;
  }
  template <class V>
  static V derivative(const V&) {
    return V(simd::Scalar<V>{1});
  }
  template <class V>
  static V second_derivative(const V&) {
    return V(simd::Scalar<V>{0});
  }
};

/// max(x, 0), exact. The derivative at 0 is taken as 0.
struct Relu {
  static constexpr const char* kName = "relu";
  template <class V>
  static V value(const V& x) {
    const V zero(simd::Scalar<V>{0});
    return simd::select(x < zero, zero, x);
  }
  template <class V>
  static V derivative(const V& x) {
    return simd::select(x > V(simd::Scalar<V>{0}), V(simd::Scalar<V>{1}), value(x));
  }
  template <class V>
  static V second_derivative(const V&) {
    return V(simd::Scalar<V>{0});
  }
};

/// max(x, 0)^2, rounded once, so infinite above the square root of the largest number; derivatives exact, the second
/// one at 0 taken as 0. So et al., "Primer: Searching for Efficient Transformers", 2021 (arXiv:2109.08668).
struct SquaredRelu {
  static constexpr const char* kName = "squared_relu";
  template <class V>
  static V value(const V& x) {
    const V positive = Relu::value(x);
    return positive * positive;
  }
  template <class V>
  static V derivative(const V& x) {
    const V positive = Relu::value(x);
    return positive + positive;
  }
  template <class V>
  static V second_derivative(const V& x) {
    const V half = Relu::derivative(x);
    return half + half;
  }
};

/// tanh x, within 3 ulp; derivative 1 - tanh^2 x, within 4 ulp; second derivative within 6 ulp.
struct Tanh {
  static constexpr const char* kName = "tanh";
  template <class V>
  static V value(const V& x) {
    using S = simd::Scalar<V>;
    const V m = simd::expm1_nonpositive(V(S{-2}) * simd::abs(x)), t = simd::divide(m, V(S{2}) + m);  // -tanh |x|
    return simd::select(x < V(S{0}), t, simd::negate(t));
  }
  template <class V>
  static V derivative(const V& x) {  // 4 e / (1 + e)^2: no cancellation far out
    using S = simd::Scalar<V>;
    const V e = simd::exp_nonpositive(V(S{-2}) * simd::abs(x)), d = V(S{1}) + e;
    return simd::divide(V(S{4}) * e, d * d);
  }
  template <class V>
  static V second_derivative(const V& x) {
    return V(simd::Scalar<V>{-2}) * value(x) * derivative(x);
  }
};

/// 1 / (1 + e^-x), within 3 ulp; derivative within 4 ulp, second derivative within 6 ulp.
struct Sigmoid {
  static constexpr const char* kName = "sigmoid";
  template <class V>
  static V value(const V& x) {
    using S = simd::Scalar<V>;
    const V e = simd::exp_nonpositive(simd::negate(simd::abs(x))), one(S{1});
    return simd::divide(simd::select(x < V(S{0}), e, one), one + e);
  }
  template <class V>
  static V derivative(const V& x) {
    const V e = simd::exp_nonpositive(simd::negate(simd::abs(x))), d = V(simd::Scalar<V>{1}) + e;
    return simd::divide(e, d * d);
  }
  template <class V>
  static V second_derivative(const V& x) {
    return derivative(x) * Tanh::value(x * V(static_cast<simd::Scalar<V>>(-0.5)));
  }
};

/// log(1 + e^x), within 3 ulp; its derivative is the sigmoid.
struct Softplus {
  static constexpr const char* kName = "softplus";
  template <class V>
  static V value(const V& x) {
    return Relu::value(x) + simd::log1p_of_fraction(simd::exp_nonpositive(simd::negate(simd::abs(x))));
  }
  template <class V>
  static V derivative(const V& x) {
    return Sigmoid::value(x);
  }
  template <class V>
  static V second_derivative(const V& x) {
    return Sigmoid::derivative(x);
  }
};

/// log(sigmoid(x)) = -log(1 + e^-x), within 3 ulp: softmax(log sigmoid(u)) is sigmoid(u_j) / sum_l sigmoid(u_l).
struct LogSigmoid {
  static constexpr const char* kName = "log-sigmoid";
  template <class V>
  static V value(const V& x) {
    return simd::negate(Softplus::value(simd::negate(x)));
  }
  template <class V>
  static V derivative(const V& x) {
    return Sigmoid::value(simd::negate(x));
  }
  template <class V>
  static V second_derivative(const V& x) {
    return simd::negate(Sigmoid::derivative(x));
  }
};

// The next three are x times a distribution function, written max(x, 0) - |x| tail(|x|) with the tail P(Z > |x|):
// nothing cancels on the negative side, and x = infinity is no special case.

/// x sigmoid(x), also called swish, within 4 ulp; derivatives within 2 epsilon.
/// Hendrycks & Gimpel 2016 (arXiv:1606.08415); Elfwing, Uchibe & Doya 2017 (arXiv:1702.03118).
struct Silu {
  static constexpr const char* kName = "silu";
  template <class V>
  static V value(const V& x) {
    const V a = detail::bounded_magnitude(x, kLimit);
    return simd::fnma(a, simd::logistic_pair(a).below, Relu::value(x));
  }
  template <class V>
  static V derivative(const V& x) {  // f'(-a) = s(-a) (1 - a s(a))
    const V a = detail::bounded_magnitude(x, kLimit);
    const auto [below, above] = simd::logistic_pair(a);
    return detail::slope_of_gated(x, below, simd::fnma(a, above, V(simd::Scalar<V>{1})));
  }
  template <class V>
  static V second_derivative(const V& x) {  // s'(a) (2 - a tanh(a / 2))
    using S = simd::Scalar<V>;
    const V a = detail::bounded_magnitude(x, kLimit);
    return Sigmoid::derivative(a) * simd::fnma(a, Tanh::value(a * V(static_cast<S>(0.5))), V(S{2}));
  }

 private:
  static constexpr double kLimit = 1000;  // sigmoid(-1000) is 0
};

/// x P(Z <= x) for standard normal Z, the exact form (erf), within 9 ulp (12 without a fused multiply-add) far out at
/// x < 0, 3 ulp at x > 0; derivatives within 2 epsilon.
/// Hendrycks & Gimpel 2016 (arXiv:1606.08415).
struct Gelu {
  static constexpr const char* kName = "gelu";
  template <class V>
  static V value(const V& x) {
    const V a = detail::bounded_magnitude(x, kLimit);
    const auto [gauss, ratio] = simd::normal_tail(a);
    return simd::fnma(gauss, a * ratio, Relu::value(x));
  }
  template <class V>
  static V derivative(const V& x) {  // f'(-a) = P(Z > a) - a density(a)
    const V a = detail::bounded_magnitude(x, kLimit);
    const auto [gauss, ratio] = simd::normal_tail(a);
    return detail::slope_of_gated(x, gauss, simd::fnma(a, density_scale<V>(), ratio));
  }
  template <class V>
  static V second_derivative(const V& x) {  // (2 - a^2) density(a)
    const V a = detail::bounded_magnitude(x, kLimit);
    return simd::fnma(a, a, V(simd::Scalar<V>{2})) * (simd::normal_tail(a).gauss * density_scale<V>());
  }

 private:
  static constexpr double kLimit = 37.7;  // e^(-a^2 / 2) is 0

  template <class V>
  static V density_scale() {
    return V(static_cast<simd::Scalar<V>>(std::numbers::inv_sqrtpi / std::numbers::sqrt2));
  }
};

/// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, the approximation that many checkpoints were trained with.
/// Computed as x sigmoid(w), w being twice the argument of tanh, within 5 + 3 |w| ulp at x < 0, as w is rounded, and
/// 3 ulp at x > 0; derivatives within 2 epsilon. Hendrycks & Gimpel 2016 (arXiv:1606.08415).
struct GeluTanh {
  static constexpr const char* kName = "gelu_tanh";
  template <class V>
  static V value(const V& x) {
    const Argument<V> at = argument(x);
    return simd::fnma(at.a, simd::logistic_pair(at.w).below, Relu::value(x));
  }
  template <class V>
  static V derivative(const V& x) {  // f'(-a) = s(-w) (1 - a w' s(w))
    const Argument<V> at = argument(x);
    const auto [below, above] = simd::logistic_pair(at.w);
    return detail::slope_of_gated(x, below, simd::fnma(at.a * at.slope, above, V(simd::Scalar<V>{1})));
  }
  template <class V>
  static V second_derivative(const V& x) {  // s'(w) (2 w' + a (w'' - tanh(w / 2) w'^2))
    using S = simd::Scalar<V>;
    const Argument<V> at = argument(x);
    const V curvature = at.a * V(static_cast<S>(6 * kScale * kCubic));
    const V bend = simd::fnma(Tanh::value(at.w * V(static_cast<S>(0.5))), at.slope * at.slope, curvature);
    return Sigmoid::derivative(at.w) * simd::fma(at.a, bend, at.slope + at.slope);
  }

 private:
  static constexpr double kScale = 2 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi, kCubic = 0.044715;

  template <class V>
  struct Argument {
    V a, w, slope;  // |x|, w(a) and dw/da
  };
  /// |x| up to 22, where sigmoid(-w) has reached 0.
  template <class V>
  static Argument<V> argument(const V& x) {
    using S = simd::Scalar<V>;
    const V a = detail::bounded_magnitude(x, 22), square = a * a, scale(static_cast<S>(kScale));
    return {a, a * simd::fma(square, V(static_cast<S>(kScale * kCubic)), scale),
            simd::fma(square, V(static_cast<S>(3 * kScale * kCubic)), scale)};
  }
};

/// An elementwise nonlinearity A: `A::value(x)`, `A::derivative(x)` and `A::second_derivative(x)` for a
/// simd::Batch and a scalar x, float and double, and a name for files and messages.
template <class A>
concept Activation = requires(const simd::Batch<float>& f, const simd::Batch<double>& d, float x, double y) {
  { A::value(f) } -> std::same_as<simd::Batch<float>>;
  { A::value(d) } -> std::same_as<simd::Batch<double>>;
  { A::value(x) } -> std::same_as<float>;
  { A::value(y) } -> std::same_as<double>;
  { A::derivative(f) } -> std::same_as<simd::Batch<float>>;
  { A::derivative(d) } -> std::same_as<simd::Batch<double>>;
  { A::derivative(x) } -> std::same_as<float>;
  { A::derivative(y) } -> std::same_as<double>;
  { A::second_derivative(f) } -> std::same_as<simd::Batch<float>>;
  { A::second_derivative(d) } -> std::same_as<simd::Batch<double>>;
  { A::second_derivative(x) } -> std::same_as<float>;
  { A::second_derivative(y) } -> std::same_as<double>;
  { A::kName } -> std::convertible_to<const char*>;
};

}  // namespace moe::inline MOE_ABI
