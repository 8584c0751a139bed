// SPDX-License-Identifier: MIT
#pragma once

#include "moe/compress/quantise.hpp"
#include "moe/compress/wanda.hpp"
#include "moe/kernel/sparse_matrix.hpp"

// Experts, pools and layers some of whose weights become zero, and those that do not store zeros.
namespace moe::inline MOE_ABI {

/// What skip_zeros() makes of an expert type: SparseExpert<Glu> is BasicGlu<Sparse>.
template <detail::HasPanels E>
using SparseExpert = typename detail::WithCodec<E, Sparse>::type;

namespace detail {

/// A function that says which weights of each matrix stay.
template <class F>
concept MaskChoice = requires(const F& mask_of, ExpertMatrix matrix, const PanelMatrix<F32>& weights) {
  { mask_of(matrix, weights) } -> std::convertible_to<WeightMask>;
};

template <class MaskOf>
auto masking(const MaskOf& mask_of) {
  return [&](const ExpertMatrix& matrix, PanelMatrix<F32> weights) {
    apply_mask(weights, mask_of(matrix, std::as_const(weights)));
    return weights;
  };
}

}  // namespace detail

/// The expert, pool or layer with the weights that mask_of(ExpertMatrix, weights) marks by 0 set to zero; of Linear,
/// Mlp and Glu. Biases stay. Of pools and layers mask_of sees the number of the expert, and is called from several
/// threads.
///   const auto pruned = moe::mask_weights(layer, [&](const moe::ExpertMatrix& m, const auto& weights) {
///     return moe::wanda(weights, norms_of(m), 0.8);
///   });
/// Still floats that can be trained; skip_zeros() makes it smaller and fast. Throws std::invalid_argument for masks of
/// other shapes, and where mask_of does.
template <detail::HasFloatPanels E, detail::MaskChoice MaskOf>
E mask_weights(const E& expert, const MaskOf& mask_of) {
  return detail::converted<F32>(expert, [&](std::string_view name, const PanelMatrix<F32>& weights) {
    return detail::masking(mask_of)(ExpertMatrix{.name = name}, weights);
  });
}
template <detail::HasFloatPanels E, detail::MaskChoice MaskOf>
ExpertPool<E> mask_weights(const ExpertPool<E>& pool, const MaskOf& mask_of) {
  return detail::converted<F32>(pool, detail::masking(mask_of), "moe::mask_weights");
}
template <detail::HasExperts L, detail::MaskChoice MaskOf>
auto mask_weights(const L& layer, const MaskOf& mask_of) {
  return transform_experts(layer, [&](const auto& experts) { return mask_weights(experts, mask_of); });
}

/// The expert, pool or layer of floats with the same bits, of whose matrices zeros take a bit each: see
/// PanelMatrix<Sparse>. For inference, and for training what is around it: weights do not learn. dequantise() gives the
/// floats back.
///   const auto small = moe::skip_zeros(pruned);
template <detail::HasFloatPanels E>
SparseExpert<E> skip_zeros(const E& expert) {
  return detail::converted<Sparse>(
      expert, [](std::string_view, const PanelMatrix<F32>& weights) { return PanelMatrix<Sparse>::from(weights); });
}
template <detail::HasFloatPanels E>
ExpertPool<SparseExpert<E>> skip_zeros(const ExpertPool<E>& pool) {
  return detail::converted<Sparse>(
      pool, [](const ExpertMatrix&, const PanelMatrix<F32>& weights) { return PanelMatrix<Sparse>::from(weights); },
      "moe::skip_zeros");
}
template <detail::HasExperts L>
auto skip_zeros(const L& layer) {
  return transform_experts(layer, [](const auto& experts) { return skip_zeros(experts); });
}

}  // namespace moe::inline MOE_ABI
