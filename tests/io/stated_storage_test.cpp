// SPDX-License-Identifier: MIT
// What a configuration says about the storage of weights, against what the file holds.
#include <functional>
#include <string>
#include <vector>

#include "moe/io/block/load_block.hpp"
#include "support/catch.hpp"
#include "support/checkpoints.hpp"
#include "support/family_configs.hpp"
#include "support/text.hpp"

namespace {

using moe::Dtype;
using moe::Index;
using moe::MoeConfig;
using moe::QuantMethod;
using test::contains;
using test::message_of;

enum class Stored { Plain, Fp8, Fp8WithoutScales, Mxfp4 };

/// How to store a tensor, by its name.
using Choice = std::function<Stored(const std::string&)>;

bool is_expert(const std::string& name) {
  return name.find("expert") != name.npos && name.find("bias") == name.npos && !name.ends_with("expert_gate.weight");
}

std::string zeros(Dtype dtype, const std::vector<Index>& shape) {
  return std::string(static_cast<std::size_t>(*moe::detail::tensor_bytes(dtype, shape)), '\0');
}

/// Tensors of zeros of a whole block.
std::vector<test::Tensor> stored_block(const MoeConfig& config, const Choice& choice) {
  std::vector<test::Tensor> tensors;
  const auto add = [&](const std::string& name, Dtype dtype, const std::vector<Index>& shape) {
    tensors.push_back({name, dtype, shape, zeros(dtype, shape)});
  };
  const moe::FamilyFormat& format = moe::find_family(config.family)->formats.front();
  moe::MoeBlock block(config);
  const bool is_mxfp4 = choice("experts") == Stored::Mxfp4;
  for (const auto& tensor : moe::bind_weights(block, {format, moe::numbered_name(format.prefix, 0), is_mxfp4})) {
    std::vector<Index> shape = tensor.shape;
    const Stored stored = choice(tensor.name);
    if (stored == Stored::Plain) {
      add(tensor.name, Dtype::BF16, shape);
    } else if (stored == Stored::Mxfp4) {
      shape.back() /= 32;
      add(tensor.name + "_scales", Dtype::U8, shape);
      shape.push_back(16);
      add(tensor.name + "_blocks", Dtype::U8, shape);
    } else {
      add(tensor.name, Dtype::F8_E4M3, shape);
      for (Index& extent : shape) extent = (extent + 127) / 128;
      if (stored == Stored::Fp8) add(tensor.name + "_scale_inv", Dtype::F32, shape);
    }
  }
  return tensors;
}

/// What loading says, or "".
std::string complaint(const MoeConfig& config, const Choice& choice) {
  const test::TemporaryDirectory directory;
  test::write_tensors(directory / "x", stored_block(config, choice));
  return message_of<std::runtime_error>([&] { moe::load_moe_block(moe::Checkpoint::open(directory / "x"), config); });
}

Choice experts_as(Stored stored) {
  return [=](const std::string& name) { return is_expert(name) ? stored : Stored::Plain; };
}

MoeConfig stating(QuantMethod method, std::vector<std::string> not_converted = {}) {
  MoeConfig config = test::config_of("qwen2_moe");
  config.quantisation = {.method = method, .not_converted = std::move(not_converted)};
  return config;
}

MoeConfig gpt_oss(QuantMethod method) {
  MoeConfig config = test::config_of("gpt_oss");
  config.model_dim = config.hidden_dim = 32;
  config.quantisation.method = method;
  return config;
}

const std::string kLast = "model.layers.0.mlp.experts.5.down_proj.weight";

}  // namespace

