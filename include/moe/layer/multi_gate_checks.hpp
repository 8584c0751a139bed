// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/gate/concept.hpp"
#include "moe/layer/multi_gate_tape.hpp"
#include "moe/routing/padding.hpp"

// What a MultiGateLayer refuses, each in the name of a function.
namespace moe::inline MOE_ABI::detail {

/// Columns of logits of gate g: one per expert that it may choose, unless it asks for more.
template <class Layer>
Index num_logits_of_gate(const Layer& layer, Index g) {
  return num_logits(layer.gate(g), std::ssize(layer.mask().experts(g)));
}

/// Parts may have been replaced since the constructor saw them, or moved away.
template <class Layer>
void require_gate_parts(const char* function, const Layer& layer) {
  const Index num_gates = layer.num_gates(), num_experts = layer.num_experts();
  if (num_experts == 0 || num_gates == 0)
    fail(function, ": there are ", num_gates, " gates and ", num_experts,
         " experts, expected some, as in a layer that has not been moved from");
  const ExpertMask& mask = layer.mask();
  if (mask.num_gates() != num_gates || layer.num_routers() != num_gates)
    fail(function, ": there are ", layer.num_routers(), " routers and ", num_gates, " gates, expected ",
         mask.num_gates(), " of both as in the mask");
  if (mask.num_experts() != num_experts)
    fail(function, ": the mask is of ", mask.num_experts(), " experts, expected ", num_experts,
         " as in the expert set");
  for (Index g = 0; g < num_gates; ++g) {
    if (mask.experts(g).empty()) fail(function, ": gate ", g, " may choose 0 experts, expected at least 1");
    if (const auto& router = layer.router(g);
        router.num_experts() != num_logits_of_gate(layer, g) || router.model_dim() != layer.gate_dim())
      fail(function, ": router ", g, " maps ", router.model_dim(), " columns to ", router.num_experts(),
           " experts, expected ", layer.gate_dim(), " to ", num_logits_of_gate(layer, g),
           " as the mask allows the gate");
  }
}

template <class Layer, class S>
void require_gate_inputs(const char* function, const Layer& layer, const MultiGateInputs<S>& inputs, const Step& step,
                         const MatrixRef<S>& out) {
  require_gate_parts(function, layer);
  const Index num_tokens = inputs.tokens.rows();
  require_shape(function, "tokens", inputs.tokens, num_tokens, layer.input_dim());
  require_shape(function, "what the gates read", inputs.gate_tokens, num_tokens, layer.gate_dim());
  require_shape(function, "out", out, num_tokens, layer.output_dim());
  step.validate(function, num_tokens);
}

/// Valid tokens are of groups that have gates; without groups all go through all gates.
inline void require_token_groups(const char* function, const std::vector<std::vector<Index>>& gates_of_group,
                                 const Step& step, Index num_tokens) {
  for (Index t = 0; t < num_tokens && !gates_of_group.empty(); ++t)
    if (step.is_valid(t) && (step.group(t) < 0 || step.group(t) >= std::ssize(gates_of_group)))
      fail(function, ": token ", t, " is of group ", step.group(t), ", expected 0 <= group < ", gates_of_group.size());
}

/// Gradients of losses that somebody has put into the tape of gate g.
template <class Layer>
void require_gate_losses(const char* function, const Layer& layer, Index g, const typename Layer::GateTape& own) {
  const auto check = [&](const char* name, const auto& gradient, Index columns) {
    if (gradient.size() != 0) require_shape(function, name, gradient, own.logits.rows(), columns);
  };
  check("losses.probability of a gate", own.losses.probability, std::ssize(layer.mask().experts(g)));
  check("losses.logits of a gate", own.losses.logits, num_logits_of_gate(layer, g));
  const auto weights = std::ssize(own.losses.weight);
  if (weights != 0 && weights != own.routing.num_assignments())
    fail(function, ": losses.weight of gate ", g, " has ", weights,
         " entries, expected num_assignments = ", own.routing.num_assignments());
}

template <class Layer>
void require_gate_tape(const char* function, const Layer& layer, Index num_tokens, const typename Layer::Tape& tape) {
  if (tape.input_dim == 0) fail(function, ": the tape holds no forward pass that has ended");
  if (std::ssize(tape.gates) != layer.num_gates() || tape.input_dim != layer.input_dim() ||
      tape.gate_dim != layer.gate_dim() || tape.output_dim != layer.output_dim())
    fail(function, ": the tape is of a layer of ", tape.gates.size(), " gates that read ", tape.gate_dim,
         " columns, and experts that map ", tape.input_dim, " to ", tape.output_dim, ", expected ", layer.num_gates(),
         " gates of ", layer.gate_dim(), ", and ", layer.input_dim(), " to ", layer.output_dim());
  for (Index g = 0; g < layer.num_gates(); ++g)
    if (const Index columns = tape.gates[static_cast<std::size_t>(g)].logits.cols();
        columns != num_logits_of_gate(layer, g))
      fail(function, ": the tape has ", columns, " logits of gate ", g, ", expected ", num_logits_of_gate(layer, g));
  if (num_tokens != tape.chosen.plan().num_tokens())
    fail(function, ": tokens has ", num_tokens, " rows, expected ", tape.chosen.plan().num_tokens(),
         " as in the forward pass of the tape");
}

/// Gates leave padding out by themselves; this holds for one that does not know about it, too.
template <class S>
void check_gate_routing(Index g, Index num_tokens, const Step& step, Routing<S>& routing) {
  if (routing.num_tokens() != num_tokens)
    fail("moe::MultiGateLayer::forward: gate ", g, " routed ", routing.num_tokens(), " tokens, expected ", num_tokens);
  drop_padding(step, routing);
}

}  // namespace moe::inline MOE_ABI::detail
