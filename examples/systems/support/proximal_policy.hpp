// SPDX-License-Identifier: MIT
// Proximal policy optimisation (Schulman et al., arXiv:1707.06347) of a mixture: PMOE-PPO, and PPO with one component.
#pragma once

#include <cstdint>

#include "soft_actor_critic.hpp"

namespace systems {

struct ProximalOptions {
  moe::Index components = 4, hidden = 64;
  std::int64_t steps = 60000;
  moe::Index rollout = 2000, epochs = 5, batch = 200;  ///< smaller rollouts say less of a goal that is reached less
  double clip = 0.2, discount = 0.98, trace = 0.95;    ///< trace: lambda of generalised advantages
  double entropy = 1, rate = 0.01;                     ///< at the start; they fall along a line
};

/// An actor that has learned in a world. With p the density of the whole mixture and A generalised advantages of mean 0
/// and variance 1 (arXiv:1506.02438), means and deviations maximise min(p / p_old A, clipped p / p_old A) plus the
/// weighted entropy, and weights minimise frequency_loss() of what each component proposes, by a network that learns
/// the returns of actions and is used for nothing else. A rollout that `steps` have no room for is left out.
Actor learn_proximal(World& world, const ProximalOptions& options, std::uint64_t seed);

}  // namespace systems
