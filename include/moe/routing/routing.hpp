// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <ranges>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/core/scratch.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// A contiguous range of ids: integers, but no truth values and no characters.
template <class R>
concept IntegerRange =
    std::ranges::contiguous_range<const R> && std::ranges::sized_range<const R> &&
    std::integral<std::ranges::range_value_t<const R>> && !std::is_same_v<std::ranges::range_value_t<const R>, bool> &&
    !std::is_same_v<std::ranges::range_value_t<const R>, char> &&
    !std::is_same_v<std::ranges::range_value_t<const R>, wchar_t> &&
    !std::is_same_v<std::ranges::range_value_t<const R>, char8_t> &&
    !std::is_same_v<std::ranges::range_value_t<const R>, char16_t> &&
    !std::is_same_v<std::ranges::range_value_t<const R>, char32_t>;

}  // namespace detail

/// Values of Routing::dropped(): any but 0 means that the choice never reaches an expert. Who dropped it matters to
/// replay and backward only: each kind of adaptor has a value of its own, by which it takes back its drops and nobody
/// else's, so that the gate inside finds the routing as it left it.
inline constexpr std::uint8_t kDroppedByGate = 1;  ///< also padding
inline constexpr std::uint8_t kDroppedByCapacity = 2;
inline constexpr std::uint8_t kDroppedBySkipping = 3;
inline constexpr std::uint8_t kDroppedByChance = 4;
inline constexpr std::uint8_t kDroppedByMask = 5;  ///< of TopAnyGate

/// Who goes where, with which weight: what every gate fills. Compressed rows for fixed-K and ragged gates alike: the
/// assignments of token t are [token_begin[t], token_begin[t + 1]), in choice order (dense gates: ascending expert).
/// A dropped choice keeps its expert id and has weight 0; it never reaches an expert.
/// Reused call after call it allocates only to grow. A plain value, empty after it has been moved from; one per thread.
template <class S>
class Routing {
 public:
  /// Every token gets k assignments; contents are to be filled through experts(t) and weights(t), dropped is cleared.
  /// Throws std::invalid_argument for numbers that are negative or too large for an Index.
  void resize(Index num_tokens, Index k) {
    constexpr const char* kName = "moe::Routing";
    detail::checked_product(kName, detail::checked_size(kName, "num_tokens", num_tokens),
                            detail::checked_size(kName, "k", k));
    token_begin_.resize(static_cast<std::size_t>(num_tokens) + 1);
    for (Index t = 0; t <= num_tokens; ++t) token_begin_[static_cast<std::size_t>(t)] = t * k;
    choices_per_token_ = k;
    resize_assignments(num_tokens * k);
  }

  /// Ragged: token t gets count(t) >= 0 assignments. Gates count, resize, then fill. count is called once per token, in
  /// order, before assignments are touched: it may read what an earlier resize() made room for. Throws
  /// std::invalid_argument for a negative count.
  template <class Count>
  void resize_ragged(Index num_tokens, Count&& count) {
    detail::checked_size("moe::Routing", "num_tokens", num_tokens);
    token_begin_.resize(static_cast<std::size_t>(num_tokens) + 1);
    token_begin_[0] = 0;
    choices_per_token_ = -1;
    for (Index t = 0; t < num_tokens; ++t) {
      const Index choices = count(t);
      if (choices < 0) fail("moe::Routing: token ", t, " has ", choices, " choices, expected at least 0");
      token_begin_[static_cast<std::size_t>(t) + 1] = token_begin_[static_cast<std::size_t>(t)] + choices;
    }
    resize_assignments(token_begin_.back());
  }

  /// Choices made elsewhere: the same number for every of num_tokens tokens, in order.
  ///   experts  [num_tokens, k], a contiguous range of any integer type; -1, of which there may be some, is no choice
  ///   weights  [num_tokens, k], or empty where somebody else will weigh the choices (see MoeLayer::replay)
  /// Throws std::invalid_argument, naming the first that is wrong, for experts outside [-1, num_experts), weights that
  /// are not finite, and lengths that do not fit. An expert that a token names twice has two rows of it.
  template <detail::IntegerRange Experts>
  static Routing from(Index num_tokens, const Experts& experts, std::type_identity_t<std::span<const S>> weights,
                      Index num_experts) {
    constexpr const char* kName = "moe::Routing::from";
    const Index total = std::ssize(experts), tokens = detail::checked_size(kName, "num_tokens", num_tokens);
    if (tokens == 0 ? total != 0 : total % tokens != 0)
      fail(kName, ": ", total, " experts, expected a multiple of num_tokens = ", tokens);
    const Index k = tokens == 0 ? 0 : total / tokens;
    return from_choices(tokens, std::span(std::ranges::data(experts), std::ranges::size(experts)), weights, num_experts,
                        [&](Index t) { return t * k; });
  }
  /// The same with any number of choices per token: those of token t are [token_begin[t], token_begin[t + 1]), where
  /// token_begin starts at 0, does not fall and ends at the number of experts.
  template <detail::IntegerRange Experts>
  static Routing from(std::span<const Index> token_begin, const Experts& experts,
                      std::type_identity_t<std::span<const S>> weights, Index num_experts) {
    constexpr const char* kName = "moe::Routing::from";
    if (token_begin.empty() || token_begin.front() != 0 || token_begin.back() != std::ssize(experts))
      fail(kName, ": token_begin goes from ", token_begin.empty() ? 0 : token_begin.front(), " to ",
           token_begin.empty() ? 0 : token_begin.back(),
           ", expected from 0 to the number of experts = ", std::ranges::size(experts));
    for (std::size_t t = 1; t < token_begin.size(); ++t)
      if (token_begin[t] < token_begin[t - 1])
        fail(kName, ": token ", t - 1, " has ", token_begin[t] - token_begin[t - 1], " choices, expected at least 0");
    return from_choices(std::ssize(token_begin) - 1, std::span(std::ranges::data(experts), std::ranges::size(experts)),
                        weights, num_experts, [&](Index t) { return token_begin[static_cast<std::size_t>(t)]; });
  }

