// SPDX-License-Identifier: MIT
#include "moe/compress/merge.hpp"

#include <Eigen/Cholesky>
#include <Eigen/SVD>

#include "layer/fixtures.hpp"
#include "moe/compress/bit_plan.hpp"
#include "moe/compress/merge_in_subspace.hpp"
#include "moe/compress/merge_in_whitened_subspace.hpp"
#include "moe/compress/quantisation_errors.hpp"
#include "moe/compress/reconstruction_error.hpp"
#include "moe/compress/reconstruct.hpp"
#include "moe/gate/null_expert.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::ExpertPlan;
using moe::Index;
using moe::Matrix;
using Ids = std::vector<Index>;

namespace {

constexpr Index kDim = test::kModelDim;

auto glu_layer(Index num_experts, Index k = 2) {
  return test::layer_of<moe::Glu, moe::TopKGate, moe::F32>(num_experts, moe::TopKGate{.k = k}, moe::Bias::Zero);
}
const Matrix<float> kTokens = test::random_matrix<float>(40, kDim, 3);

/// The expert with its hidden units in another order, which computes the same.
moe::Glu shuffled(const moe::Glu& expert) {
  const Index hidden = expert.hidden_dim();
  Ids order, both;
  for (Index i = 0; i < hidden; ++i) order.push_back((5 * i + 2) % hidden);
  for (const Index first : {Index{0}, hidden})
    for (const Index i : order) both.push_back(first + i);
  moe::Glu result = expert;
  result.gate_up() = expert.gate_up().take_outputs(both);
  result.gate_up_bias() = expert.gate_up_bias().take_outputs(both);
  result.down() = expert.down().take_inputs(order);
  return result;
}

double largest_difference(const Matrix<float>& a, const Matrix<float>& b) {
  return static_cast<double>((a - b).cwiseAbs().maxCoeff());
}

}  // namespace

TEST_CASE("prune: all experts are the layer, fewer are masked logits", "[compress]") {
  const auto layer = glu_layer(5);
  const auto all = moe::prune(layer, moe::keep_best(std::vector<double>(5, 1.0), 5));
  CHECK(test::flatten(all.layer) == test::flatten(layer));
  CHECK(test::same_bits(test::forward(all.layer, kTokens), test::forward(layer, kTokens)));
  const auto some = moe::prune(layer, ExpertPlan::keep({3, 0, 4}, 5));
  CHECK(some.experts.place == Ids{0, -1, -1, 1, 2});
  auto masked = layer;
  for (const Index e : {1, 2}) masked.router().bias()(e, 0) = -1e30f;
  CHECK(test::same_bits(test::forward(some.layer, kTokens), test::forward(masked, kTokens)));
  // Twice is once.
  const auto twice = moe::prune(some.layer, ExpertPlan::keep({0, 2}, 3));
  CHECK(test::flatten(twice.layer) == test::flatten(moe::prune(layer, ExpertPlan::keep({0, 4}, 5)).layer));
  CHECK(some.experts.then(twice.experts).place == Ids{0, -1, -1, -1, 1});
  const moe::WithBranches beside(layer, moe::Glu(kDim, 3));
  CHECK(moe::prune(beside, ExpertPlan::keep({1, 2}, 5)).layer.num_experts() == 2);
  CHECK(moe::prune(glu_layer(1, 1), moe::keep_best(std::vector<double>{0}, 1)).layer.num_experts() == 1);
  CHECK_THROWS_AS(moe::prune(layer, ExpertPlan::keep({1}, 5)), std::invalid_argument);  // k is 2
  CHECK_THROWS_WITH(moe::prune(layer, ExpertPlan::keep({1, 2}, 4)), "moe::prune: the plan is of 4 experts, expected 5");
}

