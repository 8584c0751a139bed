// SPDX-License-Identifier: MIT
// Blocks of published families written to directories of models, read back by the library and by plain loops.
#include "moe/io/block/save_block.hpp"

#include "io/family_blocks.hpp"
#include "io/model_directory.hpp"
#include "io/patterns.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"

using moe::Checkpoint;
using moe::Dtype;
using moe::FamilyFormat;
using moe::Index;
using moe::MoeBlock;
using moe::MoeConfig;
using moe::SaveOptions;
using moe::take_experts;
using test::contains;
using test::message_of;
using test::ModelDirectory;
using test::PlainDirectory;
using test::TemporaryDirectory;
using Path = std::filesystem::path;
using Ids = std::vector<Index>;
using Json = nlohmann::json;

namespace {

constexpr Index kLayer = 1;

template <class B>
concept CanBeSaved = requires(const B& block) { moe::save_moe_block("x", block); };
static_assert(CanBeSaved<MoeBlock> && !CanBeSaved<moe::QuantisedMoeBlock>);

/// Calls f(model type, config, format) for every format of every family.
template <class F>
void for_each_format(const F& f) {
  for (const auto& [model_type, text] : test::family_configs()) {
    MoeConfig config = test::config_of(model_type);
    for (const FamilyFormat& format : moe::find_family(config.family)->formats) {
      if (config.family == "switch")
        config.expert = format.gate.empty() ? moe::ExpertKind::ReluPlain : moe::ExpertKind::GeluGated;
      f(model_type, config, format);
    }
  }
}

/// A block of every bit pattern. Selection biases are floats, as in files.
MoeBlock pattern_block(const MoeConfig& config) {
  MoeBlock block(config);
  test::fill_with_patterns(block);
  moe::visit_all(
      [](const std::string& name, auto& leaf) {
        if (!name.ends_with("selection_bias")) return;
        for (auto& value : moe::parameter_span(leaf)) value = static_cast<float>(value);
      },
      block);
  return block;
}

Json json_of(const Path& directory) { return Json::parse(test::read_bytes(directory / "config.json")); }
MoeConfig config_of(const Path& directory, Index layer = kLayer) {
  return moe::read_moe_config(directory / "config.json", layer);
}
MoeBlock read_back(const Path& directory, Index layer = kLayer) {
  return moe::load_moe_block(Checkpoint::open(directory), config_of(directory, layer), {.layer = layer});
}
std::string bytes_of(const Checkpoint& checkpoint, const std::string& name) {
  const auto bytes = checkpoint.at(name).bytes;
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A directory with one block in F32, a tensor that is none of it, and a config.json as its models have it.
void write_source(const Path& path, const std::string& model_type, MoeBlock& block, const FamilyFormat& format) {
  std::filesystem::create_directory(path);
  test::save_block(path / "model.safetensors", block, format, kLayer, {.add = "lm_head.weight"});
  Json json = Json::parse(test::config_text(model_type));
  json["my_field"] = {{"a", nullptr}, {"b", {1, 2.5}}};
  test::write_bytes(path / "config.json", json.dump());
}

/// What config.json is to say of 4 experts out of 6 (and one of four without weights), by the names that models use.
Json pruned_json(Json json) {
  for (Json* part : {&json, json.contains("text_config") ? &json["text_config"] : nullptr,
                     json.contains("ffn_config") ? &json["ffn_config"] : nullptr}) {
    if (!part) continue;
    for (const char* name : {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"})
      if (part->contains(name)) (*part)[name] = 4;
    for (const char* name : {"n_group", "num_expert_group"})
      if (part->contains(name) && (*part)[name] == 3) (*part)[name] = 2;
    if (part->contains("zero_expert_num")) (*part)["zero_expert_num"] = 1;
    const char* share = "moe_eval_capacity_token_fraction";  // of the tokens, which an expert may serve: .5 * 6 / 4
    if (part->contains(share)) (*part)[share] = 0.75;
  }
  return json;
}

using GluLayer = moe::detail::GluLayer<moe::F32>;
using ClampedLayer = moe::detail::LayerOf<moe::TopKGate, moe::ClampedGlu>;

/// Element `i` of an F32 tensor.
float value_of(const test::PlainFile& file, const std::string& name, std::size_t i) {
  float value = 0;
  std::memcpy(&value, file.tensors.at(name).bytes.data() + 4 * i, 4);
  return value;
}
using Shape = std::vector<std::size_t>;

}  // namespace

TEST_CASE("save_moe_block: a block alone comes back bit for bit, in every format of every family", "[io]") {
  for_each_format([](const std::string& model_type, const MoeConfig& config, const FamilyFormat& format) {
    CAPTURE(model_type, format.prefix, format.router);
    const TemporaryDirectory directory;
    const MoeBlock block = pattern_block(config);
    const auto written = moe::save_moe_block(directory / "out", block, {.layer = kLayer, .format = format});
    CHECK(written.files == std::vector<std::string>{"config.json", "model.safetensors"});
    CHECK(directory.num_files() == 1);
    CHECK(moe::detail::ConfigFacts(config_of(directory / "out")) == moe::detail::ConfigFacts(config));
    const auto checkpoint = Checkpoint::open(directory / "out");
    CHECK(checkpoint.ignored().empty());
    CHECK(moe::moe_layers(checkpoint, config.family) == Ids{kLayer});
    CHECK(moe::find_block(checkpoint, config, {.layer = kLayer}).format.prefix == format.prefix);
    CHECK(test::same_parameters(read_back(directory / "out"), block));
  });
}

TEST_CASE("save_moe_block: saved into its own model, nothing changes, byte for byte", "[io]") {
  for_each_format([](const std::string& model_type, const MoeConfig& config, const FamilyFormat& format) {
    if (config.expert != test::config_of(model_type).expert) return;
    CAPTURE(model_type, format.prefix, format.router);
    const TemporaryDirectory directory;
    MoeBlock block = pattern_block(config);
    write_source(directory / "model", model_type, block, format);
    moe::save_moe_block(directory / "out", block, {.like = directory / "model", .layer = kLayer});
    CHECK(json_of(directory / "out") == json_of(directory / "model"));
    const auto before = Checkpoint::open(directory / "model"), after = Checkpoint::open(directory / "out");
    REQUIRE(after.names() == before.names());
    for (const std::string& name : before.names()) {
      CAPTURE(name);
      CHECK(after.at(name).dtype == before.at(name).dtype);
      CHECK(after.at(name).shape == before.at(name).shape);
      CHECK(bytes_of(after, name) == bytes_of(before, name));
    }
  });
}

TEST_CASE("save_moe_block: config.json says that there are fewer experts, and nothing else", "[io]") {
  for (const auto& [model_type, text] : test::family_configs()) {
    CAPTURE(model_type);
    const TemporaryDirectory directory;
    MoeBlock block = test::random_block(test::config_of(model_type));
    write_source(directory / "model", model_type, block, moe::find_family(block.config().family)->formats.front());
    Ids ids = {4, 5, 0, 1};
    if (block.config().num_identity_experts != 0) ids.push_back(7);
    const MoeBlock taken = take_experts(block, ids);
    moe::save_moe_block(directory / "out", taken, {.like = directory / "model", .layer = kLayer});
    CHECK(json_of(directory / "out") == pruned_json(json_of(directory / "model")));
    CHECK(moe::detail::ConfigFacts(config_of(directory / "out")) == moe::detail::ConfigFacts(taken.config()));
    CHECK(test::same_parameters(read_back(directory / "out"), taken));
    CHECK(Checkpoint::open(directory / "out").contains("lm_head.weight"));
    moe::save_moe_block(directory / "alone", taken, {.layer = kLayer});
    CHECK(test::same_parameters(read_back(directory / "alone"), taken));
  }
}

TEST_CASE("save_moe_block: fields of config.json that other programs read follow", "[io]") {
  const TemporaryDirectory directory;
  MoeBlock block = test::random_block(test::config_of("gpt_oss"));
  write_source(directory / "model", "gpt_oss", block, moe::find_family("gpt_oss")->formats.front());
  Json json = json_of(directory / "model");  // as it is published, and as it might be
  json["experts_per_token"] = 2, json["num_experts"] = 6, json["n_routed_experts"] = 6, json["num_heads"] = 6;
  test::write_bytes(directory / "model" / "config.json", json.dump());
  MoeBlock taken = take_experts(block, {0, 1, 2});
  std::get<ClampedLayer>(taken.layer()).gate().k = 1;
  moe::save_moe_block(directory / "out", taken, {.like = directory / "model", .layer = kLayer});
  for (const char* name : {"num_local_experts", "num_experts", "n_routed_experts"}) json[name] = 3;
  for (const char* name : {"num_experts_per_tok", "experts_per_token"}) json[name] = 1;
  CHECK(json_of(directory / "out") == json);
}

TEST_CASE("save_moe_block: a plain reader finds the weights where the formats have them", "[io]") {
  const auto saved = [](const std::string& model_type, const MoeBlock& block) {
    const TemporaryDirectory directory;
    moe::save_moe_block(directory / "out", block);
    CHECK(json_of(directory / "out").at("model_type") == model_type);
    return test::read_plainly(test::read_bytes(directory / "out" / "model.safetensors"));
  };
  constexpr std::size_t kDim = 12, kHidden = 8, kExperts = 6;
  const MoeBlock mixtral = test::random_block(test::config_of("mixtral"), 2);
  const MoeBlock dbrx = test::random_block(test::config_of("dbrx"), 2);
  const MoeBlock gpt_oss = test::random_block(test::config_of("gpt_oss"), 2);
  const test::PlainFile of_mixtral = saved("mixtral", mixtral), of_dbrx = saved("dbrx", dbrx),
                        of_gpt_oss = saved("gpt_oss", gpt_oss);
  CHECK(of_mixtral.tensors.size() == 1 + 3 * kExperts);
  CHECK(of_dbrx.tensors.size() == 4);
  CHECK(of_gpt_oss.tensors.size() == 6);
  const std::string sparse = "model.layers.0.block_sparse_moe.", ffn = "transformer.blocks.0.ffn.",
                    mlp = "model.layers.0.mlp.";
  CHECK(of_mixtral.tensors.at(sparse + "gate.weight").shape == Shape{kExperts, kDim});
  CHECK(of_mixtral.tensors.at(sparse + "experts.5.w2.weight").shape == Shape{kDim, kHidden});
  CHECK(of_dbrx.tensors.at(ffn + "experts.mlp.w2").shape == Shape{kExperts * kHidden, kDim});
  CHECK(of_gpt_oss.tensors.at(mlp + "experts.gate_up_proj").shape == Shape{kExperts, kDim, 2 * kHidden});
  CHECK(of_gpt_oss.tensors.at(mlp + "experts.gate_up_proj_bias").shape == Shape{kExperts, 2 * kHidden});
  const auto& glu = std::get<GluLayer>(mixtral.layer()).experts();
  const auto& stacked = std::get<GluLayer>(dbrx.layer()).experts();
  const auto& clamped = std::get<ClampedLayer>(gpt_oss.layer()).experts();
  bool same = true;
  for (std::size_t e = 0; e < kExperts; ++e)
    for (std::size_t h = 0; h < kHidden; ++h)
      for (std::size_t d = 0; d < kDim; ++d) {
        const auto expert = static_cast<Index>(e), i = static_cast<Index>(d), o = static_cast<Index>(h);
        const Index up = o + static_cast<Index>(kHidden);
        const std::string name = sparse + "experts." + std::to_string(e) + ".";
        same &= value_of(of_mixtral, name + "w1.weight", h * kDim + d) == glu[expert].gate_up()(o, i);
        same &= value_of(of_mixtral, name + "w3.weight", h * kDim + d) == glu[expert].gate_up()(up, i);
        same &= value_of(of_mixtral, name + "w2.weight", d * kHidden + h) == glu[expert].down()(i, o);
        const std::size_t row = (e * kHidden + h) * kDim + d;
        same &= value_of(of_dbrx, ffn + "experts.mlp.w1", row) == stacked[expert].gate_up()(o, i);
        same &= value_of(of_dbrx, ffn + "experts.mlp.v1", row) == stacked[expert].gate_up()(up, i);
        same &= value_of(of_dbrx, ffn + "experts.mlp.w2", row) == stacked[expert].down()(i, o);
        const std::size_t pair = (e * kDim + d) * 2 * kHidden + 2 * h;
        same &= value_of(of_gpt_oss, mlp + "experts.gate_up_proj", pair) == clamped[expert].gate_up()(o, i);
        same &= value_of(of_gpt_oss, mlp + "experts.gate_up_proj", pair + 1) == clamped[expert].gate_up()(up, i);
        same &= value_of(of_gpt_oss, mlp + "experts.down_proj", row) == clamped[expert].down()(i, o);
        const std::size_t bias = e * 2 * kHidden + 2 * h;
        same &=
            value_of(of_gpt_oss, mlp + "experts.gate_up_proj_bias", bias + 1) == clamped[expert].gate_up_bias()(up, 0);
      }
  CHECK(same);
}

TEST_CASE("save_moe_block: tensors have the types of their model, or the one that is asked for", "[io]") {
  const ModelDirectory model("deepseek_v3", {75, 42});  // BF16, biases F32
  const MoeBlock block = read_back(model.path());
  const std::string prefix = "model.layers.1.mlp.", bias = prefix + "gate.e_score_correction_bias";
  const PlainDirectory before(model.path());
  moe::save_moe_block(model.other("same"), block, {.like = model.path(), .layer = kLayer});
  const PlainDirectory same(model.other("same"));
  REQUIRE(same.tensors.size() == before.tensors.size());
  for (const auto& [name, tensor] : before.tensors) {
    CAPTURE(name);
    CHECK(same.tensors.at(name).dtype == tensor.dtype);
    CHECK(same.tensors.at(name).bytes == tensor.bytes);
  }
  CHECK(same.config == before.config);
  CHECK(same.files.contains("tokenizer.json"));

  moe::save_moe_block(model.other("f16"), block, {.like = model.path(), .layer = kLayer, .dtype = Dtype::F16});
  const PlainDirectory half(model.other("f16"));
  for (const auto& [name, tensor] : before.tensors) {
    CAPTURE(name);
    const bool changes = name.starts_with(prefix) && name != bias;
    CHECK(half.tensors.at(name).dtype == (changes ? "F16" : tensor.dtype));
    for (std::size_t i = 0; changes && i < 40; ++i)  // BF16 has fewer digits
      CHECK(half.number(name, i) == before.number(name, i));
  }
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16, Dtype::F64}) {
    const std::string name(moe::dtype_name(dtype));
    moe::save_moe_block(model.other(name), block, {.layer = kLayer, .dtype = dtype});
    const auto alone = Checkpoint::open(model.other(name));
    CHECK(alone.at(prefix + "gate.weight").dtype == dtype);
    CHECK(alone.at(bias).dtype == Dtype::F32);
    CHECK(test::same_parameters(read_back(model.other(name)), block));
  }
  CHECK(json_of(model.other("F16")).at("torch_dtype") == "float16");
}

TEST_CASE("save_moe_block: other layers, attention and other files can be left", "[io]") {
  const ModelDirectory model("qwen2_moe");
  const MoeBlock block = take_experts(read_back(model.path()), {5, 0, 3});
  moe::save_moe_block(model.other("out"), block,
                      {.like = model.path(), .layer = kLayer, .others = moe::OtherTensors::Leave});
  const PlainDirectory after(model.other("out"));
  for (const auto& [name, tensor] : after.tensors) CHECK(name.starts_with("model.layers.1.mlp."));
  CHECK(after.tensors.size() == 1 + 3 * 3 + 3 + 1);
  CHECK(!after.files.contains("tokenizer.json"));
  Json expected = json_of(model.path());
  expected["num_experts"] = 3;
  CHECK(after.config == expected);
  CHECK(test::same_parameters(read_back(model.other("out")), block));
}

TEST_CASE("save_moe_blocks: a whole model with fewer experts", "[io]") {
  const ModelDirectory model("mixtral", {64, 32}, 1);  // stacked
  const auto source = Checkpoint::open(model.path());
  const std::vector<Ids> kept = {{0, 2, 5}, {1, 3, 4}};
  const MoeConfig config = moe::QuantisedMoeBlock(model.config()).take(kept[0]).config();
  std::vector<moe::BlockToSave> blocks;
  int made = 0;
  for (const Index layer : {0, 1})
    blocks.push_back({layer, "", config, [&, layer] {
                        ++made;
                        return take_experts(read_back(model.path(), layer), kept[static_cast<std::size_t>(layer)]);
                      }});
  moe::save_moe_blocks(model.other("out"), blocks, {.like = model.path()});
  CHECK(made == 2);
  for (const Index layer : {0, 1})
    CHECK(test::same_parameters(read_back(model.other("out"), layer), blocks[static_cast<std::size_t>(layer)].make()));
  const PlainDirectory before(model.path()), after(model.other("out"));
  CHECK(after.tensors.size() == before.tensors.size());
  for (const auto& [name, tensor] : before.tensors)
    if (!contains(name, ".mlp.")) CHECK(after.tensors.at(name).bytes == tensor.bytes);
  Json expected = json_of(model.path());
  expected["num_local_experts"] = 3;
  CHECK(after.config == expected);
}

TEST_CASE("save_moe_block: layers of different sizes are a list, or refused where there is none", "[io][error]") {
  const TemporaryDirectory directory;
  const auto save_layers = [&](const std::string& model_type) {
    std::vector<moe::BlockToSave> blocks;
    for (const Index layer : {0, 1, 2})
      blocks.push_back({layer, "", test::config_of(model_type), [=] {
                          return test::random_block(test::config_of(model_type), static_cast<std::uint64_t>(layer));
                        }});
    moe::save_moe_blocks(directory / model_type, blocks);
    Json json = json_of(directory / model_type);
    json["num_hidden_layers"] = 3;
    test::write_bytes(directory / model_type / "config.json", json.dump());
    return take_experts(blocks[kLayer].make(), {5, 4, 3, 2});
  };
  const MoeBlock hunyuan = save_layers("hunyuan_v1_moe");
  moe::save_moe_block(directory / "list", hunyuan, {.like = directory / "hunyuan_v1_moe", .layer = kLayer});
  Json expected = json_of(directory / "hunyuan_v1_moe");
  expected["num_experts"] = {6, 4, 6};
  CHECK(json_of(directory / "list") == expected);
  CHECK(test::same_parameters(read_back(directory / "list"), hunyuan));
  CHECK(test::same_parameters(read_back(directory / "list", 2), read_back(directory / "hunyuan_v1_moe", 2)));

  const MoeBlock mixtral = save_layers("mixtral");
  const std::string message = message_of(
      [&] { moe::save_moe_block(directory / "out", mixtral, {.like = directory / "mixtral", .layer = kLayer}); });
  CHECK(message ==
        "moe::save_moe_block: config.json of family 'mixtral' cannot say it: layer 0 has num_experts = 6, which would "
        "be read as 4. Most families have one number for all layers");
  CHECK(directory.num_files() == 3);
}

TEST_CASE("save_moe_block: what a family cannot say is refused", "[io][error]") {
  const TemporaryDirectory directory;
  const auto complaint = [&](const MoeBlock& block, const SaveOptions& options = {}) {
    const std::string message = message_of([&] { moe::save_moe_block(directory / "out", block, options); });
    CHECK(directory.num_files() == 0);
    return message;
  };
  MoeBlock mixtral(test::config_of("mixtral"));
  auto& gate = std::get<GluLayer>(mixtral.layer()).gate();
  gate.scale = 2.5;
  CHECK(complaint(mixtral) ==
        "moe::save_moe_block: config.json of family 'mixtral' cannot say it: layer 0 has gate.scale = 2.5, which would "
        "be read as 1");
  gate = {.weight_bias = Eigen::RowVectorXd::Zero(6)};
  CHECK(contains(complaint(mixtral), "gate.weight_bias.size() = 6, which would be read as 0"));
  gate = {.k = 3};  // a number that there is a field for
  CHECK(contains(complaint(mixtral, {.dtype = Dtype::I32}), "dtype is I32, expected F32"));
  CHECK(contains(complaint(mixtral, {.layer = -1}), "layer is -1"));
  CHECK(contains(complaint(mixtral, {.format = moe::find_family("nllb_moe")->formats[0]}), "format without gates"));
  MoeConfig config = test::config_of("deepseek_v3");
  config.shared_dim = 10;
  CHECK(contains(complaint(MoeBlock(config)), "shared_dim = 10, which would be read as 8"));
  config = test::config_of("llama4");
  config.shared_dim = 10;
  CHECK(contains(complaint(MoeBlock(config)), "shared_dim = 10, which would be read as 8"));
  config = test::config_of("mixtral");
  config.family = "my_moe";
  CHECK(contains(complaint(MoeBlock(config)), "family 'my_moe' is not known"));
  config.family = "minimax_m2";  // scores by a sigmoid, with a bias
  CHECK(contains(complaint(MoeBlock(config)), "layer 0 has selection_bias = false, which would be read as true"));
  MoeBlock large(test::config_of("mixtral"));
  std::get<GluLayer>(large.layer()).router().weight().set(2, 3, 65520.0f);
  CHECK(contains(complaint(large, {.dtype = Dtype::F16}), "gate.weight' holds 65520, which is too large for F16"));
  std::get<GluLayer>(large.layer()).router().weight().set(2, 3, 65519.0f);
  moe::save_moe_block(directory / "out", large, {.dtype = Dtype::F16});
  CHECK(read_back(directory / "out", 0).router().weight()(2, 3) == 65504.0f);
  moe::save_moe_block(directory / "other", mixtral);
  CHECK(config_of(directory / "other").gate.k == 3);
}

TEST_CASE("save_moe_block: places and models that do not fit are refused, and nothing is left", "[io][error]") {
  const ModelDirectory model("mixtral");
  const MoeBlock block = read_back(model.path());
  const Path out = model.other("out");
  const SaveOptions like{.like = model.path(), .layer = kLayer};
  const auto refused = [&](const MoeBlock& other, const SaveOptions& options) {
    const std::string message = message_of([&] { moe::save_moe_block(out, other, options); });
    CHECK(!std::filesystem::exists(out));
    return message;
  };
  const auto broken = [&](const Path& to, const SaveOptions& options) {
    return message_of<std::runtime_error>([&] { moe::save_moe_block(to, block, options); });
  };
  CHECK(contains(refused(test::random_block(test::config_of("olmoe")), like), "is of family 'mixtral'"));
  MoeConfig config = model.config();
  config.model_dim += 1;
  CHECK(contains(refused(MoeBlock(config), like), "model_dim of layer 1 is 65, expected 64"));
  SaveOptions wrong = like;
  wrong.format = model.format();
  CHECK(contains(refused(block, wrong), "expected one of the two"));
  wrong = like;
  wrong.layer = 2;
  CHECK(contains(broken(out, wrong), "model.layers.2"));
  wrong.like = model.other("none");
  CHECK(contains(broken(out, wrong), "none"));
  CHECK(contains(broken(model.path(), {}), "is there already"));
  CHECK(contains(broken(model.other("no") / "where", {}), "cannot make a directory"));

  CHECK(contains(message_of([&] { moe::save_moe_block(model.path() / "in", block, like); }), "is in, or holds"));

  const auto make = [&] { return block; };
  const auto blocks_refused = [&](const std::vector<moe::BlockToSave>& blocks) {
    const std::string message = message_of([&] { moe::save_moe_blocks(out, blocks, like); });
    CHECK(!std::filesystem::exists(out));
    return message;
  };
  CHECK(contains(blocks_refused({}), "no block"));
  CHECK(contains(blocks_refused({{0, "", model.config()}}), "nothing makes the block of layer 0"));
  CHECK(contains(blocks_refused({{0, "", model.config(), make}, {0, "", model.config(), make}}), "two blocks at"));
  CHECK(contains(blocks_refused({{0, "", model.config(),
                                  [&] {
                                    return take_experts(block, {0, 1, 2});
                                  }}}),
                 "the block of layer 0 has num_experts = 3, expected 6"));
  CHECK_THROWS_AS(
      moe::save_moe_blocks(out, {{0, "", model.config(), []() -> MoeBlock { throw std::bad_alloc(); }}}, like),
      std::bad_alloc);
  CHECK(!std::filesystem::exists(out));

  const TemporaryDirectory directory;
  MoeBlock jamba = test::random_block(test::config_of("jamba"));
  write_source(directory / "jamba", "jamba", jamba, moe::find_family("jamba")->formats.front());
  config = test::config_of("jamba");
  config.hidden_dim = 9;
  CHECK(contains(refused(MoeBlock(config), {.like = directory / "jamba", .layer = kLayer}), "hidden_dim of layer 1"));
}

TEST_CASE("save_moe_block: a model in few bits gives way to floats", "[io]") {
  const ModelDirectory model("gpt_oss", {96, 64});
  const Path coded = model.other("coded"), out = model.other("out"), all = model.other("all");
  moe::quantise_checkpoint(model.path(), coded, *moe::weight_writer(moe::WeightFormat::mxfp4(), "gpt_oss"));
  const MoeBlock block = read_back(coded);
  const std::string message = message_of([&] { moe::save_moe_block(out, block, {.like = coded, .layer = kLayer}); });
  CHECK(contains(message, "and no part of the block, expected a model of floats"));
  moe::save_moe_block(out, block, {.like = coded, .layer = kLayer, .others = moe::OtherTensors::Leave});
  CHECK(test::same_parameters(read_back(out), block));  // numbers of MXFP4 are numbers of BF16
  CHECK(json_of(out) == json_of(model.path()));
  std::vector<moe::BlockToSave> blocks;
  for (const Index layer : {0, 1})
    blocks.push_back({layer, "", model.config(), [&, layer] { return read_back(coded, layer); }});
  moe::save_moe_blocks(all, blocks, {.like = coded});
  CHECK(json_of(all) == json_of(model.path()));
  for (const Index layer : {0, 1}) CHECK(test::same_parameters(read_back(all, layer), read_back(coded, layer)));

  const ModelDirectory fp8("deepseek_v3", {75, 42});
  moe::quantise_checkpoint(fp8.path(), fp8.other("coded"), *moe::weight_writer(moe::WeightFormat::fp8()));
  moe::save_moe_block(fp8.other("out"), read_back(fp8.other("coded")),
                      {.like = fp8.other("coded"), .layer = kLayer, .source = moe::CodedSource::Decode});
  const PlainDirectory before(fp8.path()), after(fp8.other("out"));
  CHECK(after.tensors.size() == before.tensors.size());
  CHECK(after.config == before.config);
  for (const auto& [name, tensor] : before.tensors) CHECK(after.tensors.at(name).dtype == tensor.dtype);
}
