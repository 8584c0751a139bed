// SPDX-License-Identifier: MIT
// Every number of a valid file replaced by extremes, and every file cut at every byte.
#include <cctype>
#include <filesystem>
#include <string>
#include <vector>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/file/npy.hpp"
#include "moe/io/file/safetensors.hpp"
#include "support/catch.hpp"
#include "support/family_configs.hpp"
#include "support/files.hpp"

namespace {

const std::vector<std::string> kExtremes{"0",
                                         "1",
                                         "-1",
                                         "7",
                                         "255",
                                         "65536",
                                         "2147483647",
                                         "2147483648",
                                         "4294967295",
                                         "4294967296",
                                         "4611686018427387904",
                                         "9223372036854775807",
                                         "9223372036854775808",
                                         "18446744073709551615",
                                         "18446744073709551616",
                                         "99999999999999999999999999",
                                         "1e3",
                                         "1e999",
                                         "-0.0",
                                         "0.5",
                                         "\"8\"",
                                         "null",
                                         "true",
                                         "[]",
                                         "[8]",
                                         "{}",
                                         ""};

/// Calls f(text, number) with each number outside of quotes replaced by each extreme that is not the number itself.
template <class F>
void for_each_number(const std::string& text, const F& f) {
  char quote = '\0';
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (quote == '\0' ? text[i] == '"' || text[i] == '\'' : text[i] == quote) quote = quote == '\0' ? text[i] : '\0';
    if (quote != '\0' || !std::isdigit(static_cast<unsigned char>(text[i]))) continue;
    const std::size_t end = std::min(text.find_first_not_of("0123456789.", i), text.size());
    for (const std::string& extreme : kExtremes)
      if (extreme != text.substr(i, end - i)) f(std::string(text).replace(i, end - i, extreme), extreme);
    i = end - 1;
  }
}

/// Whether the text is accepted; anything but a runtime_error gets out.
template <class Read>
bool accepts(const Read& read) {
  try {
    read();
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}
bool accepts_config(const std::string& text) {
  return accepts([&] { moe::parse_moe_config("file", std::string_view(text)).validate(); });
}
bool accepts_npy(const std::string& bytes) {
  const std::string label = "file";
  return accepts([&] { moe::parse_npy(label, std::as_bytes(std::span(bytes))); });
}

std::string npy_version_1(const std::string& header) {
  std::string bytes("\x93NUMPY\x01\x00", 8);
  return bytes + static_cast<char>(header.size()) + '\0' + header + std::string(24, '\0');
}

}  // namespace

TEST_CASE("Hostile numbers: no extent or offset of a safetensors header can be another", "[io][error]") {
  const std::string header = R"({"a":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]},)"
                             R"("b":{"dtype":"F64","shape":[],"data_offsets":[0,8]},)"
                             R"("c":{"dtype":"U8","shape":[2,0,3],"data_offsets":[8,8]}})";
  const auto reads = [&](const std::string& text) {
    return accepts([&] {
      const auto parsed = moe::parse_safetensors_header("file", text, 16);
      REQUIRE(parsed.tensors.at("a").shape == std::vector<moe::Index>{2, 1});
      REQUIRE(parsed.tensors.at("b").end == 8);
      REQUIRE(parsed.tensors.at("c").begin == parsed.tensors.at("c").end);  // extents beside its 0 may be others
    });
  };
  REQUIRE(reads(header));
  int num_read = 0, num_refused = 0;
  for_each_number(header, [&](const std::string& text, const std::string&) {
    CAPTURE(text);
    ++(reads(text) ? num_read : num_refused);
  });
  REQUIRE(num_refused > 200);
  REQUIRE(num_read < 40);
}

TEST_CASE("Hostile numbers: no extent and no length of a .npy header can be another", "[io][error]") {
  const std::string header = "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n",
                    good = npy_version_1(header);
  REQUIRE(accepts_npy(good));
  for_each_number(header, [&](const std::string& text, const std::string&) {
    CAPTURE(text);
    REQUIRE_FALSE(accepts_npy(npy_version_1(text)));
  });
  for (std::size_t place = 8; place < 10; ++place)
    for (int value = 0; value < 256; ++value) {
      std::string bytes = good;
      bytes[place] = static_cast<char>(value);
      CAPTURE(place, value);
      if (bytes != good) REQUIRE_FALSE(accepts_npy(bytes));
    }
  for (std::size_t size = 0; size < good.size(); ++size) REQUIRE_FALSE(accepts_npy(good.substr(0, size)));
}

TEST_CASE("Hostile numbers: every number of every config.json is refused or in range", "[io][error]") {
  int num_read = 0, num_refused = 0;
  for (const auto& [model_type, rest] : test::family_configs())
    for_each_number(test::config_text(model_type), [&](const std::string& text, const std::string&) {
      CAPTURE(text);
      ++(accepts_config(text) ? num_read : num_refused);
    });
  REQUIRE(num_read > 100);
  REQUIRE(num_refused > 1000);
}

TEST_CASE("Hostile numbers: every config.json cut at any byte is refused", "[io][error]") {
  for (const auto& [model_type, rest] : test::family_configs()) {
    const std::string text = test::config_text(model_type);
    REQUIRE(accepts_config(text));
    for (std::size_t size = 0; size < text.size(); ++size) {
      CAPTURE(model_type, size);
      REQUIRE_FALSE(accepts_config(text.substr(0, size)));
    }
  }
}

TEST_CASE("Hostile numbers: every byte of an index replaced is refused or names files of the directory",
          "[io][error]") {
  const std::string text = R"({"metadata":{"total_size":12},"weight_map":{"a":"m-1.safetensors","b":"d/m-2"}})";
  int num_read = 0, num_refused = 0;
  for (std::size_t place = 0; place < text.size(); ++place)
    for (int value = 0; value < 256; ++value) {
      std::string changed = text;
      changed[place] = static_cast<char>(value);
      const bool read = accepts([&] {
        for (const auto& [name, file] : moe::parse_checkpoint_index("file", changed).weight_map)
          for (const auto& part : std::filesystem::path(file))
            if (part == ".." || part == "/") FAIL(changed);
      });
      ++(read ? num_read : num_refused);
    }
  REQUIRE(num_read > 1000);
  REQUIRE(num_refused > 1000);
}
