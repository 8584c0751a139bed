// SPDX-License-Identifier: MIT
#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "io/family_blocks.hpp"
#include "io/stored_block.hpp"
#include "moe/io/block/quantise_block.hpp"
#include "moe/io/families/moe_layers.hpp"
#include "support/catch.hpp"
#include "support/gguf.hpp"
#include "support/text.hpp"

namespace {

using moe::Index;
using moe::MoeConfig;
using test::gguf_f32;
using test::gguf_flag;
using test::gguf_u32;
using test::GgufEntry;
using test::GgufFile;
using Metadata = std::vector<std::pair<std::string, GgufEntry>>;

/// An architecture with what it says beyond the sizes of test::family_configs(), and the model type that this is.
struct Architecture {
  std::string name, model_type;
  Metadata metadata = {};
};

Metadata sigmoids(double scale, bool has_groups = true) {
  Metadata metadata{{"expert_gating_func", gguf_u32(2)},
                    {"expert_weights_norm", gguf_flag(true)},
                    {"expert_weights_scale", gguf_f32(static_cast<float>(scale))}};
  if (has_groups) {
    metadata.emplace_back("expert_group_count", gguf_u32(3));
    metadata.emplace_back("expert_group_used_count", gguf_u32(2));
  }
  return metadata;
}
Metadata with(Metadata metadata, const std::string& key, const GgufEntry& entry) {
  metadata.emplace_back(key, entry);
  return metadata;
}
const std::pair<std::string, GgufEntry> kTwoShared{"expert_shared_count", gguf_u32(2)};
const std::pair<std::string, GgufEntry> kTenShared{"expert_shared_feed_forward_length", gguf_u32(10)};

const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> all{
      {"llama", "mixtral"},
      {"phimoe", "phimoe"},
      {"gpt-oss", "gpt_oss"},
      {"llama4", "llama4", {{"expert_used_count", gguf_u32(1)}}},
      {"granitemoe", "granitemoe"},
      {"granitemoe", "granitemoeshared", {kTenShared}},
      {"granitehybrid", "granitemoehybrid", {kTenShared}},
      {"minimax-m2", "minimax_m2", {{"expert_gating_func", gguf_u32(2)}}},
      {"olmoe", "olmoe", {{"expert_weights_norm", gguf_flag(true)}}},
      {"olmoe", "flex_olmo"},
      {"jamba", "jamba"},
      {"qwen2moe", "qwen2_moe", {kTenShared}},
      {"qwen3moe", "qwen3_moe"},
      {"qwen3vlmoe", "qwen3_vl_moe"},
      {"qwen3next", "qwen3_next", {kTenShared}},
      {"qwen35moe", "qwen3_5_moe", {kTenShared}},
      {"deepseek2",
       "deepseek_v2",
       {{"expert_weights_scale", gguf_f32(2.5f)},
        {"expert_group_count", gguf_u32(3)},
        {"expert_group_used_count", gguf_u32(2)},
        {"expert_gating_func", gguf_u32(1)},
        kTwoShared}},
      {"deepseek2", "deepseek_v3", with(sigmoids(2.5), kTwoShared.first, kTwoShared.second)},
      {"deepseek2",  // says nothing of its gate: GLM 4.7 Lite
       "deepseek_v3",
       {{"block_count", gguf_u32(47)},
        {"vocab_size", gguf_u32(154880)},
        {"expert_weights_scale", gguf_f32(2.5f)},
        {"expert_group_count", gguf_u32(3)},
        {"expert_group_used_count", gguf_u32(2)},
        kTwoShared}},
      {"deepseek2", "kimi_k2", with(sigmoids(2.5, false), kTwoShared.first, kTwoShared.second)},
      {"deepseek32", "deepseek_v32", with(sigmoids(2.5), kTwoShared.first, kTwoShared.second)},
      {"glm4moe", "glm4_moe", with(sigmoids(2.5, false), kTwoShared.first, kTwoShared.second)},
      {"glm-dsa", "glm_moe_dsa", with(sigmoids(2.5, false), kTwoShared.first, kTwoShared.second)},
      {"dots1",
       "dots1",
       {{"expert_weights_norm", gguf_flag(false)}, {"expert_weights_scale", gguf_f32(2.5f)}, kTwoShared}},
      {"mimo2", "mimo_v2_flash", {{"expert_gating_func", gguf_u32(2)}}},
      {"exaone-moe", "exaone_moe", with(sigmoids(2.5, false), kTwoShared.first, kTwoShared.second)},
      {"nemotron_h_moe", "nemotron_h", with(sigmoids(2.5, false), kTenShared.first, kTenShared.second)},
      {"kimi-linear", "kimi_linear", with(sigmoids(2.446), kTwoShared.first, kTwoShared.second)},
      {"lfm2moe", "lfm2_moe", {{"expert_gating_func", gguf_u32(2)}}},
      {"ernie4_5-moe", "ernie4_5_moe", {{"expert_shared_feed_forward_length", gguf_u32(16)}}},
      {"hunyuan-moe", "hunyuan_v1_moe", {{"expert_shared_feed_forward_length", gguf_u32(8)}}},
      {"dbrx", "dbrx"},
  };
  return all;
}

