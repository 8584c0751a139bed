// SPDX-License-Identifier: MIT
#pragma once

#include "moe/routing/balance/entropy.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI {

/// Expert load: rows of each expert, [num_experts].
inline std::vector<Index> tokens_per_expert(const DispatchPlan& plan) {
  std::vector<Index> count(static_cast<std::size_t>(plan.num_experts()));
  for (Index e = 0; e < plan.num_experts(); ++e) count[static_cast<std::size_t>(e)] = plan.rows_of(e);
  return count;
}

/// The same before a plan is built: choices of each expert that were not dropped, [num_experts].
/// Throws std::invalid_argument if the routing names an expert outside [0, num_experts).
template <class S>
std::vector<Index> tokens_per_expert(const Routing<S>& routing, Index num_experts) {
  detail::require_experts("moe::tokens_per_expert", routing, num_experts);
  std::vector<Index> count(static_cast<std::size_t>(num_experts));
  for (std::size_t a = 0; a < routing.experts().size(); ++a)
    count[static_cast<std::size_t>(routing.experts()[a])] += routing.dropped()[a] ? 0 : 1;
  return count;
}

/// Rows of the busiest expert over the mean: 1 when balanced, num_experts when one expert gets all. A plan without rows
/// is balanced. O(num_experts), no allocation.
inline double load_imbalance(const DispatchPlan& plan) {
  if (plan.num_rows() == 0) return 1;
  Index busiest = 0;
  for (Index e = 0; e < plan.num_experts(); ++e) busiest = std::max(busiest, plan.rows_of(e));
  return static_cast<double>(busiest) * static_cast<double>(plan.num_experts()) / static_cast<double>(plan.num_rows());
}

/// Coefficient of variation of the expert load, standard deviation (population) over mean: 0 when balanced or without
/// rows. O(num_experts), no allocation.
inline double load_cv(const DispatchPlan& plan) {
  if (plan.num_rows() == 0) return 0;
  const double mean = static_cast<double>(plan.num_rows()) / static_cast<double>(plan.num_experts());
  double spread = 0;
  for (Index e = 0; e < plan.num_experts(); ++e) {
    const double excess = static_cast<double>(plan.rows_of(e)) - mean;
    spread = simd::fma(excess, excess, spread);
  }
  return std::sqrt(spread / static_cast<double>(plan.num_experts())) / mean;
}

/// Entropy in nats of the share of rows that each expert gets: log(num_experts) when balanced, 0 when one expert gets
/// all or without rows. O(num_experts), no allocation.
inline double load_entropy(const DispatchPlan& plan) {
  double sum = 0;
  for (Index e = 0; e < plan.num_experts(); ++e) {
    if (plan.rows_of(e) == 0) continue;
    const double share = static_cast<double>(plan.rows_of(e)) / static_cast<double>(plan.num_rows());
    sum = simd::fma(-share, std::log(share), sum);
  }
  return sum;
}

/// Entropy in nats of a token's probabilities, mean over valid tokens; 0 without any. How undecided the router is.
///   probability  [num_tokens, num_experts]
/// Throws std::invalid_argument if a span of `step` has another length.
template <class S>
double router_entropy(const Matrix<S>& probability, const Step& step = {}) {
  step.validate("moe::router_entropy", probability.rows());
  const Index num_valid = step.num_valid(probability.rows());
  if (num_valid == 0) return 0;
  const auto sum = detail::sum_over_tokens(probability.rows(), 1, step, [&](Index t, double* entropies) {
    *entropies += detail::entropy(probability.row(t).data(), probability.cols());
  });
  return sum[0] / static_cast<double>(num_valid);
}

namespace detail {

/// Choices of valid tokens, all and those that were not dropped.
struct ChoiceCount {
  Index all = 0, served = 0;
};

template <class S>
ChoiceCount count_choices(const char* function, const Routing<S>& routing, const Step& step) {
  step.validate(function, routing.num_tokens());
  ChoiceCount count;
  for (Index t = 0; t < routing.num_tokens(); ++t) {
    if (!step.is_valid(t)) continue;
    for (const std::uint8_t dropped : routing.dropped(t)) {
      count.all += 1;
      count.served += dropped ? 0 : 1;
    }
  }
  return count;
}

}  // namespace detail

/// Share of the choices of valid tokens that were dropped, in [0, 1]; 0 without choices. O(assignments), no allocation.
template <class S>
double drop_rate(const Routing<S>& routing, const Step& step = {}) {
  const auto count = detail::count_choices("moe::drop_rate", routing, step);
  return count.all == 0 ? 0 : static_cast<double>(count.all - count.served) / static_cast<double>(count.all);
}

/// Experts that a valid token is sent to, on average; a weight of 0 counts, since the expert runs; 0 without valid
/// tokens. O(assignments), no allocation.
template <class S>
double mean_active_experts(const Routing<S>& routing, const Step& step = {}) {
  const auto count = detail::count_choices("moe::mean_active_experts", routing, step);
  const Index num_valid = step.num_valid(routing.num_tokens());
  return num_valid == 0 ? 0 : static_cast<double>(count.served) / static_cast<double>(num_valid);
}

}  // namespace moe::inline MOE_ABI
