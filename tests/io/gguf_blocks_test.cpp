// SPDX-License-Identifier: MIT
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "moe/io/file/gguf_blocks.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;
using Bytes = std::vector<unsigned>;

/// IEEE half precision, by its definition.
double half(unsigned code) {
  const int exponent = static_cast<int>(code >> 10 & 31), sign = code >> 15 ? -1 : 1;
  const double fraction = code & 1023;
  if (exponent == 31)
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}
double half_at(const Bytes& b, std::size_t place) { return half(b[place] | b[place + 1] << 8); }
double int8(unsigned byte) { return byte < 128 ? byte : static_cast<double>(byte) - 256; }

/// What a product of a few short numbers is, which doubles hold: a float. A difference of two is rounded once.
float product(double value) { return static_cast<float>(value); }
float difference(double a, double b) { return product(a) - product(b); }

/// Codes of `bits` in the order of values: chunks of bytes, which are read once for each place of a code in a byte.
Bytes codes_of(const Bytes& b, std::size_t first, std::size_t count, std::size_t chunk, unsigned bits) {
  Bytes codes;
  for (std::size_t begin = first; begin < first + count; begin += chunk)
    for (unsigned shift = 0; shift < 8; shift += bits)
      for (std::size_t i = begin; i < begin + chunk; ++i) codes.push_back(b[i] >> shift & ((1u << bits) - 1));
  return codes;
}

std::vector<float> q8_0(const Bytes& b) {
  std::vector<float> y;
  for (std::size_t i = 0; i < 32; ++i) y.push_back(product(int8(b[2 + i]) * half_at(b, 0)));
  return y;
}
std::vector<float> q4_0(const Bytes& b) {
  std::vector<float> y;
  for (const unsigned q : codes_of(b, 2, 16, 16, 4)) y.push_back(product((q - 8.0) * half_at(b, 0)));
  return y;
}
std::vector<float> q4_1(const Bytes& b) {
  std::vector<float> y;
  for (const unsigned q : codes_of(b, 4, 16, 16, 4)) y.push_back(difference(q * half_at(b, 0), -half_at(b, 2)));
  return y;
}
Bytes with_fifth_bits(Bytes codes, const Bytes& b, std::size_t place) {
  const unsigned bits = b[place] | b[place + 1] << 8 | b[place + 2] << 16 | b[place + 3] << 24;
  for (std::size_t i = 0; i < 32; ++i) codes[i] += 16 * (bits >> i & 1u);
  return codes;
}
std::vector<float> q5_0(const Bytes& b) {
  std::vector<float> y;
  for (const unsigned q : with_fifth_bits(codes_of(b, 6, 16, 16, 4), b, 2))
    y.push_back(product((q - 16.0) * half_at(b, 0)));
  return y;
}
std::vector<float> q5_1(const Bytes& b) {
  std::vector<float> y;
  for (const unsigned q : with_fifth_bits(codes_of(b, 8, 16, 16, 4), b, 4))
    y.push_back(difference(q * half_at(b, 0), -half_at(b, 2)));
  return y;
}

std::vector<float> q2_k(const Bytes& b) {
  const Bytes q = codes_of(b, 16, 64, 32, 2);
  std::vector<float> y;
  for (std::size_t i = 0; i < 256; ++i)
    y.push_back(difference(half_at(b, 80) * (b[i / 16] % 16) * q[i], half_at(b, 82) * (b[i / 16] / 16)));
  return y;
}
std::vector<float> q3_k(const Bytes& b) {
  const Bytes q = codes_of(b, 32, 64, 32, 2), third = codes_of(b, 0, 32, 32, 1);
  const Bytes low = codes_of(b, 96, 8, 8, 4), high = codes_of(b, 104, 4, 4, 2);
  std::vector<float> y;
  for (std::size_t i = 0; i < 256; ++i) {
    const double scale = low[i / 16] + 16.0 * high[i / 16] - 32, code = q[i] + 4.0 * third[i] - 4;
    y.push_back(product(half_at(b, 108) * scale * code));
  }
  return y;
}
struct ScalesAndMins {
  Bytes scales = Bytes(8), mins = Bytes(8);

