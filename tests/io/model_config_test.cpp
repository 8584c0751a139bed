// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/family_configs.hpp"
#include "support/files.hpp"
#include "support/text.hpp"

using moe::Index;
using moe::MoeConfig;
using moe::Normalise;
using test::contains;
using test::message_of;

namespace {

std::string complaint(const std::string& text) {
  return message_of<std::runtime_error>([&] { moe::parse_moe_config("file", std::string_view(text)); });
}

/// The config of a family with one piece of text replaced.
std::string replaced(const std::string& model_type, const std::string& from, const std::string& to) {
  std::string text = test::config_text(model_type);
  const std::size_t place = text.find(from);
  REQUIRE(place != text.npos);
  return text.replace(place, from.size(), to);
}

}  // namespace

TEST_CASE("parse_moe_config: sizes come from where each family has them", "[io]") {
  for (const auto& [model_type, text] : test::family_configs()) {
    const MoeConfig config = test::config_of(model_type);
    CAPTURE(model_type);
    CHECK(config.model_dim == 12);
    CHECK(config.hidden_dim == 8);
    CHECK(config.num_experts == 6);
    CHECK(config.gate.k == (config.family == "llama4" || config.family == "switch" ? 1
                            : config.family == "longcat_flash"                     ? 3
                                                                                   : 2));
  }
  CHECK(test::config_of("qwen2_moe").shared_dim == 10);
  CHECK(test::config_of("deepseek_v3").shared_dim == 16);
  CHECK(test::config_of("llama4").shared_dim == 8);
  CHECK(test::config_of("longcat_flash").num_identity_experts == 4);
}

TEST_CASE("parse_moe_config: routing rules of the families", "[io]") {
  const MoeConfig v3 = test::config_of("deepseek_v3");
  CHECK(v3.gate.score == moe::Score::Sigmoid);
  CHECK(v3.gate.scale == 2.5);
  CHECK(v3.gate.epsilon == 1e-20);
  CHECK((v3.gate.groups.count == 3 && v3.gate.groups.kept == 2 && v3.gate.groups.best == 2));
  CHECK(v3.selection_bias);
  CHECK(test::config_of("glm4_moe").gate.groups.count == 1);
  const MoeConfig v2 = test::config_of("deepseek_v2");
  CHECK((v2.gate.normalise == Normalise::Off && v2.gate.groups.best == 1 && v2.gate.groups.count == 3));
  CHECK(test::config_of("mixtral").gate.normalise == Normalise::Sum);
  CHECK(test::config_of("jamba").gate.normalise == Normalise::Off);
  CHECK(test::config_of("qwen2_moe").gate.normalise == Normalise::Off);
  CHECK(test::config_of("phimoe").sparse_mixer->jitter == 0.02);
  CHECK(test::config_of("llama4").weight_on == moe::WeightOn::Input);
  CHECK(test::config_of("ernie4_5_moe").gate.floor == 1e-12);
  CHECK(test::config_of("switch_transformers").capacity->scope == moe::CapacityScope::Group);
  const auto nllb = *test::config_of("nllb-moe").capacity;
  CHECK(moe::expert_capacity(nllb, moe::Phase::Training, {40, 80}, 6) == 5);
  CHECK(moe::expert_capacity(nllb, moe::Phase::Inference, {41, 82}, 6) == 21);  // ceil(0.5 * 41 tokens)
  CHECK(nllb.evaluation_scale == 0.8);
}

TEST_CASE("parse_moe_config: DBRX divides by any p-norm, or by nothing", "[io]") {
  const auto norm = [](const std::string& p) {
    const std::string key = "\"moe_normalize_expert_weights\": ";
    return moe::parse_moe_config("file", std::string_view(replaced("dbrx", key + "1", key + p))).gate;
  };
  CHECK(norm("1").normalise == Normalise::Sum);
  CHECK(norm("2.0").normalise == Normalise::Euclidean);
  CHECK((norm("3").normalise == Normalise::PNorm && norm("3").norm_p == 3));
  CHECK(norm("null").normalise == Normalise::Off);
}

TEST_CASE("parse_moe_config: Switch 1.1 has gated experts with GELU, however it says so", "[io]") {
  const auto expert = [](const std::string& fields) {
    const std::string text = replaced("switch_transformers", "\"feed_forward_proj\": \"relu\"", fields);
    return moe::parse_moe_config("file", std::string_view(text)).expert;
  };
  CHECK(expert("\"dense_act_fn\": \"relu\"") == moe::ExpertKind::ReluPlain);
  for (const std::string fields :
       {R"("feed_forward_proj": "gated-gelu")", R"("dense_act_fn": "gated-gelu")", R"("dense_act_fn": "gelu_new")",
        R"("feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": true)"}) {
    CAPTURE(fields);
    CHECK(expert(fields) == moe::ExpertKind::GeluGated);
  }
  CHECK_THROWS_AS(expert(R"("dense_act_fn": "relu", "is_gated_act": true)"), std::runtime_error);
  CHECK_THROWS_AS(expert(R"("dense_act_fn": "gelu_new", "is_gated_act": false)"), std::runtime_error);
}