TEST_CASE("merge: the weighted mean of everything, clusters of one bit for bit", "[compress]") {
  const auto layer = glu_layer(5);
  const ExpertPlan plan = ExpertPlan::of_clusters(Ids{0, 1, 0, 3, 0});
  const std::vector<double> weights = {0.5, 0.1, 1.5, 0.2, 0};
  const auto merged = moe::merge(layer, plan, {.weights = weights});
  CHECK(merged.experts.place == Ids{0, 1, 0, 2, 0});
  const std::vector<double> a = test::flatten(layer.experts()[0]), b = test::flatten(layer.experts()[2]);
  const std::vector<double> mean = test::flatten(merged.layer.experts()[0]);
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(std::abs(mean[i] - (a[i] + 3 * b[i]) / 4) <= 1e-7);
  CHECK(test::flatten(merged.layer.experts()[1]) == test::flatten(layer.experts()[1]));
  CHECK(test::flatten(merged.layer.experts()[2]) == test::flatten(layer.experts()[3]));
  const Matrix<float> rows = layer.router().weight().matrix(), now = merged.layer.router().weight().matrix();
  CHECK(((rows.row(0) + 3 * rows.row(2)) / 4 - now.row(0)).cwiseAbs().maxCoeff() <= 1e-6f);
  CHECK(now.row(1) == rows.row(1));
  const auto kept = moe::merge(layer, plan, {.weights = weights, .router = moe::RouterMerge::Representative});
  CHECK(kept.layer.router().weight().matrix() == rows(Ids{0, 1, 3}, Eigen::all));
  // Weights of 0 count as equal ones.
  CHECK(test::flatten(moe::merge(layer, plan, {.weights = std::vector<double>(5, 0.0)}).layer) ==
        test::flatten(moe::merge(layer, plan).layer));
  CHECK(test::flatten(moe::merge(layer, ExpertPlan::of_clusters(Ids{0, 1, 2, 3, 4})).layer) == test::flatten(layer));
  {
    test::ThreadExecutor executor(3);
    const moe::UseExecutor use(executor);
    CHECK(test::flatten(moe::merge(layer, plan, {.weights = weights}).layer) == test::flatten(merged.layer));
  }
  CHECK_THROWS_AS(moe::merge(layer, plan, {.weights = {1, 2}}), std::invalid_argument);
  CHECK_THROWS_AS(moe::merge(layer, plan, {.weights = {1, 1, -1, 1, 1}}), std::invalid_argument);
  CHECK_THROWS_AS(moe::merge(layer, plan, {.weights = {1, 1, test::kNan<double>, 1, 1}}), std::invalid_argument);
}

TEST_CASE("merge: router rows of experts are means beside those of nulls, which stay", "[compress]") {
  const moe::MoeLayer layer(moe::LinearRouter::random(7, kDim, 3), moe::NullExpertGate{.k = 2, .nulls = 2},
                            glu_layer(5).experts());
  const auto merged = moe::merge(layer, ExpertPlan::of_clusters(Ids{0, 1, 0, 2, 2})).layer;
  const Matrix<float> rows = layer.router().weight().matrix(), now = merged.router().weight().matrix();
  REQUIRE(now.rows() == 5);
  CHECK(((rows.row(0) + rows.row(2)) / 2 - now.row(0)).cwiseAbs().maxCoeff() <= 1e-7f);
  CHECK(((rows.row(3) + rows.row(4)) / 2 - now.row(2)).cwiseAbs().maxCoeff() <= 1e-7f);
  CHECK(now.row(1) == rows.row(1));
  CHECK(now.bottomRows(2) == rows.bottomRows(2));
}

TEST_CASE("merge: a plan whose parts do not fit is refused", "[compress][error]") {
  const auto layer = glu_layer(5);
  ExpertPlan plan = ExpertPlan::of_clusters(Ids{0, 1, 0, 3, 0});
  plan.kept[0] = 2;
  CHECK_THROWS_AS(moe::prune(layer, plan), std::invalid_argument);
  CHECK_THROWS_WITH(moe::merge(layer, plan), Catch::Matchers::StartsWith("moe::merge: kept[1] of the plan is 1"));
}

