// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/score_weights.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// One token of a hash gate, whose key and row of the table have been checked.
template <class S, class G>
class HashRule {
 public:
  HashRule(const G& gate, const Step& step, Index num_experts)
      : gate_(gate),
        step_(step),
        scores_(gate.score, {.normalise = gate.normalise, .epsilon = gate.epsilon, .scale = gate.scale}, num_experts) {}

  Index choices(Index) const { return gate_.k(); }
  Index select(const Token<S>& token, std::span<Index> chosen) const {
    const Index key = static_cast<Index>(step_.key[static_cast<std::size_t>(token.index)]);
    for (std::size_t s = 0; s < chosen.size(); ++s)
      chosen[s] = static_cast<Index>(gate_.table(key, static_cast<Index>(s)));
    return std::ssize(chosen);
  }

  void probabilities(const Token<S>& token, std::span<S> p) const { scores_.scores(token.logits.data(), p.data()); }
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    if (gate_.weight == ChoiceWeight::Unit)
      std::ranges::fill(weights, static_cast<S>(gate_.scale / static_cast<double>(gate_.k())));
    else
      scores_.weigh(token.logits.data(), experts, token.scratch.data(), weights);
  }
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d) const {
    const bool learns = gate_.weight == ChoiceWeight::Score;
    scores_.backward(token.logits.data(), learns ? choices : Choices<S>{}, token.scratch.data(), d.data());
  }

 private:
  const G& gate_;
  const Step& step_;
  ScoreWeights<S> scores_;
};

}  // namespace detail

/// Looks the experts of a token up: those that the table has for its key, step.key[t], in the order of the row. Keys
/// are what tokens are known by outside of the layer, as their place in the vocabulary, a domain or a task; see
/// moe/gate/hash_tables.hpp for tables. The table decides alone: masks are not seen, nor are the logits,
///   weight_i = scale / k                                                                   ChoiceWeight::Unit
///   weight_i = scale * score_i / (norm of the chosen scores + epsilon), score of TopKGate  ChoiceWeight::Score
/// unless they weigh, which then trains the router as TopKGate does, the selection being frozen anyway; a masked expert
/// weighs nothing in a softmax. With Unit no gradient of the task reaches the logits: NoRouter will do.
/// probabilities() are the scores of the logits.
/// The table is state: kept, saved and loaded, not learned. Whole numbers in double, as all state is; validate() looks
/// at each, route() at the rows that it uses. Immutable, share freely. O(num_experts) per token, allocates nothing when
/// warm. route throws std::invalid_argument, naming the token, where a valid one has no key or one that is not in the
/// table; all members do for a NaN or +infinity in the logits of a valid token.
/// Roller et al., "Hash Layers For Large Sparse Models" (arXiv:2106.04426; there k = 1).
struct HashGate {
  Matrix<double> table = {};  ///< [num_keys, k], each row k distinct experts
  ChoiceWeight weight = ChoiceWeight::Unit;
  Score score = Score::Softmax;
  Normalise normalise = Normalise::Sum;
  double epsilon = 0;  ///< added to the norm; >= 0
  double scale = 1;
  ConstantWeights constant_weights = ConstantWeights::Refuse;  ///< in backward, with k = 1 and normalised scores

  static constexpr bool kPerToken = true;

  Index num_keys() const { return table.rows(); }
  Index k() const { return table.cols(); }

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn
  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("table", self.table...);
  }

  /// The same experts by the numbers that they have now, the first where one comes twice. Throws std::invalid_argument
  /// where a row names an expert that is left out.
  HashGate take(std::span<const Index> ids, Index num_experts) const;
  /// The keys of an expert are dealt out to its copies in turn, so that all of them are used and a token costs what it
  /// did. Scores of a softmax are shared by copies, which epsilon or, with Normalise::Off, scale makes up for.
  HashGate duplicate(Index times, Index num_experts) const;

  /// Throws std::invalid_argument, naming the first number that is out of range. O(num_keys k^2).
  void validate(Index num_experts) const;

  /// One whose weight the router is to learn by.
  bool makes_one_choice() const { return k() == 1 && weight == ChoiceWeight::Score; }

  /// Throws std::invalid_argument where scores are to teach the router of several experts, and cannot; see
  /// constant_weights.
  void require_backward(Index num_experts) const {
    if (num_experts > 1 && makes_one_choice() && normalise != Normalise::Off && epsilon < 0.01 &&
        constant_weights == ConstantWeights::Refuse)
      detail::fail_constant_weights("moe::HashGate::backward");
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kName = "moe::HashGate::route";
    const auto rule = this->rule<S>(logits, context.step);
    context.step.validate(kName, logits.rows());
    require_keys(kName, logits.rows(), logits.cols(), context.step);
    route_tokens<S>(kName, rule, logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::HashGate::probabilities", rule<S>(logits, context.step), logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::HashGate::replay", rule<S>(logits, context.step), logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                HashGate&) const {
    require_backward(logits.cols());
    backward_tokens<S>("moe::HashGate::backward", rule<S>(logits, context.step), logits, context, routing, dweight,
                       dprobability, dlogits);
  }

 private:
  void validate_numbers(Index num_experts) const;
  void require_row(const char* function, Index key, Index num_experts) const;
  void require_keys(const char* function, Index num_tokens, Index num_experts, const Step& step) const;

  template <class S>
  detail::HashRule<S, HashGate> rule(const Logits<S>& logits, const Step& step) const {
    validate_numbers(logits.cols());
    return {*this, step, logits.cols()};
  }
};

