// SPDX-License-Identifier: MIT
// Layers quantised with a calibration, and the methods that need none or rescale what experts compute inside.
#include <sstream>

#include "compress/correlated.hpp"
#include "layer/fixtures.hpp"
#include "moe/compress/awq.hpp"
#include "moe/compress/gptq.hpp"
#include "moe/compress/hqq.hpp"
#include "moe/compress/quantise_calibrated.hpp"
#include "support/catch.hpp"
#include "support/same_codes.hpp"
#include "support/thread_executor.hpp"

using moe::Awq;
using moe::ExpertMatrix;
using moe::Gptq;
using moe::Hqq;
using moe::Index;
using moe::Matrix;
using moe::PanelMatrix;
using moe::QuantisationReport;
using moe::RoundToNearest;
using moe::ScaleType;
using moe::SecondMoment;
using moe::WeightFormat;

namespace {

constexpr Index kExperts = 4, kDim = 40, kHidden = 56;
using ReluMlp = moe::BasicMlp<moe::F32, moe::Relu>;

const std::vector<WeightFormat> kFormats = {
    WeightFormat::bf16(),
    WeightFormat::fp8(),
    WeightFormat::fp8(0, ScaleType::Unscaled),
    WeightFormat::int8().with_zero_points(),
    WeightFormat::int4(),
    WeightFormat::int4(0, ScaleType::F32).with_zero_points(),
    WeightFormat::int4(16, ScaleType::E8M0),
    WeightFormat::mxfp4(),
    WeightFormat::nvfp4(),
    WeightFormat::planes(1),
    WeightFormat::planes(2, 32).without_zero_points(),
    WeightFormat::planes(3),
};

/// Hidden units of very different sizes.
template <class E>
E uneven(std::uint64_t seed) {
  E expert({.input = kDim, .hidden = kHidden, .output = 24}, moe::Bias::Zero);
  test::randomise(expert, seed, 0.2);
  const moe::RandomField random(moe::Purpose::User, seed, 2);
  std::vector<float> size;
  for (Index i = 0; i < kHidden; ++i) size.push_back(static_cast<float>(std::exp(1.5 * random.normal(i))));
  if constexpr (requires { expert.gate_up(); }) {
    moe::detail::scale_outputs(expert.gate_up(), size);
  } else {
    moe::detail::scale_outputs(expert.up(), size);
  }
  return expert;
}

/// The last expert gets no tokens.
template <class E>
auto layer_of() {
  std::vector<E> experts;
  for (std::uint64_t e = 0; e < kExperts; ++e) experts.push_back(uneven<E>(e + 1));
  auto router = moe::LinearRouter::random(kExperts, kDim, 3, moe::Bias::Zero);
  for (Index i = 0; i < kDim; ++i) router.weight().set(kExperts - 1, i, 0);
  router.bias().set(kExperts - 1, 0, -100);
  return moe::MoeLayer(std::move(router), moe::TopKGate{.k = 2}, moe::ExpertPool<E>(std::move(experts)));
}

template <class E, class Q>
QuantisationReport report_of(const E& expert, const moe::ExpertStatistics& statistics, const WeightFormat& format,
                             const Q& quantiser) {
  QuantisationReport report;
  moe::quantise(expert, format, quantiser, statistics, {.report = &report});
  return report;
}

/// At most the error of rounding to nearest, up to the rounding of its sum.
template <class E>
void check_awq(const E& expert) {
  const Matrix<float> x = test::correlated_rows(500, kDim, 30);
  const moe::ExpertStatistics statistics = moe::calibrate(expert, x);
  for (const WeightFormat& format : kFormats) {
    CAPTURE(format.name());
    const auto nearest = report_of(expert, statistics, format, RoundToNearest{}).matrices;
    const auto found = report_of(expert, statistics, format, Awq{}).matrices;
    REQUIRE(found.size() == nearest.size());
    for (std::size_t m = 0; m < found.size(); ++m) {
      CAPTURE(found[m].name, found[m].scaling);
      CHECK(found[m].output_error <= nearest[m].output_error * (1 + 1e-6));
    }
  }
}

double l_p(const PanelMatrix<moe::F32>& weights, const PanelMatrix<moe::Quantised>& codes, double p) {
  return test::difference(weights, codes).cwiseAbs().array().pow(p).sum();
}

/// All matrices of a layer, decoded.
template <class Layer>
std::vector<float> decoded(const Layer& layer) {
  std::vector<float> all;
  moe::visit_all(
      [&](const std::string&, const auto& leaf) {
        std::vector<float> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
        moe::read_parameter(leaf, std::span<float>(values));
        all.insert(all.end(), values.begin(), values.end());
      },
      layer);
  return all;
}

template <class Layer, class Q>
void check_threads(const Layer& layer, const Q& quantiser) {
  const Matrix<float> x = test::correlated_rows(300, kDim, 31);
  std::vector<std::vector<float>> found;
  for (const Index threads : {1, 3}) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    found.push_back(decoded(moe::quantise(layer, WeightFormat::planes(2, 32), quantiser, moe::calibrate(layer, x))));
  }
  CHECK(found[0] == found[1]);
}

}  // namespace

