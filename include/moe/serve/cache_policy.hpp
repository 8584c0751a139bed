// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "moe/serve/routing_trace.hpp"

namespace moe::inline MOE_ABI {

/// Which expert leaves a full cache. One of your own needs:
///   void start(moe::Index num_experts);               // once, before anything else
///   void use(moe::Index expert, std::int64_t step);   // a step asks for it, whether it is there or not
///   moe::Index victim(std::span<const moe::Index> candidates, std::int64_t step);
/// Steps count from 0; the uses of a step come first, ascending, then the victims that make room for what it misses.
/// candidates are at least one, ascending, all of them may go, and none of them is still to be served in this step.
/// Called by one thread at a time. Steps of several threads overlap: there may be uses of step 6 before a victim of
/// step 5, and candidates that step 6 has yet to be served. Victims for a prefetch are asked for with the last step
/// that has begun.
template <class P>
concept CachePolicy =
    std::movable<P> && requires(P& policy, Index expert, std::int64_t step, std::span<const Index> candidates) {
      { policy.start(expert) } -> std::same_as<void>;
      { policy.use(expert, step) } -> std::same_as<void>;
      { policy.victim(candidates, step) } -> std::convertible_to<Index>;
    };

/// The expert whose last use is longest ago. Where the experts of each step fit, a larger budget holds all that a
/// smaller one does, if experts are equally large. Mattson et al., "Evaluation techniques for storage hierarchies", IBM
/// Systems Journal 1970.
class Lru {
 public:
  void start(Index num_experts) { last_.assign(static_cast<std::size_t>(num_experts), -1); }
  void use(Index expert, std::int64_t) { last_[static_cast<std::size_t>(expert)] = clock_++; }
  Index victim(std::span<const Index> candidates, std::int64_t) const {
    return *std::ranges::min_element(candidates, {}, [&](Index e) { return last(e); });
  }
  /// Order of the last uses; -1 for an expert that never was.
  std::int64_t last(Index expert) const { return last_[static_cast<std::size_t>(expert)]; }

 private:
  std::vector<std::int64_t> last_;
  std::int64_t clock_ = 0;
};

/// The expert with the fewest uses so far; of several, the least recently used.
class Lfu {
 public:
  void start(Index num_experts) {
    recent_.start(num_experts);
    uses_.assign(static_cast<std::size_t>(num_experts), 0);
  }
  void use(Index expert, std::int64_t step) {
    recent_.use(expert, step);
    ++uses_[static_cast<std::size_t>(expert)];
  }
  Index victim(std::span<const Index> candidates, std::int64_t) const {
    return *std::ranges::min_element(
        candidates, {}, [&](Index e) { return std::pair(uses_[static_cast<std::size_t>(e)], recent_.last(e)); });
  }

 private:
  Lru recent_;
  std::vector<std::int64_t> uses_;
};

/// For a cache that layers share, expert e of layer l being expert l * experts_per_layer + e, with a step per layer in
/// their order. What the running pass over the layers has gone by without a use is stale and goes first, the least
/// recently used of it; then what this pass has used, whose layers are the last to come again, the latest layer first;
/// then what it has not come to yet. With one layer it is Lru. It knows of one pass: threads that go through the layers
/// at different times are taken for one that jumps between them, which costs hits, no more. After the idea of
/// Least-Stale in Hoang et al., "SpecMD: a comprehensive study on speculative expert prefetching" (arXiv:2602.03921):
/// where all layers take turns, what was used longest ago is what is needed next.
class LeastStale {
 public:
  /// Throws std::invalid_argument unless there is an expert per layer.
  explicit LeastStale(Index experts_per_layer) : experts_per_layer_(experts_per_layer) {
    if (experts_per_layer < 1)
      fail("moe::LeastStale: experts_per_layer = ", experts_per_layer, ", expected at least 1");
  }

  void start(Index num_experts) {
    recent_.start(num_experts);
    used_at_.assign(static_cast<std::size_t>(num_experts), -1);
  }
  void use(Index expert, std::int64_t step) {
    recent_.use(expert, step);
    const Index layer = expert / experts_per_layer_;
    if (step != step_ && layer <= layer_) pass_begin_ = step;  // from the last layer back to the first
    layer_ = layer;
    step_ = step;
    used_at_[static_cast<std::size_t>(expert)] = step;
  }
  Index victim(std::span<const Index> candidates, std::int64_t) const {
    return *std::ranges::min_element(candidates, {}, [&](Index e) {
      const Index layer = e / experts_per_layer_;
      const bool used = used_at_[static_cast<std::size_t>(e)] >= pass_begin_, to_come = layer > layer_;
      return std::tuple(to_come ? 2 : used ? 1 : 0, to_come || used ? -layer : 0, recent_.last(e));
    });
  }