TEST_CASE("merge: equal experts stay what they are, also in another order of hidden units", "[compress]") {
  auto layer = moe::take_experts(glu_layer(3), {0, 1, 2, 0, 1, 2});
  const Matrix<float> before = test::forward(glu_layer(3), kTokens);
  const ExpertPlan plan = ExpertPlan::of_clusters(Ids{0, 1, 2, 0, 1, 2});
  const std::vector<double> weights = {3, 1, 0, 1, 1, 2};
  CHECK(largest_difference(test::forward(moe::merge(layer, plan, {.weights = weights}).layer, kTokens), before) <=
        1e-6);
  for (Index e = 3; e < 6; ++e) layer.experts()[e] = shuffled(layer.experts()[e]);
  const auto off = moe::merge(layer, plan, {.weights = weights});
  const auto aligned = moe::merge(layer, plan, {.weights = weights, .align = moe::AlignHidden::Hungarian});
  CHECK(largest_difference(test::forward(off.layer, kTokens), before) > 0.1);
  CHECK(largest_difference(test::forward(aligned.layer, kTokens), before) <= 1e-5);
}

TEST_CASE("merge_in_subspace: full rank is the mean, less its projection", "[compress]") {
  const auto layer = glu_layer(4);
  const ExpertPlan plan = ExpertPlan::of_clusters(Ids{0, 0, 2, 0});
  const moe::MergeOptions options{.weights = {1, 2, 1, 3}};
  const auto full = moe::merge_in_subspace(layer, plan, 100, options), mean = moe::merge(layer, plan, options);
  const std::vector<double> a = test::flatten(full.layer), b = test::flatten(mean.layer);
  for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(std::abs(a[i] - b[i]) <= 1e-6);
  // The formula of the paper on the ups, by a singular value decomposition.
  constexpr Index kRank = 4, kHidden = test::kHiddenDim;
  const auto ups = [&](const auto& expert) {
    return Eigen::MatrixXd(expert.gate_up().matrix().template cast<double>().bottomRows(kHidden));
  };
  Eigen::MatrixXd all(kHidden, 3 * kDim);
  all << ups(layer.experts()[0]), ups(layer.experts()[1]), ups(layer.experts()[3]);
  const Eigen::JacobiSVD<Eigen::MatrixXd> svd(all, Eigen::ComputeThinU | Eigen::ComputeThinV);
  const Eigen::MatrixXd v = svd.matrixV().leftCols(kRank);
  const Eigen::MatrixXd mean_v =
      (v.topRows(kDim) + 2 * v.middleRows(kDim, kDim) + 3 * v.bottomRows(kDim)) / 6;  // V is stacked
  const Eigen::MatrixXd expected =
      svd.matrixU().leftCols(kRank) * svd.singularValues().head(kRank).asDiagonal() * mean_v.transpose();
  const auto few = moe::merge_in_subspace(layer, plan, kRank, options);
  CHECK((ups(few.layer.experts()[0]) - expected).cwiseAbs().maxCoeff() <= 1e-6);
  CHECK(test::flatten(few.layer.experts()[1]) == test::flatten(layer.experts()[2]));
  // Eckart and Young: what the subspace leaves of the matrices.
  double last = 1e300;
  for (Index rank = 1; rank <= kHidden; ++rank) {
    double left = 0;
    std::vector<Eigen::MatrixXd> members = {ups(layer.experts()[0]), ups(layer.experts()[1]), ups(layer.experts()[3])};
    const std::vector<const Eigen::MatrixXd*> places = {&members[0], &members[1], &members[2]};
    for (std::size_t m = 0; m < 3; ++m) {
      std::vector<double> one(3, 0.0);
      one[m] = 1;
      left += (members[m] - moe::detail::mean_in_subspace(places, one, rank)).squaredNorm();
    }
    CHECK(std::abs(left - svd.singularValues().tail(kHidden - rank).squaredNorm()) <= 1e-10);
    CHECK(left <= last);
    last = left;
  }
  CHECK_THROWS_AS(moe::merge_in_subspace(layer, plan, 0), std::invalid_argument);
}

