// SPDX-License-Identifier: MIT
// How far a computation in double may be off the oracle, from the arithmetic (see tolerance.hpp): sums of n products
// are within gamma_n sum |a||b|, activations within 8 ulp with both derivatives
// within 1.14, exp and log within 4 ulp. The bounds grow
// with the magnitudes of a row, so that they hold for extreme ones too and stay tight for ordinary ones.
#pragma once

#include "gaussian/oracle.hpp"

namespace oracle {

inline constexpr Real kU = 0x1p-53L;  // unit roundoff of double
inline constexpr Real kMaxSlope = 1.14L;
inline constexpr Real kTiny = 1e-290L;  // what falls below the range of double

inline Real gamma(Index n) { return static_cast<Real>(n) * kU / (1 - static_cast<Real>(n) * kU); }

/// sum_c |a_jc x_c|
inline Real reach(const Mat& a, Index j, const Vec& x) { return dot(a.cwiseAbs(), j, x.cwiseAbs()); }

/// log sum_j p_j e^(d_j) for probabilities p = e^(log p) and d >= 0. It bounds how much log sum_j e^(a_j) moves, up or
/// down, when every a_j moves by at most d_j and p = softmax(a): exactly, by Jensen, not to first order.
inline Real moved_sum(const Vec& log_p, const Vec& d, const std::vector<bool>& active) {
  return std::max<Real>(0, log_sum_exp(log_p + d, active));
}

/// Bounds of the errors of one row.
struct RowBound {
  explicit RowBound(Index k) : argument(k), residual(k), log_weight(k), joint(k), weight(k), posterior(k) {}

