// SPDX-License-Identifier: MIT
// Weights in few bits: every code is what its format says, and products have the bits of those with decoded weights.
#include "moe/kernel/quantised_matrix.hpp"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "kernel/products.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::Matrix;
using moe::PanelMatrix;
using moe::PanelOrder;
using moe::Quantised;
using moe::ScaleType;
using moe::WeightCode;
using moe::WeightFormat;
using Panels = PanelMatrix<Quantised>;

namespace kernel = moe::kernel;

namespace {

/// A number of a sign, some bits of exponent and of fraction, as in its definition. E4M3 and E2M1 have no infinity; all
/// ones of E4M3 is NaN.
double float_of(std::uint32_t code, int exponent_bits, int fraction_bits, bool has_infinity, bool has_nan) {
  const std::uint32_t fraction = code & ((1u << fraction_bits) - 1);
  const std::uint32_t exponent = code >> fraction_bits & ((1u << exponent_bits) - 1);
  const bool is_negative = code >> (exponent_bits + fraction_bits) != 0;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const std::uint32_t top = (1u << exponent_bits) - 1, ones = (1u << fraction_bits) - 1;
  double value = exponent == 0
                     ? std::ldexp(fraction, 1 - bias - fraction_bits)
                     : std::ldexp(fraction + (1u << fraction_bits), static_cast<int>(exponent) - bias - fraction_bits);
  if (has_infinity && exponent == top) value = fraction == 0 ? HUGE_VAL : std::nan("");
  if (has_nan && !has_infinity && exponent == top && fraction == ones) value = std::nan("");
  return is_negative ? -value : value;
}

/// The number of a code by the definition of its format.
double value_of(const WeightFormat& format, std::uint32_t code) {
  switch (format.code) {
    case WeightCode::Zeros:
      return 0;
    case WeightCode::Bf16:
      return float_of(code, 8, 7, true, true);
    case WeightCode::F16:
      return float_of(code, 5, 10, true, true);
    case WeightCode::E4M3:
      return float_of(code, 4, 3, false, true);
    case WeightCode::E5M2:
      return float_of(code, 5, 2, true, true);
    case WeightCode::E2M1:
      return float_of(code, 2, 1, false, false);
    case WeightCode::Int8:
      return code < 128 ? static_cast<double>(code) : static_cast<double>(code) - 256;
    case WeightCode::Int4:
      return code < 8 ? static_cast<double>(code) : static_cast<double>(code) - 16;
    case WeightCode::Planes:
      return static_cast<double>(code) - (std::ldexp(1.0, format.bits) - 1) / 2;
  }
  return 0;
}

bool is_same(float found, double expected) {
  return std::isnan(expected) ? std::isnan(found) : test::same_bits(found, static_cast<float>(expected));
}

/// One of each way to read codes, with groups that end inside and at the end of matrices.
const std::vector<WeightFormat> kFormats = {
    WeightFormat::none(),
    WeightFormat::bf16(),
    WeightFormat::f16(),
    WeightFormat::fp8(),
    WeightFormat::fp8(16, ScaleType::Bf16),
    WeightFormat::fp8(0, ScaleType::Unscaled),
    WeightFormat::fp8_e5m2(0),
    WeightFormat::int8(),
    WeightFormat::int8(0, ScaleType::F32),
    WeightFormat::int8(64, ScaleType::Bf16).with_zero_points(),
    WeightFormat::int4(),
    WeightFormat::int4(8).with_zero_points(),
    WeightFormat::mxfp4(),
    WeightFormat::nvfp4(),
    WeightFormat::planes(1),
    WeightFormat::planes(3, 32).without_zero_points(),
    WeightFormat::planes(5, 0, ScaleType::F32),
    WeightFormat::planes(8, 96, ScaleType::Bf16),
};

/// Codes, scales and zero points at random; of floats no NaN and no infinity.
Panels random_panels(Index outputs, Index inputs, PanelOrder order, const WeightFormat& format,
                     std::uint64_t seed = 1) {
  const moe::RandomField random(moe::Purpose::User, seed);
  Panels result(outputs, inputs, order, format);
  if (format.code == WeightCode::Zeros) return result;
  if (format.scale == ScaleType::E4M3) result.set_matrix_scale(0.37f);
  for (Index o = 0; o < outputs; ++o) {
    for (Index g = 0; g < result.num_groups(); ++g) {
      const double scale = 0.25 + random.uniform(o, -1 - g);
      result.set_scale(o, g,
                       static_cast<float>(format.scale == ScaleType::E8M0 ? std::exp2(std::floor(8 * scale)) : scale));
      if (!format.has_zero_points) continue;
      const double zero = random.uniform(o, -1000 - g);
      result.set_zero_point(o, g,
                            static_cast<float>(format.code == WeightCode::Planes ? zero : std::floor(15 * zero) - 7));
    }
    for (Index i = 0; i < inputs; ++i) {
      const auto limit = std::ldexp(1.0, format.code_bits());
      auto code = static_cast<std::uint32_t>(limit * random.uniform(o, i));
      while (!std::isfinite(value_of(format, code))) code -= 1u << (format.code_bits() - 3);
      result.set_code(o, i, code);
    }
  }
  return result;
}

/// rows x W^T by the kernel.
Matrix<float> product(const kernel::PanelSource<float>& weight, const Matrix<float>& rows) {
  Matrix<float> out = test::nan_matrix<float>(rows.rows(), weight.width());
  kernel::multiply<float>(kernel::RowSource<float>::from(moe::ConstMatrixRef<float>(rows)), 0, rows.rows(),
                          {weight, 0, weight.panels}, [&](Index row, int count, Index panel, const float* sums) {
                            test::Products<moe::F32>::copy(sums, count, row, panel, out);
                          });
  return out;
}

}  // namespace

