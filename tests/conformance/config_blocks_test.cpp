// SPDX-License-Identifier: MIT
// Blocks that config.json and a checkpoint make together, against plain loops that know of neither.
#include "conformance/family_oracle_latest.hpp"

#include "conformance/family_files.hpp"
#include "moe/io/block/load_block.hpp"
#include "support/catch.hpp"
#include "support/family_configs.hpp"

using oracle::Family;
using oracle::Sizes;

namespace {

const Sizes kSizes{.dim = 12, .hidden = 8, .experts = 6, .k = 2, .tokens = 9};  // those of the configurations

/// The configuration of a model type with some fields changed, in text_config where there is one.
moe::MoeConfig config_of(const std::string& model_type, const nlohmann::json& changes) {
  nlohmann::json json = nlohmann::json::parse(test::config_text(model_type));
  (json.contains("text_config") ? json["text_config"] : json).update(changes);
  return moe::parse_moe_config("test", json);
}

/// The largest difference of output, as a share of the largest number.
double error_of(const Family& family, const moe::MoeConfig& config) {
  const test::TemporaryDirectory directory;
  Sizes sizes = kSizes;
  oracle::write_file(directory / "case.safetensors", family, sizes, {.seed = 5});
  const auto checkpoint = moe::Checkpoint::open(directory / "case.safetensors");
  const auto block = moe::load_moe_block(checkpoint, config, {.prefix = "model.layers.3.test."});
  const auto input = moe::read_all<float>(checkpoint.at("t9.input"));
  const auto expected = moe::read_all<double>(checkpoint.at("t9.output_f64"));
  moe::Matrix<float> tokens(9, 12), out(9, 12);
  std::copy(input.begin(), input.end(), tokens.data());
  moe::Workspace workspace;
  block.forward(tokens, moe::Step{}, out, workspace);
  double worst = 0, largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    worst = std::max(worst, std::abs(out.data()[i] - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  return worst / largest;
}

void check(const Family& family, const std::string& model_type,
           const nlohmann::json& changes = nlohmann::json::object()) {
  CAPTURE(model_type, changes.dump());
  CHECK(error_of(family, config_of(model_type, changes)) < 5e-6);  // as check_block asks
}

}  // namespace

TEST_CASE("load_moe_block: families that choose by a softmax compute what their configuration says", "[io]") {
  const nlohmann::json wide = {{"shared_expert_intermediate_size", kSizes.hidden + 5}};
  check(oracle::plain("flex_olmo", kSizes, "gate.weight", false), "flex_olmo");
  check(oracle::plain("flex_olmo", kSizes, "gate.weight", true), "flex_olmo", {{"norm_topk_prob", true}});
  check(oracle::plain("mixtral", kSizes, "gate.weight", true), "minimax");
  check(oracle::qwen2_moe(kSizes, true), "qwen3_next", wide);
  check(oracle::qwen2_moe(kSizes, true), "qwen3_5_moe", wide);
  check(oracle::detail::resaved(oracle::qwen2_moe(kSizes, true), kSizes), "qwen3_5_moe_text", wide);
  check(oracle::qwen3_vl_moe(kSizes), "qwen3_vl_moe");
  check(oracle::granitemoeshared(kSizes), "granitemoehybrid", {{"shared_intermediate_size", kSizes.hidden + 4}});
  check(oracle::detail::resaved(oracle::plain("jamba", kSizes, "router.weight", false), kSizes), "jamba");
  check(oracle::resaved_longcat(kSizes, 4, 6), "longcat_flash", {{"router_bias", false}, {"moe_topk", 2}});
}

TEST_CASE("load_moe_block: families that choose by sigmoids compute what their configuration says", "[io]") {
  const nlohmann::json unsaid = {{"routed_scaling_factor", nullptr}};
  const auto shared = [](const oracle::detail::SigmoidRouter& rule, const std::string& folder = "shared_experts") {
    return oracle::sigmoid_shared("any", kSizes, rule, folder);
  };
  check(shared({.scale = 2.827}), "kimi_k2", {{"routed_scaling_factor", 2.827}});
  check(oracle::kimi_linear(kSizes, 3, 2, 2.446), "kimi_linear");
  check(oracle::kimi_linear(kSizes, 1, 1, 1), "kimi_linear",
        {{"num_expert_group", 1}, {"use_grouped_topk", false}, {"routed_scaling_factor", nullptr}});
  check(shared({.scale = 2.5, .normalises = false}), "dots1");
  check(shared({.scale = 2.5}), "dots1", {{"norm_topk_prob", true}});
  check(shared({.scale = 1.8}), "glm4_moe_lite", unsaid);
  check(shared({.scale = 2.5}), "glm_moe_dsa", unsaid);
  check(shared({}), "solar_open", unsaid);
  check(oracle::detail::resaved(shared({.scale = 2.5}), kSizes), "glm4v_moe");
  check(shared({.bias = "e_score_correction_bias", .scale = 2.5}), "exaone_moe");
  check(shared({.router = "router.gate.weight", .bias = "expert_bias", .scale = 2.826}, "shared_mlp"), "hy_v3");
  check(oracle::detail::resaved(shared({.bias = "e_score_correction_bias", .scale = 3}), kSizes), "hy_v3",
        {{"router_scaling_factor", 3}});
  check(oracle::mimo_v2_flash(kSizes), "mimo_v2_flash");
  check(oracle::lfm2_moe(kSizes, true, true), "lfm2_moe");
  check(oracle::lfm2_moe(kSizes, false, false), "lfm2_moe", {{"use_expert_bias", false}, {"norm_topk_prob", false}});
  for (const bool fused : {false, true})
    check(oracle::nemotron_h(kSizes, fused), "nemotron_h",
          {{"moe_shared_expert_intermediate_size", kSizes.hidden + 4}});
}

TEST_CASE("load_moe_block: a configuration that says something else computes something else", "[io]") {
  const Family family = oracle::sigmoid_shared("any", kSizes, {.scale = 2.827});
  CHECK(error_of(family, config_of("kimi_k2", {{"routed_scaling_factor", 2.8}})) > 1e-3);
  CHECK(error_of(family, config_of("dots1", {{"routed_scaling_factor", 2.827}})) > 1e-3);
}
