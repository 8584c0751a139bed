// SPDX-License-Identifier: MIT
#pragma once

// The table of contents: everything but moe/io (needs nlohmann-json) and the statistics of moe/gaussian.hpp, whose
// matrix factorisations take seconds to compile. Start with layer/moe_layer.hpp, whose forward() is the whole method:
// router, gate, mixture; layer/routed_experts.hpp is that mixture. To plug in a part of your own, read the concept.hpp
// of its folder. Every header also stands alone.

// The layer: router, gate, plan, experts, combine; branches beside it, and layers as experts.
#include "moe/layer/branches.hpp"
#include "moe/layer/chunks.hpp"
#include "moe/layer/concept.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/layer/mixture.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/layer/routed_experts.hpp"
#include "moe/layer/trainable.hpp"
#include "moe/layer/weight_on.hpp"
#include "moe/layer/workspace.hpp"

// Routers: tokens -> logits.
#include "moe/router/concept.hpp"
#include "moe/router/cosine.hpp"
#include "moe/router/linear.hpp"
#include "moe/router/noisy.hpp"
#include "moe/router/none.hpp"

// Gates: logits -> who goes where, with which weight.
#include "moe/gate/activation.hpp"
#include "moe/gate/concept.hpp"
#include "moe/gate/dense_to_sparse.hpp"
#include "moe/gate/expert_choice.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/sparse_mixer.hpp"
#include "moe/gate/stochastic.hpp"
#include "moe/gate/token_gate.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/gate/wrap/with_chance.hpp"

// Experts: rows -> rows, alone and in pools.
#include "moe/expert/concatenated.hpp"
#include "moe/expert/concept.hpp"
#include "moe/expert/expert_set.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/linear.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/offset.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/pool.hpp"
#include "moe/expert/scaled_identity.hpp"

// Routing: the data between the parts, what limits it, how even it is.
#include "moe/routing/balance/entropy.hpp"
#include "moe/routing/balance/importance.hpp"
#include "moe/routing/balance/load.hpp"
#include "moe/routing/balance/load_balancing.hpp"
#include "moe/routing/balance/selection_bias.hpp"
#include "moe/routing/balance/sinkhorn.hpp"
#include "moe/routing/balance/statistics.hpp"
#include "moe/routing/balance/z_loss.hpp"
#include "moe/routing/capacity/buffer_slots.hpp"
#include "moe/routing/capacity/capacity.hpp"
#include "moe/routing/capacity/capacity_options.hpp"
#include "moe/routing/capacity/conventions.hpp"
#include "moe/routing/context.hpp"
#include "moe/routing/gradient.hpp"
#include "moe/routing/padding.hpp"
#include "moe/routing/plan.hpp"
#include "moe/routing/plan_view.hpp"
#include "moe/routing/routing.hpp"
#include "moe/routing/step.hpp"

// Training: losses, clipping, optimisers, schedules; trainer.hpp puts them together.
#include "moe/train/adam_w.hpp"
#include "moe/train/clip.hpp"
#include "moe/train/concept.hpp"
#include "moe/train/consistency.hpp"
#include "moe/train/cross_entropy.hpp"
#include "moe/train/routed_pass.hpp"
#include "moe/train/schedule.hpp"
#include "moe/train/sgd.hpp"
#include "moe/train/squared_error.hpp"
#include "moe/train/trainer.hpp"

// For parts of your own: kernels, numerics, threads, random numbers.
#include "moe/core/parallel.hpp"
#include "moe/core/random.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/visit.hpp"
#include "moe/kernel/combine.hpp"
#include "moe/kernel/dispatch.hpp"
#include "moe/kernel/grouped_gemm.hpp"
#include "moe/kernel/grouped_gradient.hpp"
#include "moe/kernel/panel_matrix.hpp"
#include "moe/numeric/activation.hpp"
#include "moe/numeric/assignment.hpp"
#include "moe/numeric/elementary.hpp"
#include "moe/numeric/k_means.hpp"
#include "moe/numeric/log_sum_exp.hpp"
#include "moe/numeric/schedule.hpp"
#include "moe/numeric/softmax.hpp"
#include "moe/numeric/top_k.hpp"
#include "moe/version.hpp"