TEST_CASE("PanelMatrix<Quantised>: every code is what its format says, one by one, in blocks and in products",
          "[kernel]") {
  for (WeightFormat format : kFormats) {
    if (format.code == WeightCode::Zeros) continue;
    const auto count = Index{1} << format.code_bits();
    const Index inputs = std::min<Index>(count, 4096), outputs = count / inputs;
    Panels panels(outputs, inputs, PanelOrder::Plain, format);
    for (Index o = 0; o < outputs; ++o) {
      for (Index g = 0; g < panels.num_groups(); ++g) panels.set_scale(o, g, 0.5f);
      for (Index i = 0; i < inputs; ++i) panels.set_code(o, i, static_cast<std::uint32_t>(o * inputs + i));
    }
    const double scale = format.scale == ScaleType::Unscaled ? 1 : 0.5;
    const PanelMatrix<moe::F32> decoded = panels.decoded();
    // Identity rows: one code each, as 0 times NaN is NaN.
    const Matrix<float> row = Matrix<float>::Ones(1, 1);
    CAPTURE(format.name());
    for (Index o = 0; o < outputs; ++o)
      for (Index i = 0; i < inputs; ++i) {
        const auto code = static_cast<std::uint32_t>(o * inputs + i);
        const double value = value_of(format, code);
        const double expected = value * scale;
        REQUIRE(panels.code(o, i) == code);
        REQUIRE(is_same(panels.get(o, i), format.has_zero_points ? expected + 0.0 : expected));
        REQUIRE(test::same_bits(std::isnan(expected) ? test::kNan<float> : panels.get(o, i),
                                std::isnan(expected) ? test::kNan<float> : decoded(o, i)));
        REQUIRE(std::isnan(decoded(o, i)) == std::isnan(expected));
        if (count > 256) continue;
        Panels one(1, 1, PanelOrder::Plain, format);
        if (one.num_groups() > 0) one.set_scale(0, 0, 0.5f);
        one.set_code(0, 0, code);
        REQUIRE(is_same(product(one.source(), row)(0, 0), expected + 0.0));
      }
  }
}

TEST_CASE("PanelMatrix<Quantised>: a weight is code, zero point and scale, rounded once", "[kernel]") {
  for (const WeightFormat& format : kFormats) {
    if (format.code == WeightCode::Zeros) continue;
    CAPTURE(format.name());
    const Panels panels = random_panels(37, 101, PanelOrder::Plain, format);
    for (Index o = 0; o < 37; ++o)
      for (Index i = 0; i < 101; ++i) {
        const double value = value_of(format, panels.code(o, i));
        float expected = static_cast<float>(value);
        if (format.scale != ScaleType::Unscaled) {
          const Index g = i / format.group_of(101);
          const float scale = panels.scale(o, g) * panels.matrix_scale();
          const float zero = format.has_zero_points ? panels.zero_point(o, g) : 0;
          expected = format.code == WeightCode::Planes && format.has_zero_points
                         ? moe::simd::fma(static_cast<float>(value), scale, zero)
                         : (static_cast<float>(value) - zero) * scale;
        }
        REQUIRE(test::same_bits(panels.get(o, i), expected));
      }
  }
}

