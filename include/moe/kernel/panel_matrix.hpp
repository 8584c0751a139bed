// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <concepts>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/core/random.hpp"
#include "moe/core/simd.hpp"
#include "moe/core/take.hpp"
#include "moe/kernel/panel_source.hpp"

namespace moe::inline MOE_ABI {

/// How weights are stored: a codec names what is stored and the scalar that is computed with. F32 and F64 store
/// scalars; a format of codes specialises PanelMatrix. Only weights are coded: see BiasCodec.
struct F32 {
  using Storage = float;
  using Scalar = float;
};
struct F64 {
  using Storage = double;
  using Scalar = double;
};

/// The codec that stores scalars S.
template <class S>
using CodecOf = std::conditional_t<std::is_same_v<S, double>, F64, F32>;

/// How the biases beside weights of this codec are stored: as scalars.
template <class Codec>
using BiasCodec = CodecOf<typename Codec::Scalar>;

/// Whether a linear map that is made anew has a bias.
enum class Bias { Off, Zero };

/// Which output stands in which column of a panel. Plain: in order. Paired (GLU): the first register of a panel row
/// holds the gate and the second the up projection of the same hidden units, so that one tile ends with both; outputs
/// [0, N/2) are gates and [N/2, N) are ups.
enum class PanelOrder { Plain, Paired };

/// Weight matrix [outputs, inputs] in the layout that the kernels read: panels of kWidth output columns (two
/// registers), each panel [inputs, kWidth] contiguous. Unused columns of the last panel are zero and stay zero, through
/// initialisation, gradients and optimisers. Parameters, gradients and optimiser states share the layout, so training
/// never repacks. A bias is a PanelMatrix with one input. Copies deeply, is empty after it has been moved from;
/// immutable use is thread-safe.
template <class Codec>
class PanelMatrix {
  static_assert(std::is_same_v<typename Codec::Storage, typename Codec::Scalar>,
                "moe::PanelMatrix: this codec stores codes, not scalars; its format specialises PanelMatrix "
                "(see PanelWeight in moe/kernel/panel_matrix.hpp)");

 public:
  using Scalar = typename Codec::Scalar;
  static constexpr Index kLanes = simd::kLanes<Scalar>;
  static constexpr Index kWidth = kernel::kPanelWidth<Scalar>;

  PanelMatrix() = default;

  /// Zeros. Throws std::invalid_argument for sizes that are negative or too large for an Index, or an odd number of
  /// paired outputs.
  PanelMatrix(Index outputs, Index inputs, PanelOrder order = PanelOrder::Plain)
      : outputs_(detail::checked_size("moe::PanelMatrix", "outputs", outputs)),
        inputs_(detail::checked_size("moe::PanelMatrix", "inputs", inputs)),
        order_(order) {
    if (order == PanelOrder::Paired && outputs % 2 != 0)
      fail("moe::PanelMatrix: paired order with ", outputs, " outputs, expected an even number");
    const Index units = order == PanelOrder::Paired ? outputs / 2 : outputs;
    const Index width = order == PanelOrder::Paired ? kLanes : kWidth;
    panels_ = (units + width - 1) / width;
    stride_ = panel_stride(inputs);
    storage_ = AlignedBuffer<Scalar>::in_huge_pages(detail::checked_product("moe::PanelMatrix", panels_, stride_));
  }

  /// A bias: [outputs], one row of panels in the order of the matrix it belongs to.
  static PanelMatrix bias(Index outputs, PanelOrder order = PanelOrder::Plain) {
    PanelMatrix result(outputs, 1, order);
    result.is_bias_ = true;
    return result;
  }

  Index outputs() const { return outputs_; }
  Index inputs() const { return inputs_; }
  Index panels() const { return panels_; }
  PanelOrder order() const { return order_; }
  bool empty() const { return outputs_ == 0; }
  /// Whether the logical shapes and the layouts are equal, as those of a parameter and its gradient must be.
  bool is_shaped_as(const PanelMatrix& other) const {
    return outputs_ == other.outputs_ && inputs_ == other.inputs_ && order_ == other.order_;
  }
  /// Whether this can be added to the product of a PanelWeight: empty for none, or a number per output in its order.
  template <class Weight>
  bool is_bias_of(const Weight& weight) const {
    return empty() || (outputs_ == weight.outputs() && inputs_ == 1 && order_ == weight.order());
  }
  /// Physical columns, padding included: panels() * kWidth.
  Index width() const { return panels_ * kWidth; }
  /// Scalars from one panel to the next: inputs * kWidth, plus a cache line where that is a multiple of 4096 bytes
  /// (panels that start at equal addresses modulo 4096 evict each other from L1).
  Index stride() const { return stride_; }

