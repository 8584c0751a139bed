// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <span>
#include <vector>

#include "moe/compress/merge.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// U_r U_r^T M with U_r the r last eigenvectors of a symmetric matrix, those of its largest eigenvalues.
inline MergedMatrix projected(const MergedMatrix& matrix, const MergedMatrix& gram, Index rank) {
  const Eigen::SelfAdjointEigenSolver<MergedMatrix> solver(gram);  // ascending
  const MergedMatrix basis = solver.eigenvectors().rightCols(rank);
  return basis * (basis.transpose() * matrix);
}

/// U_r U_r^T M, M the weighted mean of the matrices and U_r their first r common left singular vectors, of [W_1 W_2
/// ..]. These are eigenvectors of sum W_i W_i^T, which is small where the matrices together are wide.
inline MergedMatrix mean_in_subspace(std::span<const MergedMatrix* const> matrices, std::span<const double> weights,
                                     Index rank) {
  const MergedMatrix mean = weighted_mean(matrices, weights);
  if (rank >= mean.rows()) return mean;
  MergedMatrix gram = MergedMatrix::Zero(mean.rows(), mean.rows());
  for (const MergedMatrix* matrix : matrices) gram.noalias() += *matrix * matrix->transpose();
  return projected(mean, gram, rank);
}

/// As a `combine`: combine_one(of) of every weight matrix, gates and ups each by itself; means of biases.
template <class CombineOne>
MergedMatrix combine_weights(const ClusterParameter& of, const CombineOne& combine_one) {
  if (!of.name.ends_with("weight")) return weighted_mean(of.matrices, of.weights);
  if (of.name != "gate_up.weight") return combine_one(of);
  const Index hidden = of.matrices[0]->rows() / 2;
  MergedMatrix result(2 * hidden, of.matrices[0]->cols());
  for (const Index first : {Index{0}, hidden}) {
    std::vector<MergedMatrix> halves;
    for (const MergedMatrix* matrix : of.matrices) halves.emplace_back(matrix->middleRows(first, hidden));
    ClusterParameter half = of;
    std::ranges::transform(halves, half.matrices.begin(), [](const MergedMatrix& matrix) { return &matrix; });
    result.middleRows(first, hidden) = combine_one(half);
  }
  return result;
}

}  // namespace detail

/// merge() in a common subspace of the matrices of a cluster: with [W_1 W_2 ...] = U S [V_1 V_2 ...]^T and the r
/// largest singular values, the merged matrix is U_r S_r (mean of V_i)^T = U_r U_r^T (mean of W_i), gates and ups each
/// by itself. With r at or above the outputs of a matrix this is merge(); less takes out what the experts do not have
/// in common. Biases are means. What it loses of the matrices is the sum of the squares of the other singular values
/// (Eckart & Young). Throws std::invalid_argument for a rank < 1, and as merge(). O(outputs^3) per matrix and cluster.
/// Li et al., "Sub-MoE" (arXiv:2506.23266).
template <class Layer>
Compressed<Layer> merge_in_subspace(const Layer& layer, const ExpertPlan& plan, Index rank,
                                    const MergeOptions& options = {}) {
  constexpr const char* kFunction = "moe::merge_in_subspace";
  if (rank < 1) fail(kFunction, ": rank is ", rank, ", expected at least 1");
  return detail::merged(kFunction, layer, plan, options, [rank](const detail::ClusterParameter& of) {
    return detail::combine_weights(of, [rank](const detail::ClusterParameter& one) {
      return detail::mean_in_subspace(one.matrices, one.weights, rank);
    });
  });
}

}  // namespace moe::inline MOE_ABI
