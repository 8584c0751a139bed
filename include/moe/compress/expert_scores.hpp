// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "moe/compress/calibration.hpp"
#include "moe/expert/pool.hpp"

// What experts have to do with each other, and single matrices with few bits. Scores of use are ExpertUse's.
namespace moe::inline MOE_ABI {

/// Scores divided by their sum, so that those of layers, or of kinds of data, are on one scale; all 0 stay 0. Throws
/// std::invalid_argument for a score that is negative or not finite.
inline std::vector<double> shares(std::span<const double> scores) {
  double sum = 0;
  for (std::size_t e = 0; e < scores.size(); ++e) {
    if (!(scores[e] >= 0) || !std::isfinite(scores[e]))
      fail("moe::shares: the score of expert ", e, " is ", scores[e], ", expected a finite number >= 0");
    sum += scores[e];
  }
  std::vector<double> result(scores.begin(), scores.end());
  for (double& share : result) share = sum > 0 ? share / sum : 0;
  return result;
}
/// Sum of the shares of several kinds of data, each of the same weight: the mixed domains of EASY-EP. Throws
/// std::invalid_argument for none, for different numbers of experts, and as shares().
inline std::vector<double> mixed_shares(const std::vector<std::vector<double>>& kinds) {
  if (kinds.empty()) fail("moe::mixed_shares: 0 kinds of scores, expected at least 1");
  std::vector<double> sum(kinds[0].size());
  for (const auto& scores : kinds) {
    if (scores.size() != sum.size())
      fail("moe::mixed_shares: ", scores.size(), " scores, expected ", sum.size(), " as of the first kind");
    const std::vector<double> share = shares(scores);
    for (std::size_t e = 0; e < sum.size(); ++e) sum[e] += share[e];
  }
  return sum;
}

/// Row e of a router: its weights for expert e, [num_experts, model_dim]; biases are left out.
template <class R>
  requires requires(const R& router) { router.weight().matrix(); }
auto router_rows(const R& router) {
  return router.weight().matrix();
}

/// Distances |w_i - w_j| of the rows of a router, [num_experts, num_experts]: experts that are asked for by the same
/// tokens are near. No data is needed. Lee et al., "STUN" (arXiv:2409.06211).
template <class R>
  requires requires(const R& router) { router.weight().matrix(); }
Matrix<double> router_distance(const R& router) {
  const Matrix<double> rows = router_rows(router).template cast<double>();
  Matrix<double> distance = Matrix<double>::Zero(rows.rows(), rows.rows());
  for (Index i = 0; i < rows.rows(); ++i)
    for (Index j = 0; j < i; ++j) distance(i, j) = distance(j, i) = (rows.row(i) - rows.row(j)).norm();
  return distance;
}
/// by_router * distance - by_tokens * together / (mean of together off the diagonal): the same where experts that share
/// tokens are near, too; 0 on the diagonal. May be negative. Throws std::invalid_argument for other numbers of experts.
inline Matrix<double> behaviour_distance(const Matrix<double>& distance, const CoActivation& together,
                                         double by_router = 1, double by_tokens = 1) {
  const Index n = distance.rows();
  detail::require_shape("moe::behaviour_distance", "distance", distance, n, n);
  detail::require_shape("moe::behaviour_distance", "together", together.tokens, n, n);
  const double sum = together.tokens.sum() - together.tokens.trace();
  const double mean = n > 1 ? sum / static_cast<double>(n * (n - 1)) : 0;
  Matrix<double> result = by_router * distance;
  if (mean > 0) result -= by_tokens / mean * together.tokens;
  result.diagonal().setZero();
  return result;
}

namespace detail {

/// y / |y| of every row of every expert on the same tokens, [num_experts][num_tokens, output_dim]; rows of zeros stay.
/// Throws std::invalid_argument, in the name of a function, for outputs that are not finite.
template <class E>
std::vector<Matrix<typename E::Scalar>> unit_outputs(const char* function, const ExpertPool<E>& pool,
                                                     const ConstMatrixRef<typename E::Scalar>& tokens,
                                                     Index first_token = 0) {
  std::vector<Matrix<typename E::Scalar>> outputs(static_cast<std::size_t>(pool.size()));
  parallel_for(pool.size(), [&](Index e, Index) {
    auto& out = outputs[static_cast<std::size_t>(e)];
    out.resize(tokens.rows(), pool.output_dim());
    Scratch scratch;
    const Step step;
    pool[e].forward(tokens, out, Context(step, scratch));
    for (Index t = 0; t < out.rows(); ++t) {
      const Eigen::RowVectorXd row = out.row(t).template cast<double>();
      if (!row.allFinite())
        fail(function, ": the output of expert ", e, " on token ", first_token + t, " is not finite");
      // Stable: squares of large and small outputs leave the range.
      if (const double norm = row.stableNorm(); norm > 0) out.row(t) = (row / norm).template cast<typename E::Scalar>();
    }
  });
  return outputs;
}

}  // namespace detail

/// Mean over tokens of the cosine of what two experts compute, [num_experts, num_experts]: 1 for experts that differ by
/// a positive factor. Where an output is 0 the cosine counts as 0, as 1 where both are. Every expert runs on every
/// token, which costs num_experts / k times what a layer does, and num_tokens * num_experts^2 * output_dim more: a
/// reservoir of some hundred tokens will do.
///   moe::Matrix<double> similarity = moe::output_similarity(layer.experts(), calibration.reservoir().tokens());
/// Same bits for any number of threads. Throws std::invalid_argument for tokens of another width, or none, and for
/// outputs that are not finite.
/// Li et al., "Sub-MoE" (arXiv:2506.23266).
template <class E>
Matrix<double> output_similarity(const ExpertPool<E>& pool, const MatrixView<typename E::Scalar>& tokens) {
  constexpr const char* kFunction = "moe::output_similarity";
  detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), pool.input_dim());
  if (tokens.rows() < 1) fail(kFunction, ": 0 tokens, expected at least 1");
  constexpr Index kAtOnce = 64;  // outputs of all experts are in memory
  Matrix<double> sum = Matrix<double>::Zero(pool.size(), pool.size());
  for (Index first = 0; first < tokens.rows(); first += kAtOnce) {
    const Index count = std::min(kAtOnce, tokens.rows() - first);
    const auto outputs = detail::unit_outputs(kFunction, pool, tokens.middleRows(first, count), first);
    parallel_for(pool.size(), [&](Index i, Index) {
      for (Index j = 0; j <= i; ++j)
        for (Index t = 0; t < count; ++t) {
          const auto a = outputs[static_cast<std::size_t>(i)].row(t), b = outputs[static_cast<std::size_t>(j)].row(t);
          const bool both_zero = i == j || (a.isZero(0) && b.isZero(0));
          sum(i, j) += both_zero ? 1 : static_cast<double>(a.dot(b));
        }
    });
  }
  for (Index i = 0; i < sum.rows(); ++i)
    for (Index j = 0; j < i; ++j) sum(j, i) = sum(i, j);
  return sum / static_cast<double>(tokens.rows());
}
/// 1 - cosine as a distance, for complete_linkage().
inline Matrix<double> distance_of(const Matrix<double>& similarity) { return 1 - similarity.array(); }

