// SPDX-License-Identifier: MIT
// Models of several tasks over shared experts: one or two levels of MultiGateLayer under a linear tower per task.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <moe/expert/linear.hpp>
#include <moe/expert/normalised.hpp>
#include <moe/gate/self_gate.hpp>
#include <moe/layer/multi_gate_layer.hpp>
#include <moe/numeric/schedule.hpp>
#include <moe/router/linear.hpp>
#include <moe/train/adam_w.hpp>
#include <moe/train/trainer.hpp>

#include "relu_linear.hpp"
#include "task_labels.hpp"

namespace systems {

/// towers(level 2(level 1(x))). Level 1 has a gate per group of tasks and, where there is a level 2, one behind them
/// that all groups share; group q's rows [z_q | z_shared] stand under those of the groups before it, in one matrix, and
/// level 2 has a gate per task. Without a level 2 every task is a group.
template <class E>
class MultiTask {
 public:
  using Scalar = float;
  using Level = moe::MultiGateLayer<moe::LinearRouter, moe::SelfGate, moe::ExpertPool<E>>;
  struct Tape {
    typename Level::Tape first, second;
    std::vector<moe::Linear::Tape> towers;
    moe::Matrix<float> z, u, h, dz, du, dh, hidden, dhidden, one;
    std::vector<std::int64_t> group, id;
    moe::Step step;
    moe::Scratch scratch;
  };

  /// groups[q]: the tasks of group q.
  MultiTask(std::vector<std::vector<moe::Index>> groups, Level first, std::optional<Level> second, std::uint64_t seed)
      : groups_(std::move(groups)), first_(std::move(first)), second_(std::move(second)) {
    for (const auto& tasks : groups_)
      for (std::size_t i = 0; i < tasks.size(); ++i) towers_.push_back(moe::Linear::random(1, width(), seed++));
  }

  moe::Index input_dim() const { return first_.input_dim(); }
  moe::Index output_dim() const { return std::ssize(towers_); }
  Level& first() { return first_; }
  const Level& first() const { return first_; }
  std::optional<Level>& second() { return second_; }
  const std::optional<Level>& second() const { return second_; }

  void forward(const moe::MatrixView<float>& rows, const moe::Step& step, moe::MatrixRef<float> out, Tape& tape) const {
    const moe::Index n = rows.rows();
    tape.step = step;
    tape.z.resize(n, first_.output_dim());
    first_.forward(rows, step, tape.z, tape.first);
    if (second_) {
      stack(tape, n);
      tape.h.resize(tape.u.rows(), second_->output_dim());
      second_->forward(tape.u, step_of_second(tape), tape.h, tape.second);
    }
    tape.towers.resize(towers_.size());
    for (moe::Index t = 0; t < output_dim(); ++t) {
      tape.hidden = of_task(t, n, tape.h, tape.z);
      tape.one.resize(n, 1);
      tower(t).forward(tape.hidden, tape.one, {step, tape.scratch}, tape.towers[static_cast<std::size_t>(t)]);
      out.col(t) = tape.one;
    }
  }
  void backward(const moe::MatrixView<float>& rows, Tape& tape, const moe::MatrixView<float>& dout, MultiTask& gradient,
                moe::MatrixRef<float> drows) const {
    const moe::Index n = rows.rows();
    tape.dz.setZero(n, tape.z.cols());
    tape.dh.setZero(tape.h.rows(), tape.h.cols());
    for (moe::Index t = 0; t < output_dim(); ++t) {
      tape.hidden = of_task(t, n, tape.h, tape.z);
      tape.one = dout.col(t);
      tape.dhidden.resize(n, width());
      tower(t).backward(tape.hidden, tape.towers[static_cast<std::size_t>(t)], tape.one, tape.dhidden,
                        gradient.towers_[static_cast<std::size_t>(t)], {tape.step, tape.scratch});
      of_task(t, n, tape.dh, tape.dz) = tape.dhidden;
    }
    if (second_) {
      tape.du.resize(tape.u.rows(), tape.u.cols());
      second_->backward(tape.u, tape.second, tape.dh, *gradient.second_, tape.du);
      const moe::Index width = first_.experts().output_dim();
      for (moe::Index q = 0; q < std::ssize(groups_); ++q) {
        tape.dz.middleCols(q * width, width) += tape.du.block(q * n, 0, n, width);
        tape.dz.rightCols(width) += tape.du.block(q * n, width, n, width);
      }
    }
    first_.backward(rows, tape.first, tape.dz, gradient.first_, drows);
  }

  /// Running statistics of normalised experts, after a pass of training.
  void update_statistics(const Tape& tape) {
    moe::update_statistics(first_.experts(), tape.first.experts, tape.first.chosen.plan());
    if (second_) moe::update_statistics(second_->experts(), tape.second.experts, tape.second.chosen.plan());
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    moe::visit_part(f, "first", first.first_, rest.first_...);
    if (first.second_) moe::visit_part(f, "second", *first.second_, *rest.second_...);
    for (std::size_t t = 0; t < first.towers_.size(); ++t)
      moe::visit_part(f, "towers." + std::to_string(t), first.towers_[t], rest.towers_[t]...);
  }