TEST_CASE("parse_moe_config: NLLB without a capacity takes twice the tokens per expert, rounded up", "[io]") {
  const auto rule = [](const std::string& fraction) {
    nlohmann::json json = nlohmann::json::parse(test::config_text("nllb-moe"));
    json["expert_capacity"] = nullptr;
    json["moe_eval_capacity_token_fraction"] = std::stod(fraction);
    return *moe::parse_moe_config("file", json).capacity;
  };
  for (const Index tokens : {1, 5, 6, 7, 12, 13}) {
    CAPTURE(tokens);
    const Index expected = 2 * ((tokens + 5) / 6);
    CHECK(moe::expert_capacity(rule("-1"), moe::Phase::Training, {tokens, 2 * tokens}, 6) == expected);
    CHECK(moe::expert_capacity(rule("-1"), moe::Phase::Inference, {tokens, 2 * tokens}, 6) == expected);
    CHECK(moe::expert_capacity(rule("0.5"), moe::Phase::Inference, {tokens, 2 * tokens}, 6) == (tokens + 1) / 2);
  }
}

TEST_CASE("parse_moe_config: what a missing field of a shared expert or of a norm means", "[io]") {
  CHECK(contains(complaint(replaced("granitemoeshared", ", \"shared_intermediate_size\": 10", "")),
                 "shared_intermediate_size is missing"));
  nlohmann::json json = nlohmann::json::parse(test::config_text("dbrx"));
  json["ffn_config"].erase("moe_normalize_expert_weights");
  CHECK(moe::parse_moe_config("file", json).gate.normalise == moe::Normalise::Sum);
  json["ffn_config"]["moe_normalize_expert_weights"] = nullptr;
  CHECK(moe::parse_moe_config("file", json).gate.normalise == moe::Normalise::Off);
  CHECK(contains(complaint(test::config_text("mixtral") + std::string(1, '\0') + "}"), "byte of value 0"));
}

TEST_CASE("parse_moe_config: HunYuan may have other numbers in every layer", "[io]") {
  nlohmann::json json = nlohmann::json::parse(test::config_text("hunyuan_v1_moe"));
  json["num_experts"] = {4, 6}, json["moe_topk"] = {1, 3}, json["moe_intermediate_size"] = {8, 5};
  json["num_shared_expert"] = {1, 2};
  const MoeConfig second = moe::parse_moe_config("file", json, 1);
  CHECK((second.num_experts == 6 && second.gate.k == 3 && second.hidden_dim == 5 && second.shared_dim == 10));
  CHECK(moe::parse_moe_config("file", json, 0).num_experts == 4);
  CHECK(contains(complaint(json.dump()), "num_experts is [4,6], expected the same number for all layers"));
  CHECK_THROWS_WITH(moe::parse_moe_config("file", json, 2),
                    "file: num_experts is [4,6], expected a number, or one for every layer up to 2");
  CHECK_THROWS_AS(moe::parse_moe_config("file", json, -1), std::invalid_argument);
  json["use_mixed_mlp_moe"] = false;
  CHECK(moe::parse_moe_config("file", json, 1).shared_dim == 0);
}

TEST_CASE("parse_moe_config: GPT-OSS in OpenAI's own words, and with other limits", "[io]") {
  const MoeConfig config = moe::parse_moe_config(
      "file", std::string_view(R"({"num_hidden_layers": 36, "num_experts": 6, "experts_per_token": 2,
                                   "hidden_size": 12, "intermediate_size": 8, "swiglu_limit": 3.5})"));
  CHECK((config.family == "gpt_oss" && config.num_experts == 6 && config.gate.k == 2 && config.router_bias));
  CHECK((config.clamp.limit == 3.5 && config.clamp.alpha == 1.702));
}

TEST_CASE("parse_moe_config: DeepSeek-V2 either normalises or scales", "[io]") {
  nlohmann::json json = nlohmann::json::parse(test::config_text("deepseek_v2"));
  CHECK(moe::parse_moe_config("file", json).gate.scale == 2.5);
  json["norm_topk_prob"] = true;
  const auto both = moe::parse_moe_config("file", json).gate;
  CHECK((both.normalise == Normalise::Sum && both.scale == 1 && both.epsilon == 1e-20));
  json["num_experts_per_tok"] = 1;
  const auto one = moe::parse_moe_config("file", json).gate;
  CHECK((one.normalise == Normalise::Off && one.scale == 2.5));
}

TEST_CASE("parse_moe_config: each field that is needed is named when it is missing", "[io][error]") {
  CHECK(contains(complaint(replaced("mixtral", "\"hidden_size\": 12, ", "")), "hidden_size is missing"));
  CHECK(
      contains(complaint(replaced("mixtral", "\"num_local_experts\": 6", "\"x\": 6")), "num_local_experts is missing"));
  CHECK(contains(complaint(replaced("aria", "moe_topk", "topk")), "text_config: moe_topk is missing"));
  CHECK(contains(complaint(replaced("dbrx", "ffn_config", "ffn")), "ffn_config is missing"));
  CHECK(contains(complaint("{}"), "model_type is missing"));
}

