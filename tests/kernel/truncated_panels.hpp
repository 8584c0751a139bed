// SPDX-License-Identifier: MIT
// A format of codes for tests of what any format rests on: the upper 16 bits of every float, in panels.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "moe/kernel/panel_matrix.hpp"
#include "moe/kernel/tile.hpp"

namespace test {

/// Expanded leaves few rows to decode(), Streamed has a product of its own for them.
enum class FewRows { Expanded, Streamed };

template <FewRows few_rows>
struct Truncated {
  using Storage = std::uint16_t;
  using Scalar = float;
};

inline std::uint16_t truncated(float value) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
}
inline float restored(std::uint16_t code) { return std::bit_cast<float>(std::uint32_t{code} << 16); }

}  // namespace test

namespace moe::inline MOE_ABI {

template <test::FewRows few_rows>
class PanelMatrix<test::Truncated<few_rows>> {
 public:
  using Scalar = float;
  static constexpr Index kWidth = kernel::kPanelWidth<float>;

  PanelMatrix() = default;
  PanelMatrix(Index outputs, Index inputs, PanelOrder order = PanelOrder::Plain)
      : outputs_(outputs), inputs_(inputs), order_(order) {
    const Index units = order == PanelOrder::Paired ? outputs / 2 : outputs;
    const Index width = order == PanelOrder::Paired ? kWidth / 2 : kWidth;
    panels_ = (units + width - 1) / width;
    codes_ = std::make_shared<Codes>(static_cast<std::size_t>(panels_ * inputs * kWidth));
  }

  /// The codes of the weights of another matrix.
  static PanelMatrix from(const PanelMatrix<F32>& weights) {
    PanelMatrix result(weights.outputs(), weights.inputs(), weights.order());
    for (Index o = 0; o < weights.outputs(); ++o)
      for (Index i = 0; i < weights.inputs(); ++i) result.set(o, i, weights(o, i));
    return result;
  }

  Index outputs() const { return outputs_; }
  Index inputs() const { return inputs_; }
  Index panels() const { return panels_; }
  PanelOrder order() const { return order_; }
  kernel::PanelSource<float> source() const {
    return {.inputs = inputs(), .panels = panels(), .decoder = &kDecoder, .matrix = this};
  }

  float get(Index output, Index input) const { return test::restored((*codes_)[place(output, input)]); }
  void set(Index output, Index input, float value) {
    if (codes_.use_count() > 1) codes_ = std::make_shared<Codes>(*codes_);
    (*codes_)[place(output, input)] = test::truncated(value);
  }
  const std::uint16_t* codes() const { return codes_->data(); }

  static inline std::atomic<Index> products = 0;  ///< calls of multiply()

  std::vector<Index> shape() const { return {outputs_, inputs_}; }
  template <class S>
  void read(std::span<S> values) const {
    for (Index o = 0; o < outputs(); ++o)
      for (Index i = 0; i < inputs(); ++i)
        values[static_cast<std::size_t>(o * inputs() + i)] = static_cast<S>(get(o, i));
  }
  template <class S>
  void write(std::span<const S> values) {
    for (Index o = 0; o < outputs(); ++o)
      for (Index i = 0; i < inputs(); ++i)
        set(o, i, static_cast<float>(values[static_cast<std::size_t>(o * inputs() + i)]));
  }

 private:
  using Codes = std::vector<std::uint16_t>;

  std::size_t place(Index output, Index input) const {
    const Index lanes = kWidth / 2, half = outputs() / 2;
    Index panel = output / kWidth, column = output % kWidth;
    if (order() == PanelOrder::Paired) {
      const Index unit = output < half ? output : output - half;
      panel = unit / lanes;
      column = unit % lanes + (output < half ? 0 : lanes);
    }
    return static_cast<std::size_t>((panel * inputs() + input) * kWidth + column);
  }
  const std::uint16_t* panel(Index p) const { return codes_->data() + p * inputs() * kWidth; }

  static void decode(const void* matrix, Index p, Index begin, Index end, float* to) {
    const auto* const codes = static_cast<const PanelMatrix*>(matrix)->panel(p) + begin * kWidth;
    for (Index i = 0; i < (end - begin) * kWidth; ++i) to[i] = test::restored(codes[i]);
  }
  static void multiply(const void* matrix, const float* const* rows, int num_rows, Index first, Index apart,
                       int streams, float* sums) {
    ++products;
    const auto& self = *static_cast<const PanelMatrix*>(matrix);
    for (int q = 0; q < streams; ++q)
      for (int r = 0; r < num_rows; ++r)
        for (Index c = 0; c < kWidth; ++c) {
          float sum = 0;
          for (Index i = 0; i < self.inputs(); ++i)
            sum = std::fma(rows[r][i], test::restored(self.panel(first + q * apart)[i * kWidth + c]), sum);
          sums[(q * num_rows + r) * kWidth + c] = sum;
        }
  }
  static constexpr kernel::PanelDecoder<float> kDecoder = {
      .decode = &decode, .multiply = few_rows == test::FewRows::Streamed ? &multiply : nullptr};

  Index outputs_ = 0, inputs_ = 0, panels_ = 0;
  PanelOrder order_ = PanelOrder::Plain;
  std::shared_ptr<Codes> codes_;
};

}  // namespace moe::inline MOE_ABI
