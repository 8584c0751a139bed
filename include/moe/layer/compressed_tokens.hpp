// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/core/simd.hpp"
#include "moe/routing/routing.hpp"

// What CompressedExperts makes of the tokens of a routing.
namespace moe::inline MOE_ABI::detail {

/// What the auxiliary choices of tokens make of them: working memory, and what backward reads again.
template <class S>
struct CompressedTokens {
  Routing<S> main;       ///< with the auxiliary choices dropped
  std::vector<S> share;  ///< [num_assignments]: of auxiliary choices among those of their token, 0 of others
  RowBuffer<S> factor;   ///< [T, input_dim]
  RowBuffer<S> tokens;   ///< factor * tokens
};

/// to[i] = f(a[i], b[i]) for i in [0, n), registers of each; `to` may be one of them.
template <class S, class F>
void transform_two(Index n, const S* a, const S* b, S* to, const F& f) {
  simd::for_each<S>(
      n, [&](Index i) { simd::store(to + i, f(simd::load(a + i), simd::load(b + i))); },
      [&](Index i, Index count) {
        simd::store_partial(to + i, f(simd::load_partial(a + i, count, S{0}), simd::load_partial(b + i, count, S{0})),
                            count);
      });
}
template <class S>
void multiply_two(Index n, const S* a, const S* b, S* to) {
  transform_two(n, a, b, to, [](const auto& x, const auto& y) { return x * y; });
}

/// The shares of the auxiliary choices of token t, those behind the first `main`; 0 of others.
template <class S>
void share_among_auxiliary(const Routing<S>& routing, Index t, Index main, std::span<S> share) {
  const Index first = std::min(routing.end(t), routing.begin(t) + main);
  S sum = 0;
  Index count = 0;
  for (Index a = routing.begin(t); a < routing.end(t); ++a) {
    const auto at = static_cast<std::size_t>(a);
    share[at] = 0;
    if (a < first || routing.dropped()[at]) continue;
    sum += routing.weights()[at];
    ++count;
  }
  const bool alike = !(sum > 0);  // all have underflowed to 0
  for (Index a = first; a < routing.end(t); ++a)
    if (const auto at = static_cast<std::size_t>(a); !routing.dropped()[at])
      share[at] = alike ? S{1} / static_cast<S>(count) : routing.weights()[at] / sum;
}

}  // namespace moe::inline MOE_ABI::detail
