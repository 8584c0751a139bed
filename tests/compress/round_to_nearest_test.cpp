// SPDX-License-Identifier: MIT
#include "moe/compress/round_to_nearest.hpp"

#include <cmath>

#include "support/catch.hpp"
#include "support/matrices.hpp"

using moe::F32;
using moe::Index;
using moe::Matrix;
using moe::PanelMatrix;
using moe::Quantised;
using moe::ScaleType;
using moe::WeightCode;
using moe::WeightFormat;

namespace {

const std::vector<WeightFormat> kFormats = {
    WeightFormat::bf16(),
    WeightFormat::f16(),
    WeightFormat::fp8(),
    WeightFormat::fp8(32, ScaleType::E8M0),
    WeightFormat::fp8(0, ScaleType::Unscaled),
    WeightFormat::fp8_e5m2(),
    WeightFormat::int8(),
    WeightFormat::int8().with_zero_points(),
    WeightFormat::int4(),
    WeightFormat::int4(0, ScaleType::F32),
    WeightFormat::int4(32, ScaleType::E8M0),
    WeightFormat::int8(64, ScaleType::E8M0).with_zero_points(),
    WeightFormat::int8(16, ScaleType::E4M3),
    WeightFormat::integers(1),
    WeightFormat::integers(1, 32, ScaleType::E4M3),
    WeightFormat::integers(2, 64).with_zero_points(),
    WeightFormat::integers(3),
    WeightFormat::integers(5, 0, ScaleType::Bf16).with_zero_points(),
    WeightFormat::integers(7, 16, ScaleType::E4M3),
    WeightFormat::int4(64, ScaleType::Bf16).with_zero_points(),
    WeightFormat::mxfp4(),
    WeightFormat::nvfp4(),
    WeightFormat::planes(1),
    WeightFormat::planes(1).without_zero_points(),
    WeightFormat::planes(1, 32, ScaleType::E4M3).without_zero_points(),
    WeightFormat::planes(2, 32),
    WeightFormat::planes(4),
    WeightFormat::planes(4).without_zero_points(),
};

PanelMatrix<F32> panels_of(const Matrix<float>& weights) { return PanelMatrix<F32>::from(weights); }

PanelMatrix<Quantised> rounded(const Matrix<float>& weights, const WeightFormat& format) {
  return moe::round_to_nearest(panels_of(weights), format);
}

/// Code of the c-th value, of 2^value_bits: integers from the least on, in two's complement.
std::uint32_t code_of(const WeightFormat& format, int c) {
  const bool is_int = format.code == WeightCode::Int8 || format.code == WeightCode::Int4;
  const int least = is_int ? -(1 << (format.value_bits() - 1)) : 0;
  return static_cast<std::uint32_t>(c + least) & ((1u << format.code_bits()) - 1);
}

/// Relative root of the mean squared error of x W^T.
double output_error(const Matrix<float>& weights, const WeightFormat& format) {
  const Matrix<float> small = rounded(weights, format).decoded().matrix();
  const auto x = test::random_matrix<float>(64, weights.cols(), 77);
  const Eigen::MatrixXd exact = x.cast<double>() * weights.cast<double>().transpose();
  const Eigen::MatrixXd found = x.cast<double>() * small.cast<double>().transpose();
  return (found - exact).norm() / exact.norm();
}

}  // namespace

TEST_CASE("round_to_nearest: with the scale of its group no other code is nearer to a weight", "[compress]") {
  const auto weights = test::random_matrix<float>(19, 150, 3, 0.1);
  for (const WeightFormat& format : kFormats) {
    if (format.code_bits() > 8) continue;
    CAPTURE(format.name());
    const PanelMatrix<Quantised> codes = rounded(weights, format);
    PanelMatrix<Quantised> other = codes;
    for (Index o = 0; o < 19; o += 3)
      for (Index i = 0; i < 150; i += 7) {
        const double error = std::abs(static_cast<double>(codes.get(o, i)) - static_cast<double>(weights(o, i)));
        for (int c = 0; c < 1 << format.value_bits(); ++c) {
          other.set_code(o, i, code_of(format, c));
          const double value = static_cast<double>(other.get(o, i));
          // Equal up to the rounding of decoding: two codes may lie as near as each other.
          if (!std::isnan(value))
            REQUIRE(error <= std::abs(value - static_cast<double>(weights(o, i))) + 1e-7 * std::abs(value));
        }
        other.set_code(o, i, codes.code(o, i));
      }
  }
}

TEST_CASE("round_to_nearest: finite weights stay finite", "[compress]") {
  for (const WeightFormat& format : kFormats) {
    CAPTURE(format.name());
    CHECK(rounded(test::random_matrix<float>(9, 70, 5, 0.1), format).decoded().matrix().allFinite());
  }
}

