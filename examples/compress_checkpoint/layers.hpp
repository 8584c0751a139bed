// SPDX-License-Identifier: MIT
// What compress_checkpoint does to the layers of a model: scores, plans of experts, plans of bits.
#pragma once

#include <cmath>
#include <filesystem>
#include <map>
#include <moe/compress.hpp>
#include <moe/io.hpp>
#include <moe/moe.hpp>
#include <string>
#include <vector>

namespace compressing {

using moe::Index;

struct Settings {
  std::string directory, output, score = "reap", apply = "prune", method = "rtn", calibration, stream, codes;
  std::vector<std::string> layers = {"all"};
  std::vector<Index> choices = {1, 2, 3, 4};
  Index keep = 0, rank = 0, tokens = 512, group = 64;  // keep, rank: 0 for none
  double bits = 0;                                     // 0: floats
  bool global = false, align = false, decode = false, experts = false, packed = false;
};

/// A layer between its passes: of the whole model only these numbers are in memory.
struct Layer {
  moe::BlockPlace place = {};
  moe::MoeConfig config = {};
  std::vector<double> scores = {}, frequencies = {}, saliencies = {};
  moe::Matrix<double> distance = {};  ///< of pairs, where the plan is made of it
  double importance = 0;
  moe::ExpertPlan plan = {};
  moe::Matrix<double> costs = {};  ///< of bits, [kept, choices]
  moe::BitPlan bits = {};
  moe::ReconstructionError error = {};
  Index weights_before = 0, weights_after = 0;
  std::size_t code_bytes = 0;
};

/// What a layer reads, and the stream that its output is added to.
struct Tokens {
  moe::Matrix<float> read, stream;
};

inline moe::Matrix<float> read_tokens(const std::string& name, Index dim) {
  const auto file = moe::read_npy<float>(name, moe::Narrowing::Allow);
  if (file.shape.size() != 2 || file.shape[0] < 1 || file.shape[1] != dim)
    moe::fail_environment("'", name, "' has shape [", moe::detail::join(file.shape, ", "), "], expected [num_tokens, ",
                          dim, "] with at least one token");
  return Eigen::Map<const moe::Matrix<float>>(file.values.data(), file.shape[0], file.shape[1]);
}

/// From the files of a layer, or by lot.
inline Tokens tokens_of(const Settings& settings, Index layer, Index dim) {
  Tokens tokens;
  if (settings.calibration.empty()) {
    const moe::RandomField random(moe::Purpose::User, /*seed=*/1, layer);
    tokens.read = moe::Matrix<float>::NullaryExpr(
        settings.tokens, dim, [&](Index t, Index c) { return static_cast<float>(random.normal(t, c)); });
  } else {
    tokens.read = read_tokens(moe::numbered_name(settings.calibration, layer), dim);
  }
  tokens.stream = settings.stream.empty() ? tokens.read : read_tokens(moe::numbered_name(settings.stream, layer), dim);
  return tokens;
}

inline bool is_of_pairs(const Settings& settings) {
  return settings.score == "router" || settings.score == "similarity";
}

/// What data say about the experts of a block.
inline void score(const Settings& settings, const moe::MoeBlock& block, const Tokens& tokens, Layer& layer) {
  using moe::Gather;
  const moe::ExpertUse use =
      moe::calibrate_experts(
          block, tokens.read,
          {.moments = Gather::Off, .use = Gather::On, .contribution = Gather::On, .stream = &tokens.stream})
          .use();
  layer.frequencies = use.frequencies();
  layer.saliencies = use.saliencies();
  layer.scores = settings.score == "use"       ? use.frequencies()
                 : settings.score == "weight"  ? use.mean_weights()
                 : settings.score == "norm"    ? use.gated_norms()
                 : settings.score == "easy-ep" ? use.contributions()
                                               : use.saliencies();
  layer.importance = moe::block_importance(block, tokens.read, tokens.stream).score();
  if (settings.score == "router")
    layer.distance = moe::router_distance(block.router());
  else if (settings.score == "similarity" || settings.apply != "prune")
    layer.distance = moe::distance_of(moe::output_similarity(block, tokens.read));
}

/// The plan of one layer. With groups of experts as many of each group stay.
inline moe::ExpertPlan plan_of(const Settings& settings, const Layer& layer) {
  const Index groups = layer.config.sparse_mixer ? 1 : layer.config.gate.groups.count;
  if (settings.keep == 0) return moe::keep_best(layer.scores, layer.config.num_logits());
  if (!is_of_pairs(settings)) return moe::keep_best_in_groups(layer.scores, settings.keep, groups);
  if (groups > 1)
    moe::fail("--score ", settings.score, " for ", groups, " groups of experts, expected a score of single experts");
  return moe::complete_linkage(layer.distance, settings.keep);
}

/// The plans of all layers: `keep` of each, or as many together.
inline void plan_experts(const Settings& settings, std::vector<Layer>& layers) {
  std::vector<moe::ExpertPlan> plans;
  if (settings.keep > 0 && settings.global) {
    std::vector<moe::Matrix<double>> distances;
    std::vector<std::vector<double>> scores;
    Index least = 1;
    for (const Layer& layer : layers) {
      least = std::max(least, layer.config.sparse_mixer ? moe::SparseMixerGate::kChoices : layer.config.gate.k);
      distances.push_back(layer.distance);
      scores.push_back(moe::shares(layer.scores));
      for (double& share : scores.back()) share *= layer.importance;
    }
    const Index total = settings.keep * std::ssize(layers);
    plans =
        is_of_pairs(settings) ? moe::complete_linkage(distances, total, least) : moe::keep_best(scores, total, least);
  } else {
    for (const Layer& layer : layers) plans.push_back(plan_of(settings, layer));
  }
  for (std::size_t l = 0; l < layers.size(); ++l) {
    if (is_of_pairs(settings)) plans[l] = moe::represented_by(plans[l], layers[l].saliencies);
    if (!is_of_pairs(settings) && settings.apply != "prune") plans[l] = moe::join_nearest(plans[l], layers[l].distance);
    layers[l].plan = std::move(plans[l]);
  }
}

/// The block with fewer experts.
inline moe::MoeBlock with_fewer(const Settings& settings, const moe::MoeBlock& block, const Layer& layer) {
  if (settings.apply == "prune") return moe::prune(block, layer.plan).layer;
  const moe::MergeOptions options{.weights = layer.frequencies,
                                  .align = settings.align ? moe::AlignHidden::Hungarian : moe::AlignHidden::Off};
  if (settings.apply == "merge") return moe::merge(block, layer.plan, options).layer;
  return moe::merge_in_subspace(block, layer.plan, settings.rank, options).layer;
}

/// The formats of a plan: integers that checkpoints have, or planes, which err less.
inline moe::WeightFormat format_of(const Settings& settings, const moe::BitPlan& plan,
                                   const moe::ExpertMatrix& matrix) {
  return settings.packed ? plan.integers(settings.group, moe::ScaleType::Bf16)(matrix)
                         : plan.planes(settings.group)(matrix);
}

/// Squares of what each expert in so many bits costs the outputs.
inline void measure_bits(const Settings& settings, const moe::MoeBlock& block, const Tokens& tokens, Layer& layer) {
  std::vector<moe::WeightFormat> formats;
  for (const Index bits : settings.choices) formats.push_back(format_of(settings, moe::BitPlan{.bits = {bits}}, {}));
  const moe::Calibration seen = settings.method == "gptq"
                                    ? moe::calibrate(block, tokens.read).experts
                                    : moe::calibrate_experts(block, tokens.read, {.moments = moe::Gather::Off});
  const moe::Matrix<double> errors =
      settings.method == "gptq" ? moe::quantisation_errors(block, tokens.read, formats, moe::Gptq{}, seen)
                                : moe::quantisation_errors(block, tokens.read, formats, moe::RoundToNearest{}, seen);
  layer.costs = errors.cwiseAbs2();
}

/// The bits of every expert: `bits` on average over a layer, or over all of them.
inline void plan_bits(const Settings& settings, std::vector<Layer>& layers) {
  const auto allocate = [&](std::span<Layer> some) {
    moe::BitProblem problem{.bits = settings.choices};
    Index weights = 0;
    for (const Layer& layer : some) {
      problem.costs.conservativeResize(problem.costs.rows() + layer.costs.rows(), std::ssize(settings.choices));
      // Layers are compared by what they do to the stream.
      const double scale = some.size() > 1 && layer.error.output > 0 ? layer.importance / layer.error.output : 1;
      problem.costs.bottomRows(layer.costs.rows()) = scale * layer.costs;
      problem.sizes.resize(static_cast<std::size_t>(problem.costs.rows()),
                           layer.config.model_dim * layer.config.hidden_dim);
    }
    for (const Index size : problem.sizes) weights += size;
    problem.budget = static_cast<Index>(std::floor(settings.bits * static_cast<double>(weights) * (1 + 1e-12)));
    const std::vector<Index> bits = moe::allocate_bits(problem);
    auto next = bits.begin();
    for (Layer& layer : some) {
      layer.bits.bits.assign(next, next + layer.costs.rows());
      next += layer.costs.rows();
    }
  };
  if (settings.global) return allocate(layers);
  for (Layer& layer : layers) allocate(std::span(&layer, 1));
}

/// The block in few bits, as its plan says.
inline moe::QuantisedMoeBlock in_few_bits(const Settings& settings, const moe::MoeBlock& block, const Tokens& tokens,
                                          const Layer& layer) {
  const auto format = [&](const moe::ExpertMatrix& matrix) { return format_of(settings, layer.bits, matrix); };
  if (settings.method == "gptq") return moe::quantise(block, format, moe::Gptq{}, moe::calibrate(block, tokens.read));
  return moe::quantise(block, format);
}

}  // namespace compressing