TEST_CASE("ReconstructionError: as a loop over tokens has it, halves add up", "[compress]") {
  auto layer = glu_layer(5);
  layer.router().bias()(4, 0) = -1e6f;  // is never used
  const auto small = moe::prune(layer, ExpertPlan::keep({0, 2, 3}, 5)).layer;
  const Matrix<double> before = test::forward(layer, kTokens).cast<double>();
  const Matrix<double> after = test::forward(small, kTokens).cast<double>();
  Matrix<float> out(40, kDim);
  moe::Workspace workspace;
  layer.forward(kTokens, moe::Step{}, out, workspace);
  double error = 0, output = 0;
  std::vector<double> of(5, 0.0), whole(5, 0.0);
  for (Index t = 0; t < 40; ++t) {
    const double off = (after.row(t) - before.row(t)).squaredNorm(), norm = before.row(t).squaredNorm();
    error += off, output += norm;
    for (const Index e : workspace.routing.experts(t))
      of[static_cast<std::size_t>(e)] += off, whole[static_cast<std::size_t>(e)] += norm;
  }
  const moe::ReconstructionError found = moe::reconstruction_error(layer, small, kTokens);
  constexpr double kRounding = 40 * kDim * 0x1p-52;  // sums of doubles in another order
  CHECK_THAT(found.relative(), Catch::Matchers::WithinRel(std::sqrt(error / output), kRounding));
  const std::vector<double> experts = found.relative_of_experts();
  for (std::size_t e = 0; e < 4; ++e)
    CHECK_THAT(experts[e], Catch::Matchers::WithinRel(std::sqrt(of[e] / whole[e]), kRounding));
  CHECK(experts[4] == 0);
  CHECK(experts[1] > 0.1);  // is dropped
  moe::ReconstructionError halves = moe::reconstruction_error(layer, small, kTokens.topRows(15));
  halves += moe::reconstruction_error(layer, small, kTokens.bottomRows(25));
  CHECK_THAT(halves.relative(), Catch::Matchers::WithinRel(found.relative(), kRounding));
  for (std::size_t e = 0; e < 5; ++e) CHECK(std::abs(halves.relative_of_experts()[e] - experts[e]) <= 1e-12);
  CHECK(moe::reconstruction_error(layer, layer, kTokens).relative() == 0);
  const moe::ReconstructionError none = moe::reconstruction_error(layer, small, kTokens.topRows(0));
  CHECK(none.relative() == 0);
  CHECK(none.relative_of_experts() == std::vector<double>(5, 0.0));
  // A branch is in both outputs: differences are the same, but for rounding of the sums to float.
  const auto shared = test::random_expert<moe::Glu>(kDim, 3, 9);
  const auto beside =
      moe::reconstruction_error(moe::WithBranches(layer, shared), moe::WithBranches(small, shared), kTokens);
  CHECK_THAT(beside.error, Catch::Matchers::WithinRel(error, 1e-5));
  CHECK_THROWS_WITH(halves += moe::ReconstructionError(4), "moe::ReconstructionError: += of 4 experts, expected 5");
}

