// SPDX-License-Identifier: MIT
// The gates of FastMoE.
#pragma once

#include <moe/gate/wrap/with_chance.hpp>
#include <moe/routing/balance/importance.hpp>

#include "noisy.hpp"

namespace check {

/// Rates of capacity in training and in evaluation: the numbers before these words in the parameter "capacity".
inline double fastmoe_rate(const Variant& v, bool training) {
  const std::string text = v.text("capacity");
  const std::size_t end = text.find(training ? " train" : " eval");
  std::size_t begin = end == text.npos ? 0 : end;
  while (begin > 0 && (std::isdigit(static_cast<unsigned char>(text[begin - 1])) || text[begin - 1] == '.')) --begin;
  if (end == text.npos || begin == end)
    moe::fail_environment("parameter 'capacity' is ", moe::detail::in_quotes(text), ", expected a rate for ",
                          training ? "train" : "eval");
  return std::strtod(text.c_str() + begin, nullptr);
}

/// Top 2 of a linear router, softmax of the two; limited, and then the second choice is kept by chance.
inline void check_fastmoe_gshard(Variant& v, const Matrix<float>& logits, bool training) {
  const Index k = v.integer("top_k", 2), experts = logits.cols();
  Routing routing = routed(moe::TopKGate{.k = k}, logits);
  v.near("weights", weights_of(routing));
  moe::RoutingGradient<float> ignored;
  v.near("loss", moe::load_balancing_loss<float>(softmax_of(logits), routing, moe::Step{}, 0, ignored,
                                                 {moe::CountedChoices::First}));
  moe::apply_capacity(moe::conventions::fastmoe_gshard(fastmoe_rate(v, training)), experts, moe::Step::train(0),
                      routing);
  if (v.has("rand")) {
    const auto uniform = v.numbers("rand", logits.rows());
    moe::drop_by_chance(
        0.5, [&](Index t, Index) { return static_cast<double>(uniform[static_cast<std::size_t>(t)]); }, routing);
  }
  v.same("indices", served_experts_of(routing));
}

/// Top 1 with uniform noise on the logits, about 1. Shares are of kept choices, probabilities summed over all tokens
/// and divided by the number of kept choices.
inline void check_fastmoe_switch(Variant& v, Matrix<float> logits, bool training) {
  const Index tokens = logits.rows(), experts = logits.cols(), k = v.integer("top_k", 1);
  if (training) {
    const auto epsilon = static_cast<float>(v.number("switch_eps", 0.1));
    logits.array() += 2 * epsilon * v.matrix("rand", tokens, experts).array() + 1 - epsilon;
  }
  Routing routing = routed(moe::TopKGate{.k = k, .normalise = moe::Normalise::Off}, logits);
  v.near("weights", weights_of(routing));
  moe::apply_capacity(moe::conventions::fastmoe_switch(fastmoe_rate(v, training)), experts, moe::Step::train(0),
                      routing);
  v.same("indices", served_experts_of(routing));
  const auto kept = static_cast<double>(count_of(kept_of(routing)));
  moe::RoutingGradient<float> ignored;
  const double loss = moe::load_balancing_loss<float>(softmax_of(logits), routing, moe::Step{}, 0, ignored,
                                                      {moe::CountedChoices::All, moe::DroppedChoices::Ignore});
  v.near("loss", kept > 0 ? loss * static_cast<double>(tokens) / kept : 0);
}

/// Noisy top k with a softmax of the chosen logits; both losses of Shazeer, added.
inline void check_fastmoe_noisy(Variant& v) {
  NoisyRouter router(v, "w_gate", "w_noise");
  const Index k = v.integer("top_k", 2);
  v.same_fact("n_experts", router.noisy.cols());
  const Routing routing = routed(moe::TopKGate{.k = k}, router.noisy);
  v.near("weights", weights_of(routing));
  v.same("indices", experts_of(routing));
  moe::RoutingGradient<float> ignored;
  moe::NoisyLogitsGradient<float> not_used;
  const moe::CvOptions cv{moe::Variance::Sample, 1e-10};
  const double importance = moe::importance_loss(routing, router.noisy.cols(), moe::Step{}, 0, ignored, cv);
  const double load = router.has_noise ? moe::load_loss<float>({router.clean, router.noisy, router.deviation}, k,
                                                               moe::Step{}, 0, not_used, {cv})
                                       : squared_cv_of_counts(routing, router.noisy.cols());
  v.near("loss", importance + load);
}

inline void check_fastmoe(Variant& v) {
  if (v.has("w_noise")) return check_fastmoe_noisy(v);
  const Matrix<float> tokens = v.matrix("input"), weight = v.matrix("w_gate", kAny, tokens.cols());
  const auto bias = v.has("b_gate") ? v.numbers("b_gate", weight.rows()) : std::vector<float>{};
  const Matrix<float> logits = logits_of(linear_router(weight, bias), tokens);
  v.same_fact("n_experts", logits.cols());
  const bool training = v.text("mode", "train") == "train";
  if (v.knows("switch_eps") || v.integer("top_k", 2) == 1) return check_fastmoe_switch(v, logits, training);
  check_fastmoe_gshard(v, logits, training);
}

}  // namespace check