/// All but the entries of the table.
inline void HashGate::validate_numbers(Index num_experts) const {
  if (num_keys() < 1) fail("moe::HashGate: the table has 0 keys, expected at least 1");
  if (k() < 1 || k() > num_experts)
    fail("moe::HashGate: the table has ", k(), " experts per key, expected 1 to num_experts = ", num_experts);
  if (!(epsilon >= 0 && std::isfinite(epsilon))) fail("moe::HashGate: epsilon is ", epsilon, ", expected >= 0");
  if (!std::isfinite(scale)) fail("moe::HashGate: scale is ", scale, ", expected a finite number");
  detail::require_norm_without_p("moe::HashGate", normalise);
}

/// Throws std::invalid_argument unless all entries of a row are experts.
inline void HashGate::require_row(const char* function, Index key, Index num_experts) const {
  for (Index s = 0; s < k(); ++s)
    if (const double e = table(key, s); !(e >= 0 && e < static_cast<double>(num_experts) && e == std::floor(e)))
      fail(function, ": the table has expert ", e, " for key ", key,
           ", expected a whole number in [0, num_experts = ", num_experts, ")");
}

inline void HashGate::validate(Index num_experts) const {
  validate_numbers(num_experts);
  for (Index key = 0; key < num_keys(); ++key) {
    require_row("moe::HashGate", key, num_experts);
    for (Index s = 0; s < k(); ++s)
      for (Index before = 0; before < s; ++before)
        if (table(key, s) == table(key, before))
          fail("moe::HashGate: the table has expert ", table(key, s), " twice for key ", key,
               ", expected distinct experts");
  }
}

/// Throws std::invalid_argument unless every valid token has a key of the table, whose experts are there.
inline void HashGate::require_keys(const char* function, Index num_tokens, Index num_experts, const Step& step) const {
  for (Index t = 0; t < num_tokens; ++t) {
    if (!step.is_valid(t)) continue;
    if (step.key.empty()) fail(function, ": token ", t, " has no key, expected step.key to have one per token");
    const std::int64_t key = step.key[static_cast<std::size_t>(t)];
    if (key < 0 || key >= num_keys())
      fail(function, ": key of token ", t, " is ", key, ", expected 0 <= key < keys of the table = ", num_keys());
    require_row(function, static_cast<Index>(key), num_experts);
  }
}

inline HashGate HashGate::take(std::span<const Index> ids, Index num_experts) const {
  constexpr const char* kFunction = "moe::HashGate::take";
  validate(num_experts);
  detail::require_ids(kFunction, ids, num_experts);
  std::vector<double> number(static_cast<std::size_t>(num_experts), -1);
  for (std::size_t i = ids.size(); i-- > 0;) number[static_cast<std::size_t>(ids[i])] = static_cast<double>(i);
  HashGate gate = *this;
  for (Index key = 0; key < num_keys(); ++key)
    for (Index s = 0; s < k(); ++s) {
      const double now = number[static_cast<std::size_t>(table(key, s))];
      if (now < 0)
        fail(kFunction, ": the table has expert ", table(key, s), " for key ", key, ", expected one of the ids");
      gate.table(key, s) = now;
    }
  return gate;
}

inline HashGate HashGate::duplicate(Index times, Index num_experts) const {
  constexpr const char* kFunction = "moe::HashGate::duplicate";
  validate(num_experts);
  detail::require_times(kFunction, times);
  detail::checked_product(kFunction, num_experts, times);
  HashGate gate = *this;
  std::vector<Index> next(static_cast<std::size_t>(num_experts));
  for (Index key = 0; key < num_keys(); ++key)
    for (Index s = 0; s < k(); ++s) {
      const auto e = static_cast<Index>(table(key, s));
      gate.table(key, s) = static_cast<double>(e * times + next[static_cast<std::size_t>(e)]++ % times);
    }
  if (weight == ChoiceWeight::Score && score == Score::Softmax) {
    const auto f = static_cast<double>(times);
    (normalise == Normalise::Off ? gate.scale : gate.epsilon) *= normalise == Normalise::Off ? f : 1 / f;
  }
  return gate;
}

static_assert(DifferentiableGate<HashGate, float> && DifferentiableGate<HashGate, double>);

}  // namespace moe::inline MOE_ABI
