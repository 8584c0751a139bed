// SPDX-License-Identifier: MIT
#include "soft_actor_critic.hpp"

#include <algorithm>
#include <utility>

#include <moe/core/parallel.hpp>
#include <moe/train/adam_w.hpp>

namespace systems {

using moe::Index;
using moe::Matrix;
using moe::Step;

Actor new_actor(const World& world, const ActorCriticOptions& options, std::uint64_t seed) {
  const Index inputs = world.state_dim(), outputs = 2 * world.action_dim();
  return {{moe::LinearRouter::random(options.components, inputs, seed, moe::Bias::Zero), moe::SoftmaxGate{},
           ReluExperts(moe::ExpertPool<moe::BasicMlp<moe::F32, moe::Relu>>::random(
               options.components, {.input = inputs, .hidden = options.hidden, .output = outputs}, seed + 1))},
          {.action_dim = world.action_dim(), .min_log_std = -5}};
}

Matrix<float> beside_actions(const Matrix<float>& states, const Matrix<float>& latent, Index dim,
                             const moe::ActionRange& range) {
  const Index points = latent.cols() / dim;
  Matrix<float> out(states.rows() * points, states.cols() + dim);
  for (Index r = 0; r < out.rows(); ++r) {
    out.row(r).head(states.cols()) = states.row(r / points);
    for (Index d = 0; d < dim; ++d)
      out(r, states.cols() + d) = static_cast<float>(range.action(double{latent(r / points, r % points * dim + d)}));
  }
  return out;
}

namespace {

Critics new_critics(const World& world, const ActorCriticOptions& options, std::uint64_t seed) {
  const Index inputs = world.state_dim() + world.action_dim();
  return {moe::NoRouter(2, inputs), moe::SoftmaxGate{},
          ReluExperts(moe::ExpertPool<moe::BasicMlp<moe::F32, moe::Relu>>::random(
              2, {.input = inputs, .hidden = 2 * options.hidden, .output = 1}, seed + 2))};
}

/// Actor, critics and what they learn from: one update is a call of learn().
class Learner {
 public:
  Learner(const World& world, const ActorCriticOptions& options, std::uint64_t seed)
      : options_(options),
        seed_(seed),
        actor_(new_actor(world, options, seed)),
        critics_(new_critics(world, options, seed)),
        target_(critics_),
        dactor_(moe::zeros_like(actor_)),
        dcritics_(moe::zeros_like(critics_)),
        of_actor_(actor_),
        of_critics_(critics_),
        estimator_(options.gradient),
        batch_(options.batch, world) {}

  const Actor& actor() const { return actor_; }

  void learn(const Replay& replay, std::uint64_t update) {
    const double done = static_cast<double>(update) / static_cast<double>(options_.steps);
    entropy_ = options_.entropy + done * (options_.last_entropy - options_.entropy);
    replay.draw(options_.batch, moe::RandomField(moe::Purpose::User, seed_, 1).bits(std::int64_t(update)), batch_);
    learn_critics(Step::train(2 * update, seed_));
    learn_actor(Step::train(2 * update + 1, seed_));
    follow();
  }

 private:
  void ask(const Matrix<float>& states, const Matrix<float>& latent, const moe::ActionRange& range) {
    asked_ = beside_actions(states, latent, actor_.action_dim(), range);
    answer_.resize(asked_.rows(), critics_.output_dim());
  }
  /// The column of the critic that thinks less of row r; the first two columns are their weights.
  Index lesser(Index r) const { return answer_(r, 2) <= answer_(r, 3) ? 2 : 3; }

  /// Both towards reward + discount (min Q'(s', a') - entropy log p(a')).
  void learn_critics(const Step& step) {
    const auto& mixture = actor_.mixture(batch_.next, step, ws_);
    latent_.resize(options_.batch, actor_.action_dim());
    mixture.sample(step, latent_);
    density_.resize(options_.batch, 1);
    mixture.log_density(latent_, density_);
    ask(batch_.next, latent_, mixture.range);
    target_.forward(asked_, step, answer_, critics_ws_);
    std::vector<float> towards;
    for (Index r = 0; r < options_.batch; ++r) {
      const auto at = static_cast<std::size_t>(r);
      const double next = double{answer_(r, lesser(r))} - entropy_ * double{density_(r, 0)};
      towards.push_back(batch_.reward[at] + batch_.goes_on[at] * static_cast<float>(options_.discount * next));
    }
    asked_ << batch_.state, batch_.action;
    critics_.forward(asked_, step, answer_, critics_tape_);
    danswer_.setZero(answer_.rows(), answer_.cols());
    for (Index r = 0; r < options_.batch; ++r)
      for (Index c = 2; c < 4; ++c)
        danswer_(r, c) =
            2 * (answer_(r, c) - towards[static_cast<std::size_t>(r)]) / static_cast<float>(options_.batch);
    moe::set_zero(dcritics_);
    critics_.backward(asked_, critics_tape_, danswer_, dcritics_);
    adam_.step(critics_, dcritics_, of_critics_, options_.rate);
  }

