// SPDX-License-Identifier: MIT
// A policy that is a mixture of Gaussians keeps several good actions (PMOE, Ren et al., arXiv:2104.09122): a gate
// weighs components, experts give them. The draw of a component has no derivative; PMOE lets weights follow how often
// each component proposes the best action. That is no gradient of the return, and rests at the win frequency: a second
// optimum, a tenth worse, keeps its weight. The exact gradient, which sums over components, keeps it for the entropy's
// sake; one Gaussian with as much entropy stands in the middle. Then the bias of estimators, and soft actor-critic on a
// way to two goals and a pendulum: rewards are printed, not checked. PPO, which learns from its own ways only, forgets
// a goal in some worlds, and takes fifteen times the steps. No MuJoCo. Picture: pmoe.svg.
#include <array>
#include <cmath>
#include <sstream>

#include "support/page.hpp"
#include "support/proximal_policy.hpp"
#include "support/soft_actor_critic.hpp"
#include "support/two_goals.hpp"
#include "support/two_optima.hpp"

namespace {

using moe::Index;
using moe::MixtureGradient;

const moe::MixtureGradientOptions kFrequency{.kind = MixtureGradient::Frequency};
/// In a world every component learns, or those that never win yet are lost.
const moe::MixtureGradientOptions kEvery{.kind = MixtureGradient::Frequency, .learners = moe::Learners::Every};
constexpr moe::MixtureGradientOptions gumbel(double temperature) {
  return {.kind = MixtureGradient::GumbelSoftmax, .temperature = temperature};
}
const moe::MixtureGradientOptions kScore{.kind = MixtureGradient::ScoreRatio};
const moe::MixtureGradientOptions kMarginalised{.kind = MixtureGradient::Marginalised};
const std::array kJudge = {kFrequency, kMarginalised, kScore, gumbel(0.1), gumbel(0.5), gumbel(1), gumbel(2)};

/// Of 20 policies by each estimator, then of one Gaussian: how many have both optima, the mean reward and |action|.
std::vector<double> two_optima(std::uint64_t seed, std::uint64_t updates) {
  std::vector<double> numbers;
  const auto add = [&](const moe::MixtureGradientOptions& how, Index components) {
    double both = 0, reward = 0, action = 0;
    for (std::uint64_t run = 0; run < 20; ++run) {
      const auto policy = systems::learn_two_optima(how, components, updates, 100 * seed + run);
      both += systems::has_both(policy) ? 1 : 0;
      reward += systems::mean_reward(policy, seed) / 20;
      action += std::abs(systems::likeliest_action(policy)) / 20;
    }
    numbers.insert(numbers.end(), {both, reward, action});
  };
  for (const std::size_t i : {0u, 1u, 2u, 4u}) add(kJudge[i], 2);
  add(kMarginalised, 1);
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
        const std::array names = {"PMOE", "exact", "score ratio", "Gumbel .1", "Gumbel .5", "Gumbel 1", "Gumbel 2"};
        const auto bandit = page.over_seeds([&](std::uint64_t seed) { return two_optima(seed, updates); });
        page.table({"two optima", "both of 20 runs", "reward"});
        for (std::size_t i = 0; i < 4; ++i) page.row(names[i < 3 ? i : 4], {bandit[3 * i], bandit[3 * i + 1]});
        page.row("one Gaussian", {bandit[12], bandit[13]});
        page.expect("runs that keep both, exact over components", bandit[3], {.low = 18});
        page.expect("reward, mixture by win frequency - one Gaussian", bandit[1] - bandit[13], {.low = 0.4});
        page.expect("distance of one Gaussian from the middle", bandit[14], {.high = 0.5});
        const auto table = page.over_seeds([&](std::uint64_t seed) {
          return systems::judge_estimators(kJudge, page.amount<Index>(20000, 500), seed);
        });
        page.table({"gradient by a logit, exact 0.336", "bias", "variance"});
        for (std::size_t i = 0; i < names.size(); ++i) page.row(names[i], {table[2 * i], table[2 * i + 1]});
        page.expect("share of Gumbel's bias at 2 that is left at .1", table[6] / table[12], {.high = 0.5});
        std::ostringstream ways;
        const auto goals = page.over_seeds([&](std::uint64_t seed) {
          const auto steps = page.amount<std::int64_t>(4000, 600);
          const auto by_sac = [&](systems::World& world, Index components) {
            return learn(world, {.components = components, .gradient = kEvery, .steps = steps}, seed);
          };
          return systems::play_two_goals(by_sac, seed, seed == page.first_seed() ? &ways : nullptr);
        });
        page.table({"two goals, SAC", "both reached", "reach one", "reward"});
        page.row("mixture of four", {goals[0], goals[1], goals[2]});
        page.row("one Gaussian", {goals[3], goals[4], goals[5]});
        page.expect("worlds in which a mixture reaches both goals", goals[0], {.low = 0.8});
        page.expect("the same less those in which one Gaussian does", goals[0] - goals[3], {.low = 0.6});
        const auto ratios = page.over_seeds([&](std::uint64_t seed) {
          const auto steps = page.amount<std::int64_t>(60000, 2000);
          const auto by_ppo = [&](systems::World& world, Index components) {
            return learn_proximal(world, {.components = components, .steps = steps}, seed);
          };
          return systems::play_two_goals(by_ppo, seed, nullptr);
        });
        page.table({"two goals, PPO", "both reached", "reach one", "reward"});
        page.row("mixture of four", {ratios[0], ratios[1], ratios[2]});
        page.row("one Gaussian", {ratios[3], ratios[4], ratios[5]});
        page.expect("worlds in which a mixture reaches both by PPO", ratios[0], {.low = 0.4});
        const auto swing =
            page.over_seeds([&](std::uint64_t seed) { return pendulum(seed, page.amount<std::int64_t>(6000, 600)); });
        page.table({"pendulum, SAC", "mixture of two", "one Gaussian"});
        page.row("return", {swing[0], swing[1]});
        systems::draw_policies(kFrequency, updates, page.first_seed(), ways.str(), "pmoe.svg");
        page.claim("runs of 20 that keep both optima, by win frequency", bandit[0], {.low = 18, .high = 20});
      });
}