/// The metadata of a file: sizes, unless what is said beyond them has them, too.
Metadata metadata_of(const Architecture& architecture, const MoeConfig& config) {
  Metadata metadata{{"general.architecture", test::gguf_text(architecture.name)}};
  std::map<std::string, GgufEntry> values{
      {"embedding_length", gguf_u32(static_cast<std::uint32_t>(config.model_dim))},
      {"expert_feed_forward_length", gguf_u32(static_cast<std::uint32_t>(config.hidden_dim))},
      {"expert_count", gguf_u32(static_cast<std::uint32_t>(config.num_experts))},
      {"expert_used_count", gguf_u32(static_cast<std::uint32_t>(config.gate.k))}};
  for (const auto& [key, entry] : architecture.metadata) values[key] = entry;
  for (const auto& [key, entry] : values) metadata.emplace_back(architecture.name + "." + key, entry);
  return metadata;
}

std::vector<std::int64_t> extents_of(const std::vector<Index>& shape) { return {shape.begin(), shape.end()}; }

/// The tensors of a block under the names of llama.cpp, as F32.
std::vector<test::GgufTensor> tensors_of(moe::MoeBlock& block, const moe::FamilyFormat& format, Index layer) {
  std::vector<test::GgufTensor> tensors;
  for (const moe::BoundTensor& tensor : moe::bind_weights(block, {format, moe::numbered_name(format.prefix, layer)})) {
    std::size_t size = 1;
    for (const Index extent : tensor.shape) size *= static_cast<std::size_t>(extent);
    std::vector<float> values(size);
    moe::read_bound(tensor, values);
    tensors.push_back({tensor.name, 0, extents_of(tensor.shape), test::bytes_of(values)});
  }
  return tensors;
}

/// Whether a gate, or all else of a block but its weights, is the same.
bool same_config(const MoeConfig& a, const MoeConfig& b) {
  const moe::TopKGate &left = a.gate, &right = b.gate;
  return a.family == b.family && a.model_dim == b.model_dim && a.hidden_dim == b.hidden_dim &&
         a.num_experts == b.num_experts && a.selection_bias == b.selection_bias && a.router_bias == b.router_bias &&
         a.sparse_mixer.has_value() == b.sparse_mixer.has_value() && a.expert == b.expert &&
         a.expert_bias == b.expert_bias && a.clamp.limit == b.clamp.limit && a.clamp.alpha == b.clamp.alpha &&
         a.weight_on == b.weight_on && a.shared_dim == b.shared_dim && a.shared_gate == b.shared_gate &&
         left.k == right.k && left.score == right.score && left.normalise == right.normalise &&
         left.epsilon == right.epsilon && left.scale == right.scale && left.floor == right.floor &&
         left.norm_p == right.norm_p && left.groups.count == right.groups.count &&
         left.groups.kept == right.groups.kept && left.groups.best == right.groups.best;
}

