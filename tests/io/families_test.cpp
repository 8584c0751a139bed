// SPDX-License-Identifier: MIT
#include <set>

#include "io/family_blocks.hpp"
#include "moe/io/families/moe_layers.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"

using moe::FamilyFormat;
using moe::MoeBlock;
using moe::MoeConfig;
using test::contains;
using test::message_of;

namespace {

/// Calls f(config, format) for every row of the table.
template <class F>
void for_each_format(const F& f) {
  for (const auto& [model_type, text] : test::family_configs()) {
    MoeConfig config = test::config_of(model_type);
    for (const FamilyFormat& format : moe::find_family(config.family)->formats) {
      if (config.family == "switch")
        config.expert = format.gate.empty() ? moe::ExpertKind::ReluPlain : moe::ExpertKind::GeluGated;
      f(config, format);
    }
  }
}

/// What loading a file says, or "".
std::string complaint(const std::filesystem::path& path, const MoeConfig& config, const moe::LoadOptions& options) {
  return message_of<std::runtime_error>([&] { moe::load_moe_block(moe::Checkpoint::open(path), config, options); });
}

}  // namespace

TEST_CASE("Families: every format has a configuration and every model type a format", "[io]") {
  std::set<std::string, std::less<>> families, model_types, loaded;
  for (const moe::Family& family : moe::kFamilies) {
    CHECK(families.emplace(family.name).second);
    CHECK(moe::find_family(family.name) == &family);
    CHECK(!family.formats.empty());
    CHECK(!family.model_types[0].empty());
    for (const std::string_view type : family.model_types)
      if (!type.empty()) CHECK(model_types.emplace(type).second);
  }
  for_each_format([&](const MoeConfig& config, const FamilyFormat&) { loaded.insert(config.family); });
  CHECK(loaded == families);
  CHECK(families.size() == 40);
  CHECK(moe::find_family("my_moe") == nullptr);
}

TEST_CASE("load_moe_block: a block saved in any format of its family comes back bit by bit", "[io]") {
  for_each_format([](const MoeConfig& config, const FamilyFormat& format) {
    CAPTURE(config.family, format.prefix, format.router);
    const test::TemporaryDirectory directory;
    MoeBlock block = test::random_block(config);
    const auto names = test::save_block(directory / "model.safetensors", block, format, 7);
    CHECK(std::set(names.begin(), names.end()).size() == names.size());
    const auto checkpoint = moe::Checkpoint::open(directory / "model.safetensors");
    const moe::LoadOptions options{.layer = 7};
    CHECK(moe::moe_layers(checkpoint, config.family) == std::vector<moe::Index>{7});
    CHECK(moe::find_block(checkpoint, config, options).format.prefix == format.prefix);
    CHECK(test::same_parameters(moe::load_moe_block(checkpoint, config, options), block));
  });
}

TEST_CASE("load_moe_block: read_bound writes every element of every tensor, 0 where nothing is read", "[io]") {
  for_each_format([](const MoeConfig& config, const FamilyFormat& format) {
    MoeBlock block = test::random_block(config);
    for (const bool is_quantised : {false, true})
      for (const auto& tensor : moe::bind_weights(block, {format, "", is_quantised})) {
        std::size_t size = 1;
        for (const moe::Index extent : tensor.shape) size *= static_cast<std::size_t>(extent);
        std::vector<float> values(size, test::kNan<float>);
        moe::read_bound(tensor, values);
        CAPTURE(config.family, tensor.name);
        CHECK(std::none_of(values.begin(), values.end(), [](float value) { return std::isnan(value); }));
        std::size_t read = tensor.numbers ? size : 0;
        for (const moe::WeightSlice& slice : tensor.slices)
          read += static_cast<std::size_t>(slice.outputs * slice.inputs);
        CHECK(static_cast<std::size_t>(std::count(values.begin(), values.end(), 0.0f)) == size - read);
        const bool holds_unread = format.identities_have_gates && tensor.name == format.gate;
        CHECK(size - read == static_cast<std::size_t>(holds_unread ? config.num_identity_experts * 2 * 8 * 12 : 0));
      }
  });
}

