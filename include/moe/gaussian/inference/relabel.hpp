// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include "moe/gaussian/model/gate_weights.hpp"
#include "moe/gaussian/model/parameters.hpp"
#include "moe/numeric/assignment.hpp"

namespace moe::inline MOE_ABI::detail {

/// cost(i, j): how far expert i of `to` is from expert j of `from`, whatever the parametrisation of the gate: mean over
/// the rows of x of (m_i - m_j)^2 / nu_i + (pi_i - pi_j)^2, plus (log nu_i - log nu_j)^2 / 2.
template <class G>
Eigen::MatrixXd expert_distances(const GaussianMoe<G>& to, const GaussianMoe<G>& from, const MatrixView<double>& x) {
  const Index k = to.num_experts();
  const Matrix<double> pi = gate_weights(to, x), other_pi = gate_weights(from, x);
  const Matrix<double> means = expert_means(to, x), other_means = expert_means(from, x);
  const double n = static_cast<double>(x.rows());
  Eigen::MatrixXd cost(k, k);
  for (Index i = 0; i < k; ++i)
    for (Index j = 0; j < k; ++j) {
      const double spread = std::log(to.variance(i) / from.variance(j));
      cost(i, j) = (means.col(i) - other_means.col(j)).squaredNorm() / (n * to.variance(i)) +
                   (pi.col(i) - other_pi.col(j)).squaredNorm() / n + 0.5 * spread * spread;
    }
  return cost;
}

/// `model` with its experts in the order of those of `to` that they are closest to in sum. A last expert whose slope is
/// pinned at 0 behind an activation stays where it is, as no other can take its place.
template <class G>
GaussianMoe<G> relabelled(const GaussianMoe<G>& to, const GaussianMoe<G>& model, const MatrixView<double>& x) {
  constexpr bool kLinear = std::is_same_v<typename GateModel<G>::Inner, Identity>;
  const Index k = to.num_experts(), movable = kLinear || to.last_slope == LastSlope::Free ? k : k - 1;
  const Eigen::MatrixXd cost = expert_distances(to, model, x).topLeftCorner(movable, movable);
  if (!cost.allFinite()) return model;  // squares that overflow: nothing to compare
  std::vector<Index> order = least_assignment(cost);
  if (movable < k) order.push_back(k - 1);
  GaussianMoe<G> out = permuted(model, order);
  normalise(out);
  return out;
}

}  // namespace moe::inline MOE_ABI::detail
