// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "moe/core/visit.hpp"
#include "moe/kernel/grouped_gemm.hpp"
#include "moe/kernel/panel_matrix.hpp"

namespace moe::inline MOE_ABI {

/// What a weight matrix has read: the sum over rows of x x^T [dim, dim], and the number of rows. With it the squared
/// error of the outputs of other weights is known: sum over rows of |(W - V) x|^2 = tr((W - V) S (W - V)^T).
/// Holds dim (dim + 1) / 2 floats, the lower triangle row by row, each the sum in double of 256 rows at a time. A plain
/// value, saved and loaded as state.
class SecondMoment {
 public:
  SecondMoment() = default;
  /// Of no rows. Throws std::invalid_argument for a negative size.
  explicit SecondMoment(Index dim)
      : dim_(detail::checked_size("moe::SecondMoment", "dim", dim)),
        sum_(Eigen::VectorXf::Zero(detail::checked_product("moe::SecondMoment", dim, dim + 1) / 2)) {}
  /// Of the rows of a matrix [num_rows, dim].
  static SecondMoment of(const ConstMatrixRef<float>& rows) {
    SecondMoment result(rows.cols());
    result.add(kernel::RowSource<float>::from(rows), 0, rows.rows());
    return result;
  }

  Index dim() const { return dim_; }
  bool empty() const { return dim_ == 0; }
  /// At most 2^53; 0 where what was loaded is no number.
  Index rows() const { return rows_ > 0 ? static_cast<Index>(std::min(rows_, kMostRows)) : 0; }
  float operator()(Index i, Index j) const { return sum_[place(std::max(i, j), std::min(i, j))]; }
  /// Mean of the squares of input i; 0 without rows.
  double mean_square(Index i) const {
    return rows_ > 0 ? static_cast<double>(sum_[place(i, i)]) / std::max(1.0, rows_) : 0.0;
  }
  /// Norms of the inputs over all rows, [dim], for wanda(): sqrt(sum of x_i^2).
  std::vector<float> column_norms() const {
    std::vector<float> norms;
    for (Index i = 0; i < dim_; ++i) norms.push_back(std::sqrt(sum_[place(i, i)]));
    return norms;
  }
  /// Whether all sums are, and there may be so many rows: what was loaded can be anything.
  bool is_finite() const { return rows_ >= 0 && rows_ <= kMostRows && sum_.allFinite(); }

  /// Adds rows [begin, end), of which the first dim() columns are read. num_rows * dim * dim operations, one thread:
  /// the same bits on any number of them.
  template <class S>
  void add(const kernel::RowSource<S>& rows, Index begin, Index end) {
    for (Index first = begin; first < end; first += kRowsAtOnce)
      add_some(rows, first, std::min(end, first + kRowsAtOnce));
    rows_ += static_cast<double>(end - begin);
  }
  /// Adds the rows of the other. Throws std::invalid_argument if it is of another size.
  SecondMoment& operator+=(const SecondMoment& other) {
    if (other.dim_ != dim_) fail("moe::SecondMoment: += of ", other.dim_, " inputs, expected ", dim_);
    rows_ += other.rows_;
    sum_ += other.sum_;
    return *this;
  }
  /// That of the rows whose input i is multiplied by factor[i]. Throws std::invalid_argument for another number.
  SecondMoment scaled(std::span<const float> factor) const {
    if (std::ssize(factor) != dim_) fail("moe::SecondMoment::scaled: ", factor.size(), " factors, expected ", dim_);
    SecondMoment result = *this;
    for (Index i = 0; i < dim_; ++i)
      for (Index j = 0; j <= i; ++j)
        result.sum_[place(i, j)] *= factor[static_cast<std::size_t>(i)] * factor[static_cast<std::size_t>(j)];
    return result;
  }

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("rows", self.rows_...);
    f("sum", self.sum_...);
  }

 private:
  static constexpr Index kRowsAtOnce = 256;    // 2 MiB of doubles for 1024 inputs, twice
  static constexpr double kMostRows = 0x1p53;  // counted one by one in a double

  static Index place(Index i, Index j) { return i * (i + 1) / 2 + j; }

