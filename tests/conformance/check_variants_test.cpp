// SPDX-License-Identifier: MIT
// The checker of router, loss and dispatch vectors: on files of other code bases, and on files that must not pass.
#include "conformance/variant_file.hpp"
#include "support/catch.hpp"

namespace {

using test::change;
using test::golden;
using test::line_of;
using test::VariantFile;
using test::VariantTensor;

const std::vector<std::string> kCases = {"fastmoe_gates", "flaxformer_routers", "megatron_router", "st_moe_topn"};

const std::set<std::string> kInputs = {"input",
                                       "logits",
                                       "noise",
                                       "rand",
                                       "w_gate",
                                       "b_gate",
                                       "w_noise",
                                       "w_router",
                                       "probs",
                                       "gumbel",
                                       "scores",
                                       "routing_map",
                                       "tokens_per_expert",
                                       "expert_bias",
                                       "padding_mask"};

}  // namespace

TEST_CASE("check_block: variants of other code bases agree, a line each", "[io]") {
  std::vector<std::filesystem::path> paths;
  for (const std::string& name : kCases) paths.push_back(golden(name));
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(MOE_TEST_DATA) / "variants"))
    if (entry.path().extension() == ".safetensors") paths.push_back(entry.path());
  CHECK(paths.size() == kCases.size() + 3);
  for (const auto& path : paths) {
    const auto file = moe::Checkpoint::open(path);
    const check::Report report = check::check_file(file);
    CAPTURE(path.string(), report.json().dump(2));
    CHECK(report.passed());
    const std::string variants = check::Facts(file.metadata()).text("variants");
    CHECK(static_cast<std::ptrdiff_t>(report.json()["lines"].size()) ==
          1 + std::count(variants.begin(), variants.end(), ','));
  }
}

TEST_CASE("check_block: a changed value in any result of a variant fails", "[io]") {
  int changed = 0;
  for (const std::string& name : kCases) {
    const VariantFile file(name);
    for (const auto& [tensor, content] : file.tensors) {
      const std::string part = tensor.substr(tensor.find('.') + 1);
      if (kInputs.contains(part)) continue;
      VariantFile other = file;
      const moe::Index size = moe::Index(content.bytes.size()) / (content.dtype == "U8"    ? 1
                                                                  : content.dtype == "I64" ? 8
                                                                                           : 4);
      change(other.tensors[tensor], static_cast<std::size_t>(size / 2));
      const auto report = other.check();
      CAPTURE(name, tensor);
      CHECK(!report.passed());
      CHECK(line_of(report, tensor.substr(0, tensor.find('.'))).find(part) != std::string::npos);
      ++changed;
    }
  }
  CHECK(changed == 60);
}

TEST_CASE("check_block: a tensor that nothing is compared with fails and is named", "[io]") {
  VariantFile file("megatron_router");
  file.tensors["z_loss.entropy"] = {"F32", {1}, std::string(4, '\0')};
  const auto report = file.check();
  CHECK(!report.passed());
  CHECK(line_of(report, "z_loss (") == "z_loss (not compared: entropy)");
  CHECK(report.json()["notes"].dump().find("not compared: z_loss.entropy") != std::string::npos);
}

TEST_CASE("check_block: a variant that no rule covers fails, also where only tensors name it", "[io]") {
  VariantFile file("megatron_router");
  file.tensors["mystery.logits"] = file.tensors["z_loss.logits"];
  CHECK(line_of(file.check(), "mystery") == "mystery: no rule for this variant");
  VariantFile listed("megatron_router");
  listed.metadata["variants"] += ",absent";
  CHECK(line_of(listed.check(), "absent") == "absent: no rule for this variant");
  VariantFile unknown("megatron_router");
  unknown.metadata["source"] = "somebody/moe";
  unknown.metadata["case"] = "x";
  CHECK_THROWS_WITH(unknown.check(), "no rules for source 'somebody/moe', case 'x'");
}

