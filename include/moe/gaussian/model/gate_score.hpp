// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>

#include "moe/core/matrix.hpp"
#include "moe/gaussian/model/input_columns.hpp"
#include "moe/numeric/activation.hpp"
#include "moe/numeric/elementary.hpp"

namespace moe::inline MOE_ABI {

/// How the score of an expert is made of beta_1j and x, before its bias and the temperature.
enum class GateScoreKind {
  Product,  ///< beta_1j . x
  Cosine,   ///< beta_1j . x / ((|beta_1j| + weight_shift) (|x| + input_shift)); 0 where that is 0 / 0
  Distance  ///< -|x - beta_1j|
};

/// A kind with its numbers; norms are Euclidean, over the inputs that the gate reads.
struct GateScore {
  GateScoreKind kind = GateScoreKind::Product;
  double weight_shift = 0, input_shift = 0;  ///< of Cosine, >= 0; 0 and 0: the cosine itself
  double unit = 1;                           ///< what x and centres are multiplied by before

  bool linear() const { return kind == GateScoreKind::Product; }
  /// Does no score depend on the length of beta_1j?
  bool ignores_length() const { return kind == GateScoreKind::Cosine && weight_shift == 0; }
};

namespace detail {

/// |v| over d numbers v(c), without overflow of their squares.
template <class Number>
double length_of(Index d, Number&& v) {
  double largest = 0, squares = 0;
  for (Index c = 0; c < d; ++c) largest = std::max(largest, std::abs(v(c)));
  if (!(largest > 0)) return 0;
  for (Index c = 0; c < d; ++c) squares += (v(c) / largest) * (v(c) / largest);
  return largest * std::sqrt(squares);
}

/// The score of a row by an expert that is not linear, from the coefficients and inputs of `columns`. O(d).
template <class Coefficients, class Row>
double score_of_row(const GateScore& score, const InputColumns& columns, const Coefficients& beta, const Row& x) {
  const Index d = columns ? std::ssize(*columns) : x.size();
  const auto at = [&](Index c) { return columns ? (*columns)[static_cast<std::size_t>(c)] : c; };
  if (score.kind == GateScoreKind::Distance)
    return -score.unit * length_of(d, [&](Index c) { return double(x(at(c))) - double(beta(at(c))); });
  const double weight = length_of(d, [&](Index c) { return double(beta(at(c))); });
  const double input = score.unit * length_of(d, [&](Index c) { return double(x(at(c))); });
  if (!(weight > 0 && input > 0)) return 0;
  double product = 0;
  for (Index c = 0; c < d; ++c) product += (double(beta(at(c))) / weight) * (score.unit * double(x(at(c))) / input);
  return product * (weight / (weight + score.weight_shift)) * (input / (input + score.input_shift));
}

/// The function behind gamma_j . phi(x), where features phi and coefficients gamma_j(beta_1j) make a score linear; that
/// of cosines is Identity. -sqrt(u) of a squared distance. At a centre the distance has no derivative, and nearer than
/// 1e-6, where u is rounding of squares of order 1, neither is it known: 0 there.
struct DistanceOfFeatures {
  static constexpr const char* kName = "distance";
  template <class V>
  static V value(const V& u) {
    return simd::negate(simd::sqrt(positive(u)));
  }
  template <class V>
  static V derivative(const V& u) {
    return simd::select(V(least<V>()) < u, simd::divide(V(S<V>{-0.5}), simd::sqrt(at_least(u))), V(S<V>{0}));
  }
  template <class V>
  static V second_derivative(const V& u) {
    const V from = at_least(u);
    return simd::select(V(least<V>()) < u, simd::divide(V(S<V>{0.25}), from * simd::sqrt(from)), V(S<V>{0}));
  }

 private:
  template <class V>
  using S = simd::Scalar<V>;
  template <class V>
  static S<V> least() {
    return static_cast<S<V>>(1e-12);
  }
  template <class V>
  static V positive(const V& u) {
    return simd::select(u < V(S<V>{0}), V(S<V>{0}), u);
  }
  template <class V>
  static V at_least(const V& u) {
    return simd::select(u < V(least<V>()), V(least<V>()), u);
  }
};

/// GateModel::Inner of gates whose score is of another kind: names the function of features.
struct CosineInner : Identity {
  using OfFeatures = Identity;
};
struct DistanceInner : DistanceOfFeatures {
  using OfFeatures = DistanceOfFeatures;
};

template <class Inner>
concept ScoredInner = requires { typename Inner::OfFeatures; };

}  // namespace detail

}  // namespace moe::inline MOE_ABI
