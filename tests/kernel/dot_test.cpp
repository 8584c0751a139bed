// SPDX-License-Identifier: MIT
// Products of rounded rows with weights in few bits.
#include "moe/kernel/dot.hpp"

#include <cmath>
#include <vector>

#include "kernel/products.hpp"
#include "moe/compress/round_to_nearest.hpp"
#include "support/catch.hpp"

using moe::Dot;
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

const std::vector<WeightFormat> kIntegerFormats = {WeightFormat::int8(),
                                                   WeightFormat::int8(0, ScaleType::F32),
                                                   WeightFormat::int8(40),
                                                   WeightFormat::int4(),
                                                   WeightFormat::int4(128, ScaleType::Bf16),
                                                   WeightFormat::int4(0),
                                                   WeightFormat::mxfp4(),
                                                   WeightFormat::nvfp4()};

Panels random_panels(Index outputs, Index inputs, const WeightFormat& format, PanelOrder order = PanelOrder::Plain) {
  PanelMatrix<moe::F32> weights(outputs, inputs, order);
  weights.randomise(moe::RandomField(moe::Purpose::User, 4), 0.2);
  return moe::round_to_nearest(weights, format);
}

/// The rows, cut into groups that begin at `offset`, all times the same weights.
Matrix<float> product(const Panels& weights, const Matrix<float>& rows, const std::vector<Index>& offset,
                      kernel::TaskList& tasks) {
  const auto source = weights.source();
  Matrix<float> out = test::nan_matrix<float>(rows.rows(), source.width());
  kernel::grouped_multiply<float>(
      {offset.data(), std::ssize(offset) - 1}, kernel::RowSource<float>::from(moe::ConstMatrixRef<float>(rows)),
      [&](Index) { return source; }, tasks,
      [&](Index, Index row, int count, Index panel, const float* sums) {
        test::Products<moe::F32>::copy(sums, count, row, panel, out);
      });
  return out;
}
Matrix<float> product(const Panels& weights, const Matrix<float>& rows) {
  kernel::TaskList tasks;
  return product(weights, rows, {0, rows.rows()}, tasks);
}

/// The definition: integers of a group of a row, times the codes, in sums of at most 512 inputs.
float integer_product(const Panels& weights, Index output, const Matrix<float>& rows, Index r) {
  const WeightFormat format = weights.format();
  const Index inputs = weights.inputs(), group = format.group_of(inputs);
  float sum = 0;
  for (Index begin = 0; begin < inputs; begin += group) {
    const Index end = std::min(inputs, begin + group);
    float most = 0;
    bool finite = true;
    for (Index i = begin; i < end; ++i) {
      most = std::max(most, std::abs(rows(r, i)));
      finite = finite && std::isfinite(rows(r, i));
    }
    const bool counts = finite && most >= 0x1p-100f;
    const float inverse = 127.0f / most, scale = !finite ? test::kNan<float> : counts ? most / 127.0f : 0.0f;
    for (Index first = begin; first < end; first += 512) {
      std::int64_t total = 0;
      for (Index i = first; i < std::min(end, first + 512); ++i) {
        const auto code = counts ? static_cast<std::int64_t>(std::nearbyint(rows(r, i) * inverse)) : 0;
        // Twice the value of E2M1 is an integer, as is that of the others.
        const double value = static_cast<double>(moe::detail::value_of_code(format, weights.code(output, i)));
        total += code * static_cast<std::int64_t>(format.code == WeightCode::E2M1 ? 2 * value : value);
      }
      const float factor = format.code == WeightCode::E2M1 ? 0.5f : 1.0f;
      const float of_weights = weights.scale(output, begin / group) * weights.matrix_scale() * factor;
      sum = moe::simd::fma(static_cast<float>(total), scale * of_weights, sum);
    }
  }
  return sum;
}

}  // namespace

