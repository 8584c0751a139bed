// SPDX-License-Identifier: MIT
// Small blocks of published families. Those of OLMoE, Mixtral and DeepSeek-V2 are reference vectors
// (tests/data/golden), made by the models' own code: tiny, with small random weights. Of DeepSeek-V3 and GPT-OSS there
// are no public vectors: their blocks have the parts of the families, as small, and weights by lot.
#pragma once

#include <string>
#include <vector>

#include <moe/core/random.hpp>
#include <moe/io/block/load_block.hpp>
#include <moe/io/families/model_config.hpp>

namespace systems {

/// A block of a file of reference vectors, whose metadata have the fields of config.json.
inline moe::MoeBlock golden_block(const std::string& name) {
  const auto file = moe::Checkpoint::open(std::string(MOE_SYSTEMS_GOLDEN) + "/" + name + ".safetensors");
  auto json = nlohmann::json::parse(file.metadata().at("hf_config"));
  json["model_type"] = file.metadata().at("family");
  return moe::load_moe_block(file, moe::parse_moe_config(name, json), {.prefix = file.metadata().at("ckpt_prefix")});
}

/// 16 experts, 4 of which a token chooses.
inline moe::MoeBlock block_by_lot(const std::string& family, std::uint64_t seed) {
  moe::MoeConfig config{.family = family, .model_dim = 32, .hidden_dim = 32, .num_experts = 16};
  config.gate = {.k = 4, .normalise = moe::Normalise::Sum};
  if (family == "gpt_oss") {
    config.expert = moe::ExpertKind::ClampedGated;
    config.router_bias = config.expert_bias = true;
  } else {  // DeepSeek-V3
    config.gate.score = moe::Score::Sigmoid;
    config.gate.scale = 2.5;
    config.gate.groups = {.count = 4, .kept = 2, .best = 2};
    config.selection_bias = true;
    config.shared_dim = 32;
  }
  moe::MoeBlock block(config);
  std::uint64_t part = 0;
  moe::visit(
      [&](const std::string&, auto& leaf) {
        const moe::RandomField random(moe::Purpose::User, seed, ++part);
        std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.2 * random.normal(static_cast<moe::Index>(i));
        moe::write_parameter(leaf, std::span<const double>(values));
      },
      block);
  return block;
}

inline moe::Matrix<float> tokens_by_lot(moe::Index dim, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  return moe::Matrix<float>::NullaryExpr(
      512, dim, [&](moe::Index t, moe::Index c) { return static_cast<float>(random.normal(t, c)); });
}

}  // namespace systems