TEST_CASE("load_moe_block: each missing tensor is named", "[io][error]") {
  for_each_format([](const MoeConfig& config, const FamilyFormat& format) {
    const test::TemporaryDirectory directory;
    const auto path = directory / "model.safetensors";
    MoeBlock block(config);
    for (const std::string& name : test::save_block(path, block, format, 0)) {
      test::save_block(path, block, format, 0, {.leave_out = name});
      CAPTURE(name);
      CHECK(contains(complaint(path, config, {}), "'" + name + "'"));
    }
  });
}

TEST_CASE("load_moe_block: tensors of another shape and tensors too many are named", "[io][error]") {
  for_each_format([](const MoeConfig& config, const FamilyFormat& format) {
    const test::TemporaryDirectory directory;
    const auto path = directory / "model.safetensors";
    MoeBlock block(config);
    const auto names = test::save_block(path, block, format, 0);
    for (const std::string& name : {names.front(), names.back()}) {
      test::save_block(path, block, format, 0, {.reshape = name});
      CAPTURE(name);
      const std::string message = complaint(path, config, {});
      CHECK((contains(message, "'" + name + "'") && contains(message, "shape")));
    }
    const std::string extra = names.back().substr(0, names.back().rfind('.')) + ".more";
    test::save_block(path, block, format, 0, {.add = extra});
    CHECK(contains(complaint(path, config, {}), "'" + extra + "'"));
    test::save_block(path, block, format, 0, {.add = "lm_head.weight"});
    CHECK(complaint(path, config, {}).empty());
    const std::string neighbour = moe::numbered_name(format.prefix, 0) + std::string(format.neighbour);
    if (!format.neighbour.empty()) test::save_block(path, block, format, 0, {.add = neighbour});
    CHECK(complaint(path, config, {}).empty());
  });
}

TEST_CASE("load_moe_block: sizes that are not those of the file are refused", "[io][error]") {
  const test::TemporaryDirectory directory;
  const auto path = directory / "model.safetensors";
  const MoeConfig config = test::config_of("deepseek_v3");
  MoeBlock block(config);
  test::save_block(path, block, moe::find_family("deepseek_v3")->formats.front(), 0);
  REQUIRE(complaint(path, config, {}).empty());
  for (moe::Index MoeConfig::*size :
       {&MoeConfig::model_dim, &MoeConfig::hidden_dim, &MoeConfig::shared_dim, &MoeConfig::num_experts}) {
    MoeConfig other = config;
    other.gate.groups = {};
    other.*size += 1;
    CHECK(!complaint(path, other, {}).empty());
    other.*size -= 2;
    CHECK(!complaint(path, other, {}).empty());
  }
  CHECK(contains(complaint(path, config, {.layer = 1}), "model.layers.1.mlp.gate.weight"));
  CHECK(complaint(path, config, {.layer = 1, .prefix = "model.layers.0.mlp."}).empty());
  MoeConfig unknown = config;
  unknown.family = "my_moe";
  CHECK_THROWS_WITH(moe::find_block(moe::Checkpoint::open(path), unknown),
                    "moe::find_block: family 'my_moe' is not known");
}

TEST_CASE("MoeBlock: parts that no model has together, and sizes out of range, are refused", "[io][error]") {
  MoeConfig config = test::config_of("mixtral");
  config.capacity = moe::CapacityOptions{};
  CHECK_THROWS_AS(MoeBlock(config), std::invalid_argument);
  config = test::config_of("gpt_oss");
  config.shared_dim = 4;
  CHECK_THROWS_AS(MoeBlock(config), std::invalid_argument);
  config = test::config_of("jetmoe");
  config.shared_dim = 4;
  CHECK_THROWS_AS(MoeBlock(config), std::invalid_argument);
  for (const moe::Index size : {moe::Index{-1}, moe::Index{0}, moe::Index{1} << 40}) {
    config = test::config_of("mixtral");
    config.hidden_dim = size;
    CHECK_THROWS_AS(MoeBlock(config), std::invalid_argument);
  }
  CHECK_THROWS_AS(moe::MoeBlock::Tape().logits(), std::invalid_argument);
}
