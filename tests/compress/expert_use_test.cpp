// SPDX-License-Identifier: MIT
#include "moe/compress/expert_use.hpp"

#include "layer/fixtures.hpp"
#include "moe/compress/block_importance.hpp"
#include "moe/compress/expert_scores.hpp"
#include "moe/compress/wanda.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::Calibration;
using moe::CalibrationOptions;
using moe::Gather;
using moe::Index;
using moe::Matrix;
using moe::WeightOn;

namespace {

constexpr Index kExperts = 5, kDim = 9;
using ReluMlp = moe::BasicMlp<moe::F32, moe::Relu>;

auto layer_of(WeightOn on = WeightOn::Output) {
  std::vector<ReluMlp> experts(kExperts, ReluMlp(kDim, 6));
  for (std::size_t e = 0; e < experts.size(); ++e) test::randomise(experts[e], 10 * e + 1, 0.4);
  moe::LinearRouter router = moe::LinearRouter::random(kExperts, kDim, 3, moe::Bias::Zero);
  router.bias()(4, 0) = -1e6f;  // is never used
  return moe::MoeLayer(std::move(router), moe::TopKGate{.k = 2}, moe::ExpertPool<ReluMlp>(std::move(experts)), on);
}

CalibrationOptions all_but_moments(Index first_token = 0) {
  return {.moments = Gather::Off,
          .use = Gather::On,
          .contribution = Gather::On,
          .co_activation = Gather::On,
          .reservoir = 7,
          .seed = 5,
          .first_token = first_token};
}

/// All numbers of a calibration.
std::vector<double> numbers(const Calibration& calibration) {
  std::vector<double> all;
  moe::visit_all(
      [&](const std::string&, const auto& leaf) {
        std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
        moe::read_parameter(leaf, std::span<double>(values));
        all.insert(all.end(), values.begin(), values.end());
      },
      calibration);
  return all;
}

/// One linear expert that multiplies by `factor`, with weight 1.
auto scaling_layer(float factor) {
  moe::Linear expert(kDim, kDim);
  for (Index i = 0; i < kDim; ++i) expert.weight()(i, i) = factor;
  return moe::MoeLayer(moe::LinearRouter(1, kDim), moe::TopKGate{.k = 1}, moe::ExpertPool(std::vector{expert}));
}

}  // namespace

TEST_CASE("ExpertUse: sums over tokens, as loops have them", "[compress]") {
  const auto on = GENERATE(WeightOn::Output, WeightOn::Input);
  const auto layer = layer_of(on);
  const auto x = test::random_matrix<float>(80, kDim, 4);
  decltype(layer)::Tape tape;
  Matrix<float> out(80, kDim);
  layer.forward(x, moe::Step{}, out, tape);
  const Calibration calibration = moe::calibrate(layer, x, tape, all_but_moments());
  moe::ExpertUse sums(kExperts);
  sums.contribution = Eigen::VectorXd::Zero(kExperts);
  Matrix<double> together = Matrix<double>::Zero(kExperts, kExperts);
  for (Index t = 0; t < 80; ++t) {
    const Eigen::RowVectorXd before = x.row(t).cast<double>();
    Eigen::RowVectorXd after = before;
    std::vector<double> gated;
    for (std::size_t s = 0; s < 2; ++s) {
      const Index e = tape.routing.experts(t)[s];
      const float g = tape.routing.weights(t)[s];
      const Matrix<float> row = on == WeightOn::Input ? Matrix<float>(g * x.row(t)) : Matrix<float>(x.row(t));
      const Eigen::RowVectorXd y = test::run(layer.experts()[e], row).cast<double>();
      const double factor = on == WeightOn::Input ? 1 : static_cast<double>(g);
      after += factor * y;
      gated.push_back(factor * y.norm());
      sums.count[e] += 1, sums.weight[e] += static_cast<double>(g), sums.norm[e] += y.norm();
      sums.square[e] += y.squaredNorm(), sums.gated_norm[e] += gated.back();
      together(e, e) += 1;
      together(e, tape.routing.experts(t)[1 - s]) += 1;
    }
    for (std::size_t s = 0; s < 2; ++s)
      sums.contribution[tape.routing.experts(t)[s]] +=
          std::max(0.0, 1 - before.dot(after) / (before.norm() * after.norm())) * gated[s];
  }
  const moe::ExpertUse& use = calibration.use();
  CHECK(use.tokens == 80);
  CHECK(use.count == sums.count);
  const double tolerance = 80 * 32 * 0x1p-52;  // sums of doubles in another order; 1 - cos of numbers around 1
  for (const auto member : {&moe::ExpertUse::weight, &moe::ExpertUse::norm, &moe::ExpertUse::square,
                            &moe::ExpertUse::gated_norm, &moe::ExpertUse::contribution})
    CHECK((use.*member - sums.*member).cwiseAbs().maxCoeff() <= tolerance * (1 + (sums.*member).maxCoeff()));
  CHECK(calibration.co_activation().tokens == together);
}

