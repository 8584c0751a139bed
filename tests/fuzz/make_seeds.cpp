// SPDX-License-Identifier: MIT
// make_seeds <directory>: writes valid files for each fuzz target, small and long, below <directory>/<target>.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

#include "fuzz/long_seeds.hpp"
#include "moe/io/block/load_block.hpp"
#include "moe/io/file/npy.hpp"
#include "moe/io/file/safetensors.hpp"
#include "moe/serve/trace_file.hpp"
#include "support/gguf.hpp"

namespace {

/// A file with one tensor of each type, in shapes from a number to three extents.
void write_all_types(const std::filesystem::path& path) {
  moe::SafetensorsHeader header{.metadata = {{"format", "pt"}, {"note", "\u00e9"}}};
  std::vector<moe::Index> shape;
  for (const auto& traits : moe::detail::kDtypes) {
    header.tensors[std::string("t.") + std::string(traits.name)] = {.dtype = traits.dtype, .shape = shape};
    if (shape.size() == 3) shape.clear();
    shape.push_back(static_cast<moe::Index>(shape.size()) + 1);
  }
  moe::SafetensorsWriter writer(path, header);
  for (const auto& [name, info] : header.tensors) {
    const auto size = static_cast<std::size_t>(*moe::detail::tensor_bytes(info.dtype, info.shape));
    writer.write_bytes(name, std::vector<std::byte>(size, std::byte{0x3C}));
  }
  writer.commit();
}

using test::write_text;

/// With scores and without, small and of 48 KiB.
void write_traces(const std::filesystem::path& root) {
  moe::RoutingTrace trace(300), scored(3);
  for (moe::Index t = 0; t < 4000; ++t) {
    if (t % 100 == 0) trace.begin_sequence();
    trace.add(std::vector<moe::Index>{t % 300, (7 * t + 1) % 300 == t % 300 ? 299 : (7 * t + 1) % 300});
    if (t == 3) moe::save_trace(root / "small", trace);
  }
  moe::save_trace(root / "long", trace);
  scored.add<float>(moe::Routing<float>::from(2, std::vector<moe::Index>{0, 2}, {}, 3), moe::Matrix<float>::Ones(2, 3));
  moe::save_trace(root / "scores", scored);
}

/// A file of every type of tensor, and one of many small parts, of up to 64 KiB.
void write_gguf_files(const std::filesystem::path& root) {
  test::GgufFile types;
  for (const auto& type : moe::detail::kGgmlTypes) {
    const auto bytes = static_cast<std::size_t>(256 / type.values * type.bytes);
    types.tensors.push_back({std::string(type.name), type.id, {256}, std::string(bytes, '\x2A')});
  }
  write_text(root / "types", types.bytes());
  test::GgufFile many;
  for (int i = 0; i < 900; ++i) {
    const std::string number = std::to_string(i);
    many.metadata.emplace_back("k" + number,
                               test::gguf_list(9, {test::gguf_list(8, {test::gguf_string(number)}).bytes}));
  }
  many.alignment = 1;
  many.metadata.emplace_back("general.alignment", test::gguf_u32(1));
  for (int i = 0; i < 300; ++i) many.tensors.push_back({"t" + std::to_string(i), 24, {1}, "x"});
  write_text(root / "many", many.bytes());
}

/// How the expert weights of a described checkpoint are stored.
enum class Storage { F32, Fp8, Mxfp4 };

std::string line(const std::string& name, const std::string& type, const std::vector<moe::Index>& shape) {
  return name + " " + type + (shape.empty() ? "" : " ") + moe::detail::join(shape, " ") + "\n";
}

/// The tensors of a block as lines for the block target; every third in the second shard if there are two.
std::string described(const std::string& config_text, const moe::FamilyFormat& format, Storage storage, bool sharded) {
  moe::MoeBlock block(moe::parse_moe_config("seed", std::string_view(config_text)));
  std::string shards[2];
  std::size_t count = 0;
  const std::string prefix = moe::numbered_name(format.prefix, 0);
  for (const auto& tensor : moe::bind_weights(block, {format, prefix, storage == Storage::Mxfp4})) {
    std::string& shard = shards[sharded && count++ % 3 == 2 ? 1 : 0];
    const bool is_expert = tensor.name.find("experts.") != tensor.name.npos && tensor.shape.size() >= 2;
    if (is_expert && storage == Storage::Fp8) {
      std::vector<moe::Index> scales = tensor.shape;
      for (moe::Index& extent : std::span(scales).last(2)) extent = (extent + 127) / 128;
      shard += line(tensor.name, "F8_E4M3", tensor.shape) + line(tensor.name + "_scale_inv", "F32", scales);
    } else if (is_expert && storage == Storage::Mxfp4 && tensor.shape.size() == 3) {
      std::vector<moe::Index> scales = tensor.shape;
      scales.back() /= 32;
      shard += line(tensor.name + "_scales", "U8", scales);
      scales.push_back(16);
      shard += line(tensor.name + "_blocks", "U8", scales);
    } else {
      shard += line(tensor.name, count % 2 == 0 ? "F32" : "BF16", tensor.shape);
    }
  }
  return config_text + "\n\n" + shards[0] + (sharded ? "-\n" + shards[1] : "");
}

/// The same block with numbers of each kind.
void write_numbers(const std::filesystem::path& root, const std::string& name, const std::string& text) {
  write_text(root / name, text);
  for (const char* numbers : {"zero", "inf", "nan", "mixed"})
    write_text(root / (name + "_" + numbers), test::with_numbers(text, numbers));
}

void write_blocks(const std::filesystem::path& root) {
  for (const auto& [model_type, rest] : test::family_configs()) {
    const std::string text = test::config_text(model_type);
    const moe::Family& family = *moe::find_family(test::config_of(model_type).family);
    int number = 0;
    for (const moe::FamilyFormat& format : family.formats) {
      write_numbers(root, model_type + std::to_string(number), described(text, format, Storage::F32, number == 1));
      ++number;
    }
    if (model_type == "deepseek_v3")
      write_numbers(root, "fp8", described(text, family.formats.front(), Storage::Fp8, true));
  }
  const std::string gpt_oss = R"({"model_type":"gpt_oss","hidden_size":32,"intermediate_size":32,"hidden_act":"silu",)"
                              R"("num_local_experts":3,"num_experts_per_tok":2,"swiglu_limit":7.0})";
  for (const moe::FamilyFormat& format : moe::find_family("gpt_oss")->formats)
    write_numbers(root, "mxfp4", described(gpt_oss, format, Storage::Mxfp4, false));
  const std::string many = R"({"model_type":"mixtral","hidden_size":2,"intermediate_size":1,"hidden_act":"silu",)"
                           R"("num_local_experts":250,"num_experts_per_tok":3})";
  write_numbers(root, "experts", described(many, moe::find_family("mixtral")->formats.front(), Storage::F32, true));
}

/// Experts as packed integers of 3 bits in even modules and 5 in odd ones, with zero points.
void write_packed_block(const std::filesystem::path& root) {
  std::string config = R"({"model_type":"mixtral","hidden_size":7,"intermediate_size":5,"hidden_act":"silu",)"
                       R"("num_local_experts":3,"num_experts_per_tok":2})";
  moe::MoeBlock block(moe::parse_moe_config("seed", std::string_view(config)));
  const moe::FamilyFormat& format = moe::find_family("mixtral")->formats.front();
  std::string targets[2], lines;
  int count = 0;
  for (const auto& tensor : moe::bind_weights(block, {format, moe::numbered_name(format.prefix, 0)})) {
    if (tensor.name.find("experts.") == tensor.name.npos) {
      lines += line(tensor.name, "F32", tensor.shape);
      continue;
    }
    const moe::Index outputs = tensor.shape[0], inputs = tensor.shape[1], bits = count % 2 == 0 ? 3 : 5;
    std::string& list = targets[count++ % 2];
    list += (list.empty() ? "\"" : ",\"") + std::string(moe::detail::module_of_weight(tensor.name)) + '"';
    lines += line(tensor.name + "_packed", "I32", {outputs, (inputs * bits + 31) / 32}) +
             line(tensor.name + "_scale", "BF16", {outputs, 1}) + tensor.name +
             "_shape I64 2 =" + std::to_string(outputs) + "," + std::to_string(inputs) + "\n" +
             line(tensor.name + "_zero_point", "I32", {(outputs * bits + 31) / 32, 1});
  }
  const auto group = [&](int which, int bits) {
    return R"({"targets":[)" + targets[which] + R"(],"weights":{"num_bits":)" + std::to_string(bits) +
           R"(,"group_size":32,"symmetric":false}})";
  };
  config.back() = ',';
  config += R"("quantization_config":{"quant_method":"compressed-tensors","format":"pack-quantized",)"
            R"("config_groups":{"group_0":)" +
            group(0, 3) + R"(,"group_1":)" + group(1, 5) + "}}}";
  write_text(root / "packed", config + "\n\n" + lines);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: make_seeds <directory>\n";
    return 2;
  }
  const std::filesystem::path root = argv[1];
  for (const char* target :
       {"safetensors", "index", "npy", "config", "block", "csv", "layouts", "gguf", "adapter", "trace"})
    std::filesystem::create_directories(root / target);