TEST_CASE("PanelMatrix<Quantised>: products and blocks have the bits of the decoded weights", "[kernel]") {
  constexpr Index kWidth = Panels::kWidth;
  constexpr Index kBlock = kernel::detail::kExpandedInputs<float>;
  for (const WeightFormat& format : kFormats)
    for (const PanelOrder order : {PanelOrder::Plain, PanelOrder::Paired})
      for (const Index outputs : {Index{2}, kWidth - 2, kWidth, 3 * kWidth + 4, 9 * kWidth})
        for (const Index inputs : {Index{0}, Index{1}, Index{7}, Index{33}, kBlock + 41}) {
          CAPTURE(format.name(), order == PanelOrder::Paired, outputs, inputs);
          const Panels panels = random_panels(outputs, inputs, order, format);
          const PanelMatrix<moe::F32> decoded = panels.decoded();
          REQUIRE(decoded.order() == order);
          for (Index o = 0; o < outputs; ++o)
            for (Index i = 0; i < inputs; ++i) REQUIRE(test::same_bits(panels.get(o, i), decoded(o, i)));
          std::vector<float> block(static_cast<std::size_t>(kWidth * kWidth));
          if (inputs > kWidth) {  // from the middle of a group
            const Index end = std::min(inputs, 2 * kWidth);
            const auto source = panels.source();
            source.decoder->decode(source.matrix, 0, kWidth, end, block.data());
            for (Index i = kWidth; i < end; ++i)
              for (Index c = 0; c < kWidth; ++c)
                REQUIRE(test::same_bits(block[static_cast<std::size_t>((i - kWidth) * kWidth + c)],
                                        decoded.panel(0)[i * kWidth + c]));
          }
          for (const Index rows : {1, 2, 3, 4, 5, 6, 7, 13}) {
            if (rows > 2 && outputs > kWidth && inputs == 7) continue;
            CAPTURE(rows);
            const auto x = test::random_matrix<float>(rows, inputs);
            REQUIRE(test::same_bits(product(panels.source(), x), product(decoded.source(), x)));
          }
        }
}

TEST_CASE("PanelMatrix<Quantised>: what is said to be the place of a block holds all of its codes", "[kernel]") {
  const Index outputs = Panels::kWidth + 1, block = Panels::kWidth, inputs = GENERATE(1, 40, 3 * Panels::kWidth + 5);
  for (const WeightFormat& format : kFormats) {
    if (format == WeightFormat::none()) continue;
    CAPTURE(inputs, format.name());
    Panels weights(outputs, inputs, PanelOrder::Plain, format);
    for (Index output = 0; output < outputs; output += Panels::kWidth)
      for (Index i = 0; i < inputs; ++i) {
        const Index begin = i / block * block, end = std::min(inputs, begin + block);
        const auto place = std::as_bytes(weights.source().place(output / Panels::kWidth, begin, end));
        const std::vector<std::byte> before(place.begin(), place.end());
        weights.set_code(output, i, weights.code(output, i) ^ 1u);
        CHECK_FALSE(std::ranges::equal(before, place));
      }
  }
}

TEST_CASE("PanelMatrix<Quantised>: the first planes are the weights of fewer bits", "[kernel]") {
  for (const bool zeros : {false, true})
    for (int bits = 1; bits <= 8; ++bits) {
      WeightFormat format = WeightFormat::planes(bits, 32, ScaleType::F32);
      if (!zeros) format = format.without_zero_points();
      const Panels whole = random_panels(21, 70, PanelOrder::Plain, format);
      for (int fewer = 1; fewer <= bits; ++fewer) {
        CAPTURE(bits, fewer, zeros);
        const Panels part = whole.first_planes(fewer);
        CHECK(part.format().bits == fewer);
        for (Index o = 0; o < 21; ++o)
          for (Index i = 0; i < 70; ++i) {
            const int lost = bits - fewer;
            REQUIRE(part.code(o, i) == whole.code(o, i) >> lost);
            // The middle of the weights that share these planes: the residual is one of the lost planes alone.
            const double scale = static_cast<double>(whole.scale(o, i / 32));
            const double offset = zeros ? static_cast<double>(whole.zero_point(o, i / 32)) : 0;
            const double rest =
                static_cast<double>(whole.code(o, i) & ((1u << lost) - 1)) - (std::ldexp(1.0, lost) - 1) / 2;
            const double exact = static_cast<double>(whole.get(o, i)) - scale * rest;
            REQUIRE(std::abs(static_cast<double>(part.get(o, i)) - exact) <=
                    2e-7 * (std::abs(scale) * std::ldexp(1.0, bits) + std::abs(offset)));
          }
      }
      CHECK_THROWS_AS(whole.first_planes(bits + 1), std::invalid_argument);
      CHECK_THROWS_AS(whole.first_planes(0), std::invalid_argument);
    }
}

