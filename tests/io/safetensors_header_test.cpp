// SPDX-License-Identifier: MIT
#include <string>
#include <vector>

#include "moe/io/file/safetensors.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;

struct Broken {
  std::string header;
  std::uint64_t data_size;
  std::string message;
};

/// An entry of the header: "name":{"dtype":dtype,"shape":[shape],"data_offsets":[offsets]}.
std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + shape + "],\"data_offsets\":[" + offsets + "]}";
}

void require_refused(const std::vector<Broken>& cases) {
  for (const Broken& broken : cases) {
    CAPTURE(broken.header, broken.data_size);
    REQUIRE_THROWS_WITH(moe::parse_safetensors_header("file", broken.header, broken.data_size),
                        ContainsSubstring("file: ") && ContainsSubstring(broken.message));
    REQUIRE_THROWS_AS(moe::parse_safetensors_header("file", broken.header, broken.data_size), std::runtime_error);
  }
}

/// Reads all tensors of a file. False if it is refused with a runtime_error; any other way to fail fails the test.
bool loads(const std::filesystem::path& path) {
  try {
    moe::SafetensorsReader reader(path);
    for (const auto& [name, info] : reader.tensors()) {
      std::vector<double> values(static_cast<std::size_t>(reader.view(name).size()));
      reader.read(name, std::span<double>(values));
    }
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

const std::string kHeader = "{\"__metadata__\":{\"k\":\"v\"}," + entry("a", "F32", "2,1", "8,16") + "," +
                            entry("b", "F64", "", "0,8") + "," + entry("c", "F32", "0", "8,8") + "}";
const std::string kFile = test::safetensors_bytes(kHeader, std::string(16, '\1'));

}  // namespace

TEST_CASE("Safetensors header: reads what is there", "[io]") {
  const moe::SafetensorsHeader header = moe::parse_safetensors_header("file", kHeader + "  ", 16);
  REQUIRE(header.metadata == moe::Metadata{{"k", "v"}});
  REQUIRE(header.tensors.size() == 3);
  REQUIRE(header.tensors.at("a").shape == std::vector<moe::Index>{2, 1});
  REQUIRE(header.tensors.at("a").begin == 8);
  REQUIRE(header.tensors.at("b").dtype == moe::Dtype::F64);
  REQUIRE(header.tensors.at("b").shape.empty());
  REQUIRE(header.tensors.at("c").end == 8);
  REQUIRE(moe::parse_safetensors_header("file", "{}", 0).tensors.empty());
}

TEST_CASE("Safetensors header: text that is no JSON object is refused", "[io][error]") {
  require_refused({{"", 0, "expected '{'"},
                   {" {}", 0, "expected '{'"},
                   {"[]", 0, "expected '{'"},
                   {"{}x", 0, "not JSON"},
                   {std::string("{}\0x", 4), 0, "zero byte"},
                   {"{\"a\":", 0, "not JSON"},
                   {"{\"\xff\":1}", 0, "not JSON"},
                   {"{\"a\":1e999}", 0, "not JSON"},
                   {"{/**/}", 0, "not JSON"}});
}

TEST_CASE("Safetensors header: values where none belong are refused and name the tensor", "[io][error]") {
  require_refused({{"{\"a\":1}", 0, "'a': a number"},
                   {"{\"a\":null}", 0, "'a': null"},
                   {"{\"a\":true}", 0, "'a': a boolean"},
                   {"{\"a\":\"x\"}", 0, "'a': a string"},
                   {"{\"a\":[]}", 0, "'a': an array"},
                   {"{\"a\":{\"dtype\":{}}}", 0, "'a': an object"},
                   {"{\"a\":{\"dtype\":[]}}", 0, "'a': an array"},
                   {"{\"a\":{\"shape\":\"F32\"}}", 0, "'a': a string"},
                   {"{\"a\":{\"shape\":[[1]]}}", 0, "'a': an array"},
                   {"{\"a\":{\"shape\":3}}", 0, "'a': a number"},
                   {"{\"a\":{\"extra\":3}}", 0, "'a': unknown field 'extra'"},
                   {"{\"__metadata__\":{\"k\":1}}", 0, "a number"},
                   {"{\"__metadata__\":{\"k\":{}}}", 0, "an object"},
                   {"{\"a\":" + std::string(1000000, '['), 0, "'a': an array"}});
}

TEST_CASE("Safetensors header: fields that are missing or twice there are refused", "[io][error]") {
  const std::string a = entry("a", "F32", "1", "0,4");
  require_refused({{"{\"a\":{}}", 0, "'a': dtype, shape and two"},
                   {"{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 0, "'a': dtype, shape and two"},
                   {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 0, "'a': field 'dtype' occurs twice"},
                   {"{" + a + "," + a + "}", 8, "'a': occurs twice"},
                   {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "occurs twice"},
                   {"{\"__metadata__\":{\"k\":\"\",\"k\":\"\"}}", 0, "'k' occurs twice"}});
}

TEST_CASE("Safetensors header: numbers out of range are refused and name the tensor", "[io][error]") {
  require_refused({{"{" + entry("a", "", "1", "0,2") + "}", 2, "'a': dtype '' is no type"},
                   {"{" + entry("a", "F32", "-1", "0,4") + "}", 4, "'a': a negative"},
                   {"{" + entry("a", "F32", "1.0", "0,4") + "}", 4, "'a': number 1.0"},
                   {"{" + entry("a", "F32", "1e0", "0,4") + "}", 4, "'a': number 1e0"},
                   {"{" + entry("a", "F32", "9223372036854775808", "0,4") + "}", 4, "'a': extent too large"},
                   {"{" + entry("a", "F32", "18446744073709551616", "0,4") + "}", 4, "'a': number"},
                   {"{" + entry("a", "F32", "4294967296,4294967296", "0,0") + "}", 0, "'a': its shape needs more"},
                   {"{" + entry("a", "F32", "4611686018427387905", "0,4") + "}", 4, "'a': its shape needs more"}});
}

TEST_CASE("Safetensors header: 64 extents are read and written, not more", "[io][error]") {
  const auto extents = [](std::size_t count) {
    std::string text = "1";
    for (std::size_t i = 1; i < count; ++i) text += ",1";
    return text;
  };
  const auto header = moe::parse_safetensors_header("file", "{" + entry("a", "U8", extents(64), "0,1") + "}", 1);
  REQUIRE(header.tensors.at("a").shape.size() == 64);
  require_refused({{"{" + entry("a", "U8", extents(65), "0,1") + "}", 1, "'a': more than 64 extents"}});
  moe::SafetensorsHeader written{.tensors = {{"a", {moe::Dtype::U8, std::vector<moe::Index>(64, 1)}}}};
  REQUIRE(moe::assign_offsets(written) == 1);
  written.tensors["a"].shape.push_back(1);
  REQUIRE_THROWS_AS(moe::assign_offsets(written), std::invalid_argument);
}

TEST_CASE("Safetensors header: offsets that do not fit the data are refused and name the tensor", "[io][error]") {
  const std::string a = entry("a", "F32", "2", "0,8");
  require_refused({{"{" + entry("a", "F32", "1", "0") + "}", 4, "'a': dtype, shape and two"},
                   {"{" + entry("a", "F32", "1", "0,4,8") + "}", 4, "'a': more than two"},
                   {"{" + entry("a", "F32", "1", "4,0") + "}", 4, "'a': data_offsets [4, 0]"},
                   {"{" + entry("a", "F32", "1", "0,8") + "}", 8, "'a': data_offsets [0, 8]"},
                   {"{" + entry("a", "F32", "1", "18446744073709551612,0") + "}", 4, "'a': data_offsets"},
                   {"{" + entry("a", "F32", "1", "4,8") + "}", 8, "'a': data starts at byte 4, expected 0"},
                   {"{" + a + "," + entry("b", "F32", "1", "4,8") + "}", 8, "'b': data starts at byte 4, expected 8"},
                   {"{" + a + "," + entry("b", "F32", "1", "12,16") + "}", 16, "'b': data starts at byte 12"},
                   {"{" + a + "," + entry("b", "F32", "0", "4,4") + "}", 8, "'b': data starts at byte 4"},
                   {"{" + a + "}", 4, "has 4 bytes, expected 8"},
                   {"{" + a + "}", 9, "has 9 bytes, expected 8"},
                   {"{}", 1, "has 1 bytes, expected 0"}});
}

TEST_CASE("SafetensorsReader: every truncated file is refused", "[io][error]") {
  const test::TemporaryDirectory directory;
  test::write_bytes(directory / "x", kFile);
  REQUIRE(loads(directory / "x"));
  for (std::size_t size = 0; size < kFile.size(); ++size) {
    CAPTURE(size);
    test::write_bytes(directory / "x", kFile.substr(0, size));
    REQUIRE_FALSE(loads(directory / "x"));
  }
  test::write_bytes(directory / "x", kFile + '\0');
  REQUIRE_FALSE(loads(directory / "x"));
}

TEST_CASE("SafetensorsReader: another length of header is refused", "[io][error]") {
  const test::TemporaryDirectory directory;
  for (std::size_t place = 0; place < 8; ++place)
    for (int bit = 0; bit < 8; ++bit) {
      CAPTURE(place, bit);
      std::string bytes = kFile;
      bytes[place] = static_cast<char>(bytes[place] ^ (1 << bit));
      test::write_bytes(directory / "x", bytes);
      REQUIRE_FALSE(loads(directory / "x"));
    }
}

TEST_CASE("SafetensorsReader: a header above 100 MB is refused before it is read", "[io][error]") {
  const test::TemporaryDirectory directory;
  std::string bytes = kFile;
  const std::uint64_t length = moe::kMaxSafetensorsHeader + 1;
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i) & 0xFF);
  test::write_bytes(directory / "x", bytes);
  std::filesystem::resize_file(directory / "x", length + 8);  // sparse
  REQUIRE_THROWS_WITH(moe::SafetensorsReader(directory / "x"), ContainsSubstring("expected at most 100000000"));
}

