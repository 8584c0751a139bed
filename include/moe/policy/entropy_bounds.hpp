// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <numbers>
#include <span>
#include <type_traits>

#include "moe/policy/diagonal_mixture.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Distances of two components of row t, summed over dimensions.
struct ComponentDistance {
  double bhattacharyya = 0, kullback_leibler = 0;  ///< the second of the first component from the second one
};
template <class S>
ComponentDistance component_distance(const DiagonalMixture<S>& mixture, Index t, Index i, Index j) {
  ComponentDistance distance;
  for (Index d = 0; d < mixture.dim(); ++d) {
    const Index a = i * mixture.dim() + d, b = j * mixture.dim() + d;
    const double gap = static_cast<double>(mixture.mean(t, a)) - static_cast<double>(mixture.mean(t, b));
    const double la = static_cast<double>(mixture.log_std(t, a)), lb = static_cast<double>(mixture.log_std(t, b));
    // With x = la - lb: log((s_a^2 + s_b^2) / (2 s_a s_b)) = log cosh x, in a form that does not overflow.
    const double x = la - lb, log_cosh = std::abs(x) + std::log1p(std::exp(-2 * std::abs(x))) - std::numbers::ln2;
    const double scaled = gap * std::exp(-0.5 * (la + lb + log_cosh + std::numbers::ln2));
    distance.bhattacharyya += 0.25 * scaled * scaled + 0.5 * log_cosh;
    const double against_b = gap * std::exp(-lb);
    distance.kullback_leibler += 0.5 * (std::expm1(2 * x) + against_b * against_b) - x;
  }
  return distance;
}

}  // namespace detail

/// Bounds of the entropy of each row's latent mixture, in nats, which itself has no closed form:
///   H >= sum_i w_i h_i - sum_i w_i log sum_j w_j exp(-B_ij),     B_ij the Bhattacharyya distance of the components
///   H <= sum_i w_i h_i - sum_i w_i log sum_j w_j exp(-KL_ij),    KL_ij the divergence of component j from i
/// with h_i = sum_d (log s_id + log(2 pi e) / 2). Equal, and exact, for one component, for components that are all the
/// same, and in the limit of components far apart.
///   lower, upper  [num_rows]
/// They are those of u: squashing adds the mean of log|da / du|, which has no closed form, and leaves at most
/// dim * log(2 scale). Throws std::invalid_argument on wrong sizes. O(num_components^2 dim) per row, no allocation.
/// Kolchinsky & Tracey, "Estimating mixture entropy with pairwise distances", Entropy 2017 (arXiv:1706.02419).
template <class S>
void entropy_bounds(const DiagonalMixture<S>& mixture, std::span<std::type_identity_t<S>> lower,
                    std::span<std::type_identity_t<S>> upper) {
  constexpr const char* kName = "moe::entropy_bounds";
  mixture.validate(kName);
  const Index num_rows = mixture.num_rows(), count = mixture.num_components();
  if (std::ssize(lower) != num_rows || std::ssize(upper) != num_rows)
    fail(kName, ": lower and upper have ", lower.size(), " and ", upper.size(),
         " entries, expected num_rows = ", num_rows);
  const double log_two_pi_e = std::log(2 * std::numbers::pi * std::numbers::e);
  parallel_ranges(num_rows, detail::kMixtureRowsPerTask, [&](Index begin, Index end, Index) {
    detail::PerComponent near_by(count), apart(count);
    for (Index t = begin; t < end; ++t) {
      double low = 0, high = 0;
      for (Index i = 0; i < count; ++i) {
        const double weight = mixture.weight(t, i);
        if (weight == 0) continue;
        double own = 0;
        for (Index d = 0; d < mixture.dim(); ++d)
          own += static_cast<double>(mixture.log_std(t, i * mixture.dim() + d)) + 0.5 * log_two_pi_e;
        for (Index j = 0; j < count; ++j) {
          const auto distance = detail::component_distance(mixture, t, i, j);
          const auto log_weight = static_cast<double>(mixture.log_weight(t, j));
          near_by.data()[j] = log_weight - distance.bhattacharyya;
          apart.data()[j] = log_weight - distance.kullback_leibler;
        }
        low += weight * (own - detail::log_sum_and_shares(near_by.data(), count));
        high += weight * (own - detail::log_sum_and_shares(apart.data(), count));
      }
      lower[static_cast<std::size_t>(t)] = static_cast<S>(low);
      upper[static_cast<std::size_t>(t)] = static_cast<S>(high);
    }
  });
}

}  // namespace moe::inline MOE_ABI
