// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "moe/layer/multi_gate_layer.hpp"
#include "moe/layer/structure.hpp"

// Layers with several gates made of the experts of others, as moe/layer/structure.hpp has it for one gate.
namespace moe::inline MOE_ABI {

namespace detail {

/// The routers, gates or what f(g) gives for each gate.
template <class Layer, class F>
auto of_each_gate(const Layer& layer, const F& f) {
  std::vector<decltype(f(Index{}))> parts;
  for (Index g = 0; g < layer.num_gates(); ++g) parts.push_back(f(g));
  return parts;
}

/// What gate g calls the experts that `ids` leaves it, in their new order.
inline std::vector<Index> ids_of_gate(const char* function, const ExpertMask& mask, Index g,
                                      std::span<const Index> ids) {
  std::vector<Index> own;
  for (const Index id : ids)
    if (mask(g, id)) own.push_back(std::ranges::lower_bound(mask.experts(g), id) - mask.experts(g).begin());
  if (own.empty()) fail(function, ": ids leave 0 experts to gate ", g, ", expected at least 1");
  return own;
}

template <class R, class G, class X>
inline constexpr bool kHasExperts<MultiGateLayer<R, G, X>> = true;

}  // namespace detail

/// The layer whose expert i is expert ids[i] of `layer`: masks, rows of the routers and entries of the gates go with
/// it, so that a gate may choose expert i where it might choose ids[i]; groups of gates stay. What take_experts() of a
/// MoeLayer says holds for every gate. Throws std::invalid_argument as it does, and where a gate would be left without
/// an expert.
template <class R, class G, class X>
MultiGateLayer<R, G, X> take_experts(const MultiGateLayer<R, G, X>& layer, ExpertIds ids) {
  if constexpr (!detail::RequireTake<R, G, X>::kHolds) {
    return layer;  // refused in a sentence
  } else {
    constexpr const char* kFunction = "moe::take_experts";
    detail::require_gate_parts(kFunction, layer);
    detail::require_ids(kFunction, ids, layer.num_experts());
    const auto own =
        detail::of_each_gate(layer, [&](Index g) { return detail::ids_of_gate(kFunction, layer.mask(), g, ids); });
    const auto count = [&](Index g) { return std::ssize(layer.mask().experts(g)); };
    const auto of = [&](Index g) -> const std::vector<Index>& { return own[static_cast<std::size_t>(g)]; };
    auto gates =
        detail::of_each_gate(layer, [&](Index g) { return detail::take_gate(layer.gate(g), of(g), count(g)); });
    auto routers = detail::of_each_gate(layer, [&](Index g) {
      return layer.router(g).take(detail::logits_of<G>(kFunction, layer.gate(g), of(g), count(g)));
    });
    return {std::move(routers), std::move(gates), layer.experts().take(ids), layer.mask().take(ids),
            layer.gates_of_group()};
  }
}

/// One layer with the experts of `a`, then those of `b`, where each gate may choose what it might choose in either:
/// masks, routers and gates are joined gate by gate. Expert sets of two types stand side by side (Concatenated). Throws
/// std::invalid_argument unless both have as many gates, in the same groups, equal in all that is not an expert's own,
/// which read as many columns and want a logit for each expert, and experts that map as many columns to as many; and
/// for a layer that has been moved from.
template <class R, class G, class X, class Y>
auto concatenate(const MultiGateLayer<R, G, X>& a, const MultiGateLayer<R, G, Y>& b) {
  if constexpr (detail::RequireConcatenate<R, G, X, Y>::kHolds) {
    constexpr const char* kFunction = "moe::concatenate";
    detail::require_gate_parts(kFunction, a);
    detail::require_gate_parts(kFunction, b);
    if (a.input_dim() != b.input_dim() || a.experts().output_dim() != b.experts().output_dim())
      fail(kFunction, ": experts of b map ", b.input_dim(), " to ", b.experts().output_dim(), ", expected ",
           a.input_dim(), " to ", a.experts().output_dim(), " as those of a");
    ExpertMask mask = a.mask().concatenate(b.mask());
    if (a.gates_of_group() != b.gates_of_group())
      fail(kFunction, ": groups of gates differ: ", a.gates_of_group().size(), " in a and ", b.gates_of_group().size(),
           " in b, or their gates, expected the same in both");
    const auto count = [](const auto& layer, Index g) { return std::ssize(layer.mask().experts(g)); };
    for (Index g = 0; g < a.num_gates(); ++g)
      if (a.router(g).num_experts() != count(a, g) || b.router(g).num_experts() != count(b, g))
        fail(kFunction, ": gates ", g, " want ", a.router(g).num_experts(), " and ", b.router(g).num_experts(),
             " logits for ", count(a, g), " and ", count(b, g), " experts, expected one each");
    auto gates = detail::of_each_gate(
        a, [&](Index g) { return detail::concatenate_gates(a.gate(g), b.gate(g), count(a, g), count(b, g)); });
    auto routers = detail::of_each_gate(a, [&](Index g) { return a.router(g).concatenate(b.router(g)); });
    return MultiGateLayer(std::move(routers), std::move(gates), detail::concatenate_sets(a.experts(), b.experts()),
                          std::move(mask), a.gates_of_group());
  }
}

/// The routers, gates and masks of `layer` over other experts; transform_experts() calls this. Throws
/// std::invalid_argument unless there are as many experts with as many inputs as the layer has.
template <class R, class G, class X, class Y>
MultiGateLayer<R, G, Y> with_experts(const MultiGateLayer<R, G, X>& layer, Y experts) {
  constexpr const char* kFunction = "moe::with_experts";
  detail::require_gate_parts(kFunction, layer);
  if (experts.size() != layer.num_experts() || experts.input_dim() != layer.input_dim())
    fail(kFunction, ": there are ", experts.size(), " experts with ", experts.input_dim(), " inputs, expected ",
         layer.num_experts(), " with ", layer.input_dim(), " as in the layer");
  return {detail::of_each_gate(layer, [&](Index g) { return layer.router(g); }),
          detail::of_each_gate(layer, [&](Index g) { return layer.gate(g); }), std::move(experts), layer.mask(),
          layer.gates_of_group()};
}

}  // namespace moe::inline MOE_ABI
