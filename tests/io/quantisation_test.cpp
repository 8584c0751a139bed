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

Quantisation said(const std::string& statement) { return stated("\"quantization_config\": " + statement); }

/// A statement of compressed-tensors with one group.
std::string compressed(const std::string& format, const std::string& weights) {
  return R"({"quant_method": "compressed-tensors", "format": ")" + format +
         R"(", "config_groups": {"group_0": {"targets": ["Linear"], "weights": {)" + weights + "}}}}";
}

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

TEST_CASE("Quantisation: methods and numbers that are not read are refused by name", "[io][error]") {
  for (const std::string method : {"bitsandbytes", "fbgemm_fp8", "AWQ", ""})
    CHECK(contains(refusal("{\"quant_method\": \"" + method + "\"}"),
                   "file: quantization_config: quant_method is \"" + method + "\", expected 'fp8', 'mxfp4',"));
  CHECK(contains(refusal(R"({"group_size": 64, "bits": 4})"), "quantization_config: quant_method is missing"));
  for (const std::string size : {"[128]", "[128,128,128]", "[0,128]", "[]"})
    CHECK(contains(refusal(R"({"quant_method": "fp8", "weight_block_size": )" + size + "}"),
                   "expected two sizes above 0"));
  for (const std::string size : {"128", "[\"128\",128]", "[-1,128]", "[1.5,2]", "[[1],2]"})
    CHECK(contains(refusal(R"({"quant_method": "fp8", "weight_block_size": )" + size + "}"), "weight_block_size is"));
  CHECK(contains(refusal(R"({"quant_method": "fp8", "fmt": "int8", "weight_block_size": [128, 128]})"), "fmt is"));
  CHECK(contains(refusal("[]"), "quantization_config is [], expected an object"));
  CHECK(contains(refusal("{\"quant_method\": 8}"), "quant_method is 8, expected a string"));
}

TEST_CASE("Quantisation: fp8 with scales per matrix or output, and in blocks of any size", "[io]") {
  CHECK(said(R"({"quant_method": "fp8", "activation_scheme": "static"})") == Quantisation{.method = QuantMethod::Fp8});
  CHECK(said(R"({"quant_method": "fp8", "weight_block_size": null})").method == QuantMethod::Fp8);
  const Quantisation blocks = said(R"({"quant_method": "fp8", "weight_block_size": [1, 64]})");
  CHECK(blocks.method == QuantMethod::Fp8Blocks);
  CHECK(blocks.storage == moe::StatedStorage{.block_outputs = 1, .block_inputs = 64});
}

TEST_CASE("Quantisation: GPTQ of 4 and 8 bits, in both formats of its zero points", "[io]") {
  const Quantisation first = said(R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true})");
  CHECK(first.method == QuantMethod::Gptq);
  CHECK(first.storage == moe::StatedStorage{.group = 128, .bits = 4});
  const Quantisation second =
      said(R"({"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2",
               "dynamic": {"-:.*shared_expert\\..*": {}}})");
  CHECK(second.storage == moe::StatedStorage{.group = 0, .bits = 8, .zeros_less_one = false});
  CHECK(second.leaves_out("model.layers.0.mlp.shared_expert.up_proj.weight"));
  CHECK_FALSE(second.leaves_out("model.layers.0.mlp.experts.0.up_proj.weight"));
  const std::string begin = R"({"quant_method": "gptq", "bits": 4, "group_size": 128, )";
  CHECK(
      contains(refusal(begin + R"("checkpoint_format": "marlin"})"), "checkpoint_format is \"marlin\", expected gptq"));
  CHECK(contains(refusal(begin + R"("format": "marlin"})"), "format is \"marlin\""));
  CHECK(contains(refusal(begin + R"("pack_dtype": "int8"})"), "pack_dtype is \"int8\""));
  CHECK(contains(refusal(begin + R"("dynamic": {"+:.*": {"bits": 8}}})"),
                 "dynamic is \"+:.*\", expected rules that leave"));
  CHECK(contains(refusal(begin + R"("dynamic": {"-:(": {}}})"), "dynamic is \"-:(\""));
  CHECK(contains(refusal(R"({"quant_method": "gptq", "bits": 3, "group_size": 128})"), "bits is 3, expected 4 or 8"));
  CHECK(contains(refusal(R"({"quant_method": "gptq", "bits": 4, "group_size": 0})"), "group_size is 0, expected -1"));
  CHECK(contains(refusal(R"({"quant_method": "gptq", "bits": 4})"), "group_size is missing"));
}

