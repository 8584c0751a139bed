// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"
#include "moe/routing/context.hpp"
#include "moe/serve/routing_trace.hpp"

namespace moe::inline MOE_ABI {

/// Guesses which experts a layer will ask for, so that they can be prefetched while others compute; nothing that is
/// computed depends on it. One of your own needs:
///   void observe(moe::Index layer, std::span<const moe::Index> experts);   // a step has used these, ascending
///   void predict(moe::Index layer, std::vector<moe::Index>& experts);      // overwrites with a guess, likeliest first
/// Layers of a step are observed in their order, each after it was predicted. Names each expert once. A value; one per
/// thread.
///   predictor.predict(l + 1, guess);
///   cached[l + 1].prefetch(guess);         // bounded in bytes, dropped where it comes too late
///   layers[l].forward(...);                // meanwhile
template <class P>
concept PrefetchPredictor =
    requires(P& predictor, Index layer, std::span<const Index> experts, std::vector<Index>& guess) {
      { predictor.observe(layer, experts) } -> std::same_as<void>;
      { predictor.predict(layer, guess) } -> std::same_as<void>;
    };

namespace detail {

inline void require_layer(const char* function, Index layer, Index num_layers) {
  if (layer < 0 || layer >= num_layers) fail(function, ": layer ", layer, ", expected one in [0, ", num_layers, ")");
}

}  // namespace detail

/// What the layer used in the step before: right where tokens stay with a topic.
class PreviousStep {
 public:
  /// Throws std::invalid_argument for less than one layer; observe() and predict() do for layers that are not there.
  explicit PreviousStep(Index num_layers) {
    if (num_layers < 1) fail("moe::PreviousStep: ", num_layers, " layers, expected at least 1");
    last_.resize(static_cast<std::size_t>(num_layers));
  }
  void observe(Index layer, std::span<const Index> experts) {
    of("moe::PreviousStep::observe", layer).assign(experts.begin(), experts.end());
  }
  void predict(Index layer, std::vector<Index>& experts) { experts = of("moe::PreviousStep::predict", layer); }

 private:
  std::vector<Index>& of(const char* function, Index layer) {
    detail::require_layer(function, layer, std::ssize(last_));
    return last_[static_cast<std::size_t>(layer)];
  }
  std::vector<std::vector<Index>> last_;
};

/// Affinity of layers: how often expert e of a layer was used where expert f of the layer before was, counted as it
/// goes along. A guess is the `most` experts with the largest
///   sum over the f that the layer before has used of  count(f, e) / count(f)
/// of those that were seen, ties to the lower. Before the first layer comes the last one, of the step before.
/// num_layers * E^2 counts. Throws std::invalid_argument for layers and experts that are not there. Read-ME finds the
/// distribution sharply peaked (arXiv:2410.19123).
class NextLayerAffinity {
 public:
  /// Throws std::invalid_argument unless there are layers, experts and a guess of at least one.
  NextLayerAffinity(Index num_layers, Index num_experts, Index most) : num_experts_(num_experts), most_(most) {
    if (num_layers < 1 || num_experts < 1 || most < 1)
      fail("moe::NextLayerAffinity: ", num_layers, " layers of ", num_experts, " experts and guesses of ", most,
           ", expected at least 1 of each");
    const auto layers = static_cast<std::size_t>(num_layers), experts = static_cast<std::size_t>(num_experts);
    last_.resize(layers);
    uses_.assign(layers, std::vector<double>(experts));
    pairs_.assign(layers, std::vector<double>(experts * experts));
  }
  void observe(Index layer, std::span<const Index> experts) {
    detail::require_layer("moe::NextLayerAffinity::observe", layer, std::ssize(last_));
    for (const Index e : experts)
      if (e < 0 || e >= num_experts_)
        fail("moe::NextLayerAffinity::observe: expert ", e, ", expected one in [0, ", num_experts_, ")");
    const auto at = static_cast<std::size_t>(layer), before = previous(at);
    for (const Index f : last_[before]) {
      ++uses_[at][static_cast<std::size_t>(f)];
      for (const Index e : experts) ++pairs_[at][static_cast<std::size_t>(f * num_experts_ + e)];
    }
    last_[at].assign(experts.begin(), experts.end());
  }
  void predict(Index layer, std::vector<Index>& experts) {
    detail::require_layer("moe::NextLayerAffinity::predict", layer, std::ssize(last_));
    const auto at = static_cast<std::size_t>(layer);
    score_.assign(static_cast<std::size_t>(num_experts_), 0);
    for (const Index f : last_[previous(at)])
      for (Index e = 0; e < num_experts_ && uses_[at][static_cast<std::size_t>(f)] > 0; ++e)
        score_[static_cast<std::size_t>(e)] +=
            pairs_[at][static_cast<std::size_t>(f * num_experts_ + e)] / uses_[at][static_cast<std::size_t>(f)];
    experts.resize(score_.size());
    std::iota(experts.begin(), experts.end(), Index{0});
    std::erase_if(experts, [&](Index e) { return score_[static_cast<std::size_t>(e)] == 0; });
    std::ranges::stable_sort(experts, std::ranges::greater(),
                             [&](Index e) { return score_[static_cast<std::size_t>(e)]; });
    if (std::ssize(experts) > most_) experts.resize(static_cast<std::size_t>(most_));
  }