TEST_CASE("ExpertUse: an expert that is never used scores 0", "[compress]") {
  const auto layer = layer_of();
  for (const Index tokens : {0, 60}) {
    const moe::ExpertUse use = moe::calibrate(layer, test::random_matrix<float>(tokens, kDim), all_but_moments()).use();
    for (const auto& scores : {use.frequencies(), use.mean_weights(), use.gated_norms(), use.saliencies(),
                               use.contributions(), moe::shares(use.saliencies())}) {
      CHECK(scores[4] == 0);
      for (const double score : scores) CHECK((tokens == 0 ? score == 0 : std::isfinite(score)));
    }
    if (tokens == 0) continue;
    double sum = 0;
    for (const double share : use.frequencies()) sum += share;
    CHECK_THAT(sum, Catch::Matchers::WithinAbs(2.0, 1e-12));  // k choices per token
    CHECK(use.saliencies()[0] == use.gated_norm[0] / use.count[0]);
  }
}

TEST_CASE("ExpertUse: contributions in closed form", "[compress]") {
  auto x = test::random_matrix<float>(12, kDim, 6);
  x.row(3).setZero();  // a stream of 0 is no NaN
  double norms = 0;
  for (Index t = 0; t < 12; ++t) norms += x.row(t).cast<double>().norm();
  const auto contribution = [&](float factor, const Matrix<float>* stream = nullptr) {
    CalibrationOptions options = all_but_moments();
    options.stream = stream;
    return moe::calibrate(scaling_layer(factor), x, options).use().contributions()[0];
  };
  CHECK(std::abs(contribution(1)) <= 1e-12 * norms);                              // along x: nothing turns
  CHECK_THAT(contribution(-2), Catch::Matchers::WithinRel(2 * 2 * norms, 1e-6));  // x becomes -x
  CHECK_THAT(contribution(-1), Catch::Matchers::WithinRel(norms, 1e-6));          // x becomes 0
  Matrix<float> across = Matrix<float>::Zero(12, kDim);  // a stream at a right angle to what is added, and as long
  for (Index t = 0; t < 12; ++t) across(t, 0) = x(t, 1), across(t, 1) = -x(t, 0);
  Matrix<float> first_two = Matrix<float>::Zero(12, kDim);
  first_two.leftCols(2) = x.leftCols(2);
  x = first_two;
  norms = 0;
  for (Index t = 0; t < 12; ++t) norms += x.row(t).cast<double>().norm();
  CHECK_THAT(contribution(1, &across), Catch::Matchers::WithinRel((1 - std::sqrt(0.5)) * norms, 1e-6));
}

TEST_CASE("Calibration: two halves are one pass, in any order, at any number of threads", "[compress]") {
  const auto layer = layer_of();
  const auto x = test::random_matrix<float>(300, kDim, 7);
  const Calibration whole = moe::calibrate(layer, x, all_but_moments());
  Calibration first = moe::calibrate(layer, x.topRows(140), all_but_moments());
  Calibration second = moe::calibrate(layer, x.bottomRows(160), all_but_moments(140));
  Calibration swapped = second;
  swapped += first;
  first += second;
  const std::vector<double> a = numbers(whole), b = numbers(first), c = numbers(swapped);
  REQUIRE(a.size() == 1 + 6 * kExperts + kExperts * kExperts + 2 + 7 * (1 + kDim));
  for (std::size_t i = 0; i < a.size(); ++i) {
    CHECK(std::abs(a[i] - b[i]) <= 1e-5 * (1e-9 + std::abs(a[i])));
    CHECK(b[i] == c[i]);  // a + b is b + a
  }
  CHECK(first.reservoir().tokens() == whole.reservoir().tokens());  // the same sample, to the bit
  CHECK(whole.reservoir().size() == 7);
  CHECK(moe::calibrate(layer, x.topRows(3), all_but_moments()).reservoir().size() == 3);
  for (const Index threads : {1, 3}) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    CHECK(numbers(moe::calibrate(layer, x, all_but_moments())) == a);
  }
  CHECK(numbers(moe::calibrate(layer, x, {.moments = Gather::Off})).empty());  // what is not asked for is not there
}

