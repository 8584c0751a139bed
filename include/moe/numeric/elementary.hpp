// SPDX-License-Identifier: MIT
#pragma once

#include <limits>
#include <numbers>
#include <type_traits>

#include "moe/core/simd.hpp"

// Exponentials of our own, for batches and scalars alike. xsimd's change with its version, and its erfc and tanh lose
// relative accuracy where gates need it. Here every multiply-add is a simd::fma and nothing branches on the data, so a
// number gives the same bits in any lane, in a tail and as a scalar. Polynomials are minimax fits (Remez exchange in
// 50 digits, relative weight); their errors are stated where they stand. ulp = unit in the last place of the result.
namespace moe::inline MOE_ABI::simd {

/// c0 + c1 x + c2 x^2 + ..., by Horner's rule.
template <class V, class... Coefficients>
V polynomial(const V& x, double c0, Coefficients... higher) {
  const V constant(static_cast<Scalar<V>>(c0));
  if constexpr (sizeof...(higher) == 0) {
    return constant;
  } else {
    return simd::fma(polynomial(x, higher...), x, constant);
  }
}

namespace detail {

/// e^x = scale * (1 + fraction), with scale a power of two and |fraction| < 0.42.
template <class V>
struct SplitExponential {
  V scale, fraction;
};

/// Below this e^x is not a normal number: log of the smallest one, rounded towards zero.
template <class S>
inline constexpr S kLowestExponent = std::is_same_v<S, float> ? S(-0x1.5d589ep6) : S(-0x1.6232bdd7abcd2p9);

/// For kLowestExponent <= x <= 0; elsewhere finite or not, but meaningless.
template <class V>
[[gnu::always_inline]] inline SplitExponential<V> split_exponential(const V& x) {
  using S = Scalar<V>;
  constexpr bool kFloat = std::is_same_v<S, float>;
  // Adding 1.5 * 2^(digits - 1) rounds to an integer; the exponent's bias added with it leaves n + bias in the low
  // bits.
  const V magic(kFloat ? S(0x1.8p23 + 127) : S(0x1.8p52 + 1023));
  const V shifted = simd::fma(x, V(static_cast<S>(std::numbers::log2e)), magic);
  const V n = shifted - magic;
  // log 2 in two parts, the first short enough for n times it to be exact: |r| <= log(2) / 2.
  const V high(kFloat ? S(0x1.62e4p-1) : S(0x1.62e42fefa38p-1)),
      low(kFloat ? S(0x1.7f7d1cp-20) : S(0x1.ef35793c7673p-45));
  const V r = simd::fnma(n, low, simd::fnma(n, high, x));
  V p;
  if constexpr (kFloat) {  // (e^r - 1 - r) / r^2, error 2^-26.2 of e^r - 1
    p = polynomial(r, 0.5000000062, 0.1666654291, 0.04166628205, 0.008366594945, 0.001394645061);
  } else {  // 2^-55.6
    p = polynomial(r, 0.500000000000000556, 0.166666666666666861, 0.0416666666665735151, 0.00833333333331452557,
                   0.00138888889324179099, 0.000198412699031669684, 0.0000248015043960715176, 2.75572278363738272e-6,
                   2.76263473082259879e-7, 2.51145093149081402e-8);
  }
  return {low_bits_to_exponent(shifted), simd::fma(r * r, p, r)};
}

}  // namespace detail

/// e^x for x <= 0, within 1.5 ulp. Results below the smallest normal number (x < -87.33 in float, -708.39 in double)
/// are exactly 0; -inf gives 0, NaN gives NaN, and x > 0 is not allowed.
template <class V>
[[gnu::always_inline]] inline V exp_nonpositive(const V& x) {
  using S = Scalar<V>;
  const auto [scale, fraction] = detail::split_exponential(x);
  return simd::select(x < V(detail::kLowestExponent<S>), V(S{0}), simd::fma(scale, fraction, scale));
}

/// e^x - 1 for x <= 0, within 2 ulp also near 0. -inf gives -1, NaN gives NaN, and x > 0 is not allowed.
template <class V>
V expm1_nonpositive(const V& x) {
  using S = Scalar<V>;
  const auto [scale, fraction] = detail::split_exponential(x);
  return simd::select(x < V(detail::kLowestExponent<S>), V(S{-1}), simd::fma(scale, fraction, scale - V(S{1})));
}

/// log(1 + x) for 0 <= x <= 1, within 2.5 ulp also near 0. NaN gives NaN.
template <class V>
V log1p_of_fraction(const V& x) {
  using S = Scalar<V>;
  const V s = simd::divide(x, V(S{2}) + x), y = s * s;  // log(1 + x) = 2 artanh(s) = 2s + s y p(y), y <= 1/9
  V p;
  if constexpr (std::is_same_v<S, float>) {  // error 2^-27.7 of the result
    p = polynomial(y, 0.6666641316, 0.4002169813, 0.2799914742, 0.2802445654);
  } else {  // 2^-59.3
    p = polynomial(y, 0.666666666666663893, 0.400000000001343345, 0.285714285501799233, 0.222222238475259673,
                   0.181817476823385498, 0.153864885262026876, 0.133018231482736863, 0.120999208018542958,
                   0.0836505532553352938, 0.169753975547481554);
  }
  return simd::fma(s * y, p, s + s);
}

/// The logistic function at -a and a, for a >= 0.
template <class V>
struct LogisticPair {
  V below, above;  // e^-a / (1 + e^-a) and 1 / (1 + e^-a), each within 3 ulp
};

/// For a >= 0, infinity included. NaN gives NaN.
template <class V>
[[gnu::always_inline]] inline LogisticPair<V> logistic_pair(const V& a) {
  const V e = exp_nonpositive(simd::negate(a)), one(Scalar<V>{1});
  return {simd::divide(e, one + e), simd::divide(one, one + e)};
}

/// The standard normal distribution at a >= 0 in two factors that lose no accuracy in the tail:
/// P(Z > a) = gauss * ratio, density(a) = gauss / sqrt(2 pi).
template <class V>
struct NormalTail {
  V gauss;  // e^(-a^2 / 2), within 2 ulp; 0 from a = 13.2 in float, 37.6 in double
  V ratio;  // P(Z > a) / gauss, within 8 ulp with a fused multiply-add, 12 without
};

/// For 0 <= a <= 37.7, where gauss is 0 already. NaN gives NaN.
template <class V>
NormalTail<V> normal_tail(const V& a) {
  using S = Scalar<V>;
  constexpr bool kFloat = std::is_same_v<S, float>;
  // a^2 to twice the precision (Dekker 1971): rounding a^2 alone would cost a^2 / 4 ulp of e^(-a^2 / 2).
  const V splitter = a * V(kFloat ? S(0x1p12 + 1) : S(0x1p27 + 1)), high = splitter - (splitter - a), low = a - high;
  const V square = a * a;
  const V rest = simd::fma(low, low, simd::fma(high + high, low, simd::fma(high, high, simd::negate(square))));
  const V leading = exp_nonpositive(square * V(S(-0.5)));
  const V gauss = simd::fma(leading, rest * V(S(-0.5)), leading);
  // The ratio as a quotient of polynomials with positive coefficients: no term cancels another anywhere.
  V upper, under;
  if constexpr (kFloat) {  // error 2^-27.6 for a <= 13.3
    upper = polynomial(a, 0.5000000025, 0.4356906751, 0.181309865, 0.03998518339, 0.004020329589);
    under = polynomial(a, 1.0, 1.669266269, 1.19449738, 0.4643884996, 0.1002353705, 0.01007732866);
  } else {  // 2^-60 for a <= 37.7
    upper = polynomial(a, 0.5, 0.827041733353842166, 0.678233465793219279, 0.356285176733232743, 0.131527403295122532,
                       0.035491632876165754, 0.00708000077323085747, 0.00103223538824544092, 0.000105667168663964533,
                       6.90637188019532581e-6, 2.21554008554504846e-7);
    under = polynomial(a, 1.0, 2.45196802751054988, 2.81285436431935443, 1.99688092905629016, 0.977037231729751805,
                       0.346913047395287757, 0.0915171377878678498, 0.0180106877184470589, 0.00260474211750365471,
                       0.000265423666211993047, 0.0000173117070300476336, 5.55353542200413461e-7);
  }
  return {gauss, simd::divide(upper, under)};
}

}  // namespace moe::inline MOE_ABI::simd
