// SPDX-License-Identifier: MIT
// Who goes where, compared with what the file says.
#pragma once

#include <moe/gate/wrap/with_capacity.hpp>
#include <moe/routing/capacity/buffer_slots.hpp>

#include "report.hpp"
#include "tensors.hpp"

namespace check {

inline constexpr double kForward = 5e-6, kWeightGradient = 1e-5;  // as the makers of the vectors recommend

template <class S>
std::span<const S> span_of(const Matrix<S>& matrix) {
  return {matrix.data(), static_cast<std::size_t>(matrix.size())};
}
template <class S>
std::span<const S> span_of(const std::vector<S>& values) {
  return values;
}

/// The weight of every (token, expert), 0 where not chosen, divided by `scale`.
inline Matrix<double> dense(const moe::Routing<float>& routing, Index experts, double scale) {
  Matrix<double> weights = Matrix<double>::Zero(routing.num_tokens(), experts);
  for (Index t = 0; t < routing.num_tokens(); ++t)
    for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
      weights(t, routing.experts(t)[s]) += static_cast<double>(routing.weights(t)[s]) / scale;
  return weights;
}

/// Chosen experts as sets, and the weight of each.
inline void compare_choices(const Reference& reference, const moe::Routing<float>& routing, const Matrix<double>& ours,
                            double scale, Report& report) {
  const Index tokens = reference.tokens(), k = tokens == 0 ? 0 : routing.num_assignments() / tokens;
  const auto chosen = reference.read<std::int64_t>("topk_indices", k);
  long mismatches = 0;
  std::vector<double> weights;
  for (Index t = 0; t < tokens; ++t) {
    const auto experts = routing.experts(t), theirs_begin = std::span(chosen).subspan(static_cast<std::size_t>(t * k));
    std::vector<std::int64_t> mine(experts.begin(), experts.end());
    std::vector<std::int64_t> theirs(theirs_begin.begin(), theirs_begin.begin() + k);
    for (const std::int64_t e : theirs) weights.push_back(e >= 0 && e < ours.cols() ? ours(t, e) : 0);
    std::sort(mine.begin(), mine.end());
    std::sort(theirs.begin(), theirs.end());
    mismatches += mine != theirs;
  }
  report.add_count(reference.prefix() + "topk_indices", mismatches);
  report.add_values(reference.prefix() + "topk_weights", span_of(weights),
                    span_of(reference.read<float>("topk_weights", k)), kForward, scale);
}

/// Adds a line for integers that must be equal, if the file has them.
inline void compare_integers(const Reference& reference, const std::string& name, const std::vector<std::int64_t>& ours,
                             Index columns, Report& report) {
  if (!reference.has(name)) return;
  const auto expected = reference.read<std::int64_t>(name, columns);
  long mismatches = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) mismatches += ours.at(i) != expected[i];
  report.add_count(reference.prefix() + name, mismatches);
}

/// Which choices reach an expert: of slot `slot`, or of all (-1). [tokens, experts]
inline std::vector<std::int64_t> kept_choices(const moe::Routing<float>& routing, Index experts, Index slot) {
  std::vector<std::int64_t> kept(static_cast<std::size_t>(routing.num_tokens() * experts), 0);
  for (Index t = 0; t < routing.num_tokens(); ++t)
    for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
      if ((slot < 0 || slot == static_cast<Index>(s)) && !routing.dropped(t)[s])
        kept[static_cast<std::size_t>(t * experts + routing.experts(t)[s])] = 1;
  return kept;
}

/// Places in the buffers of the experts, from 0, of choice `slot` of every token, before anything is dropped.
template <class G>
std::vector<std::int64_t> buffer_places(const G& gate, const Matrix<float>& logits, const moe::Step& step, Index slot) {
  moe::Routing<float> routing;
  gate.gate.route(logits, step, routing);
  const auto slots = moe::buffer_slots(gate.capacity, logits.cols(), step, routing);
  std::vector<std::int64_t> place;
  for (Index t = 0; t < logits.rows(); ++t) place.push_back(slots[static_cast<std::size_t>(routing.begin(t) + slot)]);
  return place;
}

/// What our gate makes of the logits of a run.
template <class G>
struct Decision {
  const G& gate;
  const Matrix<float>& logits;
  const moe::Step& step;
  const moe::Routing<float>& routing;
  double scale = 1;  ///< what weights are scaled by where the reference scales outputs instead
};

/// What gates with a capacity add: masks, places, and the experts that losses count, 0 for a dropped token.
template <class G>
void compare_capacity(const Reference& reference, const Decision<G>& decision, Report& report) {
  const Matrix<float>& logits = decision.logits;
  const moe::Routing<float>& routing = decision.routing;
  const auto mask = [&](const std::string& name, Index slot) {
    compare_integers(reference, name, kept_choices(routing, logits.cols(), slot), logits.cols(), report);
  };
  mask("dispatch_mask", -1), mask("dispatch_mask_1", 0), mask("dispatch_mask_2", 1);
  const auto place = [&](const std::string& name, Index slot) {
    if (!reference.has(name)) return;
    compare_integers(reference, name, buffer_places(decision.gate, logits, decision.step, slot),
                     reference.columns(name) == 1 ? 1 : 0, report);
  };
  place("position_in_expert", 0), place("position_1", 0);
  if (routing.num_assignments() > routing.num_tokens()) place("position_2", 1);
  std::vector<std::int64_t> first;
  for (Index t = 0; t < routing.num_tokens(); ++t) first.push_back(routing.dropped(t)[0] ? 0 : routing.experts(t)[0]);
  for (const char* name : {"expert_index_for_loss", "top1_index_for_loss"})
    compare_integers(reference, name, first, 0, report);
}

/// Everything about who goes where.
template <class G>
void compare_routing(const Reference& reference, const Decision<G>& decision, Report& report) {
  const G& gate = decision.gate;
  const Matrix<float>& logits = decision.logits;
  const moe::Step& step = decision.step;
  const std::string& t = reference.prefix();
  const Index experts = logits.cols();
  const auto compare = [&](const std::string& name, const auto& ours, double unit) {
    report.add_values(t + name, span_of(ours), span_of(reference.read<float>(name, experts)), kForward, unit);
  };
  compare("router_logits", logits, 0);
  if (reference.has("router_probs")) {
    Matrix<float> p;
    gate.probabilities(logits, step, p);
    compare("router_probs", p, 0);
  }
  double evaluation = 1;
  moe::Routing<float> before = decision.routing;
  if constexpr (requires { gate.capacity; }) {
    if (step.phase == moe::Phase::Inference) evaluation = gate.capacity.evaluation_scale;
    if (gate.capacity.weights == moe::KeptWeights::AsTheyAre) gate.gate.route(logits, step, before);
    compare_capacity(reference, decision, report);
  }
  if (evaluation == 0) evaluation = 1;  // all outputs are 0, as are all weights
  compare_choices(reference, decision.routing, dense(before, experts, evaluation), decision.scale, report);
  for (const char* name : {"dense_weights", "combine_weights"})
    if (reference.has(name)) compare(name, dense(decision.routing, experts, evaluation), decision.scale);
}

}  // namespace check