TEST_CASE("parse_moe_config: numbers of another type or out of range are named", "[io][error]") {
  const std::string size = "\"hidden_size\": 12";
  for (const std::string value :
       {"-1", "1.5", "\"12\"", "[]", "{}", "true", "2147483649", "99999999999999999999", "1e999"}) {
    const std::string message = complaint(replaced("mixtral", size, "\"hidden_size\": " + value));
    CAPTURE(value, message);
    CHECK((contains(message, "hidden_size is") || contains(message, "not JSON")));
  }
  CHECK(contains(complaint(replaced("mixtral", size, "\"hidden_size\": 0")), "model_dim"));
  CHECK(contains(complaint(replaced("mixtral", size, "\"hidden_size\": 1000000000")), "model_dim"));
  CHECK(contains(complaint(replaced("mixtral", "\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 7")), "k is 7"));
  CHECK(contains(complaint(replaced("hunyuan_v1_moe", "[2, 2, 2]", "[2, 3]")), "moe_topk is [2,3]"));
  CHECK(contains(complaint(replaced("hunyuan_v1_moe", "[2, 2, 2]", "[]")), "moe_topk is []"));
}

TEST_CASE("parse_moe_config: what the library does not compute is refused", "[io][error]") {
  CHECK(contains(complaint(replaced("mixtral", "silu", "gelu")), "hidden_act is \"gelu\", expected 'silu'"));
  CHECK(contains(complaint(replaced("gpt_oss", "7.0", "-9.0")), "limit is -9"));
  CHECK(contains(complaint(replaced("switch_transformers", "\"relu\"", "\"gated-silu\"")), "feed_forward_proj"));
  CHECK(contains(complaint(replaced("nllb-moe", "\"all\"", "\"random\"")), "second_expert_policy"));
  CHECK(contains(complaint(replaced("deepseek_v2", "group_limited_greedy", "best")), "topk_method"));
  CHECK(contains(complaint(replaced("phimoe", "\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 3")),
                 "expected 2"));
  CHECK(contains(complaint(R"({"model_type": "llama"})"), "model_type is 'llama', expected one of mixtral"));
}

TEST_CASE("parse_moe_config: broken and hostile text is refused", "[io][error]") {
  for (const std::string text : {"", "{", "[]", "null", "\"mixtral\"", "{\"model_type\": 3}", "\xff\xfe"}) {
    CAPTURE(text);
    CHECK(!complaint(text).empty());
  }
  const std::string deep(100000, '[');
  CHECK(contains(complaint("{\"model_type\": " + deep), "levels deep"));
  CHECK(contains(complaint(std::string((std::size_t{16} << 20) + 1, ' ')), "bytes, expected at most"));
  const std::string whole = test::config_text("llama4");
  for (std::size_t length = 0; length < whole.size(); ++length) CHECK(!complaint(whole.substr(0, length)).empty());
}

TEST_CASE("parse_moe_config: a key that occurs twice in an object is refused, at any depth", "[io][error]") {
  CHECK(contains(complaint(replaced("mixtral", "\"hidden_size\": 12", "\"hidden_size\": 12, \"hidden_size\": 12")),
                 "key 'hidden_size' occurs twice"));
  CHECK(contains(complaint(replaced("aria", "\"moe_topk\": 2", "\"moe_topk\": 2, \"moe_topk\": 1")),
                 "key 'text_config.moe_topk' occurs twice"));
  CHECK(contains(complaint(R"({"x": [1, {"y": {"z": 0, "z": 1}}]})"), "key 'x.y.z' occurs twice"));
  CHECK(
      complaint(replaced("mixtral", "\"hidden_size\": 12", R"("hidden_size": 12, "x": [{"k": 0}, {"k": 0}])")).empty());
}

TEST_CASE("parse_moe_config: numbers that Python writes and JSON does not have are named with their place",
          "[io][error]") {
  for (const std::string word : {"Infinity", "-Infinity", "NaN"}) {
    const std::string text = "{\n  \"model_type\": \"mixtral\",\n  \"x\": " + word + "\n}";
    CHECK(contains(complaint(text), "not JSON at line 3, byte 37: found " + word + ", which JSON does not have"));
  }
  CHECK(contains(complaint("{\n  \"model_type\": nul\n}"), "not JSON at line 2, byte 22: "));
  CHECK(contains(complaint("{\"x\": 1e999}"), "not JSON at line 1, byte "));
  CHECK(contains(complaint("{"), "not JSON at line 1, byte 2: "));
}

TEST_CASE("read_moe_config: reads a file and names one that is not there", "[io]") {
  const test::TemporaryDirectory directory;
  test::write_bytes(directory / "config.json", test::config_text("olmoe"));
  CHECK(moe::read_moe_config(directory / "config.json").family == "olmoe");
  CHECK(moe::read_moe_family(directory / "config.json") == "olmoe");
  CHECK_THROWS_WITH(
      moe::read_moe_config(directory / "none.json"),
      "moe::read_moe_config: '" + (directory / "none.json").string() + "': cannot open: No such file or directory");
}
