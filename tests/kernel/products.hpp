// SPDX-License-Identifier: MIT
// Groups of rows with a weight matrix each, as the grouped kernels take them.
#pragma once

#include <vector>

#include "moe/kernel/grouped_gradient.hpp"
#include "moe/kernel/panel_matrix.hpp"
#include "support/matrices.hpp"

namespace test {

/// Groups of rows with a matrix each, between a token matrix and a buffer of results.
template <class Codec>
struct Products {
  using S = typename Codec::Scalar;
  using Panels = moe::PanelMatrix<Codec>;
  static constexpr Index kLanes = moe::simd::kLanes<S>;

  std::vector<Index> offset = {0};
  std::vector<Panels> weight;

  Products(std::vector<Index> rows_of_group, Index outputs, Index inputs) {
    for (const Index rows : rows_of_group) {
      offset.push_back(offset.back() + rows);
      weight.push_back(Panels::from(random_matrix<S>(outputs, inputs, weight.size() + 10)));
    }
  }
  moe::kernel::RowGroups groups() const { return {offset.data(), static_cast<Index>(weight.size())}; }
  Index num_rows() const { return offset.back(); }
  Index outputs() const { return weight[0].outputs(); }
  Index inputs() const { return weight[0].inputs(); }
  const Panels& operator()(Index g) const { return weight[static_cast<std::size_t>(g)]; }

  /// The rows of group g.
  template <class M>
  static auto rows(const M& matrix, const moe::kernel::RowGroups& groups, Index g) {
    return matrix.middleRows(groups.begin(g), groups.size(g));
  }

  /// Puts `count` rows of one panel into their place.
  static void copy(const S* sums, int count, Index row, Index panel, moe::Matrix<S>& out) {
    for (Index r = 0; r < count; ++r)
      std::copy_n(sums + r * Panels::kWidth, Panels::kWidth, out.row(row + r).data() + panel * Panels::kWidth);
  }
  moe::Matrix<S> multiply(const moe::kernel::RowSource<S>& in) const {
    moe::Matrix<S> out = nan_matrix<S>(num_rows(), weight[0].width());
    moe::kernel::TaskList tasks;
    moe::kernel::grouped_multiply<S>(
        groups(), in, [this](Index g) { return (*this)(g).source(); }, tasks,
        [&](Index, Index row, int count, Index panel, const S* sums) { copy(sums, count, row, panel, out); });
    return out.leftCols(outputs());
  }
  /// dout [num_rows, outputs] in padded rows; the padding is `padding`.
  moe::RowBuffer<S> padded(const moe::Matrix<S>& dout, S padding = 0) const {
    moe::RowBuffer<S> rows;
    rows.resize(num_rows(), weight[0].width());
    for (Index r = 0; r < num_rows(); ++r) {
      std::fill_n(rows.row(r), rows.cols(), padding);
      std::copy_n(dout.row(r).data(), outputs(), rows.row(r));
    }
    return rows;
  }
  /// The gradient in whole panels, computed in a buffer that held NaN.
  moe::Matrix<S> input_gradient_panels(const moe::RowBuffer<S>& dout) const {
    moe::Matrix<S> din = nan_matrix<S>(num_rows(), moe::kernel::panels_of<S>(inputs()) * Panels::kWidth);
    moe::kernel::GradientScratch<S> scratch;
    scratch.reserve(weight[0].width() * Panels::kWidth);
    for (auto& buffer : scratch.buffer) std::ranges::fill(buffer.span(), kNan<S>);
    moe::kernel::grouped_input_gradient<S>(
        groups(), moe::kernel::RowSource<S>::from(dout), [this](Index g) { return (*this)(g).source(); }, scratch,
        [&](Index, Index row, int count, Index panel, const S* sums) { copy(sums, count, row, panel, din); });
    return din;
  }
  moe::Matrix<S> input_gradient(const moe::RowBuffer<S>& dout) const {
    return input_gradient_panels(dout).leftCols(inputs());
  }
  struct Gradient {
    std::vector<Panels> weight, bias;
  };
  Gradient zero_gradient() const {
    return {std::vector<Panels>(weight.size(), Panels(outputs(), inputs())),
            std::vector<Panels>(weight.size(), Panels::bias(outputs()))};
  }
  void add_weight_gradient(const moe::Matrix<S>& in, const moe::RowBuffer<S>& dout, Gradient& gradient) const {
    moe::kernel::GradientScratch<S> scratch;
    moe::kernel::grouped_weight_gradient<S>(
        groups(), moe::kernel::RowSource<S>::from(in), moe::kernel::RowSource<S>::from(dout),
        [&](Index g) -> Panels& { return gradient.weight[static_cast<std::size_t>(g)]; },
        [&](Index g) -> Panels& { return gradient.bias[static_cast<std::size_t>(g)]; }, scratch);
  }
};

}  // namespace test