TEST_CASE("Quantisation: AWQ of 4 bits in its version gemm", "[io]") {
  const Quantisation awq = said(R"({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm",
                                    "zero_point": true, "modules_to_not_convert": ["gate"]})");
  CHECK(awq ==
        Quantisation{.method = QuantMethod::Awq, .not_converted = {"gate"}, .storage = {.group = 64, .bits = 4}});
  CHECK(contains(refusal(R"({"quant_method": "awq", "bits": 8, "group_size": 64})"), "bits is 8, expected 4"));
  CHECK(contains(refusal(R"({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"})"), "version is"));
}

TEST_CASE("Quantisation: modelopt's FP8 and NVFP4", "[io]") {
  CHECK(said(R"({"quant_method": "modelopt", "quant_algo": "FP8"})").method == QuantMethod::Fp8);
  const Quantisation nvfp4 = said(R"({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16,
                                      "ignore": ["lm_head", "*mlp.gate", "model.layers.0.self_attn*"]})");
  CHECK(nvfp4.method == QuantMethod::Nvfp4);
  CHECK(nvfp4.leaves_out("model.layers.3.mlp.gate.weight"));
  CHECK(nvfp4.leaves_out("model.layers.0.self_attn.q_proj.weight"));
  CHECK_FALSE(nvfp4.leaves_out("model.layers.3.mlp.experts.0.gate_proj.weight"));
  CHECK(contains(refusal(R"({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"})"), "quant_algo is"));
  CHECK(contains(refusal(R"({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32})"),
                 "group_size is 32"));
}

TEST_CASE("Quantisation: compressed-tensors by format and weights of its groups", "[io]") {
  const auto method = [](const std::string& format, const std::string& weights) {
    return said(compressed(format, weights)).method;
  };
  CHECK(method("float-quantized", R"("num_bits": 8, "type": "float", "strategy": "channel")") == QuantMethod::Fp8);
  CHECK(method("naive-quantized", R"("num_bits": 8, "type": "float", "strategy": "tensor")") == QuantMethod::Fp8);
  CHECK(method("nvfp4-pack-quantized",
               R"("num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16)") ==
        QuantMethod::Nvfp4);
  CHECK(method("mxfp4-pack-quantized", R"("num_bits": 4, "type": "float", "strategy": "group", "group_size": 32)") ==
        QuantMethod::Mxfp4);
  CHECK(said(compressed("float-quantized",
                        R"("num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 64])")) ==
        Quantisation{.method = QuantMethod::Fp8Blocks,
                     .codes = moe::Dtype::F8_E4M3,
                     .storage = {.block_outputs = 128, .block_inputs = 64}});
  CHECK(said(compressed("pack-quantized", R"("num_bits": 4, "type": "int", "group_size": 32, "symmetric": true)")) ==
        Quantisation{.method = QuantMethod::PackedInts, .storage = {.group = 32, .bits = 4}});
  CHECK(said(compressed("pack-quantized",
                        R"("num_bits": 8, "type": "int", "strategy": "channel", "group_size": null)")) ==
        Quantisation{.method = QuantMethod::PackedInts, .storage = {.group = 0, .bits = 8}});
  CHECK(said(compressed("int-quantized", R"("num_bits": 8, "group_size": -1)")) ==
        Quantisation{.method = QuantMethod::Ints, .storage = {.group = 0, .bits = 8}});
}