TEST_CASE("Awq: never worse on the calibration than rounding to nearest", "[compress]") {
  check_awq(uneven<moe::Glu>(1));
  check_awq(uneven<ReluMlp>(2));
  check_awq(uneven<moe::Mlp>(3));  // whose hidden units cannot be scaled
  moe::Linear linear(24, kDim);
  test::randomise(linear, 4, 0.2);
  check_awq(linear);
}

TEST_CASE("Awq: scaled hidden units leave the expert of floats its bits, and err less", "[compress]") {
  const auto check = [](const auto& expert) {
    const Matrix<float> x = test::correlated_rows(500, kDim, 32);
    const moe::ExpertStatistics statistics = moe::calibrate(expert, x);
    moe::MatrixReport report;
    const auto scales = Awq{}.hidden_scales(expert, WeightFormat::int4(), WeightFormat::int4(), statistics, report);
    REQUIRE(std::ssize(scales) == kHidden);
    CHECK(report.scaling > 0);
    auto scaled = expert;
    moe::detail::scale_hidden(scaled, scales);
    CHECK(!test::same_bits(scaled.down().matrix(), expert.down().matrix()));
    CHECK(test::same_bits(test::run(scaled, x), test::run(expert, x)));
    const auto nearest = report_of(expert, statistics, WeightFormat::int4(), RoundToNearest{}).matrices[1];
    const auto found = report_of(expert, statistics, WeightFormat::int4(), Awq{}).matrices[1];
    CHECK(found.scaling == report.scaling);
    CHECK(found.output_error <= 0.8 * nearest.output_error);
  };
  check(uneven<moe::Glu>(5));
  check(uneven<ReluMlp>(6));
}

TEST_CASE("Awq: what cannot be stored is not scaled", "[compress]") {
  auto expert = uneven<moe::Glu>(7);
  for (Index i = 0; i < kHidden; ++i) expert.down().set(0, i, 440);  // E4M3 ends at 448
  const moe::ExpertStatistics statistics = moe::calibrate(expert, test::correlated_rows(500, kDim, 32));
  const WeightFormat plain = WeightFormat::fp8(0, ScaleType::Unscaled);
  moe::MatrixReport report;
  CHECK(Awq{}.hidden_scales(expert, WeightFormat::int4(), plain, statistics, report).empty());
  CHECK(report.scaling == 0);
  CHECK_NOTHROW(moe::quantise(expert, plain, Awq{}, statistics));
}

TEST_CASE("quantise: settings out of range are refused where no matrix has rows, too", "[compress][error]") {
  const auto expert = uneven<moe::Glu>(8);
  const moe::ExpertStatistics none = moe::calibrate(expert, Matrix<float>(0, kDim));
  const WeightFormat format = WeightFormat::int4();
  CHECK_NOTHROW(moe::quantise(expert, format, Awq{}, none));
  CHECK_THROWS_AS(moe::quantise(expert, format, Awq{.grid = 0}, none), std::invalid_argument);
  CHECK_THROWS_AS(moe::quantise(expert, format, Gptq{.block = 0}, none), std::invalid_argument);
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK_THROWS_AS(Hqq{.beta = infinity}(expert.down(), format), std::invalid_argument);
  CHECK_THROWS_AS(Hqq{.growth = infinity}(expert.down(), format), std::invalid_argument);
  CHECK_THROWS_AS(Hqq{.iterations = -1}(expert.down(), format), std::invalid_argument);
}

