// SPDX-License-Identifier: MIT
// The observed information by Louis' formula, expert by expert; right where differences see nothing, as for residuals
// of a million standard deviations.
//   information = sum_j r_j H_j - Cov_r(S),  S_j = d log(pi_j f_j) / d theta,  H_j = - d^2 log(pi_j f_j) / d theta^2
#pragma once

#include "gaussian/oracle.hpp"

namespace oracle {

inline bool is_gate(const Coordinate& at) {
  return at.kind == Kind::GateSlope || at.kind == Kind::GateBias || at.kind == Kind::LogTemperature;
}

/// d (argument of the activation of j) / d theta.
inline Real argument_slope(const Model& m, const Row& row, const Coordinate& at, Index j) {
  if (at.expert != j) return 0;
  if (at.kind == Kind::GateSlope) return row.x(at.column);
  return at.kind == Kind::GateBias && m.rule.inside ? 1 : 0;
}

/// d z_j / d theta.
inline Real score_slope(const Model& m, const Row& row, const Coordinate& at, Index j) {
  if (at.kind == Kind::LogTemperature) return -row.score(j);
  if (at.kind == Kind::GateBias && at.expert == j && !m.rule.inside) return 1 / m.tau;
  return is_gate(at) ? m.rule.slope(row.argument(j)) * argument_slope(m, row, at, j) / m.tau : 0;
}

/// d^2 z_j / d a d b.
inline Real score_bend(const Model& m, const Row& row, const Coordinate& a, const Coordinate& b, Index j) {
  if (!is_gate(a) || !is_gate(b)) return 0;
  if (a.kind == Kind::LogTemperature) return -score_slope(m, row, b, j);
  if (b.kind == Kind::LogTemperature) return -score_slope(m, row, a, j);
  const Real both = argument_slope(m, row, a, j) * argument_slope(m, row, b, j);
  if (both == 0) return 0;
  return difference([&](Real h) { return m.rule.slope(row.argument(j) + h); }) * both / m.tau;
}

/// d log f_j / d theta.
inline Real component_slope(const Model& m, const Row& row, const Coordinate& at, Index j) {
  if (is_gate(at) || at.expert != j) return 0;
  const Real e = row.residual(j), nu = m.variance(j);
  if (at.kind == Kind::LogVariance) return (e * e / nu - 1) / 2;
  return (at.kind == Kind::Slope ? row.x(at.column) : 1) * e / nu;
}

/// d^2 log f_j / d a d b.
inline Real component_bend(const Model& m, const Row& row, const Coordinate& a, const Coordinate& b, Index j) {
  if (is_gate(a) || is_gate(b) || a.expert != j || b.expert != j) return 0;
  const Real e = row.residual(j), nu = m.variance(j);
  const auto mean_slope = [&](const Coordinate& at) { return at.kind == Kind::Slope ? row.x(at.column) : Real{1}; };
  if (a.kind == Kind::LogVariance && b.kind == Kind::LogVariance) return -e * e / (2 * nu);
  if (a.kind == Kind::LogVariance) return -mean_slope(b) * e / nu;
  if (b.kind == Kind::LogVariance) return -mean_slope(a) * e / nu;
  return -mean_slope(a) * mean_slope(b) / nu;
}

/// d log(pi_j f_j) / d theta for every coordinate and active expert [p, k], 0 elsewhere.
inline Mat complete_scores(const Model& m, const Row& row, const std::vector<Coordinate>& theta) {
  Mat s = Mat::Zero(static_cast<Index>(theta.size()), m.k);
  for (Index c = 0; c < s.rows(); ++c) {
    const Coordinate& at = theta[static_cast<std::size_t>(c)];
    Real mean = 0;
    for (Index l = 0; l < m.k; ++l)
      if (row.active[static_cast<std::size_t>(l)]) mean += row.weight(l) * score_slope(m, row, at, l);
    for (Index j = 0; j < m.k; ++j)
      if (row.active[static_cast<std::size_t>(j)])
        s(c, j) = score_slope(m, row, at, j) - mean + component_slope(m, row, at, j);
  }
  return s;
}

/// Minus the second derivative of one row's log density in a and b; sa and sb are their rows of complete_scores().
template <class S>
Real row_information(const Model& m, const Row& row, const Coordinate& a, const Coordinate& b, const S& sa,
                     const S& sb) {
  Real result = 0, mean_a = 0, mean_b = 0, tilt_a = 0, tilt_b = 0;
  for (Index j = 0; j < m.k; ++j) {
    if (!row.active[static_cast<std::size_t>(j)]) continue;
    const Real r = row.posterior(j), pi = row.weight(j);
    const Real za = score_slope(m, row, a, j), zb = score_slope(m, row, b, j);
    mean_a += r * sa(j), mean_b += r * sb(j);
    tilt_a += pi * za, tilt_b += pi * zb;
    result += pi * za * zb - (r - pi) * score_bend(m, row, a, b, j) - r * component_bend(m, row, a, b, j);
  }
  result -= tilt_a * tilt_b;
  for (Index j = 0; j < m.k; ++j) result -= row.posterior(j) * (sa(j) - mean_a) * (sb(j) - mean_b);
  return result;
}

inline Mat information_by_louis(const Model& m, const moe::RegressionData& data) {
  const auto theta = coordinates(m);
  const auto p = static_cast<Index>(theta.size());
  Mat result = Mat::Zero(p, p);
  for (Index i = 0; i < data.num_rows(); ++i) {
    const Row row = evaluate(m, data, i);
    const Mat s = complete_scores(m, row, theta);
    for (Index a = 0; a < p; ++a)
      for (Index b = 0; b < p; ++b)
        result(a, b) += row_information(m, row, theta[static_cast<std::size_t>(a)], theta[static_cast<std::size_t>(b)],
                                        s.row(a), s.row(b));
  }
  return result;
}

}  // namespace oracle
