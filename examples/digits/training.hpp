// SPDX-License-Identifier: MIT
// The training loop of digits.cpp.
#pragma once

#include <array>
#include <chrono>
#include <numeric>

#include "model.hpp"
#include "report.hpp"

namespace digits {

inline constexpr Index kBatch = 64;

struct Options {
  int epochs = 40;
  double balance = 0.1;      // weight of the load-balancing loss; 0 where the gate has no use for it
  double consistency = 0.0;  // weight of the consistency loss between two passes; 0 = one pass
};

/// Forward, losses and backward of one batch; twice with other draws where passes are to be consistent.
template <class Model>
class Trainer {
 public:
  Trainer(const Model& model, const Options& options)
      : options_(options), gradient_(moe::zeros_like(model)), state_(model) {}

  void update(Model& model, const moe::Matrix<float>& images, const std::vector<Index>& labels, moe::Step step,
              double learning_rate) {
    moe::set_zero(gradient_);
    const std::size_t passes = options_.consistency > 0 ? 2 : 1;
    for (std::size_t p = 0; p < passes; ++p) forward(model, images, labels, step, p);
    if (passes == 2) {
      moe::Matrix<float> first, second;
      moe::symmetric_kl<float>(pass_[0].scores, pass_[1].scores, step, first, second);
      pass_[0].dscores += static_cast<float>(options_.consistency) * first;
      pass_[1].dscores += static_cast<float>(options_.consistency) * second;
    }
    for (std::size_t p = 0; p < passes; ++p) backward(model, images, step, p);
    moe::clip_by_norm(gradient_, 5.0);
    moe::AdamW{.weight_decay = 0.1}.step(model, gradient_, state_, learning_rate);
  }

 private:
  struct Pass {
    typename Model::Mixture::Tape mixture;
    moe::Linear::Tape head;
    moe::Matrix<float> hidden, scores, dscores, dhidden, probabilities;
  };

  void forward(const Model& model, const moe::Matrix<float>& images, const std::vector<Index>& labels, moe::Step step,
               std::size_t p) {
    Pass& pass = pass_[p];
    step.pass = static_cast<std::uint32_t>(p);
    pass.hidden.resize(images.rows(), kPixels);
    pass.scores.resize(images.rows(), kClasses);
    model.mixture.forward(images, step, pass.hidden, pass.mixture);
    const moe::Context context(step, scratch_);
    model.head.forward(pass.hidden, pass.scores, context, pass.head);
    moe::cross_entropy<float>(pass.scores, labels, step, pass.dscores);
  }

  void backward(const Model& model, const moe::Matrix<float>& images, moe::Step step, std::size_t p) {
    Pass& pass = pass_[p];
    step.pass = static_cast<std::uint32_t>(p);
    pass.dhidden.resize(images.rows(), kPixels);
    const moe::Context context(step, scratch_);
    model.head.backward(pass.hidden, pass.head, pass.dscores, pass.dhidden, gradient_.head, context);
    if (options_.balance > 0) {
      auto& tape = pass.mixture.layer;
      model.mixture.layer().gate().probabilities(tape.logits, {step, scratch_}, pass.probabilities);
      moe::load_balancing_loss<float>(pass.probabilities, tape.routing, step, options_.balance, tape.losses);
    }
    model.mixture.backward(images, pass.mixture, pass.dhidden, gradient_.mixture);
  }

  Options options_;
  Model gradient_;
  moe::AdamW::State<Model> state_;
  std::array<Pass, 2> pass_;
  moe::Scratch scratch_;
};

/// Share of each digit's assignments that each expert gets: [num_experts, 10].
inline moe::Matrix<double> digit_share(const moe::Routing<float>& routing, const std::vector<Index>& labels,
                                       Index experts) {
  moe::Matrix<double> share = moe::Matrix<double>::Zero(experts, kClasses);
  for (Index t = 0; t < routing.num_tokens(); ++t)
    for (const Index expert : routing.experts(t)) share(expert, labels[static_cast<std::size_t>(t)]) += 1;
  for (Index d = 0; d < kClasses; ++d) share.col(d) /= std::max(1.0, share.col(d).sum());
  return share;
}

template <class Model>
Run train(const std::string& name, int seed, Model model, const Data& data, const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  const Index count = data.train.pixels.rows(), batches = (count + kBatch - 1) / kBatch;
  const moe::CosineSchedule rate{
      .start = 2e-2, .end = 1e-3, .updates = static_cast<std::uint64_t>(options.epochs * batches)};
  Trainer<Model> trainer(model, options);
  moe::Workspace workspace;
  moe::Matrix<float> images, scores;
  std::vector<Index> labels, order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), Index{0});
  Run run{.gate = name, .seed = seed};
  std::uint64_t update = 0;
  for (int epoch = 0; epoch < options.epochs; ++epoch) {
    const moe::RandomField shuffle(moe::Purpose::Shuffle, seed, epoch);
    for (std::size_t i = order.size() - 1; i > 0; --i)
      std::swap(order[i], order[shuffle.below(i + 1, static_cast<Index>(i))]);
    for (Index begin = 0; begin < count; begin += kBatch, ++update) {
      const Index size = std::min(kBatch, count - begin);
      images.resize(size, kPixels);
      labels.resize(static_cast<std::size_t>(size));
      for (Index i = 0; i < size; ++i) {
        const Index row = order[static_cast<std::size_t>(begin + i)];
        images.row(i) = data.train.pixels.row(row);
        labels[static_cast<std::size_t>(i)] = data.train.labels[static_cast<std::size_t>(row)];
      }
      trainer.update(model, images, labels, moe::Step::train(update, static_cast<std::uint64_t>(seed)), rate(update));
    }
    model.scores(data.test.pixels, scores, workspace);
    run.accuracy_history.push_back(accuracy(scores, data.test.labels));
  }
  run.test_accuracy = run.accuracy_history.back();
  run.active_experts = moe::mean_active_experts(workspace.routing);
  run.load_imbalance = moe::load_imbalance(workspace.plan());
  run.share = digit_share(workspace.routing, data.test.labels, model.mixture.num_experts());
  if constexpr (requires { model.mixture.layer().experts()[0].hidden_dim(); })
    run.kiloflops =
        run.active_experts * 4e-3 * static_cast<double>(kPixels * model.mixture.layer().experts()[0].hidden_dim());
  if constexpr (Model::kDrawsExperts) run.ensemble_accuracy = ensemble_accuracy(model, data.test);
  run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return run;
}

}  // namespace digits
