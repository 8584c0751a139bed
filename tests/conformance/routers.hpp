// SPDX-License-Identifier: MIT
// What the checks of routers share: parts of the library between matrices, and views of a routing as files store it.
#pragma once

#include <moe/expert/pool.hpp>
#include <moe/gate/softmax.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/kernel/combine.hpp>
#include <moe/router/linear.hpp>
#include <moe/routing/balance/load_balancing.hpp>
#include <moe/routing/balance/statistics.hpp>
#include <moe/routing/capacity/buffer_slots.hpp>
#include <moe/routing/capacity/capacity.hpp>
#include <moe/routing/capacity/conventions.hpp>
#include <moe/routing/plan.hpp>

#include "variant.hpp"

namespace check {

using Routing = moe::Routing<float>;
using Integers = std::vector<std::int64_t>;

inline Matrix<float> softmax_of(const Matrix<float>& logits) {
  Matrix<float> p;
  moe::SoftmaxGate{}.probabilities(logits, moe::Step{}, p);
  return p;
}

/// dL/dlogits from dL/dp.
inline Matrix<float> through_softmax(const Matrix<float>& logits, const Matrix<float>& dp) {
  Routing none;
  none.resize(logits.rows(), 0);
  moe::SoftmaxGate gate, gradient;
  Matrix<float> dlogits;
  gate.backward(logits, moe::Step{}, none, std::span<const float>{}, dp, dlogits, gradient);
  return dlogits;
}

/// A router with this weight [experts, dim] and bias [experts], or none.
inline moe::LinearRouter linear_router(const Matrix<float>& weight, const std::vector<float>& bias = {}) {
  const auto with_bias = bias.empty() ? moe::Bias::Off : moe::Bias::Zero;
  moe::LinearRouter router(weight.rows(), weight.cols(), with_bias);
  router.weight().write(span_of(weight));
  if (!bias.empty()) router.bias().write(std::span<const float>(bias));
  return router;
}

inline Matrix<float> logits_of(const moe::LinearRouter& router, const Matrix<float>& tokens) {
  require_size("logits", tokens.rows(), router.num_experts());
  Matrix<float> logits(tokens.rows(), router.num_experts());
  router.logits(tokens, moe::Step{}, logits);
  return logits;
}

template <class G>
Routing routed(const G& gate, const Matrix<float>& logits, const moe::Step& step = {}) {
  Routing routing;
  gate.route(logits, step, routing);
  return routing;
}

inline Integers experts_of(const Routing& routing) { return {routing.experts().begin(), routing.experts().end()}; }
/// The same, -1 where dropped.
inline Integers served_experts_of(const Routing& routing) {
  Integers result = experts_of(routing);
  for (std::size_t a = 0; a < result.size(); ++a)
    if (routing.dropped()[a]) result[a] = -1;
  return result;
}
inline std::vector<float> weights_of(const Routing& routing) {
  return {routing.weights().begin(), routing.weights().end()};
}
inline Integers kept_of(const Routing& routing) {
  Integers kept;
  for (const std::uint8_t dropped : routing.dropped()) kept.push_back(dropped ? 0 : 1);
  return kept;
}
inline Index count_of(const Integers& kept) { return std::count(kept.begin(), kept.end(), 1); }
inline Integers counts_of(const Routing& routing, Index experts) {
  const auto count = moe::tokens_per_expert(routing, experts);
  return {count.begin(), count.end()};
}
inline std::vector<double> column_sums(const Matrix<float>& matrix) {
  std::vector<double> sums(static_cast<std::size_t>(matrix.cols()), 0);
  for (Index t = 0; t < matrix.rows(); ++t)
    for (Index e = 0; e < matrix.cols(); ++e) sums[static_cast<std::size_t>(e)] += static_cast<double>(matrix(t, e));
  return sums;
}
/// Replaces the weights of choices that were not dropped.
template <class Weight>
void weigh(Routing& routing, const Weight& weight) {
  for (Index t = 0; t < routing.num_tokens(); ++t)
    for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
      routing.weights(t)[s] = routing.dropped(t)[s] ? 0 : weight(t, routing.experts(t)[s]);
}

/// A routing per (token, expert): weight, place in the buffer or -1, whether it reaches the expert.
struct PerExpert {
  Matrix<float> combine;
  Integers slot, kept;

