// SPDX-License-Identifier: MIT
#include "moe/compress/gptq.hpp"

#include <Eigen/LU>
#include <iostream>

#include "compress/correlated.hpp"
#include "moe/compress/round_to_nearest.hpp"
#include "support/catch.hpp"
#include "support/same_codes.hpp"
#include "support/thread_executor.hpp"

using moe::ColumnOrder;
using moe::F32;
using moe::Gptq;
using moe::Index;
using moe::Matrix;
using moe::PanelMatrix;
using moe::Quantised;
using moe::ScaleType;
using moe::SecondMoment;
using moe::WeightFormat;

namespace {

const std::vector<WeightFormat> kFormats = {
    WeightFormat::bf16(),
    WeightFormat::f16(),
    WeightFormat::fp8(),
    WeightFormat::fp8(0, ScaleType::Unscaled),
    WeightFormat::fp8_e5m2(32, ScaleType::E8M0),
    WeightFormat::int8(),
    WeightFormat::int8().with_zero_points(),
    WeightFormat::int4(),
    WeightFormat::int4(0, ScaleType::F32),
    WeightFormat::int4(256, ScaleType::Bf16).with_zero_points(),
    WeightFormat::int4(16, ScaleType::E4M3),
    WeightFormat::mxfp4(),
    WeightFormat::nvfp4(),
    WeightFormat::planes(1),
    WeightFormat::planes(2, 32).without_zero_points(),
    WeightFormat::planes(3),
    WeightFormat::planes(8),
};
constexpr ColumnOrder kOrders[] = {ColumnOrder::AsStored, ColumnOrder::Activation};

/// Whether groups of inputs share a scale, so that a permutation mixes them.
bool has_groups(const WeightFormat& format, Index inputs) {
  return format.scale != ScaleType::Unscaled && format.num_groups(inputs) > 1;
}

/// H with its damping, as Gptq has it.
Eigen::MatrixXd damped(const SecondMoment& moment, double damping) {
  Eigen::MatrixXd h = 2 * test::matrix_of(moment);
  return h + damping * h.diagonal().mean() * Eigen::MatrixXd::Identity(h.rows(), h.rows());
}

/// GPTQ by its meaning: after an input is rounded, the other ones take the least squares of what is left, with the
/// inverse of what H is left computed anew each time. In groups that are fitted when they begin.
PanelMatrix<Quantised> plain_gptq(const PanelMatrix<F32>& weights, const WeightFormat& format,
                                  const Eigen::MatrixXd& h) {
  const Index n = weights.inputs(), size = format.group_of(n);
  PanelMatrix<Quantised> result(weights.outputs(), n, weights.order(), format);
  Eigen::MatrixXd w = weights.matrix().cast<double>();
  for (Index c = 0; c < n; ++c) {
    if (c % size == 0) {
      const Index count = std::min(size, n - c);
      const Matrix<float> group = w.middleCols(c, count).cast<float>();
      const auto fitted = moe::round_to_nearest(PanelMatrix<F32>::from(group), format.with_group(0));
      for (Index o = 0; o < w.rows(); ++o) {
        result.set_scale(o, c / size, fitted.scale(o, 0));
        if (format.has_zero_points) result.set_zero_point(o, c / size, fitted.zero_point(o, 0));
      }
    }
    const Index left = n - c;
    const Eigen::MatrixXd inverse = h.bottomRightCorner(left, left).inverse();
    for (Index o = 0; o < w.rows(); ++o) {
      double least = INFINITY, value = 0;
      for (std::uint32_t code = 0; code < 1u << format.code_bits(); ++code) {
        PanelMatrix<Quantised> one = result;
        one.set_code(o, c, code);
        const double error = std::abs(static_cast<double>(one.get(o, c)) - w(o, c));
        if (error < least) least = error, value = static_cast<double>(one.get(o, c)), result = one;
      }
      w.row(o).tail(left) -= (w(o, c) - value) / inverse(0, 0) * inverse.row(0);
    }
  }
  return result;
}

}  // namespace

TEST_CASE("Gptq: the codes of the method by its meaning", "[compress]") {
  const auto weights = test::random_weights(6, 44, 3);
  const auto moment = SecondMoment::of(test::correlated_rows(100, 44, 4));
  for (const WeightFormat& format : {WeightFormat::int4(8), WeightFormat::int4(24).with_zero_points(),
                                     WeightFormat::planes(2, 32), WeightFormat::int4(0, ScaleType::Bf16)}) {
    const auto expected = plain_gptq(weights, format, damped(moment, 0.05));
    for (const Index block : {1, 16, 20, 1000}) {
      CAPTURE(format.name(), block);
      CHECK(test::same_codes(Gptq{.damping = 0.05, .block = block}(weights, format, moment), expected));
    }
  }
}

