// SPDX-License-Identifier: MIT
// Blocks of published models in training.
#include "io/family_blocks.hpp"
#include "moe/train/squared_error.hpp"
#include "moe/train/trainer.hpp"
#include "support/catch.hpp"
#include "support/sample_layer.hpp"

using moe::Matrix;
using moe::MoeBlock;
using moe::Step;
using test::flatten;

namespace {

struct Batch {
  explicit Batch(const MoeBlock& block)
      : tokens(test::random_matrix<float>(6, block.input_dim(), 1)),
        target(test::random_matrix<float>(6, block.output_dim(), 2)) {}

  auto loss() const {
    return [this](const auto& output, auto& doutput) { return moe::squared_error(output, target, {}, doutput); };
  }
  Matrix<float> tokens, target;
};

const moe::TrainerOptions kOptions{.balance = 0.1, .z_loss = 0.01};

/// The gradient of one batch, by hand.
std::vector<double> gradient_of(const MoeBlock& block, const Batch& batch) {
  MoeBlock::Tape tape;
  Matrix<float> output(6, block.output_dim()), doutput, dtokens(6, block.input_dim()), probability;
  const Step step = Step::train(0, 1);
  block.forward(batch.tokens, step, output, tape);
  batch.loss()(output, doutput);
  moe::RoutingGradient<float>& losses = tape.losses();
  block.probabilities(tape.logits(), step, probability);
  moe::load_balancing_loss<float>(probability, tape.routing(), step, kOptions.balance, losses);
  moe::z_loss<float>(tape.logits(), step, kOptions.z_loss, losses);
  MoeBlock gradient = moe::zeros_like(block);
  block.backward(batch.tokens, tape, doutput, gradient, dtokens);
  return flatten(gradient);
}

}  // namespace

TEST_CASE("Trainer: blocks of every family are trained with the bits of the loop by hand", "[io]") {
  for (const auto& [model_type, text] : test::family_configs()) {
    CAPTURE(model_type);
    MoeBlock block = test::random_block(test::config_of(model_type));
    const Batch batch(block);
    moe::Trainer trainer(block, moe::Sgd{}, kOptions);
    trainer.accumulate(batch.tokens, Step::train(0, 1), batch.loss());
    CHECK(flatten(trainer.gradient()) == gradient_of(block, batch));
    const auto before = flatten(block);
    CHECK(trainer.update(0.01).taken);
    CHECK(flatten(block) != before);
  }
}

TEST_CASE("MoeBlock: k = 1 with normalised weights serves, and is trained when told so", "[io][error]") {
  moe::MoeConfig config = test::config_of("mixtral");
  config.gate.k = 1;
  MoeBlock block = test::random_block(config);
  const Batch batch(block);
  Matrix<float> output(6, block.output_dim());
  moe::Workspace workspace;
  CHECK_NOTHROW(block.forward(batch.tokens, Step{}, output, workspace));
  moe::Trainer trainer(block);
  CHECK_THROWS_WITH(trainer.accumulate(batch.tokens, Step::train(0), batch.loss()),
                    Catch::Matchers::ContainsSubstring("constant_weights = ConstantWeights::Accept"));
  config.gate.constant_weights = moe::ConstantWeights::Accept;
  MoeBlock told = test::random_block(config);
  moe::Trainer accepted(told);
  CHECK_NOTHROW(accepted.accumulate(batch.tokens, Step::train(0), batch.loss()));
}
