// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>

#include "moe/gate/rule/top_k_rule.hpp"
#include "moe/numeric/top_k_lanes.hpp"

// The top-K gate on as many tokens at once as a register has lanes. Every number that a token gets is computed by the
// operations of TopKRule in the same order, so it has the same bits here and there, and in any company.
namespace moe::inline MOE_ABI::detail {

/// Fewer tokens than this are routed one by one, all where it is more than a block holds: a block costs the same with
/// any number of tokens in it, in proportion to the experts, and a token alone more like their square root (fitted to 8
/// to 4096 experts and 1 to 64 choices, within 1.3 of the faster way; Zen 5, AVX-512).
template <class S>
Index fewest_in_block(Index k, Index num_experts) {
  constexpr double kLanes = 16;  // of what was measured
  const double slope = std::min(0.12 + 0.032 * static_cast<double>(k), 0.6);
  const double tokens = std::max(static_cast<double>(k) / 7, slope * std::sqrt(static_cast<double>(num_experts)));
  return 2 + static_cast<Index>(tokens * static_cast<double>(simd::kLanes<S>) / kLanes);
}

/// Collects up to kLanes tokens and routes them together.
template <class S, class G>
class TopKBlock {
 public:
  static constexpr Index kLanes = simd::kLanes<S>;
  /// Ranks of a token per lane, and what rank() writes behind the last.
  using Scratch = RowScratch<S, kLanes + 2>;
  static_assert(kLanes + 2 >= kScratchRows);

  TopKBlock(const TopKRule<S, G>& rule, Index k, Index num_experts, Scratch& scratch, Index worker)
      : rule_(rule),
        k_(k),
        num_experts_(num_experts),
        fewest_(fewest_in_block<S>(k, num_experts)),
        scratch_(scratch, worker) {}

  /// Whether some of `num_tokens` are faster in a block.
  static bool pays(Index k, Index num_experts, Index num_tokens) {
    return num_tokens > 1 &&  // one token is not to pay for a root
           k <= kMostLaneChoices && num_experts <= kMostLaneIds &&
           fewest_in_block<S>(k, num_experts) <= std::min(num_tokens, kLanes);
  }

  bool full() const { return count_ == kLanes; }
  void add(Index token, const S* row) {
    token_[static_cast<std::size_t>(count_)] = token;
    row_[static_cast<std::size_t>(count_++)] = row;
  }

  /// Routes the collected tokens and forgets them; calls reject(token) where the logits do not allow it.
  template <class Reject>
  void route(Routing<S>& routing, const Reject& reject) {
    if (count_ >= fewest_)
      route_together(routing, reject);
    else
      for (Index lane = 0; lane < count_; ++lane)
        if (!route_alone(lane, routing)) reject(token(lane));
    count_ = 0;
  }

 private:
  using V = simd::Batch<S>;
  static constexpr std::size_t kPlaces = static_cast<std::size_t>(kMostLaneChoices);
  using Places = std::array<S, kPlaces* static_cast<std::size_t>(kLanes)>;

  Index token(Index lane) const { return token_[static_cast<std::size_t>(lane)]; }
  const S* row(Index lane) const { return row_[static_cast<std::size_t>(lane)]; }
  S* scratch(Index lane) { return scratch_.data() + lane * num_experts_; }
  static std::size_t at(Index place, Index lane) { return static_cast<std::size_t>(place * kLanes + lane); }

  bool route_alone(Index lane, Routing<S>& routing) {
    if (first_not_below_infinity(row(lane), num_experts_) < num_experts_) return false;
    const auto size = static_cast<std::size_t>(num_experts_);
    return route_token<S>(rule_, {token(lane), {row(lane), size}, {scratch_.data(), kScratchRows * size}}, routing);
  }

  template <class Reject>
  void route_together(Routing<S>& routing, const Reject& reject) {
    for (Index lane = count_; lane < kLanes; ++lane) row_[static_cast<std::size_t>(lane)] = row(0);
    const std::uint32_t unusable = select();
    weigh();
    for (Index lane = 0; lane < count_; ++lane) {
      if ((unusable >> lane & 1) != 0 || !(rank_[at(k_ - 1, lane)] > -std::numeric_limits<S>::infinity()))
        reject(token(lane));
      else
        write(lane, routing);
    }
  }

