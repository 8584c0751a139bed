// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Who goes where, with which weight: what every gate fills. Compressed rows for fixed-K and ragged gates alike: the
/// assignments of token t are [token_begin[t], token_begin[t + 1]), in choice order (dense gates: ascending expert).
/// A dropped choice keeps its expert id and has weight 0; it never reaches an expert.
/// Reused call after call it allocates only to grow. A plain value; one per thread.
template <class S>
class Routing {
 public:
  /// Every token gets k assignments; contents are to be filled through experts(t) and weights(t), dropped is cleared.
  void resize(Index num_tokens, Index k) {
    token_begin_.resize(static_cast<std::size_t>(num_tokens) + 1);
    for (Index t = 0; t <= num_tokens; ++t) token_begin_[static_cast<std::size_t>(t)] = t * k;
    resize_assignments(num_tokens * k);
  }

  /// Ragged: token t gets count(t) >= 0 assignments. Gates count, resize, then fill.
  template <class Count>
  void resize_ragged(Index num_tokens, Count&& count) {
    token_begin_.resize(static_cast<std::size_t>(num_tokens) + 1);
    token_begin_[0] = 0;
    for (Index t = 0; t < num_tokens; ++t)
      token_begin_[static_cast<std::size_t>(t) + 1] = token_begin_[static_cast<std::size_t>(t)] + count(t);
    resize_assignments(token_begin_.back());
  }

  Index num_tokens() const { return static_cast<Index>(token_begin_.size()) - 1; }
  Index num_assignments() const { return static_cast<Index>(expert_.size()); }

  /// First assignment of token t; begin(num_tokens()) is num_assignments().
  Index begin(Index t) const { return token_begin_[static_cast<std::size_t>(t)]; }
  Index end(Index t) const { return begin(t + 1); }

  std::span<Index> experts(Index t) { return slice(expert_, t); }
  std::span<const Index> experts(Index t) const { return slice(expert_, t); }
  std::span<S> weights(Index t) { return slice(weight_, t); }
  std::span<const S> weights(Index t) const { return slice(weight_, t); }
  std::span<std::uint8_t> dropped(Index t) { return slice(dropped_, t); }
  std::span<const std::uint8_t> dropped(Index t) const { return slice(dropped_, t); }

  /// All assignments, token by token.
  std::span<Index> experts() { return expert_; }
  std::span<const Index> experts() const { return expert_; }
  std::span<S> weights() { return weight_; }
  std::span<const S> weights() const { return weight_; }
  std::span<std::uint8_t> dropped() { return dropped_; }
  std::span<const std::uint8_t> dropped() const { return dropped_; }

 private:
  template <class V>
  auto slice(V& all, Index t) const {
    return std::span(all).subspan(static_cast<std::size_t>(begin(t)), static_cast<std::size_t>(end(t) - begin(t)));
  }
  void resize_assignments(Index count) {
    expert_.resize(static_cast<std::size_t>(count));
    weight_.resize(static_cast<std::size_t>(count));
    dropped_.assign(static_cast<std::size_t>(count), 0);
  }

  std::vector<Index> token_begin_ = {0};
  std::vector<Index> expert_;
  std::vector<S> weight_;
  std::vector<std::uint8_t> dropped_;
};

}  // namespace moe::inline MOE_ABI