TEST_CASE("PanelMatrix<Quantised>: planes are the bits of codes, and come back one after the other", "[kernel]") {
  for (const auto& [outputs, order] : {std::pair<Index, PanelOrder>{21, PanelOrder::Plain},
                                       {1, PanelOrder::Plain},
                                       {38, PanelOrder::Paired},
                                       {2, PanelOrder::Paired}})
    for (const Index inputs : {1, 32, 70, 129})
      for (const Index group : {0, 32, 64}) {
        CAPTURE(outputs, inputs, group);
        const Panels whole = random_panels(outputs, inputs, order, WeightFormat::planes(5, group));
        Panels part = whole.first_planes(2);
        for (int p = 0; p < 5; ++p) {
          const std::vector<std::uint32_t> words = whole.plane(p);
          REQUIRE(std::ssize(words) == (inputs + 31) / 32 * outputs);
          for (Index o = 0; o < outputs; ++o)
            for (Index i = 0; i < (inputs + 31) / 32 * 32; ++i) {
              const std::uint32_t bit = words[static_cast<std::size_t>(i / 32 * outputs + o)] >> i % 32 & 1u;
              REQUIRE(bit == (i < inputs ? whole.code(o, i) >> (4 - p) & 1u : 0u));
            }
          if (p < 2) continue;
          part = part.with_planes(words);
          REQUIRE(part.rows().codes == whole.first_planes(p + 1).rows().codes);
          REQUIRE(part.rows().scales == whole.first_planes(p + 1).rows().scales);
        }
        std::vector<std::uint32_t> rest = whole.plane(1);
        for (const int p : {2, 3, 4})
          for (const std::uint32_t word : whole.plane(p)) rest.push_back(word);
        const Panels at_once = whole.first_planes(1).with_planes(rest);
        CHECK(at_once.rows().codes == whole.rows().codes);
        CHECK(at_once.rows().zeros == whole.rows().zeros);
        CHECK(at_once.format() == whole.format());
        if (inputs % 32 == 0) continue;
        rest.back() = ~0u;
        CHECK_THROWS_AS(whole.first_planes(1).with_planes(rest), std::invalid_argument);
      }
  Panels few = random_panels(9, 40, PanelOrder::Plain, WeightFormat::planes(7));
  Panels scaled(9, 40, PanelOrder::Plain, WeightFormat::planes(7));
  for (int p = 0; p < 7; ++p) scaled.set_plane(p, few.plane(p));
  scaled.set_groups(few.rows().scales, few.rows().zeros);
  CHECK(test::same_bits(scaled.decoded().matrix(), few.decoded().matrix()));
  CHECK_THROWS_AS(scaled.set_groups(few.rows().scales, {}), std::invalid_argument);
  Panels large = few;
  large.set_scale(3, 0, 60000.0f);
  CHECK_THROWS_AS(large.first_planes(1), std::invalid_argument);  // no F16
  CHECK(large.first_planes(7).scale(3, 0) == large.scale(3, 0));
  Panels small(9, 40, PanelOrder::Plain, WeightFormat::planes(3, 32, ScaleType::E4M3).without_zero_points());
  small.set_matrix_scale(0.25f);
  small.set_scale(2, 1, 2.0f);
  CHECK(small.get(2, 33) == -3.5f * 0.5f);  // code 0 of 3 bits, scale 2 / 4
  CHECK(small.first_planes(1).get(2, 33) == -0.5f * 2.0f);
  std::vector<std::uint32_t> words = few.plane(0);
  CHECK_THROWS_AS(few.plane(7), std::invalid_argument);
  CHECK_THROWS_AS(few.plane(-1), std::invalid_argument);
  CHECK_THROWS_AS(random_panels(9, 40, PanelOrder::Plain, WeightFormat::int4()).plane(0), std::invalid_argument);
  words.resize(2 * words.size());
  CHECK_THROWS_AS(few.with_planes(words), std::invalid_argument);  // 9 bits
  CHECK_THROWS_AS(few.set_plane(0, words), std::invalid_argument);
  words.pop_back();
  CHECK_THROWS_AS(few.with_planes(words), std::invalid_argument);
}