TEST_CASE("Dot::Int8: integers of rows times codes, bit for bit, whatever the number of rows", "[kernel]") {
  moe::SerialExecutor serial;  // one task, in which a row walks along several panels at once, some apart
  const moe::UseExecutor use(serial);
  for (const WeightFormat& format : kIntegerFormats)
    for (const Index inputs : {Index{0}, Index{1}, Index{8}, Index{77}, Index{512}, Index{1301}})
      for (const Index outputs : {Index{1}, (inputs == 77 ? 9 : 2) * Panels::kWidth + 6}) {
        Panels weights = random_panels(outputs, inputs, format);
        weights.set_dot(Dot::Int8);
        Matrix<float> rows = test::random_matrix<float>(61, inputs);
        if (inputs >= 77) {
          rows.row(2).setZero();
          rows.row(3).setConstant(1e-35f);
          rows(4, 40) = 1e30f;
          rows(5, 70) = test::kNan<float>;
          rows(6, 0) = std::numeric_limits<float>::infinity();
          rows.row(7) *= 1e-20f;
        }
        const Matrix<float> all = product(weights, rows);
        CAPTURE(format.name(), inputs, outputs);
        for (Index r = 0; r < 61; ++r)
          for (Index o = 0; o < outputs; o += 5) {
            const float expected = integer_product(weights, o, rows, r);
            REQUIRE(std::isnan(expected) == std::isnan(all(r, o)));
            if (!std::isnan(expected)) REQUIRE(test::same_bits(all(r, o), expected));
          }
        for (const Index count : {1, 2, 3, 4, 5, 12, 13, 49}) {
          const Matrix<float> some = product(weights, rows.bottomRows(count));
          for (Index r = 0; r < count; ++r)
            for (Index o = 0; o < outputs; ++o) REQUIRE(test::same_bits(some(r, o), all(61 - count + r, o)));
        }
      }
}

TEST_CASE("Dot: every row is its own, in any group, with any other rows, on any number of threads", "[kernel]") {
  constexpr Index kInputs = 616, kRows = 830;  // more rows than wait at a time
  const Matrix<float> rows = test::random_matrix<float>(kRows, kInputs);
  std::vector<WeightFormat> formats = kIntegerFormats;
  if (kernel::can_dot(WeightFormat::bf16(), kInputs, Dot::Bf16)) formats.push_back(WeightFormat::bf16());
  for (const WeightFormat& format : formats) {
    CAPTURE(format.name());
    Panels weights = random_panels(Panels::kWidth + 1, kInputs, format);
    weights.set_dot(format.code == WeightCode::Bf16 ? Dot::Bf16 : Dot::Int8);
    kernel::TaskList tasks;
    const Matrix<float> alone = product(weights, rows, {0, kRows}, tasks);
    moe::SerialExecutor serial;
    const moe::UseExecutor use(serial);
    for (const std::vector<Index>& offset : {std::vector<Index>{0, kRows},
                                             {0, 1, 2, 2, 6, 19, 36, 69, 169, kRows},
                                             {0, 0, 16, 48, 63, 80, 81, kRows - 415, kRows}})
      REQUIRE(test::same_bits(product(weights, rows, offset, tasks), alone));
  }
}