  /// Panel p: [inputs, kWidth] contiguous, aligned to a cache line.
  Scalar* panel(Index p) { return storage_.data() + p * stride_; }
  const Scalar* panel(Index p) const { return storage_.data() + p * stride_; }

  /// What the kernels read; valid as long as this object stays where it is.
  kernel::PanelSource<Scalar> source() const {
    return {.inputs = inputs_, .panels = panels_, .stride = stride_, .data = storage_.data()};
  }

  /// One weight, as every format has it. Throw std::invalid_argument for an output or input that is not there.
  Scalar get(Index output, Index input) const {
    require_place("moe::PanelMatrix::get", output, input);
    return (*this)(output, input);
  }
  void set(Index output, Index input, Scalar value) {
    require_place("moe::PanelMatrix::set", output, input);
    (*this)(output, input) = value;
  }
  /// The same without a check, by reference.
  Scalar& operator()(Index output, Index input) { return storage_.data()[position(output, input)]; }
  const Scalar& operator()(Index output, Index input) const { return storage_.data()[position(output, input)]; }

  /// Everything stored, padding included.
  std::span<Scalar> span() { return storage_.span(); }
  std::span<const Scalar> span() const { return storage_.span(); }

  /// Logical [outputs, inputs], or [outputs] for a bias.
  std::vector<Index> shape() const {
    return is_bias_ ? std::vector<Index>{outputs_} : std::vector<Index>{outputs_, inputs_};
  }
  /// Copy the logical values, row by row. Throw std::invalid_argument if there are not outputs * inputs values.
  template <class S>
  void read(std::span<S> values) const {
    require_size("moe::PanelMatrix::read", values.size());
    for (Index o = 0; o < outputs_; ++o)
      for (Index i = 0; i < inputs_; ++i)
        values[static_cast<std::size_t>(o * inputs_ + i)] = static_cast<S>((*this)(o, i));
  }
  template <class S>
  void write(std::span<const S> values) {
    require_size("moe::PanelMatrix::write", values.size());
    // Inputs in blocks: rows of a panel stay in L1 until all of its outputs have been written.
    constexpr Index kBlock = 64;
    const Index count = inputs(), units = order_ == PanelOrder::Paired ? outputs() / 2 : outputs();
    const Index width = order_ == PanelOrder::Paired ? kLanes : kWidth;
    for (Index unit = 0; unit < units; unit += width)
      for (Index begin = 0; begin < count; begin += kBlock)
        for (Index first = unit; first < outputs_; first += units)
          for (Index o = first; o < first + std::min(width, units - unit); ++o) {
            Scalar* const to = storage_.data() + position(o, 0);
            const S* const from = values.data() + o * count;
            for (Index i = begin; i < std::min(count, begin + kBlock); ++i)
              to[i * kWidth] = static_cast<Scalar>(from[i]);
          }
  }

  /// From a logical [outputs, inputs] matrix.
  static PanelMatrix from(const MatrixView<Scalar>& values, PanelOrder order = PanelOrder::Plain) {
    PanelMatrix result(values.rows(), values.cols(), order);
    for (Index o = 0; o < values.rows(); ++o)
      for (Index i = 0; i < values.cols(); ++i) result(o, i) = values(o, i);
    return result;
  }
  /// The logical [outputs, inputs] matrix.
  Matrix<Scalar> matrix() const {
    Matrix<Scalar> values(outputs(), inputs());
    for (Index o = 0; o < outputs_; ++o)
      for (Index i = 0; i < inputs_; ++i) values(o, i) = (*this)(o, i);
    return values;
  }