TEST_CASE("Quantisation: what compressed-tensors says and is not read is refused by name", "[io][error]") {
  const auto refuses = [](const std::string& format, const std::string& weights, const std::string& message) {
    CHECK(contains(refusal(compressed(format, weights)), message));
  };
  for (const char* bits : {"0", "9"})
    refuses("pack-quantized", R"("num_bits": )" + std::string(bits) + R"(, "group_size": 32)",
            "config_groups: group_0: weights: num_bits is " + std::string(bits) + ", expected 1 to 8");
  refuses("int-quantized", R"("num_bits": 4, "group_size": 32)", "num_bits is 4, expected 8");
  refuses("pack-quantized", R"("num_bits": 4, "strategy": "tensor")",
          "strategy is \"tensor\", expected channel or group");
  refuses("pack-quantized", R"("num_bits": 4, "type": "bool")", "type is \"bool\", expected int or float");
  refuses("marlin-24", R"("num_bits": 4, "group_size": 32)", "group_0: format is \"marlin-24\"");
  refuses("pack-quantized", R"("num_bits": 8, "type": "float", "strategy": "tensor")", "expected 'float-quantized'");
  refuses("nvfp4-pack-quantized", R"("num_bits": 4, "type": "float", "strategy": "group", "group_size": 64)",
          "strategy is \"group of 64\"");
  refuses("float-quantized", R"("num_bits": 16, "type": "float")", "num_bits is 16");
  const std::string weights = R"("config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 32}})";
  const std::string begin = R"({"quant_method": "compressed-tensors", "format": "pack-quantized", )";
  CHECK(refusal(begin + weights + "}}").empty());
  CHECK(contains(refusal(begin + weights + R"(, "b": {"weights": {"num_bits": 8, "group_size": 32}}}})"),
                 "config_groups: b says something else about weights than"));
  CHECK(contains(refusal(begin + weights + R"(}, "quantization_status": "frozen"})"),
                 "quantization_status is \"frozen\""));
  CHECK(contains(refusal(begin + weights + R"(}, "sparsity_config": {"format": "sparse-24-bitmask"}})"),
                 "sparsity_config: format"));
  CHECK(contains(refusal(begin + weights + R"(}, "transform_config": {"a": 1}})"), "transform_config is there"));
  CHECK(contains(refusal(begin + R"("config_groups": {}})"), "config_groups is empty"));
  CHECK(contains(refusal(begin + R"("config_groups": {"\u0007": {}}})"), "config_groups: ?: weights is missing"));
  CHECK(contains(refusal(begin + R"("config_groups": {"\u0007": 1}})"), "config_groups: ? is 1, expected an object"));
  const std::string ahead = R"x(}, "ignore": ["re:(?!x)"]})x";
  CHECK(contains(refusal(begin + weights + ahead), "ignore is \"re:(?!x)\", expected expressions"));
}

TEST_CASE("Quantisation: modules by expressions, as those that are left out or the only ones that are not", "[io]") {
  const auto stated_with = [](const std::string& lists) {
    return said(R"({"quant_method": "compressed-tensors", "format": "pack-quantized", )" + lists + "}");
  };
  const std::string group = R"("weights": {"num_bits": 4, "group_size": 32})";
  const Quantisation ignoring =
      stated_with(R"("config_groups": {"a": {"targets": ["Linear"], )" + group +
                  R"(}}, "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp\\.(gate|up)_proj$"])");
  CHECK(ignoring.leaves_out("model.layers.0.mlp.up_proj.weight"));
  CHECK_FALSE(ignoring.leaves_out("model.layers.0.mlp.experts.0.up_proj.weight"));
  CHECK_FALSE(ignoring.leaves_out("model.layers.0.mlp.down_proj.weight"));
  const Quantisation only =
      stated_with(R"("config_groups": {"a": {"targets": ["re:.*experts\\.\\d+\\..*"], )" + group + "}}");
  CHECK_FALSE(only.leaves_out("model.layers.0.mlp.experts.17.up_proj.weight"));
  CHECK(only.leaves_out("model.layers.0.mlp.shared_experts.up_proj.weight"));
}

