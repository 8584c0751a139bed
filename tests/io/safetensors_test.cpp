// SPDX-License-Identifier: MIT
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "io/plain_reader.hpp"
#include "support/catch.hpp"
#include "support/checkpoints.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using test::bytes_of;
using test::TemporaryDirectory;

moe::SafetensorsHeader two_tensors() {
  return {.tensors = {{"a", {moe::Dtype::F32, {3}}}, {"b", {moe::Dtype::F64, {2, 1}}}}, .metadata = {{"note", "hi"}}};
}

const std::vector<float> kA{1.5f, -0.0f, std::numeric_limits<float>::denorm_min()};
const std::vector<double> kB{std::numeric_limits<double>::infinity(), 0x1.fffffffffffffp-3};

void write_two(const std::filesystem::path& path) {
  moe::SafetensorsWriter writer(path, two_tensors());
  writer.write("a", std::span<const float>(kA));
  writer.write("b", std::span<const double>(kB));
  writer.commit();
}

}  // namespace

TEST_CASE("SafetensorsWriter: an independent reader finds type, shape and bytes", "[io]") {
  const TemporaryDirectory directory;
  write_two(directory / "x");
  const test::PlainFile file = test::read_plainly(test::read_bytes(directory / "x"));
  REQUIRE(file.tensors.size() == 2);
  const test::PlainTensor &a = file.tensors.at("a"), &b = file.tensors.at("b");
  REQUIRE(a.dtype == "F32");
  REQUIRE(a.shape == std::vector<std::size_t>{3});
  REQUIRE(a.bytes == bytes_of(kA));
  REQUIRE(b.dtype == "F64");
  REQUIRE(b.shape == std::vector<std::size_t>{2, 1});
  REQUIRE(b.bytes == bytes_of(kB));
  REQUIRE(file.metadata == moe::Metadata{{"note", "hi"}});
}

TEST_CASE("SafetensorsWriter: an independent reader finds all types aligned, whatever their names and sizes", "[io]") {
  const TemporaryDirectory directory;
  moe::SafetensorsHeader header{.metadata = {{"quote \" slash / \\", "line\nend \x01"}}};
  std::map<std::string, std::string> bytes;
  for (const auto& traits : moe::detail::kDtypes)
    for (std::size_t count = 0; count < 3; ++count) {
      const std::string name = std::to_string(bytes.size() * 7 % 10) + std::string(traits.name) + "\t\"";
      header.tensors[name] = {.dtype = traits.dtype, .shape = {static_cast<moe::Index>(count), 1}};
      bytes[name] = std::string(count * traits.size, static_cast<char>(bytes.size()));
    }
  REQUIRE(bytes.size() == 45);
  moe::SafetensorsWriter writer(directory / "x", header);
  for (const auto& [name, content] : bytes) writer.write_bytes(name, std::as_bytes(std::span(content)));
  writer.commit();
  const test::PlainFile file = test::read_plainly(test::read_bytes(directory / "x"));
  REQUIRE(file.metadata == header.metadata);
  REQUIRE(file.tensors.size() == 45);
  for (const auto& [name, content] : bytes) {
    REQUIRE(file.tensors.at(name).dtype == moe::dtype_name(header.tensors.at(name).dtype));
    REQUIRE(file.tensors.at(name).bytes == content);
  }
}

TEST_CASE("SafetensorsWriter: writes these bytes", "[io][golden]") {
  const TemporaryDirectory directory;
  write_two(directory / "x");
  const std::string header = R"({"__metadata__":{"note":"hi"},"a":{"dtype":"F32","shape":[3],"data_offsets":[16,28]},)"
                             R"("b":{"dtype":"F64","shape":[2,1],"data_offsets":[0,16]}})";
  const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  REQUIRE(test::read_bytes(directory / "x") == test::safetensors_bytes(padded, bytes_of(kB) + bytes_of(kA)));
}

TEST_CASE("SafetensorsWriter: the order of writing does not change the bytes", "[io]") {
  const TemporaryDirectory directory;
  write_two(directory / "x");
  moe::SafetensorsWriter writer(directory / "y", two_tensors());
  writer.write("b", std::span<const double>(kB));
  writer.write("a", std::span<const float>(kA));
  writer.commit();
  REQUIRE(test::read_bytes(directory / "x") == test::read_bytes(directory / "y"));
}

TEST_CASE("SafetensorsWriter: data starts at a multiple of 8 bytes for every length of header", "[io]") {
  for (std::size_t length = 0; length < 9; ++length) {
    CAPTURE(length);
    moe::SafetensorsHeader header = two_tensors();
    header.metadata["note"] = std::string(length, 'x');
    REQUIRE(moe::format_safetensors_header(header).size() % 8 == 0);
  }
}

