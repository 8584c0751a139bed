// SPDX-License-Identifier: MIT
// Directories of models written with their experts in few bits, read back by the library and by plain loops.
#include "moe/io/block/quantise_checkpoint.hpp"

#include "io/model_directory.hpp"
#include "moe/compress/bit_plan.hpp"
#include "moe/io/block/quantise_block.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"
#include "support/thread_executor.hpp"

namespace {

using moe::Index;
using moe::ScaleType;
using moe::WeightFormat;
using moe::WeightWriter;
using test::contains;
using test::message_of;
using test::ModelDirectory;
using test::PlainDirectory;

using Writer = std::unique_ptr<const WeightWriter>;

/// A family, the format of its files, sizes, and a layout.
struct Case {
  const char* family;
  std::size_t format;
  ModelDirectory::Sizes sizes;
  WeightFormat weights;
};
const Case kCases[] = {
    {"mixtral", 0, {64, 96}, WeightFormat::int4()},
    {"mixtral", 0, {96, 64}, WeightFormat::int4(32, ScaleType::Bf16).with_zero_points()},
    {"mixtral", 1, {64, 40}, WeightFormat::int4(0, ScaleType::F32)},  // stacked, taken apart
    {"qwen2_moe", 0, {75, 41}, WeightFormat::int4(0)},                // words that codes do not fill
    {"qwen2_moe", 1, {64, 96}, WeightFormat::int8(32).with_zero_points()},
    {"deepseek_v3", 0, {75, 42}, WeightFormat::int8(0, ScaleType::Bf16)},
    {"deepseek_v3", 0, {140, 150}, WeightFormat::fp8()},
    {"mixtral", 0, {256, 128}, WeightFormat::fp8()},
    {"granitemoe", 0, {140, 128}, WeightFormat::fp8()},  // stays stacked
    {"nemotron_h", 0, {64, 40}, WeightFormat::fp8(0, ScaleType::Bf16)},
    {"qwen2_moe", 0, {60, 40}, WeightFormat::fp8(0)},
    {"deepseek_v3", 1, {64, 32}, WeightFormat::mxfp4()},
    {"gpt_oss", 0, {96, 64}, WeightFormat::mxfp4()},
};

/// What rounding the floats of the source gives.
moe::QuantisedMoeBlock expected_block(const std::filesystem::path& source, const WeightWriter& writer, Index layer) {
  const auto config = moe::read_moe_config(source / "config.json", layer);
  const auto floats = moe::load_moe_block(moe::Checkpoint::open(source), config, {.layer = layer});
  return moe::quantise(floats, writer.format(), [&](const moe::PanelMatrix<moe::F32>& weights, const WeightFormat&) {
    return writer.round(weights);
  });
}
moe::QuantisedMoeBlock read_back(const std::filesystem::path& path, Index layer) {
  return moe::load_quantised_block(moe::Checkpoint::open(path), moe::read_moe_config(path / "config.json", layer),
                                   {.layer = layer});
}

/// Tensors of the source that the other directory has with the same bytes; fails for others that it has otherwise.
std::size_t count_kept(const PlainDirectory& before, const PlainDirectory& after) {
  std::size_t kept = 0;
  for (const auto& [name, tensor] : before.tensors) {
    const auto found = after.tensors.find(name);
    if (found == after.tensors.end() || found->second.dtype == "F8_E4M3") continue;
    CAPTURE(name);
    REQUIRE(found->second.dtype == tensor.dtype);
    REQUIRE(found->second.shape == tensor.shape);
    REQUIRE(found->second.bytes == tensor.bytes);
    ++kept;
  }
  return kept;
}

std::string complaint(const ModelDirectory& model, const std::filesystem::path& to, const WeightWriter& writer,
                      const moe::QuantiseOptions& options = {}) {
  try {
    (void)moe::quantise_checkpoint(model.path(), to, writer, options);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("quantise_checkpoint: every layout has the codes and scales of the block, bit for bit", "[io]") {
  for (const Case& c : kCases) {
    CAPTURE(c.family, c.format, c.weights.name());
    const ModelDirectory model(c.family, c.sizes, c.format);
    const Writer writer = moe::weight_writer(c.weights, c.family);
    const auto written = moe::quantise_checkpoint(model.path(), model.other("out"), *writer);
    REQUIRE(written.layers.size() == 2);
    for (const moe::QuantisedLayer& layer : written.layers) {
      int count = 0;
      const auto expected = expected_block(model.path(), *writer, layer.layer);
      CHECK(test::same_codes(read_back(model.other("out"), layer.layer), expected, count));
      CHECK(count >= 12);
      CHECK(layer.bytes_after < layer.bytes_before);
      CHECK(layer.error.relative() > 1e-4);
      CHECK(layer.error.relative() < 0.2);
    }
  }
}

TEST_CASE("quantise_checkpoint: plain loops over the bytes of the files give the decoded weights", "[io]") {
  for (const Case& c : kCases) {
    CAPTURE(c.family, c.format, c.weights.name());
    const ModelDirectory model(c.family, c.sizes, c.format);
    const Writer writer = moe::weight_writer(c.weights, c.family);
    (void)moe::quantise_checkpoint(model.path(), model.other("out"), *writer);
    const PlainDirectory plain(model.other("out"));
    auto floats = moe::dequantise(expected_block(model.path(), *writer, 1));
    const auto checkpoint = moe::Checkpoint::open(model.other("out"));
    const auto location = moe::find_block(checkpoint, floats.config(), {.layer = 1});
    std::size_t compared = 0, wrong = 0;
    for (const moe::BoundTensor& tensor : moe::bind_weights(floats, location)) {
      if (!moe::detail::is_quantisable(tensor, location)) continue;
      const auto columns = static_cast<std::size_t>(tensor.shape.back());
      const auto rows = static_cast<std::size_t>(*(tensor.shape.end() - 2));
      std::vector<float> values;
      Index size = 1;
      for (const Index extent : tensor.shape) size *= extent;
      values.resize(static_cast<std::size_t>(size));
      moe::read_bound(tensor, values);
      for (std::size_t i = 0; i < values.size(); ++i, ++compared)
        wrong += plain.weight(tensor.name, i / columns, rows, i % columns, columns) != values[i];
    }
    CHECK(wrong == 0);
    CHECK(compared >= static_cast<std::size_t>(2 * 6 * c.sizes.model_dim * c.sizes.hidden_dim));
  }
}

TEST_CASE("quantise_checkpoint: experts and matrices in bits of their own, as a plan says", "[io]") {
  struct MixedCase {
    const char* family;
    ModelDirectory::Sizes sizes;
    Index matrices, group;
  };
  for (const MixedCase& c :
       {MixedCase{"mixtral", {64, 96}, 1, 32}, {"mixtral", {75, 41}, 2, 0}, {"qwen2_moe", {72, 40}, 2, 8}}) {
    CAPTURE(c.family, c.matrices, c.group);
    const ModelDirectory model(c.family, c.sizes);
    const auto checkpoint = moe::Checkpoint::open(model.path());
    std::vector<moe::BitPlan> plans;  // of all numbers of bits, others in either layer
    std::map<std::string, WeightFormat> formats;
    for (const Index layer : {0, 1}) {
      moe::BitPlan& plan = plans.emplace_back(moe::BitPlan{.matrices = c.matrices, .shared = 4});
      for (Index i = 0; i < 6 * c.matrices; ++i) plan.bits.push_back(1 + (i + 6 * layer) % 8);
      const auto config = moe::read_moe_config(model.path() / "config.json", layer);
      moe::add_formats(checkpoint, config, {.layer = layer}, plan.integers(c.group), formats);
    }
    const moe::MixedIntsWriter writer(formats);
    const auto block_of = [&](Index layer) {
      const auto config = moe::read_moe_config(model.path() / "config.json", layer);
      const auto floats = moe::load_moe_block(checkpoint, config, {.layer = layer});
      return moe::quantise(floats, plans[static_cast<std::size_t>(layer)].integers(c.group));
    };
    CHECK(contains(complaint(model, model.other("none"), writer), "without options.quantiser"));
    const moe::QuantiseOptions options{.quantiser = [&](const auto&, const auto&, const moe::LoadOptions& load,
                                                        const WeightWriter&) { return block_of(load.layer); }};
    (void)moe::quantise_checkpoint(model.path(), model.other("out"), writer, options);
    const PlainDirectory before(model.path()), after(model.other("out"));
    CHECK(count_kept(before, after) >= 6);
    const auto written = moe::Checkpoint::open(model.other("out"));
    for (const Index layer : {0, 1}) {
      int count = 0;
      const auto expected = block_of(layer);
      CHECK(test::same_codes(read_back(model.other("out"), layer), expected, count));
      CHECK(count >= 12);
      auto floats = moe::dequantise(expected);
      const auto config = moe::read_moe_config(model.other("out") / "config.json", layer);
      CHECK(test::same_bits(test::output_of(moe::load_moe_block(written, config, {.layer = layer})),
                            test::output_of(floats)));
      const auto location = moe::find_block(written, config, {.layer = layer});
      std::size_t compared = 0, wrong = 0;
      for (const moe::BoundTensor& tensor : moe::bind_weights(floats, location)) {
        if (!moe::detail::is_quantisable(tensor, location)) continue;
        const auto rows = static_cast<std::size_t>(tensor.shape[0]),
                   columns = static_cast<std::size_t>(tensor.shape[1]);
        std::vector<float> values(rows * columns);
        moe::read_bound(tensor, values);
        for (std::size_t i = 0; i < values.size(); ++i, ++compared)
          wrong += after.weight(tensor.name, i / columns, rows, i % columns, columns) != values[i];
      }
      CHECK(wrong == 0);
      CHECK(compared >= static_cast<std::size_t>(3 * 6 * c.sizes.model_dim * c.sizes.hidden_dim));
    }
    const auto groups = after.config.at("quantization_config").at("config_groups");
    CHECK(groups.size() == 8);
    std::size_t targets = 0;
    for (int bits = 1; bits <= 8; ++bits) {
      const auto& group = groups.at("group_" + std::to_string(bits - 1));
      CHECK(group.at("weights").at("num_bits") == bits);
      CHECK(group.at("weights").at("symmetric") == (bits == 4 || bits == 8));
      targets += group.at("targets").size();
    }
    CHECK(targets == formats.size());
    // Decoded again, whatever the bits were.
    const Writer four = moe::weight_writer(WeightFormat::int4(c.group));
    (void)moe::quantise_checkpoint(model.other("out"), model.other("again"), *four,
                                   {.layers = {1}, .source = moe::CodedSource::Decode});
    const auto rounded = moe::dequantise(moe::quantise(moe::dequantise(block_of(0)), WeightFormat::bf16()));
    CHECK(test::same_bits(test::output_of(moe::dequantise(read_back(model.other("again"), 0))),
                          test::output_of(rounded)));
  }
}

TEST_CASE("quantise_checkpoint: all else keeps its bytes, and the configuration says what is stored how", "[io]") {
  for (const Case& c : kCases) {
    CAPTURE(c.family, c.format, c.weights.name());
    const ModelDirectory model(c.family, c.sizes, c.format);
    const Writer writer = moe::weight_writer(c.weights, c.family);
    const auto written = moe::quantise_checkpoint(model.path(), model.other("out"), *writer);
    const PlainDirectory before(model.path()), after(model.other("out"));
    CHECK(count_kept(before, after) >= 6);
    nlohmann::json config = after.config;
    const nlohmann::json statement = config.at("quantization_config");
    config.erase("quantization_config");
    CHECK(config == before.config);
    const std::string list = statement.contains("ignore") ? "ignore" : "modules_to_not_convert";
    const auto modules = statement.at(list).get<std::set<std::string>>();
    CHECK(modules.contains("lm_head"));
    CHECK(modules.contains("model.layers.1.self_attn.q_proj"));
    for (const std::string& module : modules) CHECK_FALSE(contains(module, "experts"));
    CHECK(after.files.at("tokenizer.json") == before.files.at("tokenizer.json"));
    CHECK(written.files.left_out == std::vector<std::string>{"original", "pytorch_model.bin"});
    CHECK(written.files.files.size() == after.files.size());
  }
}

TEST_CASE("quantise_checkpoint: a range of layers, and shared experts that are left", "[io]") {
  for (const char* format : {"int4", "fp8", "fp8-g0", "mxfp4"}) {
    CAPTURE(format);
    const ModelDirectory model("qwen2_moe", {64, 64});
    const Writer writer = moe::weight_writer(WeightFormat::named(format));
    moe::QuantiseOptions options{.layers = {1}, .shared = moe::SharedExperts::Leave};
    (void)moe::quantise_checkpoint(model.path(), model.other("out"), *writer, options);
    const PlainDirectory before(model.path()), after(model.other("out"));
    CHECK(count_kept(before, after) == before.tensors.size() - 3 * 6);
    const auto config = moe::read_moe_config(model.other("out") / "config.json");
    CHECK(config.quantisation.leaves_out("model.layers.0.mlp.experts.3.up_proj.weight"));
    CHECK_FALSE(config.quantisation.leaves_out("model.layers.1.mlp.experts.3.up_proj.weight"));
    CHECK(config.quantisation.leaves_out("model.layers.1.mlp.shared_expert.up_proj.weight"));
    const auto checkpoint = moe::Checkpoint::open(model.other("out"));
    const auto first = moe::load_quantised_block(checkpoint, config, {.layer = 0});
    const auto second = moe::load_quantised_block(checkpoint, config, {.layer = 1});
    std::map<std::string, int> formats[2];
    const auto note = [](std::map<std::string, int>& to) {
      return [&](const std::string&, const auto& leaf) {
        if constexpr (requires { leaf.format(); }) ++to[leaf.format().name()];
      };
    };
    moe::visit_state(note(formats[0]), first);
    moe::visit_state(note(formats[1]), second);
    CHECK(formats[0] == std::map<std::string, int>{{"bf16", 14}});
    CHECK(formats[1].at("bf16") == 2);
    CHECK(formats[1].size() == 2);
  }
}

TEST_CASE("quantise_checkpoint: any number of threads and files has the same tensors", "[io]") {
  const ModelDirectory model("mixtral", {96, 64});
  const Writer writer = moe::weight_writer(WeightFormat::int4());
  moe::QuantiseOptions options;
  int reports = 0;
  options.report = [&](const moe::QuantisedLayer& layer) { reports += layer.layer == reports; };
  moe::SerialExecutor serial;
  {
    const moe::UseExecutor one(serial);
    (void)moe::quantise_checkpoint(model.path(), model.other("a"), *writer, options);
  }
  CHECK(reports == 2);
  test::ThreadExecutor executor(3);
  const moe::UseExecutor use(executor);
  (void)moe::quantise_checkpoint(model.path(), model.other("b"), *writer);
  CHECK(PlainDirectory(model.other("a")).files == PlainDirectory(model.other("b")).files);
  options = {.files = {.shard_bytes = 20000, .other_files = moe::OtherFiles::Leave}};
  (void)moe::quantise_checkpoint(model.path(), model.other("c"), *writer, options);
  const PlainDirectory first(model.other("a")), many(model.other("c"));
  CHECK(many.files.size() > first.files.size());
  CHECK_FALSE(many.files.contains("tokenizer.json"));
  CHECK(count_kept(first, many) == first.tensors.size());
  CHECK(first.tensors.size() == many.tensors.size());
}

TEST_CASE("quantise_checkpoint: a quantiser of one's own makes the blocks", "[io]") {
  const ModelDirectory model("mixtral");
  const Writer writer = moe::weight_writer(WeightFormat::int4());
  moe::QuantiseOptions options;
  options.quantiser = [](const moe::Checkpoint& checkpoint, const moe::MoeConfig& config, const moe::LoadOptions& load,
                         const WeightWriter& to) {
    const auto floats = moe::load_moe_block(checkpoint, config, load);
    return moe::quantise(floats, to.format(),
                         [](const moe::PanelMatrix<moe::F32>& weights, const WeightFormat& format) {
                           auto codes = moe::round_to_nearest(weights, format);
                           codes.set_code(0, 0, 5);
                           return codes;
                         });
  };
  (void)moe::quantise_checkpoint(model.path(), model.other("out"), *writer, options);
  const auto block = read_back(model.other("out"), 0);
  int fives = 0;
  moe::visit_state(
      [&](const std::string&, const auto& leaf) {
        if constexpr (requires { leaf.format(); }) fives += leaf.code(0, 0) == 5;
      },
      block);
  CHECK(fives == 12);
  options.quantiser = [](const auto& checkpoint, const auto& config, const auto& load, const WeightWriter&) {
    return moe::quantise(moe::load_moe_block(checkpoint, config, load), WeightFormat::int8());
  };
  CHECK(contains(complaint(model, model.other("wrong"), *writer, options), "codes are int8-g32, expected int4-g32"));
  CHECK_FALSE(std::filesystem::exists(model.other("wrong")));
}

TEST_CASE("quantise_checkpoint: a source in few bits is refused, or decoded", "[io]") {
  ModelDirectory model("qwen2_moe", {128, 64});
  const Writer eight = moe::weight_writer(WeightFormat::fp8()), four = moe::weight_writer(WeightFormat::int4());
  (void)moe::quantise_checkpoint(model.path(), model.other("fp8"), *eight);
  const auto again = [&](const std::string& to, const moe::QuantiseOptions& options) {
    return moe::quantise_checkpoint(model.other("fp8"), model.other(to), *four, options);
  };
  CHECK(contains(message_of<std::invalid_argument>([&] { (void)again("out", {}); }),
                 "few bits already (its configuration says fp8 in blocks with scales), expected a source of floats"));
  (void)again("all", {.source = moe::CodedSource::Decode});
  int count = 0;
  CHECK(test::same_codes(read_back(model.other("all"), 1), expected_block(model.other("fp8"), *four, 1), count));
  // A layer that is not chosen becomes BF16.
  (void)again("one", {.layers = {1}, .source = moe::CodedSource::Decode});
  const auto floats = moe::load_moe_block(moe::Checkpoint::open(model.other("fp8")),
                                          moe::read_moe_config(model.other("fp8") / "config.json"), {.layer = 0});
  const auto rounded = moe::dequantise(moe::quantise(floats, WeightFormat::bf16()));
  CHECK(test::same_bits(test::output_of(moe::dequantise(read_back(model.other("one"), 0))), test::output_of(rounded)));
}

TEST_CASE("quantise_checkpoint: what cannot be written is refused, and nothing is left of it", "[io][error]") {
  const ModelDirectory model("mixtral", {64, 96}), uneven("mixtral", {64, 48});
  const Writer writer = moe::weight_writer(WeightFormat::int4());
  const auto refuses = [&](const std::filesystem::path& to, const std::string& reason, const WeightWriter& with,
                           const moe::QuantiseOptions& options = {}) {
    const std::string message = complaint(model, to, with, options);
    CAPTURE(message, reason);
    CHECK(contains(message, reason));
  };
  refuses(model.path(), "is in, or holds, the source", *writer);
  refuses(model.path() / "out", "is in, or holds, the source", *writer);
  refuses(model.path() / ".." / "source" / "out", "is in, or holds, the source", *writer);
  refuses(model.path().parent_path(), "is in, or holds, the source", *writer);
  std::filesystem::create_directory_symlink(model.path(), model.other("link"));
  refuses(model.other("link"), "is in, or holds, the source", *writer);
  std::filesystem::create_directory(model.other("full"));
  test::write_bytes(model.other("full") / "x", "mine");
  refuses(model.other("full"), "is there already, expected a new name or an empty directory", *writer);
  CHECK(test::read_bytes(model.other("full") / "x") == "mine");
  refuses(model.other("out"), "layer 7 has no MoE block, expected layers of [0, 1]", *writer, {.layers = {7}});
  CHECK(contains(complaint(uneven, uneven.other("out"), moe::MxPackedWriter()),
                 "has 48 inputs, expected a multiple of 32 of MXFP4"));
  CHECK(contains(complaint(uneven, uneven.other("out"), *writer),
                 "w2.weight' has 48 inputs, expected a multiple of 32 of int4-g32, or a group of all inputs"));
  refuses(model.other("out"), "family 'mixtral' in MXFP4 in blocks, expected a layout for experts one by one",
          moe::MxBlocksWriter());
  refuses(model.other("no") / "out", "No such file or directory", *writer);
  for (const char* format : {"planes", "nvfp4", "bf16", "fp8-g64"})
    CHECK_THROWS_AS(moe::weight_writer(format[0] == 'p' ? WeightFormat::planes(2) : WeightFormat::named(format)),
                    std::invalid_argument);
  const ModelDirectory oss("gpt_oss");
  CHECK(contains(complaint(oss, oss.other("out"), *writer), "expected MXFP4 in blocks, as it is published"));
  const ModelDirectory dbrx_like("llama4");
  CHECK(
      contains(complaint(dbrx_like, dbrx_like.other("out"), *writer), "family 'llama4' in packed integers, expected"));
  ModelDirectory broken("mixtral");
  broken.tensors().erase(broken.tensors().begin() + 7);
  broken.write();
  CHECK(contains(complaint(broken, broken.other("out"), *writer), "is missing"));
  for (const ModelDirectory* m :
       std::initializer_list<const ModelDirectory*>{&model, &uneven, &oss, &dbrx_like, &broken})
    for (const auto& entry : std::filesystem::directory_iterator(m->path().parent_path()))
      CHECK_FALSE(contains(entry.path().filename().string(), "out"));
}

TEST_CASE("Fp8BlocksWriter: scales that differ inside a block are refused", "[io][error]") {
  const ModelDirectory model("mixtral");
  const moe::Fp8BlocksWriter writer;
  moe::QuantiseOptions options;
  options.quantiser = [](const auto& checkpoint, const auto& config, const auto& load, const WeightWriter& to) {
    return moe::quantise(moe::load_moe_block(checkpoint, config, load), to.format());
  };
  CHECK(
      contains(complaint(model, model.other("out"), writer, options), "differ, expected one for 128 of FP8 in blocks"));
}

TEST_CASE("PackedIntsWriter: zero points beyond the codes are refused", "[io][error]") {
  moe::PanelMatrix<moe::Quantised> codes(8, 32, moe::PanelOrder::Plain, WeightFormat::int4().with_zero_points());
  const moe::PackedIntsWriter writer(codes.format());
  CHECK(writer.encode(moe::CodeRows::of(codes)).size() == 4);
  codes.set_zero_point(3, 0, 8);
  CHECK(contains(message_of<std::invalid_argument>([&] { (void)writer.encode(moe::CodeRows::of(codes)); }),
                 "zero point of output 3 is 8, expected -8 to 7"));
  CHECK_THROWS_AS(writer.parts("x", {2, 8, 32}), std::invalid_argument);
  CHECK(writer.parts("x", {8, 96}).size() == 4);
  for (const Index inputs : {24, 40})
    CHECK(contains(message_of<std::invalid_argument>([&] {
                     (void)writer.parts("x", {8, inputs});
                   }),
                   "'x' has " + std::to_string(inputs) + " inputs, expected a multiple of 32 of int4-zero-g32"));
}

TEST_CASE("MixedIntsWriter: one format is that of all linear modules, of several by name", "[io]") {
  const auto groups = [](const std::map<std::string, WeightFormat>& formats) {
    return moe::MixedIntsWriter(formats).statement({.modules = {"lm_head"}}).at("config_groups");
  };
  const auto one = groups({{"a.weight", WeightFormat::int4()}, {"b.weight", WeightFormat::int4()}});
  CHECK(one.size() == 1);
  CHECK(one.at("group_0").at("targets") == std::vector<std::string>{"Linear"});
  const auto two = groups({{"a.weight", WeightFormat::int4()}, {"b.weight", WeightFormat::int8()}});
  CHECK(two.at("group_0").at("targets") == std::vector<std::string>{"a"});
  CHECK(two.at("group_1").at("targets") == std::vector<std::string>{"b"});
}

TEST_CASE("MixedIntsWriter: codes and formats that are none of a plan's are refused", "[io][error]") {
  moe::PanelMatrix<moe::Quantised> codes(8, 40, moe::PanelOrder::Plain, WeightFormat::integers(3));
  const moe::PackedIntsWriter three(codes.format());
  CHECK(three.encode(moe::CodeRows::of(codes)).front().size() == 8 * 4 * 4);  // 120 bits
  codes.set_code(2, 39, 4);
  CHECK(contains(message_of<std::invalid_argument>([&] { (void)three.encode(moe::CodeRows::of(codes)); }),
                 "code of output 2, input 39 is 4, expected -4 to 3 of int3-g32"));
  const moe::MixedIntsWriter mixed({{"a.weight", WeightFormat::integers(2)}, {"b.weight", WeightFormat::int4()}});
  CHECK(mixed.format_of("b.weight") == WeightFormat::int4());
  const auto refuses = [](const auto& call, const std::string& message) {
    CHECK(contains(message_of<std::invalid_argument>(call), message));
  };
  refuses([&] { (void)mixed.parts("c.weight", {8, 40}); }, "weight 'c.weight' has no format");
  refuses([&] { (void)mixed.encode(moe::CodeRows::of(codes)); }, "codes are int3-g32, expected one of the formats");
  refuses([] { (void)moe::MixedIntsWriter({}); }, "0 weights, expected 1 to 262144");
  std::map<std::string, WeightFormat> many;
  for (int i = 0; i <= 1 << 18; ++i) many.emplace_hint(many.end(), std::to_string(1'000'000 + i), WeightFormat::int4());
  refuses([&] { (void)moe::MixedIntsWriter(std::move(many)); }, "262145 weights, expected 1 to 262144");
  refuses(
      [] {
        (void)moe::MixedIntsWriter({{"a", WeightFormat::planes(2)}});
      },
      "format is 2bit-g64, expected integers");
}