TEST_CASE("Quantisation: groups of compressed-tensors that differ in bits, by whole names before expressions", "[io]") {
  const auto group = [](const std::string& targets, int bits) {
    return R"({"targets": [)" + targets + R"(], "weights": {"num_bits": )" + std::to_string(bits) +
           R"(, "group_size": 32}})";
  };
  const auto of_groups = [](const std::string& groups) {
    return R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {)" + groups + "}}";
  };
  const auto bits_of = [](const Quantisation& stated, const std::string& module) {
    return stated.storage_of(module + ".weight").bits;
  };
  const std::string three = group(R"("m.experts.1.up_proj", "m.experts.2.up_proj")", 3),
                    two = group(R"("re:m\\.experts\\.\\d+\\..*")", 2), eight = group(R"("Linear")", 8);
  const auto both = [&](const std::string& a, const std::string& b) {
    return of_groups(R"("a": )" + a + R"(, "b": )" + b);
  };
  for (const Quantisation& stated : {said(both(two, three)), said(both(three, two))}) {
    CHECK(stated.method == QuantMethod::PackedInts);
    CHECK(bits_of(stated, "m.experts.1.up_proj") == 3);
    CHECK(bits_of(stated, "m.experts.12.up_proj") == 2);
    CHECK(bits_of(stated, "m.experts.1.down_proj") == 2);
    CHECK_FALSE(stated.leaves_out("m.experts.1.up_proj.weight"));
    CHECK_FALSE(stated.leaves_out("m.experts.5.up_proj.weight"));
    CHECK(stated.leaves_out("m.shared_expert.up_proj.weight"));
  }
  for (const Quantisation& stated : {said(both(eight, three)), said(both(three, eight))}) {
    CHECK(bits_of(stated, "m.experts.2.up_proj") == 3);
    CHECK(bits_of(stated, "m.experts.3.up_proj") == 8);
    CHECK_FALSE(stated.leaves_out("m.shared_expert.up_proj.weight"));
  }
  CHECK(said(both(group(R"("x")", 4), group(R"("y")", 4))).parts.empty());
  CHECK(contains(refusal(both(eight, group(R"("Linear")", 4))), "config_groups: b says something else"));
  const std::string floats = R"({"targets": ["y"], "format": "float-quantized", "weights": {"num_bits": 8,
                                 "type": "float", "strategy": "channel"}})";
  CHECK(contains(refusal(both(three, floats)), "config_groups: b says something else about weights than"));
}

TEST_CASE("Quantisation: as many modules as models have in all groups together, and no more", "[io][error]") {
  const auto group = [](int first, int end, int bits) {
    std::string targets;
    for (int i = first; i < end; ++i) targets += (i == first ? "\"m" : ",\"m") + std::to_string(i) + '"';
    return R"({"targets": [)" + targets + R"(], "weights": {"num_bits": )" + std::to_string(bits) +
           R"(, "group_size": 32}})";
  };
  const auto of_groups = [](const std::string& a, const std::string& b) {
    return R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"a": )" + a +
           R"(, "b": )" + b + "}}";
  };
  const Quantisation many = said(of_groups(group(0, 40000, 3), group(40000, 80000, 5)));
  int wrong = 0;  // in no time, though each is looked up among all
  for (int i = 0; i < 80000; i += 7) {
    const std::string weight = "m" + std::to_string(i) + ".weight";
    wrong += many.storage_of(weight).bits != (i < 40000 ? 3 : 5);
    wrong += many.leaves_out(weight);
  }
  CHECK(wrong == 0);
  CHECK(many.leaves_out("m80000.weight"));
  CHECK(contains(refusal(of_groups(group(0, 140000, 3), group(140000, 280000, 5))),
                 "config_groups: b: more than 262144 modules with targets"));
  std::string expressions = R"("re:a")";
  for (int i = 0; i < 4096; ++i) expressions += R"(,"re:a")";
  CHECK(
      contains(refusal(R"({"quant_method": "mxfp4", "modules_to_not_convert": [)" + expressions + "]}"),
               "4097 expressions of modules with modules_to_not_convert, of 16388 characters, expected at most 4096"));
}

