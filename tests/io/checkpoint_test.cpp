// SPDX-License-Identifier: MIT
#include <cstdlib>
#include <string>
#include <vector>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/checkpoint/weight_source.hpp"
#include "support/catch.hpp"
#include "support/checkpoints.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Checkpoint;
using moe::Dtype;
using test::TemporaryDirectory;

test::Tensor number(const std::string& name, float value) {
  return {name, Dtype::F32, {1}, test::bytes_of(std::vector<float>{value})};
}

/// Two shards, "a" and "b" in one and "c" in the other, in a directory below.
void write_shards(const TemporaryDirectory& directory) {
  std::filesystem::create_directory(directory / "sub");
  test::write_tensors(directory / "m-1.safetensors", {number("a", 1), number("b", 2)}, {{"format", "pt"}, {"n", "1"}});
  test::write_tensors(directory / "sub/m-2.safetensors", {number("c", 3)}, {{"format", "pt"}, {"n", "2"}});
}
std::string index_of(const std::string& weight_map) {
  return R"({"metadata":{"total_size":12,"more":[{"x":null}]},"weight_map":{)" + weight_map + "}}";
}
const std::string kMap = R"("a":"m-1.safetensors","b":"m-1.safetensors","c":"sub/m-2.safetensors")";

void require_refused(const std::string& text, const std::string& message) {
  CAPTURE(text);
  REQUIRE_THROWS_WITH(moe::parse_checkpoint_index("index", text),
                      ContainsSubstring("index: ") && ContainsSubstring(message));
  REQUIRE_THROWS_AS(moe::parse_checkpoint_index("index", text), std::runtime_error);
}

float value_of(const Checkpoint& checkpoint, const std::string& name) {
  return moe::read_all<float>(checkpoint.at(name)).at(0);
}

}  // namespace

TEST_CASE("Checkpoint: one file, by its name or as model.safetensors of a directory", "[io]") {
  const TemporaryDirectory directory;
  test::write_tensors(directory / "model.safetensors", {number("b", 2), number("a", 1)}, {{"format", "pt"}});
  for (const char* path : {"", "model.safetensors"}) {
    const Checkpoint checkpoint = Checkpoint::open(directory / path);
    REQUIRE(checkpoint.names() == std::vector<std::string>{"a", "b"});
    REQUIRE(checkpoint.metadata() == moe::Metadata{{"format", "pt"}});
    REQUIRE(value_of(checkpoint, "b") == 2);
    REQUIRE(checkpoint.contains("a"));
    REQUIRE_FALSE(checkpoint.contains("c"));
  }
}

TEST_CASE("Checkpoint: shards, by the index or its directory", "[io]") {
  const TemporaryDirectory directory;
  write_shards(directory);
  test::write_bytes(directory / "model.safetensors.index.json", index_of(kMap));
  for (const char* path : {"", "model.safetensors.index.json"}) {
    const Checkpoint checkpoint = Checkpoint::open(directory / path);
    REQUIRE(checkpoint.names() == std::vector<std::string>{"a", "b", "c"});
    REQUIRE(checkpoint.metadata() == moe::Metadata{{"format", "pt"}, {"n", "1"}});
    for (const char* name : {"a", "b", "c"}) REQUIRE(value_of(checkpoint, name) == static_cast<float>(*name - 'a' + 1));
    REQUIRE(checkpoint.at("c").label.find("m-2.safetensors") != std::string_view::npos);
  }
}

TEST_CASE("Checkpoint: an index decides, and what it leaves out is named", "[io]") {
  using moe::IgnoredPart;
  const TemporaryDirectory directory;
  write_shards(directory);
  test::write_tensors(directory / "model.safetensors", {number("a", 9)});
  test::write_tensors(directory / "z.safetensors", {number("a", 8), number("d", 4), number("unrelated", 7)});
  test::write_tensors(directory / "sub/m-2.safetensors", {number("c", 3), number("unrelated", 6)});
  test::write_bytes(directory / "old.safetensors.index.json", "not looked at");
  test::write_bytes(directory / "model.safetensors.index.json", index_of(kMap + R"(,"d":"z.safetensors")"));
  for (const char* path : {"", "model.safetensors.index.json"}) {
    const Checkpoint checkpoint = Checkpoint::open(directory / path);
    REQUIRE(checkpoint.names() == std::vector<std::string>{"a", "b", "c", "d"});
    REQUIRE(value_of(checkpoint, "a") == 1);
    REQUIRE(checkpoint.ignored() == std::vector<IgnoredPart>{{"model.safetensors", ""},
                                                             {"old.safetensors.index.json", ""},
                                                             {"sub/m-2.safetensors", "unrelated"},
                                                             {"z.safetensors", "a"},
                                                             {"z.safetensors", "unrelated"}});
    REQUIRE_THROWS_WITH(checkpoint.at("unrelated"),
                        ContainsSubstring("'unrelated' is missing (it is in 'sub/m-2.safetensors', but the index"));
  }
  REQUIRE(Checkpoint::open(directory / "z.safetensors").ignored().empty());
}

