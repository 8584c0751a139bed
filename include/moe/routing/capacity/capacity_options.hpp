// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/core/error.hpp"
#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI {

/// A capacity factor that never drops.
inline constexpr double kUnlimited = std::numeric_limits<double>::infinity();

/// Who is served first. Equal keys: the earlier token, then the earlier choice.
enum class ServiceOrder {
  ByPosition,  ///< first choices of all tokens before any second choice, earlier tokens first (GShard, Switch)
  ByScore,     ///< the same, tokens with the larger largest weight first (batch-prioritised, V-MoE)
  Random,      ///< the same, tokens by a random number keyed by token id (random token selection, DeepSpeed)
  ByToken,     ///< all choices of a token before those of the next (MegaBlocks, DeepSpeed's "position")
  ByWeight,    ///< choices with the larger weight first: each expert keeps its heaviest (DeepSpeed's "probs")
};

/// What happens to the weights of a token once drops are decided.
enum class KeptWeights {
  AsTheyAre,
  Renormalised,     ///< divided by the sum over kept choices, dropped ones or not, in every phase (GShard)
  NormalisedFirst,  ///< divided by the sum over all choices, before drops: what a drop takes away is lost (Tutel)
};

/// Which tokens compete for the places of an expert.
enum class CapacityScope {
  Batch,  ///< all
  Group,  ///< those with the same step.group_id; capacities are of that group's choices (Switch: a sequence)
};

/// What the factor of a capacity counts.
enum class CapacityLoad {
  Choices,  ///< the balanced load is (number of choices) / num_experts
  Tokens,   ///< it is num_tokens / num_experts however many experts a token chooses (tensor2tensor)
};

/// How a share of the load becomes a number of places: of factor f, T tokens, E experts, k choices per token (the
/// ceiling of their mean; 1 with CapacityLoad::Tokens). Up and down count a factor as the decimal that it is written
/// as: 1.1 * 100 / 10 is 11 here and in no double.
enum class CapacityRounding {
  Up,        ///< ceil(f k T / E)
  Down,      ///< floor(f k T / E) (MegaBlocks, tensor2tensor)
  Nearest,   ///< f k T / E to the nearest whole number, halves to the even one (T5X)
  ShareUp,   ///< k floor(f ceil(T / E)) (Tutel)
  TokensUp,  ///< floor(k ceil(f T) / E) (FastMoE)
};

/// How many choices an expert takes and which are dropped. What public code bases mean by a capacity, as values of
/// these options: routing/capacity/conventions.hpp. A capacity that is a constant, in both phases:
///   {.factor = 0, .evaluation_factor = 0, .min_capacity = 64}
struct CapacityOptions {
  double factor = 1.25;                   ///< in training, times the balanced load; 0: min_capacity alone decides
  double evaluation_factor = kUnlimited;  ///< in inference: nothing is dropped
  Index min_capacity = 4;
  Index evaluation_min_capacity = -1;  ///< the same in inference; negative: min_capacity there, too
  ServiceOrder order = ServiceOrder::ByPosition;
  KeptWeights weights = KeptWeights::AsTheyAre;
  CapacityScope scope = CapacityScope::Batch;
  CapacityLoad load = CapacityLoad::Choices;
  CapacityRounding rounding = CapacityRounding::Up;
  Index multiple = 1;             ///< capacities are rounded up to a multiple of this
  Index evaluation_multiple = 0;  ///< the same in inference; 0: multiple there, too
  double floor = 0;               ///< least sum that weights are divided by; >= 0
  double evaluation_scale = 1;    ///< of the final weights in inference: 1 - (dropout of expert outputs in training)

  Index least(Phase phase) const {
    return phase == Phase::Inference && evaluation_min_capacity >= 0 ? evaluation_min_capacity : min_capacity;
  }
  Index multiple_of(Phase phase) const {
    return phase == Phase::Inference && evaluation_multiple > 0 ? evaluation_multiple : multiple;
  }
  double factor_of(Phase phase) const { return phase == Phase::Training ? factor : evaluation_factor; }

