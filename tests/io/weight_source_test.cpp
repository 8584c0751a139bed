// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "moe/io/checkpoint/weight_source.hpp"
#include "moe/kernel/weight_rounding.hpp"
#include "support/catch.hpp"
#include "support/checkpoints.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Dtype;
using moe::Index;
using moe::WeightSource;
using test::TemporaryDirectory;

moe::Checkpoint checkpoint_of(const TemporaryDirectory& directory, const std::vector<test::Tensor>& tensors) {
  test::write_tensors(directory / "x", tensors);
  return moe::Checkpoint::open(directory / "x");
}
std::vector<float> all(const WeightSource& source) {
  std::vector<float> values(static_cast<std::size_t>(source.size()));
  source.read_values(0, values);
  return values;
}
std::string ascending(std::size_t size) {
  std::string bytes(size, '\0');
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 7 % 127);  // no NaN of E4M3
  return bytes;
}

/// E4M3 of a positive code.
double e4m3(unsigned code) {
  const int exponent = static_cast<int>(code >> 3);
  return exponent == 0 ? std::ldexp(code % 8, -9) : std::ldexp(8 + code % 8, exponent - 10);
}
/// E2M1, as its table in the specification.
double e2m1(unsigned code) {
  const std::vector<double> values{0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code < 8 ? values[code] : -values[code - 8];
}
unsigned byte(const std::string& bytes, Index i) {
  return static_cast<unsigned char>(bytes[static_cast<std::size_t>(i)]);
}

/// Reads every part [first, first + count) of a few counts and compares it with the whole.
void require_parts(const WeightSource& source, const std::vector<float>& whole) {
  for (const Index count : {1, 5, 31, 32, 33, 200})
    for (Index first = 0; first + count <= source.size(); first += 1 + first / 7) {
      std::vector<float> part(static_cast<std::size_t>(count));
      source.read_values(first, part);
      if (!std::equal(part.begin(), part.end(), whole.begin() + first)) FAIL("first " << first << ", count " << count);
    }
}

/// A weight is what its code and scale say, bit for bit.
void require_stored(const WeightSource& source, const moe::WeightFormat& format) {
  REQUIRE(source.kept_format() == format);
  format.validate();
  REQUIRE(source.matrix_scale() == 1);
  const std::vector<float> values = all(source);
  for (Index i = 0; i < source.size(); ++i) {
    const moe::StoredWeight weight = source.stored(i);
    const float value = moe::detail::value_of_code(format, weight.code) * weight.scale;
    const float read = values[static_cast<std::size_t>(i)];
    const bool same = std::isnan(value) ? std::isnan(read) : value == read && std::signbit(value) == std::signbit(read);
    if (!same || weight.zero != 0) FAIL("value " << i << " is " << read << ", its code says " << value);
  }
  for (const Index place : {Index{-1}, source.size()}) REQUIRE_THROWS_AS(source.stored(place), std::invalid_argument);
}
std::string every_code(int bytes_each) {
  std::string bytes;
  for (unsigned code = 0; code < (bytes_each == 1 ? 256u : 65536u); ++code) {
    bytes += static_cast<char>(code % 256);
    if (bytes_each == 2) bytes += static_cast<char>(code / 256);
  }
  return bytes;
}

}  // namespace

TEST_CASE("WeightSource: plain codes are kept, every one of them, and F32 and F64 have no format", "[io]") {
  const TemporaryDirectory directory;
  using Format = moe::WeightFormat;
  const auto checkpoint = checkpoint_of(directory, {{"bf16", Dtype::BF16, {256, 256}, every_code(2)},
                                                    {"f16", Dtype::F16, {256, 256}, every_code(2)},
                                                    {"e4m3", Dtype::F8_E4M3, {16, 16}, every_code(1)},
                                                    {"e5m2", Dtype::F8_E5M2, {256}, every_code(1)},
                                                    {"f32", Dtype::F32, {1}, std::string(4, '\0')},
                                                    {"f64", Dtype::F64, {1}, std::string(8, '\0')}});
  const auto find = [&](const char* name) { return WeightSource::find(checkpoint, name); };
  require_stored(find("bf16"), Format::bf16());
  require_stored(find("f16"), Format::f16());
  require_stored(find("e4m3"), Format::fp8(0, moe::ScaleType::Unscaled));
  require_stored(find("e5m2"), Format::fp8_e5m2(0, moe::ScaleType::Unscaled));
  for (const char* name : {"f32", "f64"}) {
    REQUIRE_FALSE(find(name).kept_format());
    REQUIRE_THROWS_WITH(find(name).stored(0), ContainsSubstring("expected codes of few bits"));
  }
}

