// SPDX-License-Identifier: MIT
// Seeds of 64 KiB with the structure that a reader could be slow on: wide, deep and long.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "moe/io/file/npy.hpp"
#include "moe/io/file/safetensors.hpp"
#include "support/family_configs.hpp"

namespace test {

inline constexpr std::size_t kLongSeed = 65000;  // and a frame: the targets read 65536 bytes

inline void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

/// Parts, numbered, with commas in between, as many as fit.
inline std::string many(const std::function<std::string(std::size_t)>& part, std::size_t size = kLongSeed) {
  std::string text = part(0);
  for (std::size_t i = 1;; ++i) {
    const std::string next = "," + part(i);
    if (text.size() + next.size() > size) return text;
    text += next;
  }
}
inline std::string key(std::size_t i) { return "\"k" + std::to_string(i) + "\":"; }

inline std::vector<std::string> long_values() {
  const std::string deep = std::string(40, '[') + std::string(40, ']');
  return {"[" + many([](std::size_t) { return "{}"; }) + "]",
          "[" + many([](std::size_t) { return "[]"; }) + "]",
          "[" + many([&](std::size_t) { return deep; }) + "]",
          "{" + many([](std::size_t i) { return key(i) + "0"; }) + "}",
          "{" + many([](std::size_t i) { return key(i) + "{}"; }) + "}",
          "[" + many([](std::size_t) { return R"({"a":{"b":{"c":[0]}}})"; }) + "]",
          "\"" + std::string(kLongSeed, 'x') + "\"",
          "[" + many([](std::size_t) { return R"("\u00e9\n")"; }) + "]",
          "0." + std::string(kLongSeed, '1') + "e-5"};
}

inline void write_long_configs(const std::filesystem::path& folder) {
  std::string head = config_text("mixtral");
  head.resize(head.rfind('}'));
  int number = 0;
  for (const std::string& value : long_values())
    write_text(folder / ("long" + std::to_string(number++)), head + ",\"x\":" + value + "}");
  const std::string modules = many([](std::size_t i) { return "\"model.layers." + std::to_string(i) + ".*\""; });
  write_text(folder / "modules",
             head + R"(,"quantization_config":{"quant_method":"mxfp4","modules_to_not_convert":[)" + modules + "]}}");
}

inline void write_long_indexes(const std::filesystem::path& folder) {
  int number = 0;
  for (const std::string& value : long_values())
    write_text(folder / ("long" + std::to_string(number++)), "{\"x\":" + value + R"(,"weight_map":{"a":"b"}})");
  const std::string names = many([](std::size_t i) { return key(i) + "\"f" + std::to_string(i % 99) + "\""; });
  write_text(folder / "names", "{\"weight_map\":{" + names + "}}");
}

inline void write_long_headers(const std::filesystem::path& folder) {
  const auto write = [&](const char* name, std::size_t count, const moe::TensorInfo& info) {
    moe::SafetensorsHeader header;
    for (std::size_t i = 0; i < count; ++i) header.tensors["t" + std::to_string(i)] = info;
    moe::SafetensorsWriter writer(folder / name, header);
    for (const auto& [tensor, one] : header.tensors)
      writer.write_bytes(tensor, std::vector<std::byte>(*moe::detail::tensor_bytes(one.dtype, one.shape)));
    writer.commit();
  };
  write("many", 1000, {.dtype = moe::Dtype::BF16, .shape = {1}});
  write("extents", 300, {.dtype = moe::Dtype::U8, .shape = std::vector<moe::Index>(64, 1)});
  write("values", 1, {.dtype = moe::Dtype::F8_E4M3, .shape = {250, 256}});
  moe::Metadata metadata;
  for (std::size_t i = 0; i < 4000; ++i) metadata["k" + std::to_string(i)] = "\n";
  moe::SafetensorsWriter(folder / "metadata", {.metadata = metadata}).commit();
}

inline void write_long_arrays(const std::filesystem::path& folder) {
  const std::vector<float> floats(16000, 0.5F);
  moe::write_npy(folder / "long", std::span<const float>(floats), {20, 40, 20});
  const std::vector<std::uint8_t> ones(64000, 1);
  moe::write_npy(folder / "axes", std::span<const std::uint8_t>(ones), std::vector<moe::Index>{1, 1, 1, 64000, 1, 1});
}

inline void write_long_tables(const std::filesystem::path& folder) {
  const auto repeated = [](const std::string& text) {
    std::string result;
    while (result.size() + text.size() <= kLongSeed) result += text;
    return result;
  };
  write_text(folder / "rows", "x\n" + repeated("1\n"));
  write_text(folder / "columns", many([](std::size_t i) { return "n" + std::to_string(i); }, kLongSeed / 2) + "\n" +
                                     many([](std::size_t) { return "1.5"; }, kLongSeed / 2));
  write_text(folder / "digits", "x\n0." + std::string(kLongSeed, '1') + "\n");
  write_text(folder / "quotes", "\"" + repeated("\"\"") + "\"\n1\n");
  write_text(folder / "blanks", "x\n" + std::string(kLongSeed, ' ') + "1\n");
}

/// Adapters with as many patterns, and as many experts, as fit.
inline void write_long_adapters(const std::filesystem::path& folder) {
  const std::string start = R"({"peft_type":"LORA","r":1,"lora_alpha":2)";
  const auto experts = [](int count, const std::string& names) {
    std::string lines;
    for (int e = 0; e < count; ++e)
      for (const char* factor : {"A", "B"})
        lines += "base_model.model.model.layers.0.mlp.experts." + std::to_string(e) + "." + names + ".lora_" + factor +
                 ".weight BF16 1 1\n";
    return lines;
  };
  write_text(folder / "experts", "000000\n" + start + "}\n\n" + experts(400, "down_proj"));
  write_text(folder / "fused", "000101\n" + start + R"(,"target_parameters":["down_proj"]})" +
                                   "\n\nbase_model.model.model.layers.0.mlp.experts.lora_A.weight BF16 5000 2\n"
                                   "base_model.model.model.layers.0.mlp.experts.lora_B.weight BF16 3 5000\n");
  for (const std::string pattern : {"k", "[k]", ".*", "a.*b*c"}) {
    const auto key = [&](std::size_t i) { return "\"" + pattern + std::to_string(i) + "\":1"; };
    write_text(folder / ("patterns" + std::to_string(pattern.size())), "000000\n" + start + ",\"rank_pattern\":{" +
                                                                           many(key, pattern == "k" ? 30000 : 8000) +
                                                                           "}}\n\n" + experts(200, "down_proj"));
  }
}

/// A described checkpoint with numbers of another kind in all tensors.
inline std::string with_numbers(std::string text, const std::string& numbers) {
  for (std::size_t at = text.find("\n\n") + 2; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    if (text.substr(at, end - at) != "-" && end > at) text.insert(end, " " + numbers);
    at = std::min(text.find('\n', at), text.size()) + 1;
  }
  return text;
}

}  // namespace test
