// SPDX-License-Identifier: MIT
// Whole blocks in the layouts of published files: loaded, kept in few bits, and compared with what a configuration
// says.
#include <set>

#include "io/stored_block.hpp"
#include "layer/structure_fixtures.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"

namespace {

using moe::MoeConfig;
using moe::QuantMethod;
using test::contains;
using test::message_of;
using test::StoredAs;
using test::StoredBlock;

struct Layout {
  StoredAs stored;
  QuantMethod method;
  const char* kept;  ///< name of the format
};

constexpr Layout kLayouts[] = {{StoredAs::Fp8Tensor, QuantMethod::Fp8, "fp8-g0"},
                               {StoredAs::Fp8Output, QuantMethod::Fp8, "fp8-g0"},
                               {StoredAs::Nvfp4, QuantMethod::Nvfp4, "nvfp4"},
                               {StoredAs::Nvfp4Packed, QuantMethod::Nvfp4, "nvfp4"},
                               {StoredAs::Mxfp4Packed, QuantMethod::Mxfp4, "mxfp4"},
                               {StoredAs::Int4Packed, QuantMethod::PackedInts, "int4-zero-g32"},
                               {StoredAs::Int8, QuantMethod::Ints, "int8-g0"},
                               {StoredAs::Gptq, QuantMethod::Gptq, "int4-zero-g32"},
                               {StoredAs::Awq, QuantMethod::Awq, "int4-zero-g32"}};

MoeConfig config_of(const std::string& family, QuantMethod method) {
  MoeConfig config = test::config_of(family, 64, 32);
  if (config.shared_dim != 0) config.shared_dim = 32;
  config.quantisation.method = method;
  return config;
}

std::string complaint(const StoredBlock& stored, const MoeConfig& config) {
  return message_of<std::runtime_error>([&] { (void)moe::load_moe_block(stored.open(), config); });
}

}  // namespace

TEST_CASE("load_moe_block: blocks in every layout of few bits, whose bits are kept where asked", "[io]") {
  for (const Layout& layout : kLayouts)
    for (const char* family : {"qwen2_moe", "mixtral", "nemotron_h"}) {
      CAPTURE(test::name_of(layout.stored), family);
      const MoeConfig config = config_of(family, layout.method);
      const StoredBlock stored(config, layout.stored);
      const auto checkpoint = stored.open();
      const auto floats = moe::load_moe_block(checkpoint, config);
      const auto codes = moe::load_quantised_block(checkpoint, config);
      CHECK(test::leaves_of(codes) == test::leaves_of(floats));
      CHECK(test::same_bits(test::output_of(codes), test::output_of(floats)));
      std::set<std::string> formats;
      moe::visit_state(
          [&](const std::string&, const auto& leaf) {
            if constexpr (requires { leaf.format(); }) formats.insert(leaf.format().name());
          },
          codes);
      CHECK(formats.contains(layout.kept));
    }
}

TEST_CASE("load_moe_block: a layout other than the stated one is named", "[io][error]") {
  for (const Layout& layout : kLayouts) {
    CAPTURE(test::name_of(layout.stored));
    const StoredBlock stored(config_of("mixtral", layout.method), layout.stored);
    const std::string unstated = complaint(stored, config_of("mixtral", QuantMethod::Unstated));
    if (layout.method == QuantMethod::Gptq)  // of two formats, which shapes cannot tell apart
      CHECK(contains(unstated, "experts.0.w1.weight' is stored as GPTQ has it, expected a configuration that says"));
    else
      CHECK(unstated.empty());
    for (const Layout& other : kLayouts) {
      if (other.method == layout.method) continue;
      const std::string message = complaint(stored, config_of("mixtral", other.method));
      CHECK(contains(message, "experts.0.w1.weight' is stored as "));
      CHECK(contains(message, "but the configuration says " + std::string(moe::method_text(other.method))));
    }
    const StoredBlock plain(config_of("mixtral", layout.method), StoredAs::Bf16);
    CHECK(contains(complaint(plain, config_of("mixtral", layout.method)),
                   "experts.0.w1.weight' is stored as BF16, but the configuration says "));
  }
}

TEST_CASE("load_moe_block: numbers of a statement other than those of the file are named", "[io][error]") {
  MoeConfig config = config_of("mixtral", QuantMethod::Gptq);
  const StoredBlock stored(config, StoredAs::Gptq);
  config.quantisation.storage = {.group = 64, .bits = 4};
  CHECK(contains(complaint(stored, config), ".scales' has shape [2, 32], expected 1 groups of 64 for 64 inputs"));
  config.quantisation.storage = {.group = 16, .bits = 4};
  CHECK(contains(complaint(stored, config), ".scales' has shape [1, 64], expected 2 groups of 16 for 32 inputs"));
  config.quantisation.storage = {.bits = 8};
  CHECK(contains(complaint(stored, config), "holds integers of 4 bits, but the configuration says 8"));
}

TEST_CASE("load_moe_block: a tensor of codes or scales that is lost, or too many, is named", "[io][error]") {
  for (const Layout& layout : kLayouts) {
    const MoeConfig config = config_of("mixtral", layout.method);
    StoredBlock stored(config, layout.stored);
    const std::size_t size = stored.tensors().size();
    for (std::size_t t = 0; t < size; t += 7) {
      const test::Tensor lost = stored.tensors()[t];
      if (contains(lost.name, "input_") || contains(lost.name, "zero_point")) continue;
      CAPTURE(test::name_of(layout.stored), lost.name);
      stored.tensors()[t].name = "elsewhere";
      const std::string message = complaint(stored, config);
      const bool is_named =
          contains(message, lost.name) || contains(message, lost.name.substr(0, lost.name.rfind('.')));
      CHECK(is_named);
      stored.tensors()[t].name = lost.name;
    }
    stored.tensors().push_back(
        {"model.layers.0.block_sparse_moe.experts.0.w1.weight_scale_3", moe::Dtype::U8, {1}, "x"});
    CHECK(contains(complaint(stored, config), "experts.0.w1.weight_scale_3' is not part of a block"));
  }
}
