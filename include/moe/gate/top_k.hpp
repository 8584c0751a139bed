// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/taken_groups.hpp"
#include "moe/gate/rule/top_k_blocks.hpp"

namespace moe::inline MOE_ABI {

/// Limits a token to the experts of a few groups. Group g holds the num_experts / count experts from
/// g * num_experts / count on; its rank is the sum of its `best` largest selection scores (DeepSeek-V2: 1, V3: 2) or
/// logits.
struct ExpertGroups {
  Index count = 1;  ///< divides num_experts; 1 = no limit
  Index kept = 1;   ///< groups a token may use
  Index best = 1;
  GroupRank rank = GroupRank::Scores;

  friend bool operator==(const ExpertGroups&, const ExpertGroups&) = default;
};

/// Sends every token to its k best experts, in descending order of what they are selected by; ties go to the lower
/// expert.
///   score_i  = softmax(logits)_i, sigmoid(logits_i) or sqrt(softplus(logits_i))
///   select     the k largest score_i + selection_bias_i, among the experts of the best groups
///   weight_i = scale * score_i / max(norm of the chosen scores + epsilon, floor)
///              with the scores of logits + weight_bias; with Normalise::Off scale * score_i
/// The default is Mixtral: the weights of a token are the softmax of its k chosen logits and sum to 1. What others ask
/// for: Switch switch_transformer(); DeepSeek-V3 {.k = 8, .score = Score::Sigmoid, .epsilon = 1e-20, .scale = 2.5,
/// .selection_bias = b, .groups = {8, 4, 2}}; Llama 4 {.k = 1, .score = Score::Sigmoid, .normalise = Normalise::Off}.
/// Gradients, selection frozen:
///   Softmax and Sum    weights are a softmax over the chosen: logits of the others get exactly zero.
///   Softmax and Off    dL/dlogits_i = scale * sum_{j chosen} dw_j p_j ([i = j] - p_i): all logits learn, at k = 1 too.
///   Sigmoid, SqrtSoftplus
///                      only the chosen logits get gradient.
/// With k = 1 and anything but Off, the weight is `scale` whatever the logits (but for a large epsilon or floor, see
/// has_constant_weights()): no gradient of the task reaches the router. Inference is as good as ever; backward throws
/// std::invalid_argument unless constant_weights accepts it.
/// A logit of -infinity masks an expert; each token needs k that are not masked, in the groups it may use.
/// Immutable, share freely. route is O(k num_experts / lanes) per token, with groups their
/// number squared more, and allocates nothing when warm. All members throw std::invalid_argument for a NaN or +infinity
/// in the logits of a valid token. Shazeer et al. (arXiv:1701.06538); Fedus et al., "Switch Transformers"
/// (arXiv:2101.03961); selection bias: Wang et al. (arXiv:2408.15664); groups: DeepSeek-V2 (arXiv:2405.04434); weight
/// bias: Nguyen et al. (arXiv:2309.13850).
struct TopKGate {
  Index k = 2;  ///< in [1, num_experts]
  Score score = Score::Softmax;
  Normalise normalise = Normalise::Sum;
  double epsilon = 0;  ///< added to the norm; >= 0
  double scale = 1;
  double floor = 0;   ///< least divisor; >= 0 (ERNIE 4.5: 1e-12); no gradient through the norm below it
  double norm_p = 2;  ///< p of Normalise::PNorm; >= 1
  Eigen::RowVectorXd selection_bias = {};  ///< [num_experts] or empty; set by a balance controller, not learned
  Eigen::RowVectorXd weight_bias = {};     ///< [num_experts] or empty; learnable, never seen by the selection
  ExpertGroups groups = {};
  ConstantWeights constant_weights = ConstantWeights::Refuse;  ///< in backward, with k = 1

  static constexpr bool kPerToken = true;

  /// The gate of the Switch Transformer: the best expert, weighed by its probability as it is. Through that the router
  /// learns, and all its logits do. Fedus, Zoph & Shazeer, "Switch Transformers", section 2.1 (arXiv:2101.03961).
  static TopKGate switch_transformer() { return {.k = 1, .normalise = Normalise::Off}; }

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index num_experts) const;

  bool makes_one_choice() const { return k == 1; }

  /// Whether each weight is `scale`, or so near to it that a router learns nothing, whatever the logits: one choice,
  /// divided by itself. An epsilon below 1/100, and a floor that the best of num_experts scores does not fall below (of
  /// a softmax 1 / num_experts, else taken as 1/100), change nothing about that.
  bool has_constant_weights(Index num_experts) const {
    const double least = score == Score::Softmax ? 1.0 / static_cast<double>(num_experts) : 0.01;
    return makes_one_choice() && normalise != Normalise::Off && epsilon < 0.01 && floor <= least;
  }

