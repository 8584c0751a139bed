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

/// Columns of such a row: 1 + 2 d + d (d - 1) / 2. Throws std::invalid_argument for d < 1 and where an Index does not
/// hold it.
inline Index mixture_row_size(Index dim) {
  constexpr const char* kFunction = "moe::mixture_row_size";
  detail::checked_size(kFunction, "dim", dim, 1);
  return 1 + 2 * dim + detail::checked_product(kFunction, dim, dim - 1) / 2;
}

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

/// The mixture that rows [k, mixture_row_size(dim)] stand for. Throws std::invalid_argument for dim < 1, no rows,
/// another width, and numbers that are not finite.
template <class T = double, class Rows>
GaussianMixture<T> read_rows(const Eigen::MatrixBase<Rows>& rows, Index dim) {
  constexpr const char* kFunction = "moe::read_rows";
  const Index k = rows.rows();
  detail::checked_size(kFunction, "dim", dim, 1);
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

/// log(sum exp(term)); the largest term where it is not finite, NaN where one is.
inline double log_sum(const std::vector<double>& terms) {
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const double term : terms)
    if (term > most || std::isnan(term)) most = term;
  if (!std::isfinite(most)) return most;
  for (const double term : terms) sum += std::exp(term - most);
  return most + std::log(sum);
}

/// The row of numbers of a component in d dimensions, in double.
template <class S>
struct ComponentRow {
  const S* numbers;
  Index d;

  static Index below_place(Index d, Index r, Index c) { return 1 + 2 * d + r * (r - 1) / 2 + c; }
  double logit() const { return static_cast<double>(numbers[0]); }
  double mean(Index r) const { return static_cast<double>(numbers[1 + r]); }
  double below(Index r, Index c) const { return static_cast<double>(numbers[below_place(d, r, c)]); }
  /// Whether the logarithm is within its bounds: NaN is not beyond them.
  bool is_free(Index r) const { return !(std::abs(static_cast<double>(numbers[1 + d + r])) >= kMostLogDiagonal); }
  double log_diagonal(Index r) const {
    return std::clamp(static_cast<double>(numbers[1 + d + r]), -kMostLogDiagonal, kMostLogDiagonal);
  }
  double diagonal(Index r) const { return std::exp(log_diagonal(r)); }

  /// u = L^-1 (x - m) and v = L^-T u. Returns log N(x; m, L L^T) + log_term, but for (2 pi)^(-d / 2).
  double whiten(const S* x, double log_term, double* u, double* v) const {
    for (Index r = 0; r < d; ++r) {
      u[r] = static_cast<double>(x[r]) - mean(r);
      for (Index c = 0; c < r; ++c) u[r] -= below(r, c) * u[c];
      u[r] /= diagonal(r);
      log_term -= 0.5 * u[r] * u[r] + log_diagonal(r);
    }
    for (Index r = d; r-- > 0;) {
      v[r] = u[r];
      for (Index c = r + 1; c < d; ++c) v[r] -= below(c, r) * v[c];
      v[r] /= diagonal(r);
    }
    return log_term;
  }

  /// `scale` times the gradient of -log p by all but the logit, of a component with responsibility r_i. What takes no
  /// part has gradient 0, also where u and v overflow.
  void put_gradient(double r_i, const double* u, const double* v, double scale, S* drow) const {
    const auto put = [&](Index column, double value) { drow[column] = static_cast<S>(r_i == 0 ? 0 : scale * value); };
    for (Index r = 0; r < d; ++r) {
      put(1 + r, -r_i * v[r]);
      put(1 + d + r, is_free(r) ? r_i * (1 - v[r] * u[r] * diagonal(r)) : 0);
      for (Index c = 0; c < r; ++c) put(below_place(d, r, c), -r_i * v[r] * u[c]);
    }
  }
};

/// -log p(x) of the mixture of a sequence, and `scale` times its gradient by its rows. In double.
template <class S>
double mixture_nll_of(const SequenceRows<S>& mixtures, Index sequence, const MatrixView<S>& x, double scale,
                      NllRow& memory, Matrix<S>& drows) {
  const Index d = x.cols(), begin = mixtures.sequences.begin(sequence);
  const auto k = static_cast<std::size_t>(mixtures.sequences.length(sequence)), width = static_cast<std::size_t>(d);
  for (auto* values : {&memory.u, &memory.v}) values->resize(k * width);
  for (auto* values : {&memory.log_term, &memory.weight}) values->resize(k);
  const auto component = [&](std::size_t i) {
    return ComponentRow<S>{mixtures.rows.row(begin + static_cast<Index>(i)).data(), d};
  };
  for (std::size_t i = 0; i < k; ++i) memory.weight[i] = component(i).logit();
  const double log_total = log_sum(memory.weight);
  for (std::size_t i = 0; i < k; ++i) {
    const double log_weight = memory.weight[i] - log_total;
    memory.weight[i] = std::exp(log_weight);
    memory.log_term[i] = component(i).whiten(x.row(sequence).data(),
                                             log_weight - 0.5 * static_cast<double>(d) * std::log(2 * std::numbers::pi),
                                             &memory.u[i * width], &memory.v[i * width]);
  }
  const double log_p = log_sum(memory.log_term);
  for (std::size_t i = 0; i < k; ++i) {
    S* drow = drows.row(begin + static_cast<Index>(i)).data();
    const double r_i = std::exp(memory.log_term[i] - log_p);
    drow[0] = static_cast<S>(scale * (memory.weight[i] - r_i));
    component(i).put_gradient(r_i, &memory.u[i * width], &memory.v[i * width], scale, drow);
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
/// Computed in double, with the same bits for any number of threads; far points do not underflow, and where squares
/// overflow under all components the value is +infinity and the gradient NaN. Numbers that are NaN make value and
/// gradient so. No mixtures: value 0. Throws std::invalid_argument on other shapes and for a mixture without
/// components. O(components d^2); allocates memory of some rows per worker.
template <class S>
double mixture_nll(const MatrixView<S>& rows, const Sequences& mixtures, const MatrixView<S>& x, Matrix<S>& drows) {
  constexpr const char* kFunction = "moe::mixture_nll";
  const Index d = x.cols(), count = mixtures.size();
  if (d < 1) fail(kFunction, ": x has 0 columns, expected at least one dimension");
  detail::require_shape(kFunction, "rows", rows, mixtures.num_rows(), mixture_row_size(d));
  detail::require_shape(kFunction, "x", x, count, d);
  detail::require_apart(kFunction, "drows", drows, "rows", rows);
  for (Index i = 0; i < count; ++i)
    if (mixtures.length(i) < 1) fail(kFunction, ": mixture ", i, " has 0 components, expected at least one");
  drows.resize(rows.rows(), rows.cols());
  if (count == 0) return 0;
  std::vector<detail::NllRow> memory(static_cast<std::size_t>(num_workers()));
  std::array<double, 1> sum{};
  const double scale = 1 / static_cast<double>(count);
  const SequenceRows<S> batch{rows, mixtures};
  detail::add_blocks({count, 64}, sum, [&](Index begin, Index end, double* total, Index worker) {
    for (Index i = begin; i < end; ++i)
      *total += detail::mixture_nll_of<S>(batch, i, x, scale, memory[static_cast<std::size_t>(worker)], drows);
  });
  return sum[0] * scale;
}

}  // namespace moe::inline MOE_ABI