  explicit ScalesAndMins(const Bytes& b) {
    for (std::size_t i = 0; i < 4; ++i) {
      scales[i] = b[4 + i] % 64;
      mins[i] = b[8 + i] % 64;
      scales[i + 4] = b[12 + i] % 16 + b[4 + i] / 64 * 16;
      mins[i + 4] = b[12 + i] / 16 + b[8 + i] / 64 * 16;
    }
  }
};
std::vector<float> scaled(const Bytes& b, const Bytes& codes) {
  const ScalesAndMins parts(b);
  std::vector<float> y;
  for (std::size_t i = 0; i < 256; ++i)
    y.push_back(difference(half_at(b, 0) * parts.scales[i / 32] * codes[i], half_at(b, 2) * parts.mins[i / 32]));
  return y;
}
std::vector<float> q4_k(const Bytes& b) { return scaled(b, codes_of(b, 16, 128, 32, 4)); }
std::vector<float> q5_k(const Bytes& b) {
  Bytes codes = codes_of(b, 48, 128, 32, 4);
  const Bytes fifth = codes_of(b, 16, 32, 32, 1);
  for (std::size_t i = 0; i < 256; ++i) codes[i] += 16 * fifth[i];
  return scaled(b, codes);
}
std::vector<float> q6_k(const Bytes& b) {
  const Bytes low = codes_of(b, 0, 128, 64, 4), high = codes_of(b, 128, 64, 32, 2);
  std::vector<float> y;
  for (std::size_t i = 0; i < 256; ++i)
    y.push_back(product(half_at(b, 208) * int8(b[192 + i / 16]) * (low[i] + 16.0 * high[i] - 32)));
  return y;
}

double non_linear(unsigned code) {
  const std::vector<double> values{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return values[code];
}
std::vector<float> iq4_nl(const Bytes& b) {
  std::vector<float> y;
  for (const unsigned q : codes_of(b, 2, 16, 16, 4)) y.push_back(product(non_linear(q) * half_at(b, 0)));
  return y;
}
std::vector<float> iq4_xs(const Bytes& b) {
  const Bytes q = codes_of(b, 8, 128, 16, 4);
  std::vector<float> y;
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t s = i / 32;
    const unsigned low = s % 2 == 0 ? b[4 + s / 2] % 16 : b[4 + s / 2] / 16;
    const unsigned high = (b[2] | b[3] << 8) >> (2 * s) & 3u;
    y.push_back(product(half_at(b, 0) * (low + 16.0 * high - 32) * non_linear(q[i])));
  }
  return y;
}
/// Twice E2M1, as integers, so there is no -0.
std::vector<float> mxfp4(const Bytes& b) {
  const std::vector<int> values{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  std::vector<float> y;
  for (const unsigned q : codes_of(b, 1, 16, 16, 4))
    y.push_back(product(std::ldexp(values[q], static_cast<int>(b[0]) - 128)));
  return y;
}

struct Oracle {
  std::size_t bytes;
  std::vector<std::size_t> halves;  ///< places of numbers in half precision
  std::vector<float> (*decode)(const Bytes&);
};
const std::map<std::string, Oracle>& oracles() {
  static const std::map<std::string, Oracle> all{
      {"Q8_0", {34, {0}, q8_0}},    {"Q4_0", {18, {0}, q4_0}},     {"Q4_1", {20, {0, 2}, q4_1}},
      {"Q5_0", {22, {0}, q5_0}},    {"Q5_1", {24, {0, 2}, q5_1}},  {"Q2_K", {84, {80, 82}, q2_k}},
      {"Q3_K", {110, {108}, q3_k}}, {"Q4_K", {144, {0, 2}, q4_k}}, {"Q5_K", {176, {0, 2}, q5_k}},
      {"Q6_K", {210, {208}, q6_k}}, {"IQ4_NL", {18, {0}, iq4_nl}}, {"IQ4_XS", {136, {0}, iq4_xs}},
      {"MXFP4", {17, {}, mxfp4}}};
  return all;
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}
std::vector<std::byte> stored(const Bytes& b) {
  std::vector<std::byte> bytes;
  for (const unsigned byte : b) bytes.push_back(static_cast<std::byte>(byte));
  return bytes;
}
void require_decoded(const moe::GgufBlockType& type, const Oracle& oracle, const Bytes& b) {
  const std::vector<std::byte> bytes = stored(b);
  std::vector<float> values(static_cast<std::size_t>(type.values));
  moe::decode_gguf(type, bytes, 0, values);
  const std::vector<float> expected = oracle.decode(b);
  REQUIRE(expected.size() == values.size());
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!same(values[i], expected[i])) FAIL(type.name << ", value " << i << ": " << values[i] << ", " << expected[i]);
}

