// SPDX-License-Identifier: MIT
// What an actor that has learned makes of a point mass between two goals.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <ostream>
#include <vector>

#include "soft_actor_critic.hpp"

namespace systems {

/// Whether both goals are reached by at least a twentieth of 100 episodes, the share that reaches one, and the mean
/// reward: of a mixture, then of one Gaussian, which are what learn(world, components) gives. Twenty ways of each to
/// `ways`.
template <class Learn>
std::vector<double> play_two_goals(const Learn& learn, std::uint64_t seed, std::ostream* ways) {
  std::vector<double> numbers;
  for (const moe::Index components : {4, 1}) {
    TwoGoals world(seed);
    const auto actor = learn(world, components);
    std::array<double, 2> reached = {};
    double reward = 0;
    for (std::int64_t e = 0; e < 100; ++e) {
      const auto episode = play(actor, world, seed, e, moe::ActionChoice::Sample);
      reward += episode.reward / 100;
      for (const int goal : {0, 1}) reached[std::size_t(goal)] += world.distance_to(goal) < 0.2 ? 0.01 : 0;
      if (ways == nullptr || e >= 20) continue;  // the mixture's on the left
      for (const auto& at : episode.states) *ways << at[0] + (components == 1 ? 4.0f : 0.0f) << ' ' << at[1] << '\n';
      *ways << '\n';
    }
    numbers.insert(numbers.end(),
                   {std::min(reached[0], reached[1]) >= 0.05 - 1e-9 ? 1.0 : 0.0, reached[0] + reached[1], reward});
  }
  return numbers;
}

}  // namespace systems
