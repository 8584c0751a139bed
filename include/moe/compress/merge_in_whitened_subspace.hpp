// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <vector>

#include "moe/compress/merge_in_subspace.hpp"
#include "moe/core/serial_product.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// The moment of what a parameter of member m reads, its hidden units in the order of the cluster. Throws
/// std::invalid_argument for one of another size, or that is not finite.
inline MergedMatrix moment_of(const char* function, const ClusterParameter& of, std::size_t m,
                              const Calibration& calibration) {
  const ExpertStatistics& seen = calibration[of.members[m]];
  const SecondMoment& moment = reads_hidden(of.name) ? seen.hidden : seen.inputs;
  if (moment.dim() != of.matrices[m]->cols())
    fail(function, ": the moment of what ", of.name, " of expert ", of.members[m], " reads is of ", moment.dim(),
         " inputs, expected ", of.matrices[m]->cols());
  if (!moment.is_finite())
    fail(function, ": the moment of what ", of.name, " of expert ", of.members[m], " reads has a number that is not ",
         "finite, expected finite rows");
  const std::vector<Index>& unit = of.units[m];
  const bool moved = reads_hidden(of.name) && !unit.empty();
  const auto from = [&](Index i) { return moved ? unit[static_cast<std::size_t>(i)] : i; };
  MergedMatrix result(moment.dim(), moment.dim());
  for (Index i = 0; i < moment.dim(); ++i)
    for (Index j = 0; j < moment.dim(); ++j) result(i, j) = static_cast<double>(moment(from(i), from(j)));
  return result;
}

/// U_r U_r^T M, U_r the first r left singular vectors of [W_1 R_1 W_2 R_2 ..] with R_i R_i^T the moment H_i of what
/// W_i reads: eigenvectors of sum W_i H_i W_i^T, so that no root of H_i is needed, nor an inverse. Without tokens as
/// mean_in_subspace().
inline MergedMatrix mean_in_whitened_subspace(const char* function, const ClusterParameter& of,
                                              const Calibration& calibration, Index rank) {
  const MergedMatrix mean = weighted_mean(of.matrices, of.weights);
  if (rank >= mean.rows()) return mean;
  MergedMatrix gram = MergedMatrix::Zero(mean.rows(), mean.rows());
  for (std::size_t m = 0; m < of.matrices.size(); ++m) {
    const MergedMatrix& weights = *of.matrices[m];
    gram += serial_product(weights, serial_product(moment_of(function, of, m, calibration), weights.transpose()));
  }
  if (!(gram.trace() > 0)) return mean_in_subspace(of.matrices, of.weights, rank);
  return projected(mean, gram, rank);
}

}  // namespace detail

/// merge_in_subspace() in the subspace that matters to what the experts read: with H_i the second moments of the inputs
/// of W_i (Calibration), R_i R_i^T = H_i, [W_1 R_1 W_2 R_2 ...] = U S [V_1 V_2 ...]^T and the r largest singular
/// values, the merged matrix is U_r S_r (mean of V_i^T R_i^-1) = U_r U_r^T (mean of W_i). So whitening changes the
/// subspace alone: it is that of the outputs on the tokens seen, of which the rest loses the sum of the squares of the
/// other singular values, sum_i tr((W_i - U_r U_r^T W_i) H_i (..)^T). H_i may be singular, as no inverse is left.
/// Experts that saw no token have no part in the subspace; a cluster of such is merged as merge_in_subspace() does.
/// With r at or above the outputs of a matrix this is merge().
///   const auto seen = moe::calibrate(layer, tokens, {.use = moe::Gather::On});
///   const auto small = moe::merge_in_whitened_subspace(layer, clusters, 512, seen, {.weights = weights});
/// Throws std::invalid_argument for a calibration of another number of experts, or without finite moments of the right
/// size of an expert that is merged, and as merge_in_subspace(). O(outputs^3 + experts * outputs * inputs * (outputs +
/// inputs)) per matrix and cluster. Li et al., "Sub-MoE" (arXiv:2506.23266), their variant with whitening.
template <class Layer>
Compressed<Layer> merge_in_whitened_subspace(const Layer& layer, const ExpertPlan& plan, Index rank,
                                             const Calibration& calibration, const MergeOptions& options = {}) {
  constexpr const char* kFunction = "moe::merge_in_whitened_subspace";
  if (rank < 1) fail(kFunction, ": rank is ", rank, ", expected at least 1");
  if (calibration.num_experts() != plan.num_experts())
    fail(kFunction, ": the calibration is of ", calibration.num_experts(), " experts, expected ", plan.num_experts(),
         " as the plan");
  return detail::merged(kFunction, layer, plan, options, [&](const detail::ClusterParameter& of) {
    return detail::combine_weights(of, [&](const detail::ClusterParameter& one) {
      return detail::mean_in_whitened_subspace(kFunction, one, calibration, rank);
    });
  });
}

}  // namespace moe::inline MOE_ABI
