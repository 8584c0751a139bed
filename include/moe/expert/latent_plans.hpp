// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <vector>

#include "moe/routing/plan_view.hpp"

namespace moe::inline MOE_ABI::detail {

/// What the three pools of LatentExperts run, made of the plan that the set is given. Working memory; one per thread.
struct LatentPlans {
  DispatchPlan input;    ///< groups as experts: a latent row for every token and group that has a row of it
  DispatchPlan experts;  ///< the rows of the set, which read latent rows
  DispatchPlan output;   ///< the rows of the set by group, behind an expert that has those before them

  /// Groups are the experts [begins[q], begins[q + 1]) of `plan`. O(rows + tokens).
  void build(const PlanView& plan, std::span<const Index> begins) {
    const Index groups = std::ssize(begins) - 1;
    latent_of_token_.assign(static_cast<std::size_t>(plan.num_tokens()), -1);
    latent_of_row_.resize(static_cast<std::size_t>(plan.num_rows()));
    token_of_latent_.clear();
    offsets_.assign(1, 0);
    for (Index q = 0; q < groups; ++q) {
      const Index first_latent = offsets_.back();
      for (Index r = plan.offset(begin_of(begins, q)); r < plan.offset(begin_of(begins, q + 1)); ++r) {
        Index& latent = latent_of_token_[static_cast<std::size_t>(plan.token_of_row(r))];
        if (latent < first_latent) {  // of an earlier group, or none
          latent = std::ssize(token_of_latent_);
          token_of_latent_.push_back(plan.token_of_row(r));
        }
        latent_of_row_[static_cast<std::size_t>(r - plan.first_row())] = latent;
      }
      offsets_.push_back(std::ssize(token_of_latent_));
    }
    input.build_from_rows(offsets_, 0, offsets_.back(), plan.num_tokens(),
                          [&](Index r) { return token_of_latent_[static_cast<std::size_t>(r)]; });
    experts.build_from_rows(plan.plan().offsets(), plan.first_row(), plan.last_row(), input.num_rows(),
                            [&](Index r) { return latent_of_row_[static_cast<std::size_t>(r - plan.first_row())]; });
  }

  void build_output(const PlanView& plan, std::span<const Index> begins) {
    offsets_.assign(1, 0);
    for (const Index begin : begins) offsets_.push_back(plan.offset(begin));
    output.build_from_rows(offsets_, plan.first_row(), plan.last_row(), plan.last_row(), [](Index r) { return r; });
  }
  PlanView output_view() const { return PlanView(output).part(1, output.num_experts() - 1); }

 private:
  static Index begin_of(std::span<const Index> begins, Index q) { return begins[static_cast<std::size_t>(q)]; }

  std::vector<Index> latent_of_token_, latent_of_row_, token_of_latent_, offsets_;
};

/// What LatentExperts keeps between its pools. Working memory; one per thread.
template <class S>
struct LatentRows {
  RowKeys keys;         ///< of the latent rows
  RowBuffer<S> latent;  ///< B_q x
  RowBuffer<S> narrow;  ///< of the experts, numbered as the rows of the set, where there are output projections
};

}  // namespace moe::inline MOE_ABI::detail
