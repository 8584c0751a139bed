// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <vector>

#include "moe/compress/quantise.hpp"

// Experts whose hidden units are scaled inside.
namespace moe::inline MOE_ABI::detail {

/// What makes the hidden units of an expert, and what it is called; the only matrix of one without.
template <class From>
const PanelMatrix<From>& first_weight(const BasicLinear<From>& expert) {
  return expert.weight();
}
template <class From, class Act>
const PanelMatrix<From>& first_weight(const BasicMlp<From, Act>& expert) {
  return expert.up();
}
template <class From, class Product>
const PanelMatrix<From>& first_weight(const BasicGlu<From, Product>& expert) {
  return expert.gate_up();
}
template <class From>
const char* first_name(const BasicLinear<From>&) {
  return "weight";
}
template <class From, class Act>
const char* first_name(const BasicMlp<From, Act>&) {
  return "up.weight";
}
template <class From, class Product>
const char* first_name(const BasicGlu<From, Product>&) {
  return "gate_up.weight";
}
/// What reads the hidden units.
template <class E>
const auto& second_weight(const E& expert) {
  if constexpr (requires { expert.down(); })
    return expert.down();
  else
    return expert.weight();
}

inline std::vector<float> reciprocals(std::span<const float> values) {
  std::vector<float> result;
  for (const float value : values) result.push_back(1 / value);
  return result;
}

/// Column i times scales[i].
inline void scale_inputs(PanelMatrix<F32>& weights, std::span<const float> scales) {
  for (Index o = 0; o < weights.outputs(); ++o)
    for (Index i = 0; i < weights.inputs(); ++i) weights(o, i) *= scales[static_cast<std::size_t>(i)];
}
/// The last rows times `scales`: all of them, or the ups behind the gates. Of a bias, too; one that is not there stays
/// so.
inline void scale_outputs(PanelMatrix<F32>& weights, std::span<const float> scales) {
  if (weights.empty()) return;
  const Index first = weights.outputs() - std::ssize(scales);
  for (Index o = first; o < weights.outputs(); ++o)
    for (Index i = 0; i < weights.inputs(); ++i) weights(o, i) *= scales[static_cast<std::size_t>(o - first)];
}

/// The expert whose hidden unit i is divided by scales[i], and which makes up for it: for powers of two the same bits,
/// where the product of a Glu is linear in up, and the activation of an Mlp in u > 0 (see Awq).
template <class E>
void scale_hidden(E& expert, const std::vector<float>& scales) {
  const std::vector<float> back = reciprocals(scales);
  if constexpr (requires { expert.gate_up(); }) {
    scale_outputs(expert.gate_up(), back);
    scale_outputs(expert.gate_up_bias(), back);
    scale_inputs(expert.down(), scales);
  } else if constexpr (requires { expert.down(); }) {
    scale_outputs(expert.up(), back);
    scale_outputs(expert.up_bias(), back);
    scale_inputs(expert.down(), scales);
  }
}

}  // namespace moe::inline MOE_ABI::detail
