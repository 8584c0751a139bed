// SPDX-License-Identifier: MIT
// The auxiliary losses of Hugging Face's models, by themselves.
#pragma once

#include <moe/routing/balance/z_loss.hpp>

#include "routers.hpp"

namespace check {

/// Ours in each sequence, averaged, of given experts.
inline void check_switch_loss(Variant& v) {
  const Matrix<float> logits = v.matrix("logits"), p = softmax_of(logits);
  const Integers expert = v.integers("expert_index", logits.rows());
  Routing routing;
  routing.resize(logits.rows(), 1);
  std::copy(expert.begin(), expert.end(), routing.experts().begin());
  const Groups sequences(logits.rows(), v.last_extent("expert_index"), false);
  const auto balance = balance_of_groups(p, routing, sequences, {}, [](const auto&...) { return 1.0; });
  v.near("loss", balance.loss);
  v.near("grad_logits", through_softmax(logits, balance.dprobability), kWeightGradient);
}

/// Shares are of tokens there and of choices here: k times ours, of the tokens of all layers together.
inline void check_mixtral_loss(Variant& v) {
  const bool on_logits = v.has("logits");
  const Matrix<float> input = v.matrix(on_logits ? "logits" : "probs");
  std::vector<std::uint8_t> valid;
  moe::Step step;
  if (v.has("attention_mask")) {  // the same for every layer
    const Index tokens = static_cast<Index>(v.integers("attention_mask").size());
    if (input.rows() % tokens != 0)
      moe::fail_environment(input.rows(), " rows of logits, expected a multiple of the mask's ", tokens);
    const auto mask = v.mask("attention_mask", tokens);
    for (Index t = 0; t < input.rows(); ++t) valid.push_back(mask[static_cast<std::size_t>(t % tokens)]);
    step.valid = valid;
  }
  const Index k = v.integer("top_k", 2);
  const Matrix<float> logits = on_logits ? input : Matrix<float>(input.array().log());
  const Matrix<float> p = on_logits ? softmax_of(input) : input;
  const Routing routing = routed(moe::TopKGate{.k = k}, logits, step);
  const auto weight = static_cast<double>(k);
  moe::RoutingGradient<float> gradient;
  v.near("loss", weight * moe::load_balancing_loss<float>(p, routing, step, weight, gradient));
  if (on_logits)
    v.near("grad_logits", through_softmax(logits, gradient.probability), kWeightGradient);
  else
    v.near("grad_probs", gradient.probability, kWeightGradient);
}

/// A z-loss, of the tokens that `valid` leaves over.
inline void check_z_loss(Variant& v, double weight, const std::vector<std::uint8_t>& valid = {}) {
  moe::Step step;
  step.valid = valid;
  moe::RoutingGradient<float> gradient;
  v.near("loss", weight * moe::z_loss<float>(v.matrix("logits"), step, weight, gradient));
  v.near("grad_logits", gradient.logits, kWeightGradient);
}

inline void check_hugging_face(Variant& v) {
  if (v.has("expert_index")) return check_switch_loss(v);
  if (v.knows("top_k")) return check_mixtral_loss(v);
  if (v.name().find("z_loss") != std::string::npos) return check_z_loss(v, 1);
  moe::fail_environment("no rule for this variant");
}

}  // namespace check
