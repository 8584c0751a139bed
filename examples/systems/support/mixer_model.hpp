// SPDX-License-Identifier: MIT
// Models of environments: linear experts that a context modulates, behind a router that is solved for or learned.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <moe/expert/linear.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/numeric/assignment.hpp>
#include <moe/router/columns.hpp>
#include <moe/router/least_squares.hpp>
#include <moe/train/adam_w.hpp>
#include <moe/train/sgd.hpp>
#include <moe/train/trainer.hpp>

#include "contexts.hpp"
#include "labelled.hpp"
#include "ode.hpp"

namespace systems {

template <class R>
using ContextModel = WithContexts<moe::MoeLayer<moe::ColumnsRouter<R>, moe::TopKGate, moe::ExpertPool<moe::Linear>>>;
using Mixer = ContextModel<moe::LeastSquaresRouter>;  // takes the chosen expert as it is
using Switch = ContextModel<moe::LinearRouter>;       // weighs it by its probability, through which the router learns

inline constexpr moe::Index kState = 2;

template <class R>
ContextModel<R> context_model(const R& router, const moe::TopKGate& gate, moe::Index environments, std::uint64_t seed) {
  const moe::Index context = router.model_dim(), inputs = kState * (context + 1) + context;
  std::vector<moe::Linear> experts;
  for (moe::Index e = 0; e < router.num_experts(); ++e)
    experts.push_back(moe::Linear::random(kState, inputs, seed + 100 * static_cast<std::uint64_t>(e + 1)));
  return {{moe::ColumnsRouter(router, inputs, inputs - context), gate, moe::ExpertPool<moe::Linear>(experts)},
          kState,
          environments,
          context};
}

inline moe::Step step_of(const Regression& data) {
  moe::Step step;
  step.key = data.key;
  return step;
}

/// [environments, experts]: mean squared error of every expert on the rows of every environment.
inline moe::Matrix<double> losses(const Mixer& model, const Regression& data) {
  const moe::Matrix<float> tokens = model.tokens(data.rows, step_of(data));
  moe::Matrix<double> loss = moe::Matrix<double>::Zero(model.contexts().rows(), model.layer().num_experts());
  moe::Matrix<float> out(tokens.rows(), kState);
  const double each = static_cast<double>(tokens.rows()) / static_cast<double>(loss.rows());
  for (moe::Index e = 0; e < loss.cols(); ++e) {
    model.layer().experts()[e].forward(tokens, out, moe::Step{});
    for (moe::Index t = 0; t < out.rows(); ++t)
      loss(static_cast<moe::Index>(data.key[static_cast<std::size_t>(t)]), e) +=
          static_cast<double>((out.row(t) - data.targets.row(t)).squaredNorm()) / each;
  }
  return loss;
}

/// Contexts and experts by turns, 12 updates each, by gradients of all rows; a Mixer's router is solved for between.
template <class R>
void train_in_turns(ContextModel<R>& model, const Regression& data, std::uint64_t updates, std::uint64_t seed) {
  constexpr double kRate = 0.15, kContextRate = 2.4;  // a context learns from its own rows alone, one of 48
  moe::Trainer trainer(model, moe::Sgd{});
  for (std::uint64_t update = 0; update < updates; ++update) {
    moe::Step step = moe::Step::train(update, seed);
    step.key = data.key;
    trainer.accumulate(data.rows, step, [&](const auto& out, auto& dout) { return loss_of(data, out, step, dout); });
    const bool contexts = update / 12 % 2 == 0;
    if (contexts)
      moe::set_zero(trainer.gradient().layer());
    else
      trainer.gradient().contexts().setZero();
    trainer.update(contexts ? kContextRate : kRate);
    if constexpr (std::is_same_v<R, moe::LeastSquaresRouter>)
      if (update % 4 == 3)
        model.layer().router().router().refit(model.contexts(), losses(model, data),
                                              moe::RandomField(moe::Purpose::User, seed, update));
  }
}

inline Mixer trained_mixer(moe::Index experts, moe::Index context, const Regression& data, std::uint64_t updates,
                           std::uint64_t seed) {
  Mixer model = context_model(moe::LeastSquaresRouter(experts, context),
                              {.k = 1, .constant_weights = moe::ConstantWeights::Accept},
                              1 + static_cast<moe::Index>(data.key.back()), seed);
  train_in_turns(model, data, updates, seed);
  return model;
}

/// Weights and biases from U(-1/sqrt(context), 1/sqrt(context)), as linear layers of other libraries have them.
inline Switch fresh_switch(moe::Index experts, moe::Index context, const Regression& data, std::uint64_t seed) {
  auto router = moe::LinearRouter::random(experts, context, seed, moe::Bias::Zero);
  const moe::RandomField random(moe::Purpose::User, seed, 13);
  for (moe::Index e = 0; e < experts; ++e)
    router.bias().set(e, 0, static_cast<float>((2 * random.uniform(e) - 1) / std::sqrt(static_cast<double>(context))));
  return context_model(router, moe::TopKGate::switch_transformer(), 1 + static_cast<moe::Index>(data.key.back()), seed);
}
inline Switch trained_switch(moe::Index experts, moe::Index context, const Regression& data, std::uint64_t updates,
                             std::uint64_t seed) {
  Switch model = fresh_switch(experts, context, data, seed);
  train_in_turns(model, data, updates, seed);
  return model;
}
inline Switch trained_by_adam(moe::Index experts, moe::Index context, const Regression& data, std::uint64_t updates,
                              std::uint64_t seed) {
  Switch model = fresh_switch(experts, context, data, seed);
  moe::Trainer trainer(model, moe::AdamW{.weight_decay = 0});
  for (std::uint64_t update = 0; update < updates; ++update) {
    moe::Step step = moe::Step::train(update, seed);
    step.key = data.key;
    trainer.accumulate(data.rows, step, [&](const auto& out, auto& dout) { return loss_of(data, out, step, dout); });
    trainer.update(0.01);
  }
  return model;
}

template <class M>
double error(const M& model, const Regression& data) {
  moe::Workspace ws;
  moe::Matrix<float> out(data.rows.rows(), kState);
  model.forward(data.rows, step_of(data), out, ws);
  return squared_error(out, data);
}

/// Share of environments whose expert is that of their family, in the best matching of both.
template <class M>
double purity(const M& model, const std::vector<Environment>& of) {
  moe::Matrix<float> logits(std::ssize(of), model.layer().num_experts());
  model.layer().router().router().logits(model.contexts(), moe::Step{}, logits);
  Eigen::MatrixXd cost = Eigen::MatrixXd::Zero(kFamilies, kFamilies);
  const auto experts = predictions(logits);
  for (std::size_t i = 0; i < of.size(); ++i) cost(of[i].family, experts[i]) -= 1 / static_cast<double>(of.size());
  const auto matching = moe::least_assignment(cost);
  double share = 0;
  for (moe::Index f = 0; f < kFamilies; ++f) share -= cost(f, matching[static_cast<std::size_t>(f)]);
  return share;
}

/// The vector field that a model has learned for an environment.
template <class M>
auto learned(const M& model, moe::Index environment) {
  return [&model, environment](const State& y) {
    const std::vector<std::int64_t> key = {environment};
    moe::Step step;
    step.key = key;
    moe::Workspace ws;
    moe::Matrix<float> row(1, kState), out(1, kState);
    row << static_cast<float>(y[0]), static_cast<float>(y[1]);
    model.forward(row, step, out, ws);
    return State{static_cast<double>(out(0, 0)), static_cast<double>(out(0, 1))};
  };
}

/// Mean squared distance of learned paths from true ones, up to time 2, over all environments.
template <class M>
double path_distance(const M& model, const std::vector<Environment>& of) {
  double sum = 0;
  for (std::size_t e = 0; e < of.size(); ++e) {
    const auto truth = rk4_path(of[e], {1, 1}, 0.1, 20);
    const auto path = rk4_path(learned(model, static_cast<moe::Index>(e)), {1, 1}, 0.1, 20);
    for (std::size_t i = 1; i < path.size(); ++i)
      sum += std::pow(path[i][0] - truth[i][0], 2) + std::pow(path[i][1] - truth[i][1], 2);
  }
  return sum / (20 * static_cast<double>(of.size()));
}

}  // namespace systems
