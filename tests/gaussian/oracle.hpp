// SPDX-License-Identifier: MIT
// Gaussian mixtures of experts by their definition: long double, plain loops over rows, experts and coordinates. Shares
// with the library only the numbers of a model; scores, ranks, layout of theta and activations are written anew.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "gaussian/oracle_model.hpp"

namespace oracle {

/// One row of data under a model. Inactive experts have log_weight -infinity and weight = posterior = 0.
struct Row {
  Row(Index k, const Vec& point)
      : x(point), argument(k), score(k), log_weight(k), log_component(k), weight(k), posterior(k), residual(k) {}

  Vec x;
  std::vector<bool> active;
  Vec argument;       ///< of the activation
  Vec score;          ///< z_j
  Vec log_weight;     ///< log pi_j
  Vec log_component;  ///< log N(y; m_j, nu_j)
  Vec weight;         ///< pi_j
  Vec posterior;      ///< r_j
  Vec residual;       ///< e_j = y - m_j
  Real log_density = 0;
};

inline Real dot(const Mat& a, Index j, const Vec& x) {
  Real sum = 0;
  for (Index c = 0; c < a.cols(); ++c) sum += a(j, c) * x(c);
  return sum;
}

/// The experts that less than `active` others beat; of equals the lower one wins.
inline std::vector<bool> active_set(const Model& m, const Vec& x) {
  Vec rank(m.k);
  for (Index j = 0; j < m.k; ++j) rank(j) = dot(m.beta1, j, x) + (m.rule.ranks_bias ? m.beta0(j) : 0);
  std::vector<bool> active(static_cast<std::size_t>(m.k), true);
  if (m.rule.active == m.k) return active;
  for (Index j = 0; j < m.k; ++j) {
    Index better = 0;
    for (Index l = 0; l < m.k; ++l) better += rank(l) > rank(j) || (rank(l) == rank(j) && l < j);
    active[static_cast<std::size_t>(j)] = better < m.rule.active;
  }
  return active;
}

/// log sum_j exp(a_j) over the active experts.
inline Real log_sum_exp(const Vec& a, const std::vector<bool>& active) {
  Real largest = -std::numeric_limits<Real>::infinity(), sum = 0;
  for (Index j = 0; j < a.size(); ++j)
    if (active[static_cast<std::size_t>(j)]) largest = std::max(largest, a(j));
  for (Index j = 0; j < a.size(); ++j)
    if (active[static_cast<std::size_t>(j)]) sum += std::exp(a(j) - largest);
  return largest + std::log(sum);
}

/// Everything about one row, given the experts that are active in it.
inline Row evaluate(const Model& m, const Vec& x, Real y, const std::vector<bool>& active) {
  Row row(m.k, x);
  row.active = active;
  for (Index j = 0; j < m.k; ++j) {
    const Real u = dot(m.beta1, j, x), nu = m.variance(j);
    row.argument(j) = m.rule.inside ? u + m.beta0(j) : u;
    row.score(j) = (m.rule.inner(row.argument(j)) + (m.rule.inside ? 0 : m.beta0(j))) / m.tau;
    row.residual(j) = y - dot(m.a, j, x) - m.b(j);
    row.log_component(j) = -(kLog2Pi + std::log(nu) + row.residual(j) * row.residual(j) / nu) / 2;
  }
  const Real norm = log_sum_exp(row.score, active);
  Vec joint(m.k);
  for (Index j = 0; j < m.k; ++j) {
    row.log_weight(j) =
        active[static_cast<std::size_t>(j)] ? row.score(j) - norm : -std::numeric_limits<Real>::infinity();
    joint(j) = row.log_weight(j) + row.log_component(j);
  }
  row.log_density = log_sum_exp(joint, active);
  for (Index j = 0; j < m.k; ++j) {
    const bool is = active[static_cast<std::size_t>(j)];
    row.weight(j) = is ? std::exp(row.log_weight(j)) : 0;
    row.posterior(j) = is ? std::exp(joint(j) - row.log_density) : 0;
  }
  return row;
}

inline Vec point(const moe::RegressionData& data, Index i) { return data.x.row(i).transpose().cast<Real>(); }

inline Row evaluate(const Model& m, const moe::RegressionData& data, Index i) {
  const Vec x = point(data, i);
  return evaluate(m, x, data.y(i), active_set(m, x));
}

inline Real log_likelihood(const Model& m, const moe::RegressionData& data) {
  Real sum = 0;
  for (Index i = 0; i < data.num_rows(); ++i) sum += evaluate(m, data, i).log_density;
  return sum;
}

/// d log p(y | x) / d theta of one row:
///   d / d z_j = r_j - pi_j     d / d a_j = r_j e_j x / nu_j     d / d b_j = r_j e_j / nu_j
///   d / d log nu_j = r_j (e_j^2 / nu_j - 1) / 2                d z_j / d log tau = -z_j
inline Real score_at(const Model& m, const Row& row, const Coordinate& at) {
  const Index j = at.expert;
  const Real pull = row.posterior(j) - row.weight(j), nu = m.variance(j), e = row.residual(j);
  switch (at.kind) {
    case Kind::GateSlope:
      return pull * m.rule.slope(row.argument(j)) * row.x(at.column) / m.tau;
    case Kind::GateBias:
      return pull * (m.rule.inside ? m.rule.slope(row.argument(j)) : 1) / m.tau;
    case Kind::LogTemperature: {
      Real sum = 0;
      for (Index l = 0; l < m.k; ++l) sum -= (row.posterior(l) - row.weight(l)) * row.score(l);
      return sum;
    }
    case Kind::Slope:
      return row.posterior(j) * e * row.x(at.column) / nu;
    case Kind::Intercept:
      return row.posterior(j) * e / nu;
    case Kind::LogVariance:
      return row.posterior(j) * (e * e / nu - 1) / 2;
  }
  return 0;
}

/// Active sets of all rows; differences below are taken with these frozen, as the score of a top-K gate is.
using ActiveSets = std::vector<std::vector<bool>>;

inline ActiveSets active_sets(const Model& m, const moe::RegressionData& data) {
  ActiveSets sets;
  for (Index i = 0; i < data.num_rows(); ++i) sets.push_back(active_set(m, point(data, i)));
  return sets;
}

inline Real log_likelihood(const Model& m, const moe::RegressionData& data, const ActiveSets& sets) {
  Real sum = 0;
  for (Index i = 0; i < data.num_rows(); ++i)
    sum += evaluate(m, point(data, i), data.y(i), sets[static_cast<std::size_t>(i)]).log_density;
  return sum;
}

/// [n, p], the score of each row.
inline Mat row_scores(const Model& m, const moe::RegressionData& data, const ActiveSets& sets) {
  const auto theta = coordinates(m);
  Mat scores(data.num_rows(), static_cast<Index>(theta.size()));
  for (Index i = 0; i < data.num_rows(); ++i) {
    const Row row = evaluate(m, point(data, i), data.y(i), sets[static_cast<std::size_t>(i)]);
    for (Index c = 0; c < scores.cols(); ++c) scores(i, c) = score_at(m, row, theta[static_cast<std::size_t>(c)]);
  }
  return scores;
}

/// [p], sum of the rows.
inline Vec score(const Model& m, const moe::RegressionData& data, const ActiveSets& sets) {
  const Mat rows = row_scores(m, data, sets);
  Vec sum = Vec::Zero(rows.cols());
  for (Index i = 0; i < rows.rows(); ++i) sum += rows.row(i).transpose();
  return sum;
}

/// Step of the differences (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / (12 h), with error h^4 f^(5) / 30 of truncation and
/// 1.5 u f / h of rounding. When derivatives grow as powers of w, as with residuals of w standard deviations, these are
/// 1.1e-22 w^5 f and 1.1e-14 f (2.2e-11 f where long double has 53 bits): 1e-12 f at w = 100, far below what is asked.
inline constexpr Real kStep = 0x1p-17L;

template <class F>
auto difference(F&& f) {
  using Value = decltype(f(kStep));
  const Value near = f(kStep) - f(-kStep), far = f(2 * kStep) - f(-2 * kStep);
  return Value((8 * near - far) / (12 * kStep));
}

inline Vec score_by_differences(const Model& m, const moe::RegressionData& data) {
  const ActiveSets sets = active_sets(m, data);
  const auto theta = coordinates(m);
  Vec result(static_cast<Index>(theta.size()));
  for (Index c = 0; const Coordinate& at : theta)
    result(c++) = difference([&](Real h) { return log_likelihood(moved(m, at, h), data, sets); });
  return result;
}

/// Minus the second derivatives [p, p], by differences of the analytic score.
inline Mat information(const Model& m, const moe::RegressionData& data) {
  const ActiveSets sets = active_sets(m, data);
  const auto theta = coordinates(m);
  Mat result(static_cast<Index>(theta.size()), static_cast<Index>(theta.size()));
  for (Index c = 0; const Coordinate& at : theta)
    result.col(c++) = -difference([&](Real h) { return score(moved(m, at, h), data, sets); });
  return result;
}

}  // namespace oracle