TEST_CASE("WeightSource: codes of FP8 in blocks are kept with scales of the type in the file", "[io]") {
  const TemporaryDirectory directory;
  const std::vector<float> scales{1, 0.5f, 3, -2, 0.125f, 7, 11, 13};
  const std::string codes = every_code(1) + every_code(1) + every_code(1);
  for (const auto& [dtype, kept, bytes] : {std::tuple(Dtype::F32, moe::ScaleType::F32, test::bytes_of(scales)),
                                           std::tuple(Dtype::BF16, moe::ScaleType::Bf16, test::bf16_bytes(scales))}) {
    const auto checkpoint = checkpoint_of(
        directory, {{"w", Dtype::F8_E4M3, {2, 129, 129}, std::string(2 * 129 * 129 - 768, '\x33') + codes},
                    {"w_scale_inv", dtype, {2, 2, 2}, bytes}});
    require_stored(WeightSource::find(checkpoint, "w"), moe::WeightFormat::fp8(128, kept));
  }
}

TEST_CASE("WeightSource: a plain tensor of any floating-point type is read as float", "[io]") {
  const TemporaryDirectory directory;
  const std::vector<float> values = test::numbered(6);
  const auto checkpoint = checkpoint_of(
      directory, {{"b", Dtype::BF16, {2, 3}, test::bf16_bytes(values)},
                  {"d", Dtype::F64, {6}, test::bytes_of(std::vector<double>(values.begin(), values.end()))},
                  {"e", Dtype::F8_E5M2, {2}, "\x3c\xbd"},
                  {"i", Dtype::I32, {1}, std::string(4, '\0')}});
  const WeightSource b = WeightSource::find(checkpoint, "b");
  REQUIRE(all(b) == values);
  REQUIRE(b.shape() == std::vector<Index>{2, 3});
  REQUIRE(b.bytes() == 12);
  REQUIRE(b.format() == "BF16");
  REQUIRE(all(WeightSource::find(checkpoint, "d")) == values);
  REQUIRE(all(WeightSource::find(checkpoint, "e")) == std::vector<float>{1, -1.25f});
  REQUIRE_THROWS_WITH(WeightSource::find(checkpoint, "i"), ContainsSubstring("'i' is I32"));
  REQUIRE_THROWS_WITH(WeightSource::find(checkpoint, "none"), ContainsSubstring("'none' is missing"));
  std::vector<float> part(2);
  for (const Index first : {-1, 5, 7}) REQUIRE_THROWS_AS(b.read_values(first, part), std::invalid_argument);
}

TEST_CASE("WeightSource: FP8 codes are multiplied by the scale of their block, partial ones at the edges", "[io]") {
  const TemporaryDirectory directory;
  const Index matrices = 2, rows = 130, columns = 257;  // 2 x 3 blocks each
  const std::string codes = ascending(static_cast<std::size_t>(matrices * rows * columns));
  const std::vector<float> scales{1, 0.5f, 3, -2, 0.125f, 7, 11, 13, 17, 19, 23, 29};
  const auto checkpoint =
      checkpoint_of(directory, {{"w", Dtype::F8_E4M3, {matrices, rows, columns}, codes},
                                {"w_scale_inv", Dtype::F32, {matrices, 2, 3}, test::bytes_of(scales)}});
  const WeightSource source = WeightSource::find(checkpoint, "w");
  const std::vector<float> whole = all(source);
  for (Index m = 0; m < matrices; ++m)
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < columns; ++c) {
        const Index i = (m * rows + r) * columns + c;
        const double scale = scales[static_cast<std::size_t>((m * 2 + r / 128) * 3 + c / 128)];
        // A product of 4 and at most 5 significant bits is exact.
        if (whole[static_cast<std::size_t>(i)] != e4m3(byte(codes, i)) * scale)
          FAIL("(" << m << "," << r << "," << c << ")");
      }
  require_parts(source, whole);
  REQUIRE(source.bytes() == codes.size() + 48);
  REQUIRE(source.format() == "F8_E4M3 x 128");
}