template <class F>
std::string complaint_of(const F& call) {
  return test::message_of<std::runtime_error>(call);
}

/// A file of layer 3 of a block.
GgufFile file_of(const Architecture& architecture, moe::MoeBlock& block, const moe::FamilyFormat& format) {
  return {.metadata = metadata_of(architecture, block.config()), .tensors = tensors_of(block, format, 3)};
}

}  // namespace

TEST_CASE("read_moe_config: metadata of GGUF say what the config.json of the model says", "[io]") {
  const test::TemporaryDirectory directory;
  std::set<std::string> tested;
  for (const Architecture& architecture : architectures()) {
    CAPTURE(architecture.name, architecture.model_type);
    const MoeConfig expected = test::config_of(architecture.model_type);
    test::write_bytes(directory / "x.gguf", GgufFile{.metadata = metadata_of(architecture, expected)}.bytes());
    MoeConfig config = moe::read_moe_config(directory / "x.gguf");
    if (architecture.model_type == "kimi_k2" || architecture.model_type == "flex_olmo") {
      CHECK(moe::find_family(config.family) != nullptr);  // of which it is one model
      config.family = expected.family;
    }
    CHECK(same_config(config, expected));
    CHECK(config.quantisation == moe::Quantisation{});
    tested.insert(architecture.name);
  }
  for (const auto& known : moe::detail::kGgufArchitectures)
    if (known.name != "deepseek") CHECK(tested.contains(std::string(known.name)));  // the first one: as the second
}

TEST_CASE("read_moe_config: experts are as wide as the feed-forward network where no other width is said", "[io]") {
  const test::TemporaryDirectory directory;
  const GgufEntry widths = test::gguf_list(4, {test::raw(8u), test::raw(16u)});
  GgufFile file{.metadata = metadata_of({"llama", "mixtral"}, test::config_of("mixtral"))};
  for (auto& [key, entry] : file.metadata)
    if (key == "llama.expert_feed_forward_length")
      std::tie(key, entry) = std::pair("llama.feed_forward_length", widths);
  test::write_bytes(directory / "x.gguf", file.bytes());
  REQUIRE(moe::read_moe_family(directory / "x.gguf") == "mixtral");  // of any layer
  REQUIRE(moe::read_moe_config(directory / "x.gguf", 1).hidden_dim == 16);
}

TEST_CASE("load_moe_block: a GGUF file holds the block of the safetensors file, bit by bit", "[io]") {
  for (const Architecture& architecture : architectures())
    for (const moe::FamilyFormat& format : moe::kGgufFormats) {
      MoeConfig config = test::config_of(architecture.model_type);
      const bool has_gates = moe::is_gated(config.expert), is_whole = format.layout == moe::ExpertLayout::FusedApart;
      if (has_gates == format.gate.empty() || (config.expert_bias && !is_whole)) continue;
      CAPTURE(architecture.name, architecture.model_type, format.gate);
      const test::TemporaryDirectory directory;
      moe::MoeBlock block = test::random_block(config);
      const auto names =
          test::save_block(directory / "x.safetensors", block, moe::find_family(config.family)->formats.front(), 3);
      GgufFile file = file_of(architecture, block, format);
      file.tensors.push_back({"blk.3.ffn_norm.weight", 0, {1}, "norm"});
      file.tensors.push_back({"blk.3.ffn_norm.bias", 0, {1}, "bias"});
      file.tensors.push_back({"blk.3.attn_q.weight", 0, {1}, "attn"});
      test::write_bytes(directory / "x.gguf", file.bytes());
      const auto checkpoint = moe::Checkpoint::open(directory / "x.gguf");
      const moe::LoadOptions options{.layer = 3};
      config.family = moe::read_moe_config(directory / "x.gguf").family;
      CHECK(moe::moe_layers(checkpoint, config.family) == std::vector<Index>{3});
      const moe::MoeBlock loaded = moe::load_moe_block(checkpoint, config, options);
      config.family = block.config().family;
      CHECK(test::same_parameters(
          loaded, moe::load_moe_block(moe::Checkpoint::open(directory / "x.safetensors"), config, options)));
    }
}

