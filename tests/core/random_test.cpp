// SPDX-License-Identifier: MIT
#include "moe/core/random.hpp"

#include <cmath>
#include <vector>

#include "support/catch.hpp"

namespace {

using moe::Index;
using moe::Purpose;
using moe::RandomField;
using Words = std::array<std::uint32_t, 4>;

/// Sum of (observed - expected)^2 / expected. All thresholds below are 99.9% quantiles, and all keys are fixed.
double chi_square(const std::vector<double>& observed, const std::vector<double>& expected) {
  double sum = 0;
  for (std::size_t i = 0; i < observed.size(); ++i) sum += std::pow(observed[i] - expected[i], 2) / expected[i];
  return sum;
}

TEST_CASE("philox: reproduces the known answers of Random123", "[core][golden]") {
  STATIC_REQUIRE(moe::philox({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  constexpr std::uint32_t kOnes = 0xffffffff;
  STATIC_REQUIRE(moe::philox({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}) ==
                 Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  STATIC_REQUIRE(moe::philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
                 Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("RandomField: a draw depends on its key and its place, not on the order of calls", "[core]") {
  const RandomField field(Purpose::Noise, 7, 3), same(Purpose::Noise, 7, 3);
  const std::uint64_t later = field.bits(5, 2);
  CHECK(field.bits(4, 2) != later);
  CHECK(field.bits(5, 3) != later);
  CHECK(same.bits(5, 2) == later);
}

TEST_CASE("RandomField: every part of the key, and the order of parts, matters", "[core]") {
  const std::uint64_t bits = RandomField(Purpose::Noise, 7, 3).bits(0);
  CHECK(RandomField(Purpose::Draw, 7, 3).bits(0) != bits);
  CHECK(RandomField(Purpose::Noise, 8, 3).bits(0) != bits);
  CHECK(RandomField(Purpose::Noise, 7, 4).bits(0) != bits);
  CHECK(RandomField(Purpose::Noise, 3, 7).bits(0) != bits);
  CHECK(RandomField(Purpose::Noise, 7).bits(0) != bits);
  CHECK(RandomField(Purpose::Noise, 7, 3, 0).bits(0) != bits);
}

TEST_CASE("RandomField: rows and columns beyond 32 bits, and negative ones, are places of their own", "[core]") {
  const RandomField field(Purpose::User);
  const std::int64_t far = std::int64_t{1} << 40;
  CHECK(field.bits(far) != field.bits(0));
  CHECK(field.bits(0, far) != field.bits(0, 0));
  CHECK(field.bits(-1) != field.bits(1));
  CHECK(field.bits(0, 1) != field.bits(1, 0));
}

TEST_CASE("RandomField: uniform draws fill (0, 1) evenly", "[core]") {
  const RandomField field(Purpose::User, 1);
  std::vector<double> count(16);
  for (Index i = 0; i < 32000; ++i) {
    const double u = field.uniform(i / 100, i % 100);
    REQUIRE((0 < u && u < 1));
    ++count[static_cast<std::size_t>(u * 16)];
  }
  CHECK(chi_square(count, std::vector<double>(16, 2000)) < 37.7);  // 15 degrees of freedom
}

TEST_CASE("RandomField: neighbours and purposes are independent", "[core]") {
  const RandomField noise(Purpose::Noise, 5), draw(Purpose::Draw, 5);
  std::vector<double> by_row(16), by_column(16), by_purpose(16);
  const auto cell = [](double a, double b) {
    return static_cast<std::size_t>(a * 4) * 4 + static_cast<std::size_t>(b * 4);
  };
  for (Index i = 0; i < 16000; ++i) {
    const double u = noise.uniform(i, 3);
    ++by_row[cell(u, noise.uniform(i + 1, 3))];
    ++by_column[cell(u, noise.uniform(i, 4))];
    ++by_purpose[cell(u, draw.uniform(i, 3))];
  }
  const std::vector<double> even(16, 1000);
  CHECK(chi_square(by_row, even) < 37.7);
  CHECK(chi_square(by_column, even) < 37.7);
  CHECK(chi_square(by_purpose, even) < 37.7);
}

TEST_CASE("RandomField: normal draws have the moments of the normal distribution", "[core]") {
  const RandomField field(Purpose::Initialise, 11);
  constexpr Index kDraws = 40000;
  double moment[5] = {};
  for (Index i = 0; i < kDraws; ++i)
    for (int power = 1; power <= 4; ++power) moment[power] += std::pow(field.normal(i, -i), power) / kDraws;
  const double root = std::sqrt(double{kDraws});  // four standard errors; the variances of x^m are 1, 2, 15 and 96
  CHECK_THAT(moment[1], Catch::Matchers::WithinAbs(0, 4 / root));
  CHECK_THAT(moment[2], Catch::Matchers::WithinAbs(1, 4 * std::sqrt(2.0) / root));
  CHECK_THAT(moment[3], Catch::Matchers::WithinAbs(0, 4 * std::sqrt(15.0) / root));
  CHECK_THAT(moment[4], Catch::Matchers::WithinAbs(3, 4 * std::sqrt(96.0) / root));
}

TEST_CASE("RandomField: the arg max of logits plus Gumbel draws follows their softmax", "[core]") {
  const RandomField field(Purpose::Gumbel, 3);
  const std::vector<double> logits = {2, 1, 0.5, -1}, share = {0.609460, 0.224208, 0.135989, 0.030343};
  constexpr Index kDraws = 20000;
  std::vector<double> count(4), expected;
  for (const double p : share) expected.push_back(p * kDraws);
  for (Index t = 0; t < kDraws; ++t) {
    std::size_t best = 0;
    std::vector<double> score(4);
    for (std::size_t e = 0; e < 4; ++e) {
      score[e] = logits[e] + field.gumbel(t, static_cast<Index>(e));
      if (score[e] > score[best]) best = e;
    }
    ++count[best];
  }
  CHECK(chi_square(count, expected) < 16.3);  // 3 degrees of freedom
}

TEST_CASE("RandomField: below is the upper half of bits times count", "[core]") {
  __extension__ typedef unsigned __int128 Wide;
  const RandomField field(Purpose::Shuffle, 2);
  const std::uint64_t half = std::uint64_t{1} << 32;
  for (const std::uint64_t count : {std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{7}, half - 1, half, half + 1,
                                    std::uint64_t{0x123456789abcdef}, ~std::uint64_t{0}})
    for (Index i = 0; i < 500; ++i) {
      CAPTURE(count, i);
      const std::uint64_t below = field.below(count, i, 9);
      REQUIRE(below == static_cast<std::uint64_t>((Wide{field.bits(i, 9)} * count) >> 64));
      REQUIRE(below < count);
    }
}

}  // namespace
