// SPDX-License-Identifier: MIT
#include "proximal_policy.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <moe/train/adam_w.hpp>
#include <moe/train/clip.hpp>

namespace systems {

namespace {

using moe::Index;
using moe::Matrix;
using moe::Step;

/// A network that gives [rows, 1]: a mixture of one expert, behind whose weight its output stands.
class Network {
 public:
  Network(Index inputs, Index hidden, std::uint64_t seed)
      : layer_(moe::NoRouter(1, inputs), moe::SoftmaxGate{},
               ReluExperts(moe::ExpertPool<moe::BasicMlp<moe::F32, moe::Relu>>::random(
                   1, {.input = inputs, .hidden = hidden, .output = 1}, seed))),
        gradient_(moe::zeros_like(layer_)),
        moments_(layer_) {}

  Matrix<float> operator()(const Matrix<float>& rows) {
    Matrix<float> out(rows.rows(), 2);
    layer_.forward(rows, Step{}, out, tape_);
    return out.col(1);
  }
  /// A step down the mean of squared differences from target [rows, 1].
  void learn(const Matrix<float>& rows, const Matrix<float>& target, double rate) {
    Matrix<float> dout = Matrix<float>::Zero(rows.rows(), 2);
    dout.col(1) = ((*this)(rows)-target) * (2 / static_cast<float>(rows.rows()));
    moe::set_zero(gradient_);
    layer_.backward(rows, tape_, dout, gradient_);
    moe::AdamW{.weight_decay = 0}.step(layer_, gradient_, moments_, rate);
  }

 private:
  Critics layer_, gradient_;
  moe::AdamW::State<Critics> moments_;
  Critics::Tape tape_;
};

/// Steps in a world, a row each; density is the logarithm of that of the action when it was drawn.
struct Steps {
  Matrix<float> state, latent, density, advantage, target;

  Steps at(const std::vector<Index>& rows) const {
    return {state(rows, Eigen::all), latent(rows, Eigen::all), density(rows, Eigen::all), advantage(rows, Eigen::all),
            target(rows, Eigen::all)};
  }
};

class ProximalLearner {
 public:
  ProximalLearner(World& world, const ProximalOptions& options, std::uint64_t seed)
      : world_(world),
        options_(options),
        seed_(seed),
        actor_(new_actor(world, {.components = options.components, .hidden = options.hidden}, seed)),
        dactor_(moe::zeros_like(actor_)),
        moments_(actor_),
        value_(world.state_dim(), options.hidden, seed + 2),
        quality_(world.state_dim() + world.action_dim(), 2 * options.hidden, seed + 3) {}

  const Actor& actor() const { return actor_; }

  void learn(std::int64_t round) {
    left_ = 1 - static_cast<double>(round * options_.rollout) / static_cast<double>(options_.steps);
    collect(round);
    std::vector<Index> order(static_cast<std::size_t>(options_.rollout));
    std::iota(order.begin(), order.end(), Index{0});
    for (Index epoch = 0; epoch < options_.epochs; ++epoch) {
      const moe::RandomField random(moe::Purpose::Shuffle, seed_, round, epoch);
      std::ranges::sort(order, {}, [&](Index r) { return random.bits(r); });
      for (auto row = order.begin(); order.end() - row >= options_.batch; row += options_.batch)
        learn(seen_.at({row, row + options_.batch}), Step::train(update_++, seed_));
    }
  }

