// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/routing/routing.hpp"
#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI {

/// Which experts the tokens of some sequences went to, in order: what caches, placements and measures of locality are
/// told of a model.
///   moe::RoutingTrace trace(layer.num_experts());
///   layer.forward(tokens, output, workspace);
///   trace.add(workspace.routing);  // after each call; before a new sequence: trace.begin_sequence()
/// Kept choices alone, each expert of a token once, in the order of the choices; 4 bytes a choice, 8 a token. A plain
/// value; one per thread.
class RoutingTrace {
 public:
  /// Throws std::invalid_argument unless 1 <= num_experts < 2^32.
  explicit RoutingTrace(Index num_experts) : num_experts_(num_experts) {
    if (num_experts < 1 || !std::in_range<std::uint32_t>(num_experts))
      fail("moe::RoutingTrace: num_experts = ", num_experts, ", expected 1 <= num_experts < 2^32");
  }

  Index num_experts() const { return num_experts_; }
  Index num_tokens() const { return std::ssize(token_begin_) - 1; }
  Index num_choices() const { return std::ssize(expert_); }
  Index num_sequences() const { return std::ssize(sequence_begin_); }
  /// Experts of token t.
  std::span<const std::uint32_t> experts(Index t) const {
    const auto at = static_cast<std::size_t>(t), first = static_cast<std::size_t>(token_begin_[at]);
    return std::span(expert_).subspan(first, static_cast<std::size_t>(token_begin_[at + 1]) - first);
  }
  /// Scores of all experts for token t, or nothing where they were not given.
  std::span<const float> scores(Index t) const {
    const auto width = has_scores() ? static_cast<std::size_t>(num_experts_) : 0;
    return std::span(score_).subspan(static_cast<std::size_t>(t) * width, width);
  }
  bool has_scores() const { return !score_.empty(); }
  /// Tokens of sequence i are [sequence_begin(i), sequence_begin(i + 1)).
  Index sequence_begin(Index i) const {
    return i == num_sequences() ? num_tokens() : static_cast<Index>(sequence_begin_[static_cast<std::size_t>(i)]);
  }

  /// The next token is the first of a sequence: no segment of tokens goes across. Twice in a row is once.
  void begin_sequence() { starts_sequence_ = true; }
  /// Whether the next token is the first of a sequence.
  bool begins_sequence() const { return starts_sequence_; }

  /// Adds the valid tokens of a batch, which follow those before. Throws std::invalid_argument, before anything is
  /// added, for an expert out of range, a step of other tokens, and where tokens before had scores.
  template <class S>
  void add(const Routing<S>& routing, const Step& step = {}) {
    require_batch("moe::RoutingTrace::add", routing, step);
    if (has_scores()) fail("moe::RoutingTrace::add: no scores, expected some, as for the tokens before");
    add_tokens(routing, step);
  }
  /// The same with what the gate thought of all experts, losers included: logits or probabilities, [num_tokens,
  /// num_experts]. Throws as the other, for scores of another shape and where tokens before had none.
  template <class S>
  void add(const Routing<S>& routing, const MatrixView<S>& scores, const Step& step = {}) {
    constexpr const char* kFunction = "moe::RoutingTrace::add";
    require_batch(kFunction, routing, step);
    detail::require_shape(kFunction, "scores", scores, routing.num_tokens(), num_experts_);
    if (num_tokens() > 0 && !has_scores())
      fail(kFunction, ": scores, expected none, as there were none for the tokens before");
    add_tokens(routing, step);
    for (Index t = 0; t < routing.num_tokens(); ++t)
      if (step.is_valid(t))
        for (Index e = 0; e < num_experts_; ++e) score_.push_back(static_cast<float>(scores(t, e)));
  }
  /// Adds a token from elsewhere. Throws std::invalid_argument for an expert out of range or named twice.
  void add(std::span<const Index> experts) {
    constexpr const char* kFunction = "moe::RoutingTrace::add";
    if (has_scores()) fail(kFunction, ": no scores, expected some, as for the tokens before");
    Distinct<Index> distinct(experts.size());
    for (std::size_t i = 0; i < experts.size(); ++i) {
      if (experts[i] < 0 || experts[i] >= num_experts_)
        fail(kFunction, ": expert ", experts[i], ", expected 0 <= expert < num_experts = ", num_experts_);
      if (!distinct.add(experts[i], experts.first(i)))
        fail(kFunction, ": expert ", experts[i], " twice, expected each expert of a token once");
    }
    begin_token();
    for (const Index e : experts) expert_.push_back(static_cast<std::uint32_t>(e));
    end_token();
  }

  friend bool operator==(const RoutingTrace&, const RoutingTrace&) = default;

