// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <memory>
#include <vector>

#include "moe/kernel/panel_matrix.hpp"
#include "moe/kernel/sparse_panels.hpp"

namespace moe::inline MOE_ABI {

/// The codec of floats most of which are zero: those alone that are not are stored.
struct Sparse {
  using Storage = std::byte;
  using Scalar = float;
};

namespace detail {

/// The memory of a PanelMatrix<Sparse>; not changed once it is made.
struct SparseStore {
  static constexpr Index kLanes = simd::kLanes<float>;
  static constexpr Index kWidth = kernel::kPanelWidth<float>;

  SparseStore(Index num_outputs, Index inputs, PanelOrder columns)
      : outputs(checked_size("moe::PanelMatrix", "outputs", num_outputs)), order(columns) {
    checked_size("moe::PanelMatrix", "inputs", inputs);
    if (order == PanelOrder::Paired && outputs % 2 != 0)
      fail("moe::PanelMatrix: paired order with ", outputs, " outputs, expected an even number");
    const Index units = order == PanelOrder::Paired ? outputs / 2 : outputs;
    const Index width = order == PanelOrder::Paired ? kLanes : kWidth;
    panels.inputs = inputs;
    panels.panels = (units + width - 1) / width;
    lanes = AlignedBuffer<simd::LaneBits>::in_huge_pages(
        checked_product("moe::PanelMatrix", panels.panels, checked_product("moe::PanelMatrix", 2, inputs)));
    first.resize(static_cast<std::size_t>(panels.panels * panels.blocks()));
    values = AlignedBuffer<float>(kLanes);
    point();
  }
  explicit SparseStore(const PanelMatrix<F32>& weights)
      : SparseStore(weights.outputs(), weights.inputs(), weights.order()) {
    const Index inputs = weights.inputs(), blocks = panels.blocks();
    for (Index p = 0, k = 0; p < panels.panels; ++p)
      for (Index i = 0; i < inputs; ++i) {
        if (i % kWidth == 0) first[static_cast<std::size_t>(p * blocks + i / kWidth)] = count;
        for (Index half = 0; half < 2; ++half, ++k) {
          const float* const from = weights.panel(p) + i * kWidth + half * kLanes;
          unsigned set = 0;
          for (Index lane = 0; lane < kLanes; ++lane) set |= (is_kept(from[lane]) ? 1u : 0u) << lane;
          lanes.data()[k] = static_cast<simd::LaneBits>(set);
          count += std::popcount(set);
        }
      }
    values = AlignedBuffer<float>::in_huge_pages(count + kLanes);
    float* to = values.data();
    for (Index p = 0; p < panels.panels; ++p)
      to = std::copy_if(weights.panel(p), weights.panel(p) + inputs * kWidth, to, is_kept);
    point();
  }
  SparseStore(const SparseStore&) = delete;
  SparseStore& operator=(const SparseStore&) = delete;

  float get(Index output, Index input) const {
    Index panel = output / kWidth, column = output % kWidth;
    if (order == PanelOrder::Paired) {
      const Index half = outputs / 2, unit = output < half ? output : output - half;
      panel = unit / kLanes;
      column = unit % kLanes + (output < half ? 0 : kLanes);
    }
    const simd::LaneBits* const set = panels.lanes_of(panel);
    const Index at = 2 * input + column / kLanes;
    const unsigned here = set[at], lane = static_cast<unsigned>(column % kLanes);
    if ((here >> lane & 1u) == 0) return 0;
    const float* value = panels.values_of(panel, input / kWidth);
    for (Index k = input / kWidth * 2 * kWidth; k < at; ++k) value += std::popcount(set[k]);
    return value[std::popcount(here & ((1u << lane) - 1))];
  }

  /// All but +0: -0 has other products.
  static bool is_kept(float weight) { return std::bit_cast<std::uint32_t>(weight) != 0; }

  Index outputs;
  PanelOrder order;
  Index count = 0;  ///< of values
  kernel::SparsePanels panels;
  AlignedBuffer<simd::LaneBits> lanes;
  AlignedBuffer<float> values;
  std::vector<Index> first;