TEST_CASE("WeightSource: a scale that the index leaves out is not lost in silence", "[io][error]") {
  const TemporaryDirectory directory;
  for (const char* suffix : {"_scale", "_scale_inv"}) {
    const std::string scale = std::string("w") + suffix;
    test::write_tensors(directory / "z.safetensors", {number("w", 1), number(scale, 2)});
    test::write_bytes(directory / "model.safetensors.index.json", index_of(R"("w":"z.safetensors")"));
    REQUIRE_THROWS_WITH(moe::WeightSource::find(Checkpoint::open(directory / ""), "w"),
                        ContainsSubstring("'" + scale + "' is in 'z.safetensors', but the index does not say so"));
  }
}

TEST_CASE("Checkpoint: one file of a directory is read, the others are named", "[io]") {
  const TemporaryDirectory directory;
  test::write_tensors(directory / "model.safetensors", {number("a", 1)});
  test::write_tensors(directory / "adapter.safetensors", {number("a", 2)});
  const Checkpoint checkpoint = Checkpoint::open(directory / "");
  REQUIRE(value_of(checkpoint, "a") == 1);
  REQUIRE(checkpoint.ignored() == std::vector<moe::IgnoredPart>{{"adapter.safetensors", ""}});
}

TEST_CASE("Checkpoint: a view outlives the file's name, and the last handle closes", "[io]") {
  const TemporaryDirectory directory;
  test::write_tensors(directory / "x.safetensors", {number("a", 1)});
  const Checkpoint copy = Checkpoint(Checkpoint::open(directory / "x.safetensors"));
  std::filesystem::remove(directory / "x.safetensors");
  REQUIRE(value_of(copy, "a") == 1);
}

TEST_CASE("Checkpoint: what is missing or twice there is an error that names it", "[io][error]") {
  const TemporaryDirectory directory;
  const auto open = [&](const std::string& weight_map) {
    test::write_bytes(directory / "i.json", index_of(weight_map));
    return Checkpoint::open(directory / "i.json");
  };
  write_shards(directory);
  REQUIRE_THROWS_WITH(Checkpoint::open(directory / ""), ContainsSubstring("has neither model.safetensors nor"));
  REQUIRE_THROWS_WITH(Checkpoint::open(directory / "none"), ContainsSubstring("none': cannot open: No such file"));
  REQUIRE_THROWS_WITH(open(kMap).at("d"), ContainsSubstring("i.json': tensor 'd' is missing"));
  REQUIRE_THROWS_WITH(open(R"("a":"m-3.safetensors")"), ContainsSubstring("m-3.safetensors': cannot open"));
  REQUIRE_THROWS_WITH(open(R"("a":"m-1.safetensors","c":"m-1.safetensors")"),
                      ContainsSubstring("tensor 'c' is not in 'm-1.safetensors' as the index says"));
  REQUIRE_THROWS_WITH(open(R"("c":"m-1.safetensors","a":"sub/m-2.safetensors")"),
                      ContainsSubstring("tensor 'a' is not"));
  REQUIRE_THROWS_AS(open(R"("a":"sub")"), std::runtime_error);
}