TEST_CASE("load_moe_block: tensors of GGUF may lack extents of 1, but no others", "[io]") {
  const test::TemporaryDirectory directory;
  const MoeConfig config = test::config_of("qwen2_moe");
  const Architecture architecture{"qwen2moe", "qwen2_moe", {kTenShared}};
  moe::MoeBlock block = test::random_block(config);
  GgufFile file = file_of(architecture, block, moe::kGgufFormats.front());
  const auto load = [&] {
    test::write_bytes(directory / "x.gguf", file.bytes());
    return moe::load_moe_block(moe::Checkpoint::open(directory / "x.gguf"), moe::read_moe_config(directory / "x.gguf"),
                               {.layer = 3});
  };
  const auto score = std::ranges::find(file.tensors, "blk.3.ffn_gate_inp_shexp.weight", &test::GgufTensor::name);
  REQUIRE(score->extents == std::vector<std::int64_t>{1, 12});
  score->extents = {12};
  REQUIRE(test::same_parameters(load(), block));
  score->extents = {12, 1};
  REQUIRE(test::contains(complaint_of(load), "'blk.3.ffn_gate_inp_shexp.weight' has shape [12, 1], expected [1, 12]"));
}

TEST_CASE("load_moe_block: what a GGUF file has too much or too little is named", "[io][error]") {
  const test::TemporaryDirectory directory;
  const MoeConfig config = test::config_of("mixtral");
  moe::MoeBlock block = test::random_block(config);
  const GgufFile whole = file_of({"llama", "mixtral"}, block, moe::kGgufFormats.front());
  const auto complaint = [&](const GgufFile& file) {
    test::write_bytes(directory / "x.gguf", file.bytes());
    return complaint_of([&] {
      moe::load_moe_block(moe::Checkpoint::open(directory / "x.gguf"), moe::read_moe_config(directory / "x.gguf"),
                          {.layer = 3});
    });
  };
  REQUIRE(complaint(whole).empty());
  for (std::size_t t = 0; t < whole.tensors.size(); ++t) {
    GgufFile file = whole;
    file.tensors.erase(file.tensors.begin() + static_cast<std::ptrdiff_t>(t));
    CAPTURE(whole.tensors[t].name);
    REQUIRE(test::contains(complaint(file), whole.tensors[t].name));
  }
  for (const char* name : {"blk.3.ffn_up_shexp.weight", "blk.3.exp_probs_b.bias", "blk.3.ffn_down_exps.scale"}) {
    GgufFile file = whole;
    file.tensors.push_back({name, 0, {1}, "more"});
    REQUIRE(test::contains(complaint(file), "'" + std::string(name) + "' is not part of a block of family 'mixtral'"));
  }
}