/// 0, -0, 1, small, subnormal and large numbers, infinities and NaN.
const std::vector<unsigned> kHalves{0,      0x8000, 0x3C00, 0x2A6D, 0xA99A, 0x0001, 0x83FF,
                                    0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFD55};

template <class F>
void for_each_type(const F& f) {
  for (const moe::GgufBlockType& type : moe::kGgufBlocks) f(type, oracles().at(std::string(type.name)));
}
void put_half(Bytes& b, std::size_t place, unsigned code) {
  b[place] = code % 256;
  b[place + 1] = code / 256;
}

}  // namespace

TEST_CASE("decode_gguf: all types have an oracle and their size", "[io]") {
  REQUIRE(oracles().size() == moe::kGgufBlocks.size());
  for_each_type([](const moe::GgufBlockType& type, const Oracle& oracle) {
    REQUIRE(static_cast<std::size_t>(type.bytes) == oracle.bytes);
    REQUIRE(moe::find_gguf_block(type.name)->decode == type.decode);
  });
  REQUIRE(moe::find_gguf_block("Q9_9") == nullptr);
}

TEST_CASE("decode_gguf: every byte at every place is decoded as its type says", "[io]") {
  for_each_type([](const moe::GgufBlockType& type, const Oracle& oracle) {
    for (std::size_t place = 0; place < oracle.bytes; ++place)
      for (unsigned value = 0; value < 256; ++value) {
        Bytes b(oracle.bytes, 0x5A);
        for (const std::size_t number : oracle.halves) put_half(b, number, 0x2E66);
        b[place] = value;
        require_decoded(type, oracle, b);
      }
  });
}

TEST_CASE("decode_gguf: random blocks with every kind of scale are decoded as their type says", "[io][property]") {
  std::mt19937 engine(3);
  for_each_type([&](const moe::GgufBlockType& type, const Oracle& oracle) {
    for (int round = 0; round < 20; ++round)
      for (const unsigned first : kHalves)
        for (const unsigned second : kHalves) {
          Bytes b(oracle.bytes);
          for (unsigned& byte : b) byte = static_cast<unsigned>(engine()) % 256;
          if (!oracle.halves.empty()) put_half(b, oracle.halves[0], first);
          if (oracle.halves.size() > 1) put_half(b, oracle.halves[1], second);
          require_decoded(type, oracle, b);
        }
  });
}

TEST_CASE("decode_gguf: a part of the values is part of all of them, and there are no others", "[io]") {
  std::mt19937 engine(4);
  for_each_type([&](const moe::GgufBlockType& type, const Oracle& oracle) {
    Bytes b(3 * oracle.bytes);
    for (unsigned& byte : b) byte = static_cast<unsigned>(engine()) % 256;
    const std::vector<std::byte> bytes = stored(b);
    std::vector<float> whole(static_cast<std::size_t>(3 * type.values));
    moe::decode_gguf(type, bytes, 0, whole);
    for (Index first = 0; first <= 3 * type.values; first += 1 + first / 5)
      for (const Index count : {Index{0}, Index{1}, Index{31}, type.values, type.values + 7, 2 * type.values + 1}) {
        std::vector<float> part(static_cast<std::size_t>(count));
        CAPTURE(type.name, first, count);
        if (first + count > 3 * type.values) {
          REQUIRE_THROWS_AS(moe::decode_gguf(type, bytes, first, part), std::invalid_argument);
          continue;
        }
        moe::decode_gguf(type, bytes, first, part);
        REQUIRE(std::equal(part.begin(), part.end(), whole.begin() + first, same));
      }
    std::vector<float> one(1);
    REQUIRE_THROWS_AS(moe::decode_gguf(type, bytes, -1, one), std::invalid_argument);
  });
}