TEST_CASE("round_to_nearest: a weight is off by half a step at most", "[compress]") {
  const auto weights = test::random_matrix<float>(33, 200, 4, 0.3);
  for (const WeightFormat& format : kFormats) {
    const bool is_uniform = format.code == WeightCode::Int8 || format.code == WeightCode::Int4 ||
                            (format.code == WeightCode::Planes && format.bits > 1);
    if (!is_uniform) continue;
    CAPTURE(format.name());
    const PanelMatrix<Quantised> codes = rounded(weights, format);
    const Index size = format.group_of(200);
    for (Index o = 0; o < 33; ++o)
      for (Index i = 0; i < 200; ++i) {
        const double step = std::abs(static_cast<double>(codes.scale(o, i / size)));
        // The ends of the range move by a rounding of the scale (2^-9 in BF16) times the codes, and by half a step
        // where the largest becomes the most negative code, whose counterpart is missing.
        const double levels = std::ldexp(1.0, format.value_bits());
        if (format.scale == ScaleType::E8M0 || format.scale == ScaleType::E4M3)
          continue;  // scales a third off and more
        const double room = format.has_zero_points || format.code == WeightCode::Planes ? 0.5 : 1;
        REQUIRE(std::abs(static_cast<double>(codes.get(o, i)) - static_cast<double>(weights(o, i))) <=
                step * (room + levels * 0x1p-8));
      }
  }
}

TEST_CASE("round_to_nearest: weights on a grid are found again, bit for bit", "[compress]") {
  for (const WeightFormat& format : kFormats) {
    if (format.scale == ScaleType::E4M3 || format.bits == 1) continue;
    if (format.scale == ScaleType::E8M0 && format.code != WeightCode::E2M1) continue;  // half the scale may fit, too
    CAPTURE(format.name());
    // Every group has the ends of the range of codes, so that its scale is that of the grid.
    const moe::RandomField random(moe::Purpose::User, 8);
    PanelMatrix<Quantised> grid(6, 96, moe::PanelOrder::Plain, format);
    const double levels = std::ldexp(1.0, format.value_bits());
    for (Index o = 0; o < 6; ++o) {
      for (Index g = 0; g < grid.num_groups(); ++g) {
        grid.set_scale(o, g, std::ldexp(1.0f, static_cast<int>(o + g) % 7 - 3));
        const float zero = format.value_bits() > 2 ? 2.0f : 1.0f;  // a code
        if (format.has_zero_points) grid.set_zero_point(o, g, format.code == WeightCode::Planes ? 0.25f : zero);
      }
      for (Index i = 0; i < 96; ++i) {
        auto code = code_of(format, static_cast<int>(levels * random.uniform(o, i)));
        const bool is_float =
            format.code != WeightCode::Int8 && format.code != WeightCode::Int4 && format.code != WeightCode::Planes;
        if (is_float) code &= static_cast<std::uint32_t>(levels / 4) - 1;
        const std::uint32_t largest = format.code == WeightCode::E4M3   ? 0x7Eu
                                      : format.code == WeightCode::E5M2 ? 0x7Bu
                                                                        : 0x7u;
        if (i % 8 == 0 && is_float && format.code_bits() <= 8) code = largest;
        if (i % 8 == 0 && !is_float) code = code_of(format, 0);
        if (i % 8 == 1 && !is_float) code = code_of(format, static_cast<int>(levels) - 1);
        grid.set_code(o, i, code);
      }
    }
    const PanelMatrix<Quantised> again = moe::round_to_nearest(grid.decoded(), format);
    for (Index o = 0; o < 6; ++o)
      for (Index i = 0; i < 96; ++i) REQUIRE(again.get(o, i) == grid.get(o, i));
  }
}

TEST_CASE("round_to_nearest: one bit is the mean and the mean distance from it, which no other scale beats",
          "[compress]") {
  const auto weights = test::random_matrix<float>(5, 64, 6);
  const auto codes = rounded(weights, WeightFormat::planes(1, 64, ScaleType::F32).without_zero_points());
  for (Index o = 0; o < 5; ++o) {
    const Eigen::VectorXd w = weights.row(o).cast<double>().transpose();
    const double mean = w.cwiseAbs().mean();
    double error = 0;
    for (Index i = 0; i < 64; ++i) {
      const double rounded_weight = static_cast<double>(codes.get(o, i));
      CHECK(std::abs(std::abs(rounded_weight) - mean) < 1e-6);
      error += (rounded_weight - w(i)) * (rounded_weight - w(i));
    }
    CHECK(std::abs(error - (w.squaredNorm() - 64 * mean * mean)) < 1e-5 * w.squaredNorm());
    for (double other = 0.1; other < 3; other += 0.1) {
      double worse = 0;
      for (Index i = 0; i < 64; ++i) worse += std::pow(std::abs(w(i)) - other * mean, 2);
      CHECK(error <= worse * (1 + 1e-6));
    }
  }
}