TEST_CASE("merge_in_whitened_subspace: the formula of the paper, by roots and their inverses", "[compress]") {
  const auto layer = glu_layer(4);
  const ExpertPlan plan = ExpertPlan::of_clusters(Ids{0, 0, 2, 0});
  const moe::MergeOptions options{.weights = {1, 2, 1, 3}};
  const auto seen = moe::calibrate(layer, test::random_matrix<float>(400, kDim, 5));
  const auto whitened = [&](Index rank) {
    return moe::merge_in_whitened_subspace(layer, plan, rank, seen, options).layer;
  };
  const std::vector<double> a = test::flatten(whitened(100)), b = test::flatten(moe::merge(layer, plan, options).layer);
  for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(std::abs(a[i] - b[i]) <= 1e-6);

  constexpr Index kHidden = test::kHiddenDim;
  const Ids members = {0, 1, 3};
  const auto root = [](const moe::SecondMoment& moment) {
    Eigen::MatrixXd h(moment.dim(), moment.dim());
    for (Index i = 0; i < h.rows(); ++i)
      for (Index j = 0; j < h.cols(); ++j) h(i, j) = double(moment(i, j));
    return Eigen::MatrixXd(h.llt().matrixL());
  };
  const auto check = [&](const auto& matrix_of, const auto& moment_of) {
    std::vector<Eigen::MatrixXd> w, s;
    for (const Index e : members) {
      w.push_back(matrix_of(layer.experts()[e]));
      s.push_back(root(moment_of(seen[e])));
    }
    const Index outputs = w[0].rows(), inputs = w[0].cols();
    Eigen::MatrixXd all(outputs, 3 * inputs);
    all << w[0] * s[0], w[1] * s[1], w[2] * s[2];
    const Eigen::JacobiSVD<Eigen::MatrixXd> svd(all, Eigen::ComputeThinU | Eigen::ComputeThinV);
    for (const Index rank : {1, 4, 8}) {
      Eigen::MatrixXd mean_v = Eigen::MatrixXd::Zero(rank, inputs);
      for (Index m = 0; m < 3; ++m)
        mean_v += options.weights[std::size_t(members[std::size_t(m)])] / 6 *
                  svd.matrixV().middleRows(m * inputs, inputs).leftCols(rank).transpose() * s[std::size_t(m)].inverse();
      const Eigen::MatrixXd u = svd.matrixU().leftCols(rank);
      const Eigen::MatrixXd expected = u * svd.singularValues().head(rank).asDiagonal() * mean_v;
      CHECK((matrix_of(whitened(rank).experts()[0]) - expected).cwiseAbs().maxCoeff() <= 1e-6);
      // Eckart and Young, of the outputs on the tokens seen.
      double left = 0;
      for (std::size_t m = 0; m < 3; ++m) left += ((w[m] - u * (u.transpose() * w[m])) * s[m]).squaredNorm();
      const double rest = svd.singularValues().tail(svd.singularValues().size() - rank).squaredNorm();
      CHECK(std::abs(left - rest) <= 1e-12 * all.squaredNorm());
    }
  };
  check(
      [&](const auto& e) { return Eigen::MatrixXd(e.gate_up().matrix().bottomRows(kHidden).template cast<double>()); },
      [](const auto& statistics) { return statistics.inputs; });
  check([&](const auto& e) { return Eigen::MatrixXd(e.down().matrix().template cast<double>()); },
        [](const auto& statistics) { return statistics.hidden; });
  CHECK(test::flatten(whitened(4).experts()[1]) == test::flatten(layer.experts()[2]));
}

