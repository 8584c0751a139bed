// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <utility>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/model/parameters.hpp"
#include "moe/gaussian/pass/held_intercept.hpp"
#include "moe/gaussian/pass/sweep.hpp"

namespace moe::inline MOE_ABI::detail {

/// Whose features: precisions of rows weigh those of the experts.
enum class FeaturesOf { Gate, Experts };

/// X^T W X of the rows, X = (x, 1), W their weights [d + 1, d + 1], times their precisions for the experts. O(n d^2).
template <class = WhenUsed>
Eigen::MatrixXd gram_of(const RowBlocks& rows, FeaturesOf of = FeaturesOf::Gate) {
  const Index n = rows.input_dim() + 1;
  std::vector<double> sums(static_cast<std::size_t>(num_pairs(n) * kDoubles));
  PairProducts products;
  AlignedBuffer<double> ones(kBlockRows), precise(kBlockRows);
  std::fill_n(ones.data(), kBlockRows, 1.0);
  for (Index b = 0; b < rows.num_blocks(); ++b) {
    const double* weights = rows.weights(b) ? rows.weights(b) : ones.data();
    if (of == FeaturesOf::Experts && rows.scaled()) {
      for (Index i = 0; i < kBlockRows; ++i) precise.data()[i] = weights[i] * rows.scale(b)[i] * rows.scale(b)[i];
      weights = precise.data();
    }
    products.add(weights, 1, rows.features(b), n, sums.data());
  }
  std::vector<double> total(static_cast<std::size_t>(num_pairs(n)));
  add_lanes(sums.data(), num_pairs(n), total.data());
  Eigen::MatrixXd gram(n, n);
  for (Index f = 0; f < n; ++f)
    for (Index g = f; g < n; ++g) gram(f, g) = gram(g, f) = total[static_cast<std::size_t>(pair_index(f, g, n))];
  return gram;
}

/// Is x = 0 farther from the mean of the rows than every row, in units of their covariance, as far as some columns say?
/// O(n d^2).
template <class = WhenUsed>
bool origin_is_far(const RowBlocks& rows, const InputColumns& some = {}) {
  std::vector<Index> columns;
  for (Index c = 0; !some && c < rows.input_dim(); ++c) columns.push_back(c);
  if (some) columns = *some;
  const Index d = std::ssize(columns);
  columns.push_back(rows.input_dim());  // ones
  const Eigen::MatrixXd gram = gram_of(rows)(columns, columns) / rows.total_weight();
  const Eigen::VectorXd mean = gram.col(d).head(d);
  const Eigen::LLT<Eigen::MatrixXd> covariance(gram.topLeftCorner(d, d) - mean * mean.transpose());
  const auto distance = [&](const Eigen::VectorXd& x) { return covariance.matrixL().solve(x - mean).squaredNorm(); };
  double farthest = 0;
  Eigen::VectorXd x(d);
  for (Index b = 0; b < rows.num_blocks(); ++b)
    for (Index i = 0; i < rows.rows(b); ++i) {
      for (Index c = 0; c < d; ++c) x(c) = rows.features(b)[columns[static_cast<std::size_t>(c)] * kBlockRows + i];
      farthest = std::max(farthest, distance(x));
    }
  return distance(Eigen::VectorXd::Zero(d)) > (1 + 1e-9) * farthest;  // a row at the origin is not farther
}

/// How far scores, means and logarithms move with the parameters, as mean squares over rows: X^T W X / n for the gate
/// and for the line of each expert, 1 for temperature and variances [p, p]. An information judged against it knows
/// neither units nor origin nor any other linear map of the inputs, nor that some of them are nearly collinear.
template <class = WhenUsed>
Eigen::MatrixXd parameter_gram(const ParameterLayout& reduced, const RowBlocks& rows) {
  const ParameterLayout at = reduced.with_intercept();
  const Eigen::MatrixXd of_gate = gram_of(rows) / rows.total_weight();
  const Eigen::MatrixXd of_experts =
      rows.scaled() ? Eigen::MatrixXd(gram_of(rows, FeaturesOf::Experts) / rows.total_weight()) : of_gate;
  Eigen::MatrixXd out = Eigen::MatrixXd::Identity(at.size(), at.size());
  std::vector<std::pair<Index, Index>> places;  // in theta, and the feature there
  const auto place = [&](const Eigen::MatrixXd& gram) {
    for (const auto& [p, f] : places)
      for (const auto& [q, g] : places) out(p, q) = gram(f, g);
    places.clear();
  };
  for (Index j = 0; j < at.num_experts; ++j) {
    for (Index c = 0; j < at.free_slopes && c < at.gate_dim(); ++c)
      places.emplace_back(at.gate_slope(j) + c, at.gate_input(c));
    if (j < at.free_biases) places.emplace_back(at.gate_bias(j), at.input_dim);
    place(of_gate);
    for (Index c = 0; c < at.expert_dim(); ++c) places.emplace_back(at.slope(j) + c, at.expert_input(c));
    places.emplace_back(at.intercept(j), at.input_dim);
    place(of_experts);
  }
  HeldIntercept<>(reduced).reduce(out);
  return out;
}

/// An information matrix counts as singular below this ratio of eigenvalues.
inline constexpr double kSingular = 1e-8;

/// Eigenvalues of a symmetric matrix in coordinates in which `gram` is the identity, and then with a unit diagonal.
/// Coordinates whose diagonal is not positive are apart.
template <class = WhenUsed>
struct ScaledEigen {
  ScaledEigen(const Eigen::MatrixXd& a, const Eigen::MatrixXd& gram) {
    const double largest = a.size() > 0 ? a.diagonal().cwiseAbs().maxCoeff() : 0;
    for (Index i = 0; i < a.rows(); ++i) (a(i, i) > 1e-14 * largest ? regular : flat).push_back(i);
    if (regular.empty()) return;
    const Index n = static_cast<Index>(regular.size());
    const Eigen::LLT<Eigen::MatrixXd> cholesky(gram(regular, regular));
    basis = cholesky.matrixU().solve(Eigen::MatrixXd::Identity(n, n));
    const Eigen::MatrixXd white = basis.transpose() * a(regular, regular) * basis;
    const double top = white.diagonal().cwiseAbs().maxCoeff();
    basis *= white.diagonal().cwiseMax(1e-14 * top).cwiseSqrt().cwiseInverse().asDiagonal();
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(basis.transpose() * a(regular, regular) * basis);
    values = eigen.eigenvalues();
    vectors = basis * eigen.eigenvectors();
  }

  /// Smallest over largest eigenvalue; 0 if there is a flat coordinate.
  double ratio() const { return flat.empty() && values.size() > 0 ? values(0) / values(values.size() - 1) : 0; }

  /// The inverse; every coordinate must be regular and all eigenvalues positive.
  Eigen::MatrixXd inverse() const {
    const Eigen::MatrixXd half = vectors * values.cwiseSqrt().cwiseInverse().asDiagonal();
    return half * half.transpose();
  }

  /// A direction at the regular coordinates, in the coordinates of unit diagonal.
  Eigen::VectorXd to_unit(const Eigen::VectorXd& direction) const {
    return basis.triangularView<Eigen::Upper>().solve(direction);
  }

  std::vector<Index> regular, flat;
  Eigen::VectorXd values;          // ascending
  Eigen::MatrixXd basis, vectors;  // columns at the regular coordinates; vectors^T a vectors = values
};

}  // namespace moe::inline MOE_ABI::detail