TEST_CASE("TokenReservoir: every token has the same chance", "[compress]") {
  const auto x = test::random_matrix<float>(40, 2, 8);
  std::vector<int> taken(40);
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    moe::TokenReservoir reservoir(10, 2, seed);
    reservoir.add<float>(x, 0, [](Index) { return true; });
    const Matrix<float> tokens = reservoir.tokens();
    for (Index t = 0; t < 40; ++t)
      for (Index i = 0; i < 10; ++i) taken[static_cast<std::size_t>(t)] += tokens.row(i) == x.row(t) ? 1 : 0;
  }
  for (const int times : taken) CHECK(std::abs(times - 125) <= 5 * 9.7);  // binomial: s.d. sqrt(500 * .25 * .75)
}

TEST_CASE("TokenReservoir: samples of other seeds, and what is no sample, are refused", "[compress][error]") {
  const auto x = test::random_matrix<float>(4, 2, 8);
  const auto reservoir_of = [&](std::uint64_t seed) {
    moe::TokenReservoir reservoir(3, 2, seed);
    reservoir.add<float>(x, 0, [](Index) { return true; });
    return reservoir;
  };
  const auto loaded = [&](const char* leaf_name, double value) {
    moe::TokenReservoir reservoir = reservoir_of(5);
    moe::visit_all(
        [&](const std::string& name, auto& leaf) {
          if (name == leaf_name) leaf(1, 0) = static_cast<moe::ParameterScalar<decltype(leaf)>>(value);
        },
        reservoir);
    return reservoir;
  };
  moe::TokenReservoir reservoir = reservoir_of(5);
  CHECK_THROWS_WITH(reservoir += reservoir_of(1ull << 63),
                    "moe::TokenReservoir: += of one with seed 9223372036854775808, expected 5");
  for (const double priority : {test::kNan<double>, -1.0, 1.0, 2.0, 3.0, 0.0}) {
    CHECK_THROWS_AS(loaded("priority", priority).tokens(), std::invalid_argument);
    CHECK_THROWS_AS(reservoir += loaded("priority", priority), std::invalid_argument);
  }
  CHECK_THROWS_AS(reservoir += loaded("seed", 0.5), std::invalid_argument);
  CHECK(reservoir.tokens() == reservoir_of(5).tokens());
}

TEST_CASE("output_rows: of large and small outputs, and of what is not finite", "[compress]") {
  std::vector<moe::Linear> experts(2, moe::Linear(2, 2));
  for (Index i = 0; i < 2; ++i) experts[0].weight().set(i, i, 3e30f), experts[1].weight().set(i, i, 3e-30f);
  moe::ExpertPool<moe::Linear> pool(experts);
  const Matrix<float> x = Matrix<float>::Ones(1, 2);
  CHECK((moe::output_rows(pool, x).array() - std::sqrt(0.5f)).abs().maxCoeff() <= 1e-6f);
  pool[1].weight().set(1, 1, test::kNan<float>);
  CHECK_THROWS_WITH(moe::output_similarity(pool, x),
                    "moe::output_similarity: the output of expert 1 on token 0 is not finite");
}

TEST_CASE("Calibration: padding, branches and what does not fit", "[compress][error]") {
  const auto layer = layer_of();
  const auto x = test::random_matrix<float>(50, kDim, 9);
  const moe::WithBranches beside(layer, ReluMlp(kDim, 3));
  CHECK(numbers(moe::calibrate(beside, x, all_but_moments())) == numbers(moe::calibrate(layer, x, all_but_moments())));
  std::vector<std::uint8_t> valid(50, 1);
  std::fill(valid.begin() + 30, valid.end(), std::uint8_t{0});
  decltype(layer)::Tape tape;
  Matrix<float> out(50, kDim);
  layer.forward(x, moe::Step{.valid = valid}, out, tape);
  CHECK(numbers(moe::calibrate(layer, x, tape, all_but_moments())) ==
        numbers(moe::calibrate(layer, x.topRows(30), all_but_moments())));
  CHECK_THROWS_AS(moe::calibrate(layer, x, {.contribution = Gather::On}), std::invalid_argument);
  Calibration use = moe::calibrate(layer, x, {.moments = Gather::Off, .use = Gather::On});
  CHECK_THROWS_AS(use.use().contributions(), std::invalid_argument);
  CHECK_THROWS_AS(use += moe::calibrate(layer, x, all_but_moments()), std::invalid_argument);
  CHECK_THROWS_AS(use += moe::calibrate(layer, x, {.moments = Gather::Off}), std::invalid_argument);
  CHECK(use.use().tokens == 50);  // nothing was added
  CalibrationOptions options = all_but_moments();
  const Matrix<float> narrow(50, 2);
  options.stream = &narrow;
  CHECK_THROWS_AS(moe::calibrate(layer, x, options), std::invalid_argument);
}

