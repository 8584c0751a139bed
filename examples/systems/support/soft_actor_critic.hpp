// SPDX-License-Identifier: MIT
// Soft actor-critic (Haarnoja et al., arXiv:1801.01290) whose actor is a mixture: PMOE-SAC, and SAC with one component.
#pragma once

#include <cstdint>
#include <vector>

#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/softmax.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/policy/mixture_gradient.hpp>
#include <moe/policy/mixture_policy.hpp>
#include <moe/router/linear.hpp>
#include <moe/router/none.hpp>

#include "environments.hpp"

namespace systems {

using ReluExperts = moe::SeparateExperts<moe::ExpertPool<moe::BasicMlp<moe::F32, moe::Relu>>>;
using Actor = moe::MixturePolicy<moe::MoeLayer<moe::LinearRouter, moe::SoftmaxGate, ReluExperts>>;
/// Two critics as two experts, each of which is asked.
using Critics = moe::MoeLayer<moe::NoRouter, moe::SoftmaxGate, ReluExperts>;

struct ActorCriticOptions {
  moe::Index components = 2, hidden = 64, batch = 64;
  moe::MixtureGradientOptions gradient = {.kind = moe::MixtureGradient::Frequency};
  std::int64_t steps = 5000, warm_up = 500;   ///< with actions at random before the first update, then one each
  double entropy = 0.2, last_entropy = 0.02;  ///< weight of the entropy of the actor, which falls along a line
  double discount = 0.98, follow = 0.01, rate = 1e-3;
};

/// What has been seen, the oldest forgotten first.
struct Replay {
  moe::Matrix<float> state, action, next;
  std::vector<float> reward, goes_on;
  std::int64_t count = 0;

  Replay(moe::Index capacity, const Environment& world);
  moe::Index place() const { return static_cast<moe::Index>(count % state.rows()); }
  /// Rows drawn with replacement.
  void draw(moe::Index rows, std::uint64_t seed, Replay& batch) const;
};

/// An actor that has learned in a world.
Actor learn(Environment& world, const ActorCriticOptions& options, std::uint64_t seed);

/// An episode: its states, one after the other, and the sum of its rewards.
struct Episode {
  std::vector<std::vector<float>> states;
  double reward = 0;
};
Episode play(const Actor& actor, Environment& world, std::uint64_t seed, std::int64_t episode, moe::ActionChoice how);

}  // namespace systems