TEST_CASE("read_moe_config: what metadata of GGUF ask for and no family does is refused by its key", "[io][error]") {
  const test::TemporaryDirectory directory;
  const auto complaint = [&](const Architecture& architecture, std::optional<Index> layer = {}) {
    const MoeConfig sizes = test::config_of("mixtral");
    test::write_bytes(directory / "x.gguf", GgufFile{.metadata = metadata_of(architecture, sizes)}.bytes());
    return complaint_of([&] { moe::read_moe_config(directory / "x.gguf", layer); });
  };
  REQUIRE(test::contains(complaint({"arctic", ""}), "general.architecture is 'arctic', expected one of llama phimoe"));
  REQUIRE(test::contains(complaint({"llama", "", {{"expert_gating_func", gguf_u32(2)}}}),
                         "llama.expert_gating_func is 2, expected 1 or 3"));
  REQUIRE(test::contains(complaint({"llama", "", {{"expert_weights_scale", gguf_f32(2)}}}),
                         "llama.expert_weights_scale is 2.000000, expected 1, or no such key"));
  REQUIRE(test::contains(complaint({"llama", "", {{"expert_weights_norm", gguf_flag(false)}}}),
                         "llama.expert_weights_norm is false, expected true"));
  REQUIRE(test::contains(complaint({"llama", "", {{"expert_weights_norm", gguf_u32(1)}}}),
                         "llama.expert_weights_norm is 1, expected true or false"));
  REQUIRE(test::contains(complaint({"llama", "", {{"expert_count", test::gguf_text("8")}}}),
                         "llama.expert_count is '8', expected an integer of 0 to 2^31"));
  REQUIRE(test::contains(complaint({"llama", "", {{"expert_count", gguf_u32(0)}}}), "num_experts"));
  REQUIRE(test::contains(complaint({"qwen2moe", ""}), "qwen2moe.expert_shared_feed_forward_length is missing"));
  REQUIRE(test::contains(complaint({"hunyuan-moe", "", {kTenShared}}), "a multiple of the width of an expert, 8"));

  const GgufEntry widths = test::gguf_list(4, {test::raw(8u), test::raw(16u)});
  const Architecture layers{"llama", "", {{"expert_feed_forward_length", widths}}};
  REQUIRE(test::contains(complaint(layers), "expected the same number for all layers"));
  REQUIRE(test::contains(complaint(layers, 2), "expected a number, or one for every layer up to 2"));
  REQUIRE(complaint(layers, 1).empty());
  REQUIRE(moe::read_moe_config(directory / "x.gguf", 1).hidden_dim == 16);
  test::write_bytes(directory / "x.gguf", GgufFile{}.bytes());
  REQUIRE(test::contains(
      complaint_of([&] { moe::read_moe_config(directory / "x.gguf"); }),
      "moe::read_moe_config: '" + (directory / "x.gguf").string() + "': general.architecture is missing"));
}

namespace {

/// Random blocks of Q8_0 (34 bytes), Q4_0 (18) or MXFP4 (17), with scales of moderate size.
std::string random_blocks(std::size_t count, std::size_t each, std::mt19937& engine) {
  std::string bytes(count * each, '\0');
  for (char& byte : bytes) byte = static_cast<char>(engine());
  for (std::size_t b = 0; b < count; ++b)
    if (each == 17)
      bytes[b * each] = static_cast<char>(120 + engine() % 6);
    else
      bytes[b * each + 1] = static_cast<char>(0x1C + engine() % 8 + (engine() % 2) * 0x80);
  return bytes;
}
unsigned byte_of(const std::string& bytes, std::size_t place) { return static_cast<unsigned char>(bytes[place]); }

}  // namespace

