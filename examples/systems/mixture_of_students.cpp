// SPDX-License-Identifier: MIT
// Mixture of students: a mixture of fewer layers learns from one of more, from the labels and from the teacher's
// softened scores, in stages: near the end without the teacher, whom it has not the capacity to follow.
// Rajbhandari et al., "DeepSpeed-MoE", section 4.2 (arXiv:2201.05596): 21 layers for 24 at 99 % of the accuracy.
// Here: 20 blobs, few rows and noisy labels; a teacher of four residual layers, a student of three. Scores of a teacher
// that has learned the labels by heart add nothing at the paper's temperature of 1, and a point or two at 3; stopping
// early makes no difference, and the teacher is no better than the student. Claimed is that staged distillation does no
// harm. Not here: students that start from layers of the teacher.
#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/expert/scaled_identity.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/branches.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/router/linear.hpp>
#include <moe/train/distillation.hpp>

#include "support/labelled.hpp"
#include "support/page.hpp"
#include "support/stack.hpp"
#include "support/train.hpp"

namespace {

using moe::Index;
using Expert = moe::BasicMlp<moe::F32, moe::Relu>;
using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<Expert>>;
using Residual = moe::WithBranches<Layer, Expert, moe::ScaledIdentity>;  // routed + fixed + x
using Stack = systems::Stack<Residual>;

constexpr Index kDim = 20, kHidden = 16, kBatch = 64;  // as many columns as classes: the outputs are the scores
constexpr systems::Blobs kTrain = {.count = 400, .classes = kDim, .dim = kDim, .label_noise = 0.3};
constexpr systems::Blobs kTest = {.count = 4000, .classes = kDim, .dim = kDim};

Stack stack_of(const std::vector<Index>& num_experts, std::uint64_t seed) {
  Stack stack;
  for (const Index count : num_experts) {
    seed += 100;
    stack.layers.emplace_back(
        Layer(moe::LinearRouter::random(count, kDim, seed, moe::Bias::Zero), moe::TopKGate::switch_transformer(),
              moe::ExpertPool<Expert>::random(count, kDim, kHidden, seed + 10)),
        Expert::random(kDim, kHidden, seed + 20), moe::ScaledIdentity{kDim});
  }
  return stack;
}

/// Trains on labels and, while `staged` says so, on the teacher's scores; returns the accuracy.
double trained_accuracy(Stack& model, const Stack* teacher, const moe::StagedDistillation& staged, std::uint64_t seed,
                        std::uint64_t updates) {
  const systems::Labelled data = systems::blobs(kTrain, seed, 1), test = systems::blobs(kTest, seed, 2);
  moe::Trainer trainer(model, moe::AdamW{.weight_decay = 0});
  const moe::CosineSchedule rate{.start = 3e-3, .end = 0, .updates = updates};
  moe::Matrix<float> dtaught;
  for (std::uint64_t update = 0; update < updates; ++update) {
    const systems::Labelled batch = draw_batch(data, kBatch, seed, update);
    const moe::Step step = moe::Step::train(update, seed);
    const double alpha = staged.weight(update);
    trainer.accumulate(batch.rows, step, [&](const moe::Matrix<float>& out, moe::Matrix<float>& dout) {
      double loss = loss_of(batch, out, step, dout);
      if (alpha == 0) return loss;
      const moe::Matrix<float> taught = systems::outputs(*teacher, batch.rows);
      loss += alpha * moe::distillation_loss<float>(out, taught, staged.temperature, step, dtaught);
      dout += static_cast<float>(alpha) * dtaught;
      return loss;
    });
    trainer.update(rate(update));
  }
  return systems::accuracy(systems::outputs(model, test.rows), test.labels);
}

/// Accuracies of the teacher, then of students that learn alone, with it, and with it until 70 % of the updates.
std::vector<double> run(double temperature, std::uint64_t seed, std::uint64_t updates) {
  Stack teacher = stack_of({4, 4, 8, 8}, seed);
  std::vector<double> numbers = {trained_accuracy(teacher, nullptr, {}, seed, updates)};
  for (const std::uint64_t stop : {std::uint64_t{0}, updates, updates * 7 / 10}) {
    Stack student = stack_of({4, 4, 8}, seed + 50);
    numbers.push_back(trained_accuracy(student, &teacher, {.temperature = temperature, .stop = stop}, seed, updates));
  }
  return numbers;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"mixture_of_students", "2201.05596", "moe/train/distillation.hpp"}, [](systems::Page& page) {
        const auto updates = page.amount<std::uint64_t>(800, 50);
        page.table({"accuracy", "teacher", "student alone", "taught", "taught in stages"});
        const auto s = page.over_seeds([&](std::uint64_t seed) { return run(1, seed, updates); });
        page.row("temperature 1", s);
        page.row("temperature 3", page.over_seeds([&](std::uint64_t seed) { return run(3, seed, updates); }));
        page.claim("accuracy that staged distillation adds to a student", s[3] - s[1], {.low = -0.02});
      });
}