TEST_CASE("Hqq: never worse than rounding to nearest in the norm that it minimises", "[compress]") {
  auto weights = test::random_weights(20, 200, 7);
  for (Index o = 0; o < 20; ++o) weights.set(o, 17 * o % 200, 2.0f);  // outliers
  for (const WeightFormat& format : kFormats) {
    if (format.code == moe::WeightCode::E4M3 && format.scale == ScaleType::Unscaled) continue;
    CAPTURE(format.name());
    const auto nearest = moe::round_to_nearest(weights, format), found = Hqq{}(weights, format);
    for (Index o = 0; o < 20; ++o)
      for (Index g = 0; g < found.num_groups(); ++g) REQUIRE(std::isfinite(found.scale(o, g)));
    CHECK(l_p(weights, found, 0.7) <= l_p(weights, nearest, 0.7) * (1 + 1e-12));
  }
  const WeightFormat planes = WeightFormat::planes(3);
  CHECK(l_p(weights, Hqq{}(weights, planes), 0.7) < 0.95 * l_p(weights, moe::round_to_nearest(weights, planes), 0.7));
  CHECK_THROWS_AS(Hqq{.p = 0}(weights, planes), std::invalid_argument);
  CHECK_THROWS_AS(Hqq{.beta = 0}(weights, planes), std::invalid_argument);
  weights.set(1, 1, test::kNan<float>);
  CHECK_THROWS_AS(Hqq{}(weights, planes), std::invalid_argument);
}

TEST_CASE("quantise: a calibration makes layers of codes, and a report of every matrix", "[compress]") {
  const moe::WithBranches layer(layer_of<moe::Glu>(), moe::Mlp({.input = kDim, .hidden = 4, .output = 24}));
  const Matrix<float> x = test::correlated_rows(400, kDim, 33);
  const auto calibration = moe::calibrate(layer, x);
  const auto format = [](const ExpertMatrix& matrix) {
    return matrix.expert == 1 && matrix.name == "down.weight" ? WeightFormat::planes(3) : WeightFormat::int4();
  };
  QuantisationReport report;
  std::vector<Index> steps;
  const auto progress = [&](Index done, Index total) {
    CHECK(total == 2 * kExperts);
    steps.push_back(done);
  };
  const auto found = moe::quantise(layer, format, Gptq{}, calibration, {.progress = progress, .report = &report});
  CHECK(steps == std::vector<Index>{1, 2, 3, 4, 5, 6, 7, 8});
  REQUIRE(report.matrices.size() == 2 * kExperts);
  const auto& experts = layer.layer().experts();
  for (Index e = 0; e < kExperts; ++e)
    for (const bool is_down : {false, true}) {
      CAPTURE(e, is_down);
      const moe::MatrixReport& matrix = report.matrices[static_cast<std::size_t>(2 * e + is_down)];
      const auto& codes = is_down ? found.layer().experts()[e].down() : found.layer().experts()[e].gate_up();
      const auto& weights = is_down ? experts[e].down() : experts[e].gate_up();
      const SecondMoment& read = is_down ? calibration[e].hidden : calibration[e].inputs;
      CHECK(matrix.expert == e);
      CHECK(matrix.name == (is_down ? "down.weight" : "gate_up.weight"));
      CHECK(matrix.format == codes.format());
      CHECK(matrix.format == format({.expert = e, .name = matrix.name}));
      CHECK(matrix.rows == read.rows());
      CHECK(std::abs(matrix.weight_error -
                     test::difference(weights, codes).norm() / weights.matrix().cast<double>().norm()) < 1e-12);
      if (e == kExperts - 1) {  // without tokens
        CHECK(read.rows() == 0);
        CHECK(matrix.is_fallback);
        CHECK(std::isnan(matrix.output_error));
        CHECK(test::same_codes(codes, moe::round_to_nearest(weights, matrix.format)));
        continue;
      }
      CHECK(!matrix.is_fallback);
      CHECK(matrix.damping == 0.01);
      CHECK(test::same_codes(codes, Gptq{}(weights, matrix.format, read)));
      const Eigen::MatrixXd w = weights.matrix().cast<double>();
      const double whole = (w * test::matrix_of(read)).cwiseProduct(w).sum();
      const double error = std::sqrt(test::output_error(weights, codes, read) / whole);
      CHECK(std::abs(matrix.output_error - error) <= 1e-9 * error);
    }
  std::ostringstream table;
  report.write_table(table);
  CHECK(std::ranges::count(table.str(), '\n') == 2 * kExperts + 1);
  CHECK(report.output_error() > 0);
  CHECK(std::isnan(QuantisationReport{}.output_error()));
}

