// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "moe/core/simd.hpp"
#include "moe/routing/balance/token_sum.hpp"
#include "moe/routing/gradient.hpp"
#include "moe/routing/routing.hpp"

namespace moe::inline MOE_ABI {

enum class CountedChoices { All, First };
enum class DroppedChoices { Count, Ignore };

/// What f counts in load_balancing_loss.
struct LoadBalancingOptions {
  CountedChoices choices = CountedChoices::All;  ///< First: GShard's definition, also for k > 1
  /// Count: f as chosen, before any drop (Switch, GShard), so that a full expert still pushes tokens away.
  /// Ignore: f as served.
  DroppedChoices dropped = DroppedChoices::Count;
  /// [num_experts]: f is taken from these, as of a global batch of which this routing is a part, or of a moving
  /// average; empty: of this routing. Memory of the caller.
  std::span<const double> counts = {};
};

namespace detail {

/// count[e] += counted choices of e by token t.
template <class S>
void count_choices_of(Index t, const Routing<S>& routing, const LoadBalancingOptions& options, double* count) {
  const auto expert = routing.experts(t);
  const auto dropped = routing.dropped(t);
  const std::size_t last =
      options.choices == CountedChoices::All ? expert.size() : std::min<std::size_t>(1, expert.size());
  for (std::size_t slot = 0; slot < last; ++slot)
    if (options.dropped == DroppedChoices::Count || !dropped[slot]) count[expert[slot]] += 1;
}

/// Counts come from other ranks and from one's own sums. Doubles hold numbers up to 2^53 one by one.
inline void require_counts(const char* function, std::span<const double> counts, Index num_experts) {
  if (static_cast<Index>(counts.size()) != num_experts)
    fail(function, ": counts has ", counts.size(), " entries, expected 0 or num_experts = ", num_experts);
  for (std::size_t e = 0; e < counts.size(); ++e)
    if (!(counts[e] >= 0 && counts[e] <= 0x1p53))
      fail(function, ": count of expert ", e, " is ", counts[e], ", expected 0 to 2^53");
}

}  // namespace detail

/// Choices of every expert that load_balancing_loss() counts, by valid tokens; [num_experts]. Whole numbers, which add
/// up exactly over micro-batches and ranks, in any order: f of a global batch. All parts are routed first, then each is
/// given the sum:
///   std::vector<double> counts(num_experts);
///   for (const auto& part : parts) {
///     layer.forward(part.tokens, part.step, output, workspace);
///     const auto own = moe::count_choices(workspace.routing, num_experts, part.step);
///     for (std::size_t e = 0; e < counts.size(); ++e) counts[e] += own[e];  // over ranks: MPI_Allreduce
///   }
///   moe::load_balancing_loss<float>(probability, tape.routing, part.step, weight, losses, {.counts = counts});
/// options.counts plays no part. Throws std::invalid_argument for an expert outside [0, num_experts), or a span of the
/// step of another length. O(assignments), in parallel; allocates the result and partial sums.
template <class S>
std::vector<double> count_choices(const Routing<S>& routing, Index num_experts, const Step& step,
                                  const LoadBalancingOptions& options = {}) {
  constexpr const char* kName = "moe::count_choices";
  detail::require_experts(kName, routing, num_experts);
  step.validate(kName, routing.num_tokens());
  return detail::sum_over_tokens(routing.num_tokens(), num_experts, step,
                                 [&](Index t, double* count) { detail::count_choices_of(t, routing, options, count); });
}

/// Load-balancing loss: num_experts * sum_e f_e P_e, where f_e is the share of counted choices that name e and P_e the
/// mean probability of e, both over valid tokens. Exactly 1 when all f_e = P_e = 1 / num_experts, for any k and for
/// ragged routings; it can be below 1 when f and P disagree. 0 without valid tokens or choices.
/// With options.counts of a global batch, the mean of the losses of its parts, weighted by their valid tokens, is the
/// loss of the whole, and so are the gradients. With f of its own, every part is pushed to be even by itself, and the
/// mean is another number.
///   probability  [num_tokens, num_experts], rows that sum to 1      routing  of the same tokens
/// Returns the loss before `weight`; adds weight * dL/dprobability to gradient.probability (f is a constant). The
/// expert-level balance of DeepSeekMoE is the same function. Throws std::invalid_argument on shapes that differ, and
/// for counts that are negative, NaN, above 2^53, or all zero where this routing has some. O(num_tokens * num_experts),
/// in parallel, the same bits for any number of threads; allocates partial sums. Fedus, Zoph & Shazeer, "Switch
/// Transformers", eq. 4 (arXiv:2101.03961); Lepikhin et al., GShard (arXiv:2006.16668); counts: Qiu et al., "Demons in
/// the Detail: On Implementing Load Balancing Loss for Training Specialized Mixture-of-Expert Models"
/// (arXiv:2501.11873).
template <class S>
double load_balancing_loss(const MatrixView<S>& probability, const Routing<S>& routing, const Step& step, double weight,
                           RoutingGradient<S>& gradient, const LoadBalancingOptions& options = {}) {
  constexpr const char* kName = "moe::load_balancing_loss";
  const Index num_tokens = probability.rows(), num_experts = probability.cols();
  detail::require_routing(kName, routing, num_tokens, num_experts);
  step.validate(kName, num_tokens);
  if (!options.counts.empty()) detail::require_counts(kName, options.counts, num_experts);
  auto& dprobability =
      detail::accumulator(kName, "gradient.probability", gradient.probability, num_tokens, num_experts);

  auto sums = detail::sum_over_tokens(num_tokens, 2 * num_experts, step, [&](Index t, double* probability_sum) {
    double* count = probability_sum + num_experts;
    const S* p = probability.row(t).data();
    for (Index e = 0; e < num_experts; ++e) probability_sum[e] += static_cast<double>(p[e]);
    detail::count_choices_of(t, routing, options, count);
  });

  const double* probability_sum = sums.data();
  double* count = sums.data() + num_experts;
  if (!options.counts.empty()) {
    const double sum = std::accumulate(options.counts.begin(), options.counts.end(), 0.0);
    const bool has_choices = std::any_of(count, count + num_experts, [](double value) { return value > 0; });
    if (sum < std::numeric_limits<double>::min() && (sum > 0 || has_choices))
      fail(kName, ": counts add up to ", sum, ", expected a positive number, as this routing has choices");
    std::ranges::copy(options.counts, count);
  }
  double product = 0, choices = 0;
  for (Index e = 0; e < num_experts; ++e) {
    product = simd::fma(probability_sum[e], count[e], product);
    choices += count[e];
  }
  const auto num_valid = static_cast<double>(step.num_valid(num_tokens));
  if (choices == 0 || num_valid == 0) return 0;
  const double scale = static_cast<double>(num_experts) / (choices * num_valid);
  for (Index e = 0; e < num_experts; ++e) count[e] *= weight * scale;  // the gradient, the same for all tokens
  detail::for_each_valid(num_tokens, step, [&](Index t) {
    S* dp = dprobability.row(t).data();
    for (Index e = 0; e < num_experts; ++e) dp[e] += static_cast<S>(count[e]);
  });
  return scale * product;
}

}  // namespace moe::inline MOE_ABI