TEST_CASE("SafetensorsWriter: replaces the old file only on commit and leaves nothing else", "[io]") {
  const TemporaryDirectory directory;
  test::write_bytes(directory / "x", "old");
  {
    moe::SafetensorsWriter writer(directory / "x", two_tensors());
    writer.write("a", std::span<const float>(kA));
    REQUIRE(test::read_bytes(directory / "x") == "old");
    REQUIRE_THROWS_WITH(writer.commit(), ContainsSubstring("'b' has not been written"));
  }
  REQUIRE(test::read_bytes(directory / "x") == "old");
  write_two(directory / "x");
  REQUIRE(moe::SafetensorsReader(directory / "x").tensors().size() == 2);
  REQUIRE(directory.num_files() == 1);
}

TEST_CASE("SafetensorsWriter: refuses what the header does not have", "[io][error]") {
  const TemporaryDirectory directory;
  moe::SafetensorsWriter writer(directory / "x", two_tensors());
  const std::vector<double> three(3);
  REQUIRE_THROWS_WITH(writer.write("c", std::span<const float>(kA)), ContainsSubstring("'c' is not in the header"));
  REQUIRE_THROWS_WITH(writer.write("a", std::span<const double>(three)), ContainsSubstring("'a' given as 3 F64"));
  REQUIRE_THROWS_WITH(writer.write("b", std::span<const double>(three)), ContainsSubstring("expected 16 bytes of F64"));
  writer.write("a", std::span<const float>(kA));
  REQUIRE_THROWS_WITH(writer.write("a", std::span<const float>(kA)), ContainsSubstring("'a' is written twice"));
}

TEST_CASE("SafetensorsWriter: refuses headers that cannot be written", "[io][error]") {
  const TemporaryDirectory directory;
  const auto open = [&](moe::SafetensorsHeader header) { moe::SafetensorsWriter(directory / "x", std::move(header)); };
  REQUIRE_THROWS_AS(open({.tensors = {{"__metadata__", {}}}}), std::invalid_argument);
  REQUIRE_THROWS_AS(open({.tensors = {{"a", {moe::Dtype::F32, {-1}}}}}), std::invalid_argument);
  REQUIRE_THROWS_AS(open({.tensors = {{"a", {moe::Dtype::F32, {moe::Index{1} << 62}}}}}), std::invalid_argument);
  REQUIRE_THROWS_AS(open({.tensors = {{"\xff", {}}}}), std::invalid_argument);
  REQUIRE_THROWS_AS(open({.metadata = {{"k", "\xc3"}}}), std::invalid_argument);
  REQUIRE(directory.num_files() == 0);
}

TEST_CASE("SafetensorsWriter: a place that cannot be written is a runtime_error that names it", "[io][error]") {
  const TemporaryDirectory directory;
  REQUIRE_THROWS_WITH(moe::SafetensorsWriter(directory / "missing/x", {}),
                      ContainsSubstring("missing/x") && ContainsSubstring("No such file"));
  std::filesystem::create_directory(directory / "taken");
  REQUIRE_THROWS_WITH(moe::SafetensorsWriter(directory / "taken", {}),
                      ContainsSubstring("taken': cannot open: Is a directory"));
  REQUIRE(directory.num_files() == 1);
}

TEST_CASE("SafetensorsWriter: rounds to narrow floats if allowed, and takes integers and bytes as they are", "[io]") {
  const TemporaryDirectory directory;
  using moe::Dtype;
  moe::SafetensorsWriter writer(directory / "x", {.tensors = {{"bf16", {Dtype::BF16, {2}}},
                                                              {"e4m3", {Dtype::F8_E4M3, {1}}},
                                                              {"u8", {Dtype::U8, {3}}},
                                                              {"i64", {Dtype::I64, {1}}}}});
  const std::vector<float> values{1.00390625f, 0x1.03p0f};  // ties between 1 and 1 + 2^-7, and the next pair
  REQUIRE_THROWS_WITH(writer.write("bf16", std::span<const float>(values)), ContainsSubstring("'bf16' given as 2 F32"));
  writer.write("bf16", std::span<const float>(values), moe::Narrowing::Allow);
  writer.write("e4m3", std::span<const float>(values).first(1), moe::Narrowing::Allow);
  const std::string bytes = "abc";
  REQUIRE_THROWS_AS(writer.write_bytes("u8", std::as_bytes(std::span(bytes).first(2))), std::invalid_argument);
  writer.write_bytes("u8", std::as_bytes(std::span(bytes)));
  const std::vector<std::int64_t> big{std::numeric_limits<std::int64_t>::min()};
  REQUIRE_THROWS_AS(writer.write("u8", std::span<const std::int64_t>(big), moe::Narrowing::Allow),
                    std::invalid_argument);
  writer.write("i64", std::span<const std::int64_t>(big));
  writer.commit();
  auto file = test::read_plainly(test::read_bytes(directory / "x")).tensors;
  REQUIRE(file["bf16"].bytes == std::string("\x80\x3f\x82\x3f", 4));
  REQUIRE(file["e4m3"].bytes == "\x38");
  REQUIRE(file["u8"].bytes == "abc");
  REQUIRE(file["i64"].bytes == bytes_of(big));
}

