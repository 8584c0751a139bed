// SPDX-License-Identifier: MIT
// The checker of reference vectors on files of an oracle that shares no code with the library: families that have no
// published vectors here, quantised weights, and files that must not pass.
#include "conformance/file.hpp"

#include <sstream>

#include "conformance/family_files.hpp"
#include "moe/io/families/model_config.hpp"
#include "support/catch.hpp"

using oracle::Family;
using oracle::FileOptions;
using oracle::Sizes;
using oracle::Storage;

namespace {

class OracleFile {
 public:
  OracleFile(const Family& family, const Sizes& sizes, const FileOptions& options) {
    oracle::write_file(path(), family, sizes, options);
  }
  std::filesystem::path path() const { return directory_ / "case.safetensors"; }
  check::Report check() const { return check::check_file(moe::Checkpoint::open(path())); }

 private:
  test::TemporaryDirectory directory_;
};

/// Everything in the file agrees, and `lines` things or more were compared.
void check_passes(const Family& family, const Sizes& sizes, const FileOptions& options, std::size_t lines) {
  const check::Report report = OracleFile(family, sizes, options).check();
  CAPTURE(family.name, report.json().dump(2));
  CHECK(report.passed());
  CHECK(report.json()["lines"].size() >= lines);
}

/// Everything that a configuration says, as text.
std::string described(const moe::MoeConfig& config) {
  std::ostringstream text;
  const auto& gate = config.gate;
  text << config.family << ' ' << config.model_dim << ' ' << config.hidden_dim << ' ' << config.num_experts << ' '
       << config.num_identity_experts << " gate " << gate.k << ' ' << static_cast<int>(gate.score) << ' '
       << static_cast<int>(gate.normalise) << ' ' << gate.epsilon << ' ' << gate.floor << ' ' << gate.scale << ' '
       << gate.norm_p << ' ' << gate.groups.count << ' ' << gate.groups.kept << ' ' << gate.groups.best << " biases "
       << config.selection_bias << config.router_bias << config.expert_bias << config.output_bias << " expert "
       << static_cast<int>(config.expert) << static_cast<int>(config.weight_on) << " shared " << config.shared_dim
       << ' ' << static_cast<int>(config.shared_gate) << " mixer "
       << (config.sparse_mixer ? config.sparse_mixer->jitter : -1);
  if (const auto& capacity = config.capacity)
    text << " capacity " << capacity->factor << ' ' << capacity->evaluation_factor << ' ' << capacity->min_capacity
         << ' ' << capacity->evaluation_min_capacity << ' ' << static_cast<int>(capacity->order) << ' '
         << static_cast<int>(capacity->weights) << ' ' << static_cast<int>(capacity->scope) << ' ' << capacity->floor
         << ' ' << capacity->evaluation_scale;
  return text.str();
}

const Sizes kSmall{};  // 5 tokens of width 12, 6 experts of width 7
constexpr FileOptions kGradients{.gradients = true};

}  // namespace

TEST_CASE("check_block: DeepSeek-V3, with groups, a bias and a shared expert", "[io]") {
  for (const std::uint32_t seed : {1u, 2u}) {
    CAPTURE(seed);
    check_passes(oracle::deepseek_v3(kSmall, 3, 2, 2.5), kSmall, {.gradients = true, .seed = seed}, 12 + 23);
  }
  const Sizes one_group{.dim = 9, .hidden = 17, .experts = 8, .k = 3, .tokens = 7};
  check_passes(oracle::deepseek_v3(one_group, 1, 1, 1.5), one_group, kGradients, 12 + 29);
}

TEST_CASE("check_block: DeepSeek-V3 in BF16 and in FP8 blocks with partial edges", "[io]") {
  const Sizes sizes{.dim = 140, .hidden = 130, .experts = 4, .k = 2, .tokens = 6};
  check_passes(oracle::deepseek_v3(sizes, 2, 1, 2.5), sizes, {.storage = Storage::BF16}, 12);
  check_passes(oracle::deepseek_v3(sizes, 2, 1, 2.5), sizes, {.storage = Storage::Fp8}, 12);
}

TEST_CASE("check_block: the router of DeepSeek-V3 alone", "[io]") {
  const Sizes sizes{.dim = 24, .experts = 16, .k = 4, .tokens = 33};
  check_passes(oracle::deepseek_v3(sizes, 4, 2, 2.5), sizes, {.router_only = true}, 8);
}

