// SPDX-License-Identifier: MIT
// A file of reference vectors for every family and every value that metadata may have.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "conformance/family_capacity_files.hpp"
#include "conformance/family_oracle_latest.hpp"

namespace oracle {

/// Writes a file to a path.
struct Case {
  std::string name;
  std::function<void(const std::filesystem::path&)> write;
};

inline Case case_of(const Family& family, const Sizes& sizes, const FileOptions& options, const std::string& variant) {
  return {family.name + variant, [=](const auto& path) { write_file(path, family, sizes, options); }};
}

inline std::vector<Case> token_cases(std::uint32_t seed) {
  const Sizes s{.dim = 12, .hidden = 7, .experts = 6, .k = 3, .tokens = 5};
  const Sizes one{.dim = 9, .hidden = 17, .experts = 5, .k = 1, .tokens = 6};
  const FileOptions f32{.gradients = true, .seed = seed}, bf16{.storage = Storage::BF16, .seed = seed};
  std::vector<Case> cases;
  const auto add = [&](const Family& family, const Sizes& sizes, const std::string& variant = "") {
    cases.push_back(case_of(family, sizes, f32, variant));
  };
  add(plain("mixtral", s, "gate.weight", true), s);
  cases.push_back(case_of(plain("mixtral", one, "gate.weight", true), one, bf16, " bf16, k = 1"));
  for (const bool norm : {false, true}) {
    const std::string variant = norm ? " norm" : "";
    add(plain("olmoe", s, "gate.weight", norm), s, variant);
    add(plain("qwen3_moe", s, "gate.weight", norm), s, variant);
    add(qwen2_moe(s, norm), s, variant);
  }
  add(deepseek_v2(s, 1, 1, 1), s, " greedy");
  add(deepseek_v2(s, 3, 2, 16), s, " groups");
  add(glm4_moe(s, 2.5), s);
  add(llama4(one), one);
  add(llama4(s), s, " k = 3");
  add(granite("granitemoe", s, ""), s);
  cases.push_back(case_of(granite("granitemoe", s, ""), s, bf16, " bf16"));
  add(granitemoeshared(s), s);
  add(jetmoe(s), s);
  add(dbrx(s, 1, "1"), s, " p = 1");
  add(dbrx(s, 2, "2.0"), s, " p = 2");
  add(dbrx(s, 3.5, "3.5"), s, " p = 3.5");
  add(dbrx(s, 0, ""), s, " no norm");
  add(plain("jamba", s, "router.weight", false), s);
  add(ernie4_5_moe(s), s);
  add(hunyuan_v1_moe(s), s);
  add(aria(s), s);
  return cases;
}

inline std::vector<Case> capacity_cases(std::uint32_t seed) {
  const Sizes sizes{.dim = 10, .hidden = 9, .experts = 5, .k = 2, .tokens = 14};
  std::vector<Case> cases;
  const auto add = [&](const std::string& name, const CapacityRule& rule) {
    cases.push_back({name, [=](const auto& path) { CapacityFile(rule, sizes, seed).write(path); }});
  };
  for (const Size capacity : {Size{1}, Size{3}})
    for (const Size sequences : {Size{1}, Size{2}})
      add("switch " + std::to_string(capacity),
          {.capacity = [=](Size) { return capacity; },
           .sequences = sequences,
           .facts = {{"capacity", std::to_string(capacity) + " tokens per expert per sequence (batch row)"},
                     {"drop_policy", "position; dropped token -> zero output"}}});
  add("switch none", {.capacity = [](Size tokens) { return tokens; }, .facts = {{"capacity", "none"}}});
  const auto nllb = [&](const std::string& name, CapacityRule rule, bool evaluates) {
    rule.is_nllb = true;
    rule.scale = evaluates ? 0.8 : 1;
    rule.facts.insert({{"mode", evaluates ? "eval" : "train"},
                       {"second_expert_policy", "all"},
                       {"drop_policy", "first choices before second choices"},
                       {"batch_prioritized", rule.batch_prioritised ? "true" : "false"},
                       {"norm_before_dropping", rule.norm_before ? "true" : "false"},
                       {"moe_token_dropout", evaluates ? "0.2" : "0.0"}});
    add("nllb_moe " + name, rule);
  };
  for (const bool prioritised : {false, true})
    for (const bool before : {false, true}) {
      CapacityRule rule{.batch_prioritised = prioritised, .norm_before = before};
      const std::string name = std::string(prioritised ? "prioritised " : "") + (before ? "norm before " : "");
      rule.capacity = [](Size) { return Size{6}; };
      rule.facts = {{"capacity", "6"}, {"eval_capacity_fraction", "-1.0"}};
      nllb(name + "6", rule, false);
      rule.capacity = [](Size tokens) { return (tokens + 4) / 5; };
      rule.facts = {{"capacity", "64"}, {"eval_capacity_fraction", "0.2"}};
      nllb(name + "fraction", rule, true);
      rule.capacity = [](Size tokens) { return 2 * ((tokens + 4) / 5); };
      rule.facts = {{"capacity", "none"}, {"eval_capacity_fraction", "-1.0"}};
      nllb(name + "none", rule, false);
    }
  return cases;
}

/// What has no file of its own among the published vectors.
inline std::vector<Case> other_cases(std::uint32_t seed) {
  const Sizes s{.dim = 12, .hidden = 7, .experts = 6, .k = 2, .tokens = 5};
  const Sizes blocks{.dim = 140, .hidden = 130, .experts = 4, .k = 2, .tokens = 4};
  const Sizes mx{.dim = 96, .hidden = 32, .experts = 4, .k = 2, .tokens = 6};
  const FileOptions f32{.gradients = true, .seed = seed};
  return {case_of(deepseek_v3(s, 3, 2, 2.5), s, f32, ""),
          case_of(deepseek_v3(blocks, 2, 1, 2.5), blocks, {.storage = Storage::BF16, .seed = seed}, " bf16"),
          case_of(deepseek_v3(blocks, 2, 1, 2.5), blocks, {.storage = Storage::Fp8, .seed = seed}, " fp8"),
          case_of(deepseek_v3(s, 3, 2, 2.5), s, {.router_only = true, .seed = seed}, " router only"),
          case_of(minimax_m2(s), s, f32, ""),
          case_of(longcat_flash(s, 4, 6.0), s, f32, ""),
          case_of(phimoe(s, 0.01), s, f32, " 0.01"),
          case_of(phimoe(s, 0.25), s, f32, " 0.25"),
          case_of(gpt_oss(s), s, f32, ""),
          case_of(gpt_oss(mx), mx, {.storage = Storage::Mxfp4, .seed = seed}, " mxfp4")};
}

/// Families of 2025 and 2026, and blocks that transformers 5 has saved again.
inline std::vector<Case> latest_cases(std::uint32_t seed) {
  using detail::renamed, detail::resaved;
  const Sizes s{.dim = 12, .hidden = 7, .experts = 6, .k = 2, .tokens = 5};
  const FileOptions f32{.gradients = true, .seed = seed};
  std::vector<Case> cases;
  const auto add = [&](const Family& family, const std::string& layout = "") {
    Family stored = family;
    if (!layout.empty()) stored.facts["layout"] = layout;
    cases.push_back(case_of(stored, s, f32, layout.empty() ? "" : " " + layout));
  };
  const std::string out_in = "fused_out_in_concat_gate_up", in_out = "fused_in_out_concat_gate_up";
  add(plain("flex_olmo", s, "gate.weight", false));
  cases.push_back(case_of(renamed(plain("mixtral", s, "gate.weight", true), "minimax"), s, f32, ""));
  add(renamed(qwen2_moe(s, true), "qwen3_next"));
  add(renamed(qwen2_moe(s, true), "qwen3_5_moe"));
  add(renamed(resaved(qwen2_moe(s, true), s), "qwen3_5_moe"), out_in);
  add(qwen3_vl_moe(s), in_out);
  add(sigmoid_shared("kimi_k2", s, {.scale = 2.827}));
  add(kimi_linear(s, 3, 2, 2.446));
  add(sigmoid_shared("dots1", s, {.scale = 2.5, .normalises = false}));
  add(sigmoid_shared("glm4_moe_lite", s, {.scale = 1.8}));
  add(sigmoid_shared("glm4v_moe", s, {}));
  add(sigmoid_shared("glm_moe_dsa", s, {.scale = 2.5}));
  add(sigmoid_shared("solar_open", s, {}));
  add(resaved(sigmoid_shared("glm4v_moe", s, {}), s), out_in);
  add(sigmoid_shared("exaone_moe", s, {.bias = "e_score_correction_bias", .scale = 2.5}));
  add(resaved(sigmoid_shared("exaone_moe", s, {.scale = 2.5}), s), out_in);
  add(sigmoid_shared("hy_v3", s, {.router = "router.gate.weight", .bias = "expert_bias", .scale = 2.826},
                     "shared_mlp"));
  add(resaved(sigmoid_shared("hy_v3", s, {.bias = "e_score_correction_bias", .scale = 2.826}), s), out_in);
  add(mimo_v2_flash(s));
  add(resaved(mimo_v2_flash(s), s), out_in);
  add(lfm2_moe(s, true, true));
  cases.push_back(case_of(lfm2_moe(s, false, false), s, f32, " no bias, no norm"));
  add(resaved(lfm2_moe(s, true, true), s), out_in);
  add(renamed(granitemoeshared(s), "granitemoehybrid"));
  add(nemotron_h(s, false));
  cases.push_back(case_of(nemotron_h(s, true), s, f32, " fused"));
  add(resaved(plain("jamba", s, "router.weight", false), s), out_in);
  add(resaved_ernie(s), out_in);
  add(resaved_longcat(s, 4, 6.0), out_in);
  return cases;
}

/// All of them, of one seed.
inline std::vector<Case> all_cases(std::uint32_t seed) {
  std::vector<Case> cases = token_cases(seed);
  for (const auto& more : {capacity_cases(seed), other_cases(seed), latest_cases(seed)})
    cases.insert(cases.end(), more.begin(), more.end());
  return cases;
}

/// One of every kind of contents, small: for tests that check a file once per tensor.
inline std::vector<Case> small_cases(std::uint32_t seed) {
  std::vector<Case> cases;
  for (const Case& one : all_cases(seed))
    for (const char* name : {"mixtral", "dbrx p = 1", "deepseek_v3", "deepseek_v3 router only", "longcat_flash",
                             "gpt_oss", "switch 1", "nllb_moe prioritised fraction", "nemotron_h"})
      if (one.name == name) cases.push_back(one);
  return cases;
}

}  // namespace oracle
