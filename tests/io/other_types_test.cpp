// SPDX-License-Identifier: MIT
// Tensors of types that the library does not compute with, in files that it reads.
#include <string>
#include <vector>

#include "moe/io/checkpoint/weight_source.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Dtype;

std::string entry(const std::string& type, const std::string& shape, std::size_t begin, std::size_t end) {
  return R"({"dtype":")" + type + R"(","shape":[)" + shape + R"(],"data_offsets":[)" + std::to_string(begin) + "," +
         std::to_string(end) + "]}";
}

/// One F32 number "w" and `bytes` bytes of another type.
std::string with_other(const std::string& type, const std::string& shape, std::size_t bytes) {
  return R"({"w":)" + entry("F32", "1", 0, 4) + R"(,"x":)" + entry(type, shape, 4, 4 + bytes) + "}";
}

bool is_refused(const std::string& header, std::size_t bytes) {
  try {
    moe::parse_safetensors_header("file", header, 4 + bytes);
    return false;
  } catch (const std::runtime_error& error) {
    REQUIRE_THAT(error.what(), ContainsSubstring("tensor 'x'"));
    return true;
  }
}

}  // namespace

TEST_CASE("Other types: a tensor is listed with its bytes, and refused when its values are asked for", "[io]") {
  const test::TemporaryDirectory directory;
  for (const char* type : {"F8_E8M0", "U4", "BF17", "f32", "\u00e9"}) {
    CAPTURE(type);
    test::write_bytes(directory / "x",
                      test::safetensors_bytes(with_other(type, "2,3", 6), std::string(4, '\0') + "abcdef"));
    const moe::SafetensorsReader reader(directory / "x");
    const moe::Checkpoint checkpoint = moe::Checkpoint::open(directory / "x");
    REQUIRE(reader.tensor("x").type() == type);
    REQUIRE(checkpoint.names() == std::vector<std::string>{"w", "x"});
    const moe::TensorView view = checkpoint.at("x");
    REQUIRE((view.dtype == Dtype::Other && view.type() == type && view.size() == 6));
    REQUIRE(std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size()) == "abcdef");
    REQUIRE(moe::read_all<float>(checkpoint.at("w")) == std::vector<float>{0});
    const auto refused =
        ContainsSubstring(std::string("tensor 'x' is ") + type + ", a type of which moe reads no values");
    std::vector<float> six(6);
    REQUIRE_THROWS_WITH(moe::read_all<float>(view), refused);
    REQUIRE_THROWS_WITH(moe::read_all<std::int64_t>(view), refused);
    REQUIRE_THROWS_WITH(moe::read_values(view, 0, std::span<float>(six)), refused);
    REQUIRE_THROWS_WITH(moe::WeightSource::find(checkpoint, "x"), refused);
    for (const moe::Narrowing narrowing : {moe::Narrowing::Refuse, moe::Narrowing::Allow})
      REQUIRE_THROWS_WITH(reader.read("x", std::span<float>(six), narrowing), refused);
  }
}

TEST_CASE("Other types: offsets must fit the size of a known type, and the data in any case", "[io][error]") {
  REQUIRE_FALSE(is_refused(with_other("F4", "2,3", 3), 3));
  REQUIRE(is_refused(with_other("F4", "2,3", 6), 6));
  REQUIRE(is_refused(with_other("F4", "3", 2), 2));  // a byte and a half
  REQUIRE_FALSE(is_refused(with_other("F6_E2M3", "4", 3), 3));
  REQUIRE_FALSE(is_refused(with_other("C64", "2", 16), 16));
  REQUIRE(is_refused(with_other("C64", "2", 8), 8));
  REQUIRE(is_refused(with_other("F8_E8M0", "7", 6), 6));
  REQUIRE_FALSE(is_refused(with_other("U1", "17", 3), 3));
  REQUIRE(is_refused(with_other("U1", "17", 2), 2));
  REQUIRE(is_refused(with_other("U1", "9223372036854775807", 2), 2));
  REQUIRE(is_refused(with_other("U1", "4294967296,4294967296", 0), 0));
  REQUIRE(is_refused(with_other("C64", "2305843009213693952", 0), 0));  // times 64 bits is 0 in 64 bits
  REQUIRE(is_refused(R"({"w":)" + entry("F32", "1", 0, 4) + R"(,"x":)" + entry("U4", "1", 3, 4) + "}", 0));
  REQUIRE(is_refused(R"({"w":)" + entry("F32", "1", 0, 4) + R"(,"x":)" + entry("U4", "1", 5, 6) + "}", 2));
}

TEST_CASE("Other types: a header that has them can be written as text, a file cannot", "[io][error]") {
  const moe::SafetensorsHeader header = moe::parse_safetensors_header("file", with_other("F\\\"4", "2", 1), 5);
  const std::string text = moe::format_safetensors_header(header);
  REQUIRE(moe::parse_safetensors_header("file", text, 5).tensors.at("x").type() == "F\"4");
  REQUIRE_THROWS_AS(moe::dtype_size(Dtype::Other), std::invalid_argument);  // and is no divisor
  const test::TemporaryDirectory directory;
  REQUIRE_THROWS_WITH(moe::SafetensorsWriter(directory / "x", header), ContainsSubstring("tensor 'x' is 'F\"4'"));
  REQUIRE(directory.num_files() == 0);
}
