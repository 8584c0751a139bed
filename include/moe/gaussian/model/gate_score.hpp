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

/// What becomes of a score s, its bias and the temperature.
enum class ScoreLink {
  Identity,   ///< z = (s + beta_0) / tau
  LogSigmoid  ///< z = log sigmoid(s / tau) + beta_0, so that weights are e^beta_0 sigmoid(s / tau) over their sum
};

/// A kind with its numbers; norms are Euclidean, over the inputs that the gate reads.
struct GateScore {
  GateScoreKind kind = GateScoreKind::Product;
  double weight_shift = 0, input_shift = 0;  ///< of Cosine, >= 0; 0 and 0: the cosine itself
  double unit = 1;                           ///< what x and centres are multiplied by before
  ScoreLink link = ScoreLink::Identity;      ///< behind cosines Identity

  bool linear() const { return kind == GateScoreKind::Product && link == ScoreLink::Identity; }
  /// Is x multiplied by beta_1j alone, so that its columns may have any units?
  bool is_product() const { return kind == GateScoreKind::Product; }
  /// Does a temperature divide nothing but a product, whose coefficients may do the same?
  bool tempers_product() const { return is_product() && link == ScoreLink::LogSigmoid; }
  /// What beta_0 is divided by: the weight of an expert is proportional to exp(beta_0 / that).
  double bias_unit(double temperature) const { return link == ScoreLink::Identity ? temperature : 1; }
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

/// z of a score that is not linear.
inline double linked_score(const GateScore& score, double s, double bias, double temperature) {
  if (score.link == ScoreLink::Identity) return (s + bias) / temperature;
  return LogSigmoid::value(s / temperature) + bias;
}

/// The score of a row by an expert that is not linear, from the coefficients and inputs of `columns`. O(d).
template <class Coefficients, class Row>
double score_of_row(const GateScore& score, const InputColumns& columns, const Coefficients& beta, const Row& x) {
  const Index d = columns ? std::ssize(*columns) : x.size();
  const auto at = [&](Index c) { return columns ? (*columns)[static_cast<std::size_t>(c)] : c; };
  if (score.kind == GateScoreKind::Distance)
    return -score.unit * length_of(d, [&](Index c) { return double(x(at(c))) - double(beta(at(c))); });
  if (score.is_product()) {
    double product = 0;
    for (Index c = 0; c < d; ++c) product += double(x(at(c))) * double(beta(at(c)));
    return product;
  }
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

/// log sigmoid(-sqrt(u)) of a squared distance; what has no derivative at a centre is 0 as above.
struct LogSigmoidOfDistance {
  static constexpr const char* kName = "log-sigmoid of distance";
  template <class V>
  static V value(const V& u) {
    return LogSigmoid::value(DistanceOfFeatures::value(u));
  }
  template <class V>
  static V derivative(const V& u) {
    return LogSigmoid::derivative(DistanceOfFeatures::value(u)) * DistanceOfFeatures::derivative(u);
  }
  template <class V>
  static V second_derivative(const V& u) {
    const V s = DistanceOfFeatures::value(u), slope = DistanceOfFeatures::derivative(u);
    return simd::fma(LogSigmoid::second_derivative(s) * slope, slope,
                     LogSigmoid::derivative(s) * DistanceOfFeatures::second_derivative(u));
  }
};

/// GateModel::Inner of gates whose score is of another kind: names the function of features.
struct CosineInner : Identity {
  using OfFeatures = Identity;
};
struct DistanceInner : DistanceOfFeatures {
  using OfFeatures = DistanceOfFeatures;
};
struct SigmoidProductInner : LogSigmoid {
  using OfFeatures = LogSigmoid;
};
struct SigmoidDistanceInner : LogSigmoidOfDistance {
  using OfFeatures = LogSigmoidOfDistance;
};

template <class Inner>
concept ScoredInner = requires { typename Inner::OfFeatures; };

}  // namespace detail

}  // namespace moe::inline MOE_ABI
