// SPDX-License-Identifier: MIT
#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/families/model_config.hpp"
#include "moe/io/file/csv.hpp"
#include "moe/io/file/npy.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

using Catch::Matchers::ContainsSubstring;

TEST_CASE("Readers: a pointer of Git LFS in place of a file is called that", "[io][error]") {
  const test::TemporaryDirectory directory;
  const std::string pointer =
      "version https://git-lfs.github.com/spec/v1\n"
      "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4996278331\n";
  for (const char* name : {"x", "model.safetensors", "model.safetensors.index.json"})
    test::write_bytes(directory / name, pointer);
  const auto refused = ContainsSubstring("': is a pointer of Git LFS, not the file that it stands for");
  REQUIRE_THROWS_WITH(moe::SafetensorsReader(directory / "x"), refused);
  REQUIRE_THROWS_WITH(moe::Checkpoint::open(directory / ""), refused);
  REQUIRE_THROWS_WITH(moe::Checkpoint::open(directory / "model.safetensors"), refused);
  REQUIRE_THROWS_WITH(moe::read_moe_config(directory / "x"), refused);
  REQUIRE_THROWS_WITH(moe::read_moe_family(directory / "x"), refused);
  REQUIRE_THROWS_WITH(moe::read_npy<float>(directory / "x"), refused);
  REQUIRE_THROWS_WITH(moe::read_csv(directory / "x"), refused);
  REQUIRE_THROWS_AS(moe::read_csv(directory / "x"), std::runtime_error);
}