TEST_CASE("merge_in_whitened_subspace: moments like the unit matrix, or none, change nothing", "[compress]") {
  const auto layer = glu_layer(4);
  const ExpertPlan plan = ExpertPlan::of_clusters(Ids{0, 0, 2, 0});
  const auto whitened = [&](const moe::Calibration& seen) {
    return test::flatten(moe::merge_in_whitened_subspace(layer, plan, 3, seen).layer);
  };
  const std::vector<double> plain = test::flatten(moe::merge_in_subspace(layer, plan, 3).layer);
  const moe::Calibration none(layer.experts());
  CHECK(whitened(none) == plain);
  moe::Calibration unit = none;
  for (Index e = 0; e < 4; ++e) {
    unit[e].inputs = moe::SecondMoment::of(Matrix<float>::Identity(kDim, kDim));
    unit[e].hidden = moe::SecondMoment::of(Matrix<float>::Identity(test::kHiddenDim, test::kHiddenDim));
  }
  const std::vector<double> now = whitened(unit);
  for (std::size_t i = 0; i < now.size(); ++i) REQUIRE(std::abs(now[i] - plain[i]) <= 1e-6);
  // One token per expert: singular moments, and outputs in one direction.
  moe::Calibration single = none;
  for (Index e = 0; e < 4; ++e) single[e] = moe::calibrate(layer.experts()[e], kTokens.topRows(1));
  for (const double value : whitened(single)) REQUIRE(std::isfinite(value));

  using Catch::Matchers::StartsWith;
  CHECK_THROWS_WITH(moe::merge_in_whitened_subspace(layer, plan, 0, none),
                    "moe::merge_in_whitened_subspace: rank is 0, expected at least 1");
  CHECK_THROWS_WITH(moe::merge_in_whitened_subspace(layer, plan, 3, moe::Calibration(glu_layer(3).experts())),
                    "moe::merge_in_whitened_subspace: the calibration is of 3 experts, expected 4 as the plan");
  CHECK_THROWS_WITH(whitened(moe::Calibration(layer.experts(), {.moments = moe::Gather::Off})),
                    StartsWith("moe::merge_in_whitened_subspace: the moment of what gate_up.weight of expert 0 reads "
                               "is of 0 inputs, expected 11"));
  single[3].hidden = moe::SecondMoment::of(Matrix<float>::Constant(1, test::kHiddenDim, test::kNan<float>));
  CHECK_THROWS_WITH(whitened(single), StartsWith("moe::merge_in_whitened_subspace: the moment of what down.weight of "
                                                 "expert 3 reads has a number that is not finite"));
}

TEST_CASE("merge_in_whitened_subspace: hidden units in another order are aligned, and their moments", "[compress]") {
  auto layer = moe::take_experts(glu_layer(2), {0, 1, 0, 1});
  const ExpertPlan plan = ExpertPlan::of_clusters(Ids{0, 0, 0, 0});
  const auto seen = [&] {
    moe::Calibration result(layer.experts());
    for (Index e = 0; e < 4; ++e) result[e] = moe::calibrate(layer.experts()[e], kTokens);
    return result;
  };
  const auto merged = [&] {
    return moe::merge_in_whitened_subspace(layer, plan, 5, seen(), {.align = moe::AlignHidden::Hungarian}).layer;
  };
  layer.gate().k = 1;
  const std::vector<double> before = test::flatten(merged());
  for (const Index e : {2, 3}) layer.experts()[e] = shuffled(layer.experts()[e]);
  const std::vector<double> after = test::flatten(merged());
  for (std::size_t i = 0; i < before.size(); ++i) REQUIRE(std::abs(before[i] - after[i]) <= 1e-6);
}