  Index num_tokens() const { return std::max<Index>(0, static_cast<Index>(token_begin_.size()) - 1); }
  Index num_assignments() const { return static_cast<Index>(expert_.size()); }

  /// First assignment of token t; begin(num_tokens()) is num_assignments().
  Index begin(Index t) const { return token_begin_[static_cast<std::size_t>(t)]; }
  Index end(Index t) const { return begin(t + 1); }
  /// All of them, [num_tokens + 1].
  std::span<const Index> token_begin() const { return token_begin_; }

  /// k where resize(num_tokens, k) has made every token the same number of choices, -1 where they may differ.
  Index choices_per_token() const { return choices_per_token_; }

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

  /// Drops assignment a: it keeps its expert id, its weight becomes 0.
  void drop(Index a, std::uint8_t by) {
    dropped_[static_cast<std::size_t>(a)] = by;
    weight_[static_cast<std::size_t>(a)] = S{0};
  }

  /// Working memory of what refines a routing in place, as apply_capacity().
  Scratch& scratch() { return scratch_; }

 private:
  template <class Id, class Begin>
  static Routing from_choices(Index num_tokens, std::span<const Id> experts, std::span<const S> weights,
                              Index num_experts, const Begin& begin) {
    constexpr const char* kName = "moe::Routing::from";
    if (!weights.empty() && weights.size() != experts.size())
      fail(kName, ": ", weights.size(), " weights, expected none or one per expert = ", experts.size());
    for (std::size_t a = 0; a < experts.size(); ++a) {
      if (std::cmp_less(experts[a], -1) || std::cmp_greater_equal(experts[a], num_experts))
        fail(kName, ": assignment ", a, " names expert ", +experts[a],
             ", expected -1 <= expert < num_experts = ", num_experts);
      if (!weights.empty() && !std::isfinite(weights[a]))
        fail(kName, ": weight of assignment ", a, " is ", weights[a], ", expected a finite number");
    }
    const auto is_choice = [&](Index a) { return !std::cmp_equal(experts[static_cast<std::size_t>(a)], -1); };
    Routing routing;
    const Index total = std::ssize(experts);
    Index kept = 0;
    for (Index a = 0; a < total; ++a) kept += is_choice(a) ? 1 : 0;
    const Index k = num_tokens == 0 ? 0 : total / num_tokens;
    bool even = kept == total;
    for (Index t = 0; t < num_tokens && even; ++t) even = begin(t) == t * k;
    if (even)
      routing.resize(num_tokens, k);
    else
      routing.resize_ragged(num_tokens, [&](Index t) {
        Index count = 0;
        for (Index a = begin(t); a < begin(t + 1); ++a) count += is_choice(a) ? 1 : 0;
        return count;
      });
    std::size_t to = 0;
    for (Index a = 0; a < total; ++a) {
      if (!is_choice(a)) continue;
      routing.expert_[to] = static_cast<Index>(experts[static_cast<std::size_t>(a)]);
      routing.weight_[to++] = weights.empty() ? S{0} : weights[static_cast<std::size_t>(a)];
    }
    return routing;
  }
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
  Index choices_per_token_ = -1;
  Scratch scratch_;
};

namespace detail {

/// Throws std::invalid_argument, naming the first assignment outside [0, num_experts).
template <class S>
void require_experts(const char* function, const Routing<S>& routing, Index num_experts) {
  const auto expert = routing.experts();
  for (std::size_t a = 0; a < expert.size(); ++a)
    if (expert[a] < 0 || expert[a] >= num_experts)
      fail(function, ": assignment ", a, " names expert ", expert[a],
           ", expected 0 <= expert < num_experts = ", num_experts);
}

/// The same, and the routing must be of num_tokens tokens.
template <class S>
void require_routing(const char* function, const Routing<S>& routing, Index num_tokens, Index num_experts) {
  if (routing.num_tokens() != num_tokens)
    fail(function, ": routing has ", routing.num_tokens(), " tokens, expected num_tokens = ", num_tokens);
  require_experts(function, routing, num_experts);
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
