// SPDX-License-Identifier: MIT
// Long texts that are hard on a reader. Each takes a second or so, and minutes to hours where a reader looks back
// at what it has read for every part of it: these tests are about ending at all, within CTest's limit of five minutes.
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/file/csv.hpp"
#include "moe/io/file/data_file.hpp"
#include "moe/io/file/npy.hpp"
#include "moe/io/file/safetensors_header.hpp"
#include "support/catch.hpp"
#include "support/family_configs.hpp"

namespace {

constexpr std::size_t kSize = std::size_t{4} << 20;

/// Parts of a text, numbered, with commas in between.
std::string many(const std::function<std::string(std::size_t)>& part) {
  std::string text = part(0);
  for (std::size_t i = 1; text.size() < kSize; ++i) text += "," + part(i);
  return text;
}
std::string repeated(const std::string& text) {
  std::string result;
  while (result.size() + text.size() < kSize) result += text;
  return result;
}
std::string number(std::size_t i) { return std::to_string(i); }
std::string key(std::size_t i) { return "\"k" + number(i) + "\":"; }

/// Values of JSON that are wide, deep, long or all of that.
std::vector<std::string> hard_values() {
  const std::string deep = std::string(40, '[') + std::string(40, ']');
  return {"[" + many([](std::size_t) { return "{}"; }) + "]",
          "[" + many([](std::size_t) { return "[]"; }) + "]",
          "[" + many([&](std::size_t) { return deep; }) + "]",
          "{" + many([](std::size_t i) { return key(i) + "0"; }) + "}",
          "{" + many([](std::size_t i) { return key(i) + "{}"; }) + "}",
          "[" + many([](std::size_t) { return R"({"a":{"b":{"c":[0]}}})"; }) + "]",
          "[" + many([](std::size_t) { return "1.5"; }) + "]",
          "\"" + std::string(kSize, 'x') + "\"",
          "\"" + repeated("\\u00e9\\n") + "\"",
          std::string(kSize, '1'),
          "0." + std::string(kSize, '1') + "e-5",
          std::string(kSize, ' ') + "0"};
}

/// The one of hard_values() that is refused.
bool is_beyond_double(const std::string& value) {
  return value.size() > 20 && value.find_first_not_of('1') == value.npos;
}

/// Whether it is read; anything but a runtime_error gets out.
bool reads(const std::function<void()>& read) {
  try {
    read();
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}
bool reads_csv(const std::string& text) {
  return reads([&] { moe::detail::CsvParser("file", text).parse(); });
}
bool reads_frame(const std::string& text) {
  return reads([&] { moe::detail::DataFileReader("file", text, {}).read(); });
}

}  // namespace

TEST_CASE("Readers: the longest config.json with the most objects is read in time", "[io][slow]") {
  std::string text = test::config_text("mixtral");
  text.replace(text.rfind('}'), 1, ", \"x\": [{}");
  text.reserve(moe::detail::kMostConfigBytes);
  while (text.size() + 5 <= moe::detail::kMostConfigBytes) text += ",{}";
  REQUIRE(reads([&] { moe::parse_moe_config("file", std::string_view(text += "]}")); }));
}

TEST_CASE("Readers: a long config.json is read in time, whatever it holds", "[io][slow]") {
  const std::string config = test::config_text("mixtral");
  for (const std::string& value : hard_values()) {
    CAPTURE(value.substr(0, 20));
    const std::string text = config.substr(0, config.rfind('}')) + ", \"x\": " + value + "}";
    REQUIRE(reads([&] { moe::parse_moe_config("file", std::string_view(text)); }) != is_beyond_double(value));
  }
}

TEST_CASE("Readers: a long index is read in time, whatever it holds", "[io][slow]") {
  for (const std::string& value : hard_values())
    REQUIRE(reads([&] { moe::parse_checkpoint_index("file", R"({"weight_map":{"a":"b"},"x":)" + value + "}"); }) !=
            is_beyond_double(value));
  const std::string names = many([](std::size_t i) { return key(i) + "\"f" + number(i) + "\""; });
  REQUIRE(moe::parse_checkpoint_index("file", "{\"weight_map\":{" + names + "}}").weight_map.size() > 50000);
}

TEST_CASE("Readers: a long header is read in time, whatever it holds", "[io][slow]") {
  const auto tensors = [](const std::string& shape) {
    return "{" + many([&](std::size_t i) {
             return key(i) + R"({"dtype":"U8","shape":[)" + shape + R"(],"data_offsets":[)" + number(i) + "," +
                    number(i + 1) + "]}";
           }) +
           "}";
  };
  std::string ones = "1";
  for (int i = 1; i < 64; ++i) ones += ",1";
  for (const std::string& text : {tensors("1"), tensors(ones)}) {
    const auto count = static_cast<std::uint64_t>(std::count(text.begin(), text.end(), ']') / 2);
    REQUIRE(moe::parse_safetensors_header("file", text, count).tensors.size() == count);
  }
  const std::string metadata = many([](std::size_t i) { return key(i) + "\"\""; });
  const auto header = moe::parse_safetensors_header("file", "{\"__metadata__\":{" + metadata + "}}", 0);
  REQUIRE(header.metadata.size() > 50000);
  for (const std::string& value : hard_values())
    REQUIRE_FALSE(reads([&] { moe::parse_safetensors_header("file", "{\"a\":" + value + "}", 0); }));
}

TEST_CASE("Readers: long tables are read in time, whatever they hold", "[io][slow]") {
  const std::string names = many([](std::size_t i) { return "n" + number(i); });
  const std::string quoted = many([](std::size_t i) { return "\"n,\"\"" + number(i) + "\""; });
  const std::string numbers = many([](std::size_t) { return "1"; });
  struct Table {
    std::string text;
    bool csv, frame;  // is it read?
  };
  for (const Table& table : {Table{"x\n" + repeated("1\n"), true, true},
                             {"x\n0." + std::string(kSize, '1'), true, true},
                             {names + "\n1", false, false},
                             {quoted + "\n1", false, false},
                             {"x\n" + numbers, false, false},
                             {"x\n" + std::string(kSize, '1'), false, false},
                             {"x\n" + repeated("\n") + "1", false, true},
                             {"\"" + repeated("\"\"") + "\n1", false, false},
                             {"x\n" + std::string(kSize, ' ') + "y", false, true},
                             {"x,y\n" + repeated("\"\\\"\r\",1\n"), false, true},
                             {"x,y\n" + repeated("#1,2\n"), false, true},
                             {"x,y\n1,2\n" + repeated("# 3\n"), false, true},
                             {repeated("#,\"\n"), false, false}}) {
    CAPTURE(table.text.substr(0, 20));
    CHECK(reads_csv(table.text) == table.csv);
    CHECK(reads_frame(table.text) == table.frame);
  }
}

TEST_CASE("Readers: a long array is read in time, and a longer header than NumPy's refused", "[io][slow]") {
  const auto count = static_cast<moe::Index>(kSize);
  std::string bytes = moe::detail::format_npy_header(moe::Dtype::U8, {count}) + std::string(kSize, '\1');
  const std::string label = "file";
  REQUIRE(moe::parse_npy(label, std::as_bytes(std::span(bytes))).tensor.size() == count);
  bytes[8] = bytes[9] = '\xff';
  REQUIRE_FALSE(reads([&] { moe::parse_npy(label, std::as_bytes(std::span(bytes))); }));
}
