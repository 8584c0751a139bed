// SPDX-License-Identifier: MIT
// A policy that is a mixture of Gaussians keeps several good actions where one Gaussian keeps one, or their middle
// (PMOE, Ren et al., arXiv:2104.09122): a gate weighs components, experts give them. The draw of a component has no
// derivative; PMOE lets weights follow how often each component proposes the best action. That is no gradient of the
// return, and rests at the win frequency: a second optimum, a tenth worse, keeps its weight. The exact gradient, which
// sums over components, keeps it for the entropy's sake. Here: an action with two optima; how far four estimators are
// from the gradient; a way to two goals, and a pendulum, by soft actor-critic. One Gaussian with as much entropy stands
// in the middle of the optima. Not here: MuJoCo, and PPO. The picture, pmoe.svg, has the density and ways to both
// goals.
#include <array>
#include <sstream>

#include "support/page.hpp"
#include "support/soft_actor_critic.hpp"
#include "support/two_optima.hpp"

namespace {

using moe::Index;
using moe::MixtureGradient;
using systems::TwoGoals;

const moe::MixtureGradientOptions kFrequency{.kind = MixtureGradient::Frequency};
/// In a world every component learns, or those that never win yet are lost.
const moe::MixtureGradientOptions kEvery{.kind = MixtureGradient::Frequency, .learners = moe::Learners::Every};
const moe::MixtureGradientOptions kGumbel{.kind = MixtureGradient::GumbelSoftmax, .temperature = 0.5};
const moe::MixtureGradientOptions kScore{.kind = MixtureGradient::ScoreRatio};
const moe::MixtureGradientOptions kMarginalised{.kind = MixtureGradient::Marginalised};
const std::array<moe::MixtureGradientOptions, 4> kAll = {kFrequency, kMarginalised, kScore, kGumbel};

/// Of 20 policies each by every estimator, then of one Gaussian: how many have both optima, and the mean reward.
std::vector<double> two_optima(std::uint64_t seed, std::uint64_t updates) {
  std::vector<double> numbers;
  const auto add = [&](const moe::MixtureGradientOptions& how, Index components) {
    double both = 0, reward = 0;
    for (std::uint64_t run = 0; run < 20; ++run) {
      const auto policy = systems::learn_two_optima(how, components, updates, 100 * seed + run);
      both += systems::has_both(policy) ? 1 : 0;
      reward += systems::mean_reward(policy, seed) / 20;
    }
    numbers.insert(numbers.end(), {both, reward});
  };
  for (const auto& how : kAll) add(how, 2);
  add(kMarginalised, 1);
  return numbers;
}

/// Whether both goals are reached by at least a twentieth of 100 episodes, the share that reaches one, and the mean
/// reward: of a mixture, then of one Gaussian.
std::vector<double> two_goals(std::uint64_t seed, std::int64_t steps, std::ostream* ways) {
  std::vector<double> numbers;
  for (const Index components : {4, 1}) {
    TwoGoals world(seed);
    const auto actor = learn(world, {.components = components, .gradient = kEvery, .steps = steps}, seed);
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

std::vector<double> pendulum(std::uint64_t seed, std::int64_t steps) {
  std::vector<double> numbers;
  for (const Index components : {2, 1}) {
    systems::Pendulum world;
    const auto actor = learn(world, {.components = components, .gradient = kEvery, .steps = steps}, seed);
    double reward = 0;
    for (std::int64_t e = 0; e < 10; ++e) reward += play(actor, world, seed, e, moe::ActionChoice::MostProbable).reward;
    numbers.push_back(reward);  // of tenths, so of ten episodes the mean
  }
  return numbers;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"pmoe", "2104.09122", "moe/policy/mixture_policy.hpp"}, [](systems::Page& page) {
        const auto updates = page.amount<std::uint64_t>(2000, 50);
        const std::array names = {"win frequency (PMOE)", "exact over components", "score ratio",
                                  "Gumbel-softmax, 0.5"};
        const auto bandit = page.over_seeds([&](std::uint64_t seed) { return two_optima(seed, updates); });
        page.table({"two optima", "both of 20 runs", "reward"});
        for (std::size_t i = 0; i < 4; ++i) page.row(names[i], {bandit[2 * i], bandit[2 * i + 1]});
        page.row("one Gaussian", {bandit[8], bandit[9]});
        const auto draws = page.amount<Index>(20000, 500);
        const auto table =
            page.over_seeds([&](std::uint64_t seed) { return systems::judge_estimators(kAll, draws, seed); });
        page.table({"gradient by a logit, exact 0.336", "bias", "variance"});
        for (std::size_t i = 0; i < 4; ++i) page.row(names[i], {table[2 * i], table[2 * i + 1]});
        std::ostringstream ways;
        const auto goals = page.over_seeds([&](std::uint64_t seed) {
          return two_goals(seed, page.amount<std::int64_t>(4000, 600), seed == page.first_seed() ? &ways : nullptr);
        });
        page.table({"two goals, SAC", "both reached", "reach one", "reward"});
        page.row("mixture of four", {goals[0], goals[1], goals[2]});
        page.row("one Gaussian", {goals[3], goals[4], goals[5]});
        page.expect("worlds in which a mixture reaches both goals", goals[0], {.low = 0.8});
        const auto swing =
            page.over_seeds([&](std::uint64_t seed) { return pendulum(seed, page.amount<std::int64_t>(6000, 600)); });
        page.table({"pendulum, SAC", "mixture of two", "one Gaussian"});
        page.row("return", {swing[0], swing[1]});
        systems::draw_policies(kFrequency, updates, page.first_seed(), ways.str(), "pmoe.svg");
        page.claim("runs of 20 that keep both optima, by win frequency", bandit[0], {.low = 18, .high = 20});
      });
}