TEST_CASE("expert scores: routers, outputs, shares", "[compress]") {
  const auto layer = layer_of();
  const Matrix<double> distance = moe::router_distance(layer.router());
  const Matrix<float> rows = layer.router().weight().matrix();
  for (Index i = 0; i < kExperts; ++i)
    for (Index j = 0; j < kExperts; ++j) {
      double sum = 0;
      for (Index c = 0; c < kDim; ++c) {
        const double off = static_cast<double>(rows(i, c)) - static_cast<double>(rows(j, c));
        sum += off * off;
      }
      CHECK(std::abs(distance(i, j) - std::sqrt(sum)) <= 1e-14);
    }
  const auto x = test::random_matrix<float>(150, kDim, 2);
  const Matrix<double> similarity = moe::output_similarity(layer.experts(), x);
  const Matrix<float> points = moe::output_rows(layer.experts(), x);
  for (Index i = 0; i < kExperts; ++i)
    for (Index j = 0; j < kExperts; ++j) {
      const Matrix<float> a = test::run(layer.experts()[i], x), b = test::run(layer.experts()[j], x);
      double sum = 0;
      for (Index t = 0; t < 150; ++t) {
        const Eigen::RowVectorXd u = a.row(t).cast<double>(), v = b.row(t).cast<double>();
        sum += u.dot(v) / (u.norm() * v.norm());
      }
      CHECK(std::abs(similarity(i, j) - sum / 150) <= 1e-5);
      CHECK(std::abs(static_cast<double>((points.row(i) - points.row(j)).squaredNorm()) -
                     300 * (1 - similarity(i, j))) <= 1e-2);
    }
  const moe::ExpertPool<ReluMlp> silent(std::vector<ReluMlp>(2, ReluMlp(kDim, 4)));
  CHECK(moe::output_similarity(silent, x) == Matrix<double>::Ones(2, 2));
  CHECK_THROWS_AS(moe::output_similarity(silent, x.topRows(0)), std::invalid_argument);
  const std::vector<double> a = {1, 3, 0, 0, 4}, b = {0, 0, 1, 0, 0};
  CHECK(moe::mixed_shares({a, b}) == std::vector<double>{0.125, 0.375, 1, 0, 0.5});
  CHECK_THROWS_AS(moe::shares(std::vector<double>{1, test::kNan<double>}), std::invalid_argument);
  const auto together = moe::calibrate(layer, x, all_but_moments()).co_activation();
  CHECK(moe::behaviour_distance(distance, together, 1, 0) == distance);
  const Matrix<double> blend = moe::behaviour_distance(distance, together, 0, 1);
  CHECK(std::abs(blend.sum() + kExperts * (kExperts - 1)) <= 1e-9);
  CHECK(blend.diagonal().isZero(0));
}

TEST_CASE("output_similarity: means over halves add up, and are finite where experts are silent", "[compress]") {
  const auto layer = layer_of();
  auto experts = layer.experts();
  experts[2] = ReluMlp(kDim, 6);  // gives 0
  const auto x = test::random_matrix<float>(150, kDim, 2);
  const Matrix<double> whole = moe::output_similarity(experts, x);
  const Matrix<double> halves =
      (70 * moe::output_similarity(experts, x.topRows(70)) + 80 * moe::output_similarity(experts, x.bottomRows(80))) /
      150;
  CHECK((whole - halves).cwiseAbs().maxCoeff() <= 1e-12);
  CHECK(whole.allFinite());
  CHECK(whole(2, 2) == 1);
}