TEST_CASE("Gptq: the sum of err^2 is the error of the outputs in the damped moment", "[compress]") {
  const auto weights = test::random_weights(300, 150, 5);
  const auto moment = SecondMoment::of(test::correlated_rows(400, 150, 6));
  for (const ColumnOrder order : kOrders)
    for (const WeightFormat& format : kFormats) {
      CAPTURE(format.name(), static_cast<int>(order));
      const auto found = moe::detail::gptq({.damping = 0.02, .order = order}, weights, format, moment);
      CHECK(found.damping == 0.02);
      const Eigen::MatrixXd d = test::difference(weights, found.matrix);
      const double error = (d * damped(moment, found.damping)).cwiseProduct(d).sum();
      // H has a condition of at most 1 / damping * 150 * its largest over its mean entry, some 1e5; times 1e-16 * 150.
      CHECK(std::abs(found.loss - error) <= 1e-8 * error);
    }
}

TEST_CASE("Gptq: with inputs that have nothing to do with each other it rounds to nearest, bit for bit", "[compress]") {
  for (const moe::PanelOrder panels : {moe::PanelOrder::Plain, moe::PanelOrder::Paired}) {
    const auto weights = test::random_weights(34, 150, 7, panels);
    const auto moment = SecondMoment::of(Matrix<float>::Identity(150, 150));
    for (const ColumnOrder order : kOrders)
      for (const WeightFormat& format : kFormats) {
        CAPTURE(format.name(), static_cast<int>(order));
        CHECK(test::same_codes(Gptq{.order = order}(weights, format, moment), moe::round_to_nearest(weights, format)));
      }
  }
}

TEST_CASE("Gptq: in the order of activations a permutation of the inputs permutes the codes", "[compress]") {
  constexpr Index kInputs = 90;
  const auto weights = test::random_weights(20, kInputs, 8);
  const Matrix<float> x = test::correlated_rows(200, kInputs, 9);
  std::vector<Index> permutation(kInputs);
  for (Index i = 0; i < kInputs; ++i) permutation[static_cast<std::size_t>(i)] = (i * 37 + 5) % kInputs;
  const auto moment = SecondMoment::of(x), permuted = SecondMoment::of(Matrix<float>(x(Eigen::all, permutation)));
  const PanelMatrix<F32> other = weights.take_inputs(permutation);
  for (WeightFormat format : kFormats) {
    if (has_groups(format, kInputs)) format.group = 0;
    CAPTURE(format.name());
    const Gptq gptq{.order = ColumnOrder::Activation};
    const auto a = gptq(weights, format, moment), b = gptq(other, format, permuted);
    CHECK(test::same_bits(a.decoded().take_inputs(permutation).matrix(), b.decoded().matrix()));
  }
}

TEST_CASE("Gptq: between all codes of four inputs and rounding to nearest", "[compress]") {
  int draws = 0, good = 0;
  for (const int bits : {1, 2}) {
    const WeightFormat format = WeightFormat::planes(bits, 0, ScaleType::F32);
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
      const auto weights = test::random_weights(1, 4, seed);
      const auto moment = SecondMoment::of(test::correlated_rows(40, 4, seed + 1000, 0.8));
      const Eigen::MatrixXd h = damped(moment, 0.01);
      const auto loss = [&](const PanelMatrix<Quantised>& codes) {
        const Eigen::MatrixXd d = test::difference(weights, codes);
        return (d * h).cwiseProduct(d).sum();
      };
      const auto nearest = moe::round_to_nearest(weights, format), found = Gptq{}(weights, format, moment);
      REQUIRE(test::same_bits(found.scale(0, 0), nearest.scale(0, 0)));  // a single group: the same grid
      double least = INFINITY;
      PanelMatrix<Quantised> any = nearest;
      for (std::uint32_t codes = 0; codes < 1u << (4 * bits); ++codes) {
        for (Index i = 0; i < 4; ++i) any.set_code(0, i, codes >> (i * bits) & ((1u << bits) - 1));
        least = std::min(least, loss(any));
      }
      REQUIRE(loss(found) >= least * (1 - 1e-12));
      ++draws;
      good += loss(found) <= loss(nearest) * (1 + 1e-12) ? 1 : 0;
    }
  }
  std::cout << "Gptq: at most the error of rounding to nearest in " << good << " of " << draws << " draws\n";
  CHECK(good >= 0.95 * draws);
}

TEST_CASE("Gptq: at most 0.6 of the error of rounding to nearest where inputs go together", "[compress]") {
  const auto weights = test::random_weights(200, 256, 10);
  const Matrix<float> rows = test::correlated_rows(4000, 256, 11);
  const auto moment = SecondMoment::of(rows.topRows(2000)), unseen = SecondMoment::of(rows.bottomRows(2000));
  for (const ColumnOrder order : kOrders)
    for (const WeightFormat& format :
         {WeightFormat::planes(2, 32), WeightFormat::planes(3, 32), WeightFormat::int4(), WeightFormat::mxfp4()}) {
      CAPTURE(format.name(), static_cast<int>(order));
      const auto nearest = moe::round_to_nearest(weights, format);
      const auto found = Gptq{.order = order}(weights, format, moment);
      for (const SecondMoment& data : {moment, unseen}) {
        const double ratio =
            std::sqrt(test::output_error(weights, found, data) / test::output_error(weights, nearest, data));
        CAPTURE(ratio);
        CHECK(ratio <= 0.6);
      }
    }
}