  /// Q is the lesser one of the critics.
  void learn_actor(const Step& step) {
    actor_.forward(batch_.state, step, actor_tape_);
    const auto& mixture = actor_tape_.mixture;
    estimator_.propose(mixture, step);
    ask(batch_.state, estimator_.latent(), mixture.range);
    critics_.forward(asked_, step, answer_, critics_tape_);
    danswer_.setZero(answer_.rows(), answer_.cols());
    for (Index r = 0; r < answer_.rows(); ++r) danswer_(r, lesser(r)) = 1;
    dasked_.resize(asked_.rows(), asked_.cols());
    critics_.backward(asked_, critics_tape_, danswer_, dcritics_, dasked_);

    of_points_.build(
        mixture, estimator_, entropy_, [&](Index r) { return answer_(r, lesser(r)); },
        [&](Index r, Index d) { return dasked_(r, batch_.state.cols() + d); });
    dmixture_.clear_like(mixture);
    estimator_.backward(mixture, of_points_.value, of_points_.slope, {}, step, dmixture_);
    moe::set_zero(dactor_);
    actor_.backward(batch_.state, actor_tape_, dmixture_, dactor_);
    adam_.step(actor_, dactor_, of_actor_, options_.rate);
  }

  void follow() {
    const auto share = static_cast<float>(options_.follow);
    moe::visit(
        [&](const std::string&, auto& leaf, const auto& of_critics) {
          const auto to = moe::parameter_span(leaf);
          const auto from = moe::parameter_span(of_critics);
          for (std::size_t i = 0; i < to.size(); ++i) to[i] += share * (from[i] - to[i]);
        },
        target_, std::as_const(critics_));
  }

  ActorCriticOptions options_;
  std::uint64_t seed_;
  double entropy_ = 0;
  Actor actor_;
  Critics critics_, target_;
  Actor dactor_;
  Critics dcritics_;
  moe::AdamW adam_{.weight_decay = 0};
  moe::AdamW::State<Actor> of_actor_;
  moe::AdamW::State<Critics> of_critics_;
  moe::MixtureEstimator<float> estimator_;
  EntropyValue of_points_;
  Replay batch_;
  Actor::Workspace ws_;
  Actor::Tape actor_tape_;
  moe::Workspace critics_ws_;
  Critics::Tape critics_tape_;
  moe::DiagonalMixture<float> dmixture_;
  Matrix<float> latent_, density_, asked_, answer_, danswer_, dasked_;
};

}  // namespace

Replay::Replay(Index capacity, const World& world)
    : state(capacity, world.state_dim()),
      action(capacity, world.action_dim()),
      next(capacity, world.state_dim()),
      reward(static_cast<std::size_t>(capacity)),
      goes_on(reward.size()) {}

void Replay::draw(Index rows, std::uint64_t seed, Replay& batch) const {
  const moe::RandomField random(moe::Purpose::Shuffle, seed);
  const auto held = static_cast<std::uint64_t>(std::min<std::int64_t>(count, state.rows()));
  for (Index r = 0; r < rows; ++r) {
    const auto from = static_cast<Index>(random.below(held, r));
    batch.state.row(r) = state.row(from);
    batch.action.row(r) = action.row(from);
    batch.next.row(r) = next.row(from);
    batch.reward[static_cast<std::size_t>(r)] = reward[static_cast<std::size_t>(from)];
    batch.goes_on[static_cast<std::size_t>(r)] = goes_on[static_cast<std::size_t>(from)];
  }
}

Actor learn(World& world, const ActorCriticOptions& options, std::uint64_t seed) {
  Learner learner(world, options, seed);
  Replay replay(static_cast<Index>(options.steps), world);
  Actor::Workspace ws;
  Matrix<float> state(1, world.state_dim()), action(1, world.action_dim());
  const moe::RandomField random(moe::Purpose::User, seed, 2);
  std::int64_t step = 0;
  for (std::int64_t episode = 0; step < options.steps; ++episode) {
    world.start(seed + 1000, episode);
    for (Index i = 0; i < world.steps() && step < options.steps; ++i, ++step) {
      world.observe(state.data());
      learner.actor().act(state, Step::train(std::uint64_t(step), seed + 1), moe::ActionChoice::Sample, action, ws);
      for (Index d = 0; d < action.cols() && step < options.warm_up; ++d)
        action(0, d) = static_cast<float>(2 * random.uniform(step, d) - 1);
      const World::Outcome outcome = world.act(action.data());
      const Index at = replay.place();
      replay.state.row(at) = state;
      replay.action.row(at) = action;
      world.observe(replay.next.row(at).data());
      replay.reward[static_cast<std::size_t>(at)] = static_cast<float>(outcome.reward);
      replay.goes_on[static_cast<std::size_t>(at)] = outcome.ends ? 0.0f : 1.0f;
      ++replay.count;
      if (step >= options.warm_up) learner.learn(replay, std::uint64_t(step));
      if (outcome.ends) break;
    }
  }
  return learner.actor();
}

Episode play(const Actor& actor, World& world, std::uint64_t seed, std::int64_t episode, moe::ActionChoice how) {
  Actor::Workspace ws;
  Matrix<float> state(1, world.state_dim()), action(1, world.action_dim());
  Episode played;
  world.start(seed + 2000, episode);
  for (Index i = 0; i < world.steps(); ++i) {
    world.observe(state.data());
    played.states.emplace_back(state.data(), state.data() + state.size());
    actor.act(state, Step::train(std::uint64_t(episode * world.steps() + i), seed + 3), how, action, ws);
    const World::Outcome outcome = world.act(action.data());
    played.reward += outcome.reward;
    if (outcome.ends) break;
  }
  world.observe(state.data());
  played.states.emplace_back(state.data(), state.data() + state.size());
  return played;
}

}  // namespace systems
