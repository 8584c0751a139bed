// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/core/parallel.hpp"
#include "moe/core/visit.hpp"
#include "moe/layer/workspace.hpp"

// How much a whole layer does to the stream that its output is added to: which of the layers of a model may lose most.
namespace moe::inline MOE_ABI {

/// How far a layer turns the stream of a model: sums over tokens of cos(x, x + y), x the stream before the layer and y
/// what that adds. Batches and ranks add up. A plain value.
struct BlockImportance {
  double tokens = 0;
  double cosine = 0;  ///< sum of cosines; that of a stream which is 0 before and after is 1, of one that is 0 once, 0

  /// 1 - mean cosine, in [0, 2]: 0 for a layer that changes the direction of no token, and of no tokens.
  /// Men et al., "ShortGPT: layers in large language models are more redundant than you expect" (arXiv:2403.03853).
  double score() const { return tokens > 0 ? std::clamp(1 - cosine / tokens, 0.0, 2.0) : 0; }
  BlockImportance& operator+=(const BlockImportance& other) {
    tokens += other.tokens;
    cosine += other.cosine;
    return *this;
  }

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("tokens", self.tokens...);
    f("cosine", self.cosine...);
  }
};

namespace detail {

/// The cosine of two rows, scaled by their largest numbers, whose squares may leave the range; NaN where one is not
/// finite.
template <class Row, class Other>
double cosine_of_rows(const Row& a, const Other& b) {
  if (!a.allFinite() || !b.allFinite()) return std::numeric_limits<double>::quiet_NaN();
  const auto most_a = static_cast<double>(a.cwiseAbs().maxCoeff());
  const auto most_b = static_cast<double>(b.cwiseAbs().maxCoeff());
  if (most_a == 0 || most_b == 0) return most_a == most_b ? 1 : 0;
  double of_a = 0, of_b = 0, both = 0;
  for (Index i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]) / most_a, y = static_cast<double>(b[i]) / most_b;
    of_a += x * x, of_b += y * y, both += x * y;
  }
  return both / (std::sqrt(of_a) * std::sqrt(of_b));
}

}  // namespace detail

/// Of a stream before and after a layer, both [num_tokens, dim]. Same bits for any number of threads. Throws
/// std::invalid_argument for other shapes, and numbers that are not finite. O(num_tokens * dim).
template <class S>
BlockImportance importance_of_streams(const ConstMatrixRef<S>& before, const ConstMatrixRef<S>& after) {
  constexpr const char* kFunction = "moe::importance_of_streams";
  detail::require_shape(kFunction, "after", after, before.rows(), before.cols());
  if (before.cols() < 1) fail(kFunction, ": the streams have 0 columns, expected at least 1");
  std::vector<double> cosines(static_cast<std::size_t>(before.rows()));
  parallel_ranges(before.rows(), 64, [&](Index begin, Index end, Index) {
    for (Index t = begin; t < end; ++t)
      cosines[static_cast<std::size_t>(t)] = detail::cosine_of_rows(before.row(t), after.row(t));
  });
  BlockImportance sum{.tokens = static_cast<double>(before.rows())};
  for (std::size_t t = 0; t < cosines.size(); ++t) {
    if (!std::isfinite(cosines[t])) fail(kFunction, ": token ", t, " is not finite, expected finite streams");
    sum.cosine += cosines[t];
  }
  return sum;
}

/// Of a layer at inference, with what stands around it in a model: `tokens` are what it reads, behind the norm before
/// it, and `stream`, [num_tokens, output_dim], what its output is added to; tokens where there is no norm. Of a layer,
/// WithBranches or a published block, whose shared experts count, too.
///   const double importance = moe::block_importance(block, tokens, stream).score();
/// Layers with the highest scores are those to leave as they are: multiply shares() of the experts of each by it before
/// keep_best() looks at all layers, or give it to owl_sparsities() in place of outlier ratios. Throws
/// std::invalid_argument as forward and importance_of_streams().
template <class Layer>
BlockImportance block_importance(const Layer& layer, const MatrixView<typename Layer::Scalar>& tokens,
                                 const MatrixView<typename Layer::Scalar>& stream) {
  using S = typename Layer::Scalar;
  detail::require_shape("moe::block_importance", "stream", stream, tokens.rows(), layer.output_dim());
  Matrix<S> after(tokens.rows(), layer.output_dim());
  BasicWorkspace<S> workspace;
  layer.forward(tokens, Step{}, after, workspace);
  after += stream;
  return importance_of_streams<S>(stream, after);
}
template <class Layer>
BlockImportance block_importance(const Layer& layer, const MatrixView<typename Layer::Scalar>& tokens) {
  return block_importance(layer, tokens, tokens);
}

}  // namespace moe::inline MOE_ABI