TEST_CASE("parse_checkpoint_index: file names that leave the directory are refused", "[io][error]") {
  for (const char* name :
       {"../x", "/x", "a/../../x", "a/..", "..", ".", "", "a/", "a//x", "./x", "a\\\\..\\\\x", "c:x", "x\\u0000y"})
    require_refused(index_of(std::string(R"("a":")") + name + '"'), "is no file name within the directory");
  REQUIRE(moe::parse_checkpoint_index("index", index_of(R"("a":"a..b/..c")")).weight_map.size() == 1);
}

TEST_CASE("parse_checkpoint_index: text that is no index is refused", "[io][error]") {
  require_refused("", "not JSON");
  require_refused("[]", "an array where an object belongs");
  require_refused("1", "a number where none belongs");
  require_refused("{}", "has no object 'weight_map'");
  require_refused(R"({"x":{"weight_map":{}}})", "has no object 'weight_map'");
  require_refused(R"({"weight_map":[]})", "an array where none belongs");
  require_refused(R"({"weight_map":"x"})", "a string where none belongs");
  require_refused(R"({"weight_map":{},"weight_map":{}})", "'weight_map' occurs twice");
  require_refused(R"({"metadata":{"x":1,"x":2},"weight_map":{}})", "key 'metadata.x' occurs twice");
  require_refused(R"({"x":[{"a":1,"b":{"c":0,"c":0}}],"weight_map":{}})", "key 'x.b.c' occurs twice");
  require_refused("{\n\"x\": NaN}", "not JSON at line 2, byte 8: found NaN, which JSON does not have");
  require_refused(index_of(R"("a":"x","a":"x")"), "tensor 'a' occurs twice");
  require_refused(index_of(R"("a":1)"), "a number where none belongs");
  require_refused(index_of(R"("a":{})"), "an object where");
  require_refused(index_of(R"("a":["x"])"), "an array where none belongs");
  require_refused("{\"x\":" + std::string(1000000, '['), "nested more than 64 levels deep");
  require_refused(index_of("\"\xff\":\"x\""), "not JSON");
  require_refused(index_of(kMap) + std::string(1, '\0'), "zero byte");
}

TEST_CASE("parse_checkpoint_index: every truncated text is refused", "[io][error]") {
  const std::string text = index_of(kMap);
  REQUIRE(moe::parse_checkpoint_index("index", text).weight_map.size() == 3);
  for (std::size_t size = 0; size < text.size(); ++size) {
    CAPTURE(size);
    REQUIRE_THROWS_AS(moe::parse_checkpoint_index("index", text.substr(0, size)), std::runtime_error);
  }
}

TEST_CASE("MappedFile: mapped and read bytes are equal; directories, pipes and nothing are refused", "[io]") {
  const TemporaryDirectory directory;
  for (const std::string& content : {std::string(), std::string("x"), std::string(100000, 'y')}) {
    test::write_bytes(directory / "x", content);
    for (const moe::FileAccess access : {moe::FileAccess::Map, moe::FileAccess::Read}) {
      moe::MappedFile first("label", directory / "x", access);
      const moe::MappedFile file = std::move(first);
      REQUIRE(file.bytes().size() == content.size());
      REQUIRE(std::equal(content.begin(), content.end(), reinterpret_cast<const char*>(file.bytes().data())));
      REQUIRE(file.is_intact());
      if (access == moe::FileAccess::Read) REQUIRE_FALSE(file.is_mapped());
    }
  }
  REQUIRE_THROWS_WITH(moe::MappedFile("label", directory / ""), ContainsSubstring("label: is a directory"));
  REQUIRE_THROWS_WITH(moe::MappedFile("label", directory / "none"), ContainsSubstring("cannot open: No such file"));
  if (std::filesystem::exists("/dev/null"))
    REQUIRE_THROWS_WITH(moe::MappedFile("label", "/dev/null"), ContainsSubstring("is no regular file"));
}

TEST_CASE("read_values, read_integers: parts of a tensor of the right kind", "[io]") {
  const TemporaryDirectory directory;
  test::write_tensors(directory / "x",
                      {{"f", Dtype::BF16, {4}, test::bf16_bytes({1, 2, 3, 4})},
                       {"i", Dtype::I32, {3}, test::bytes_of(std::vector<std::int32_t>{-1, 0, 7})},
                       {"u", Dtype::U64, {2}, test::bytes_of(std::vector<std::uint64_t>{1, std::uint64_t{1} << 63})}});
  const Checkpoint checkpoint = Checkpoint::open(directory / "x");
  std::vector<double> two(2);
  moe::read_values(checkpoint.at("f"), 2, std::span<double>(two));
  REQUIRE(two == std::vector<double>{3, 4});
  REQUIRE(moe::read_all<std::int64_t>(checkpoint.at("i")) == std::vector<std::int64_t>{-1, 0, 7});
  REQUIRE_THROWS_WITH(moe::read_all<float>(checkpoint.at("i")), ContainsSubstring("'i' is I32, expected a floating"));
  REQUIRE_THROWS_WITH(moe::read_all<std::int64_t>(checkpoint.at("f")), ContainsSubstring("'f' is BF16, expected int"));
  REQUIRE_THROWS_WITH(moe::read_all<std::int64_t>(checkpoint.at("u")), ContainsSubstring("9223372036854775808"));
  for (const moe::Index first : {-1, 3, 5})
    REQUIRE_THROWS_AS(moe::read_values(checkpoint.at("f"), first, std::span<double>(two)), std::invalid_argument);
}