TEST_CASE("PanelMatrix<Quantised>: each plane takes from the residual what its steps say", "[kernel][property]") {
  // Of the codes nearest to w inside their range, the next bit is the sign of the residual R of those before, and moves
  // the weight by a quarter s of the last step: |R'|^2 = |R|^2 - 2 s |R|_1 + g s^2, D2MoE's identity where s = |R|_1 /
  // g.
  const moe::PanelMatrix<moe::F32> weights = [] {
    moe::PanelMatrix<moe::F32> made(16, 64);
    const moe::RandomField random(moe::Purpose::User, 3);
    for (Index o = 0; o < 16; ++o)
      for (Index i = 0; i < 64; ++i) made(o, i) = static_cast<float>(random.normal(o, i));
    return made;
  }();
  Panels whole(16, 64, PanelOrder::Plain, WeightFormat::planes(8, 32, ScaleType::F32));
  whole.round(weights);
  for (Index o = 0; o < 16; ++o)
    for (Index g = 0; g < 2; ++g)
      for (int bits = 1; bits < 7; ++bits) {  // so that what 8 bits round away is small beside a step
        const Panels before = whole.first_planes(bits), after = whole.first_planes(bits + 1);
        const double step = static_cast<double>(after.scale(o, g)) / 2;
        double norm = 0, sum = 0, next = 0;
        for (Index i = 32 * g; i < 32 * g + 32; ++i) {
          const double w = static_cast<double>(weights(o, i)), r = w - static_cast<double>(before.get(o, i));
          norm += r * r, sum += std::abs(r);
          next += std::pow(w - static_cast<double>(after.get(o, i)), 2);
        }
        CAPTURE(o, g, bits);
        CHECK_THAT(next, Catch::Matchers::WithinAbs(norm - 2 * step * sum + 32 * step * step, 1e-5 * norm));
        CHECK(next < norm);
      }
}

TEST_CASE("PanelMatrix<Quantised>: copies share their codes until one is written", "[kernel]") {
  Panels first = random_panels(9, 40, PanelOrder::Plain, WeightFormat::int4());
  const Panels second = first;
  CHECK(first.source().matrix == second.source().matrix);
  const std::uint32_t before = first.code(3, 5);
  first.set_code(3, 5, before ^ 1u);
  CHECK(first.source().matrix != second.source().matrix);
  CHECK(second.code(3, 5) == before);
  CHECK(first.code(3, 5) == (before ^ 1u));
  const Panels third = std::move(first);
  CHECK(first.empty());
  CHECK(first.inputs() == 0);
  CHECK(first.bytes() == 0);
  CHECK(first.source().panels == 0);
  CHECK(third.code(3, 5) == (before ^ 1u));
}

TEST_CASE("PanelMatrix<Quantised>: rows of codes are set as one by one, whatever the sizes", "[kernel][property]") {
  for (const WeightFormat& format : kFormats)
    for (const auto& [outputs, inputs] : {std::pair<Index, Index>{1, 1}, {2, 7}, {38, 8}, {70, 41}, {64, 200}})
      for (const PanelOrder order : {PanelOrder::Plain, PanelOrder::Paired}) {
        if (order == PanelOrder::Paired && outputs % 2 != 0) continue;
        CAPTURE(format.name(), outputs, inputs);
        const Panels one_by_one = random_panels(outputs, inputs, order, format);
        const Panels::Rows rows = one_by_one.rows();
        Panels at_once(outputs, inputs, order, format);
        at_once.set_matrix_scale(one_by_one.matrix_scale());
        at_once.set_rows(rows);
        REQUIRE(at_once.bytes() == one_by_one.bytes());
        Index wrong = 0;
        for (Index o = 0; o < outputs; ++o)
          for (Index i = 0; i < inputs; ++i) {
            wrong += test::same_bits(at_once.get(o, i), one_by_one.get(o, i)) ? 0 : 1;
            if (format.code == WeightCode::Zeros) continue;
            wrong += at_once.code(o, i) == one_by_one.code(o, i) ? 0 : 1;
          }
        CHECK(wrong == 0);
        CHECK(at_once.rows().codes == rows.codes);
        CHECK(at_once.rows().scales == rows.scales);
        CHECK(at_once.rows().zeros == rows.zeros);
        if (rows.codes.empty()) continue;
        Panels::Rows broken = rows;
        broken.codes.pop_back();
        CHECK_THROWS_AS(at_once.set_rows(broken), std::invalid_argument);
        CHECK(at_once.rows().codes == rows.codes);
      }
  Panels nan(5, 19, PanelOrder::Plain, WeightFormat::fp8());  // the kernels have to know of one
  for (const Index input : {3, 18}) {
    Panels::Rows rows = random_panels(5, 19, PanelOrder::Plain, WeightFormat::fp8()).rows();
    rows.codes[static_cast<std::size_t>(4 * 19 + input)] = std::byte{0xFF};
    nan.set_rows(rows);
    CHECK(std::isnan(nan.decoded().get(4, input)));
  }
}

