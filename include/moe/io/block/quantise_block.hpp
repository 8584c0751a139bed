// SPDX-License-Identifier: MIT
#pragma once

#include <utility>
#include <variant>

#include "moe/compress/quantise.hpp"
#include "moe/core/when_used.hpp"
#include "moe/io/block/moe_block.hpp"

// Blocks of published models with weights in few bits, made of those with floats; and back.
namespace moe::inline MOE_ABI {

/// ExpertMatrix::expert of the shared expert of a block.
inline constexpr Index kSharedExpert = -1;

namespace detail {

/// Experts with weights, then those without.
template <class Codec, class Pool, class... Others, class Convert>
auto converted(const Concatenated<Pool, Others...>& experts, const Convert& convert) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return Concatenated(converted<Codec>(experts.template set<0>(), convert), experts.template set<1 + I>()...);
  }(std::index_sequence_for<Others...>{});
}

/// The shared expert of a block, behind its gate if it has one; another branch stays.
template <class Codec, class Branch, class Convert>
auto converted_branch(const Branch& branch, const Convert& convert) {
  if constexpr (HasPanels<Branch>) {
    return converted<Codec>(branch, [&](std::string_view name, const auto& weights) {
      return convert(ExpertMatrix{.expert = kSharedExpert, .name = name}, weights);
    });
  } else if constexpr (requires { branch.expert(); }) {
    return GatedExpert(converted_branch<Codec>(branch.expert(), convert), branch.gate());
  } else {
    return branch;
  }
}

template <class Codec, class R, class G, class X, class Convert>
auto converted_layer(const MoeLayer<R, G, X>& layer, const Convert& convert) {
  return with_experts(layer, converted<Codec>(layer.experts(), convert));
}
template <class Codec, class Layer, class Branch, class Convert>
auto converted_layer(const WithBranches<Layer, Branch>& layer, const Convert& convert) {
  return WithBranches(converted_layer<Codec>(layer.layer(), convert),
                      converted_branch<Codec>(layer.template branch<0>(), convert));
}

template <class Codec, class From, class Convert>
BasicMoeBlock<Codec> converted_block(const BasicMoeBlock<From>& block, const Convert& convert) {
  using Layer = typename BasicMoeBlock<Codec>::Layer;
  return {block.config(), std::visit([&](const auto& layer) -> Layer { return converted_layer<Codec>(layer, convert); },
                                     block.layer())};
}

}  // namespace detail

/// The block with the weights of its experts in few bits, the shared one included, whose ExpertMatrix has the number
/// kSharedExpert; router, gates and biases stay floats. `format` and `quantiser` as for pools.
///   const auto small = moe::quantise(block, moe::WeightFormat::int4());
/// load_quantised_block() gets there from a file without the block of floats.
template <detail::FormatChoice Format, Quantiser Q = RoundToNearest>
QuantisedMoeBlock quantise(const MoeBlock& block, const Format& format, const Q& quantiser = {}) {
  return detail::converted_block<Quantised>(block, detail::rounding(format, quantiser));
}

/// The block of floats that computes the same bits: every weight decoded.
template <class = detail::WhenUsed>
MoeBlock dequantise(const QuantisedMoeBlock& block) {
  return detail::converted_block<F32>(block, detail::kDecoding);
}

/// The block whose rows are rounded, too, before they are multiplied with the weights of experts; see with_dot() of
/// layers. Throws std::invalid_argument where a format has no such product.
template <class = detail::WhenUsed>
QuantisedMoeBlock with_dot(const QuantisedMoeBlock& block, Dot dot) {
  return detail::converted_block<Quantised>(block, [&](const ExpertMatrix&, PanelMatrix<Quantised> weights) {
    weights.set_dot(dot);
    return weights;
  });
}

}  // namespace moe::inline MOE_ABI