TEST_CASE("round_to_nearest: zeros, equal weights, outliers and subnormals", "[compress]") {
  for (const WeightFormat& format : kFormats) {
    CAPTURE(format.name());
    Matrix<float> weights = Matrix<float>::Zero(3, 70);
    CHECK(rounded(weights, format).decoded().matrix().isZero(0));
    weights.setConstant(0.75f);
    const Matrix<float> equal = rounded(weights, format).decoded().matrix();
    CHECK((equal.array() - 0.75f).abs().maxCoeff() <= 0.75f * 0x1p-3f);
    weights(1, 5) = 1000;
    weights(2, 3) = -1000;
    if (format.scale != ScaleType::Unscaled || format.code_bits() == 16) {
      const Matrix<float> outlier = rounded(weights, format).decoded().matrix();
      CHECK(outlier.allFinite());
      if (format.code_bits() > 1) {
        CHECK(std::abs(outlier(1, 5) - 1000) <= 1000 * 0.15f);
        CHECK(std::abs(outlier(2, 3) + 1000) <= 1000 * 0.15f);
      }
    }
    weights.setConstant(0x1p-140f);
    CHECK(rounded(weights, format).decoded().matrix().cwiseAbs().maxCoeff() <= 0x1p-7f);
    for (const Index rows : {0, 1})
      for (const Index cols : {0, 1}) {
        const auto tiny = rounded(Matrix<float>::Ones(rows, cols), format);
        CHECK(tiny.outputs() == rows);
        CHECK(tiny.inputs() == cols);
      }
  }
}

TEST_CASE("round_to_nearest: what a format cannot hold is refused by place", "[compress]") {
  Matrix<float> weights = Matrix<float>::Ones(3, 40);
  weights(2, 33) = test::kNan<float>;
  CHECK_THROWS_WITH(
      rounded(weights, WeightFormat::int4()),
      "moe::PanelMatrix::round: weight of output 2, input 33 is nan, expected one that int4-g32 can hold");
  for (const WeightFormat& format : kFormats)
    if (format.code_bits() < 16) CHECK_THROWS_AS(rounded(weights, format), std::invalid_argument);
  CHECK(std::isnan(rounded(weights, WeightFormat::bf16()).get(2, 33)));
  CHECK(std::isnan(rounded(weights, WeightFormat::f16()).get(2, 33)));
  weights(2, 33) = 1e5f;
  CHECK_THROWS_AS(rounded(weights, WeightFormat::f16()), std::invalid_argument);
  CHECK_NOTHROW(rounded(weights, WeightFormat::bf16()));
  CHECK_THROWS_AS(rounded(weights, WeightFormat::fp8(0, ScaleType::Unscaled)), std::invalid_argument);
  weights(2, 33) = 1e8f;  // whose scale is too large for F16
  CHECK_THROWS_AS(rounded(weights, WeightFormat::int4()), std::invalid_argument);
  CHECK_NOTHROW(rounded(weights, WeightFormat::int4(32, ScaleType::Bf16)));
  PanelMatrix<Quantised> shape(3, 40, moe::PanelOrder::Plain, WeightFormat::int4());
  CHECK_THROWS_WITH(shape.round(PanelMatrix<F32>(3, 41)),
                    "moe::PanelMatrix::round: weights are [3, 41], expected [3, 40]");
  CHECK_THROWS_AS((PanelMatrix<Quantised>(3, 40).round(PanelMatrix<F32>(3, 40))), std::invalid_argument);
}

TEST_CASE("round_to_nearest: errors of outputs on normal weights", "[compress]") {
  const auto weights = test::random_matrix<float>(256, 512, 9, 0.02);
  // The relative error of a weight with n evenly spread levels over +-c standard deviations is c / (n sqrt 3); the
  // largest of 32 normal numbers lies near 2.1. Floats: half a unit of the fraction, over sqrt 3.
  CHECK(output_error(weights, WeightFormat::bf16()) < 0.0025);
  CHECK(output_error(weights, WeightFormat::f16()) < 0.0003);
  CHECK(output_error(weights, WeightFormat::int8()) < 0.006);
  CHECK(output_error(weights, WeightFormat::fp8()) < 0.03);
  CHECK(output_error(weights, WeightFormat::int4()) < 0.1);
  CHECK(output_error(weights, WeightFormat::mxfp4()) < 0.13);
  CHECK(output_error(weights, WeightFormat::nvfp4()) < 0.11);
  double before = 1;
  for (int bits = 1; bits <= 8; ++bits) {
    const double error = output_error(weights, WeightFormat::planes(bits, 32));
    CHECK(error < before);
    before = error;
  }
  CHECK(before < 0.006);
}