TEST_CASE("PanelMatrix<Quantised>: takes the bits that its format says", "[kernel]") {
  const auto bits = [](const WeightFormat& format, Index inputs) {
    const Panels panels(64, inputs, PanelOrder::Plain, format);
    return 8.0 * static_cast<double>(panels.bytes()) / static_cast<double>(64 * inputs);
  };
  for (const WeightFormat& format : kFormats)
    for (const Index inputs : {1024, 4096}) {
      CAPTURE(format.name(), inputs);
      if (inputs % std::max<Index>(1, format.group_of(inputs)) != 0 && format.scale != ScaleType::Unscaled) continue;
      CHECK(bits(format, inputs) >= format.bits_per_weight(inputs));
      // A panel is whole cache lines, and one more where panels would fall on the same sets of the cache.
      CHECK(bits(format, inputs) <=
            format.bits_per_weight(inputs) + 8.0 * 128 / static_cast<double>(Panels::kWidth * inputs));
    }
}

TEST_CASE("PanelMatrix<Quantised>: what cannot be is refused by name", "[kernel]") {
  Panels panels(4, 40, PanelOrder::Plain, WeightFormat::int4());
  CHECK_THROWS_WITH(panels.get(4, 0), "moe::PanelMatrix::get: output 4, input 0, expected places of a matrix [4, 40]");
  CHECK_THROWS_WITH(panels.set_code(0, 0, 16), "moe::PanelMatrix::set_code: code 16, expected one of 4 bits");
  CHECK_THROWS_WITH(panels.scale(0, 2), "moe::PanelMatrix::scale: output 0, group 2, expected places of [4, 2]");
  CHECK_THROWS_WITH(panels.set_scale(1, 0, 1e6f),
                    "moe::PanelMatrix::set_scale: scale 1e+06 of output 1, expected one that int4-g32 can store");
  CHECK_THROWS_WITH(panels.zero_point(0, 0), "moe::PanelMatrix::zero_point: int4-g32 has no zero points");
  CHECK_THROWS_AS(panels.set_matrix_scale(2), std::invalid_argument);
  const std::vector<std::uint32_t> codes{1, 2, 16};
  CHECK_THROWS_AS(panels.set_codes(0, 0, codes), std::invalid_argument);
  CHECK(panels.code(0, 0) == 0);  // nothing was written
  CHECK_THROWS_AS(panels.set_codes(0, 38, codes), std::invalid_argument);
  panels.set_codes(0, 38, std::span(codes).first(2));
  CHECK(panels.code(0, 39) == 2);
  Panels zeros(4, 40, PanelOrder::Plain, WeightFormat::int8().with_zero_points());
  CHECK_THROWS_AS(zeros.set_zero_point(0, 0, 0.5f), std::invalid_argument);
  CHECK_THROWS_AS(zeros.set_zero_point(0, 0, 128), std::invalid_argument);
  CHECK_THROWS_AS(zeros.set_zero_point(0, 0, test::kNan<float>), std::invalid_argument);
  Panels fp8(4, 40, PanelOrder::Plain, WeightFormat::fp8());
  CHECK_THROWS_AS(fp8.set_scale(0, 0, 0x1p119f), std::invalid_argument);
  // Codes E4M3 are multiplied with 256 times their scale.
  Panels scaled(1, 16, PanelOrder::Plain, WeightFormat::fp8(16, ScaleType::E4M3));
  CHECK_THROWS_AS(scaled.set_matrix_scale(0x1p120f), std::invalid_argument);
  scaled.set_matrix_scale(0x1p110f);
  scaled.set_scale(0, 0, 448);
  scaled.set_code(0, 0, 0x38);
  CHECK(test::same_bits(scaled.get(0, 0), scaled.decoded()(0, 0)));
  Panels none(4, 40);
  CHECK(none.get(3, 39) == 0);
  CHECK(none.bytes() == 0);
  CHECK_THROWS_WITH(none.set_code(0, 0, 0),
                    "moe::PanelMatrix::set_code: the matrix has no codes, expected one made in a format");
  CHECK_THROWS_AS(Panels(3, 4, PanelOrder::Paired, WeightFormat::bf16()), std::invalid_argument);
  CHECK_THROWS_AS(Panels(-1, 4, PanelOrder::Plain, WeightFormat::bf16()), std::invalid_argument);
  CHECK_THROWS_AS(Panels(Index{1} << 40, Index{1} << 40, PanelOrder::Plain, WeightFormat::int4()),
                  std::invalid_argument);
}

