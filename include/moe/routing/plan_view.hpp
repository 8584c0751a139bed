// SPDX-License-Identifier: MIT
#pragma once

#include "moe/routing/plan.hpp"
#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI {

/// What an expert set runs: a plan, or some of its experts. Rows keep the numbers that they have in the plan, so that
/// several sets, or waves of one, fill the same rows. Refers to the plan, which must stay where it is. A plain value.
class PlanView {
 public:
  /// All of a plan, which must not be a temporary.
  PlanView(const DispatchPlan& plan)
      : plan_(&plan), num_experts_(plan.num_experts()), last_row_(plan.num_rows()) {}  // NOLINT: implicit
  PlanView(DispatchPlan&&) = delete;

  /// Experts [first, first + count) as 0, 1, ...: the plan of one of several sets side by side.
  PlanView part(Index first, Index count) const {
    require_range("moe::PlanView::part", first, count);
    PlanView result = only(first, count);
    result.first_expert_ += first;
    result.num_experts_ = count;
    return result;
  }
  /// The same experts, of which those outside [first, first + count) have no rows: one wave of several.
  PlanView only(Index first, Index count) const {
    require_range("moe::PlanView::only", first, count);
    PlanView result = *this;
    result.first_row_ = offset(first);
    result.last_row_ = offset(first + count);
    return result;
  }

  /// The same experts and rows of another plan of as many experts and rows, whose rows read other tokens. `other` must
  /// not be a temporary. Throws std::invalid_argument for a plan of others.
  PlanView over(const DispatchPlan& other) const {
    if (!std::ranges::equal(other.offsets(), plan_->offsets()))
      fail("moe::PlanView::over: the other plan has ", other.num_experts(), " experts and ", other.num_rows(),
           " rows, expected the offsets of this one, of ", plan_->num_experts(), " and ", plan_->num_rows());
    PlanView result = *this;
    result.plan_ = &other;
    return result;
  }
  PlanView over(DispatchPlan&&) const = delete;

  const DispatchPlan& plan() const { return *plan_; }
  Index num_experts() const { return num_experts_; }
  /// Number that expert 0 has in the plan. Draws of expert e are keyed by first_expert() + e, so that they are the same
  /// however the experts of a layer are cut into sets.
  Index first_expert() const { return first_expert_; }
  Index num_tokens() const { return plan_->num_tokens(); }
  /// Rows of expert e are [offset(e), offset(e + 1)), inside [first_row(), last_row()).
  Index offset(Index e) const {
    return std::clamp(plan_->offsets()[static_cast<std::size_t>(first_expert_ + e)], first_row_, last_row_);
  }
  Index rows_of(Index e) const { return offset(e + 1) - offset(e); }
  Index first_row() const { return first_row_; }
  Index last_row() const { return last_row_; }
  Index num_rows() const { return last_row_ - first_row_; }
  /// Offsets of the experts in the plan, [num_experts + 1]: what offset() clamps.
  std::span<const Index> plan_offsets() const {
    return plan_->offsets().subspan(static_cast<std::size_t>(first_expert_),
                                    static_cast<std::size_t>(num_experts_) + 1);
  }
  /// Token that row r of the plan reads; r in [first_row, last_row).
  Index token_of_row(Index r) const { return plan_->token_of_row()[static_cast<std::size_t>(r)]; }

 private:
  void require_range(const char* function, Index first, Index count) const {
    if (first < 0 || count < 0 || first > num_experts_ - count)
      fail(function, ": experts [", first, ", ", first, " + ", count, "), expected them in [0, ", num_experts_, ")");
  }

  const DispatchPlan* plan_;
  Index first_expert_ = 0, num_experts_, first_row_ = 0, last_row_;
};

namespace detail {

/// The rows of a view, as a tape remembers them.
struct ViewRows {
  Index first_expert = 0, first_row = 0, last_row = 0;

  ViewRows() = default;
  explicit ViewRows(const PlanView& plan)
      : first_expert(plan.first_expert()), first_row(plan.first_row()), last_row(plan.last_row()) {}

  /// Throws std::invalid_argument unless `plan` shows these rows.
  void require(const char* function, const PlanView& plan) const {
    if (first_expert != plan.first_expert() || first_row != plan.first_row() || last_row != plan.last_row())
      fail(function, ": the tape is of rows [", first_row, ", ", last_row, ") of a plan, from expert ", first_expert,
           " on, expected [", plan.first_row(), ", ", plan.last_row(), "), from ", plan.first_expert(), " on");
  }
};

}  // namespace detail

/// Steps that speak of the rows of a plan: row r has the id, the group and the key of the token that it reads, and none
/// is padding. Working memory, which the steps refer to; one per thread.
class RowKeys {
 public:
  void build(const Step& step, const PlanView& plan) {
    first_row_ = plan.first_row();
    token_id_.clear();
    group_id_.clear();
    key_.clear();
    for (Index r = plan.first_row(); r < plan.last_row(); ++r) {
      token_id_.push_back(step.id(plan.token_of_row(r)));
      group_id_.push_back(step.group(plan.token_of_row(r)));
      if (!step.key.empty()) key_.push_back(step.key[static_cast<std::size_t>(plan.token_of_row(r))]);
    }
  }

  /// `step` for rows [first, last) of those that build() has seen.
  Step of_rows(const Step& step, Index first, Index last) const {
    const auto begin = static_cast<std::size_t>(first - first_row_), count = static_cast<std::size_t>(last - first);
    Step own = step;
    own.valid = {};
    own.token_id = std::span(token_id_).subspan(begin, count);
    own.group_id = std::span(group_id_).subspan(begin, count);
    own.key = key_.empty() ? std::span<const std::int64_t>() : std::span(key_).subspan(begin, count);
    return own;
  }

 private:
  std::vector<std::int64_t> token_id_, group_id_, key_;
  Index first_row_ = 0;
};

}  // namespace moe::inline MOE_ABI