  /// Throws std::invalid_argument where the router of several experts would learn nothing; see constant_weights.
  void require_backward(Index num_experts) const {
    if (num_experts > 1 && has_constant_weights(num_experts) && constant_weights == ConstantWeights::Refuse)
      fail(
          "moe::TopKGate::backward: k is 1 and weights are normalised, which makes each of them the same and leaves "
          "the ",
          "router without gradient, expected TopKGate::switch_transformer(), normalise = Normalise::Off, or ",
          "constant_weights = ConstantWeights::Accept where other losses alone train the router");
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    detail::route_top_k_blocks<S>("moe::TopKGate::route", rule<S>(logits), k, logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::TopKGate::probabilities", rule<S>(logits), logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::TopKGate::replay", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                TopKGate& gradient) const {
    constexpr const char* kName = "moe::TopKGate::backward";
    require_backward(logits.cols());
    backward_tokens<S>(kName, rule<S>(logits), logits, context, routing, dweight, dprobability, dlogits);
    if (weight_bias.size() != 0) detail::add_column_sums(kName, dlogits, gradient.weight_bias);
  }

  /// Biases go with their experts. With groups, the ids of each group stand together, equally many of each: groups are
  /// then those of the same experts, of which a token may use as many as before, or all. Throws std::invalid_argument
  /// otherwise; k stays, and must not exceed the experts that are left.
  TopKGate take(std::span<const Index> ids, Index num_experts) const;

  /// The biases of this gate, then those of `other`; likewise its groups, which must be of equal size. Throws
  /// std::invalid_argument unless both gates have the same biases or none, and are equal in all else.
  TopKGate concatenate(const TopKGate& other, Index num_experts, Index other_num_experts) const;

  /// The gate with which a layer whose experts stand f = `times` times in a row computes the same. The k best become
  /// f k copies, each with 1/f of the weight; with k = 1 the first copy alone is chosen, with all of it. What scale,
  /// epsilon and floor become follows from the norm of the copies' scores; scores of a softmax are 1/f of what they
  /// were, and so becomes the selection bias. Equal but for rounding, which may decide ties between groups or biased
  /// scores otherwise. Throws std::invalid_argument for times < 1.
  TopKGate duplicate(Index times, Index num_experts) const;

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    if (first.weight_bias.size() != 0) f("weight_bias", first.weight_bias, rest.weight_bias...);
  }
  template <class F, class First, class... Rest>
  static void state(F&& f, First& first, Rest&... rest) {
    if (first.selection_bias.size() != 0) f("selection_bias", first.selection_bias, rest.selection_bias...);
  }

 private:
  /// Groups of the taken experts.
  ExpertGroups groups_of(std::span<const Index> ids, Index num_experts) const;

  template <class S>
  detail::TopKRule<S, TopKGate> rule(const Logits<S>& logits) const {
    return {*this, logits.cols()};
  }
};

inline void TopKGate::validate(Index num_experts) const {
  if (k < 1 || k > num_experts) fail("moe::TopKGate: k is ", k, ", expected 1 <= k <= num_experts = ", num_experts);
  if (!(epsilon >= 0 && std::isfinite(epsilon))) fail("moe::TopKGate: epsilon is ", epsilon, ", expected >= 0");
  if (!(floor >= 0 && std::isfinite(floor))) fail("moe::TopKGate: floor is ", floor, ", expected >= 0");
  if (!(norm_p >= 1 && std::isfinite(norm_p))) fail("moe::TopKGate: norm_p is ", norm_p, ", expected >= 1");
  if (!std::isfinite(scale)) fail("moe::TopKGate: scale is ", scale, ", expected a finite number");
  detail::validate_bias("moe::TopKGate: selection_bias", selection_bias, num_experts);
  detail::validate_bias("moe::TopKGate: weight_bias", weight_bias, num_experts);
  if (groups.count < 1 || num_experts % groups.count != 0)
    fail("moe::TopKGate: groups.count is ", groups.count, ", expected a divisor of num_experts = ", num_experts);
  const Index group_size = num_experts / groups.count;
  if (groups.kept < 1 || groups.kept > groups.count)
    fail("moe::TopKGate: groups.kept is ", groups.kept, ", expected 1 <= kept <= count = ", groups.count);
  if (groups.best < 1 || groups.best > group_size)
    fail("moe::TopKGate: groups.best is ", groups.best, ", expected 1 <= best <= experts of a group = ", group_size);
  if (groups.rank == GroupRank::Logits && selection_bias.size() != 0)
    fail("moe::TopKGate: groups are ranked by logits with a selection_bias, expected none, or ranks by scores");
  if (k > groups.kept * group_size)
    fail("moe::TopKGate: k is ", k, ", expected at most the experts of the kept groups = ", groups.kept * group_size);
}

