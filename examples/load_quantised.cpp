// SPDX-License-Identifier: MIT
// load_quantised [FORMAT [DIRECTORY]]: loads the first MoE layer of a downloaded model twice, with all weights as float
// and with those of its experts in few bits, and says what that saves and costs. FORMAT is "kept", the one of the file,
// or one to round to: bf16, int8, int4-g128, mxfp4, 3bit, ... Without DIRECTORY it makes a small checkpoint first.
#include <chrono>
#include <cstdio>
#include <moe/io.hpp>
#include <moe/moe.hpp>
#include <optional>

#include "load_checkpoint/synthetic.hpp"

namespace {

/// Runs 16 tokens one by one, as a model writes them, and returns the shortest time of one.
template <class Block>
double microseconds_per_token(const Block& block, const moe::Matrix<float>& tokens, moe::Matrix<float>& output) {
  moe::Workspace workspace;
  double shortest = 1e9;
  for (moe::Index t = 0; t < tokens.rows(); ++t) {
    const auto begin = std::chrono::steady_clock::now();
    block.forward(tokens.middleRows(t, 1), moe::Step{}, output.middleRows(t, 1), workspace);
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - begin;
    shortest = std::min(shortest, time.count());
  }
  return shortest;
}

template <class Block>
void report(const char* name, const Block& block, double microseconds) {
  std::printf("%-10s %9.2f MB, %8.1f us per token\n", name, 1e-6 * static_cast<double>(moe::memory_bytes(block)),
              microseconds);
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string_view format = argc > 1 ? argv[1] : "kept";
  std::optional<SyntheticCheckpoint> synthetic;
  const std::filesystem::path directory = argc > 2 ? argv[2] : synthetic.emplace().path();
  const auto checkpoint = moe::Checkpoint::open(directory);
  const moe::Index layer = moe::moe_layers(checkpoint, moe::read_moe_config(directory / "config.json").family).at(0);
  const moe::MoeConfig config = moe::read_moe_config(directory / "config.json", layer);
  moe::LoadOptions options{.layer = layer};
  const moe::MoeBlock floats = moe::load_moe_block(checkpoint, config, options);
  if (format != "kept") options.format = moe::WeightFormat::named(format);
  const moe::QuantisedMoeBlock codes = moe::load_quantised_block(checkpoint, config, options);

  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(16, config.model_dim);
  moe::Matrix<float> exact(16, config.model_dim), output(16, config.model_dim);
  report("float", floats, microseconds_per_token(floats, tokens, exact));
  report(std::string(format).c_str(), codes, microseconds_per_token(codes, tokens, output));
  const float error = (output - exact).norm() / exact.norm();  // 0 for "kept": the same bits
  std::printf("error      %9.2g of the output's length\n", static_cast<double>(error));
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "load_quantised: %s\n", error.what());
  return 1;
}