TEST_CASE("reconstruct: means of few or small clusters, representatives of others, bit for bit", "[compress]") {
  using moe::ReconstructRule;
  const auto layer = glu_layer(7);
  const ExpertPlan plan = ExpertPlan::of_clusters(Ids{0, 1, 0, 3, 0, 1, 0}, Ids{2, 5, 3});
  const auto flat = [&](ReconstructRule rule, Index most, const ExpertPlan& clusters) {
    const auto result = moe::reconstruct(layer, clusters, {.rule = rule, .most = most});
    CHECK(result.experts.place == clusters.map.place);
    return test::flatten(result.layer);
  };
  const std::vector<double> kept = test::flatten(moe::prune(layer, plan).layer);
  const std::vector<double> means = test::flatten(moe::merge(layer, plan).layer);
  CHECK(kept != means);
  CHECK(flat(ReconstructRule::Never, 9, plan) == kept);
  CHECK(flat(ReconstructRule::FewClusters, 3, plan) == means);
  CHECK(flat(ReconstructRule::FewClusters, 2, plan) == kept);
  CHECK(flat(ReconstructRule::SmallClusters, 4, plan) == means);
  CHECK(flat(ReconstructRule::SmallClusters, 1, plan) == kept);
  CHECK(test::flatten(moe::reconstruct(layer, plan).layer) == means);  // 3 clusters are few
  // Clusters of two become means, that of four keeps its representative, with its row of the router.
  const auto some = moe::reconstruct(layer, plan, {.rule = ReconstructRule::SmallClusters, .most = 2}).layer;
  const auto all = moe::merge(layer, plan).layer;
  const Matrix<float> rows = layer.router().weight().matrix(), now = some.router().weight().matrix();
  for (Index i = 0; i < 3; ++i) {
    const Index e = plan.kept[std::size_t(i)];
    CHECK(test::flatten(some.experts()[i]) == test::flatten(e == 2 ? layer.experts()[2] : all.experts()[i]));
    CHECK(now.row(i) == (e == 2 ? rows : all.router().weight().matrix()).row(e == 2 ? e : i));
  }
  // Weights of a mean, and experts that the plan drops stay dropped.
  const moe::MergeOptions weighted{.weights = {1, 2, 3, 4, 5, 6, 7}};
  CHECK(test::flatten(moe::reconstruct(layer, plan, {}, weighted).layer) ==
        test::flatten(moe::merge(layer, plan, weighted).layer));
  const ExpertPlan few = ExpertPlan::keep({1, 4}, 7);
  CHECK(flat(ReconstructRule::FewClusters, 3, few) == test::flatten(moe::prune(layer, few).layer));
  CHECK_THROWS_WITH(moe::reconstruct(layer, plan, {.most = 0}), "moe::reconstruct: most is 0, expected at least 1");
  CHECK_THROWS_WITH(moe::reconstruct(layer, ExpertPlan::keep({0, 1}, 3)),
                    Catch::Matchers::EndsWith("the plan is of 3 experts, expected 7"));
}

TEST_CASE("quantisation_errors: of the outputs, one expert at a time", "[compress]") {
  const auto on = GENERATE(moe::WeightOn::Output, moe::WeightOn::Input);
  const auto plain = glu_layer(3);
  const moe::MoeLayer layer(plain.router(), plain.gate(), plain.experts(), on);
  const auto calibration = moe::calibrate(layer, kTokens);
  const std::vector<moe::WeightFormat> formats = {moe::WeightFormat::planes(2, 32), moe::WeightFormat::planes(4, 32)};
  const Matrix<double> errors = moe::quantisation_errors(layer, kTokens, formats, moe::RoundToNearest{}, calibration);
  const Matrix<double> before = test::forward(layer, kTokens).cast<double>();
  for (Index e = 0; e < 3; ++e)
    for (Index b = 0; b < 2; ++b) {
      auto one = layer;
      one.experts()[e] = moe::dequantise(moe::quantise(layer.experts()[e], formats[static_cast<std::size_t>(b)]));
      const double expected = (test::forward(one, kTokens).cast<double>() - before).norm();
      CHECK_THAT(errors(e, b), Catch::Matchers::WithinRel(expected, 1e-4));  // outputs are sums of floats there
    }
  // Squares of halves add up, here of one pass over each.
  const auto of = [&](const Matrix<float>& tokens) {
    return moe::quantisation_errors(layer, tokens, formats, moe::RoundToNearest{}, calibration);
  };
  const Matrix<double> halves =
      (of(kTokens.topRows(15)).cwiseAbs2() + of(kTokens.bottomRows(25)).cwiseAbs2()).cwiseSqrt();
  CHECK((halves - errors).cwiseAbs().maxCoeff() <= 1e-5 * errors.maxCoeff());
  CHECK(of(kTokens.topRows(0)) == Matrix<double>::Zero(3, 2));
  // A plan as formats, for each matrix.
  const moe::BitPlan plan{.bits = {1, 2, 3, 4, 0, 8}, .matrices = 2};
  const auto few = moe::quantise(layer, plan.planes(32), moe::RoundToNearest{}, calibration);
  CHECK(few.experts()[0].down().format() == moe::WeightFormat::planes(2, 32));
  CHECK(few.experts()[1].gate_up().format() == moe::WeightFormat::planes(3, 32));
  CHECK(few.experts()[2].gate_up().format() == moe::WeightFormat::none());
}
