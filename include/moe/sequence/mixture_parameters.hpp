// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <type_traits>
#include <vector>

#include "moe/core/block_sum.hpp"
#include "moe/core/overlap.hpp"
#include "moe/sequence/gaussian_mixture.hpp"
#include "moe/sequence/sequences.hpp"

// Mixtures as networks read and write them: a row of free numbers per component,
//   logit, mean [d], logarithms of the diagonal of L [d], the entries of L below it, row by row [d (d - 1) / 2]
// where weights are the softmax of the logits, so that any finite numbers are a mixture.
namespace moe::inline MOE_ABI {

/// Columns of such a row: 1 + 2 d + d (d - 1) / 2.
inline Index mixture_row_size(Index dim) { return 1 + 2 * dim + dim * (dim - 1) / 2; }

/// Logarithms of diagonals count only between -kMostLogDiagonal and kMostLogDiagonal: standard deviations from 2e-5 to
/// 6e4, beyond which the gradient is 0.
inline constexpr double kMostLogDiagonal = 11;
/// The logit that stands for a weight of 0, and for those below: 3e-10.
inline constexpr double kLeastLogWeight = -22;

/// Writes the components of a mixture to rows [k, mixture_row_size(d)], logits being logarithms of weights. Throws
/// std::invalid_argument on other shapes.
template <class S, class T>
void write_rows(const GaussianMixture<T>& mixture, std::type_identity_t<MatrixRef<S>> rows) {
  const Index d = mixture.dim();
  detail::require_shape("moe::write_rows", "rows", rows, mixture.size(), mixture_row_size(d));
  for (Index i = 0; i < mixture.size(); ++i) {
    const double log_weight = std::log(static_cast<double>(mixture.weights()(i)));
    Index next = 1 + 2 * d;
    rows(i, 0) = static_cast<S>(std::max(kLeastLogWeight, log_weight));
    for (Index r = 0; r < d; ++r) {
      rows(i, 1 + r) = static_cast<S>(mixture.means()(i, r));
      rows(i, 1 + d + r) = static_cast<S>(std::log(static_cast<double>(mixture.factor(i)(r, r))));
      for (Index c = 0; c < r; ++c) rows(i, next++) = static_cast<S>(mixture.factor(i)(r, c));
    }
  }
}

/// The mixture that rows [k, mixture_row_size(dim)] stand for. Throws std::invalid_argument for no rows, another width,
/// and numbers that are not finite.
template <class T = double, class Rows>
GaussianMixture<T> read_rows(const Eigen::MatrixBase<Rows>& rows, Index dim) {
  constexpr const char* kFunction = "moe::read_rows";
  const Index k = rows.rows();
  detail::require_shape(kFunction, "rows", rows, k, mixture_row_size(dim));
  if (k < 1) fail(kFunction, ": there are no rows, expected one per component");
  double most = -std::numeric_limits<double>::infinity();
  for (Index i = 0; i < k; ++i) {
    for (Index c = 0; c < rows.cols(); ++c)
      if (!std::isfinite(rows(i, c))) fail(kFunction, ": row ", i, " has entry ", rows(i, c), ", expected finite ones");
    most = std::max(most, static_cast<double>(rows(i, 0)));
  }
  RowVector<T> weights(k);
  Matrix<T> means(k, dim);
  std::vector<Matrix<T>> factors(static_cast<std::size_t>(k), Matrix<T>::Zero(dim, dim));
  for (Index i = 0; i < k; ++i) {
    Index next = 1 + 2 * dim;
    weights(i) = static_cast<T>(std::exp(static_cast<double>(rows(i, 0)) - most));
    for (Index r = 0; r < dim; ++r) {
      const double log_diagonal =
          std::clamp(static_cast<double>(rows(i, 1 + dim + r)), -kMostLogDiagonal, kMostLogDiagonal);
      means(i, r) = static_cast<T>(rows(i, 1 + r));
      factors[static_cast<std::size_t>(i)](r, r) = static_cast<T>(std::exp(log_diagonal));
      for (Index c = 0; c < r; ++c) factors[static_cast<std::size_t>(i)](r, c) = static_cast<T>(rows(i, next++));
    }
  }
  return GaussianMixture<T>(weights, means, std::move(factors));
}

namespace detail {

/// Working memory of one sequence of mixture_nll(): u and L^-T u of every component, and its terms.
struct NllRow {
  std::vector<double> u, v, log_term, weight;
};

/// -log p(x) of the mixture in rows begin to end - 1, and `scale` times its gradient by them. In double.
template <class S>
double mixture_nll_of(const ConstMatrixRef<S>& rows, Index begin, Index end, const S* x, Index d, double scale,
                      NllRow& memory, Matrix<S>& drows) {
  const Index k = end - begin;
  const auto at = [d](std::vector<double>& values, Index i) { return values.data() + i * d; };
  for (auto* values : {&memory.u, &memory.v}) values->resize(static_cast<std::size_t>(k * d));
  for (auto* values : {&memory.log_term, &memory.weight}) values->resize(static_cast<std::size_t>(k));
  const auto log_diagonal = [&](Index i, Index r) { return static_cast<double>(rows(begin + i, 1 + d + r)); };
  const auto diagonal = [&](Index i, Index r) {
    return std::exp(std::clamp(log_diagonal(i, r), -kMostLogDiagonal, kMostLogDiagonal));
  };
  const auto below = [d](Index r, Index c) { return 1 + 2 * d + r * (r - 1) / 2 + c; };
  const auto log_sum = [&](const std::vector<double>& terms) {
    const double most = *std::max_element(terms.begin(), terms.end());
    double sum = 0;
    for (const double term : terms) sum += std::exp(term - most);
    return most + std::log(sum);
  };
  for (Index i = 0; i < k; ++i) memory.weight[static_cast<std::size_t>(i)] = static_cast<double>(rows(begin + i, 0));
  const double log_total = log_sum(memory.weight);
  for (Index i = 0; i < k; ++i) {
    double *u = at(memory.u, i), *v = at(memory.v, i);
    double& weight = memory.weight[static_cast<std::size_t>(i)];
    double log_term = weight - log_total - 0.5 * static_cast<double>(d) * std::log(2 * std::numbers::pi);
    weight = std::exp(weight - log_total);
    for (Index r = 0; r < d; ++r) {
      u[r] = static_cast<double>(x[r]) - static_cast<double>(rows(begin + i, 1 + r));
      for (Index c = 0; c < r; ++c) u[r] -= static_cast<double>(rows(begin + i, below(r, c))) * u[c];
      u[r] /= diagonal(i, r);
      log_term -= 0.5 * u[r] * u[r] + std::clamp(log_diagonal(i, r), -kMostLogDiagonal, kMostLogDiagonal);
    }
    for (Index r = d; r-- > 0;) {
      v[r] = u[r];
      for (Index c = r + 1; c < d; ++c) v[r] -= static_cast<double>(rows(begin + i, below(c, r))) * v[c];
      v[r] /= diagonal(i, r);
    }
    memory.log_term[static_cast<std::size_t>(i)] = log_term;
  }
  const double log_p = log_sum(memory.log_term);
  for (Index i = 0; i < k; ++i) {
    const double *u = at(memory.u, i), *v = at(memory.v, i);
    const double r_i = std::exp(memory.log_term[static_cast<std::size_t>(i)] - log_p);
    const auto put = [&](Index column, double value) { drows(begin + i, column) = static_cast<S>(scale * value); };
    put(0, memory.weight[static_cast<std::size_t>(i)] - r_i);
    for (Index r = 0; r < d; ++r) {
      const bool counts = std::abs(log_diagonal(i, r)) < kMostLogDiagonal;
      put(1 + r, -r_i * v[r]);
      put(1 + d + r, counts ? r_i * (1 - v[r] * u[r] * diagonal(i, r)) : 0.0);
      for (Index c = 0; c < r; ++c) put(below(r, c), -r_i * v[r] * u[c]);
    }
  }
  return -log_p;
}

}  // namespace detail

/// Negative log-likelihood of points under mixtures: the mean of -log p_i(x_i) over the sequences, p_i being the
/// mixture that the rows of sequence i stand for, and its gradient. With r the responsibilities, u = L^-1 (x - m) and
/// v = L^-T u:
///   dlogit = w - r,  dm = -r v,  dlog L_jj = r (1 - u_j v_j L_jj),  dL_jc = -r v_j u_c
///   rows    [mixtures.num_rows(), mixture_row_size(d)]    x  [mixtures.size(), d]
///   drows   as rows, overwritten (resized); not `rows`
/// Computed in double, with the same bits for any number of threads; far points do not underflow. Numbers that are NaN
/// make value and gradient so. No mixtures: value 0. Throws std::invalid_argument on other shapes and for a mixture
/// without components. O(components d^2).
template <class S>
double mixture_nll(const MatrixView<S>& rows, const Sequences& mixtures, const MatrixView<S>& x, Matrix<S>& drows) {
  constexpr const char* kFunction = "moe::mixture_nll";
  const Index d = x.cols(), count = mixtures.size();
  detail::require_shape(kFunction, "rows", rows, mixtures.num_rows(), mixture_row_size(d));
  detail::require_shape(kFunction, "x", x, count, d);
  detail::require_apart(kFunction, "drows", drows, "rows", rows);
  if (d < 1) fail(kFunction, ": x has 0 columns, expected at least one dimension");
  for (Index i = 0; i < count; ++i)
    if (mixtures.length(i) < 1) fail(kFunction, ": mixture ", i, " has 0 components, expected at least one");
  drows.resize(rows.rows(), rows.cols());
  if (count == 0) return 0;
  std::vector<detail::NllRow> memory(static_cast<std::size_t>(num_workers()));
  std::array<double, 1> sum{};
  const double scale = 1 / static_cast<double>(count);
  detail::add_blocks({count, 64}, sum, [&](Index begin, Index end, double* total, Index worker) {
    for (Index i = begin; i < end; ++i)
      *total += detail::mixture_nll_of<S>(rows, mixtures.begin(i), mixtures.end(i), x.row(i).data(), d, scale,
                                          memory[static_cast<std::size_t>(worker)], drows);
  });
  return sum[0] * scale;
}

}  // namespace moe::inline MOE_ABI