/// What every expert computes on the same tokens, each output divided by its norm, as a row, [num_experts, num_tokens *
/// output_dim], for cluster_experts(): squared distances are 2 num_tokens (1 - output_similarity()). Throws
/// std::invalid_argument for tokens of another width, or none, and for outputs that are not finite.
template <class E>
Matrix<typename E::Scalar> output_rows(const ExpertPool<E>& pool, const MatrixView<typename E::Scalar>& tokens) {
  constexpr const char* kFunction = "moe::output_rows";
  detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), pool.input_dim());
  if (tokens.rows() < 1) fail(kFunction, ": 0 tokens, expected at least 1");
  const auto outputs = detail::unit_outputs(kFunction, pool, tokens);
  Matrix<typename E::Scalar> rows(pool.size(), detail::checked_product(kFunction, tokens.rows(), pool.output_dim()));
  for (Index e = 0; e < pool.size(); ++e) {
    const auto& own = outputs[static_cast<std::size_t>(e)];
    std::copy_n(own.data(), own.size(), rows.row(e).data());
  }
  return rows;
}

/// Along which weights outlier_score() looks: those of an input, of an output, or of a group of inputs of an output.
enum class OutlierAxis { Input, Output, Group };

/// max over lines of (largest |w| / mean |w|) of weights [outputs, inputs], where a line is the weights of an input, of
/// an output, or of `group` neighbouring inputs of an output: how far outliers stand out. 1 where all weights of every
/// line are as large; lines of zeros are left out. What a format with scales per group loses goes with Group; the paper
/// has Input, which also scores outputs that are large as a whole and do a scale of their own no harm.
/// Throws std::invalid_argument for weights that are not finite, and for a group < 1.
/// Li et al., "QuantMoE-Bench" (arXiv:2406.08155).
inline double outlier_score(const ConstMatrixRef<float>& weights, OutlierAxis axis, Index group = 32) {
  constexpr const char* kFunction = "moe::outlier_score";
  if (group < 1) fail(kFunction, ": group is ", group, ", expected at least 1");
  if (!weights.allFinite()) fail(kFunction, ": a weight is not finite, expected finite weights");
  double score = 1;
  const auto add_line = [&](const auto& line) {
    const double mean = line.template cast<double>().cwiseAbs().mean();
    if (mean > 0) score = std::max(score, line.template cast<double>().cwiseAbs().maxCoeff() / mean);
  };
  if (weights.size() == 0) return score;
  for (Index i = 0; i < weights.cols() && axis == OutlierAxis::Input; ++i) add_line(weights.col(i));
  for (Index o = 0; o < weights.rows() && axis == OutlierAxis::Output; ++o) add_line(weights.row(o));
  for (Index o = 0; o < weights.rows() && axis == OutlierAxis::Group; ++o)
    for (Index i = 0; i < weights.cols(); i += group)
      add_line(weights.row(o).segment(i, std::min(group, weights.cols() - i)));
  return score;
}

}  // namespace moe::inline MOE_ABI