 private:
  /// Episodes from their start, the last of which is broken off.
  void collect(std::int64_t round) {
    const Index rows = options_.rollout;
    Matrix<float> state(1, world_.state_dim()), latent(1, world_.action_dim()), density(1, 1), next(rows, state.cols());
    Matrix<float> reward(rows, 1), ahead(rows, 1), trace(rows, 1);  // what value and advantage of the next step count
    seen_ = {next, Matrix<float>(rows, latent.cols()), reward, reward, reward};
    for (Index r = 0, left = 0; r < rows; ++r) {
      if (left == 0) world_.start(seed_ + 1000, episode_++);
      world_.observe(state.data());
      const Step step = Step::train(static_cast<std::uint64_t>(round * rows + r), seed_ + 1);
      const auto& mixture = actor_.mixture(state, step, ws_);
      mixture.sample(step, latent);
      mixture.log_density(latent, density);
      const Matrix<float> asked = beside_actions(state, latent, latent.cols(), mixture.range);
      const World::Outcome outcome = world_.act(asked.data() + state.cols());
      world_.observe(next.row(r).data());
      left = outcome.ends ? 0 : (left == 0 ? world_.steps() : left) - 1;
      seen_.state.row(r) = state;
      seen_.latent.row(r) = latent;
      seen_.density(r, 0) = density(0, 0);
      reward(r, 0) = static_cast<float>(outcome.reward);
      ahead(r, 0) = outcome.ends ? 0 : static_cast<float>(options_.discount);
      trace(r, 0) = left == 0 ? 0 : static_cast<float>(options_.discount * options_.trace);
    }
    const Matrix<float> now = value_(seen_.state);
    seen_.advantage = reward + ahead.cwiseProduct(value_(next)) - now;
    for (Index r = rows - 2; r >= 0; --r) seen_.advantage(r, 0) += trace(r, 0) * seen_.advantage(r + 1, 0);
    seen_.target = now + seen_.advantage;
    seen_.advantage.array() -= seen_.advantage.mean();
    seen_.advantage /= std::sqrt(seen_.advantage.squaredNorm() / static_cast<float>(rows)) + 1e-6f;
  }

  /// Components learn from the ratio of densities and the entropy, weights from which proposal is the best.
  void learn(const Steps& batch, const Step& step) {
    const double rate = left_ * options_.rate;
    const Index dim = actor_.action_dim();
    actor_.forward(batch.state, step, tape_);
    const auto& mixture = tape_.mixture;
    value_.learn(batch.state, batch.target, rate);
    quality_.learn(beside_actions(batch.state, batch.latent, dim, mixture.range), batch.target, rate);
    Matrix<float> density(options_.batch, 1);
    mixture.log_density(batch.latent, density);
    for (Index t = 0; t < density.rows(); ++t) {  // becomes the loss's gradient
      const double advantage = double{batch.advantage(t, 0)};
      const double ratio = std::exp(std::min(20.0, double{density(t, 0)} - double{batch.density(t, 0)}));
      const bool is_clipped = advantage > 0 ? ratio > 1 + options_.clip : ratio < 1 - options_.clip;
      density(t, 0) = is_clipped ? 0 : static_cast<float>(-advantage * ratio / static_cast<double>(density.rows()));
    }
    dmixture_.clear_like(mixture);
    mixture.log_density_backward(batch.latent, density, dmixture_);
    dmixture_.log_weight.setZero();
    estimator_.propose(mixture, step);
    const Matrix<float> quality = quality_(beside_actions(batch.state, estimator_.latent(), dim, mixture.range));
    of_points_.build(
        mixture, estimator_, left_ * options_.entropy, [&](Index r) { return quality(r, 0); },
        [](Index, Index) { return 0.0f; });
    estimator_.backward(mixture, of_points_.value, of_points_.slope, {}, step, dmixture_);
    moe::set_zero(dactor_);
    actor_.backward(batch.state, tape_, dmixture_, dactor_);
    moe::clip_by_norm(dactor_, 0.5);
    moe::AdamW{.weight_decay = 0}.step(actor_, dactor_, moments_, rate);
  }

  World& world_;
  ProximalOptions options_;
  std::uint64_t seed_, update_ = 0;
  std::int64_t episode_ = 0;
  double left_ = 1;  ///< of the time to learn
  Actor actor_, dactor_;
  moe::AdamW::State<Actor> moments_;
  Network value_, quality_;
  Steps seen_;
  moe::MixtureEstimator<float> estimator_{{.kind = moe::MixtureGradient::Frequency, .learners = moe::Learners::Every}};
  EntropyValue of_points_;
  Actor::Workspace ws_;
  Actor::Tape tape_;
  moe::DiagonalMixture<float> dmixture_;
};

}  // namespace

Actor learn_proximal(World& world, const ProximalOptions& options, std::uint64_t seed) {
  ProximalLearner learner(world, options, seed);
  for (std::int64_t round = 0; round < options.steps / options.rollout; ++round) learner.learn(round);
  return learner.actor();
}

}  // namespace systems
