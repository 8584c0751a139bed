// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "moe/kernel/panel_matrix.hpp"

// Which weights of a matrix may go, by their size and that of the inputs they are multiplied with.
namespace moe::inline MOE_ABI {

/// A byte for each weight of a matrix [outputs, inputs]: 0 where it becomes zero, 1 where it stays.
using WeightMask = Matrix<std::uint8_t>;

/// Zeros in every `of` consecutive inputs, as hardware wants them: N:M sparsity.
struct ZerosIn {
  Index zeros = 2;  ///< in [0, of]
  Index of = 4;     ///< divides the inputs
};

namespace detail {

/// Checks what scores are made of. Throws std::invalid_argument naming the first that is wrong.
inline void require_scores(const char* function, const PanelMatrix<F32>& weights, std::span<const float> column_norms) {
  if (std::ssize(column_norms) != weights.inputs())
    fail(function, ": ", column_norms.size(), " norms, expected one per input = ", weights.inputs());
  for (std::size_t i = 0; i < column_norms.size(); ++i)
    if (!(column_norms[i] >= 0 && std::isfinite(column_norms[i])))
      fail(function, ": the norm of input ", i, " is ", column_norms[i], ", expected a finite number >= 0");
  for (Index o = 0; o < weights.outputs(); ++o)
    for (Index i = 0; i < weights.inputs(); ++i)
      if (!std::isfinite(weights(o, i)))
        fail(function, ": weight of output ", o, ", input ", i, " is ", weights(o, i), ", expected a finite number");
}

/// |w| * norm, exactly: a product of floats is a double.
inline double wanda_score(const PanelMatrix<F32>& weights, std::span<const float> column_norms, Index o, Index i) {
  return std::abs(static_cast<double>(weights(o, i))) * static_cast<double>(column_norms[static_cast<std::size_t>(i)]);
}

/// A mask with `zeros` in every `of` consecutive inputs of an output: the lowest scores, ties the lower input.
inline WeightMask mask_lowest(const PanelMatrix<F32>& weights, std::span<const float> column_norms, Index zeros,
                              Index of) {
  WeightMask mask = WeightMask::Ones(weights.outputs(), weights.inputs());
  std::vector<double> score(column_norms.size());
  std::vector<Index> order(static_cast<std::size_t>(of));
  for (Index o = 0; o < weights.outputs() && zeros > 0; ++o) {
    for (Index i = 0; i < weights.inputs(); ++i)
      score[static_cast<std::size_t>(i)] = wanda_score(weights, column_norms, o, i);
    for (Index begin = 0; begin < weights.inputs(); begin += of) {
      std::iota(order.begin(), order.end(), begin);
      std::nth_element(order.begin(), order.begin() + (zeros - 1), order.end(), [&](Index a, Index b) {
        const double x = score[static_cast<std::size_t>(a)], y = score[static_cast<std::size_t>(b)];
        return x < y || (x == y && a < b);
      });
      for (Index k = 0; k < zeros; ++k) mask(o, order[static_cast<std::size_t>(k)]) = 0;
    }
  }
  return mask;
}

}  // namespace detail

/// Wanda: of every output the floor(sparsity * inputs) weights of the lowest
///   score = |w_oi| * ||x_i||_2
/// go, where x_i is what input i was over some data; ties go to the lower input. No gradient, no update of the rest.
///   weights       [outputs, inputs], finite; a bias has no part in it
///   column_norms  [inputs], finite, >= 0: of what this matrix really reads, as the tokens of its expert, or the hidden
///                 rows of them; all 1 gives the largest weights
///   sparsity      in [0, 1]; a product within 1e-9 of a whole number is that number
/// Throws std::invalid_argument otherwise. O(outputs * inputs), one thread.
/// Sun et al., "A simple and effective pruning approach for large language models" (arXiv:2306.11695).
inline WeightMask wanda(const PanelMatrix<F32>& weights, std::span<const float> column_norms, double sparsity) {
  constexpr const char* kFunction = "moe::wanda";
  detail::require_scores(kFunction, weights, column_norms);
  if (!(sparsity >= 0 && sparsity <= 1)) fail(kFunction, ": sparsity is ", sparsity, ", expected a value in [0, 1]");
  const Index inputs = weights.inputs();
  const auto zeros = static_cast<Index>(std::floor(sparsity * static_cast<double>(inputs) + 1e-9));
  return detail::mask_lowest(weights, column_norms, zeros, inputs);
}

/// The same of every `of` consecutive inputs. Throws std::invalid_argument also unless `of` divides the inputs.
///   moe::wanda(weights, norms, moe::ZerosIn{.zeros = 2, .of = 4})
inline WeightMask wanda(const PanelMatrix<F32>& weights, std::span<const float> column_norms, const ZerosIn& pattern) {
  constexpr const char* kFunction = "moe::wanda";
  detail::require_scores(kFunction, weights, column_norms);
  if (pattern.of < 1 || weights.inputs() % pattern.of != 0)
    fail(kFunction, ": of is ", pattern.of, ", expected a divisor of the inputs = ", weights.inputs());
  if (pattern.zeros < 0 || pattern.zeros > pattern.of)
    fail(kFunction, ": zeros is ", pattern.zeros, ", expected 0 <= zeros <= of = ", pattern.of);
  return detail::mask_lowest(weights, column_norms, pattern.zeros, pattern.of);
}

/// Sets the weights of a mask that are 0 to +0. Throws std::invalid_argument for a mask of another shape.
inline void apply_mask(PanelMatrix<F32>& weights, const WeightMask& mask) {
  detail::require_shape("moe::apply_mask", "mask", mask, weights.outputs(), weights.inputs());
  for (Index o = 0; o < weights.outputs(); ++o)
    for (Index i = 0; i < weights.inputs(); ++i)
      if (mask(o, i) == 0) weights(o, i) = 0;
}

/// The share of the weights of a matrix whose score, see wanda(), is more than `times` the mean score: how much of what
/// it does hangs on a few. In [0, 1]; 0 of a matrix without weights. Throws std::invalid_argument as wanda(), and
/// unless times >= 0 and finite. Yin et al., "Outlier weighed layerwise sparsity (OWL)" (arXiv:2310.05175).
inline double outlier_ratio(const PanelMatrix<F32>& weights, std::span<const float> column_norms, double times = 5) {
  constexpr const char* kFunction = "moe::outlier_ratio";
  detail::require_scores(kFunction, weights, column_norms);
  if (!(times >= 0 && std::isfinite(times))) fail(kFunction, ": times is ", times, ", expected a finite number >= 0");
  const auto all = static_cast<double>(weights.outputs()) * static_cast<double>(weights.inputs());
  if (all == 0) return 0;
  const auto sum_of = [&](const auto& term) {
    double sum = 0;
    for (Index o = 0; o < weights.outputs(); ++o)
      for (Index i = 0; i < weights.inputs(); ++i) sum += term(detail::wanda_score(weights, column_norms, o, i));
    return sum;
  };
  const double mean = sum_of([](double score) { return score; }) / all;
  return sum_of([&](double score) { return score > times * mean ? 1.0 : 0.0; }) / all;
}

/// OWL: how sparse each of several layers (or matrices of equal size) becomes, so that those with more outliers keep
/// more. With d_l the ratios brought to [0, 2 spread] by (d - min) / (max - min) * 2 spread,
///   sparsity_l = sparsity - (d_l - mean of d)
/// which has mean `sparsity`; where that leaves [0, 1] it is clamped, and the mean is another. Equal ratios give
/// `sparsity` to all.
///   outlier_ratios  see outlier_ratio(), finite      sparsity in [0, 1]      spread >= 0, finite: lambda
/// Throws std::invalid_argument otherwise. Yin et al. (arXiv:2310.05175).
inline std::vector<double> owl_sparsities(std::span<const double> outlier_ratios, double sparsity,
                                          double spread = 0.08) {
  constexpr const char* kFunction = "moe::owl_sparsities";
  for (std::size_t l = 0; l < outlier_ratios.size(); ++l)
    if (!std::isfinite(outlier_ratios[l]))
      fail(kFunction, ": ratio ", l, " is ", outlier_ratios[l], ", expected a finite number");
  if (!(sparsity >= 0 && sparsity <= 1)) fail(kFunction, ": sparsity is ", sparsity, ", expected a value in [0, 1]");
  if (!(spread >= 0 && std::isfinite(spread)))
    fail(kFunction, ": spread is ", spread, ", expected a finite number >= 0");
  std::vector<double> result(outlier_ratios.size(), sparsity);
  if (result.empty()) return result;
  const auto [least, most] = std::ranges::minmax(outlier_ratios);
  if (least == most) return result;
  double mean = 0;
  for (std::size_t l = 0; l < result.size(); ++l) {
    result[l] = (outlier_ratios[l] - least) / (most - least) * 2 * spread;
    mean += result[l] / static_cast<double>(result.size());
  }
  for (double& of_layer : result) of_layer = std::clamp(sparsity - (of_layer - mean), 0.0, 1.0);
  return result;
}

}  // namespace moe::inline MOE_ABI