TEST_CASE("Dot::Int8: a paired matrix, and the error that is promised", "[kernel]") {
  for (const WeightFormat& format : kIntegerFormats) {
    CAPTURE(format.name());
    const Index outputs = 3 * Panels::kWidth + 2, inputs = 300, group = format.group_of(inputs);
    Panels weights = random_panels(outputs, inputs, format, PanelOrder::Paired);
    const Matrix<float> rows = test::random_matrix<float>(9, inputs);
    const Matrix<float> exact = product(weights, rows);
    weights.set_dot(Dot::Int8);
    const Matrix<float> found = product(weights, rows);
    // Columns of both products lie alike, so only the largest of the bounds of a row is needed.
    for (Index r = 0; r < 9; ++r) {
      double bound = 0;
      for (Index o = 0; o < outputs; ++o) {
        double of_output = 0;
        for (Index begin = 0; begin < inputs; begin += group) {
          double most = 0, sum = 0;
          for (Index i = begin; i < std::min(inputs, begin + group); ++i) {
            most = std::max(most, static_cast<double>(std::abs(rows(r, i))));
            sum += static_cast<double>(std::abs(weights.get(o, i)));
          }
          of_output += most / 254 * sum;
        }
        bound = std::max(bound, of_output);
      }
      const Index columns = found.cols();
      double worst = 0;
      for (Index c = 0; c < columns; ++c)
        worst = std::max(worst, std::abs(static_cast<double>(found(r, c)) - static_cast<double>(exact(r, c))));
      CHECK(worst <= bound + 1e-4);  // and rounding of sums of some hundred numbers of size 1
      CHECK(worst > 0);
    }
  }
}

TEST_CASE("Dot::Bf16: rounded rows, whatever the number of rows", "[kernel]") {
  Panels weights = random_panels(2 * Panels::kWidth + 3, 301, WeightFormat::bf16());
  if (!kernel::can_dot(WeightFormat::bf16(), 301, Dot::Bf16)) {
    CHECK_THROWS_AS(weights.set_dot(Dot::Bf16), std::invalid_argument);
    return;
  }
  const Matrix<float> rows = test::random_matrix<float>(40, 301);
  const Matrix<float> exact = product(weights, rows);
  weights.set_dot(Dot::Bf16);
  const Matrix<float> found = product(weights, rows);
  for (Index r = 0; r < 40; ++r)
    for (Index o = 0; o < weights.outputs(); ++o) {
      double size = 0;
      for (Index i = 0; i < 301; ++i)
        size += std::abs(static_cast<double>(rows(r, i)) * static_cast<double>(weights.get(o, i)));
      // 2^-9 of each product by rounding its x, and 301 roundings of sums.
      CHECK(std::abs(static_cast<double>(found(r, o)) - static_cast<double>(exact(r, o))) <=
            size * (0x1p-9 + 604 * 0x1p-24));
    }
  for (const Index count : {1, 5, 13}) {
    const Matrix<float> some = product(weights, rows.topRows(count));
    for (Index r = 0; r < count; ++r) CHECK(test::same_bits(some.row(r), found.row(r)));
  }
}

TEST_CASE("Dot: stays where codes are replaced", "[kernel]") {
  Panels weights = random_panels(5, 40, WeightFormat::int8());
  weights.set_dot(Dot::Int8);
  weights.set_rows(weights.rows());
  CHECK(weights.dot() == Dot::Int8);
  weights.round(PanelMatrix<moe::F32>(5, 40));
  CHECK(weights.dot() == Dot::Int8);
}

TEST_CASE("Dot: what has no such product is refused", "[kernel]") {
  for (const WeightFormat& format : {WeightFormat::f16(), WeightFormat::fp8(), WeightFormat::planes(3),
                                     WeightFormat::int4().with_zero_points(), WeightFormat::none()}) {
    Panels weights(4, 40, PanelOrder::Plain, format);
    CHECK_NOTHROW(weights.set_dot(Dot::Exact));
    CHECK_THROWS_AS(weights.set_dot(Dot::Int8), std::invalid_argument);
    CHECK_THROWS_AS(weights.set_dot(Dot::Bf16), std::invalid_argument);
  }
  Panels long_rows(1, (Index{32} << 10) + 1, PanelOrder::Plain, WeightFormat::int8(0));
  CHECK_THROWS_AS(long_rows.set_dot(Dot::Int8), std::invalid_argument);
  Panels longest(1, Index{32} << 10, PanelOrder::Plain, WeightFormat::int8(8));
  longest.set_dot(Dot::Int8);
  CHECK(product(longest, Matrix<float>::Ones(3, Index{32} << 10)).isZero(0));
}