 private:
  Index experts_per_layer_, layer_ = std::numeric_limits<Index>::max();
  Lru recent_;
  std::vector<std::int64_t> used_at_;
  std::int64_t step_ = -1, pass_begin_ = 0;
};

/// When experts are used, as a trace says beforehand: steps as in steps_of(). Immutable.
class FutureUses {
 public:
  static constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

  explicit FutureUses(const RoutingTrace& trace, Index tokens_per_step = 1)
      : steps_(static_cast<std::size_t>(trace.num_experts())) {
    const auto steps = steps_of(trace, tokens_per_step);
    for (std::size_t step = 0; step < steps.size(); ++step)
      for (const Index e : steps[step]) steps_[static_cast<std::size_t>(e)].push_back(static_cast<std::int64_t>(step));
  }

  Index num_experts() const { return std::ssize(steps_); }
  /// First step after `step` that uses the expert.
  std::int64_t next(Index expert, std::int64_t step) const {
    const auto& uses = steps_[static_cast<std::size_t>(expert)];
    const auto found = std::ranges::upper_bound(uses, step);
    return found == uses.end() ? kNever : *found;
  }
  /// Uses in the steps (step, step + count].
  Index count(Index expert, std::int64_t step, std::int64_t count) const {
    const auto& uses = steps_[static_cast<std::size_t>(expert)];
    const std::int64_t last = count > kNever - std::max<std::int64_t>(step, 0) ? kNever : step + count;
    return std::ranges::upper_bound(uses, last) - std::ranges::upper_bound(uses, step);
  }
  /// Throws std::invalid_argument unless the trace was of so many experts.
  void require(const char* policy, Index num_experts) const {
    if (this->num_experts() != num_experts)
      fail(policy, ": the trace is of ", this->num_experts(), " experts, expected the ", num_experts, " of the cache");
  }

 private:
  std::vector<std::vector<std::int64_t>> steps_;
};

/// The expert whose next use is furthest away; of several, the one that is used again soonest after that, as it will
/// then have just been loaded. Where a step asks for one expert and all are equally large, no policy hits more often;
/// where it asks for several, which stay for want of a choice, a hit in a hundred may be missed. It has to be told the
/// future. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 1966.
class Belady {
 public:
  explicit Belady(const RoutingTrace& trace, Index tokens_per_step = 1) : future_(trace, tokens_per_step) {}

  void start(Index num_experts) const { future_.require("moe::Belady", num_experts); }
  void use(Index, std::int64_t) const {}
  Index victim(std::span<const Index> candidates, std::int64_t step) const {
    return *std::ranges::max_element(candidates, {}, [&](Index e) {
      const std::int64_t next = future_.next(e, step);
      return std::pair(next, -future_.next(e, next));
    });
  }

 private:
  FutureUses future_;
};

/// The expert with the fewest uses in the next m steps; of several, the least recently used: what
/// segment_cache_hit_rate() is made of. It has to be told the future. Liang et al. (arXiv:2505.16056).
class SegmentOracle {
 public:
  /// Throws std::invalid_argument unless m is at least 1.
  SegmentOracle(const RoutingTrace& trace, Index m, Index tokens_per_step = 1)
      : future_(trace, tokens_per_step), m_(m) {
    if (m < 1) fail("moe::SegmentOracle: m = ", m, ", expected at least 1");
  }

  void start(Index num_experts) {
    future_.require("moe::SegmentOracle", num_experts);
    recent_.start(num_experts);
  }
  void use(Index expert, std::int64_t step) { recent_.use(expert, step); }
  Index victim(std::span<const Index> candidates, std::int64_t step) const {
    return *std::ranges::min_element(candidates, {},
                                     [&](Index e) { return std::pair(future_.count(e, step, m_), recent_.last(e)); });
  }

 private:
  FutureUses future_;
  Lru recent_;
  Index m_;
};

static_assert(CachePolicy<Lru> && CachePolicy<Lfu> && CachePolicy<LeastStale> && CachePolicy<Belady> &&
              CachePolicy<SegmentOracle>);

}  // namespace moe::inline MOE_ABI
