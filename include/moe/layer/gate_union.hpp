// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/kernel/combine_gates.hpp"
#include "moe/layer/expert_mask.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI::detail {

/// The choices of several gates as one routing in which a token names an expert once, in the order in which the gates
/// came to it, and where each of their choices finds its row. Working memory; one per thread.
template <class S>
class GateUnion {
 public:
  /// Gate g names expert mask.experts(g)[i] as i, in routing_of(g); token t goes through the gates gates_of(t). Throws
  /// std::invalid_argument for a choice that is none of the gate's experts. O(choices), no allocation when warm.
  template <class RoutingOf, class GatesOf>
  void build(Index num_tokens, const ExpertMask& mask, const RoutingOf& routing_of, const GatesOf& gates_of) {
    num_gates_ = static_cast<std::size_t>(mask.num_gates());
    const Index num_experts = mask.num_experts();
    if (row_.size() < num_gates_) row_.resize(num_gates_), is_first_.resize(num_gates_);  // never shrink
    for (Index g = 0; g < mask.num_gates(); ++g) {
      require_choices(mask, g, routing_of(g));
      const auto choices = static_cast<std::size_t>(routing_of(g).num_assignments());
      row_[static_cast<std::size_t>(g)].assign(choices, -1);
      is_first_[static_cast<std::size_t>(g)].assign(choices, 0);
    }
    count_.assign(static_cast<std::size_t>(num_tokens), 0);
    last_token_.assign(static_cast<std::size_t>(num_workers() * num_experts), -1);
    place_.resize(last_token_.size());

    // Calls body(g, a, expert, whether it is the first choice of the expert, place of the worker's for it).
    const auto for_each_choice = [&](Index t, Index stamp, Index worker, const auto& body) {
      const auto own = static_cast<std::size_t>(worker * num_experts);
      for (const Index g : gates_of(t)) {
        const Routing<S>& routing = routing_of(g);
        for (auto a = static_cast<std::size_t>(routing.begin(t)); a < static_cast<std::size_t>(routing.end(t)); ++a) {
          if (routing.dropped()[a]) continue;
          const Index e = mask.experts(g)[static_cast<std::size_t>(routing.experts()[a])];
          const std::size_t at = own + static_cast<std::size_t>(e);
          const bool first = last_token_[at] != stamp;
          last_token_[at] = stamp;
          body(static_cast<std::size_t>(g), a, e, first, place_[at]);
        }
      }
    };
    parallel_ranges(num_tokens, kTokens, [&](Index begin, Index end, Index worker) {
      for (Index t = begin; t < end; ++t)
        for_each_choice(t, t, worker, [&](std::size_t, std::size_t, Index, bool first, Index&) {
          count_[static_cast<std::size_t>(t)] += first ? 1 : 0;
        });
    });
    all_.resize_ragged(num_tokens, [&](Index t) { return count_[static_cast<std::size_t>(t)]; });
    parallel_ranges(num_tokens, kTokens, [&](Index begin, Index end, Index worker) {
      for (Index t = begin; t < end; ++t) {
        Index next = all_.begin(t);
        for_each_choice(t, num_tokens + t, worker,
                        [&](std::size_t g, std::size_t a, Index e, bool first, Index& place) {
                          if (first) {
                            place = next++;
                            all_.experts()[static_cast<std::size_t>(place)] = e;
                            all_.weights()[static_cast<std::size_t>(place)] = S{1};
                          }
                          is_first_[g][a] = first ? 1 : 0;
                          row_[g][a] = place;  // of the choice among all, until these have rows
                        });
      }
    });
    plan_.build(all_, num_experts);
    for (std::vector<Index>& rows : std::span(row_).first(num_gates_))
      parallel_ranges(std::ssize(rows), kTokens * 8, [&](Index begin, Index end, Index) {
        for (Index a = begin; a < end; ++a)
          if (Index& row = rows[static_cast<std::size_t>(a)]; row >= 0)
            row = plan_.row_of_assignment()[static_cast<std::size_t>(row)];
      });
  }

  const DispatchPlan& plan() const { return plan_; }

  /// For combine_gates(); `rows` refers to this object and the routings.
  template <class RoutingOf>
  void gate_rows(const RoutingOf& routing_of, std::vector<kernel::GateRows<S>>& rows) const {
    rows.clear();
    for (std::size_t g = 0; g < num_gates_; ++g)
      rows.push_back({&routing_of(static_cast<Index>(g)), row_[g], is_first_[g]});
  }

 private:
  static constexpr Index kTokens = 128;  // some microseconds of dense choices

  static void require_choices(const ExpertMask& mask, Index gate, const Routing<S>& routing) {
    const Index count = std::ssize(mask.experts(gate));
    for (std::size_t a = 0; a < routing.experts().size(); ++a)
      if (const Index e = routing.experts()[a]; e < 0 || e >= count)
        fail("moe::MultiGateLayer: assignment ", a, " of gate ", gate, " names expert ", e,
             " of those that it may choose, expected 0 <= expert < ", count);
  }

  Routing<S> all_;
  DispatchPlan plan_;
  std::size_t num_gates_ = 0;
  std::vector<std::vector<Index>> row_;              // [gates, at least][choices]
  std::vector<std::vector<std::uint8_t>> is_first_;  // likewise
  std::vector<Index> count_;                         // [tokens]
  std::vector<Index> last_token_, place_;            // [workers, experts]: who named an expert last, and where
};

}  // namespace moe::inline MOE_ABI::detail