  write_all_types(root / "safetensors/types");
  moe::SafetensorsWriter(root / "safetensors/empty", {}).commit();
  moe::SafetensorsWriter one(root / "safetensors/one", {.tensors = {{"w", {moe::Dtype::F32, {2, 1}}}}});
  one.write("w", std::span<const float>(std::vector<float>{1.5f, -2.0f}));
  one.commit();

  write_traces(root / "trace");
  write_gguf_files(root / "gguf");
  test::write_long_adapters(root / "adapter");
  write_text(root / "layouts/plain", "128 128 -1 0 1\nm.weight BF16 3 5\n");
  write_text(
      root / "index/two",
      R"({"metadata":{"total_size":12},"weight_map":{"a":"model-1.safetensors","b":"sub/model-2.safetensors"}})");
  write_text(root / "index/empty", R"({"weight_map":{}})");

  for (const auto& [model_type, text] : test::family_configs())
    write_text(root / "config" / model_type, test::config_text(model_type));
  write_blocks(root / "block");
  write_packed_block(root / "block");
  test::write_long_configs(root / "config");
  test::write_long_indexes(root / "index");
  test::write_long_headers(root / "safetensors");
  test::write_long_arrays(root / "npy");
  write_text(root / "csv/small", "\xEF\xBB\xBFx,\"a \"\"b\"\", c\",z\r\n1,-2.5e-3,+4\r\n 0 ,\t7,1e308 \r\n\r\n");
  test::write_long_tables(root / "csv");

  const std::vector<float> floats{0, 1, 2, 3, 4, 5};
  moe::write_npy(root / "npy/f4", std::span<const float>(floats), {2, 3});
  moe::write_npy(root / "npy/number", std::span<const float>(floats).first(1), {});
  const std::vector<std::int64_t> integers{1, -2};
  moe::write_npy(root / "npy/i8", std::span<const std::int64_t>(integers), {2});
  const std::string text = "{'shape': (3, 2), \"fortran_order\": True, 'descr': '<f4'}\n";
  std::string version2("\x93NUMPY\x02\x00", 8);
  version2 += {static_cast<char>(text.size()), '\0', '\0', '\0'};
  write_text(root / "npy/fortran", version2 + text + std::string(24, '\1'));
}