TEST_CASE("check_block: MiniMax-M2", "[io]") { check_passes(oracle::minimax_m2(kSmall), kSmall, kGradients, 12 + 20); }

TEST_CASE("check_block: LongCat-Flash, with identity experts", "[io]") {
  const Sizes sizes{.dim = 12, .hidden = 7, .experts = 5, .k = 4, .tokens = 9};
  check_passes(oracle::longcat_flash(sizes, 4, 6.0), sizes, kGradients, 12 + 17);
}

TEST_CASE("check_block: Phi-3.5-MoE, with near and with wide masks", "[io]") {
  for (const double jitter : {0.01, 0.25}) {
    CAPTURE(jitter);
    check_passes(oracle::phimoe(kSmall, jitter), kSmall, kGradients, 12 + 20);
  }
}

TEST_CASE("check_block: GPT-OSS, plain and in MXFP4", "[io]") {
  Sizes sizes = kSmall;
  sizes.k = 4;
  check_passes(oracle::gpt_oss(sizes), sizes, kGradients, 12 + 7);
  const Sizes quantised{.dim = 96, .hidden = 32, .experts = 4, .k = 2, .tokens = 6};
  check_passes(oracle::gpt_oss(quantised), quantised, {.storage = Storage::Mxfp4}, 12);
}

TEST_CASE("check_block: metadata and config.json of published models give the same block", "[io]") {
  const std::map<std::string, std::string> model_types = {{"switch", "switch_transformers"}, {"nllb_moe", "nllb-moe"}};
  std::size_t compared = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(MOE_TEST_DATA) / "golden")) {
    if (entry.path().extension() != ".safetensors") continue;
    const auto file = moe::Checkpoint::open(entry.path());
    const check::Facts facts(file.metadata());
    if (!facts.has("family") || !facts.has("hf_config")) continue;
    const std::string family = facts.text("family");
    nlohmann::json json = nlohmann::json::parse(facts.text("hf_config"));
    json["model_type"] = model_types.contains(family) ? model_types.at(family) : family;
    if (json.contains("ffn")) json["encoder_ffn_dim"] = json["ffn"];
    const moe::MoeConfig found = moe::parse_moe_config("hf_config", json);
    const moe::MoeConfig expected = check::config_of(facts, facts.integer("n_experts"));
    CAPTURE(entry.path().string());
    CHECK(described(found) == described(expected));
    ++compared;
  }
  CHECK(compared >= 9);
}

TEST_CASE("check_block: another rule than the file's fails", "[io]") {
  Family family = oracle::minimax_m2(kSmall);
  family.facts["routed_scaling_factor"] = "1.0001";
  CHECK(!OracleFile(family, kSmall, {}).check().passed());
  family = oracle::phimoe(kSmall, 0.25);
  family.facts["router_jitter_eps"] = "0.01";
  CHECK(!OracleFile(family, kSmall, {}).check().passed());
  family = oracle::longcat_flash(kSmall, 4, 6.0);
  family.facts["score_order"] = "softmax_bias_topk_gather_norm";
  CHECK(!OracleFile(family, kSmall, {}).check().passed());
  family = oracle::gpt_oss(kSmall);
  family.facts["clamp_limit"] = "0.5";
  CHECK(!OracleFile(family, kSmall, {}).check().passed());
}

TEST_CASE("check_block: metadata that means nothing is refused", "[io][error]") {
  for (const auto& [key, value] : std::multimap<std::string, std::string>{{"score_order", "best_first"},
                                                                          {"expert_kind", "tree"},
                                                                          {"expert_act", "gelu"},
                                                                          {"norm_topk_prob", "perhaps"},
                                                                          {"top_k", "two"},
                                                                          {"top_k", "99"},
                                                                          {"n_experts", "7"}}) {
    Family family = oracle::minimax_m2(kSmall);
    family.facts[key] = value;
    CAPTURE(key);
    const OracleFile file(family, kSmall, {});
    CHECK_THROWS(file.check());
  }
  Family unknown = oracle::minimax_m2(kSmall);
  unknown.name = "my_moe";
  const OracleFile file(unknown, kSmall, {});
  CHECK_THROWS_WITH(file.check(), "no router of family 'my_moe': such a family is not known");
}
