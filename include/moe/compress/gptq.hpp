// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "moe/compress/quantisation_report.hpp"
#include "moe/core/when_used.hpp"

// Long, as the factor, the rows and the method are read together.
namespace moe::inline MOE_ABI {

/// In which order GPTQ rounds the inputs of a matrix.
enum class ColumnOrder {
  AsStored,    ///< scales of a group are those of its weights when its turn comes
  Activation,  ///< largest mean square first; scales of all groups are those of the weights as they were
};

/// GPTQ as a CalibratedQuantiser: rounds input by input and moves what is left of a row so that its outputs change
/// least. With H = 2 S, S the second moment of what the matrix reads, and U the upper Cholesky factor of
/// (H + damping * mean(diag H) I)^-1, for each input c in order
///   q_c = nearest(w_c),  err = (w_c - q_c) / U_cc,  w_j -= err U_cj for all j behind c
/// so that the sum of err^2 is tr(D H D^T), D = W - V, with the damped H. With H = I the weights are rounded to
/// nearest, bit for bit. Inputs that were 0 in all rows say nothing: their weights are rounded to nearest. A matrix
/// that is singular beyond what damping mends is damped tenfold, again and again, which the report shows. Into all
/// formats. outputs * inputs^2 + 2/3 inputs^3 operations in double, outputs in parallel with the same bits for any
/// number of threads; inputs^2 doubles, and per worker 256 rows of the matrix. Frantar, Ashkboos, Hoefler & Alistarh,
/// "GPTQ", arXiv:2210.17323.
struct Gptq {
  double damping = 0.01;  ///< >= 0
  ColumnOrder order = ColumnOrder::AsStored;
  Index block = 128;  ///< inputs after which the rest of the rows is moved, >= 1: for speed

  /// Throws std::invalid_argument for numbers out of range.
  void validate() const {
    constexpr const char* kFunction = "moe::Gptq";
    if (!(damping >= 0) || std::isinf(damping)) fail(kFunction, ": damping is ", damping, ", expected at least 0");
    if (block < 1) fail(kFunction, ": block is ", block, ", expected at least 1");
  }

  /// Throws std::invalid_argument for weights and moments that are not finite, a moment of other inputs, numbers out of
  /// range, and scales that the format cannot store.
  template <class = detail::WhenUsed>
  PanelMatrix<Quantised> operator()(const PanelMatrix<F32>& weights, const WeightFormat& format,
                                    const SecondMoment& moment, MatrixReport& report) const;
  template <class = detail::WhenUsed>
  PanelMatrix<Quantised> operator()(const PanelMatrix<F32>& weights, const WeightFormat& format,
                                    const SecondMoment& moment) const {
    MatrixReport report;
    return (*this)(weights, format, moment, report);
  }
};

namespace detail {

/// Largest weight of a format without scales.
inline double largest_finite(const WeightFormat& format) {
  if (format.code == WeightCode::F16) return 65504;
  return format.code == WeightCode::Bf16 ? 0x1.FEp127 : largest_code(format);
}

/// U of a damped H, whose inputs are taken in some order.
template <class = WhenUsed>
class InverseFactor {
 public:
  using Storage = Matrix<double>;

  InverseFactor(const SecondMoment& moment, double least_damping, const std::vector<Index>& order)
      : size_(moment.dim()), damping_(least_damping), factor_(size_, size_) {
    double mean = 0;
    Index live = 0;
    for (Index i = 0; i < size_; ++i) {
      mean += 2 * static_cast<double>(moment(i, i));
      if (moment(i, i) > 0) ++live;
    }
    // An input that was never there counts as one like the others, and is coupled to none.
    const double for_dead = live > 0 ? mean / static_cast<double>(live) : 1;
    mean = size_ > 0 ? (mean + for_dead * static_cast<double>(size_ - live)) / static_cast<double>(size_) : 0;
    for (;; damping_ = std::max(10 * damping_, 1e-4)) {
      if (damping_ > 1e6) fail("moe::Gptq: the moment is not positive even with a damping of 1e6");
      fill(moment, order, for_dead, damping_ * mean);
      const Eigen::LLT<Eigen::Ref<Storage>> cholesky(factor_);
      if (cholesky.info() == Eigen::Success && is_positive()) break;
    }
    invert();
    std::reverse(factor_.data(), factor_.data() + factor_.size());
  }