TEST_CASE("load_moe_block: stated FP8 without scales names the tensor that is missing", "[io][error]") {
  const std::string message = complaint(stating(QuantMethod::Fp8Blocks), experts_as(Stored::Fp8WithoutScales));
  CHECK(contains(message, "tensor 'model.layers.0.mlp.experts.0.gate_proj.weight_scale_inv' is missing"));
  CHECK(contains(message, "the configuration says fp8 in blocks with scales"));
  const auto but_one = [](const std::string& name) {
    return name == kLast ? Stored::Fp8WithoutScales : experts_as(Stored::Fp8)(name);
  };
  for (const QuantMethod method : {QuantMethod::Unstated, QuantMethod::Fp8Blocks})
    CHECK(contains(complaint(stating(method), but_one), "tensor '" + kLast + "_scale_inv' is missing"));
  const auto router = [](const std::string& name) {
    return name.ends_with("mlp.gate.weight") ? Stored::Fp8WithoutScales : experts_as(Stored::Fp8)(name);
  };
  CHECK(
      contains(complaint(stating(QuantMethod::Fp8Blocks, {"gate"}), router), "mlp.gate.weight_scale_inv' is missing"));
}

TEST_CASE("load_moe_block: a file that is as stated is loaded, with plain routers and what is listed", "[io]") {
  CHECK(complaint(stating(QuantMethod::Fp8Blocks), experts_as(Stored::Fp8)).empty());
  CHECK(complaint(gpt_oss(QuantMethod::Mxfp4), experts_as(Stored::Mxfp4)).empty());
  const auto shared_is_plain = [](const std::string& name) {
    return contains(name, "shared_expert") ? Stored::Plain : experts_as(Stored::Fp8)(name);
  };
  CHECK(complaint(stating(QuantMethod::Fp8Blocks, {"mlp.shared_expert"}), shared_is_plain).empty());
  CHECK(contains(complaint(stating(QuantMethod::Fp8Blocks), shared_is_plain),
                 "shared_expert.gate_proj.weight' is stored as BF16, but the configuration says fp8 in blocks with "
                 "scales and does not list it as not converted"));
}

TEST_CASE("load_moe_block: experts stored otherwise than stated are named", "[io][error]") {
  CHECK(contains(complaint(stating(QuantMethod::Fp8Blocks), experts_as(Stored::Plain)), "is stored as BF16, but"));
  CHECK(contains(complaint(stating(QuantMethod::Mxfp4), experts_as(Stored::Fp8)), "is stored as F8_E4M3 x 128, but"));
  CHECK(contains(complaint(stating(QuantMethod::Mxfp4), experts_as(Stored::Fp8WithoutScales)), "is stored as F8_E4M3"));
  CHECK(contains(complaint(gpt_oss(QuantMethod::Fp8Blocks), experts_as(Stored::Mxfp4)), "is stored as MXFP4, but"));
  CHECK(
      contains(complaint(gpt_oss(QuantMethod::Mxfp4), experts_as(Stored::Plain)), "the configuration says mxfp4 and"));
  MoeConfig other = stating(QuantMethod::Fp8Blocks);
  other.quantisation.codes = Dtype::F8_E5M2;
  CHECK(contains(complaint(other, experts_as(Stored::Fp8)), "is F8_E4M3, but the configuration says F8_E5M2"));
}

TEST_CASE("load_moe_block: where nothing is stated, what the file says is enough", "[io]") {
  for (const Stored stored : {Stored::Plain, Stored::Fp8, Stored::Fp8WithoutScales})
    CHECK(complaint(stating(QuantMethod::Unstated), experts_as(stored)).empty());
  CHECK(complaint(gpt_oss(QuantMethod::Unstated), experts_as(Stored::Mxfp4)).empty());
}

TEST_CASE("load_router: stated FP8 without scales names the tensor that is missing", "[io][error]") {
  const MoeConfig config = stating(QuantMethod::Fp8Blocks);
  const test::TemporaryDirectory directory;
  test::write_tensors(directory / "x",
                      stored_block(config, [](const std::string&) { return Stored::Fp8WithoutScales; }));
  const auto checkpoint = moe::Checkpoint::open(directory / "x");
  const auto location = moe::find_block(checkpoint, config);
  CHECK_THROWS_WITH(moe::load_router(checkpoint, config, location),
                    Catch::Matchers::ContainsSubstring("mlp.gate.weight_scale_inv' is missing"));
}