  /// Throws std::invalid_argument unless factors, min_capacity and floor are at least 0, multiple at least 1 and
  /// evaluation_scale is finite.
  void validate() const {
    if (!(factor >= 0)) fail("moe::CapacityOptions: factor is ", factor, ", expected at least 0");
    if (!(evaluation_factor >= 0))
      fail("moe::CapacityOptions: evaluation_factor is ", evaluation_factor, ", expected at least 0");
    constexpr Index kMost = Index{1} << 53;  // sums of two do not overflow
    if (min_capacity > kMost || evaluation_min_capacity > kMost || multiple > kMost || evaluation_multiple > kMost)
      fail("moe::CapacityOptions: a minimum or a multiple is above 2^53, expected at most that");
    if (min_capacity < 0) fail("moe::CapacityOptions: min_capacity is ", min_capacity, ", expected at least 0");
    if (multiple < 1) fail("moe::CapacityOptions: multiple is ", multiple, ", expected at least 1");
    if (evaluation_multiple < 0)
      fail("moe::CapacityOptions: evaluation_multiple is ", evaluation_multiple, ", expected at least 0");
    if (!(floor >= 0)) fail("moe::CapacityOptions: floor is ", floor, ", expected at least 0");
    if (!std::isfinite(evaluation_scale))
      fail("moe::CapacityOptions: evaluation_scale is ", evaluation_scale, ", expected a finite number");
  }

  friend bool operator==(const CapacityOptions&, const CapacityOptions&) = default;
};

/// What asks for places: valid tokens and their choices, dropped or not (num_tokens * k where k is fixed).
struct CapacityDemand {
  Index num_tokens = 0;
  Index num_choices = 0;
};

namespace detail {

/// ceil and floor of a product that a few roundings may have moved past the whole number it is: 4 ulp of slack.
inline constexpr double kCapacitySlack = 4 * std::numeric_limits<double>::epsilon();
inline double ceil_of(double x) { return std::ceil(x * (1 - kCapacitySlack)); }
inline double floor_of(double x) { return std::floor(x * (1 + kCapacitySlack)); }

inline double share_of_demand(const CapacityOptions& options, double factor, const CapacityDemand& demand,
                              double num_experts) {
  const auto tokens = static_cast<double>(demand.num_tokens), choices = static_cast<double>(demand.num_choices);
  const bool by_token = options.load == CapacityLoad::Tokens;
  const double load = by_token ? tokens : choices, k = by_token ? 1 : std::ceil(choices / tokens);
  switch (options.rounding) {
    case CapacityRounding::Up:
      return ceil_of(factor * load / num_experts);
    case CapacityRounding::Down:
      return floor_of(factor * load / num_experts);
    case CapacityRounding::Nearest:
      return std::nearbyint(factor * load / num_experts);
    case CapacityRounding::ShareUp:
      return k * floor_of(factor * std::ceil(tokens / num_experts));
    case CapacityRounding::TokensUp:
      return floor_of(k * ceil_of(factor * tokens) / num_experts);
  }
  fail("moe::expert_capacity: rounding is ", static_cast<int>(options.rounding), ", expected a CapacityRounding");
}

}  // namespace detail

/// Choices that each expert takes: the larger of the minimum of the phase and the share by options.rounding of the
/// factor of the phase, made a multiple of that of the phase. Never more than num_choices where that is unlimited.
/// Throws std::invalid_argument on a negative demand.
inline Index expert_capacity(const CapacityOptions& options, Phase phase, const CapacityDemand& demand,
                             Index num_experts) {
  if (demand.num_tokens < 0 || demand.num_choices < 0)
    fail("moe::expert_capacity: demand is ", demand.num_tokens, " tokens with ", demand.num_choices,
         " choices, expected at least 0");
  Index share = 0;
  if (demand.num_tokens > 0 && demand.num_choices > 0 && num_experts > 0) {
    const double exact = detail::share_of_demand(options, options.factor_of(phase), demand,  //
                                                 static_cast<double>(num_experts));
    constexpr double kLargest = 1LL << 53;  // beyond, and at infinity, all choices are enough
    share = exact < kLargest ? static_cast<Index>(exact) : demand.num_choices;
  }
  const Index capacity = std::max(options.least(phase), share);
  const Index multiple = options.multiple_of(phase), surplus = capacity % multiple;
  return surplus == 0 ? capacity : capacity + (multiple - surplus);
}

}  // namespace moe::inline MOE_ABI
