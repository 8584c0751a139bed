// SPDX-License-Identifier: MIT
// compare_checkpoint FILE.safetensors: does a layer of a published model, loaded from its own tensors, compute what was
// recorded where the model ran? Weights, inputs and outputs are in one file here; usually the weights are a checkpoint.
#include <cstdio>
#include <moe/io.hpp>
#include <moe/moe.hpp>

namespace {

// Of the model; with a directory: moe::read_moe_config(directory / "config.json", layer).
constexpr std::string_view kConfig = R"({
  "model_type": "qwen2_moe", "hidden_size": 32, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 56,
  "num_experts": 10, "num_experts_per_tok": 4, "hidden_act": "silu", "norm_topk_prob": false})";

/// A tensor [.., columns] as a matrix.
moe::Matrix<float> matrix(const moe::TensorView& tensor, moe::Index columns) {
  const std::vector<float> values = moe::read_all<float>(tensor);
  if (columns == 0 || std::ssize(values) % columns != 0)
    moe::fail_environment(tensor.label, ": tensor '", tensor.name, "' has no rows of ", columns, " numbers");
  return Eigen::Map<const moe::Matrix<float>>(values.data(), std::ssize(values) / columns, columns);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) moe::fail("usage: compare_checkpoint FILE.safetensors");
  const auto file = moe::Checkpoint::open(argv[1]);
  const moe::MoeBlock block = moe::load_moe_block(file, moe::parse_moe_config("config", kConfig), {.layer = 0});

  const moe::Matrix<float> tokens = matrix(file.at("t33.input"), block.model_dim());
  const moe::Matrix<float> recorded = matrix(file.at("t33.output"), block.model_dim());
  if (recorded.rows() != tokens.rows()) moe::fail_environment(argv[1], ": input and output have other numbers of rows");
  moe::Matrix<float> output(tokens.rows(), tokens.cols());
  moe::Workspace workspace;
  block.forward(tokens, moe::Step{}, output, workspace);

  // Relative to the largest output: sums of a float library end within 5e-6 of another's. Far more than that, and for
  // some tokens only, is another choice of experts, which workspace.routing shows.
  const float error = (output - recorded).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() / recorded.cwiseAbs().maxCoeff();
  std::printf("%td tokens, largest error %.1e of the largest output\n", tokens.rows(), static_cast<double>(error));
  return error <= 5e-6f ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "compare_checkpoint: %s\n", error.what());
  return 1;
}