TEST_CASE("load_quantised_block: Q8_0 and Q4_0 of GGUF keep their codes, also in slices of a tensor", "[io]") {
  const MoeConfig config = test::config_of("mixtral", 64, 32);
  moe::MoeBlock floats = test::random_block(config);
  for (const std::uint32_t type : {8u, 2u})
    for (const std::size_t number : {0u, 1u, 2u}) {
      CAPTURE(type, number);
      std::mt19937 engine(11);
      const test::TemporaryDirectory directory;
      const std::size_t each = type == 8 ? 34 : 18;
      GgufFile file = file_of({"llama", "mixtral"}, floats, moe::kGgufFormats[number]);
      std::map<std::string, std::string> bytes;
      for (test::GgufTensor& tensor : file.tensors) {
        if (test::contains(tensor.name, "gate_inp")) continue;
        tensor.type = type;
        bytes[tensor.name] = tensor.bytes = random_blocks(tensor.bytes.size() / 4 / 32, each, engine);
      }
      test::write_bytes(directory / "x.gguf", file.bytes());
      const auto checkpoint = moe::Checkpoint::open(directory / "x.gguf");
      const auto coded = moe::load_quantised_block(checkpoint, config, {.layer = 3});
      CHECK(test::same_bits(test::output_of(coded),
                            test::output_of(moe::load_moe_block(checkpoint, config, {.layer = 3}))));
      // Expert 4: up 7, input 33.
      const auto& up = std::get<0>(coded.layer()).experts()[4].gate_up();
      const auto& down = std::get<0>(coded.layer()).experts()[4].down();
      CHECK(up.format() == (type == 8 ? moe::WeightFormat::int8() : moe::WeightFormat::int4()));
      CHECK(down.format() == up.format());
      const std::string& ups = number == 0   ? bytes.at("blk.3.ffn_up_exps.weight")
                               : number == 1 ? bytes.at("blk.3.ffn_gate_up_exps.weight")
                                             : bytes.at("blk.3.ffn_up.4.weight");
      const std::size_t row = number == 0 ? 4 * 32 + 7 : number == 1 ? 4 * 64 + 32 + 7 : 7;
      const std::size_t block = (row * 2 + 1) * each;
      const unsigned expected = type == 8 ? byte_of(ups, block + 3) : (byte_of(ups, block + 3) % 16 + 8) % 16;
      CHECK(up.code(32 + 7, 33) == expected);
      const auto scale = static_cast<std::uint16_t>(byte_of(ups, block) | byte_of(ups, block + 1) << 8);
      CHECK(test::same_bits(up.scale(32 + 7, 1), moe::detail::half_to_float(scale)));
    }
}

