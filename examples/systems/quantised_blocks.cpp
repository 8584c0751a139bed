// SPDX-License-Identifier: MIT
// What the outputs of published blocks lose in few bits, by each way to find the codes: to the nearest, HQQ (Badri &
// Shaji 2023), AWQ (Lin et al., arXiv:2306.00978) and GPTQ (Frantar et al., arXiv:2210.17323), with groups of 32
// inputs. The blocks are reference vectors of their families, tiny, with weights that have been drawn
// (published_blocks.hpp). Inputs have a few directions in common, as hidden states have: with inputs that are
// independent nothing is to be gained by looking at them. Errors are of other tokens than those that the methods have
// seen.
#include <array>

#include <moe/compress.hpp>
#include <moe/io/block/calibrate_block.hpp>
#include <moe/io/block/compress_block.hpp>

#include "support/page.hpp"
#include "support/published_blocks.hpp"

namespace {

using moe::Index;

const std::vector<std::string> kBlocks = {"olmoe_a", "mixtral_bf16", "deepseek_v2_b"};
const std::vector<std::string> kMethods = {"to nearest", "HQQ", "AWQ", "GPTQ"};
constexpr std::array kBits = {2, 3, 4, 8};

/// x = z A + noise: z of 8 numbers, A drawn once per seed.
moe::Matrix<float> correlated_tokens(Index dim, std::uint64_t seed, std::uint64_t part) {
  constexpr Index kTokens = 1024, kDirections = 8;
  const moe::RandomField mix(moe::Purpose::User, seed, 100), draw(moe::Purpose::User, seed, part);
  moe::Matrix<float> tokens(kTokens, dim);
  for (Index t = 0; t < kTokens; ++t)
    for (Index c = 0; c < dim; ++c) {
      double x = 0.3 * draw.normal(t, kDirections + c);
      for (Index i = 0; i < kDirections; ++i) x += draw.normal(t, i) * mix.normal(i, c) / 3;
      tokens(t, c) = static_cast<float>(x);
    }
  return tokens;
}

/// Relative errors of a block: [methods] of each number of bits, one after the other.
std::vector<double> errors_of(const moe::MoeBlock& block, std::uint64_t seed) {
  const auto seen = correlated_tokens(block.model_dim(), seed, 1),
             other = correlated_tokens(block.model_dim(), seed, 2);
  const moe::BlockCalibration calibration = moe::calibrate(block, seen);
  std::vector<double> errors;
  for (const int bits : kBits) {
    const auto format = moe::WeightFormat::planes(bits, 32);
    const auto add = [&](const moe::QuantisedMoeBlock& few) {
      errors.push_back(moe::reconstruction_error(block, few, other).relative());
    };
    add(moe::quantise(block, format));
    add(moe::quantise(block, format, moe::Hqq{}, calibration));
    add(moe::quantise(block, format, moe::Awq{}, calibration));
    add(moe::quantise(block, format, moe::Gptq{}, calibration));
  }
  return errors;
}

}  // namespace

int main(int argc, char** argv) {
  const systems::System system{"quantised_blocks", "2210.17323", "moe/compress/gptq.hpp"};
  return systems::run_page(argc, argv, system, [](systems::Page& page) {
    std::vector<std::vector<systems::Sample>> samples;
    for (const std::string& name : kBlocks)
      samples.push_back(
          page.over_seeds([&](std::uint64_t seed) { return errors_of(systems::golden_block(name), seed); }));
    for (std::size_t b = 0; b < kBits.size(); ++b) {
      page.table({"relative error, " + std::to_string(kBits[b]) + " bits", "OLMoE", "Mixtral", "DeepSeek-V2"});
      for (std::size_t m = 0; m < kMethods.size(); ++m) {
        const std::size_t at = b * kMethods.size() + m;
        page.row(kMethods[m], {samples[0][at], samples[1][at], samples[2][at]});
      }
    }
    systems::Sample ratio = samples[0][7] / samples[0][4];  // GPTQ over nearest, 3 bits
    for (std::size_t i = 0; i < ratio.values.size(); ++i)
      for (std::size_t f = 1; f < samples.size(); ++f) ratio.values[i] += (samples[f][7] / samples[f][4]).values[i];
    for (double& value : ratio.values) value /= static_cast<double>(samples.size());
    page.claim("error of GPTQ over that of rounding to nearest, 3 bits, mean of three families", ratio, {.high = 0.8});
  });
}