  double damping() const { return damping_; }
  /// Row k, of which the numbers from column k on mean something.
  const double* row(Index k) const { return factor_.data() + k * size_; }

 private:
  /// LLT finds no NaN, and no square that overflows.
  bool is_positive() const {
    const auto diagonal = factor_.diagonal().array();
    return (diagonal > 0).all() && diagonal.allFinite();
  }
  /// The lower triangle of H with its inputs in reverse. H' = L L^T then gives H = R R^T with R upper, and U = R^-1 is
  /// L^-1 in reverse: one factorisation and one inverse, in place.
  void fill(const SecondMoment& moment, const std::vector<Index>& order, double for_dead, double damping) {
    const auto input = [&](Index k) { return order[static_cast<std::size_t>(size_ - 1 - k)]; };
    for (Index k = 0; k < size_; ++k) {
      for (Index l = 0; l <= k; ++l) factor_(k, l) = 2 * static_cast<double>(moment(input(k), input(l)));
      if (!(factor_(k, k) > 0)) factor_(k, k) = for_dead;
      factor_(k, k) += damping;
    }
  }
  /// L^-1 in place, by blocks of rows: (L^-1)_21 = -L_22^-1 (L_21 (L^-1)_11).
  void invert() {
    constexpr Index kBlock = 128;
    for (Index begin = 0; begin < size_; begin += kBlock) {
      const Index count = std::min(kBlock, size_ - begin);
      auto diagonal = factor_.block(begin, begin, count, count);
      const Storage lower = diagonal;
      const auto triangle = lower.template triangularView<Eigen::Lower>();
      if (begin > 0) {
        auto left = factor_.block(begin, 0, count, begin);
        const Storage product = left * factor_.topLeftCorner(begin, begin).template triangularView<Eigen::Lower>();
        left = triangle.solve(-product);
      }
      diagonal.setIdentity();
      triangle.solveInPlace(diagonal);
    }
  }

  Index size_;
  double damping_;
  Storage factor_;
};

/// What GPTQ does with some outputs of a matrix.
template <class = WhenUsed>
class GptqRows {
 public:
  GptqRows(const Gptq& how, const PanelMatrix<F32>& weights, const InverseFactor<>& factor,
           const std::vector<Index>& order, PanelMatrix<Quantised>& result)
      : how_(how),
        weights_(weights),
        factor_(factor),
        order_(order),
        result_(result),
        format_(result.format()),
        matrix_scale_(result.matrix_scale()),
        most_(format_.scale == ScaleType::Unscaled ? largest_finite(format_) : std::numeric_limits<double>::max()),
        inputs_(weights.inputs()),
        group_(format_.scale == ScaleType::Unscaled
                   ? std::max<Index>(1, inputs_)
                   : std::min(format_.group_of(inputs_), std::max<Index>(1, inputs_))) {}

  /// Writes the codes of outputs [begin, end) and returns the sum of err^2.
  double run(Index begin, Index end) const {
    const Index rows = end - begin;
    State state;
    state.w.resize(rows, inputs_);
    state.err.resize(rows, std::min(how_.block, inputs_));
    state.codes.resize(static_cast<std::size_t>(rows * inputs_));
    state.rounding.resize(static_cast<std::size_t>(rows), GroupRounding(format_, matrix_scale_, {}));
    for (Index r = 0; r < rows; ++r)
      for (Index k = 0; k < inputs_; ++k) state.w.row(r)[k] = static_cast<double>(weights_(begin + r, input(k)));
    if (how_.order == ColumnOrder::Activation) fit_as_they_are(begin, rows, state);
    double loss = 0;
    for (Index first = 0; first < inputs_;) {
      const Index last = end_of_block(first);
      for (Index r = 0; r < rows; ++r) loss += round_block(begin + r, r, first, last, state);
      move_rest(rows, first, last, state);
      first = last;
    }
    for (Index r = 0; r < rows; ++r)
      result_.set_codes(
          begin + r, 0,
          std::span(state.codes).subspan(static_cast<std::size_t>(r * inputs_), static_cast<std::size_t>(inputs_)));
    return loss;
  }