TEST_CASE("WeightSource: MXFP4 blocks share a power of two, the even element is the low half", "[io]") {
  const TemporaryDirectory directory;
  const Index experts = 2, rows = 3, blocks = 5;
  std::string codes(static_cast<std::size_t>(experts * rows * blocks * 16), '\0'), scales;
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<char>(i * 101 + i / 16);
  for (Index i = 0; i < experts * rows * blocks; ++i) scales += static_cast<char>(i == 0 ? 0 : i == 1 ? 254 : 110 + i);
  for (const std::string separator : {"_", "."}) {
    const auto checkpoint =
        checkpoint_of(directory, {{"w" + separator + "blocks", Dtype::U8, {experts, rows, blocks, 16}, codes},
                                  {"w" + separator + "scales", Dtype::U8, {experts, rows, blocks}, scales}});
    const WeightSource source = WeightSource::find(checkpoint, "w");
    REQUIRE(WeightSource::exists(checkpoint, "w"));
    REQUIRE(source.shape() == std::vector<Index>{experts, rows, blocks * 32});
    const std::vector<float> whole = all(source);
    for (Index i = 0; i < source.size(); ++i) {
      const unsigned pair = byte(codes, i / 2), code = i % 2 == 0 ? pair % 16 : pair / 16;
      const double value = std::ldexp(e2m1(code), static_cast<int>(byte(scales, i / 32)) - 127);
      // 4 * 2^127 and more is above the largest float.
      if (whole[static_cast<std::size_t>(i)] != static_cast<float>(value)) FAIL("value " << i);
    }
    require_parts(source, whole);
    REQUIRE(source.bytes() == codes.size() + scales.size());
    REQUIRE(source.format() == "MXFP4");
    require_stored(source, moe::WeightFormat::mxfp4());
  }
}

TEST_CASE("WeightSource: an MXFP4 scale of 255 makes its block NaN, and no other", "[io]") {
  const TemporaryDirectory directory;
  const auto checkpoint = checkpoint_of(
      directory, {{"w_blocks", Dtype::U8, {2, 16}, std::string(32, '\x20')}, {"w_scales", Dtype::U8, {2}, "\xff\x7f"}});
  const std::vector<float> values = all(WeightSource::find(checkpoint, "w"));
  for (std::size_t i = 0; i < 32; ++i) REQUIRE(std::isnan(values[i]));
  for (std::size_t i = 32; i < 64; ++i) REQUIRE(values[i] == (i % 2 == 0 ? 0.0f : 1.0f));
}

TEST_CASE("WeightSource: scales that do not fit, or of another format, are errors that name the tensor",
          "[io][error]") {
  const TemporaryDirectory directory;
  const auto require_refused = [&](const std::vector<test::Tensor>& tensors, const std::string& message) {
    const auto checkpoint = checkpoint_of(directory, tensors);
    REQUIRE_THROWS_WITH(WeightSource::find(checkpoint, "w"), ContainsSubstring(message));
    REQUIRE_THROWS_AS(WeightSource::find(checkpoint, "w"), std::runtime_error);
  };
  const std::string one(4, '\0'), two(8, '\0'), codes(130, '\0'), blocks(32, '\0');
  const test::Tensor w{"w", Dtype::F8_E4M3, {1, 130}, codes}, mx{"w_blocks", Dtype::U8, {2, 16}, blocks};
  require_refused({w, {"w_scale_inv", Dtype::F32, {1, 1}, one}}, "'w_scale_inv' has shape [1, 1], expected [1, 2]");
  require_refused({w, {"w_scale_inv", Dtype::I32, {1, 2}, two}}, "'w_scale_inv' is I32");
  require_refused({w, {"w_scale", Dtype::F32, {2}, two}},
                  "'w_scale' has shape [2], expected [], [1], [1], [1, 1] or [1, 2]");
  require_refused({{"w", Dtype::BF16, {1, 2}, one}, {"w_scale_inv", Dtype::F32, {1, 1}, one}},
                  "'w' is BF16, expected F8");
  require_refused({{"w", Dtype::F8_E4M3, {130}, codes}, {"w_scale_inv", Dtype::F32, {2}, two}}, "at least two extents");
  require_refused({mx}, "'w_scales' is missing");
  require_refused({mx, {"w_scales", Dtype::U8, {4}, one}}, "'w_scales' has shape [4], expected [2]");
  require_refused({mx, {"w_scales", Dtype::I8, {2}, one.substr(2)}}, "'w_scales' is I8, expected U8");
  require_refused({{"w_blocks", Dtype::U8, {4, 8}, blocks}, {"w_scales", Dtype::U8, {4}, one}},
                  "expected [.., inputs / 32, 16]");
  require_refused({mx, {"w_scales", Dtype::U8, {2}, one.substr(2)}, {"w", Dtype::F32, {1}, one}},
                  "both 'w' and 'w_blocks'");
}