 private:
  void point() {
    panels.lanes = lanes.data();
    panels.values = values.data();
    panels.first = first.data();
  }
};

}  // namespace detail

/// Weight matrix [outputs, inputs] of floats that are zero for the most part, in the order that the kernels read (see
/// PanelMatrix): the others alone, four bytes each, and a bit for every weight. What is computed with it has the bits
/// of what is computed with decoded(), infinities and NaN among the rows included, as every zero is multiplied with; it
/// is memory that is saved. So few rows, which wait for it, are faster than with floats from about half zeros on, and
/// many, for which blocks are decoded, are as fast.
///   bytes = 4 * num_weights() + outputs * inputs / 8, and 8 per block of 2 registers x as many inputs
/// Its numbers are kept and not learned: experts name it in `state`, and backward goes through it to the rows alone.
/// Copies share their memory until one of them is written; immutable use is thread-safe. Empty after it has been moved
/// from.
template <>
class PanelMatrix<Sparse> {
 public:
  using Scalar = float;
  static constexpr Index kLanes = simd::kLanes<float>;
  static constexpr Index kWidth = kernel::kPanelWidth<float>;

  PanelMatrix() = default;
  /// Zeros. Throws std::invalid_argument for sizes that are negative or too large, or an odd number of paired outputs.
  PanelMatrix(Index outputs, Index inputs, PanelOrder order = PanelOrder::Plain)
      : state_(std::make_shared<const detail::SparseStore>(outputs, inputs, order)) {}
  /// All weights but +0, in their order. O(outputs * inputs), one thread.
  static PanelMatrix from(const PanelMatrix<F32>& weights) {
    PanelMatrix result;
    result.state_ = std::make_shared<const detail::SparseStore>(weights);
    return result;
  }

  Index outputs() const { return state_ ? state_->outputs : 0; }
  Index inputs() const { return state_ ? state_->panels.inputs : 0; }
  Index panels() const { return state_ ? state_->panels.panels : 0; }
  PanelOrder order() const { return state_ ? state_->order : PanelOrder::Plain; }
  bool empty() const { return outputs() == 0; }
  bool is_shaped_as(const PanelMatrix& other) const {
    return outputs() == other.outputs() && inputs() == other.inputs() && order() == other.order();
  }
  /// Weights that are stored.
  Index num_weights() const { return state_ ? state_->count : 0; }
  /// Share of weights that are not; 0 without any.
  double sparsity() const {
    const auto all = static_cast<double>(outputs()) * static_cast<double>(inputs());
    return all == 0 ? 0 : 1 - static_cast<double>(num_weights()) / all;
  }
  std::size_t bytes() const {
    if (!state_) return 0;
    return state_->lanes.span().size_bytes() + state_->values.span().size_bytes() +
           state_->first.size() * sizeof(Index);
  }

  /// What the kernels read; valid as long as this object lives and is not written.
  kernel::PanelSource<float> source() const {
    if (!state_) return {};
    return {.inputs = inputs(), .panels = panels(), .decoder = &kernel::kSparseDecoder, .matrix = &state_->panels};
  }

  /// One weight. Throws std::invalid_argument for an output or input that is not there.
  float get(Index output, Index input) const {
    if (output < 0 || output >= outputs() || input < 0 || input >= inputs())
      fail("moe::PanelMatrix::get: output ", output, ", input ", input, ", expected places of a matrix [", outputs(),
           ", ", inputs(), "]");
    return state_->get(output, input);
  }

  std::vector<Index> shape() const { return {outputs(), inputs()}; }
  /// Copy all weights, row by row. Throw std::invalid_argument if there are not outputs * inputs values.
  template <class S>
  void read(std::span<S> values) const {
    const PanelMatrix<F32> weights = decoded();
    weights.read(values);
  }
  template <class S>
  void write(std::span<const S> values) {
    PanelMatrix<F32> weights(outputs(), inputs(), order());
    weights.write(values);
    *this = from(weights);
  }

  /// Panels of all weights: with them everything is computed to the same bits.
  PanelMatrix<F32> decoded() const {
    PanelMatrix<F32> result(outputs(), inputs(), order());
    for (Index p = 0; p < panels(); ++p)
      kernel::kSparseDecoder.decode(&state_->panels, p, 0, inputs(), result.panel(p));
    return result;
  }

 private:
  std::shared_ptr<const detail::SparseStore> state_;
};

}  // namespace moe::inline MOE_ABI