TEST_CASE("Gptq: singular moments are damped until they are not, and inputs that were never there stay", "[compress]") {
  const auto weights = test::random_weights(8, 40, 12);
  Matrix<float> rows = test::correlated_rows(5, 40, 13);
  rows.col(7).setZero();
  rows.col(9) = rows.col(8);
  const auto moment = SecondMoment::of(rows);
  const WeightFormat format = WeightFormat::int4(8);
  for (const double damping : {0.0, 1e-30, 0.01}) {
    moe::MatrixReport report;
    const auto codes = Gptq{.damping = damping}(weights, format, moment, report);
    CAPTURE(damping, report.damping);
    CHECK(codes.decoded().matrix().allFinite());
    CHECK((damping == 0.01 ? report.damping == 0.01 : report.damping > 0 && report.damping <= 0.01));
  }
  const auto codes = Gptq{.order = ColumnOrder::Activation}(weights, format, moment);
  const auto nearest = moe::round_to_nearest(weights, format);
  for (Index o = 0; o < 8; ++o) CHECK(codes.code(o, 7) == nearest.code(o, 7));
  const auto blind = Gptq{}(weights, format, SecondMoment(40));
  CHECK(test::same_codes(blind, nearest));
}

TEST_CASE("Gptq: the same bits for any number of threads", "[compress]") {
  const auto weights = test::random_weights(700, 70, 14);
  const Matrix<float> rows = test::correlated_rows(300, 70, 15);
  std::vector<PanelMatrix<Quantised>> found;
  for (const Index threads : {1, 3}) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    found.push_back(Gptq{.block = 32}(weights, WeightFormat::planes(3, 32), SecondMoment::of(rows)));
  }
  CHECK(test::same_codes(found[0], found[1]));
}

TEST_CASE("Gptq: what cannot be computed with is refused", "[compress]") {
  auto weights = test::random_weights(3, 40, 16);
  const auto moment = SecondMoment::of(test::correlated_rows(50, 40, 17));
  const WeightFormat format = WeightFormat::int4();
  CHECK_THROWS_WITH(Gptq{}(weights, format, SecondMoment(39)), "moe::Gptq: the moment is of 39 inputs, expected 40");
  CHECK_THROWS_WITH(Gptq{.damping = -1}(weights, format, moment), "moe::Gptq: damping is -1, expected at least 0");
  CHECK_THROWS_AS(Gptq{.damping = test::kNan<double>}(weights, format, moment), std::invalid_argument);
  CHECK_THROWS_AS(Gptq{.block = 0}(weights, format, moment), std::invalid_argument);
  Matrix<float> rows = test::correlated_rows(5, 40, 18);
  rows(2, 3) = test::kNan<float>;
  CHECK_THROWS_WITH(Gptq{}(weights, format, SecondMoment::of(rows)),
                    "moe::Gptq: the moment has a number that is not finite, expected finite rows");
  const auto loaded = [&](const char* leaf_name, std::size_t place, double value) {
    SecondMoment result = moment;
    moe::visit_all(
        [&](const std::string& name, auto& leaf) {
          std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
          moe::read_parameter(leaf, std::span<double>(values));
          if (name == leaf_name) values[place] = value;
          moe::write_parameter(leaf, std::span<const double>(values));
        },
        result);
    return result;
  };
  CHECK_THROWS_AS(Gptq{}(weights, format, loaded("sum", 1, test::kNan<double>)), std::invalid_argument);  // S(1, 0)
  CHECK(loaded("rows", 0, test::kNan<double>).rows() == 0);
  CHECK(loaded("rows", 0, 1e300).rows() == Index{1} << 53);
  for (const double count : {test::kNan<double>, 1e300, -1.0})
    CHECK_THROWS_AS(Gptq{}(weights, format, loaded("rows", 0, count)), std::invalid_argument);
  weights.set(0, 5, 1000);
  CHECK_THROWS_AS(Gptq{}(weights, WeightFormat::fp8(0, ScaleType::Unscaled), moment), std::invalid_argument);
  weights.set(0, 5, 1e8f);  // whose scale is too large for F16
  CHECK_THROWS_AS(Gptq{}(weights, format, moment), std::invalid_argument);
  weights.set(2, 33, test::kNan<float>);
  CHECK_THROWS_WITH(Gptq{}(weights, WeightFormat::bf16(), moment),
                    "moe::Gptq: weight of output 2, input 33 is nan, expected a finite one");
  CHECK(Gptq{}(PanelMatrix<F32>(0, 40), format, moment).outputs() == 0);
  CHECK(Gptq{}(PanelMatrix<F32>(3, 0), format, SecondMoment(0)).outputs() == 3);
  CHECK(Gptq{}(test::random_weights(3, 40, 1), WeightFormat::none(), moment).format() == WeightFormat::none());
}