TEST_CASE("WeightFormat: names, bits, and combinations that say nothing", "[kernel]") {
  for (const char* name :
       {"none",           "bf16",          "f16",      "fp8-g128",      "fp8-plain",          "fp8-e5m2-g64",
        "fp8-e5m2-plain", "int8-g32",      "int8-g0",  "int8-zero-g64", "int4-g128",          "int4-zero-g32",
        "mxfp4",          "nvfp4",         "1bit-g64", "8bit-g32",      "4bit-symmetric-g64", "e2m1-g64",
        "int1-g32",       "int3-zero-g64", "int7-g0"})
    CHECK(WeightFormat::named(name).name() == name);
  for (int bits = 1; bits <= 8; ++bits) {
    const WeightFormat format = WeightFormat::integers(bits, 64);
    CHECK(format.value_bits() == bits);
    CHECK(format.code_bits() == (bits == 4 ? 4 : 8));
    CHECK(WeightFormat::named("int" + std::to_string(bits) + "-g64") == format);
  }
  CHECK(WeightFormat::named("int4") == WeightFormat::int4());
  for (const char* name : {"", "int9", "int0", "int3-symmetric", "int4-g", "int4-g-8", "int4-g12", "0bit", "9bit",
                           "3bit-g8", "bf16-g32", "int4-gx"})
    CHECK_THROWS_AS(WeightFormat::named(name), std::invalid_argument);
  CHECK(WeightFormat::int4().bits_per_weight(1024) == 4.5);
  CHECK(WeightFormat::mxfp4().bits_per_weight(1024) == 4.25);
  CHECK(WeightFormat::nvfp4().bits_per_weight(1024) == 4.5);
  CHECK(WeightFormat::planes(2, 32).bits_per_weight(1024) == 3);
  CHECK(WeightFormat::int8(0, ScaleType::F32).bits_per_weight(64) == 8.5);
  CHECK(WeightFormat::bf16().bits_per_weight(0) == 16);
  CHECK(WeightFormat::int4(std::numeric_limits<Index>::max() / 8 * 8).num_groups(37) == 1);
  const auto refused = [](const WeightFormat& format) {
    CHECK_THROWS_AS(format.validate(), std::invalid_argument);
    CHECK_THROWS_AS(Panels(2, 8, PanelOrder::Plain, format), std::invalid_argument);
  };
  refused({.code = WeightCode::Int4});
  refused({.code = WeightCode::Bf16, .scale = ScaleType::F32});
  refused({.code = WeightCode::E4M3, .group = 32});
  refused({.code = WeightCode::Int4, .scale = ScaleType::F16, .group = -8});
  refused({.code = WeightCode::Planes, .scale = ScaleType::F16, .group = 8, .bits = 3});
  refused({.code = WeightCode::Planes, .scale = ScaleType::F16, .group = 32, .bits = 9});
  refused({.code = WeightCode::E2M1, .scale = ScaleType::E8M0, .group = 32, .has_zero_points = true});
  for (const int bits : {-1, 4, 8}) refused({.code = WeightCode::Int8, .scale = ScaleType::F16, .bits = bits});
  refused({.code = WeightCode::Int4, .scale = ScaleType::F16, .bits = 3});
}
