// SPDX-License-Identifier: MIT
// Error bounds from the arithmetic, not from trying: every reference value carries how far a computation in precision S
// may be off. Higham, "Accuracy and stability of numerical algorithms", section 3.1, with u = epsilon / 2:
// a sum of n products in any order is within gamma_n sum |a||b|, gamma_n = n u / (1 - n u).
#pragma once

#include <cmath>
#include <limits>

#include "support/reference.hpp"

namespace test {

using moe::Index;
using reference::Mat;

template <class S>
inline constexpr double kUnitRoundoff = std::numeric_limits<S>::epsilon() / 2;

/// gamma_n for a sum in S that is compared with one in double: both are off.
template <class S>
double gamma(Index n) {
  const auto bound = [n](double u) { return static_cast<double>(n) * u / (1 - static_cast<double>(n) * u); };
  return bound(kUnitRoundoff<S>) + bound(kUnitRoundoff<double>);
}

inline Mat magnitude(const Mat& a) {
  return reference::map(a, [](double x) { return std::abs(x); });
}

/// Exact (to double) values, and bounds on the error of the same values computed in S.
template <class S>
struct Bounded {
  Mat value, error;

  /// Inputs that are the same numbers in both.
  explicit Bounded(const Mat& exact) : value(exact), error(Mat::Zero(exact.rows(), exact.cols())) {}
  Bounded(Mat value_, Mat error_) : value(std::move(value_)), error(std::move(error_)) {}

  /// this w^T + b.
  Bounded linear(const Mat& w, const Mat& b = {}) const {
    const Mat absolute_w = magnitude(w), reach = magnitude(value) + error;
    return {reference::linear(value, w, b),
            reference::linear(error, absolute_w) +
                gamma<S>(w.cols() + 1) * reference::linear(reach, absolute_w, magnitude(b))};
  }

  /// f elementwise, where |f'| <= 1.14 (all shipped activations) and f is computed within 8 ulp.
  template <class F>
  Bounded map(F f) const {
    const Mat result = reference::map(value, f);
    return {result, 1.14 * error + 16 * kUnitRoundoff<S> * magnitude(result)};
  }

  /// f(left half) * right half: what a GLU does between its products.
  template <class F>
  Bounded gated(F f) const {
    const Index half = value.cols() / 2;
    const Bounded gate = Bounded(value.leftCols(half), error.leftCols(half)).map(f);
    const Mat up = value.rightCols(half), up_error = error.rightCols(half);
    Mat product = gate.value.cwiseProduct(up);
    Mat bound = magnitude(gate.value).cwiseProduct(up_error) + gate.error.cwiseProduct(magnitude(up) + up_error) +
                2 * kUnitRoundoff<S> * magnitude(product);
    return {std::move(product), std::move(bound)};
  }

  /// Largest |actual - value| in units of its bound: at most 1 if the computation is right, infinite for NaN.
  template <class A>
  double worst(const A& actual) const {
    if (actual.rows() != value.rows() || actual.cols() != value.cols()) return INFINITY;
    double result = 0;
    for (Index r = 0; r < value.rows(); ++r)
      for (Index c = 0; c < value.cols(); ++c) {
        const double off = std::abs(static_cast<double>(actual(r, c)) - value(r, c));
        if (!std::isfinite(off)) return INFINITY;
        if (off > 0) result = std::max(result, off / error(r, c));
      }
    return result;
  }
};

}  // namespace test
