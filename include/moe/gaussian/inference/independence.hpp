// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/SVD>
#include <algorithm>
#include <cmath>

#include "moe/core/when_used.hpp"
#include "moe/numeric/activation.hpp"

namespace moe::inline MOE_ABI {

/// How far an activation is from the linear dependences that make its gate hard to estimate; see independence().
struct Independence {
  double first_order = 0;         ///< smallest singular value of the first-order family, in [0, 1]
  double f0 = 0, f1 = 0, f2 = 0;  ///< of the three second-order families
  double tolerance = 1e-10;       ///< below it a family counts as dependent

  double second_order() const { return std::min({f0, f1, f2}); }

  /// Has the exact model with this gate, temperature included, the rate n^-1/2?
  bool first_order_holds() const { return first_order >= tolerance; }
  /// Sufficient for the rate n^-1/4 of gate and slopes in over-specified models.
  bool second_order_holds() const { return second_order() >= tolerance; }
};

namespace detail {

/// Smallest singular value of the columns at unit root mean square, over sqrt(n): that of their functions in L2 of the
/// points. 0 for a column of zeros and for fewer rows than columns.
template <class = WhenUsed>
double smallest_singular_value(Eigen::MatrixXd columns) {
  if (!columns.allFinite()) fail("moe::independence: act(beta x) or its square overflows, expected a smaller beta x");
  if (columns.rows() < columns.cols()) return 0;
  for (Index c = 0; c < columns.cols(); ++c) {
    const double norm = columns.col(c).stableNorm();
    if (norm == 0) return 0;
    columns.col(c) /= norm;
  }
  return Eigen::JacobiSVD<Eigen::MatrixXd>(columns).singularValues()(columns.cols() - 1);
}

}  // namespace detail

/// Are the parameters of a gate softmax((act(beta x) + beta_0) / tau) told apart by inputs x, one input, slope beta?
/// With s = act(beta x) and its derivatives s', s'' at beta x, the smallest singular values of the families
///   first order  {1, s, x s'}          dependent when act(u) = A u^p + B piecewise: Identity, Relu, powers. Then tau
///   is
///                                      not identified
///   f0           {1, s, s^2, x s', x s s', x^2 s'', x^2 s'^2}
///   f1           {1, x, s, x s, x s', x^2 s'}
///   f2           {1, x, x^2, s, x s'}
/// with each function scaled to unit root mean square over the points. f0, f1, f2 hold the second-order terms of the
/// Taylor series of the density by the derivative of the normal density that they multiply; that each family is
/// independent is sufficient for the second-order condition, not the wording of the paper. A tiny value that is not 0
/// warns as well: the estimate of tau will vary as its reciprocal. Values fall steeply with |beta| (max x - min x).
///   weights  of the points [n], >= 0: w counts as w points that are alike; none: 1 each
///   x  [n], finite, what the gate sees; with less than 7 different points f0 is 0
/// Throws std::invalid_argument for numbers that are not finite, or whose function is not, and for an empty x. O(n),
/// allocates 21 n doubles. Nguyen, Akbarian & Ho, "Is temperature sample efficient for softmax Gaussian mixture of
/// experts?" (arXiv:2401.13875).
template <Activation Act>
Independence independence(double beta, const Eigen::VectorXd& x, const Eigen::VectorXd& weights = {}) {
  constexpr const char* kName = "moe::independence";
  if (!std::isfinite(beta)) fail(kName, ": beta is ", beta, ", expected a finite number");
  if (x.size() < 1) fail(kName, ": x is empty, expected at least one point");
  if (weights.size() > 0) detail::require_shape(kName, "weights", weights, x.size(), 1);
  Eigen::MatrixXd first(x.size(), 3), f0(x.size(), 7), f1(x.size(), 6), f2(x.size(), 5);
  for (Index i = 0; i < x.size(); ++i) {
    const double t = x(i);
    if (!std::isfinite(t)) fail(kName, ": x is ", t, " at ", i, ", expected finite numbers");
    const double s = Act::value(beta * t), ds = t * Act::derivative(beta * t);
    const double dds = t * t * Act::second_derivative(beta * t);
    first.row(i) << 1, s, ds;
    f0.row(i) << 1, s, s * s, ds, s * ds, dds, ds * ds;
    f1.row(i) << 1, t, s, t * s, ds, t * ds;
    f2.row(i) << 1, t, t * t, s, ds;
    if (weights.size() == 0) continue;
    if (!(weights(i) >= 0 && std::isfinite(weights(i))))
      fail(kName, ": weights is ", weights(i), " at ", i, ", expected finite numbers >= 0");
    const double root = std::sqrt(weights(i));
    for (Eigen::MatrixXd* family : {&first, &f0, &f1, &f2}) family->row(i) *= root;
  }
  return {.first_order = detail::smallest_singular_value(std::move(first)),
          .f0 = detail::smallest_singular_value(std::move(f0)),
          .f1 = detail::smallest_singular_value(std::move(f1)),
          .f2 = detail::smallest_singular_value(std::move(f2))};
}

}  // namespace moe::inline MOE_ABI
