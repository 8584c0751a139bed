// SPDX-License-Identifier: MIT
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "moe/io/file/convert.hpp"
#include "support/catch.hpp"
#include "support/checkpoints.hpp"

namespace {

using moe::Dtype;

/// The value of a code by the definition: sign, exponent and fraction read off, and powers of two. `largest` is the
/// exponent that is infinity and NaN, or above all for E4M3, whose only NaN is all ones.
struct Format {
  Dtype dtype;
  int exponent_bits, fraction_bits;
  bool is_ieee;
};
const std::vector<Format> kFormats{
    {Dtype::F16, 5, 10, true}, {Dtype::BF16, 8, 7, true}, {Dtype::F8_E4M3, 4, 3, false}, {Dtype::F8_E5M2, 5, 2, true}};

int num_codes(const Format& format) { return 2 << (format.exponent_bits + format.fraction_bits); }
double value_of(const Format& format, int code) {
  const int fraction = code % (1 << format.fraction_bits);
  const int exponent = (code >> format.fraction_bits) % (1 << format.exponent_bits);
  const double sign = code >> (format.exponent_bits + format.fraction_bits) != 0 ? -1 : 1;
  const int bias = (1 << (format.exponent_bits - 1)) - 1, all = (1 << format.exponent_bits) - 1;
  const bool ones = fraction == (1 << format.fraction_bits) - 1;
  if (exponent == all && format.is_ieee)
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  if (exponent == all && ones) return std::nan("");
  const double significand = std::ldexp(fraction, -format.fraction_bits);
  return sign * (exponent == 0 ? std::ldexp(significand, 1 - bias) : std::ldexp(1 + significand, exponent - bias));
}

std::string code_bytes(const Format& format, int code) {
  const std::string bytes{static_cast<char>(code & 0xFF), static_cast<char>(code >> 8)};
  return bytes.substr(0, moe::dtype_size(format.dtype));
}
template <class S>
std::vector<S> decode(Dtype dtype, const std::string& bytes) {
  std::vector<S> values(bytes.size() / moe::dtype_size(dtype));
  moe::detail::decode(dtype, std::as_bytes(std::span(bytes)).data(), std::span<S>(values));
  return values;
}
template <class S>
int encode(const Format& format, S value) {
  std::array<std::uint8_t, 2> bytes{};
  moe::detail::encode(std::span<const S>(&value, 1), format.dtype, std::as_writable_bytes(std::span(bytes)).data());
  return bytes[0] | bytes[1] << 8;
}

}  // namespace

TEST_CASE("Dtype: sizes, names and what fits into what", "[io]") {
  for (const auto& traits : moe::detail::kDtypes) {
    REQUIRE(moe::find_dtype(moe::dtype_name(traits.dtype)) == traits.dtype);
    REQUIRE(moe::is_exact(traits.dtype, traits.dtype));
  }
  REQUIRE(!moe::find_dtype("F4"));
  REQUIRE(moe::dtype_of<std::uint16_t>() == Dtype::U16);
  REQUIRE(moe::dtype_of<long long>() == Dtype::I64);
  REQUIRE(moe::dtype_of<bool>() == Dtype::BOOL);
  for (const Dtype dtype :
       {Dtype::F16, Dtype::BF16, Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::I16, Dtype::U16, Dtype::BOOL})
    REQUIRE(moe::is_exact(dtype, Dtype::F32));
  for (const Dtype dtype : {Dtype::F64, Dtype::I32, Dtype::U32, Dtype::I64}) REQUIRE(!moe::is_exact(dtype, Dtype::F32));
  REQUIRE(moe::is_exact(Dtype::U32, Dtype::F64));
  REQUIRE(!moe::is_exact(Dtype::I64, Dtype::F64));
  REQUIRE(moe::is_exact(Dtype::F8_E5M2, Dtype::F16));
  REQUIRE(moe::is_exact(Dtype::U32, Dtype::I64));
  REQUIRE(!moe::is_exact(Dtype::U64, Dtype::I64));
  REQUIRE(!moe::is_exact(Dtype::I8, Dtype::U64));
  REQUIRE(!moe::is_exact(Dtype::F16, Dtype::I64));
  REQUIRE(!moe::is_exact(Dtype::F16, Dtype::BF16));
}

TEST_CASE("decode: every code of the small floats is the value of its definition, in float and double", "[io]") {
  for (const Format& format : kFormats) {
    std::string bytes;
    for (int code = 0; code < num_codes(format); ++code) bytes += code_bytes(format, code);
    const auto floats = decode<float>(format.dtype, bytes);
    const auto doubles = decode<double>(format.dtype, bytes);
    for (int code = 0; code < num_codes(format); ++code) {
      const double expected = value_of(format, code);
      const auto i = static_cast<std::size_t>(code);
      const bool same = std::isnan(expected) ? std::isnan(floats[i]) && std::isnan(doubles[i])
                                             : floats[i] == expected && doubles[i] == expected &&
                                                   std::signbit(floats[i]) == std::signbit(expected);
      if (!same) FAIL(moe::dtype_name(format.dtype) << ", code " << code << ": " << floats[i] << " " << expected);
    }
  }
}