  /// X^T X as a product of rows, those of X^T, with panels, which are columns of X.
  template <class S>
  void add_some(const kernel::RowSource<S>& rows, Index begin, Index end) {
    constexpr Index kWidth = kernel::kPanelWidth<double>;
    RowBuffer<double> columns;
    columns.resize(dim_, end - begin);
    PanelMatrix<F64> panels(dim_, end - begin);
    for (Index r = begin; r < end; ++r)
      for (Index i = 0; i < dim_; ++i) {
        const auto x = static_cast<double>(rows.row(r)[i]);
        columns.row(i)[r - begin] = x;
        panels.panel(i / kWidth)[(r - begin) * kWidth + i % kWidth] = x;
      }
    const kernel::PanelSource<double> source = panels.source();
    for (Index p = 0; p < source.panels; ++p)  // below the diagonal
      kernel::multiply<double>(kernel::RowSource<double>::from(columns), p * kWidth, dim_, {source, p, p + 1},
                               [&](Index row, int count, Index panel, const double* sums) {
                                 for (Index r = 0; r < count; ++r)
                                   add_to_row(row + r, panel * kWidth, sums + r * kWidth);
                               });
  }
  void add_to_row(Index i, Index first, const double* sums) {
    const Index last = std::min(i + 1, first + kernel::kPanelWidth<double>);
    for (Index j = first; j < last; ++j) {
      float& sum = sum_[place(i, j)];
      sum = static_cast<float>(static_cast<double>(sum) + sums[j - first]);
    }
  }

  Index dim_ = 0;
  double rows_ = 0;
  Eigen::VectorXf sum_;
};

namespace detail {

/// Throws std::invalid_argument, in the name of a method, for what it cannot compute with.
inline void require_calibrated(const char* function, const PanelMatrix<F32>& weights, const SecondMoment& moment) {
  if (moment.dim() != weights.inputs())
    fail(function, ": the moment is of ", moment.dim(), " inputs, expected ", weights.inputs());
  if (!moment.is_finite()) fail(function, ": the moment has a number that is not finite, expected finite rows");
  for (Index o = 0; o < weights.outputs(); ++o)
    for (Index i = 0; i < weights.inputs(); ++i)
      if (!std::isfinite(weights(o, i)))
        fail(function, ": weight of output ", o, ", input ", i, " is ", weights(o, i), ", expected a finite one");
}

/// Rows of weights that one task works on.
inline constexpr Index kOutputsAtOnce = 256;

/// d_o S d_o^T for every output, where difference(o, i) is d_o[i]: the squared errors of the outputs, whose sum is
/// tr(D S D^T). 2 * outputs * dim^2 operations, in parallel; kOutputsAtOnce + 512 rows of doubles per worker.
template <class Difference>
std::vector<double> output_errors(Index outputs, const SecondMoment& moment, const Difference& difference) {
  constexpr Index kWidth = kernel::kPanelWidth<double>, kColumns = 512;
  const Index dim = moment.dim();
  std::vector<double> errors(static_cast<std::size_t>(outputs));
  parallel_ranges(outputs, kOutputsAtOnce, [&](Index begin, Index end, Index) {
    RowBuffer<double> rows;
    rows.resize(end - begin, dim);
    for (Index o = begin; o < end; ++o)
      for (Index i = 0; i < dim; ++i) rows.row(o - begin)[i] = difference(o, i);
    for (Index first = 0; first < dim; first += kColumns) {
      const Index columns = std::min(kColumns, dim - first);
      PanelMatrix<F64> panels(columns, dim);
      for (Index j = 0; j < columns; ++j)
        for (Index i = 0; i < dim; ++i)
          panels.panel(j / kWidth)[i * kWidth + j % kWidth] = static_cast<double>(moment(i, first + j));
      const kernel::PanelSource<double> source = panels.source();
      kernel::multiply<double>(kernel::RowSource<double>::from(rows), 0, end - begin, {source, 0, source.panels},
                               [&](Index row, int count, Index panel, const double* sums) {
                                 const Index from = panel * kWidth, size = std::min(kWidth, columns - from);
                                 for (Index r = row; r < row + count; ++r, sums += kWidth)
                                   for (Index j = 0; j < size; ++j)
                                     errors[static_cast<std::size_t>(begin + r)] +=
                                         sums[j] * rows.row(r)[first + from + j];
                               });
    }
  });
  return errors;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
