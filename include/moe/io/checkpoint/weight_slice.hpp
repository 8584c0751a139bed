// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "moe/io/checkpoint/weight_source.hpp"
#include "moe/kernel/panel_matrix.hpp"

namespace moe::inline MOE_ABI {

/// Which of the last two extents of a stored weight are outputs: a row per output (as PyTorch's Linear stores it), or a
/// row per input.
enum class WeightLayout { OutIn, InOut };

/// Which values of a stored weight go where: the one description from the names of a family to the panels.
///   (*to)(first_output + o, i) = value first + o * output_stride + i * input_stride,   o < outputs, i < inputs
/// Every layout of the published families is a list of these, to be read and to be written:
///   weight_slice(source, WeightLayout::InOut, expert)                 one expert of a fused tensor [E, in, out]
///   weight_slice(...).every_output(2, 0), (2, 1)                      gates and ups that stand in turns
///   weight_slice(source, WeightLayout::OutIn).output_range(e * n, n)  one expert of stacked rows [E * n, in]
/// A plain value; the handle in it keeps the checkpoint open, the matrix must outlive it.
struct WeightSlice {
  WeightSource source = {};  ///< none where names and shapes alone are known
  Index outputs = 0, inputs = 0;
  Index first = 0, output_stride = 0, input_stride = 0;
  PanelMatrix<F32>* to = nullptr;
  Index first_output = 0;
  PanelMatrix<Quantised>* to_codes = nullptr;  ///< instead of `to`: weights in few bits

  /// The same, to fill rows [first_output, first_output + outputs) of a matrix: with PanelOrder::Paired gates, then
  /// ups.
  WeightSlice into(PanelMatrix<F32>& matrix, Index row = 0) const { return into(&matrix, nullptr, row); }
  WeightSlice into(PanelMatrix<Quantised>& matrix, Index row = 0) const { return into(nullptr, &matrix, row); }
  /// The same, to fill the rows from `row` on of the matrix that it fills.
  WeightSlice at_output(Index row) const { return into(to, to_codes, row); }
  /// Outputs [begin, begin + count). Throws std::invalid_argument where there are fewer.
  WeightSlice output_range(Index begin, Index count) const {
    require_range("output_range", begin, count, outputs);
    WeightSlice part = *this;
    part.outputs = count;
    part.first += count == 0 ? 0 : begin * output_stride;
    return part;
  }
  /// Inputs [begin, begin + count). Throws std::invalid_argument where there are fewer.
  WeightSlice input_range(Index begin, Index count) const {
    require_range("input_range", begin, count, inputs);
    WeightSlice part = *this;
    part.inputs = count;
    part.first += count == 0 ? 0 : begin * input_stride;
    return part;
  }
  /// Outputs offset, offset + step, offset + 2 step, ... Throws std::invalid_argument unless 0 <= offset < step, and
  /// std::runtime_error unless `step` divides the outputs.
  WeightSlice every_output(Index step, Index offset) const {
    if (offset < 0 || offset >= step)
      fail("moe::WeightSlice::every_output: offset = ", offset, ", expected 0 <= offset < step = ", step);
    require_divisible(step);
    WeightSlice part = *this;
    part.outputs /= step;
    part.first += part.outputs == 0 ? 0 : offset * output_stride;
    part.output_stride *= step;
    return part;
  }
  /// Throws std::runtime_error naming the weight unless `parts` divides the outputs.
  void require_divisible(Index parts) const {
    if (outputs % parts != 0)
      fail_environment(source.label(), ": weight ", detail::in_quotes(source.name()), " has ", outputs,
                       " outputs, expected a multiple of ", parts);
  }
  /// Bytes in the file that the slice reads.
  std::uint64_t bytes() const {
    const double share =
        static_cast<double>(outputs) * static_cast<double>(inputs) / std::max(1.0, static_cast<double>(source.size()));
    return static_cast<std::uint64_t>(share * static_cast<double>(source.bytes()));
  }
  /// Throws std::invalid_argument unless all elements are values of the weight: for slices made by hand.
  void require_inside() const {
    if (outputs == 0 || inputs == 0) return;
    const auto reach = [](Index extent, Index stride) {
      return static_cast<double>(extent - 1) * static_cast<double>(stride);
    };
    const double last = static_cast<double>(first) + reach(outputs, output_stride) + reach(inputs, input_stride);
    const bool is_inside = outputs > 0 && inputs > 0 && first >= 0 && output_stride >= 0 && input_stride >= 0 &&
                           last < static_cast<double>(source.size());
    if (!is_inside)
      fail("moe::WeightSlice: ", outputs, " x ", inputs, " elements from ", first, " on with strides ", output_stride,
           " and ", input_stride, " of ", detail::in_quotes(source.name()), ", which has ", source.size(), " values");
  }

 private:
  WeightSlice into(PanelMatrix<F32>* floats, PanelMatrix<Quantised>* codes, Index row) const {
    WeightSlice part = *this;
    part.to = floats;
    part.to_codes = codes;
    part.first_output = row;
    return part;
  }
  void require_range(const char* function, Index begin, Index count, Index size) const {
    if (begin < 0 || count < 0 || begin > size || count > size - begin)
      fail("moe::WeightSlice::", function, ": [", begin, ", ", begin, " + ", count, ") of ", size, " in ",
           detail::in_quotes(source.name()));
  }
};

/// Matrix number `matrix` of a weight [.., rows, columns], the extents before the last two counted as one; they may be
/// missing. Throws std::runtime_error naming the weight for fewer than two extents, std::invalid_argument for a matrix
/// that it does not have.
inline WeightSlice weight_slice(const WeightSource& source, WeightLayout layout, Index matrix = 0) {
  const std::vector<Index>& shape = source.shape();
  if (shape.size() < 2)
    fail_environment(source.label(), ": weight ", detail::in_quotes(source.name()), " has shape [",
                     detail::join(shape, ", "), "], expected at least two extents");
  const Index rows = *(shape.end() - 2), columns = shape.back();
  Index matrices = 1;
  for (std::size_t i = 0; source.size() != 0 && i + 2 < shape.size(); ++i) matrices *= shape[i];
  if (matrix < 0 || matrix >= matrices)
    fail("moe::weight_slice: matrix ", matrix, " of ", detail::in_quotes(source.name()), ", expected one of ",
         matrices);
  const Index first = source.size() == 0 ? 0 : matrix * rows * columns;
  if (layout == WeightLayout::OutIn)
    return {.source = source,
            .outputs = rows,
            .inputs = columns,
            .first = first,
            .output_stride = columns,
            .input_stride = 1};
  return {.source = source,
          .outputs = columns,
          .inputs = rows,
          .first = first,
          .output_stride = 1,
          .input_stride = columns};
}

/// Vector number `vector` of a bias [.., outputs], as a matrix with one input. Throws as weight_slice() does.
inline WeightSlice bias_slice(const WeightSource& source, Index vector = 0) {
  if (source.shape().empty())
    fail_environment(source.label(), ": bias ", detail::in_quotes(source.name()), " is a number, expected a vector");
  const Index outputs = source.shape().back();
  const Index vectors = outputs == 0 ? 1 : source.size() / outputs;
  if (vector < 0 || vector >= vectors)
    fail("moe::bias_slice: vector ", vector, " of ", detail::in_quotes(source.name()), ", expected one of ", vectors);
  return {.source = source,
          .outputs = outputs,
          .inputs = 1,
          .first = vector * outputs,
          .output_stride = 1,
          .input_stride = 1};
}

}  // namespace moe::inline MOE_ABI