TEST_CASE("ModuleList: names as a plain comparison of parts does", "[io]") {
  const std::vector<std::string> parts{"a", "b", "c"};
  std::vector<std::string> names;
  const auto extend = [&](const auto& self, const std::string& name, int left) -> void {
    if (!name.empty()) names.push_back(name);
    if (left == 0) return;
    for (const std::string& part : parts) self(self, name.empty() ? part : name + "." + part, left - 1);
  };
  extend(extend, "", 4);
  for (std::size_t e = 0; e < names.size(); e += 5) {
    const moe::ModuleList list{names[e], names[(7 * e + 3) % names.size()], "x.*", "d."};
    for (const std::string& name : names) {
      bool expected = false;  // dots around make parts of characters
      for (const std::string& entry : {names[e], names[(7 * e + 3) % names.size()]})
        expected = expected || contains("." + name + ".", "." + entry + ".");
      CAPTURE(name, names[e]);
      REQUIRE(list.names_module_of(name) == expected);
      REQUIRE(list.has_whole_name_of(name + ".weight") == (std::ranges::find(list, name) != list.end()));
    }
    CHECK(list.names_module_of("a.x.y"));
    CHECK(list.names_module_of("a.d"));
    CHECK_FALSE(list.names_module_of("y.x"));
  }
  std::string deep = "p";
  for (int i = 0; i < 100; ++i) deep += ".p";
  CHECK(moe::ModuleList{deep}.names_module_of("q." + deep + ".weight"));
  CHECK_FALSE(moe::ModuleList{deep + ".q"}.names_module_of(deep));
  CHECK_FALSE(moe::ModuleList{""}.names_module_of("a"));
  CHECK_FALSE(moe::ModuleList().names_module_of("a"));
}

TEST_CASE("ModulePattern: matches as Python's re.match does", "[io]") {
  const auto matches = [](const char* pattern, const char* name) {
    const auto compiled = moe::detail::ModulePattern::compile(pattern);
    REQUIRE(compiled);
    return compiled->matches_begin(name);
  };
  struct Case {
    const char *pattern, *name;
    bool expected;
  };
  for (const Case& c : {Case{"", "a", true},
                        {"a", "ab", true},
                        {"b", "ab", false},
                        {".*b", "ab", true},
                        {"a$", "ab", false},
                        {"ab$", "ab", true},
                        {"^a", "ab", true},
                        {"a^b", "ab", false},
                        {"a|b", "b", true},
                        {"(a|bc)+d", "abcad", true},
                        {"(?:ab)*c", "ababc", true},
                        {"(ab)?c", "abc", true},
                        {"(ab)?c", "abab", false},
                        {"a\\.b", "a.b", true},
                        {"a\\.b", "axb", false},
                        {"[a-c]+x", "abcx", true},
                        {"[^a-c]x", "ax", false},
                        {"[]x]", "]", true},
                        {"[a-]", "-", true},
                        {"\\d+\\w", "12_", true},
                        {"[\\d.]+$", "1.2", true},
                        {".*?z", "xyz", true},
                        {"(a*)*b", "aaab", true},
                        {"(a*)*$", "aaac", false},
                        {"()", "", true},
                        {"a**", "a", true},
                        {"x.*layers\\.[0-9]+$", "x.layers.12", true}}) {
    CAPTURE(c.pattern, c.name);
    if (std::string_view(c.pattern) == "a**")
      CHECK_FALSE(moe::detail::ModulePattern::compile(c.pattern));
    else
      CHECK(matches(c.pattern, c.name) == c.expected);
  }
  for (const char* bad :
       {"(", ")", "[", "[a", "*", "a{2}", "(?=a)", "(?!a)", "\\", "\\b", "\\1", "[b-a]", "{", "(a", "[\\"})
    CHECK_FALSE(moe::detail::ModulePattern::compile(bad));
  CHECK_FALSE(moe::detail::ModulePattern::compile(std::string(5000, 'a')));
  CHECK_FALSE(moe::detail::ModulePattern::compile(std::string(40, '(') + std::string(40, ')')));
  std::string nested = "a";
  for (int i = 0; i < 30; ++i) nested = "(" + nested + ")*";
  CHECK_FALSE(matches((nested + "$").c_str(), (std::string(2000, 'a') + "b").c_str()));  // in no time
}