TEST_CASE("quantise: with too few rows, or experts that were not asked for, weights are rounded to nearest",
          "[compress]") {
  const auto layer = layer_of<ReluMlp>();
  const auto few = moe::calibrate(layer, test::correlated_rows(10, kDim, 34));
  QuantisationReport report;
  const auto nearest = decoded(moe::quantise(layer, WeightFormat::int4()));
  CHECK(decoded(moe::quantise(layer, WeightFormat::int4(), Gptq{}, few, {.report = &report})) == nearest);
  CHECK(decoded(moe::quantise(layer, WeightFormat::int4(), Awq{}, few)) == nearest);
  for (const auto& matrix : report.matrices) CHECK(matrix.is_fallback);
  CHECK(decoded(moe::quantise(layer, WeightFormat::int4(), Gptq{}, few, {.least_rows = 1})) != nearest);
  const auto some = moe::calibrate(layer, test::correlated_rows(300, kDim, 35), {.experts = {1}});
  moe::quantise(layer, WeightFormat::int4(), Gptq{}, some, {.report = &report});
  for (const auto& matrix : report.matrices) CHECK(matrix.is_fallback == (matrix.expert != 1));
}

TEST_CASE("quantise: with a calibration, a quantiser without one is measured alike", "[compress]") {
  const auto layer = layer_of<moe::Mlp>();
  const auto calibration = moe::calibrate(layer, test::correlated_rows(300, kDim, 36));
  QuantisationReport report;
  const auto found = moe::quantise(layer, WeightFormat::int4(), Hqq{}, calibration, {.report = &report});
  CHECK(decoded(found) == decoded(moe::quantise(layer, WeightFormat::int4(), Hqq{})));
  CHECK(report.matrices[0].output_error > 0);
  CHECK(!report.matrices[0].is_fallback);
}

TEST_CASE("quantise: the same bits for any number of threads, with every method", "[compress]") {
  check_threads(layer_of<moe::Glu>(), Gptq{});
  check_threads(layer_of<moe::Glu>(), Awq{});
  check_threads(layer_of<moe::Glu>(), Hqq{});
}

TEST_CASE("quantise: what does not fit the calibration is refused by name", "[compress]") {
  auto layer = layer_of<moe::Mlp>();
  const auto calibration = moe::calibrate(layer, test::correlated_rows(300, kDim, 37));
  const auto other = layer.experts().take(std::vector<Index>{0, 1});
  CHECK_THROWS_WITH(moe::quantise(other, WeightFormat::int4(), Gptq{}, calibration),
                    "moe::quantise: the calibration is of 4 experts, expected 2");
  moe::Linear linear(24, kDim);
  CHECK_THROWS_AS(moe::quantise(linear, WeightFormat::int4(), Gptq{}, calibration[0]), std::invalid_argument);
  layer.experts()[1].down().set(2, 1, test::kNan<float>);
  for (const auto& quantise :
       {+[](const decltype(layer)& l, const moe::Calibration& c) { moe::quantise(l, WeightFormat::int4(), Gptq{}, c); },
        +[](const decltype(layer)& l, const moe::Calibration& c) { moe::quantise(l, WeightFormat::int4(), Awq{}, c); }})
    CHECK_THROWS_WITH(quantise(layer, calibration),
                      Catch::Matchers::StartsWith("moe::quantise: expert 1, down.weight: moe::") &&
                          Catch::Matchers::EndsWith("weight of output 2, input 1 is nan, expected a finite one"));
}