TEST_CASE("check_block: missing tensors, other shapes and other types are named", "[io][error]") {
  const VariantFile file("megatron_router");
  VariantFile other = file;
  other.tensors.erase("softmax_post.logits");
  CHECK(!other.check().passed());
  other = file;
  other.tensors["softmax_post.probs"].shape = {8, 32};
  CHECK(line_of(other.check(), "softmax_post") ==
        "softmax_post: tensor 'softmax_post.probs' is [8, 32], expected [32, 8]");
  other = file;
  other.tensors["softmax_post.routing_map"].shape = {256, 1};  // the same numbers: maps are lists
  CHECK(other.check().passed());
  other.tensors["softmax_post.routing_map"].shape = {255};
  other.tensors["softmax_post.routing_map"].bytes.pop_back();
  CHECK(line_of(other.check(), "softmax_post").find("is [255], expected 256 numbers") != std::string::npos);
  other = file;
  other.tensors["softmax_post.logits"].dtype = "I32";
  CHECK(line_of(other.check(), "softmax_post").find("is I32, expected a floating-point type") != std::string::npos);
  other = file;
  other.tensors["sinkhorn.logits"] = {"F32", {0, 8}, ""};
  CHECK(line_of(other.check(), "sinkhorn").find("is [0, 8], expected 1 to 2^26 numbers") != std::string::npos);
}

TEST_CASE("check_block: parameters that mean nothing fail without harm", "[io][error]") {
  const std::string deep = "{\"top_k\":" + std::string(100000, '[') + std::string(100000, ']') + "}";
  for (const std::string& parameters :
       {std::string("[]"), std::string("{"), std::string("null"), std::string(R"({"top_k":99})"),
        std::string(R"({"top_k":-1})"), std::string(R"({"top_k":1e300})"), std::string(R"({"top_k":"two"})"),
        std::string(R"({"top_k":{}})"), std::string(R"({"score_function":"best"})"),
        std::string(R"({"score_function":3})"), std::string(R"({"num_groups":3})"),
        std::string(R"({"num_groups":4,"group_topk":0})"), std::string(R"({"scaling_factor":[]})"), deep}) {
    VariantFile file("megatron_router");
    file.metadata["variant.softmax_post"] = parameters;
    CAPTURE(parameters.substr(0, 80));
    CHECK(!file.check().passed());
  }
}

TEST_CASE("check_block: tensors cut, stretched, of other types and full of noise do no harm", "[io][error]") {
  const moe::RandomField random(moe::Purpose::User, 9);
  int failed = 0, tried = 0;
  for (const std::string& name : kCases) {
    const VariantFile file(name);
    for (const auto& [tensor, content] : file.tensors) {
      const auto draw = [&](std::uint64_t count, std::int64_t column) {
        return static_cast<moe::Index>(random.below(count, tried, column));
      };
      VariantFile other = file;
      VariantTensor& victim = other.tensors[tensor];
      switch (draw(5, 0)) {
        case 0:
          victim = {"F32", {0, 1 + draw(9, 1)}, ""};
          break;
        case 1:  // transposed, or flattened
          std::reverse(victim.shape.begin(), victim.shape.end());
          break;
        case 2:
          victim = {"I64", {1 + draw(40, 1), 1 + draw(9, 2)}, ""};
          for (moe::Index i = 0; i < victim.shape[0] * victim.shape[1] * 8; ++i)
            victim.bytes += static_cast<char>(random.bits(tried, 10 + i));
          break;
        case 3:
          for (char& byte : victim.bytes)
            byte = static_cast<char>(random.bits(tried, 10 + (&byte - victim.bytes.data())));
          break;
        default:
          other.tensors.erase(tensor);
      }
      CAPTURE(name, tensor);
      failed += other.check().passed() ? 0 : 1;  // no exception, no report of a sanitiser
      ++tried;
    }
  }
  CHECK(failed > tried / 2);  // the rest: shapes of one extent reversed, results that are gone
}

TEST_CASE("check_block: a file of variants cut anywhere is refused or fails", "[io][error]") {
  const test::TemporaryDirectory directory;
  const std::string whole = test::read_bytes(golden("fastmoe_gates"));
  for (std::size_t size = 0; size < whole.size(); size += 1 + whole.size() / 97) {
    test::write_bytes(directory / "cut.safetensors", whole.substr(0, size));
    CHECK_THROWS_AS(check::check_file(moe::Checkpoint::open(directory / "cut.safetensors")), std::runtime_error);
  }
}