  /// Fills rank_ and id_. Returns the lanes whose logits have a NaN or +inf, as bits.
  std::uint32_t select() {
    if (rule_.logits_decide()) return top_k_lanes(k_, row_.data(), num_experts_, rank_.data(), id_.data());
    std::uint32_t unusable = 0;
    std::array<const S*, static_cast<std::size_t>(kLanes)> ranks;
    for (Index lane = 0; lane < count_; ++lane) {
      if (first_not_below_infinity(row(lane), num_experts_) < num_experts_) unusable |= 1u << lane;
      ranks[static_cast<std::size_t>(lane)] = rule_.rank(row(lane), scratch(lane));
    }
    std::fill(ranks.begin() + count_, ranks.end(), ranks[0]);
    return top_k_lanes(k_, ranks.data(), num_experts_, rank_.data(), id_.data()) | unusable;
  }

  /// Fills weight_.
  void weigh() {
    SoftmaxScale<V> scale{V(S{0}), V(S{0})};
    std::array<V, kPlaces> chosen;
    if (rule_.logits_weigh()) {
      for (Index s = 0; s < k_; ++s) chosen[static_cast<std::size_t>(s)] = V::load_aligned(&rank_[at(s, 0)]);
    } else {
      scale = gather();
      for (Index s = 0; s < k_; ++s) chosen[static_cast<std::size_t>(s)] = V::load_aligned(&weight_[at(s, 0)]);
    }
    const std::span<V> weights = std::span(chosen).first(static_cast<std::size_t>(k_));
    rule_.weights().weigh_lanes(weights, scale);
    for (Index s = 0; s < k_; ++s) chosen[static_cast<std::size_t>(s)].store_aligned(&weight_[at(s, 0)]);
  }

  /// The logits that weights are taken from into weight_, where they are not those in rank_.
  SoftmaxScale<V> gather() {
    alignas(64) std::array<S, static_cast<std::size_t>(kLanes)> shift, inverse;
    for (Index lane = 0; lane < kLanes; ++lane) {
      const S* z = rule_.with_bias(row(lane), scratch(0));
      const SoftmaxScale<S> scale = rule_.weights().scale_of(z);
      shift[static_cast<std::size_t>(lane)] = scale.shift;
      inverse[static_cast<std::size_t>(lane)] = scale.inverse;
      for (Index s = 0; s < k_; ++s) weight_[at(s, lane)] = z[static_cast<Index>(id_[at(s, lane)])];
    }
    return {V::load_aligned(shift.data()), V::load_aligned(inverse.data())};
  }

  void write(Index lane, Routing<S>& routing) const {
    Index* expert = routing.experts().data() + routing.begin(token(lane));
    S* weight = routing.weights().data() + routing.begin(token(lane));
    for (Index s = 0; s < k_; ++s) {
      expert[s] = static_cast<std::int32_t>(id_[at(s, lane)]);  // to 32 bits: one instruction, on any machine
      weight[s] = weight_[at(s, lane)];
    }
  }

  const TopKRule<S, G>& rule_;
  Index k_, num_experts_, fewest_, count_ = 0;
  std::array<Index, static_cast<std::size_t>(kLanes)> token_;
  std::array<const S*, static_cast<std::size_t>(kLanes)> row_;
  alignas(64) Places rank_, id_, weight_;
  typename Scratch::Worker scratch_;
};

/// Every valid token gets k experts.
template <class S, class G>
void route_top_k_blocks(const char* function, const TopKRule<S, G>& rule, Index k, const ConstMatrixRef<S>& logits,
                        const Context& context, Routing<S>& routing) {
  const Index num_tokens = logits.rows(), num_experts = logits.cols();
  constexpr Index kLanes = simd::kLanes<S>;
  if (!TopKBlock<S, G>::pays(k, num_experts, num_tokens))
    return route_tokens<S>(function, rule, logits, context, routing);
  resize_top_k(function, k, num_tokens, context.step, routing);
  FirstRejected rejected;
  const auto reject = [&](Index t) { rejected.reject(t); };
  const Index grain = (token_blocks(num_tokens).size + kLanes - 1) / kLanes * kLanes;
  typename TopKBlock<S, G>::Scratch scratch(num_experts, context.scratch);
  // Within 5% for 8 to 128 experts (Zen 5, AVX-512).
  const Index nanoseconds = shared_part(num_tokens * (3 + num_experts / 4 + 4 * k / 3));
  parallel_ranges(num_tokens, grain, nanoseconds, [&](Index begin, Index end, Index worker) {
    TopKBlock<S, G> block(rule, k, num_experts, scratch, worker);
    for (Index t = begin; t < end; ++t) {
      if (context.step.is_valid(t)) block.add(t, logits.data() + t * logits.outerStride());
      if (block.full()) block.route(routing, reject);
    }
    block.route(routing, reject);
  });
  rejected.raise<S>(function, logits, k);
}

}  // namespace moe::inline MOE_ABI::detail
