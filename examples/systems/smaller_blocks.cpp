// SPDX-License-Identifier: MIT
// Smaller blocks of published families: what the outputs of a block lose by fewer experts and by fewer bits. Experts
// are kept by REAP, Lasby et al. (arXiv:2510.13999), beside lots and beside merging the others into those that stay;
// bits are planned exactly, by measured errors, beside one number for all. The blocks are tiny, and their weights have
// been drawn, not trained (support/published_blocks.hpp): numbers say how the parts go together in each family, not
// what a trained model loses. Experts without anything in common do not merge, which the page prints. Error over size:
// smaller_blocks.svg.
#include <array>
#include <fstream>

#include <moe/compress.hpp>
#include <moe/io/block/calibrate_block.hpp>
#include <moe/io/block/compress_block.hpp>

#include "support/page.hpp"
#include "support/published_blocks.hpp"

namespace {

using moe::Index;

constexpr double kFamilies = 5;
const std::vector<std::string> kNames = {"OLMoE", "Mixtral", "DeepSeek-V2", "DeepSeek-V3", "GPT-OSS"};
constexpr std::array kShares = {0.5, 0.75};  // of the experts
constexpr std::array kBits = {2.0, 2.5, 3.0, 4.0};
const std::vector<std::string> kRows = {"half, REAP",           "half, by lot",           "half, merged",
                                        "three quarters, REAP", "three quarters, by lot", "three quarters, merged",
                                        "2 bits, plan",         "2 bits, alike",          "2.5 bits, plan",
                                        "2.5 bits, 3 for half", "3 bits, plan",           "3 bits, alike",
                                        "4 bits, plan",         "4 bits, alike"};
constexpr std::size_t kFirstBits = 6;  // of kRows

/// Relative errors of the outputs of a block, on other tokens than it was made smaller by: kRows.
std::vector<double> errors_of(const moe::MoeBlock& block, std::uint64_t seed) {
  const Index dim = block.model_dim();
  const auto seen = systems::tokens_by_lot(dim, seed), tokens = systems::tokens_by_lot(dim, seed + 1000);
  const auto lost = [&](const auto& smaller) { return moe::reconstruction_error(block, smaller, tokens).relative(); };
  const auto use = moe::calibrate_experts(block, seen, {.moments = moe::Gather::Off, .use = moe::Gather::On}).use();
  const Index experts = block.num_experts(), groups = block.config().gate.groups.count;
  const auto distance = moe::distance_of(moe::output_similarity(block, seen));
  std::vector<double> result;
  for (const double share : kShares) {
    const auto keep = static_cast<Index>(share * static_cast<double>(experts));
    const auto plan = moe::keep_best_in_groups(use.saliencies(), keep, groups);
    double by_lot = 0;
    for (std::uint64_t lot = 0; lot < 8; ++lot) {
      std::vector<double> scores;
      for (Index e = 0; e < experts; ++e) scores.push_back(moe::RandomField(moe::Purpose::User, seed, lot).uniform(e));
      by_lot += lost(moe::prune(block, moe::keep_best_in_groups(scores, keep, groups)).layer) / 8;
    }
    const auto merged = moe::merge(block, moe::join_nearest(plan, distance), {.weights = use.frequencies()});
    result.insert(result.end(), {lost(moe::prune(block, plan).layer), by_lot, lost(merged.layer)});
  }
  const std::vector<Index> choices = {1, 2, 3, 4, 5, 6};
  std::vector<moe::WeightFormat> formats;
  for (const Index bits : choices) formats.push_back(moe::WeightFormat::planes(static_cast<int>(bits), 32));
  const moe::BlockCalibration moments = moe::calibrate(block, seen);
  const auto errors = moe::quantisation_errors(block, seen, formats, moe::Gptq{}, moments.experts);
  const auto in = [&](std::vector<Index> bits) {
    return lost(moe::quantise(block, moe::BitPlan{.bits = std::move(bits)}.planes(32), moe::Gptq{}, moments));
  };
  for (const double bits : kBits) {
    const auto budget = static_cast<Index>(bits * static_cast<double>(experts)), low = static_cast<Index>(bits);
    result.push_back(in(moe::allocate_bits({.bits = choices, .costs = errors.cwiseAbs2(), .budget = budget})));
    result.push_back(in(moe::bits_by_score(std::vector<double>(use.saliencies().size(), 0), low, low + 1, bits)));
  }
  return result;
}

/// Writes a script for gnuplot. Sizes are those of experts, 1 in BF16; scales and offsets of 32 weights are a bit each.
void draw(const std::vector<std::vector<systems::Sample>>& samples, const std::string& path) {
  std::ofstream script(path + ".gp");
  script << "set terminal svg size 820,480 font 'sans-serif,13' background '#ffffff'\nset output '" << path << "'\n";
  for (std::size_t f = 0; f < kNames.size(); ++f) {
    script << "$experts" << f << " << END\n";
    for (std::size_t s = 0; s < kShares.size(); ++s) script << kShares[s] << ' ' << samples[f][3 * s].mean() << '\n';
    script << "END\n$bits" << f << " << END\n";
    for (std::size_t b = 0; b < kBits.size(); ++b)
      script << (kBits[b] + 1) / 16 << ' ' << samples[f][kFirstBits + 2 * b].mean() << '\n';
    script << "END\n";
  }
  script << "set border 3\nset tics nomirror\nset grid lc '#dddddd'\nset logscale xy\nset xlabel 'size of the experts, "
            "1: all of them in BF16'\nset ylabel 'relative error of the outputs'\nset xrange [0.15:1]\nset yrange "
            "[0.05:1.2]\n"
            "set xtics (0.1875, 0.25, 0.5, 0.75, 1)\nset key outside right\nplot ";
  constexpr std::array kColours = {"#e41a1c", "#ff7f00", "#4daf4a", "#377eb8", "#984ea3"};
  for (std::size_t f = 0; f < kNames.size(); ++f)
    script << (f ? ", " : "") << "$bits" << f << " with linespoints pt 7 ps 0.6 lc '" << kColours[f] << "' title '"
           << kNames[f] << ", bits', $experts" << f << " with linespoints pt 4 dt 2 lc '" << kColours[f] << "' title '"
           << kNames[f] << ", experts'";
  script << "\n";
  if (!script.flush()) moe::fail_environment("smaller_blocks: cannot write ", path, ".gp");
}

}  // namespace