 private:
  struct State {
    RowBuffer<double> w, err;             // [rows, inputs], in order; [rows, block]
    std::vector<std::uint32_t> codes;     // [rows, inputs], as stored
    std::vector<GroupRounding> rounding;  // of the group that a row is in; of all groups in the order of activations
  };

  Index input(Index k) const { return order_[static_cast<std::size_t>(k)]; }

  /// Blocks hold whole groups, or lie in one: then all that its weights have to take is done when a group begins.
  Index end_of_block(Index first) const {
    if (how_.order == ColumnOrder::Activation) return std::min(inputs_, first + how_.block);
    if (group_ <= how_.block) return std::min(inputs_, first + how_.block / group_ * group_);
    return std::min({inputs_, first + how_.block, (first / group_ + 1) * group_});
  }

  /// Parameters of a group from its weights, stored beside the codes.
  GroupRounding fit(Index output, Index first_input, std::span<const float> weights) const {
    if (format_.scale == ScaleType::Unscaled) return {format_, 1, {}};
    const GroupParameters parameters = GroupFit(format_, matrix_scale_, weights).best();
    const GroupRounding rounding(format_, matrix_scale_, parameters);
    if (!rounding.is_finite())
      fail("moe::Gptq: output ", output, " has weights from input ", first_input, " on whose scale ", format_.name(),
           " cannot store");
    result_.set_scale(output, first_input / group_, parameters.scale);
    if (format_.has_zero_points) result_.set_zero_point(output, first_input / group_, parameters.zero);
    return rounding;
  }
  void fit_as_they_are(Index begin, Index rows, State& state) const {
    state.rounding.clear();
    std::vector<float> weights(static_cast<std::size_t>(inputs_));
    for (Index r = 0; r < rows; ++r) {
      for (Index i = 0; i < inputs_; ++i) weights[static_cast<std::size_t>(i)] = weights_(begin + r, i);
      for (Index i = 0; i < inputs_; i += group_)
        state.rounding.push_back(
            fit(begin + r, i,
                std::span(weights).subspan(static_cast<std::size_t>(i),
                                           static_cast<std::size_t>(std::min(group_, inputs_ - i)))));
    }
  }
  const GroupRounding& rounding_of(Index output, Index r, Index k, State& state) const {
    if (how_.order == ColumnOrder::Activation) {
      const Index groups = (inputs_ + group_ - 1) / group_;
      return state.rounding[static_cast<std::size_t>(r * groups + input(k) / group_)];
    }
    GroupRounding& rounding = state.rounding[static_cast<std::size_t>(r)];
    if (k % group_ == 0) {
      const double* w = state.w.row(r) + k;
      std::vector<float> weights(w, w + std::min(group_, inputs_ - k));
      rounding = fit(output, k, weights);
    }
    return rounding;
  }

  double round_block(Index output, Index r, Index first, Index last, State& state) const {
    double* const w = state.w.row(r);
    double loss = 0;
    for (Index k = first; k < last; ++k) {
      const GroupRounding& rounding = rounding_of(output, r, k, state);
      const std::uint32_t code = rounding.code(std::clamp(w[k], -most_, most_));
      state.codes[static_cast<std::size_t>(r * inputs_ + input(k))] = code;
      const double* const u = factor_.row(k);
      const double err = (w[k] - static_cast<double>(rounding.weight(code))) / u[k];
      state.err.row(r)[k - first] = err;
      loss += err * err;
      for (Index j = k + 1; j < last; ++j) w[j] -= err * u[j];
    }
    return loss;
  }