 private:
  /// Columns that a tower reads.
  moe::Index width() const { return second_ ? second_->experts().output_dim() : first_.experts().output_dim(); }

  void stack(Tape& tape, moe::Index n) const {
    const moe::Index width = first_.experts().output_dim(), count = std::ssize(groups_);
    tape.u.resize(count * n, 2 * width);
    tape.group.clear();
    tape.id.clear();
    for (moe::Index q = 0; q < count; ++q) {
      tape.u.block(q * n, 0, n, width) = tape.z.middleCols(q * width, width);
      tape.u.block(q * n, width, n, width) = tape.z.rightCols(width);
      for (moe::Index r = 0; r < n; ++r) tape.group.push_back(q), tape.id.push_back(q * n + r);
    }
  }
  moe::Step step_of_second(const Tape& tape) const {
    moe::Step step = tape.step;
    step.layer = 1;
    step.group_id = tape.group;
    step.token_id = tape.id;
    return step;
  }

  /// What the tower of a task reads: of h with a level 2, of z without.
  auto of_task(moe::Index task, moe::Index n, moe::Matrix<float>& h, moe::Matrix<float>& z) const {
    if (!second_) return z.block(0, task * width(), n, width());
    for (std::size_t q = 0; q < groups_.size(); ++q)
      if (const auto at = std::ranges::find(groups_[q], task); at != groups_[q].end())
        return h.block(static_cast<moe::Index>(q) * n, (at - groups_[q].begin()) * width(), n, width());
    moe::fail("systems::MultiTask: task ", task, " is in no group, expected it in one");
  }
  const moe::Linear& tower(moe::Index task) const { return towers_[static_cast<std::size_t>(task)]; }

  std::vector<std::vector<moe::Index>> groups_;
  Level first_;
  std::optional<Level> second_;
  std::vector<moe::Linear> towers_;
};

/// Largest share of outputs of one expert of a level that are zero.
template <class Level>
double zeros_of_worst(const Level& level, const typename Level::Tape& tape) {
  const moe::DispatchPlan& plan = tape.chosen.plan();
  const moe::Index width = level.experts().output_dim();
  double worst = 0;
  for (moe::Index e = 0; e < plan.num_experts(); ++e) {
    double count = 0;
    for (moe::Index r = plan.offset(e); r < plan.offset(e + 1); ++r)
      for (moe::Index c = 0; c < width; ++c) count += std::abs(tape.rows.row(r)[c]) < 1e-6f ? 1 : 0;
    worst = std::max(worst, count / static_cast<double>(plan.rows_of(e) * width));
  }
  return worst;
}

/// What became of a model: area under the curve of each of six tasks, and their mean over the two with few labels; the
/// share of zeros of the worst expert; the number of parameters.
struct TaskResult {
  static constexpr std::size_t kSparse = 6, kZeros = 7, kParameters = 8, kSize = 9;
};

/// Trains the model with AdamW on random batches, running statistics included, and gives the numbers of TaskResult.
template <class E>
std::vector<double> train_tasks(MultiTask<E> model, const TaskData& data, std::uint64_t updates, std::uint64_t seed) {
  moe::Trainer trainer(model, moe::AdamW{.weight_decay = 0.01}, {.max_norm = 5});
  const moe::CosineSchedule rate{.start = 5e-3, .end = 0, .updates = updates};
  for (std::uint64_t update = 0; update < updates; ++update) {
    const TaskLabels batch = draw_batch(data.train, 128, seed, update);
    const moe::Step step = moe::Step::train(update, seed);
    trainer.accumulate(batch.rows, step, [&](const auto& out, auto& dout) { return loss_of(batch, out, step, dout); });
    if constexpr (requires { model.first().experts()[0].mean(); }) model.update_statistics(trainer.tape());
    trainer.update(rate(update));
  }
  typename MultiTask<E>::Tape tape;
  moe::Matrix<float> out(data.test.rows.rows(), data.test.num_tasks());
  model.forward(data.test.rows, moe::Step{}, out, tape);
  std::vector<double> numbers;
  for (moe::Index t = 0; t < out.cols(); ++t) numbers.push_back(area_under_curve(out, data.test.labels, t));
  numbers.push_back((numbers[2] + numbers[5]) / 2);
  numbers.push_back(std::max(zeros_of_worst(model.first(), tape.first),
                             model.second() ? zeros_of_worst(*model.second(), tape.second) : 0));
  numbers.push_back(static_cast<double>(moe::num_parameters(model)));
  return numbers;
}

}  // namespace systems
