// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "moe/serve/expert_cache.hpp"

namespace moe::inline MOE_ABI {

/// Whether the first use of an expert counts as a hit while the cache has never been full.
enum class ColdFill { Miss, Hit };

/// What it takes to load an expert, in seconds: per_load + per_byte * bytes, one load after another. Where all experts
/// are equally large, the mean time of some loads is per_load. Which loads are measured decides what is foretold: from
/// a disk only such as find nothing of the expert in the page cache of the system.
struct LoadCost {
  double per_load = 0, per_byte = 0;

  double seconds(std::size_t bytes) const { return per_load + per_byte * static_cast<double>(bytes); }

  /// Throws std::invalid_argument unless both are finite and >= 0.
  void require(const char* function) const {
    for (const double each : {per_load, per_byte})
      if (!(each >= 0 && std::isfinite(each)))
        fail(function, ": a load costs ", per_load, " s and ", per_byte, " s per byte, expected finite numbers >= 0");
  }
};

/// What a simulation assumes.
struct CacheSimulation {
  Index tokens_per_step = 1;            ///< tokens of a batch, see steps_of()
  ColdFill cold_fill = ColdFill::Miss;  ///< Hit: as the published code of segment_cache_hit_rate() counts
  LoadCost load_cost = {};              ///< foretells stall_seconds; without it they are 0
};

namespace detail {

struct NoExpert {};

/// First uses that find room which nothing has ever taken.
inline std::int64_t cold_fills(const RoutingTrace& trace, Index tokens_per_step, std::span<const std::size_t> bytes,
                               std::size_t budget) {
  std::vector<bool> seen(bytes.size());
  std::size_t filled = 0;
  std::int64_t count = 0;
  for (const auto& step : steps_of(trace, tokens_per_step))
    for (const Index e : step) {
      const auto at = static_cast<std::size_t>(e);
      if (seen[at]) continue;
      seen[at] = true;
      if (bytes[at] > budget - filled) return count;
      filled += bytes[at];
      ++count;
    }
  return count;
}

}  // namespace detail

/// What ExpertCache does with a trace, experts being of so many bytes: the same class, without anything to load, so
/// that hits, loads, evictions and bytes are those of CachedExperts over the same batches exactly (without prefetch).
/// stall_seconds is the cost of all loads, those of a wave one after the other: of one thread that loads alone.
/// Throws std::invalid_argument for bytes of another number of experts, costs that are negative or not finite, and as
/// ExpertCache does. O(steps * log + loads * num_experts).
template <CachePolicy P>
CacheStatistics simulate_cache(const RoutingTrace& trace, const std::vector<std::size_t>& bytes, std::size_t budget,
                               P policy, const CacheSimulation& options = {}) {
  if (std::ssize(bytes) != trace.num_experts())
    fail("moe::simulate_cache: bytes of ", bytes.size(), " experts, expected the ", trace.num_experts(),
         " of the trace");
  options.load_cost.require("moe::simulate_cache");
  double seconds = 0;
  const auto load = [&](Index e) {
    seconds += options.load_cost.seconds(bytes[static_cast<std::size_t>(e)]);
    return detail::NoExpert{};
  };
  using Cache = ExpertCache<detail::NoExpert, P>;
  Cache cache(bytes, load, budget, std::move(policy));
  typename Cache::Memory memory;
  SerialExecutor serial;  // there is nothing to share out
  const UseExecutor use(serial);
  for (const auto& step : steps_of(trace, options.tokens_per_step))
    cache.serve(step, memory, [](std::span<const Index>) {});
  CacheStatistics statistics = cache.statistics();
  statistics.stall_seconds = seconds;
  if (options.cold_fill == ColdFill::Hit)
    statistics.hits += detail::cold_fills(trace, options.tokens_per_step, bytes, budget);
  return statistics;
}
/// The same with experts of one size, `capacity` of which fit.
template <CachePolicy P>
CacheStatistics simulate_cache(const RoutingTrace& trace, Index capacity, P policy,
                               const CacheSimulation& options = {}) {
  if (capacity < 1) fail("moe::simulate_cache: capacity = ", capacity, ", expected at least 1");
  return simulate_cache(trace, std::vector<std::size_t>(static_cast<std::size_t>(trace.num_experts()), 1),
                        static_cast<std::size_t>(capacity), std::move(policy), options);
}

/// Segment cache hit rate SCH(rho, m): of a cache that holds rho times the experts of a token (rounded), and evicts
/// what the next m tokens (of those that have experts) use least, first uses being hits as long as there is room. Says,
/// with SRP, how much a cache will be worth before there is one; the published correlation with LRU is 0.81 to 0.98. 0
/// for a trace without choices. Throws std::invalid_argument unless rho * k rounds to at least 1, and for m below 1.
/// Liang et al. (arXiv:2505.16056).
inline double segment_cache_hit_rate(const RoutingTrace& trace, double rho, Index m) {
  if (trace.num_choices() == 0) return 0;
  const double k = static_cast<double>(trace.num_choices()) / static_cast<double>(trace.num_tokens());
  const double capacity = std::round(rho * k);
  if (!(capacity >= 1 && capacity < 0x1p53))
    fail("moe::segment_cache_hit_rate: rho = ", rho, " of ", k, " experts per token, expected room for at least 1");
  return simulate_cache(trace, static_cast<Index>(capacity), SegmentOracle(trace, m), {.cold_fill = ColdFill::Hit})
      .hit_rate();
}

}  // namespace moe::inline MOE_ABI