  PerExpert(const Routing& routing, const std::vector<Index>& slots, Index experts)
      : combine(Matrix<float>::Zero(routing.num_tokens(), experts)),
        slot(static_cast<std::size_t>(combine.size()), -1),
        kept(static_cast<std::size_t>(combine.size()), 0) {
    for (Index t = 0; t < routing.num_tokens(); ++t)
      for (Index a = routing.begin(t); a < routing.end(t); ++a) {
        const auto i = static_cast<std::size_t>(a);
        if (routing.dropped()[i]) continue;
        const auto at = static_cast<std::size_t>(t * experts + routing.experts()[i]);
        combine.data()[at] = routing.weights()[i];
        slot[at] = slots[i];
        kept[at] = 1;
      }
  }
};

/// Tokens [first, first + length) of a routing.
inline Routing part_of(const Routing& routing, Index first, Index length) {
  Routing part;
  part.resize_ragged(length, [&](Index t) { return routing.end(first + t) - routing.begin(first + t); });
  for (Index t = 0; t < length; ++t) {
    std::ranges::copy(routing.experts(first + t), part.experts(t).begin());
    std::ranges::copy(routing.weights(first + t), part.weights(t).begin());
    std::ranges::copy(routing.dropped(first + t), part.dropped(t).begin());
  }
  return part;
}

/// Tokens of a sequence or group: the last extent but one of [.., tokens, dim].
inline Index sequence_length(const Variant& v, const std::string& tensor) {
  const auto shape = v.shape(tensor);
  return shape.size() < 2 ? 1 : shape[shape.size() - 2];
}

/// Tokens in groups of equal length that follow each other, with padding or without. Refers to itself: not copied.
struct Groups {
  Index length;
  std::vector<std::int64_t> id = {};
  std::vector<std::uint8_t> valid = {};
  moe::Step step = {};

  Groups(Index tokens, Index length_, bool training) : length(length_) {
    if (length < 1 || tokens % length != 0)
      moe::fail_environment(tokens, " tokens in groups of ", length, ", expected a multiple");
    for (Index t = 0; t < tokens; ++t) id.push_back(t / length);
    step.group_id = id;
    step.phase = training ? moe::Phase::Training : moe::Phase::Inference;
  }
  Groups(const Groups&) = delete;
  Groups& operator=(const Groups&) = delete;
};

/// Balance loss of each group times factor(its routing), averaged over groups, and the gradient by probabilities.
struct GroupBalance {
  double loss = 0;
  Matrix<float> dprobability;
};
template <class Factor>
GroupBalance balance_of_groups(const Matrix<float>& p, const Routing& routing, const Groups& groups,
                               const moe::LoadBalancingOptions& options, const Factor& factor) {
  const Index length = groups.length;
  GroupBalance result{0, Matrix<float>::Zero(p.rows(), p.cols())};
  for (Index first = 0; first < p.rows(); first += length) {
    const Routing part = part_of(routing, first, length);
    moe::Step step;
    if (!groups.valid.empty())
      step.valid = std::span(groups.valid).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(length));
    moe::RoutingGradient<float> gradient;
    const double weight = factor(part, step) * static_cast<double>(length) / static_cast<double>(p.rows());
    result.loss +=
        weight * moe::load_balancing_loss<float>(p.middleRows(first, length), part, step, weight, gradient, options);
    result.dprobability.middleRows(first, length) = gradient.probability;
  }
  return result;
}

/// Sum over the choices of a routing of weight * expert(token).
template <class Expert>
Matrix<float> combined(const moe::ExpertPool<Expert>& experts, const Matrix<float>& tokens, const Routing& routing) {
  moe::DispatchPlan plan;
  plan.build(routing, experts.size());
  moe::RowBuffer<float> rows;
  rows.resize(plan.num_rows(), experts.row_width());
  experts.forward(tokens, plan, moe::Step{}, rows);
  Matrix<float> out(tokens.rows(), experts.output_dim());
  moe::kernel::combine<float>(rows, plan, routing, out);
  return out;
}

}  // namespace check
