// SPDX-License-Identifier: MIT
// What config.json files say about quantised weights.
#include "support/catch.hpp"
#include "support/family_configs.hpp"
#include "support/text.hpp"

namespace {

using moe::Quantisation;
using moe::QuantMethod;
using test::contains;
using test::message_of;

const std::string kFp8 = R"({"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                             "weight_block_size": [128, 128]})";
const std::string kMxfp4 = R"({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.mlp.router"]})";

Quantisation stated(const std::string& fields, const std::string& model_type = "mixtral") {
  const std::string text = test::config_text(model_type);
  return moe::parse_moe_config("file", std::string_view(text.substr(0, text.rfind('}')) + ", " + fields + "}"))
      .quantisation;
}
std::string complaint(const std::string& fields, const std::string& model_type = "mixtral") {
  return message_of<std::runtime_error>([&] { stated(fields, model_type); });
}
/// Of a statement in its usual place.
std::string refusal(const std::string& statement) { return complaint("\"quantization_config\": " + statement); }

Quantisation leaving_out(const std::string& module) { return {.not_converted = {module}}; }

}  // namespace

TEST_CASE("Quantisation: fp8 in blocks, mxfp4 and nothing are read from where files have them", "[io]") {
  for (const char* field : {"quantization_config", "compression_config", "quantization"}) {
    CAPTURE(field);
    const std::string name = "\"" + std::string(field) + "\": ";
    const Quantisation fp8 = stated(name + kFp8);
    CHECK((fp8.method == QuantMethod::Fp8Blocks && fp8.codes == moe::Dtype::F8_E4M3 && fp8.not_converted.empty()));
    const Quantisation mxfp4 = stated(name + kMxfp4);
    CHECK((mxfp4.method == QuantMethod::Mxfp4 && mxfp4.not_converted.size() == 1));
    CHECK(stated(name + "null") == Quantisation{});
  }
  CHECK(stated(R"("torch_dtype": "float8_e4m3fn", "dtype": "bfloat16")") == Quantisation{});
  CHECK(moe::parse_moe_config("file", std::string_view(test::config_text("gpt_oss"))).quantisation == Quantisation{});
}

TEST_CASE("Quantisation: a multimodal model says it on top or in text_config, and nothing else in the other", "[io]") {
  nlohmann::json json = nlohmann::json::parse(test::config_text("llama4"));
  json["text_config"]["quantization_config"] = nlohmann::json::parse(kFp8);
  CHECK(moe::parse_moe_config("file", json).quantisation.method == QuantMethod::Fp8Blocks);
  json["quantization_config"] = nlohmann::json::parse(kFp8);
  CHECK(moe::parse_moe_config("file", json).quantisation.method == QuantMethod::Fp8Blocks);
  json["quantization_config"] = nlohmann::json::parse(kMxfp4);
  CHECK_THROWS_WITH(moe::parse_moe_config("file", json),
                    "file: text_config: quantization_config says something else about quantised weights than file: "
                    "quantization_config");
  CHECK(contains(complaint("\"quantization_config\": " + kFp8 + ", \"compression_config\": " + kMxfp4),
                 "file: compression_config says something else"));
}

TEST_CASE("Quantisation: lists of modules that are stored plainly are read under both names", "[io]") {
  for (const char* list : {"modules_to_not_convert", "ignored_layers"}) {
    nlohmann::json statement = nlohmann::json::parse(kFp8);
    statement[list] = {"lm_head", "mlp.gate"};
    CHECK(stated("\"quantization_config\": " + statement.dump()).not_converted ==
          std::vector<std::string>{"lm_head", "mlp.gate"});
    statement[list] = nullptr;
    CHECK(stated("\"quantization_config\": " + statement.dump()).not_converted.empty());
    statement[list] = {1};
    CHECK(contains(refusal(statement.dump()), std::string(list) + " is [1], expected a list of strings"));
  }
}

TEST_CASE("Quantisation: parts of names between dots are compared, with stars for anything", "[io]") {
  const std::string gate = "model.layers.12.mlp.gate.weight";
  for (const char* module : {"gate", "mlp.gate", "model.layers.12.mlp.gate", "model.layers.*.mlp.gate", "layers.12",
                             "model.layers.1*", "*", "mlp.g*e"})
    CHECK(leaving_out(module).leaves_out(gate));
  for (const char* module : {"", "gat", "gate_proj", "layers.1", "layers.2", "mlp.gate.weight.x", "mlp.weight",
                             "model.layers.*.gate", "g*p"})
    CHECK_FALSE(leaving_out(module).leaves_out(gate));
  CHECK(leaving_out("language_model.x").leaves_out("language_model.x.y"));
  CHECK_FALSE(Quantisation{}.leaves_out(gate));
  CHECK_FALSE(leaving_out("*a*a*a*a*a*a*a*a*a*a*a*a*b").leaves_out(std::string(5000, 'a')));
}

TEST_CASE("Quantisation: methods and blocks that are not read are refused by name", "[io][error]") {
  for (const std::string method : {"awq", "gptq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "modelopt", ""})
    CHECK(contains(refusal("{\"quant_method\": \"" + method + "\"}"),
                   "file: quantization_config: quant_method is \"" + method + "\", expected 'fp8' in blocks"));
  CHECK(contains(refusal(R"({"group_size": 64, "bits": 4})"), "quantization_config: quant_method is missing"));
  CHECK(contains(refusal(R"({"quant_method": "fp8"})"), "weight_block_size is missing, expected [128, 128]"));
  CHECK(contains(refusal(R"({"quant_method": "fp8", "weight_block_size": null})"), "weight_block_size is missing"));
  for (const std::string size : {"[64,128]", "[128]", "[128,128,128]", "128", "[\"128\",128]", "[]"})
    CHECK(contains(refusal(R"({"quant_method": "fp8", "weight_block_size": )" + size + "}"),
                   "weight_block_size is " + size + ", expected [128, 128]"));
  CHECK(contains(refusal(R"({"quant_method": "fp8", "fmt": "int8", "weight_block_size": [128, 128]})"), "fmt is"));
  CHECK(contains(refusal("[]"), "quantization_config is [], expected an object"));
  CHECK(contains(refusal("{\"quant_method\": 8}"), "quant_method is 8, expected a string"));
}