TEST_CASE("SafetensorsReader: integers are read as integers, and as floats where those hold them", "[io]") {
  const TemporaryDirectory directory;
  moe::SafetensorsWriter writer(
      directory / "x",
      {.tensors = {{"i", {moe::Dtype::I16, {2}}}, {"j", {moe::Dtype::I32, {1}}}, {"f", {moe::Dtype::F32, {1}}}}});
  writer.write("i", std::span<const std::int16_t>(std::vector<std::int16_t>{-7, 300}));
  writer.write("j", std::span<const std::int32_t>(std::vector<std::int32_t>{16777217}));
  writer.write("f", std::span<const float>(std::vector<float>{2}));
  writer.commit();
  for (const moe::FileAccess access : {moe::FileAccess::Map, moe::FileAccess::Read}) {
    const moe::SafetensorsReader reader(directory / "x", access);
    std::vector<std::int64_t> wide(2), one(1);
    reader.read("i", std::span<std::int64_t>(wide));
    REQUIRE(wide == std::vector<std::int64_t>{-7, 300});
    std::vector<float> floats(1);
    REQUIRE_THROWS_WITH(reader.read("j", std::span<float>(floats)), ContainsSubstring("'j' is I32"));
    reader.read("j", std::span<float>(floats), moe::Narrowing::Allow);
    REQUIRE(floats[0] == 16777216.0f);
    REQUIRE_THROWS_AS(reader.read("f", std::span<std::int64_t>(one), moe::Narrowing::Allow), std::runtime_error);
  }
}

TEST_CASE("SafetensorsReader: names and metadata of any text come back", "[io]") {
  const TemporaryDirectory directory;
  const std::string text = "quote \" backslash \\ tab \t newline \n \u00e9 {,:[ zero " + std::string(1, '\0') + ".";
  moe::SafetensorsWriter writer(directory / "x",
                                {.tensors = {{text, {moe::Dtype::F32, {0}}}}, .metadata = {{text, text}, {"", ""}}});
  writer.write(text, std::span<const float>());
  writer.commit();
  const moe::SafetensorsReader reader(directory / "x");
  REQUIRE(reader.tensor(text).shape == std::vector<moe::Index>{0});
  REQUIRE(reader.metadata() == moe::Metadata{{text, text}, {"", ""}});
}

TEST_CASE("SafetensorsReader: float tensors fill doubles exactly, in more than one block", "[io]") {
  const TemporaryDirectory directory;
  std::vector<float> values(40000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 1 / static_cast<float>(i + 1);
  moe::SafetensorsWriter writer(directory / "x", {.tensors = {{"v", {moe::Dtype::F32, {40000}}}}});
  writer.write("v", std::span<const float>(values));
  writer.commit();
  std::vector<double> wide(values.size());
  moe::SafetensorsReader(directory / "x").read("v", std::span<double>(wide));
  REQUIRE(wide == std::vector<double>(values.begin(), values.end()));
}

TEST_CASE("SafetensorsReader: doubles fill floats only if rounding is allowed", "[io]") {
  const TemporaryDirectory directory;
  write_two(directory / "x");
  moe::SafetensorsReader reader(directory / "x");
  std::vector<float> narrow(2);
  REQUIRE_THROWS_WITH(reader.read("b", std::span<float>(narrow)),
                      ContainsSubstring("'b' is F64") && ContainsSubstring("Narrowing"));
  reader.read("b", std::span<float>(narrow), moe::Narrowing::Allow);
  REQUIRE(narrow == std::vector<float>{std::numeric_limits<float>::infinity(), 0.25f});
}

TEST_CASE("SafetensorsReader: a tensor that is not there, or of another size, is an error", "[io][error]") {
  const TemporaryDirectory directory;
  write_two(directory / "x");
  moe::SafetensorsReader reader(directory / "x");
  std::vector<float> values(4);
  REQUIRE_THROWS_WITH(reader.read("c", std::span<float>(values)),
                      ContainsSubstring("'c' is missing") && ContainsSubstring("/x'"));
  REQUIRE_THROWS_AS(reader.read("a", std::span<float>(values)), std::invalid_argument);
}

TEST_CASE("SafetensorsReader: a file that shrank since it was opened is an error, not stale data", "[io][error]") {
  const TemporaryDirectory directory;
  write_two(directory / "x");
  moe::SafetensorsReader reader(directory / "x");
  std::filesystem::resize_file(directory / "x", 40);
  std::vector<float> values(3);
  REQUIRE_THROWS_WITH(reader.read("a", std::span<float>(values)), ContainsSubstring("the 12 bytes of 'a'"));
}
