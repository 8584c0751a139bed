// SPDX-License-Identifier: MIT
// An action with two optima, one a tenth worse, for policies without a state; and a gradient that is known exactly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <ostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/expert/linear.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/softmax.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/policy/mixture_gradient.hpp>
#include <moe/policy/mixture_policy.hpp>
#include <moe/router/linear.hpp>
#include <moe/train/adam_w.hpp>

#include "soft_actor_critic.hpp"

namespace systems {

/// Numbers of its own for the one state there is, which is 1.
using StatelessPolicy = moe::MixturePolicy<
    moe::MoeLayer<moe::LinearRouter, moe::SoftmaxGate, moe::SeparateExperts<moe::ExpertPool<moe::Linear>>>>;

/// max(exp(-(a - 1)^2 / 0.08), 0.9 exp(-(a + 1)^2 / 0.08)) and its derivative.
inline std::pair<double, double> two_optima_reward(double a) {
  const double right = std::exp(-(a - 1) * (a - 1) / 0.08), left = 0.9 * std::exp(-(a + 1) * (a + 1) / 0.08);
  return right >= left ? std::pair(right, -right * (a - 1) / 0.04) : std::pair(left, -left * (a + 1) / 0.04);
}

/// A policy with actions in [-2, 2] that starts at actions of -0.2 and 0.2, one component at 0.
inline StatelessPolicy new_two_optima(moe::Index components) {
  std::vector<moe::Linear> experts(static_cast<std::size_t>(components), moe::Linear(2, 1));
  for (std::size_t k = 0; k < experts.size(); ++k) {
    const float mean = components == 1 ? 0.0f : k == 0 ? -0.1f : 0.1f;
    moe::write_parameter(experts[k].bias(), std::span<const float>(std::vector{mean, std::log(0.25f)}));
  }
  return {{moe::LinearRouter(components, 1), moe::SoftmaxGate{},
           moe::SeparateExperts(moe::ExpertPool<moe::Linear>(experts))},
          {.min_log_std = -5, .range = {.squash = moe::Squash::Tanh, .scale = 2}}};
}

/// The same after some updates by 16 draws each, with an entropy that counts 0.25.
inline StatelessPolicy learn_two_optima(const moe::MixtureGradientOptions& how, moe::Index components,
                                        std::uint64_t updates, std::uint64_t seed) {
  StatelessPolicy policy = new_two_optima(components), gradient = moe::zeros_like(policy);
  moe::AdamW::State<StatelessPolicy> state(policy);
  moe::MixtureEstimator<float> estimator(how);
  StatelessPolicy::Tape tape;
  EntropyValue of_points;
  moe::DiagonalMixture<float> dmixture;
  const moe::Matrix<float> states = moe::Matrix<float>::Ones(16, 1);
  for (std::uint64_t update = 0; update < updates; ++update) {
    const moe::Step step = moe::Step::train(update, seed);
    policy.forward(states, step, tape);
    estimator.propose(tape.mixture, step);
    const auto reward_of = [&](moe::Index r) {
      return two_optima_reward(tape.mixture.range.action(double{estimator.latent().data()[r]}));
    };
    of_points.build(
        tape.mixture, estimator, 0.25, [&](moe::Index r) { return static_cast<float>(reward_of(r).first); },
        [&](moe::Index r, moe::Index) { return static_cast<float>(reward_of(r).second); });
    dmixture.clear_like(tape.mixture);
    estimator.backward(tape.mixture, of_points.value, of_points.slope, {}, step, dmixture);
    moe::set_zero(gradient);
    policy.backward(states, tape, dmixture, gradient);
    moe::AdamW{.weight_decay = 0}.step(policy, gradient, state, 0.01);
  }
  return policy;
}

inline moe::DiagonalMixture<float> mixture_of(const StatelessPolicy& policy, moe::Index rows) {
  StatelessPolicy::Workspace ws;
  return policy.mixture(moe::Matrix<float>::Ones(rows, 1), moe::Step{}, ws);
}

/// Whether each optimum has a component whose mean is within 0.1 of it and whose weight is above 0.2.
inline bool has_both(const StatelessPolicy& policy) {
  const auto mixture = mixture_of(policy, 1);
  bool right = false, left = false;
  for (moe::Index k = 0; k < mixture.num_components(); ++k) {
    const double mean = mixture.range.action(double{mixture.mean(0, k)});
    right = right || (mixture.weight(0, k) > 0.2 && std::abs(mean - 1) < 0.1);
    left = left || (mixture.weight(0, k) > 0.2 && std::abs(mean + 1) < 0.1);
  }
  return right && left;
}

inline double mean_reward(const StatelessPolicy& policy, std::uint64_t seed) {
  const auto mixture = mixture_of(policy, 1000);
  moe::Matrix<float> latent(1000, 1);
  mixture.sample(moe::Step::train(0, seed), latent);
  double sum = 0;
  for (moe::Index t = 0; t < latent.rows(); ++t)
    sum += two_optima_reward(mixture.range.action(double{latent(t, 0)})).first;
  return sum / static_cast<double>(latent.rows());
}

/// The mean of the likeliest component, as an action.
inline double likeliest_action(const StatelessPolicy& policy) {
  const auto mixture = mixture_of(policy, 1);
  moe::Matrix<float> latent(1, 1);
  mixture.most_probable(latent);
  return mixture.range.action(double{latent(0, 0)});
}

/// Action, density and reward, a line each.
inline void write_density(const StatelessPolicy& policy, std::ostream& to) {
  const auto mixture = mixture_of(policy, 1);
  moe::Matrix<float> latent(1, 1), density(1, 1);
  for (double a = -1.9; a < 1.9; a += 0.01) {
    latent(0, 0) = static_cast<float>(mixture.range.latent(a));
    mixture.log_density(latent, density);
    to << a << ' ' << std::exp(density(0, 0)) << ' ' << two_optima_reward(a).first << '\n';
  }
}

/// Writes a script for gnuplot: the densities of a mixture and of one Gaussian, and `ways`, lines of places.
inline void draw_policies(const moe::MixtureGradientOptions& how, std::uint64_t updates, std::uint64_t seed,
                          const std::string& ways, const std::string& path) {
  std::ofstream script(path + ".gp");
  script << "set terminal svg size 900,400 font 'sans-serif,13' background '#ffffff'\nset output '" << path << "'\n";
  for (const moe::Index components : {2, 1}) {
    script << "$density" << components << " << END\n";
    write_density(learn_two_optima(how, components, updates, seed), script);
    script << "END\n";
  }
  script << "$ways << END\n"
         << ways
         << "END\nset multiplot layout 1,2\nset border 3\nset tics nomirror\n"
            "set title 'Density of the action; the reward in grey'\nset xlabel 'action'\nset key top left\n"
            "plot $density2 using 1:3 with filledcurves y1=0 lc '#dddddd' notitle, $density2 using 1:2 with lines lw 2 "
            "lc '#08306b' title 'mixture', $density1 using 1:2 with lines lw 2 lc '#d95f0e' title 'one Gaussian'\n"
            "set title 'Ways to two goals: of a mixture, and of one Gaussian'\nunset key\nunset border\nunset tics\n"
            "set xlabel ''\nset size ratio -1\nplot $ways using 1:2 with lines lc '#08306b'\nunset multiplot\n";
  script.close();
  if (!script) moe::fail_environment("cannot write ", path, ".gp");
}

/// Bias and variance of each estimator of dJ/dlogit of the second component, where weights are 0.3 and 0.7, means -1
/// and 1, deviations 0.5 and f(a) = -(a - 0.4)^2: exactly 0.336. A draw is a row.
template <class All>
std::vector<double> judge_estimators(const All& all, moe::Index draws, std::uint64_t seed) {
  moe::DiagonalMixture<double> mixture, gradient;
  mixture.resize(draws, 2, 1);
  mixture.log_weight.col(0).setConstant(std::log(0.3));
  mixture.log_weight.col(1).setConstant(std::log(0.7));
  mixture.mean.col(0).setConstant(-1);
  mixture.mean.col(1).setConstant(1);
  mixture.log_std.setConstant(std::log(0.5));
  const moe::Step step = moe::Step::train(0, seed);
  std::vector<double> numbers;
  for (const auto& how : all) {
    moe::MixtureEstimator<double> estimator(how);
    estimator.propose(mixture, step);
    const moe::Matrix<double> apart = estimator.latent().array() - 0.4;
    gradient.clear_like(mixture);
    estimator.backward(mixture, -apart.cwiseProduct(apart), -2 * apart, {}, step, gradient);
    moe::Matrix<double> dlogits(draws, 2);
    mixture.log_weight_backward(gradient.log_weight, dlogits);
    const double count = static_cast<double>(draws), mean = -dlogits.col(1).sum();
    double square = 0;
    for (moe::Index t = 0; t < draws; ++t) square += std::pow(-count * dlogits(t, 1) - mean, 2);
    numbers.insert(numbers.end(), {mean - 0.336, square / (count - 1)});
  }
  return numbers;
}

}  // namespace systems
