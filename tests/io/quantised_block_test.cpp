// SPDX-License-Identifier: MIT
// Blocks of published models that keep the few bits of their file, or are rounded to others while they are read.
#include "moe/io/block/quantise_block.hpp"

#include "io/stored_block.hpp"
#include "layer/structure_fixtures.hpp"
#include "moe/core/memory_bytes.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"
#include "support/thread_executor.hpp"

using moe::Index;
using moe::MoeConfig;
using moe::QuantisedMoeBlock;
using moe::WeightFormat;
using test::config_of;
using test::contains;
using test::message_of;
using test::output_of;
using test::StoredAs;
using test::StoredBlock;

namespace {

/// The block in the bits of its file is the block of floats: in every weight, and in what it computes.
void check_kept(const StoredBlock& stored, const MoeConfig& config) {
  const auto checkpoint = stored.open();
  const auto floats = moe::load_moe_block(checkpoint, config);
  const auto codes = moe::load_quantised_block(checkpoint, config);
  CHECK(test::leaves_of(codes) == test::leaves_of(floats));
  CHECK(test::same_bits(output_of(codes), output_of(floats)));
}

/// Formats of all matrices of experts.
std::set<std::string> formats_of(const QuantisedMoeBlock& block) {
  std::set<std::string> names;
  moe::visit_state(
      [&](const std::string&, const auto& leaf) {
        if constexpr (requires { leaf.format(); }) names.insert(leaf.format().name());
      },
      block);
  return names;
}

QuantisedMoeBlock load(const StoredBlock& stored, const MoeConfig& config, const moe::LoadOptions& options = {}) {
  return moe::load_quantised_block(stored.open(), config, options);
}

}  // namespace

TEST_CASE("load_quantised_block: every family in every layout keeps its bits", "[io]") {
  constexpr StoredAs kOthers[] = {StoredAs::F16, StoredAs::E4M3, StoredAs::E5M2, StoredAs::Fp8Blocks};
  std::size_t turn = 0;
  for (const auto& [model_type, text] : test::family_configs()) {
    const MoeConfig config = config_of(model_type);
    for (const moe::FamilyFormat& format : moe::find_family(config.family)->formats) {
      if (format.gate.empty() == moe::is_gated(config.expert)) continue;
      for (const StoredAs as : {StoredAs::Bf16, kOthers[turn++ % 4]}) {
        CAPTURE(model_type, format.prefix, format.down, test::name_of(as));
        check_kept(StoredBlock(config, format, as), config);
      }
    }
  }
}

TEST_CASE("load_quantised_block: codes are those of the file, value by value", "[io]") {
  for (const char* family : {"mixtral", "granitemoe", "llama4", "gpt_oss", "dbrx"}) {  // a layout each
    const MoeConfig config = config_of(family, 20, 10);
    const StoredBlock stored(config, StoredAs::Bf16);
    const auto checkpoint = stored.open();
    auto block = moe::load_quantised_block(checkpoint, config);
    CHECK(formats_of(block) == std::set<std::string>{"bf16"});
    Index compared = 0, wrong = 0;
    for (const moe::BoundTensor& tensor : moe::bind_weights(block, stored.location()))
      for (const moe::WeightSlice& slice : tensor.slices) {
        if (!slice.to_codes) continue;
        const std::byte* const bytes = checkpoint.at(tensor.name).bytes.data();
        for (Index o = 0; o < slice.outputs; ++o)
          for (Index i = 0; i < slice.inputs; ++i, ++compared) {
            std::uint16_t code = 0;
            std::memcpy(&code, bytes + 2 * (slice.first + o * slice.output_stride + i * slice.input_stride), 2);
            wrong += slice.to_codes->code(slice.first_output + o, i) != code;
          }
      }
    CAPTURE(family);
    CHECK(compared == 3 * 20 * (6 * 10 + config.shared_dim));
    CHECK(wrong == 0);
  }
}

TEST_CASE("load_quantised_block: blocks of scales that sizes do not fill keep their bits", "[io]") {
  for (const char* family : {"deepseek_v3", "qwen2_moe", "granitemoe", "llama4", "gpt_oss", "nemotron_h"}) {
    MoeConfig config = config_of(family, 140, 130);
    if (config.shared_dim != 0) config.shared_dim = 150;
    CAPTURE(family);
    check_kept(StoredBlock(config, StoredAs::Fp8Blocks), config);
  }
  const MoeConfig stacked = config_of("dbrx", 140, 128);  // experts begin where blocks of scales do
  check_kept(StoredBlock(stacked, StoredAs::Fp8Blocks), stacked);
  for (const char* family : {"gpt_oss", "olmoe", "granitemoe"}) {
    const MoeConfig config = config_of(family, 96, 64);
    const StoredBlock stored(config, StoredAs::Mxfp4);
    CAPTURE(family);
    check_kept(stored, config);
    CHECK(formats_of(load(stored, config)) == std::set<std::string>{"mxfp4"});
  }
}