  /// Output o of the result is output ids[o] of this, in the same order of columns; of an empty matrix an empty one.
  /// Throw std::invalid_argument for no ids and for one out of range.
  PanelMatrix take_outputs(std::span<const Index> ids) const {
    if (empty()) return *this;
    detail::require_ids("moe::PanelMatrix::take_outputs", ids, outputs_);
    PanelMatrix result(std::ssize(ids), inputs_, order_);
    result.is_bias_ = is_bias_;
    for (Index o = 0; o < result.outputs_; ++o)
      for (Index i = 0; i < inputs_; ++i) result(o, i) = (*this)(ids[static_cast<std::size_t>(o)], i);
    return result;
  }
  /// The same of inputs.
  PanelMatrix take_inputs(std::span<const Index> ids) const {
    if (empty()) return *this;
    detail::require_ids("moe::PanelMatrix::take_inputs", ids, inputs_);
    PanelMatrix result(outputs_, std::ssize(ids), order_);
    result.is_bias_ = is_bias_ && result.inputs_ == 1;
    for (Index o = 0; o < outputs_; ++o)
      for (Index i = 0; i < result.inputs_; ++i) result(o, i) = (*this)(o, ids[static_cast<std::size_t>(i)]);
    return result;
  }
  /// The outputs of this, then those of `other`. Throws std::invalid_argument unless both have as many inputs and are
  /// in plain order.
  PanelMatrix concatenate(const PanelMatrix& other) const {
    if (other.inputs_ != inputs_ || order_ != PanelOrder::Plain || other.order_ != PanelOrder::Plain)
      fail("moe::PanelMatrix::concatenate: other has ", other.inputs_, " inputs, expected ", inputs_,
           " and both in plain order");
    PanelMatrix result(outputs_ + other.outputs_, inputs_);
    result.is_bias_ = is_bias_;
    for (Index o = 0; o < result.outputs_; ++o)
      for (Index i = 0; i < inputs_; ++i) result(o, i) = o < outputs_ ? (*this)(o, i) : other(o - outputs_, i);
    return result;
  }

  /// Independent draws from U(-bound, bound); the draw of an element depends on (key, output, input) only, so it is
  /// the same in every layout and precision.
  void randomise(const RandomField& random, double bound) {
    for (Index o = 0; o < outputs_; ++o)
      for (Index i = 0; i < inputs_; ++i)
        (*this)(o, i) = static_cast<Scalar>(bound * (2.0 * random.uniform(o, i) - 1.0));
  }

 private:
  void require_size(const char* function, std::size_t size) const {
    if (static_cast<Index>(size) != outputs_ * inputs_)
      fail(function, ": ", size, " values, expected outputs * inputs = ", outputs_ * inputs_);
  }
  void require_place(const char* function, Index output, Index input) const {
    if (output < 0 || output >= outputs_ || input < 0 || input >= inputs_)
      fail(function, ": output ", output, ", input ", input, ", expected places of a matrix [", outputs_, ", ", inputs_,
           "]");
  }
  static Index panel_stride(Index inputs) {
    constexpr Index kLine = static_cast<Index>(kCacheLine / sizeof(Scalar));
    const Index plain = (inputs * kWidth + kLine - 1) / kLine * kLine;
    const bool aliases = inputs > 1 && (plain * static_cast<Index>(sizeof(Scalar))) % 4096 == 0;
    return plain + (aliases ? kLine : 0);
  }
  Index position(Index output, Index input) const {
    MOE_ASSERT(output >= 0 && output < outputs_ && input >= 0 && input < inputs_);
    if (order_ == PanelOrder::Plain) return output / kWidth * stride_ + input * kWidth + output % kWidth;
    const Index half = outputs_ / 2, unit = output < half ? output : output - half;
    return unit / kLanes * stride_ + input * kWidth + unit % kLanes + (output < half ? 0 : kLanes);
  }

  detail::ZeroWhenMoved<Index> outputs_ = 0, inputs_ = 0, panels_ = 0, stride_ = 0;
  PanelOrder order_ = PanelOrder::Plain;
  bool is_bias_ = false;
  AlignedBuffer<Scalar> storage_;
};

/// Weights in few bits: moe/kernel/quantised_matrix.hpp.
struct Quantised;
template <>
class PanelMatrix<Quantised>;

/// Weights that a stage can multiply with: a PanelMatrix, a format of codes, or another with these members. outputs()
/// and inputs() are logical, panels() and order() those of a PanelMatrix of that size; source() refers to the object.
template <class W>
concept PanelWeight = requires(const W& weight) {
  { weight.outputs() } -> std::convertible_to<Index>;
  { weight.inputs() } -> std::convertible_to<Index>;
  { weight.panels() } -> std::convertible_to<Index>;
  { weight.order() } -> std::convertible_to<PanelOrder>;
  { weight.source() } -> std::same_as<kernel::PanelSource<typename W::Scalar>>;
};

/// Weights that have a gradient: panels of scalars, which can be added to. Codes are kept and not learned: experts name
/// them in `state` (see moe/core/visit.hpp), and backward goes through them to the rows alone.
template <class W>
concept LearnedWeight = PanelWeight<W> && requires(W& weight, Index panel) {
  { weight.panel(panel) } -> std::same_as<typename W::Scalar*>;
};

}  // namespace moe::inline MOE_ABI