inline ExpertGroups TopKGate::groups_of(std::span<const Index> ids, Index num_experts) const {
  if (groups.count == 1) return groups;
  ExpertGroups result = groups;
  result.count = detail::count_taken_groups("moe::TopKGate::take", ids, num_experts / groups.count);
  result.kept = std::min(groups.kept, result.count);
  if (result.count == 1) result.best = 1;  // limits nothing any more
  return result;
}

inline TopKGate TopKGate::take(std::span<const Index> ids, Index num_experts) const {
  constexpr const char* kFunction = "moe::TopKGate::take";
  validate(num_experts);
  detail::require_ids(kFunction, ids, num_experts);
  if (std::ssize(ids) < k) fail(kFunction, ": ", ids.size(), " experts are left, expected at least k = ", k);
  TopKGate gate = *this;
  gate.selection_bias = detail::take_entries(kFunction, selection_bias, ids);
  gate.weight_bias = detail::take_entries(kFunction, weight_bias, ids);
  gate.groups = groups_of(ids, num_experts);
  gate.validate(std::ssize(ids));
  return gate;
}

inline TopKGate TopKGate::concatenate(const TopKGate& other, Index num_experts, Index other_num_experts) const {
  constexpr const char* kFunction = "moe::TopKGate::concatenate";
  validate(num_experts);
  other.validate(other_num_experts);
  const auto require = [](const char* name, const auto& a, const auto& b) {
    detail::require_equal_option(kFunction, name, a, b);
  };
  require("k", k, other.k);
  require("score", score, other.score);
  require("normalise", normalise, other.normalise);
  require("epsilon", epsilon, other.epsilon);
  require("scale", scale, other.scale);
  require("floor", floor, other.floor);
  require("norm_p", norm_p, other.norm_p);
  require("constant_weights", constant_weights, other.constant_weights);
  ExpertGroups others = other.groups;
  if (groups.count > 1 && others.count > 1) {
    require("the size of groups", num_experts / groups.count, other_num_experts / others.count);
    others.count = groups.count;
  }
  require("groups", groups, others);
  TopKGate gate = *this;
  gate.selection_bias = detail::join_entries(kFunction, "selection_bias", selection_bias, other.selection_bias);
  gate.weight_bias = detail::join_entries(kFunction, "weight_bias", weight_bias, other.weight_bias);
  if (groups.count > 1) gate.groups.count = groups.count + other.groups.count;
  return gate;
}

inline TopKGate TopKGate::duplicate(Index times, Index num_experts) const {
  validate(num_experts);
  if (times < 1) fail("moe::TopKGate::duplicate: times is ", times, ", expected at least 1");
  const auto repeated = [&](const Eigen::RowVectorXd& bias) {
    Eigen::RowVectorXd copies(detail::checked_product("moe::TopKGate::duplicate", bias.size(), times));
    for (Index e = 0; e < copies.size(); ++e) copies(e) = bias(e / times);
    return copies;
  };
  const auto f = static_cast<double>(times), share = score == Score::Softmax ? 1 / f : 1.0;  // of a copy's score
  const double chosen = k == 1 ? 1 : f;  // copies of an expert that are chosen together
  const double p = normalise == Normalise::Sum ? 1 : normalise == Normalise::Euclidean ? 2 : norm_p;
  const double norm = normalise == Normalise::Off ? 1 : share * std::pow(chosen, 1 / p);  // of the copies' scores
  TopKGate gate = *this;
  gate.k = k == 1 ? 1 : detail::checked_product("moe::TopKGate::duplicate", k, times);
  gate.scale = scale * norm / (chosen * share);
  gate.epsilon = epsilon * norm;
  gate.floor = floor * norm;
  gate.selection_bias = share * repeated(selection_bias);
  gate.weight_bias = repeated(weight_bias);
  if (groups.count > 1) gate.groups.best = detail::checked_product("moe::TopKGate::duplicate", groups.best, times);
  return gate;
}

static_assert(DifferentiableGate<TopKGate, float> && DifferentiableGate<TopKGate, double>);

}  // namespace moe::inline MOE_ABI