TEST_CASE("decode: blocks and tails of any alignment give the values one by one", "[io]") {
  for (const Format& format : kFormats) {
    std::string bytes = "x";
    for (int i = 0; i < 40; ++i) bytes += code_bytes(format, i * 97 % num_codes(format));
    for (std::size_t size = 0; size <= 40; ++size) {
      const auto values = decode<float>(format.dtype, bytes.substr(1, size * moe::dtype_size(format.dtype)));
      for (std::size_t i = 0; i < size; ++i) {
        const double expected = value_of(format, static_cast<int>(i) * 97 % num_codes(format));
        REQUIRE((std::isnan(expected) ? std::isnan(values[i]) : values[i] == expected));
      }
    }
  }
}

TEST_CASE("encode: every value comes back, midpoints go to even, their neighbours to the nearer code", "[io]") {
  for (const Format& format : kFormats) {
    const int positive = num_codes(format) / 2;
    for (int code = 0; code < positive; ++code) {
      const double value = value_of(format, code), next = value_of(format, code + 1);
      CAPTURE(moe::dtype_name(format.dtype), code);
      if (std::isnan(value)) continue;
      if (encode(format, value) != code || encode(format, -value) != code + positive) FAIL("value " << value);
      if (encode(format, static_cast<float>(value)) != code) FAIL("float " << value);
      if (code + 1 == positive || !std::isfinite(next)) continue;
      const double middle = (value + next) / 2;        // exact: one more digit
      const auto narrow = static_cast<float>(middle);  // exact
      if (encode(format, narrow) != code + code % 2) FAIL("float in the middle " << middle);
      if (encode(format, std::nextafter(narrow, 0.0f)) != code) FAIL("float below the middle " << middle);
      if (encode(format, -std::nextafter(narrow, 1e38f)) != code + 1 + positive) FAIL("float above " << middle);
      if (encode(format, middle) != code + code % 2) FAIL("middle " << middle);
      if (encode(format, std::nextafter(middle, 0)) != code) FAIL("below the middle " << middle);
      if (encode(format, std::nextafter(middle, 1e300)) != code + 1) FAIL("above the middle " << middle);
    }
  }
}

TEST_CASE("encode: what is too large becomes infinity, or NaN in E4M3", "[io]") {
  const double infinity = std::numeric_limits<double>::infinity();
  REQUIRE(encode(kFormats[0], 65519.99) == 0x7BFF);
  REQUIRE(encode(kFormats[0], 65520.0) == 0x7C00);
  REQUIRE(encode(kFormats[0], -1e300) == 0xFC00);
  REQUIRE(encode(kFormats[1], std::numeric_limits<float>::max()) == 0x7F80);
  REQUIRE(encode(kFormats[2], 464.0) == 0x7E);  // 448 and 480, which is no value, tie to even
  REQUIRE(encode(kFormats[2], std::nextafter(464.0, 500)) == 0x7F);
  REQUIRE(encode(kFormats[2], -infinity) == 0xFF);
  REQUIRE(encode(kFormats[3], 61440.0) == 0x7C);
  for (const Format& format : kFormats) {
    REQUIRE(std::isnan(value_of(format, encode(format, std::nan("")))));
    REQUIRE(encode(format, std::nanf("")) == encode(format, std::nan("")));
    REQUIRE(encode(format, -std::nanf("")) == encode(format, -std::nan("")));
    REQUIRE(encode(format, std::numeric_limits<double>::denorm_min()) == 0);
    REQUIRE(encode(format, -std::numeric_limits<double>::denorm_min()) == num_codes(format) / 2);
  }
}

TEST_CASE("decode: integers and truth values", "[io]") {
  REQUIRE(decode<std::int64_t>(Dtype::I8, "\xff\x7f") == std::vector<std::int64_t>{-1, 127});
  REQUIRE(decode<std::int64_t>(Dtype::U32, "\xff\xff\xff\xff") == std::vector<std::int64_t>{4294967295});
  REQUIRE(decode<double>(Dtype::I16, std::string("\x00\x80", 2)) == std::vector<double>{-32768});
  REQUIRE(decode<float>(Dtype::BOOL, std::string("\x00\x01\x02", 3)) == std::vector<float>{0, 1, 1});
  REQUIRE(decode<float>(Dtype::F64, test::bytes_of(std::vector<double>{0.1, 1e300})) ==
          std::vector<float>{0.1f, std::numeric_limits<float>::infinity()});
}
