// SPDX-License-Identifier: MIT
// Experts of a quarter of the width between projections that a group of them shares, beside experts of the whole width:
// the reference is our own.
#pragma once

#include <memory>
#include <vector>

#include "google.hpp"
#include "layer_measurement.hpp"
#include "moe/expert/latent.hpp"

namespace bench {

/// A layer, and one of the same router whose experts are latent on both sides, half of them to a group.
struct LatentLayers {
  std::string name;
  Layer full;
  moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::LatentExperts<moe::Glu>> latent;

  explicit LatentLayers(const Shape& shape)
      : name(shape.name),
        full(random_layer(shape)),
        latent(full.router(), full.gate(),
               moe::LatentExperts<moe::Glu>::random(
                   shape.num_experts,
                   {.model = shape.model_dim, .latent = shape.model_dim / 4, .hidden = shape.hidden_dim},
                   shape.num_experts / 2, moe::LatentSides::Both, /*seed=*/2)) {}
};

/// Of the last shape asked for; nullptr if memory does not suffice.
inline LatentLayers* latent_layers(const Shape& shape) {
  static std::unique_ptr<LatentLayers> last;
  if (last == nullptr || last->name != shape.name) {
    last = nullptr;
    if (2 * shape.weight_bytes() > available_memory()) return nullptr;
    last = std::make_unique<LatentLayers>(shape);
  }
  return last.get();
}

/// Tokens that have a row of some expert of a group, over all groups: what is projected down.
inline Index projected_rows(const moe::DispatchPlan& plan, std::span<const Index> group_begin) {
  std::vector<std::size_t> last_group(static_cast<std::size_t>(plan.num_tokens()), 0);
  Index count = 0;
  for (std::size_t q = 1; q < group_begin.size(); ++q)
    for (Index r = plan.offset(group_begin[q - 1]); r < plan.offset(group_begin[q]); ++r)
      if (std::size_t& last = last_group[static_cast<std::size_t>(plan.token_of_row()[static_cast<std::size_t>(r)])];
          last != q) {
        last = q;
        ++count;
      }
  return count;
}

/// What a forward pass of the latent layer multiplies, and the weights of all its experts and projections once.
inline Work work_of(const Shape& shape, const moe::LatentExperts<moe::Glu>& experts, const moe::DispatchPlan& plan) {
  const auto n = static_cast<double>(shape.model_dim), h = static_cast<double>(shape.hidden_dim),
             m = static_cast<double>(experts.latent_dim()), count = static_cast<double>(plan.num_tokens()),
             e = static_cast<double>(shape.num_experts), rows = static_cast<double>(plan.num_rows());
  const double of_projections = m * n * static_cast<double>(projected_rows(plan, experts.group_begin())),
               of_experts = rows * (3 * h * m + m * n);
  const double weights = n * e + 3 * e * m * h + 2 * static_cast<double>(experts.num_groups()) * m * n;
  return {.flop = 2 * (of_projections + of_experts + count * n * e),
          .bytes = sizeof(float) * (weights + 2 * count * n)};
}

/// Adds <name>/latent/[reference/]<shape>/uniform: forward passes, at 64 rows per expert, too. `times_fewer_flop` is
/// how many times as many operations the reference has.
inline void add_latent(const std::string& name, const Shape& shape) {
  const auto with = [&](const std::string& what, bool is_latent) {
    add(name + "/" + what + "/" + shape.name + "/uniform",
        [=](benchmark::State& state) {
          const LatentLayers* const both = latent_layers(shape);
          if (both == nullptr) return state.SkipWithError("not enough memory");
          const Matrix<float> tokens = routed_tokens(shape, Pattern::Uniform, state.range(0));
          Matrix<float> out(tokens.rows(), shape.model_dim);
          moe::Workspace workspace;
          both->full.forward(tokens, out, workspace);
          const Work full = work_of(shape, workspace.plan(), Pass::Forward);
          if (!is_latent) return measure(state, full, [&] { both->full.forward(tokens, out, workspace); });
          const Work work = work_of(shape, both->latent.experts(), workspace.plan());
          measure(state, work, [&] { both->latent.forward(tokens, out, workspace); });
          state.counters["times_fewer_flop"] = full.flop / work.flop;
        },
        {1, 64, 64 * shape.num_experts / shape.k});
  };
  with("latent", true);
  with("latent/reference", false);
}

}  // namespace bench