TEST_CASE("load_quantised_block: gates and ups of NVFP4 and integers share a matrix whatever scales they have",
          "[io]") {
  const MoeConfig config = config_of("mixtral", 64, 64);
  const StoredBlock four(config, StoredAs::Nvfp4), ints(config, StoredAs::Int4Packed);
  check_kept(four, config);
  CHECK(formats_of(load(four, config)) == std::set<std::string>{"nvfp4", "e2m1-g16"});  // one scale, and two
  check_kept(ints, config);
  CHECK(formats_of(load(ints, config)) == std::set<std::string>{"int4-g32", "int4-zero-g32"});
}

TEST_CASE("load_quantised_block: codes of NaN and infinity are kept, too", "[io]") {
  for (const StoredAs as : {StoredAs::Bf16, StoredAs::F16, StoredAs::E4M3, StoredAs::E5M2, StoredAs::Fp8Blocks}) {
    const MoeConfig config = config_of("olmoe", 256, 8);
    StoredBlock stored(config, as);
    for (auto& tensor : stored.tensors())
      if (tensor.name.ends_with("down_proj.weight") || tensor.name.ends_with("up_proj.weight"))
        for (std::size_t i = 0; i < tensor.bytes.size(); ++i) tensor.bytes[i] = static_cast<char>(i * 37 + i / 256);
    const auto checkpoint = stored.open();
    const auto floats = moe::load_moe_block(checkpoint, config);
    const auto codes = moe::dequantise(moe::load_quantised_block(checkpoint, config));
    Index wrong = 0, not_finite = 0;
    moe::visit(
        [&](const std::string&, const auto& of_floats, const auto& of_codes) {
          const auto a = moe::parameter_span(of_floats), b = moe::parameter_span(of_codes);
          for (std::size_t i = 0; i < a.size(); ++i) {
            not_finite += !std::isfinite(a[i]);
            wrong += !test::same_bits(a[i], b[i]) && !(std::isnan(a[i]) && std::isnan(b[i]));
          }
        },
        floats, codes);
    CAPTURE(test::name_of(as));
    CHECK(not_finite > 0);
    CHECK(wrong == 0);
  }
}

TEST_CASE("load_quantised_block: a format asked for is that of the quantised block of floats", "[io]") {
  int turn = 0;
  for (const auto& [model_type, text] : test::family_configs()) {
    const MoeConfig config = config_of(model_type);
    const StoredBlock stored(config, turn++ % 2 == 0 ? StoredAs::F32 : StoredAs::Fp8Blocks);
    const auto checkpoint = stored.open();
    const auto floats = moe::load_moe_block(checkpoint, config);
    for (const WeightFormat& format : {WeightFormat::int4(), WeightFormat::nvfp4()}) {
      const auto block = moe::load_quantised_block(checkpoint, config, {.format = format});
      const auto expected = moe::quantise(floats, format);
      int count = 0;
      CAPTURE(model_type, format.name());
      CHECK(test::same_codes(block, expected, count));
      CHECK(count >= 12);
      CHECK(formats_of(block) == std::set<std::string>{format.name()});
      CHECK(test::leaves_of(block) == test::leaves_of(moe::dequantise(expected)));
    }
  }
}

TEST_CASE("load_quantised_block: memory is that of the file, and what its documentation names", "[io]") {
  constexpr Index kDim = 288;  // whole panels of outputs and lines of inputs, so that there is no padding
  const auto share = [&](const char* family, StoredAs as, const std::optional<WeightFormat>& format = {}) {
    MoeConfig config = config_of(family, kDim, kDim);
    config.num_experts = 32;
    const StoredBlock stored(config, as);
    const auto block = load(stored, config, {.format = format});
    return static_cast<double>(moe::memory_bytes(block)) / static_cast<double>(stored.bytes());
  };
  for (const char* family : {"mixtral", "granitemoe", "llama4", "gpt_oss", "dbrx"}) {
    CAPTURE(family);
    CHECK(std::abs(share(family, StoredAs::Bf16) - 1) < 0.01);
  }
  CHECK(std::abs(share("mixtral", StoredAs::E4M3) - 1) < 0.01);
  // A panel is 9 groups of 17 bytes a column, and ends within a line.
  const double line = 64 / static_cast<double>(kDim / 32 * 17 * moe::PanelMatrix<moe::Quantised>::kWidth);
  CHECK(std::abs(share("granitemoe", StoredAs::Mxfp4) - 1) < 0.005 + line);
  CHECK(std::abs(share("mixtral", StoredAs::Fp8Blocks) - 1 - 3 * 4.0 / kDim) < 0.01);  // a scale per output and group
  const double bits = WeightFormat::int4().bits_per_weight(kDim);
  CHECK(std::abs(share("mixtral", StoredAs::Bf16, WeightFormat::int4()) - bits / 16) < 0.01);

  const moe::MoeBlock floats(config_of("mixtral"));
  CHECK(moe::memory_bytes(floats) >= 4 * static_cast<std::size_t>(moe::num_parameters(floats)));
  const QuantisedMoeBlock zeros(floats.config());
  CHECK(moe::memory_bytes(zeros) == moe::memory_bytes(zeros.router()));
}

