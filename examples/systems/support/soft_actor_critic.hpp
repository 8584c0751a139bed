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

/// What a MixtureEstimator asks for: f = Q - entropy log p(a) at its points and the gradient of that. Of the entropy
/// only the way over the action counts (see MixtureEstimator); Frequency, which compares proposals, compares Q alone.
class EntropyValue {
 public:
  moe::Matrix<float> value, slope;  ///< [rows, points], [rows, points * dim]

  /// q(r) is Q of point r = row * points + i, dq(r, d) its derivative by coordinate d of the action.
  template <class Q, class DQ>
  void build(const moe::DiagonalMixture<float>& mixture, const moe::MixtureEstimator<float>& estimator, double entropy,
             const Q& q, const DQ& dq) {
    const moe::Matrix<float>& latent = estimator.latent();
    const moe::Index rows = latent.rows(), dim = mixture.dim(), points = latent.cols() / dim;
    const auto share = static_cast<float>(entropy);
    value.resize(rows, points);
    density_.resize(rows, points);
    slope.resize(rows, points * dim);
    mixture.log_density(latent, density_);
    unused_.clear_like(mixture);
    mixture.log_density_backward(latent, moe::Matrix<float>::Constant(rows, points, -share), unused_, slope);
    const bool compares = estimator.options().kind == moe::MixtureGradient::Frequency;
    for (moe::Index t = 0; t < rows; ++t)
      for (moe::Index i = 0; i < points; ++i) {
        const moe::Index r = t * points + i;
        value(t, i) = q(r) - (compares ? 0.0f : share * density_(t, i));
        for (moe::Index d = 0; d < dim; ++d) {
          const auto by_latent = static_cast<float>(mixture.range.slope(double{latent(t, i * dim + d)}));
          slope(t, i * dim + d) += dq(r, d) * by_latent;
        }
      }
  }

 private:
  moe::Matrix<float> density_;
  moe::DiagonalMixture<float> unused_;
};

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

  Replay(moe::Index capacity, const World& world);
  moe::Index place() const { return static_cast<moe::Index>(count % state.rows()); }
  /// Rows drawn with replacement.
  void draw(moe::Index rows, std::uint64_t seed, Replay& batch) const;
};

/// An actor that has learned nothing, of so many components with so many hidden units.
Actor new_actor(const World& world, const ActorCriticOptions& options, std::uint64_t seed);

/// What a critic is asked: states beside the actions of latent points, row by row, point by point of `dim` numbers.
moe::Matrix<float> beside_actions(const moe::Matrix<float>& states, const moe::Matrix<float>& latent, moe::Index dim,
                                  const moe::ActionRange& range);

/// An actor that has learned in a world.
Actor learn(World& world, const ActorCriticOptions& options, std::uint64_t seed);

/// An episode: its states, one after the other, and the sum of its rewards.
struct Episode {
  std::vector<std::vector<float>> states;
  double reward = 0;
};
Episode play(const Actor& actor, World& world, std::uint64_t seed, std::int64_t episode, moe::ActionChoice how);

}  // namespace systems