TEST_CASE("BlockImportance: in closed form", "[compress]") {
  const auto x = test::random_matrix<float>(12, kDim, 6);
  const auto of = [&](float factor) { return moe::block_importance(scaling_layer(factor), x).score(); };
  // A cosine of kDim products of doubles, of streams that were rounded to float: 1 - cos is of second order in that.
  constexpr double kRounding = kDim * 0x1p-50;
  CHECK(of(0) <= kRounding);
  CHECK(of(3) <= kRounding);                                     // along x
  CHECK_THAT(of(-3), Catch::Matchers::WithinAbs(2, kRounding));  // x becomes -2 x
  CHECK(of(-1) == 1);                                            // x becomes 0
  Matrix<float> across(12, kDim), turned(12, kDim);
  across.setZero(), turned.setZero();
  for (Index t = 0; t < 12; ++t) across(t, 0) = turned(t, 0) = 3, turned(t, 1) = 4;
  CHECK_THAT(moe::importance_of_streams<float>(across, turned).score(), Catch::Matchers::WithinAbs(0.4, 1e-15));
  across *= 1e30f, turned *= 1e-30f;  // squares leave the range of floats
  CHECK_THAT(moe::importance_of_streams<float>(across, turned).score(), Catch::Matchers::WithinAbs(0.4, 1e-15));
  const Matrix<float> none = Matrix<float>::Zero(12, kDim);
  CHECK(moe::importance_of_streams<float>(none, none).score() == 0);
  CHECK(moe::importance_of_streams<float>(none, turned).score() == 1);
  CHECK(moe::importance_of_streams<float>(none.topRows(0), none.topRows(0)).score() == 0);
}

TEST_CASE("BlockImportance: as loops have it, halves add up, any number of threads", "[compress]") {
  const auto layer = layer_of();
  const moe::WithBranches beside(layer, [] {
    ReluMlp shared(kDim, 3);
    test::randomise(shared, 77, 0.4);
    return shared;
  }());
  const auto x = test::random_matrix<float>(150, kDim, 3), stream = test::random_matrix<float>(150, kDim, 4);
  const Matrix<float> after = stream + test::forward(beside, x);
  double cosine = 0;
  for (Index t = 0; t < 150; ++t) {
    const Eigen::RowVectorXd a = stream.row(t).cast<double>(), b = after.row(t).cast<double>();
    cosine += a.dot(b) / (a.norm() * b.norm());
  }
  const moe::BlockImportance whole = moe::block_importance(beside, x, stream);
  CHECK(std::abs(whole.score() - (1 - cosine / 150)) <= 1e-14);
  moe::BlockImportance halves = moe::block_importance(beside, x.topRows(70), stream.topRows(70));
  halves += moe::block_importance(beside, x.bottomRows(80), stream.bottomRows(80));
  CHECK(std::abs(halves.score() - whole.score()) <= 1e-14);
  for (const Index threads : {1, 3}) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    CHECK(moe::block_importance(beside, x, stream).cosine == whole.cosine);
  }
  // As budgets: the layer that does more keeps more weights.
  const std::vector<double> sparsities = moe::owl_sparsities(std::vector{whole.score(), 0.0}, 0.5, 0.1);
  CHECK_THAT(sparsities[0], Catch::Matchers::WithinAbs(0.4, 1e-12));
  Matrix<float> bad = stream;
  bad(3, 0) = test::kNan<float>;
  CHECK_THROWS_WITH(moe::block_importance(beside, x, bad),
                    "moe::importance_of_streams: token 3 is not finite, expected finite streams");
  CHECK_THROWS_AS(moe::block_importance(beside, x, stream.topRows(3)), std::invalid_argument);
}

TEST_CASE("outlier_score: by hand", "[compress]") {
  using moe::OutlierAxis;
  Matrix<float> w(2, 2);
  w << 1, 1, 1, 9;
  CHECK(moe::outlier_score(w, OutlierAxis::Input) == 1.8);
  CHECK(moe::outlier_score(w, OutlierAxis::Output) == 1.8);
  CHECK(moe::outlier_score(w, OutlierAxis::Group, 1) == 1);
  CHECK(moe::outlier_score(-3 * w, OutlierAxis::Input) == 1.8);
  w.col(1).setZero();
  CHECK(moe::outlier_score(w, OutlierAxis::Input) == 1);
  CHECK_THAT(moe::outlier_score(Matrix<float>::Identity(6, 6), OutlierAxis::Input),
             Catch::Matchers::WithinRel(6.0, 1e-12));
  CHECK(moe::outlier_score(Matrix<float>::Zero(3, 3), OutlierAxis::Group) == 1);
  w(0, 0) = test::kNan<float>;
  CHECK_THROWS_AS(moe::outlier_score(w, OutlierAxis::Input), std::invalid_argument);
}