  Vec argument, residual;  ///< absolute
  Vec log_weight, joint;   ///< absolute: log pi_j, log pi_j + log f_j
  Vec weight, posterior;   ///< absolute
  Real log_density = 0;
};

namespace detail {

/// Errors of z, by expert.
inline Vec score_bound(const Model& m, const Row& row, RowBound& bound) {
  Vec d(m.k);
  for (Index j = 0; j < m.k; ++j) {
    const Real bias = std::abs(m.beta0(j));
    bound.argument(j) = gamma(m.d + 2) * (reach(m.beta1, j, row.x) + (m.rule.inside ? bias : 0));
    const Real inner = std::abs(m.rule.inner(row.argument(j)));
    d(j) = (kMaxSlope * bound.argument(j) + 16 * kU * (inner + bias)) / m.tau + 4 * kU * std::abs(row.score(j));
  }
  return d;
}

/// Error of log f_j: of e^2 / nu, to which that of e contributes most, and of log nu.
inline Real component_bound(const Model& m, const Row& row, Index j, RowBound& bound) {
  const Real e = std::abs(row.residual(j)), nu = m.variance(j);
  const Real d = gamma(m.d + 2) * (e + reach(m.a, j, row.x) * 2 + std::abs(m.b(j)) * 2);
  bound.residual(j) = d;
  return (2 * e * d + d * d) / (2 * nu) + 8 * kU * (e * e / nu + std::abs(std::log(nu)) + 2);
}

}  // namespace detail

inline RowBound bound(const Model& m, const Row& row) {
  RowBound bound(m.k);
  const Vec dz = detail::score_bound(m, row, bound);
  Real largest = 0;
  for (Index j = 0; j < m.k; ++j)
    if (row.active[static_cast<std::size_t>(j)]) largest = std::max(largest, std::abs(row.score(j)));
  const Real sum = static_cast<Real>(m.k + 16) * kU;  // log of a sum of k exponentials
  const Real norm = moved_sum(row.log_weight, dz, row.active) + sum;
  for (Index j = 0; j < m.k; ++j) {
    if (!row.active[static_cast<std::size_t>(j)]) {
      bound.log_weight(j) = bound.joint(j) = bound.weight(j) = bound.posterior(j) = bound.residual(j) = 0;
      continue;
    }
    bound.log_weight(j) = dz(j) + norm + 4 * kU * (std::abs(row.score(j)) + largest);
    bound.joint(j) = bound.log_weight(j) + detail::component_bound(m, row, j, bound) +
                     4 * kU * (std::abs(row.log_weight(j)) + std::abs(row.log_component(j)));
    bound.weight(j) = row.weight(j) * std::expm1(bound.log_weight(j) + 16 * kU) + kTiny;
  }
  Vec log_posterior = row.log_weight + row.log_component;
  log_posterior.array() -= row.log_density;
  bound.log_density = moved_sum(log_posterior, bound.joint, row.active) + sum + 8 * kU * std::abs(row.log_density);
  for (Index j = 0; j < m.k; ++j)
    if (row.active[static_cast<std::size_t>(j)])  // r e^d <= 1, in logarithms as d may be large where r is 0
      bound.posterior(j) =
          std::min<Real>(1, std::exp(log_posterior(j) + bound.joint(j) + bound.log_density + 16 * kU)) -
          row.posterior(j) * (1 - 16 * kU) + kTiny;
  return bound;
}

inline Real log_likelihood_bound(const Model& m, const moe::RegressionData& data) {
  Real error = 0, magnitude = 0;
  for (Index i = 0; i < data.num_rows(); ++i) {
    const Row row = evaluate(m, data, i);
    error += bound(m, row).log_density;
    magnitude += std::abs(row.log_density);
  }
  return error + gamma(data.num_rows()) * magnitude;
}

/// A number that is known up to an error, and their product: |ab - a'b'|.
struct Known {
  Real value = 0, error = 0;
};
inline Known operator*(const Known& a, const Known& b) {
  return {a.value * b.value, std::abs(a.value) * b.error + a.error * (std::abs(b.value) + b.error)};
}

/// Error of score_at(): that of each of its factors, and 16 roundings of the terms before they cancel.
inline Real score_bound_at(const Model& m, const Row& row, const RowBound& error, const Coordinate& at) {
  const Index j = at.expert;
  const Real nu = m.variance(j);
  const auto pull = [&](Index l) -> Known {
    return {row.posterior(l) - row.weight(l),
            error.posterior(l) + error.weight(l) + 16 * kU * (row.posterior(l) + row.weight(l))};
  };
  const auto exact = [](Real value) -> Known { return {value, 16 * kU * std::abs(value)}; };
  const Known slope = {m.rule.slope(row.argument(j)), kMaxSlope * error.argument(j) + 16 * kU};
  const Known posterior = {row.posterior(j), error.posterior(j)}, residual = {row.residual(j), error.residual(j)};
  switch (at.kind) {
    case Kind::GateSlope:
      return (pull(j) * slope * exact(row.x(at.column) / m.tau)).error;
    case Kind::GateBias:
      return ((m.rule.inside ? pull(j) * slope : pull(j)) * exact(1 / m.tau)).error;
    case Kind::LogTemperature: {
      RowBound scratch(m.k);
      const Vec dz = detail::score_bound(m, row, scratch);
      Real sum = 0;
      for (Index l = 0; l < m.k; ++l) sum += (pull(l) * Known{row.score(l), dz(l)}).error;
      return sum;
    }
    case Kind::Slope:
      return (posterior * residual * exact(row.x(at.column) / nu)).error;
    case Kind::Intercept:
      return (posterior * residual * exact(1 / nu)).error;
    case Kind::LogVariance:
      return (posterior * residual * residual * exact(0.5L / nu)).error + (posterior * exact(0.5L)).error;
  }
  return 0;
}

/// [n, p], bounds of row_scores().
inline Mat row_score_bounds(const Model& m, const moe::RegressionData& data, const ActiveSets& sets) {
  const auto theta = coordinates(m);
  Mat bounds(data.num_rows(), static_cast<Index>(theta.size()));
  for (Index i = 0; i < data.num_rows(); ++i) {
    const Row row = evaluate(m, point(data, i), data.y(i), sets[static_cast<std::size_t>(i)]);
    const RowBound error = bound(m, row);
    for (Index c = 0; c < bounds.cols(); ++c)
      bounds(i, c) = score_bound_at(m, row, error, theta[static_cast<std::size_t>(c)]);
  }
  return bounds;
}

/// [p], bounds of score().
inline Vec score_bounds(const Model& m, const moe::RegressionData& data, const ActiveSets& sets) {
  const Mat rows = row_scores(m, data, sets), bounds = row_score_bounds(m, data, sets);
  Vec result(rows.cols());
  for (Index c = 0; c < rows.cols(); ++c)
    result(c) = bounds.col(c).sum() + gamma(rows.rows()) * rows.col(c).cwiseAbs().sum();
  return result;
}

/// Worst |actual - expected| in units of its bound: at most 1 if the computation is right; infinite for NaN or another
/// size.
template <class A>
double worst(const A& actual, const Vec& expected, const Vec& bound) {
  if (actual.size() != expected.size()) return INFINITY;
  double result = 0;
  for (Index c = 0; c < expected.size(); ++c) {
    const Real difference = std::abs(actual(c) - expected(c));
    if (!std::isfinite(difference)) return INFINITY;
    if (difference > 0) result = std::max(result, static_cast<double>(difference / bound(c)));
  }
  return result;
}

}  // namespace oracle