TEST_CASE("Safetensors header: with any byte replaced it is refused or stays within the data", "[io][error]") {
  const std::string others{'\0', '\n', '\x1f', '\x7f', '\x80', '\xc3', '\xff'};
  int num_read = 0, num_refused = 0;
  for (std::size_t place = 0; place < kHeader.size(); ++place)
    for (const char value : others + R"( !"+,-./0123456789:AEF[\]_aeu{}~)") {
      std::string text = kHeader;
      text[place] = value;
      try {
        for (const auto& [name, info] : moe::parse_safetensors_header("file", text, 16).tensors)
          if (info.begin > info.end || info.end > 16) FAIL(text);
        ++num_read;
      } catch (const std::runtime_error&) {
        ++num_refused;
      }
    }
  REQUIRE(num_read > 100);  // other names, spaces
  REQUIRE(num_refused > 10 * num_read);
}

TEST_CASE("SafetensorsReader: with a bit of any header byte flipped it is refused or read", "[io][error]") {
  const test::TemporaryDirectory directory;
  int num_read = 0;
  for (std::size_t place = 8; place < 8 + kHeader.size(); ++place)
    for (const int bit : {0, 5}) {
      std::string bytes = kFile;
      bytes[place] = static_cast<char>(bytes[place] ^ (1 << bit));
      test::write_bytes(directory / "x", bytes);
      num_read += loads(directory / "x") ? 1 : 0;
    }
  REQUIRE(num_read > 0);
}
