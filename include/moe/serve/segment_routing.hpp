// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "moe/serve/routing_trace.hpp"

namespace moe::inline MOE_ABI {

/// How well experts can be chosen for segments of tokens instead of single ones.
struct SegmentRouting {
  double srp = 0;         ///< segment routing best performance, in [0, 1]
  double size_ratio = 0;  ///< choices of the best segment router over those of the tokens
  Index threshold = 0;    ///< it takes an expert for a segment where at least so many of the tokens have it
};

/// Uses of experts in all segments of m tokens in a row, as a histogram: f(e, p) = how many of the tokens p ... p + m -
/// 1 go to expert e, for every e and every p; no segment goes across sequences, and one that is shorter than m has
/// none. A segment router answers yes or no for an expert and a whole segment. The best F1 that one can have,
///   SRP(m) = max over a in 0...m of 2 sum_{f >= a} f / sum (m [f >= a] + f),
/// belongs to a threshold; 1 means that segments are all one needs. Histograms of parts add up to that of the whole. A
/// plain value. Liang et al., "Not all models suit expert offloading: on local routing consistency of mixture-of-expert
/// models" (arXiv:2505.16056).
class SegmentHistogram {
 public:
  /// Throws std::invalid_argument unless m is at least 1.
  explicit SegmentHistogram(Index m) : count_(m < 1 ? 0 : static_cast<std::size_t>(m) + 1) {
    if (m < 1) fail("moe::SegmentHistogram: m = ", m, ", expected at least 1");
  }

  Index segment() const { return std::ssize(count_) - 1; }
  /// Pairs of an expert and a segment in which f of the tokens have it, [m + 1].
  const std::vector<std::int64_t>& counts() const { return count_; }

  /// All experts of a trace: a layer, or a model after join_layers(), in which a token has a row per layer.
  /// O(num_tokens * num_experts).
  void add(const RoutingTrace& trace) { add_experts(trace, 0, trace.num_experts()); }
  /// One expert alone. Throws std::invalid_argument for one that is not there.
  void add(const RoutingTrace& trace, Index expert) {
    if (expert < 0 || expert >= trace.num_experts())
      fail("moe::SegmentHistogram::add: expert ", expert, ", expected 0 <= expert < ", trace.num_experts());
    add_experts(trace, expert, expert + 1);
  }
  /// Throws std::invalid_argument for segments of another length.
  SegmentHistogram& operator+=(const SegmentHistogram& other) {
    if (other.segment() != segment())
      fail("moe::SegmentHistogram: segments of ", other.segment(), " tokens, expected ", segment());
    for (std::size_t f = 0; f < count_.size(); ++f) count_[f] += other.count_[f];
    return *this;
  }

  /// Of thresholds that are equally good, the highest. All zero where no segment has an expert.
  SegmentRouting best() const {
    const auto m = static_cast<double>(segment());
    double uses = 0;
    for (std::size_t f = 0; f < count_.size(); ++f) uses += static_cast<double>(f) * static_cast<double>(count_[f]);
    SegmentRouting result;
    if (uses == 0) return result;
    double chosen = 0, covered = 0;  // of the pairs from the threshold on
    for (std::size_t a = count_.size(); a-- > 0;) {
      chosen += m * static_cast<double>(count_[a]);
      covered += static_cast<double>(a) * static_cast<double>(count_[a]);
      const double f1 = 2 * covered / (chosen + uses);
      if (f1 > result.srp) result = {f1, chosen / uses, static_cast<Index>(a)};
    }
    return result;
  }

 private:
  void add_experts(const RoutingTrace& trace, Index first, Index last) {
    const Index m = segment();
    std::vector<std::size_t> uses;  // of each expert, in the segment that ends with the last token
    const auto change = [&](Index t, bool enters) {
      for (const std::uint32_t e : trace.experts(t)) {
        if (static_cast<Index>(e) < first || static_cast<Index>(e) >= last) continue;
        std::size_t& f = uses[static_cast<std::size_t>(e) - static_cast<std::size_t>(first)];
        if (enters)
          ++f;
        else
          --f;
      }
    };
    for (Index sequence = 0; sequence < trace.num_sequences(); ++sequence) {
      uses.assign(static_cast<std::size_t>(last - first), 0);
      const Index begin = trace.sequence_begin(sequence);
      for (Index t = begin; t < trace.sequence_begin(sequence + 1); ++t) {
        change(t, true);
        if (t - begin >= m) change(t - m, false);
        if (t - begin + 1 >= m)
          for (const std::size_t f : uses) ++count_[f];
      }
    }
  }

  std::vector<std::int64_t> count_;
};

/// SRP(m) of all experts of a trace. Throws std::invalid_argument unless m is at least 1.
inline SegmentRouting segment_routing(const RoutingTrace& trace, Index m) {
  SegmentHistogram histogram(m);
  histogram.add(trace);
  return histogram.best();
}

}  // namespace moe::inline MOE_ABI
