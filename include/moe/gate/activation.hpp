// SPDX-License-Identifier: MIT
#pragma once

#include <limits>
#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/dense_to_sparse.hpp"
#include "moe/numeric/activation.hpp"

namespace moe::inline MOE_ABI {

/// Where the bias of an ActivationGate goes: act(u) + bias, or act(u + bias).
enum class BiasPlace { Outside, Inside };

namespace detail {

/// u -> act(u) + bias or act(u + bias); an expert masked by -infinity stays masked.
template <Activation Act>
struct ActivationTransform {
  const Eigen::RowVectorXd& bias;
  BiasPlace place;

  template <class S>
  void operator()(const S* u, Index n, S* z) const {
    argument(u, n, z);
    simd::transform(n, z, z, [](const simd::Batch<S>& x) { return Act::value(x); });
    if (place == BiasPlace::Outside) add_bias(n, z);
    for (Index e = 0; e < n; ++e)
      if (u[e] == -std::numeric_limits<S>::infinity()) z[e] = u[e];
  }

  /// d = dL/dz on entry, dL/du on return; `slope` is scratch.
  template <class S>
  void backward(const S* u, Index n, S* d, S* slope) const {
    argument(u, n, slope);
    simd::transform(n, slope, slope, [](const simd::Batch<S>& x) { return Act::derivative(x); });
    for (Index e = 0; e < n; ++e) d[e] = u[e] == -std::numeric_limits<S>::infinity() ? S{0} : d[e] * slope[e];
  }

 private:
  template <class S>
  void argument(const S* u, Index n, S* out) const {
    std::copy_n(u, n, out);
    if (place == BiasPlace::Inside) add_bias(n, out);
  }
  template <class S>
  void add_bias(Index n, S* z) const {
    for (Index e = 0; e < bias.size() && e < n; ++e) z[e] += static_cast<S>(bias(e));
  }
};

}  // namespace detail

/// DenseToSparseGate on z = act(u) + bias, where the logits u are the inner products of a router without a bias:
/// weights are softmax(z / tau), dense or sparse as `sparse` says.
/// Passing u through a nonlinearity makes the temperature identifiable: when act is linear or positively homogeneous
/// (Identity, Relu), (u, bias, tau) -> (c u, c bias, c tau) leaves every weight as it is, the Fisher information of
/// (router, bias, tau) is singular, and tau cannot be estimated. Sigmoid, Tanh, Gelu, Silu and Softplus have no such
/// scale, the last three only while |u| is not large. With a bounded act and no bias, weights differ at most by the
/// factor exp((sup act - inf act) / tau): temperatures well below 0.1 are needed for one expert to win.
/// Identity without a bias is DenseToSparseGate, bit for bit.
///   dL/dbias_i = sum over tokens of dL/dz_i (Outside) or dL/dz_i act'(u_i + bias_i) (Inside);   dL/du = dL/dz act'
/// Threads, cost and errors as for DenseToSparseGate; -infinity in u masks an expert whatever act is.
/// Nguyen, Akbarian & Ho, "Is temperature sample efficient for softmax Gaussian mixture of experts?"
/// (arXiv:2401.13875).
template <Activation Act = Sigmoid, Schedule Temperature = ExponentialSchedule>
struct ActivationGate {
  Eigen::RowVectorXd bias = {};  ///< [num_experts] or empty for none; learnable
  BiasPlace bias_place = BiasPlace::Outside;
  DenseToSparseGate<Temperature> sparse = {};

  static constexpr bool kPerToken = true;

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index num_experts) const {
    detail::validate_bias("moe::ActivationGate: bias", bias, num_experts);
    sparse.validate(num_experts, "moe::ActivationGate: sparse");
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    detail::route_tempered<S>("moe::ActivationGate::route", rule<S>(logits, context.step), logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::ActivationGate::probabilities", rule<S>(logits, context.step), logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::ActivationGate::replay", rule<S>(logits, context.step), logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                ActivationGate& gradient) const {
    constexpr const char* kName = "moe::ActivationGate::backward";
    auto tempered = rule<S>(logits, context.step);
    backward_tokens<S>(kName, tempered, logits, context, routing, dweight, dprobability, dlogits);  // dL/dz
    const bool biased = bias.size() != 0;
    if (biased && bias_place == BiasPlace::Outside) detail::add_column_sums(kName, dlogits, gradient.bias);
    detail::for_each_token<S>(kName, logits, context, 1, [&](const Token<S>& token) {
      transform().backward(token.logits.data(), logits.cols(), dlogits.row(token.index).data(), token.scratch.data());
    });
    if (biased && bias_place == BiasPlace::Inside) detail::add_column_sums(kName, dlogits, gradient.bias);
    if constexpr (LearnableSchedule<Temperature>)
      sparse.temperature.backward(tempered.dtau(), gradient.sparse.temperature);
  }

  /// The bias goes with its experts.
  ActivationGate take(std::span<const Index> ids, Index num_experts) const {
    validate(num_experts);
    ActivationGate gate = *this;
    gate.bias = detail::take_entries("moe::ActivationGate::take", bias, ids);
    return gate;
  }
  /// The bias of this gate, then that of `other`. Throws std::invalid_argument unless both have one, or none, and are
  /// equal in all else.
  ActivationGate concatenate(const ActivationGate& other, Index num_experts, Index other_num_experts) const
    requires std::equality_comparable<Temperature>
  {
    constexpr const char* kFunction = "moe::ActivationGate::concatenate";
    validate(num_experts);
    other.validate(other_num_experts);
    detail::require_equal_option(kFunction, "bias_place", bias_place, other.bias_place);
    detail::require_equal_option(kFunction, "sparse", sparse, other.sparse);
    ActivationGate gate = *this;
    gate.bias = detail::join_entries(kFunction, "bias", bias, other.bias);
    return gate;
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    if (first.bias.size() != 0) f("bias", first.bias, rest.bias...);
    moe::visit(f, first.sparse, rest.sparse...);
  }

 private:
  detail::ActivationTransform<Act> transform() const { return {bias, bias_place}; }
  template <class S>
  auto rule(const Logits<S>& logits, const Step& step) const {
    validate(logits.cols());
    return detail::TemperedRule<S, DenseToSparseGate<Temperature>, detail::ActivationTransform<Act>>(
        "moe::ActivationGate: sparse", sparse, step, logits, transform());
  }
};

static_assert(DifferentiableGate<ActivationGate<>, float> && DifferentiableGate<ActivationGate<>, double>);
static_assert(DifferentiableGate<ActivationGate<Tanh, LearnableTemperature>>);

}  // namespace moe::inline MOE_ABI
