// SPDX-License-Identifier: MIT
// Traces for tests: by lot, and of a chain that stays with some experts for a while.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/serve/routing_trace.hpp"

namespace test {

/// k of `experts` experts per token, drawn without replacement; those drawn before come first with probability `stay`.
inline moe::RoutingTrace random_trace(moe::Index tokens, moe::Index experts, moe::Index k, std::uint64_t seed,
                                      double stay = 0) {
  const moe::RandomField random(moe::Purpose::User, seed);
  moe::RoutingTrace trace(experts);
  std::vector<moe::Index> order(static_cast<std::size_t>(experts));
  std::iota(order.begin(), order.end(), moe::Index{0});
  for (moe::Index t = 0; t < tokens; ++t) {
    if (t == 0 || random.uniform(t, -1) >= stay)
      for (moe::Index i = 0; i < k; ++i) {
        const auto from = static_cast<std::size_t>(i) +
                          static_cast<std::size_t>(random.below(static_cast<std::uint64_t>(experts - i), t, i));
        std::swap(order[static_cast<std::size_t>(i)], order[from]);
      }
    trace.add(std::span<const moe::Index>(order).first(static_cast<std::size_t>(k)));
  }
  return trace;
}

}  // namespace test
