// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Cholesky>

#include "moe/compress/neuron_split.hpp"
#include "moe/core/parallel.hpp"
#include "moe/core/serial_product.hpp"
#include "moe/expert/pool.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/straight_through.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

// A dense feed-forward network becomes a mixture of its own hidden units.
namespace moe::inline MOE_ABI {

/// The layer of dense_to_mixture(): experts of hidden units, those that a token is sent to added up as they are.
template <class E>
using DenseMixture = MoeLayer<BasicLinearRouter<CodecOf<typename E::Scalar>>, StraightThrough<TopKGate>, ExpertPool<E>>;

namespace detail {

inline void require_units(const char* function, const std::string& name, std::span<const Index> units, Index hidden) {
  for (std::size_t i = 0; i < units.size(); ++i) {
    if (units[i] < 0 || units[i] >= hidden)
      fail(function, ": ", name, " has unit ", units[i], ", expected one below hidden_dim = ", hidden);
    if (i > 0 && units[i] <= units[i - 1])
      fail(function, ": ", name, " has unit ", units[i - 1], " before ", units[i], ", expected ascending ids");
  }
}

inline void require_split(const char* function, const NeuronSplit& split, Index hidden, Index k) {
  if (split.parts.empty()) fail(function, ": the split has no parts, expected at least 1");
  require_units(function, "shared", split.shared, hidden);
  for (Index p = 0; p < split.num_parts(); ++p) {
    const std::vector<Index>& units = split.parts[static_cast<std::size_t>(p)];
    const std::string name = "part " + std::to_string(p);
    if (units.empty()) fail(function, ": ", name, " has no units, expected at least 1");
    require_units(function, name, units, hidden);
    std::vector<Index> both;
    std::ranges::set_intersection(units, split.shared, std::back_inserter(both));
    if (!both.empty()) fail(function, ": unit ", both[0], " is shared and in ", name, ", expected one of both");
  }
  if (k < 1 || k > split.num_parts())
    fail(function, ": k is ", k, ", expected 1 <= k <= the number of parts = ", split.num_parts());
}

/// The layer of the parts, each with the output bias times `bias`.
template <class E>
DenseMixture<E> mixture_of_parts(const E& dense, const NeuronSplit& split, Index k, double bias) {
  using S = typename E::Scalar;
  std::vector<E> experts;
  for (const std::vector<Index>& units : split.parts) {
    experts.push_back(dense.take_hidden(units));
    for (S& value : experts.back().down_bias().span()) value *= static_cast<S>(bias);
  }
  return {BasicLinearRouter<CodecOf<S>>(split.num_parts(), dense.input_dim(), Bias::Zero),
          StraightThrough{TopKGate{.k = k, .normalise = Normalise::Off}, static_cast<double>(k)},
          ExpertPool<E>(std::move(experts))};
}

}  // namespace detail

/// A mixture of the parts of a dense expert, of which every token gets k:
///   y(x) = sum over the k parts e of the largest logits of f_e(x),     f_e: the hidden units of part e
/// Chosen experts count as they are, so that all parts together are the dense expert, but for the order of a sum; the
/// router learns as if they were weighed by the softmax of the logits (StraightThrough). It has zeros: tokens go to the
/// first k parts until fit_router() or training tells them apart. Experts have 1 / k of the output bias each.
///   const moe::Matrix<float> activity = moe::hidden_activity(dense, tokens);
///   auto layer = moe::dense_to_mixture(dense, moe::coactivation_split(activity, {.num_parts = 8}), 4);
///   moe::fit_router(layer, tokens);
/// Of Mlp and Glu, one of a checkpoint (load_moe_block: the shared expert) or a layer as well. To train the router
/// alone put frozen experts below it (with_experts, Frozen). Throws std::invalid_argument unless the ids of each part
/// ascend below hidden_dim, for a part without units, a split with shared units, and k out of range. Zhang et al.,
/// "MoEfication" (arXiv:2110.01786); He et al., "Understanding and harnessing sparsity in unified multimodal models",
/// 2025.
template <class E>
  requires TakesHidden<E>
DenseMixture<E> dense_to_mixture(const E& dense, const NeuronSplit& split, Index k) {
  constexpr const char* kFunction = "moe::dense_to_mixture";
  detail::require_split(kFunction, split, dense.hidden_dim(), k);
  if (!split.shared.empty())
    fail(kFunction, ": the split has ", split.shared.size(),
         " shared units, expected none, or dense_to_shared_mixture");
  return detail::mixture_of_parts(dense, split, k, 1 / static_cast<double>(k));
}

/// The same beside an expert of the shared units, which every token goes to and which has all of the output bias.
/// Throws std::invalid_argument as dense_to_mixture(), and for a split without shared units.
template <class E>
  requires TakesHidden<E>
WithBranches<DenseMixture<E>, E> dense_to_shared_mixture(const E& dense, const NeuronSplit& split, Index k) {
  constexpr const char* kFunction = "moe::dense_to_shared_mixture";
  detail::require_split(kFunction, split, dense.hidden_dim(), k);
  if (split.shared.empty()) fail(kFunction, ": the split has no shared units, expected some, or dense_to_mixture");
  return {detail::mixture_of_parts(dense, split, k, 0), dense.take_hidden(split.shared)};
}

struct FitRouterOptions {
  double ridge = 1e-3;  ///< times the mean square of the inputs; > 0
};

/// Sets a linear router to what is nearest, in squares over the tokens, to how much each expert does:
///   logit_e(x) = w_e . x + b_e ~ |f_e(x)| / (root of the mean square over tokens and experts of |f_e(x)|)
/// b where the router has a bias; a ridge keeps inputs that are never on at 0. Tokens then go where most of the sum of
/// all experts is to be expected. No labels, no steps; training may start from it.
/// Throws std::invalid_argument for tokens of another width or none, numbers that are not finite, and a ridge that is
/// not above 0. num_tokens times all experts, and 2 * num_tokens * model_dim^2 operations; in double, over experts in
/// parallel.
template <class Codec, class G, class E>
void fit_router(MoeLayer<BasicLinearRouter<Codec>, G, ExpertPool<E>>& layer,
                const MatrixView<typename Codec::Scalar>& tokens, const FitRouterOptions& options = {}) {
  constexpr const char* kFunction = "moe::fit_router";
  using S = typename Codec::Scalar;
  const ExpertPool<E>& experts = layer.experts();
  BasicLinearRouter<Codec>& router = layer.router();
  detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), layer.input_dim());
  if (tokens.rows() < 1) fail(kFunction, ": 0 tokens, expected at least 1");
  if (!(options.ridge > 0 && std::isfinite(options.ridge)))
    fail(kFunction, ": ridge is ", options.ridge, ", expected a finite number above 0");
  if (router.num_experts() != experts.size())
    fail(kFunction, ": the router scores ", router.num_experts(), " experts, expected ", experts.size());
  if (router.model_dim() != layer.input_dim())
    fail(kFunction, ": the router reads ", router.model_dim(), " columns, expected ", layer.input_dim());
  if (!router.bias().is_bias_of(router.weight()))
    fail(kFunction, ": the router has ", router.bias().outputs(), " biases, expected ", experts.size(), " or none");
  Eigen::MatrixXd norms(tokens.rows(), experts.size());
  parallel_for(experts.size(), [&](Index e, Index) {
    const Step step;
    Scratch scratch;
    Matrix<S> out(tokens.rows(), experts.output_dim());
    experts[e].forward(tokens, out, Context(step, scratch));
    norms.col(e) = out.template cast<double>().rowwise().norm();
  });
  Eigen::MatrixXd inputs = tokens.template cast<double>();
  if (!inputs.allFinite() || !norms.allFinite())
    fail(kFunction, ": a token or an output is not finite, expected finite numbers");
  if (const double size = std::sqrt(norms.squaredNorm() / static_cast<double>(norms.size())); size > 0) norms /= size;
  const bool has_bias = router.bias().outputs() > 0;
  Eigen::RowVectorXd input_mean = Eigen::RowVectorXd::Zero(inputs.cols()), norm_mean;
  norm_mean = Eigen::RowVectorXd::Zero(norms.cols());
  if (has_bias) {  // the best one, whatever the weights
    input_mean = inputs.colwise().mean();
    norm_mean = norms.colwise().mean();
    inputs.rowwise() -= input_mean;
    norms.rowwise() -= norm_mean;
  }
  Eigen::MatrixXd moment = Eigen::MatrixXd::Zero(inputs.cols(), inputs.cols());  // of which llt() reads the lower half
  moment.selfadjointView<Eigen::Lower>().rankUpdate(inputs.transpose());
  const double mean_square = moment.trace() / static_cast<double>(moment.rows());
  moment.diagonal().array() += options.ridge * (mean_square > 0 ? mean_square : 1);
  const Eigen::LLT<Eigen::MatrixXd> factors(moment);
  if (factors.info() != Eigen::Success || !moment.allFinite())
    fail(kFunction, ": ridge is ", options.ridge, ", expected one with which the moment of the tokens is positive");
  const Eigen::MatrixXd weight =
      factors.solve(detail::serial_product(inputs.transpose(), norms));  // [model_dim, num_experts]
  const Eigen::RowVectorXd bias = norm_mean - input_mean * weight;
  for (Index e = 0; e < weight.cols(); ++e) {
    for (Index i = 0; i < weight.rows(); ++i) router.weight()(e, i) = static_cast<S>(weight(i, e));
    if (has_bias) router.bias()(e, 0) = static_cast<S>(bias(e));
  }
}
template <class Layer, class... Branches>
void fit_router(WithBranches<Layer, Branches...>& layer, const MatrixView<typename Layer::Scalar>& tokens,
                const FitRouterOptions& options = {}) {
  fit_router(layer.layer(), tokens, options);
}

}  // namespace moe::inline MOE_ABI
