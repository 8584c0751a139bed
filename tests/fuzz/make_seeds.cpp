// SPDX-License-Identifier: MIT
// make_seeds <directory>: writes small valid files for each fuzz target, below <directory>/<target>.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

#include "io/family_configs.hpp"
#include "moe/io/npy.hpp"
#include "moe/io/safetensors.hpp"

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

void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: make_seeds <directory>\n";
    return 2;
  }
  const std::filesystem::path root = argv[1];
  for (const char* target : {"safetensors", "index", "npy", "config"})
    std::filesystem::create_directories(root / target);

  write_all_types(root / "safetensors/types");
  moe::SafetensorsWriter(root / "safetensors/empty", {}).commit();
  moe::SafetensorsWriter one(root / "safetensors/one", {.tensors = {{"w", {moe::Dtype::F32, {2, 1}}}}});
  one.write("w", std::span<const float>(std::vector<float>{1.5f, -2.0f}));
  one.commit();

  write_text(
      root / "index/two",
      R"({"metadata":{"total_size":12},"weight_map":{"a":"model-1.safetensors","b":"sub/model-2.safetensors"}})");
  write_text(root / "index/empty", R"({"weight_map":{}})");

  for (const auto& [model_type, text] : test::family_configs())
    write_text(root / "config" / model_type, test::config_text(model_type));

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