 private:
  /// Whether experts of a token are new: few are looked through, of many there is a tree.
  template <class Id>
  class Distinct {
   public:
    explicit Distinct(std::size_t most) : has_few_(most <= 32) {}
    bool add(Id expert, std::span<const Id> before) {
      return has_few_ ? std::ranges::count(before, expert) == 0 : tree_.insert(expert).second;
    }

   private:
    bool has_few_;
    std::set<Id> tree_;
  };

  template <class S>
  void require_batch(const char* function, const Routing<S>& routing, const Step& step) const {
    detail::require_experts(function, routing, num_experts_);
    step.validate(function, routing.num_tokens());
  }
  template <class S>
  void add_tokens(const Routing<S>& routing, const Step& step) {
    for (Index t = 0; t < routing.num_tokens(); ++t) {
      if (!step.is_valid(t)) continue;
      begin_token();
      const auto first = static_cast<std::size_t>(token_begin_.back());
      Distinct<std::uint32_t> distinct(routing.experts(t).size());
      for (Index s = 0; s < std::ssize(routing.experts(t)); ++s) {
        const auto slot = static_cast<std::size_t>(s);
        const auto expert = static_cast<std::uint32_t>(routing.experts(t)[slot]);
        if (routing.dropped(t)[slot] == 0 && distinct.add(expert, std::span(std::as_const(expert_)).subspan(first)))
          expert_.push_back(expert);
      }
      end_token();
    }
  }
  void begin_token() {
    if (starts_sequence_) sequence_begin_.push_back(num_tokens());
    starts_sequence_ = false;
  }
  void end_token() { token_begin_.push_back(std::ssize(expert_)); }

  Index num_experts_;
  std::vector<std::int64_t> token_begin_ = {0}, sequence_begin_;
  std::vector<std::uint32_t> expert_;
  std::vector<float> score_;
  bool starts_sequence_ = true;
};

/// One trace of several layers that the same tokens went through: expert e of layer l is expert (of the layers before
/// it) + e, and each token becomes a row per layer, in their order, as decoding goes through a model. For a cache that
/// layers share. Scores are left out. Throws std::invalid_argument for no layers, and for traces of other tokens or
/// sequences than the first.
inline RoutingTrace join_layers(std::span<const RoutingTrace> layers) {
  constexpr const char* kFunction = "moe::join_layers";
  if (layers.empty()) fail(kFunction, ": 0 layers, expected at least 1");
  const RoutingTrace& first = layers.front();
  Index num_experts = 0;
  for (const RoutingTrace& layer : layers) {
    num_experts += layer.num_experts();
    bool same = layer.num_tokens() == first.num_tokens() && layer.num_sequences() == first.num_sequences();
    for (Index i = 0; same && i < first.num_sequences(); ++i) same = layer.sequence_begin(i) == first.sequence_begin(i);
    if (!same)
      fail(kFunction, ": layer ", &layer - layers.data(), " has ", layer.num_tokens(), " tokens in ",
           layer.num_sequences(), " sequences, expected the ", first.num_tokens(), " in ", first.num_sequences(),
           " of layer 0");
  }
  RoutingTrace joined(num_experts);
  std::vector<Index> ids;
  for (Index sequence = 0; sequence < first.num_sequences(); ++sequence) {
    joined.begin_sequence();
    for (Index t = first.sequence_begin(sequence); t < first.sequence_begin(sequence + 1); ++t) {
      Index offset = 0;
      for (const RoutingTrace& layer : layers) {
        ids.clear();
        for (const std::uint32_t e : layer.experts(t)) ids.push_back(offset + static_cast<Index>(e));
        joined.add(ids);
        offset += layer.num_experts();
      }
    }
  }
  return joined;
}

/// What a cache is asked for if every `tokens_per_step` tokens in a row are one batch: their experts, ascending, each
/// once. Steps without experts are left out, as no set is asked for them. Throws std::invalid_argument unless
/// tokens_per_step is at least 1.
inline std::vector<std::vector<Index>> steps_of(const RoutingTrace& trace, Index tokens_per_step = 1) {
  if (tokens_per_step < 1) fail("moe::steps_of: tokens_per_step = ", tokens_per_step, ", expected at least 1");
  std::vector<std::vector<Index>> steps;
  std::vector<Index> experts;
  for (Index t = 0; t < trace.num_tokens(); ++t) {
    for (const std::uint32_t e : trace.experts(t)) experts.push_back(static_cast<Index>(e));
    if ((t + 1) % tokens_per_step != 0 && t + 1 != trace.num_tokens()) continue;
    std::ranges::sort(experts);
    experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
    if (!experts.empty()) steps.push_back(experts);
    experts.clear();
  }
  return steps;
}

}  // namespace moe::inline MOE_ABI
