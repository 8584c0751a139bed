// SPDX-License-Identifier: MIT
// The router of MegaBlocks.
#pragma once

#include <numeric>

#include <moe/routing/balance/z_loss.hpp>

#include "routers.hpp"

namespace check {

inline void check_megablocks(Variant& v) {
  const Matrix<float> input = v.matrix("input");
  const Matrix<float> logits = logits_of(linear_router(v.matrix("w_router", kAny, input.cols())), input);
  const Matrix<float> p = softmax_of(logits);
  const Index tokens = logits.rows(), experts = logits.cols();
  const double norm = v.number("normalize_p", 0);
  moe::TopKGate gate{.k = v.integer("top_k", 1), .norm_p = norm == 0 ? 2 : norm};
  gate.normalise = norm == 0   ? moe::Normalise::Off
                   : norm == 1 ? moe::Normalise::Sum
                   : norm == 2 ? moe::Normalise::Euclidean
                               : moe::Normalise::PNorm;
  Routing routing = routed(gate, logits);
  v.near("logits", logits);
  v.near("scores", p);
  v.same("indices", experts_of(routing));
  v.near("weights", weights_of(routing));
  moe::DispatchPlan plan;
  plan.build(routing, experts);
  v.same("tokens_per_expert", counts_of(routing, experts));
  v.same("bins", {plan.offsets().begin() + 1, plan.offsets().end()});
  v.same("sorted_order", {plan.assignment_of_row().begin(), plan.assignment_of_row().end()});
  moe::RoutingGradient<float> ignored;
  const double balance = moe::load_balancing_loss<float>(p, routing, moe::Step{}, 0, ignored);
  v.near("lbl", v.number("moe_loss_weight", 0.1) / v.number("num_layers", 1) * balance);
  v.near("zloss", v.number("zloss_weight", 1e-3) * moe::z_loss<float>(logits, moe::Step{}, 0, ignored));
  const auto options = moe::conventions::megablocks(v.number("capacity_factor", 1));
  v.same_fact("capacity", moe::expert_capacity(options, moe::Phase::Training, {tokens, tokens * gate.k}, experts));
  moe::apply_capacity(options, experts, moe::Step::train(0), routing);
  v.same("kept", kept_of(routing));
  v.same_fact("tokens", tokens);
  v.same_fact("n_experts", experts);
}

}  // namespace check