TEST_CASE("load_quantised_block: any number of threads loads the same bits, and says how far it is", "[io]") {
  const MoeConfig config = config_of("qwen2_moe", 40, 24);
  const StoredBlock stored(config, StoredAs::Bf16);
  for (const std::optional<WeightFormat> format : {std::optional<WeightFormat>{}, {WeightFormat::int8()}}) {
    moe::SerialExecutor serial;
    const moe::UseExecutor one(serial);
    const auto expected = load(stored, config, {.format = format});
    for (const Index workers : {2, 3}) {
      test::ThreadExecutor executor(workers);
      const moe::UseExecutor use(executor);
      std::uint64_t last = 0, whole = 0;
      moe::LoadOptions options{.format = format};
      options.progress.least_bytes = 0;
      options.progress.report = [&](std::uint64_t done, std::uint64_t total) { last = done, whole = total; };
      int count = 0;
      CHECK(test::same_codes(load(stored, config, options), expected, count));
      CHECK(last > 0);
      CHECK(last == whole);
    }
  }
}

TEST_CASE("load_quantised_block: what cannot be kept is refused by name", "[io][error]") {
  const MoeConfig config = config_of("olmoe");
  const StoredBlock floats(config, StoredAs::F32);
  const std::string no_bits = message_of([&] { load(floats, config); });
  CHECK(contains(no_bits, "experts.0.gate_proj.weight' is stored as F32, which no format of few bits holds"));
  CHECK(formats_of(load(floats, config, {.format = WeightFormat::bf16()})) == std::set<std::string>{"bf16"});

  StoredBlock mixed(config, StoredAs::Bf16);
  for (auto& tensor : mixed.tensors())
    if (tensor.name.ends_with("experts.2.up_proj.weight")) tensor.dtype = moe::Dtype::F16;
  const std::string two = message_of([&] { load(mixed, config); });
  CHECK(contains(two,
                 "experts.2.gate_proj.weight' and 'model.layers.0.mlp.experts.2.up_proj.weight' are stored as "
                 "BF16 and F16, expected one format"));

  const MoeConfig stacked = config_of("dbrx", 16, 96);  // experts of 96 rows, scales of 128
  const StoredBlock across(stacked, StoredAs::Fp8Blocks);
  const std::string scales = message_of([&] { load(across, stacked); });
  CAPTURE(scales);
  CHECK(contains(scales, "w2' is stored as F8_E4M3 x 128 with scales that begin or end inside of 96 inputs"));
  CHECK(formats_of(load(across, stacked, {.format = WeightFormat::int8()})) == std::set<std::string>{"int8-g32"});
}

TEST_CASE("load_quantised_block: formats and numbers that do not go together are refused by name", "[io][error]") {
  const MoeConfig config = config_of("olmoe");
  StoredBlock stored(config, StoredAs::Bf16);
  CHECK(
      contains(message_of([&] { load(stored, config, {.format = WeightFormat::none()}); }), "expected one with codes"));
  CHECK(contains(message_of([&] { load(stored, config, {.format = WeightFormat::int4().with_group(3)}); }),
                 "group is 3"));
  CHECK(contains(message_of([&] { moe::load_moe_block(stored.open(), config, {.format = WeightFormat::int4()}); }),
                 "format is int4-g32, expected none"));
  for (auto& tensor : stored.tensors())
    if (tensor.name.ends_with("experts.4.down_proj.weight"))
      tensor.bytes[1] = 0x7F, tensor.bytes[0] = static_cast<char>(0xC0);
  const std::string nan =
      message_of<std::runtime_error>([&] { load(stored, config, {.format = WeightFormat::int4()}); });
  CHECK(contains(nan, "weight 'model.layers.0.mlp.experts.4.down_proj.weight': "));
  CHECK(contains(nan, "expected one that int4-g32 can hold"));
}