int main(int argc, char** argv) {
  const systems::System system{"smaller_blocks", "2510.13999", "moe/compress/reconstruction_error.hpp"};
  return systems::run_page(argc, argv, system, [](systems::Page& page) {
    std::vector<std::vector<systems::Sample>> samples;
    for (const char* name : {"olmoe_a", "mixtral_bf16", "deepseek_v2_b", "deepseek_v3", "gpt_oss"})
      samples.push_back(page.over_seeds([&](std::uint64_t seed) {
        return errors_of(samples.size() < 3 ? systems::golden_block(name) : systems::block_by_lot(name, seed), seed);
      }));
    page.table({"relative error of outputs", "OLMoE", "Mixtral", "DeepSeek-V2", "DeepSeek-V3", "GPT-OSS"});
    for (std::size_t row = 0; row < kRows.size(); ++row)
      page.row(kRows[row], {samples[0][row], samples[1][row], samples[2][row], samples[3][row], samples[4][row]});
    draw(samples, "smaller_blocks.svg");
    const auto ratio = [&](std::size_t row, std::size_t other) {  // mean over families, seed by seed
      systems::Sample mean{std::vector<double>(samples[0][row].values.size(), 0.0)};
      for (std::size_t seed = 0; seed < mean.values.size(); ++seed)
        for (const auto& f : samples) mean.values[seed] += (f[row] / f[other]).values[seed] / kFamilies;
      return mean;
    };
    page.expect("error with three quarters of the experts by REAP over that by lot", ratio(3, 4), {.high = 0.95});
    page.claim("error at 2.5 bits by plan over that of 3 bits for half of the experts, 2 for others", ratio(8, 9),
               {.high = 0.85});
  });
}
