// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "moe/core/aligned.hpp"
#include "moe/core/parallel.hpp"
#include "moe/core/simd.hpp"
#include "moe/gaussian/model/data.hpp"

namespace moe::inline MOE_ABI::detail {

/// Rows of a block of data, and the distance between its columns. 128 rows of 3 experts and 5 inputs fill 20 KB: L1.
inline constexpr Index kBlockRows = 128;

/// x~ = (x - x_center) / x_scale, y~ = (y - y_center) / y_scale. Variances are the population's (1 / n).
struct Standardisation {
  Eigen::RowVectorXd x_center, x_scale;
  double y_center = 0, y_scale = 1;
  double precision = 1;        ///< mean precision of the rows: variances of experts are in units of it
  double gate_unit = 0;        ///< the scale of all x that a gate of cosines or distances reads; 0: beta_1 . x
  bool moves_centres = false;  ///< does beta_1 move with x?

  static Standardisation none(Index input_dim) {
    return {Eigen::RowVectorXd::Zero(input_dim), Eigen::RowVectorXd::Ones(input_dim)};
  }
};

/// Columns of a block of rows that sums are made of.
struct SummedColumns {
  const double* features;  ///< inputs and ones [d + 1][kBlockRows]
  const double* weights;   ///< of rows, 0 where no row is; null: 1 each
  const double* scale;     ///< that multiplies residuals and what experts read, 0 where no row is; null: 1 each
};

/// A copy of the data that the likelihood streams through: blocks of kBlockRows rows, each stored by columns, x_1 ...
/// x_d, ones, y - offset, and weights and roots of precisions if there are any, so that a register holds one column of
/// several rows. Rows that fill the last block are zero, in the column of ones too: a sum of products with it, or with
/// x, ignores them. Immutable, share freely.
class RowBlocks {
 public:
  RowBlocks(const RegressionData& data, const Standardisation& by)
      : num_rows_(data.num_rows()),
        input_dim_(data.input_dim()),
        weighted_(data.weighted()),
        scaled_(data.precision.size() > 0),
        total_weight_(data.total_weight()),
        columns_(AlignedBuffer<double>::uninitialised(num_blocks() * block_size())) {
    const Eigen::RowVectorXd inverse = by.x_scale.cwiseInverse();
    const double y_inverse = 1 / by.y_scale;
    parallel_ranges(num_blocks(), /*grain=*/64, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b) {
        double* to = columns_.data() + b * block_size();
        std::fill_n(to, block_size(), 0.0);
        for (Index i = 0; i < rows(b); ++i) {
          const Index row = b * kBlockRows + i;
          for (Index c = 0; c < input_dim_; ++c)
            to[c * kBlockRows + i] = (data.x(row, c) - by.x_center(c)) * inverse(c);
          to[input_dim_ * kBlockRows + i] = 1;
          to[(input_dim_ + 1) * kBlockRows + i] = (data.explained(row) - by.y_center) * y_inverse;
          if (weighted_) to[(input_dim_ + 2) * kBlockRows + i] = data.weights(row);
          if (!scaled_) continue;
          double* scale = to + scale_column() * kBlockRows + i;
          scale[0] = std::sqrt(data.precision(row) / by.precision);
          scale[kBlockRows] = 0.5 * std::log(data.precision(row) / by.precision);
        }
      }
    });
  }

  /// The same rows with `more` inputs behind the others, fill(inputs [d][kBlockRows], rows, out [more][kBlockRows]).
  template <class Fill>
  RowBlocks(const RowBlocks& from, Index more, Fill&& fill) : RowBlocks(from) {
    input_dim_ += more;
    columns_ = AlignedBuffer<double>::uninitialised(num_blocks() * block_size());
    const Index inputs = from.input_dim_ * kBlockRows;
    for (Index b = 0; b < num_blocks(); ++b) {
      const double* source = from.features(b);
      double* to = columns_.data() + b * block_size();
      std::copy_n(source, inputs, to);
      std::fill_n(to + inputs, more * kBlockRows, 0.0);
      fill(source, rows(b), to + inputs);
      std::copy(source + inputs, source + from.block_size(), to + inputs + more * kBlockRows);
    }
  }

  Index num_rows() const { return num_rows_; }
  Index input_dim() const { return input_dim_; }
  Index num_blocks() const { return (num_rows_ + kBlockRows - 1) / kBlockRows; }
  /// Rows of block b that are data.
  Index rows(Index b) const { return std::min(kBlockRows, num_rows_ - b * kBlockRows); }

  /// Columns of block b: inputs and ones [d + 1][kBlockRows], then y.
  const double* features(Index b) const { return columns_.data() + b * block_size(); }
  const double* output(Index b) const { return features(b) + (input_dim_ + 1) * kBlockRows; }
  /// Weights of the rows of block b, 0 where no row is; null: 1 each.
  const double* weights(Index b) const { return weighted_ ? features(b) + (input_dim_ + 2) * kBlockRows : nullptr; }
  bool scaled() const { return scaled_; }
  /// Roots of the precisions of the rows of block b, in units of their mean, then their logarithms; 0 where no row is.
  /// Null: 1 and 0 each.
  const double* scale(Index b) const { return scaled_ ? features(b) + scale_column() * kBlockRows : nullptr; }
  SummedColumns summed(Index b) const { return {features(b), weights(b), scale(b)}; }
  double total_weight() const { return total_weight_; }

  /// Asks memory for block b where all blocks exceed the caches: a column is too short for the processor to see a
  /// stream. Inlined, as GCC drops calls of functions that only prefetch.
  [[gnu::always_inline]] void prefetch(Index b) const {
    constexpr Index kLine = 64 / static_cast<Index>(sizeof(double));
    if (b >= num_blocks() || num_blocks() * block_size() < kCached) return;
    for (Index i = 0; i < block_size(); i += kLine) __builtin_prefetch(features(b) + i);
  }

 private:
  static constexpr Index kCached = Index{1} << 20;  // doubles: 8 MB

  Index scale_column() const { return input_dim_ + (weighted_ ? 3 : 2); }
  Index block_size() const { return (scale_column() + (scaled_ ? 2 : 0)) * kBlockRows; }

  Index num_rows_, input_dim_;
  bool weighted_, scaled_;
  double total_weight_;
  AlignedBuffer<double> columns_;
};

}  // namespace moe::inline MOE_ABI::detail