 private:
  std::size_t previous(std::size_t layer) const { return layer == 0 ? last_.size() - 1 : layer - 1; }

  Index num_experts_, most_;
  std::vector<std::vector<Index>> last_;
  std::vector<std::vector<double>> uses_, pairs_;  ///< by layer: of f before it; [f, e]
  std::vector<double> score_;
};

/// Experts that a routing has choices of which are not dropped, ascending: what a set is asked for.
template <class S>
void used_experts(const Routing<S>& routing, std::vector<Index>& experts) {
  experts.clear();
  for (std::size_t a = 0; a < routing.experts().size(); ++a)
    if (routing.dropped()[a] == 0) experts.push_back(routing.experts()[a]);
  std::ranges::sort(experts);
  experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
}

/// The router and gate of the layer to come on the hidden state that there is: right as far as a layer changes the
/// residual stream little. look() before predict(), at what enters the layer that runs;
/// std::invalid_argument without it and for layers that are not there.
template <class L>
class NextLayerGate {
 public:
  using Scalar = typename L::Scalar;

  /// Of layers with router() and gate(), which must stay where they are.
  explicit NextLayerGate(std::vector<const L*> layers) : layers_(std::move(layers)) {}

  void look(const MatrixView<Scalar>& hidden) { hidden_ = hidden; }
  void observe(Index, std::span<const Index>) {}
  void predict(Index layer, std::vector<Index>& experts) {
    detail::require_layer("moe::NextLayerGate::predict", layer, std::ssize(layers_));
    if (hidden_.cols() == 0) fail("moe::NextLayerGate::predict: nothing was looked at, expected look() before");
    const L& of = *layers_[static_cast<std::size_t>(layer)];
    const Step step;
    const Context context(step, scratch_);
    logits_.resize(hidden_.rows(), of.router().num_experts());
    of.router().logits(hidden_, context, logits_);
    of.gate().route(Logits<Scalar>(logits_), context, routing_);
    used_experts(routing_, experts);
  }

 private:
  std::vector<const L*> layers_;
  Scratch scratch_;
  Matrix<Scalar> hidden_;
  Matrix<Scalar> logits_;
  Routing<Scalar> routing_;
};

/// How good guesses were.
struct PredictionQuality {
  std::int64_t used = 0, guessed = 0, right = 0;  ///< experts of layers and steps

  /// Share of what was used that had been guessed; 0 where nothing was.
  double recall() const { return used == 0 ? 0 : static_cast<double>(right) / static_cast<double>(used); }
  /// Share of the guesses that was used.
  double precision() const { return guessed == 0 ? 0 : static_cast<double>(right) / static_cast<double>(guessed); }
  /// Loaded for nothing, if each guess was loaded and experts have so many bytes.
  std::uint64_t wasted_bytes(std::size_t bytes) const { return static_cast<std::uint64_t>(guessed - right) * bytes; }

  /// Counts a guess for what was used, which ascends.
  void add(std::span<const Index> guess, std::span<const Index> experts) {
    used += std::ssize(experts);
    guessed += std::ssize(guess);
    for (const Index e : guess) right += std::ranges::binary_search(experts, e) ? 1 : 0;
  }
};

/// Runs a predictor over the traces of the layers of a model, batches of so many tokens, without loading anything: what
/// prefetching could be worth. Throws std::invalid_argument without layers, for traces of different numbers of tokens
/// and where a batch has no choice in a layer.
template <PrefetchPredictor P>
PredictionQuality measure_predictor(std::span<const RoutingTrace> layers, P predictor, Index tokens_per_step = 1) {
  constexpr const char* kFunction = "moe::measure_predictor";
  if (layers.empty()) fail(kFunction, ": 0 layers, expected at least 1");
  std::vector<std::vector<std::vector<Index>>> steps;
  for (const RoutingTrace& layer : layers) {
    steps.push_back(steps_of(layer, tokens_per_step));
    const Index expected = (layers.front().num_tokens() + tokens_per_step - 1) / tokens_per_step;
    if (std::ssize(steps.back()) != expected)
      fail(kFunction, ": layer ", steps.size() - 1, " has choices in ", steps.back().size(), " batches, expected ",
           expected);
  }
  PredictionQuality quality;
  std::vector<Index> guess;
  for (std::size_t step = 0; step < steps.front().size(); ++step)
    for (std::size_t l = 0; l < steps.size(); ++l) {
      predictor.predict(static_cast<Index>(l), guess);
      quality.add(guess, steps[l][step]);
      predictor.observe(static_cast<Index>(l), steps[l][step]);
    }
  return quality;
}

static_assert(PrefetchPredictor<PreviousStep> && PrefetchPredictor<NextLayerAffinity>);

}  // namespace moe::inline MOE_ABI