  /// w -= err U for all inputs behind a block.
  void move_rest(Index rows, Index first, Index last, State& state) const {
    if (last == inputs_) return;
    constexpr Index kWidth = kernel::kPanelWidth<double>;
    PanelMatrix<F64> panels(inputs_ - last, last - first);
    for (Index k = first; k < last; ++k)
      for (Index j = last; j < inputs_; ++j)
        panels.panel((j - last) / kWidth)[(k - first) * kWidth + (j - last) % kWidth] = factor_.row(k)[j];
    const kernel::PanelSource<double> source = panels.source();
    kernel::multiply<double>(kernel::RowSource<double>::from(state.err), 0, rows, {source, 0, source.panels},
                             [&](Index row, int count, Index panel, const double* sums) {
                               const Index from = last + panel * kWidth, size = std::min(kWidth, inputs_ - from);
                               for (Index r = row; r < row + count; ++r, sums += kWidth)
                                 for (Index j = 0; j < size; ++j) state.w.row(r)[from + j] -= sums[j];
                             });
  }

  const Gptq& how_;
  const PanelMatrix<F32>& weights_;
  const InverseFactor<>& factor_;
  const std::vector<Index>& order_;
  PanelMatrix<Quantised>& result_;
  WeightFormat format_;
  float matrix_scale_;
  double most_;  // moved weights may leave the range of formats without scales
  Index inputs_, group_;
};

/// The codes, what damping they took, and the sum of err^2.
struct GptqResult {
  PanelMatrix<Quantised> matrix;
  double damping = 0, loss = 0;
};

template <class = WhenUsed>
GptqResult gptq(const Gptq& how, const PanelMatrix<F32>& weights, const WeightFormat& format,
                const SecondMoment& moment) {
  constexpr const char* kFunction = "moe::Gptq";
  how.validate();
  require_calibrated(kFunction, weights, moment);
  GptqResult result{.matrix = {weights.outputs(), weights.inputs(), weights.order(), format}};
  if (format.code == WeightCode::Zeros || weights.outputs() == 0 || weights.inputs() == 0) return result;
  float largest = 0;
  for (const float w : weights.span()) largest = std::max(largest, std::abs(w));
  if (format.scale == ScaleType::Unscaled && static_cast<double>(largest) > largest_finite(format))
    fail(kFunction, ": the largest weight is ", largest, ", expected one that ", format.name(), " can hold");
  result.matrix.set_matrix_scale(matrix_scale_of(format, largest));

  std::vector<Index> order(static_cast<std::size_t>(weights.inputs()));
  std::iota(order.begin(), order.end(), Index{0});
  if (how.order == ColumnOrder::Activation)
    std::ranges::stable_sort(order, [&](Index a, Index b) { return moment(a, a) > moment(b, b); });
  const InverseFactor<> factor(moment, how.damping, order);
  const GptqRows<> rows(how, weights, factor, order, result.matrix);
  std::vector<double> loss(static_cast<std::size_t>((weights.outputs() + kOutputsAtOnce - 1) / kOutputsAtOnce));
  parallel_ranges(weights.outputs(), kOutputsAtOnce, [&](Index begin, Index end, Index) {
    loss[static_cast<std::size_t>(begin / kOutputsAtOnce)] = rows.run(begin, end);
  });
  result.damping = factor.damping();
  result.loss = std::accumulate(loss.begin(), loss.end(), 0.0);
  return result;
}

}  // namespace detail

template <class>
PanelMatrix<Quantised> Gptq::operator()(const PanelMatrix<F32>& weights, const WeightFormat& format,
                                        const SecondMoment& moment, MatrixReport& report) const {
  detail::GptqResult result = detail::gptq(*this, weights, format, moment);
  report.damping = result.damping;
  return std::move(result.matrix);
}

}  // namespace moe::inline MOE_ABI
