// SPDX-License-Identifier: MIT
// Mixtures for the tests of policies.
#pragma once

#include "moe/policy/diagonal_mixture.hpp"
#include "support/matrices.hpp"

namespace test {

/// Weights are a softmax of standard normal logits, log deviations lie about -0.5.
template <class S>
moe::DiagonalMixture<S> random_mixture(Index rows, Index components, Index dim, std::uint64_t seed = 1,
                                       moe::ActionRange range = {}) {
  moe::DiagonalMixture<S> mixture;
  mixture.resize(rows, components, dim);
  mixture.range = range;
  mixture.log_weight = random_matrix<S>(rows, components, seed);
  for (Index t = 0; t < rows; ++t) {
    double sum = 0;
    for (Index k = 0; k < components; ++k) sum += std::exp(static_cast<double>(mixture.log_weight(t, k)));
    for (Index k = 0; k < components; ++k) mixture.log_weight(t, k) -= static_cast<S>(std::log(sum));
  }
  mixture.mean = random_matrix<S>(rows, components * dim, seed + 1);
  mixture.log_std = random_matrix<S>(rows, components * dim, seed + 2, 0.3).array() - S(0.5);
  return mixture;
}

/// The same row `count` times.
template <class S>
moe::DiagonalMixture<S> repeated(const moe::DiagonalMixture<S>& one, Index count) {
  moe::DiagonalMixture<S> all = one;
  all.log_weight = one.log_weight.row(0).replicate(count, 1);
  all.mean = one.mean.row(0).replicate(count, 1);
  all.log_std = one.log_std.row(0).replicate(count, 1);
  return all;
}

inline constexpr moe::ActionRange kTanh{.squash = moe::Squash::Tanh, .scale = 1.5};

}  // namespace test