TEST_CASE("load_quantised_block: MXFP4 of a GGUF file of GPT-OSS are the codes of its safetensors file", "[io]") {
  const MoeConfig config = test::config_of("gpt_oss", 64, 32);
  moe::MoeBlock floats = test::random_block(config);
  const test::TemporaryDirectory directory;
  std::mt19937 engine(12);
  constexpr std::size_t kEach = 17;
  GgufFile file = file_of({"gpt-oss", "gpt_oss"}, floats, moe::kGgufFormats.front());
  std::map<std::string, std::string> bytes;  // by the part of the name between "ffn_" and "_exps"
  std::vector<test::Tensor> others;
  for (test::GgufTensor& tensor : file.tensors) {
    if (!tensor.name.ends_with("_exps.weight")) continue;
    tensor.type = 39;
    tensor.bytes = random_blocks(tensor.bytes.size() / 4 / 32, kEach, engine);
    bytes[tensor.name.substr(10, tensor.name.find("_exps") - 10)] = tensor.bytes;
  }
  test::write_bytes(directory / "x.gguf", file.bytes());
  // The file of Hugging Face: pairs of neighbours in a byte, gates and ups in turns, scales apart.
  std::map<std::string, std::pair<std::string, std::string>> parts;
  const auto repack = [&](const std::string& name, const std::string& blocks, std::size_t first, std::size_t count) {
    for (std::size_t b = first; b < first + count; ++b) {
      parts[name].second += blocks[b * kEach];
      for (std::size_t i = 0; i < 16; ++i) {
        const auto code = [&](std::size_t k) { return byte_of(blocks, b * kEach + 1 + k % 16) >> (k / 16 * 4) & 15u; };
        parts[name].first += static_cast<char>(code(2 * i) | code(2 * i + 1) << 4);
      }
    }
  };
  for (std::size_t row = 0; row < 6 * 32; ++row)
    for (const char* side : {"gate", "up"}) repack("gate_up_proj", bytes.at(side), row * 2, 2);
  repack("down_proj", bytes.at("down"), 0, 6 * 64);
  moe::FamilyFormat format = moe::find_family("gpt_oss")->formats.front();
  test::save_block(directory / "floats.safetensors", floats, format, 3);
  const moe::SafetensorsReader reader(directory / "floats.safetensors");
  for (const auto& [name, info] : reader.tensors()) {
    const auto view = reader.view(name);
    const std::string stored(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
    const std::string last = name.substr(name.rfind('.') + 1);
    if (!parts.contains(last)) {
      others.push_back({name, info.dtype, info.shape, stored});
      continue;
    }
    const bool is_down = last == "down_proj";
    std::vector<Index> shape{6, 64, is_down ? 1 : 2};
    others.push_back({name + "_scales", moe::Dtype::U8, shape, parts[last].second});
    shape.push_back(16);
    others.push_back({name + "_blocks", moe::Dtype::U8, shape, parts[last].first});
  }
  test::write_tensors(directory / "x.safetensors", others);

  const moe::LoadOptions options{.layer = 3};
  const auto from_gguf = moe::Checkpoint::open(directory / "x.gguf");
  const auto from_safetensors = moe::Checkpoint::open(directory / "x.safetensors");
  int count = 0;
  const auto coded = moe::load_quantised_block(from_gguf, config, options);
  CHECK(test::same_codes(coded, moe::load_quantised_block(from_safetensors, config, options), count));
  CHECK(count == 12);
  CHECK(std::get<5>(coded.layer()).experts()[0].down().format() == moe::WeightFormat::mxfp4());
  const moe::MoeBlock block = moe::load_moe_block(from_gguf, config, options);
  CHECK(test::same_parameters(block, moe::load_moe_block(from_safetensors, config, options)));
  CHECK(test::same_bits(test::output_of(coded), test::output_of(block)));
}

TEST_CASE("load_quantised_block: K-quants are rounded to a format, and refused without one", "[io]") {
  const MoeConfig config = test::config_of("qwen3_moe", 256, 256);
  moe::MoeBlock floats = test::random_block(config);
  const test::TemporaryDirectory directory;
  GgufFile file = file_of({"qwen3moe", "qwen3_moe"}, floats, moe::kGgufFormats.front());
  for (test::GgufTensor& tensor : file.tensors) {
    if (!tensor.name.ends_with("_exps.weight")) continue;
    const bool is_down = test::contains(tensor.name, "down");  // a mixture, as files of Q4_K_M are
    const std::size_t blocks = tensor.bytes.size() / 4 / 256, each = is_down ? 210 : 144;
    tensor.type = is_down ? 14 : 12;
    tensor.bytes.assign(blocks * each, '\0');
    for (std::size_t i = 0; i < tensor.bytes.size(); ++i) tensor.bytes[i] = static_cast<char>(i * 91 % 251);
    for (std::size_t b = 0; b < blocks; ++b)
      for (const std::size_t place : is_down ? std::vector<std::size_t>{208} : std::vector<std::size_t>{0, 2})
        tensor.bytes.replace(b * each + place, 2, test::raw<std::uint16_t>(0x1400 + static_cast<std::uint16_t>(b)));
  }
  test::write_bytes(directory / "x.gguf", file.bytes());
  const auto checkpoint = moe::Checkpoint::open(directory / "x.gguf");
  const moe::MoeBlock block = moe::load_moe_block(checkpoint, config, {.layer = 3});
  const auto& tensor = *std::ranges::find(file.tensors, "blk.3.ffn_down_exps.weight", &test::GgufTensor::name);
  std::vector<float> row(256);
  moe::decode_gguf(*moe::find_gguf_block("Q6_K"), std::as_bytes(std::span(tensor.bytes)), (2 * 256 + 5) * 256, row);
  for (Index i = 0; i < 256; ++i)
    CHECK(std::get<0>(block.layer()).experts()[2].down()(5, i) == row[static_cast<std::size_t>(i)]);
  const auto rounded = moe::load_quantised_block(checkpoint, config, {.layer = 3, .format = moe::WeightFormat::int8()});
  int count = 0;
  CHECK(test::same_codes(rounded, moe::quantise(block, moe::WeightFormat::int8()), count));
  CHECK(test::contains(
      test::message_of([&] { moe::load_quantised_block(checkpoint, config, {.layer = 3}); }),
      "is stored as Q4_K, which no format of few bits holds as it is; expected a format to round it to"));
}
