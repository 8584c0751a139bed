// SPDX-License-Identifier: MIT
#pragma once

#include "moe/routing/balance/load_balancing.hpp"
#include "moe/routing/capacity/capacity_options.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

inline CapacityOptions in_both_phases(CapacityOptions options) {
  options.evaluation_factor = options.factor;
  options.validate();
  return options;
}

}  // namespace detail

/// How public code bases limit their experts, as options of moe::WithCapacity: T tokens that compete, E experts, k
/// choices of each token, f the factor.
///
///   code base          | capacity                     | compete  | served first           | weights of kept choices
///   -------------------|------------------------------|----------|------------------------|--------------------------
///   GShard, Switch     | max(ceil(f k T / E), min)    | all, seq | first choices, tokens  | as they are
///   DeepSpeed, top 1   | max(ceil(f T / E), min)      | all      | random tokens, or any  | as they are
///   DeepSpeed, top 2   | max(ceil(2 f T / E), min)    | all      | first choices, tokens  | over the kept sum
///   DeepSpeed, top k   | max(ceil(f k T / E), min)    | all      | largest p, or tokens   | over the kept sum
///   Tutel              | k floor(f ceil(T / E))       | all      | first choices, tokens  | over the sum, before drops
///   FastMoE, GShard    | floor(k ceil(f T) / E)       | all      | tokens                 | softmax of k logits
///   FastMoE, Switch    | ceil(f T / E)                | all      | tokens                 | as they are
///   MegaBlocks         | floor(f k T / E)             | all      | tokens                 | as they are, or by p-norm
///   Megatron-LM        | ceil(f k T / E)              | all      | largest weight         | as they are
///   tensor2tensor      | max(floor(f T / E), min)     | sequence | first choices, tokens  | over the sum, before drops
///   ST-MoE (lucidrains)| the same                     | sequence | the same               | the same
///   T5X, flaxformer    | max(round(f T / E), min)     | group    | first choices, tokens  | as they are
///   NLLB (HF)          | a constant, or 2 ceil(T / E) | all      | first choices, tokens  | over the kept sum
///
/// "First choices, tokens": the first choices of all tokens, then the second ones, in token order; Tutel, T5X
/// and NLLB know "tokens with the largest score first" as well (ServiceOrder::ByScore). A factor counts as the decimal
/// that it is written as: where f times the load is a whole number, code that rounds in doubles may give one more or
/// less. Tutel: f = 0 never drops, f < 0 is |f| with smaller buffers.
///
/// Balance losses, in terms of load_balancing_loss() = E sum_e f_e P_e, which is 1 at balance:
///
///   code base                        | options                   | times
///   ---------------------------------|---------------------------|------------------------------------------------
///   DeepSpeed top 1, 2; Tutel;       | First                     | 1
///     FastMoE GShard; tensor2tensor  |                           |
///   DeepSpeed top k                  | All                       | 1
///   Hugging Face; T5X                | All                       | k: f is a share of tokens
///   MegaBlocks                       | All                       | its weight / number of layers
///   Megatron-LM                      | All                       | its coefficient; sigmoid scores sum to 1 first
///   ST-MoE (lucidrains)              | First, DroppedChoices::   | share of first choices that were kept: f is a
///                                    |   Ignore                  |   share of tokens, after drops
///   FastMoE Switch                   | All, DroppedChoices::     | T / number of kept choices
///                                    |   Ignore                  |
///   Switch (HF)                      | All, of each sequence     | 1, averaged over sequences
///
/// Router z-losses are z_loss() times a weight in all of them; CV^2 losses divide by n - 1: Variance::Sample.
namespace conventions {

/// DeepSpeed's drop policies: which choices a full expert keeps.
enum class DropPolicy { Position, Probability };

// All of these limit inference like training; set evaluation_factor for another. They throw std::invalid_argument on
// numbers that CapacityOptions refuses.

/// DeepSpeed-MoE, top 1. Order: Random for random token selection (use_rts), by random numbers of ours, else
/// ByPosition.
inline CapacityOptions deepspeed_top_1(double factor, Index min_capacity = 4,
                                       ServiceOrder order = ServiceOrder::Random) {
  return moe::detail::in_both_phases({.factor = factor, .min_capacity = min_capacity, .order = order});
}

/// DeepSpeed-MoE, top 2.
inline CapacityOptions deepspeed_top_2(double factor, Index min_capacity = 4) {
  return moe::detail::in_both_phases({.factor = factor,
                                      .min_capacity = min_capacity,
                                      .weights = KeptWeights::Renormalised,
                                      .floor = std::numeric_limits<float>::epsilon()});
}

/// DeepSpeed-MoE, top k.
inline CapacityOptions deepspeed_top_k(double factor, Index min_capacity = 4,
                                       DropPolicy policy = DropPolicy::Probability) {
  CapacityOptions options = deepspeed_top_2(factor, min_capacity);
  options.order = policy == DropPolicy::Probability ? ServiceOrder::ByWeight : ServiceOrder::ByToken;
  return options;
}

/// Tutel: factor 0 never drops, a negative one is its absolute value. For gates whose weights are scores, not
/// normalised.
///   normalise  k > 1 and normalize_gate       by_score  batch_prioritized_routing
struct TutelOptions {
  double factor = 1;
  Index alignment = 1;
  bool normalise = true;
  bool by_score = false;
};
inline CapacityOptions tutel(const TutelOptions& options) {
  return moe::detail::in_both_phases(
      {.factor = options.factor == 0 ? kUnlimited : std::abs(options.factor),
       .min_capacity = 0,
       .order = options.by_score ? ServiceOrder::ByScore : ServiceOrder::ByPosition,
       .weights = options.normalise ? KeptWeights::NormalisedFirst : KeptWeights::AsTheyAre,
       .rounding = CapacityRounding::ShareUp,
       .multiple = options.alignment});
}

/// FastMoE, gates "gshard" (top 2) and "switch" (top 1); its kernel serves in no fixed order, this one by token.
inline CapacityOptions fastmoe_gshard(double rate) {
  return moe::detail::in_both_phases(
      {.factor = rate, .min_capacity = 0, .order = ServiceOrder::ByToken, .rounding = CapacityRounding::TokensUp});
}
inline CapacityOptions fastmoe_switch(double rate) {
  return moe::detail::in_both_phases({.factor = rate, .min_capacity = 0, .order = ServiceOrder::ByToken});
}

/// MegaBlocks, where it drops ("moe", not "dmoe").
inline CapacityOptions megablocks(double factor) {
  return moe::detail::in_both_phases(
      {.factor = factor, .min_capacity = 0, .order = ServiceOrder::ByToken, .rounding = CapacityRounding::Down});
}

/// Megatron-LM, moe_token_drop_policy "probs" or "position".
inline CapacityOptions megatron(double factor, DropPolicy policy = DropPolicy::Probability) {
  return moe::detail::in_both_phases(
      {.factor = factor,
       .min_capacity = 0,
       .order = policy == DropPolicy::Probability ? ServiceOrder::ByWeight : ServiceOrder::ByToken});
}

/// tensor2tensor, as lucidrains' mixture-of-experts and st-moe have it. For gates whose weights are not normalised.
inline CapacityOptions tensor2tensor(double factor, Index min_capacity = 4) {
  return moe::detail::in_both_phases({.factor = factor,
                                      .min_capacity = min_capacity,
                                      .weights = KeptWeights::NormalisedFirst,
                                      .scope = CapacityScope::Group,
                                      .load = CapacityLoad::Tokens,
                                      .rounding = CapacityRounding::Down,
                                      .floor = 1e-9});
}

/// T5X and flaxformer, tokens choose. Order: ByScore for batch_prioritized_routing.
inline CapacityOptions t5x(double factor, Index min_capacity = 4, ServiceOrder order = ServiceOrder::ByPosition) {
  return moe::detail::in_both_phases({.factor = factor,
                                      .min_capacity = min_capacity,
                                      .order = order,
                                      .scope = CapacityScope::Group,
                                      .load = CapacityLoad::Tokens,
                                      .rounding = CapacityRounding::Nearest});
}

}  // namespace conventions

}  // namespace moe::inline MOE_ABI
