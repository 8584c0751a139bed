// SPDX-License-Identifier: MIT
#include "moe/router/least_squares.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "moe/expert/mlp.hpp"
#include "moe/expert/pool.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/columns.hpp"
#include "moe/router/frozen.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"
#include "support/routings.hpp"

using moe::Index;
using moe::Matrix;
using moe::RefitStatus;
using moe::Step;
using Router = moe::BasicLeastSquaresRouter<moe::F64>;

namespace {

const moe::RandomField kDraws(moe::Purpose::User, 5);

/// Blob of each context: in turns, with one more of the first.
Index blob_of(Index i) { return i % 3; }

/// Contexts around (0, 0, 0, 0), (6, 0, 1, 0) and (0, 6, 0, 1), `noise` wide.
Matrix<double> blobs(Index n, double noise) {
  Matrix<double> contexts = test::random_matrix<double>(n, 4, 1, noise);
  for (Index i = 0; i < n; ++i)
    if (const Index blob = blob_of(i); blob > 0) contexts(i, blob - 1) += 6, contexts(i, blob + 1) += 1;
  return contexts;
}

/// The expert that suits each blob loses 0.1 there, the others 1 and more.
Matrix<double> losses(Index n, std::array<Index, 3> expert_of) {
  Matrix<double> loss(n, 3);
  for (Index i = 0; i < n; ++i)
    for (Index e = 0; e < 3; ++e)
      loss(i, e) = expert_of[static_cast<std::size_t>(blob_of(i))] == e ? 0.1 : 1 + static_cast<double>(e);
  return loss;
}

template <class R>
Matrix<double> logits(const R& router, const Matrix<double>& contexts) {
  Matrix<double> out(contexts.rows(), router.num_experts());
  router.logits(contexts, Step{}, out);
  return out;
}

/// Relative rounding errors of a solution, as the test of minimum_norm_solution() has them.
double precision(Index many, Index few) {
  return static_cast<double>(10 * 4 * few + 2 * many) * std::numeric_limits<double>::epsilon();
}
/// Of weights and offsets.
double size_of(const Router& router) {
  double squares = 0;
  for (Index e = 0; e < router.num_experts(); ++e) {
    squares += std::pow(router.linear().bias()(e, 0), 2);
    for (Index c = 0; c < router.model_dim(); ++c) squares += std::pow(router.linear().weight()(e, c), 2);
  }
  return std::sqrt(squares);
}

std::vector<Index> best(const Matrix<double>& scores) {
  std::vector<Index> columns;
  for (Index i = 0; i < scores.rows(); ++i) {
    const auto row = scores.row(i);
    columns.push_back(std::max_element(row.begin(), row.end()) - row.begin());
  }
  return columns;
}

}  // namespace

TEST_CASE("LeastSquaresRouter: it sends every context to the expert that suits its cluster", "[router]") {
  for (const double noise : {0.0, 0.7})
    for (const std::array<Index, 3> expert_of : {std::array<Index, 3>{0, 1, 2}, {2, 0, 1}, {1, 0, 2}}) {
      Router router(3, 4);
      const auto contexts = blobs(31, noise);
      const moe::Refit refit = router.refit(contexts, losses(31, expert_of), kDraws);
      CAPTURE(noise, expert_of);
      REQUIRE(refit.status == RefitStatus::Updated);
      CHECK(refit.agreement == 1);
      const auto sent = best(logits(router, contexts));
      for (Index i = 0; i < 31; ++i) {
        CHECK(sent[std::size_t(i)] == expert_of[std::size_t(blob_of(i))]);
        CHECK(refit.experts[std::size_t(i)] == sent[std::size_t(i)]);
      }
    }
}

TEST_CASE("LeastSquaresRouter: the weights solve the normal equations of one-hot targets", "[router]") {
  Router router(3, 4);
  const auto contexts = blobs(30, 0.7);
  const moe::Refit refit = router.refit(contexts, losses(30, {2, 0, 1}), kDraws);
  Matrix<double> left = logits(router, contexts), features(30, 5);
  for (Index i = 0; i < 30; ++i) left(i, refit.experts[std::size_t(i)]) -= 1;
  features << contexts, Matrix<double>::Ones(30, 1);
  const double size = features.norm();
  CHECK((features.transpose() * left).norm() < precision(30, 5) * size * (size * size_of(router) + std::sqrt(30.0)));
}

TEST_CASE("LeastSquaresRouter: few independent contexts get exactly their targets", "[router]") {
  Router router(3, 4);
  const Matrix<double> contexts = blobs(3, 0.2);  // of 5 numbers each expert's logit has
  const moe::Refit refit = router.refit(contexts, losses(3, {0, 2, 1}), kDraws);
  REQUIRE(refit.status == RefitStatus::Updated);
  Matrix<double> targets = Matrix<double>::Zero(3, 3);
  for (Index i = 0; i < 3; ++i) targets(i, refit.experts[std::size_t(i)]) = 1;
  CHECK((logits(router, contexts) - targets).norm() <
        precision(4, 3) * (contexts.norm() * size_of(router) + targets.norm()));
}

TEST_CASE("LeastSquaresRouter: contexts with columns that say nothing make it singular, not wrong", "[router]") {
  Matrix<double> contexts = Matrix<double>::Zero(12, 4);
  for (Index i = 0; i < 12; ++i) contexts.row(i) << double(blob_of(i) == 1), double(blob_of(i) == 2), 7, 7;
  Router router(3, 4);
  const moe::Refit refit = router.refit(contexts, losses(12, {0, 1, 2}), kDraws);
  REQUIRE(refit.status == RefitStatus::Updated);
  CHECK(refit.agreement == 1);
  for (Index e = 0; e < 3; ++e)
    for (const Index idle : {2, 3}) CHECK(std::abs(router.linear().weight()(e, idle)) < 1e-15);
}

TEST_CASE("LeastSquaresRouter: every expert gets a cluster, also where one suits all best", "[router]") {
  Router router(3, 4);
  Matrix<double> loss = losses(30, {0, 1, 2});
  loss.col(0).setZero();
  const moe::Refit refit = router.refit(blobs(30, 0.5), loss, kDraws);
  for (const Index e : {0, 1, 2}) CHECK(std::ranges::count(refit.experts, e) == 10);
}

TEST_CASE("LeastSquaresRouter: permuted losses permute the logits", "[router][property]") {
  Router plain(3, 4), permuted(3, 4);
  const std::vector<Index> ids = {2, 0, 1};
  const auto contexts = blobs(30, 0.7);
  const auto loss = losses(30, {0, 1, 2});
  plain.refit(contexts, loss, kDraws);
  permuted.refit(contexts, loss(Eigen::all, ids), kDraws);
  CHECK(test::largest(logits(plain.take(ids), contexts) - logits(permuted, contexts)) < 1e-13);
}

TEST_CASE("LeastSquaresRouter: one outlier does not move the medians", "[router]") {
  Router router(3, 4);
  Matrix<double> loss = losses(30, {2, 0, 1});
  loss(0, 2) = 1e6;  // the mean of its cluster would now be least for another expert
  const moe::Refit refit = router.refit(blobs(30, 0.5), loss, kDraws);
  CHECK(refit.experts[0] == 2);
  const std::vector<Index> clusters = {0, 0, 0, 0, 1};
  const Matrix<double> few = (Matrix<double>(5, 2) << 4, 1, 1, 8, 3, 2, 9, 5, 6, 7).finished();
  CHECK(moe::detail::median_losses<double>(few, clusters) == (Eigen::MatrixXd(2, 2) << 3.5, 3.5, 6, 7).finished());
}

TEST_CASE("LeastSquaresRouter: least total loss and greedy differ where they should", "[router]") {
  const Eigen::MatrixXd cost = (Eigen::MatrixXd(2, 2) << 1, 2, 0, 10).finished();
  CHECK(moe::detail::assign_clusters(cost, moe::ClusterAssignment::Greedy) == std::vector<Index>{0, 1});  // 11
  CHECK(moe::detail::assign_clusters(cost, moe::ClusterAssignment::Least) == std::vector<Index>{1, 0});   // 2
  Router router(3, 4);
  const moe::Refit refit =
      router.refit(blobs(30, 0.5), losses(30, {2, 0, 1}), kDraws, {.assignment = moe::ClusterAssignment::Greedy});
  CHECK(refit.experts[0] == 2);  // where clusters suit different experts both do the same
}

TEST_CASE("LeastSquaresRouter: before contexts have learned anything it stays as it is", "[router]") {
  Router router(3, 4);
  router.refit(blobs(30, 0.5), losses(30, {2, 0, 1}), kDraws);
  const auto before = logits(router, blobs(30, 0.5));
  Matrix<double> contexts = Matrix<double>::Constant(30, 4, 0.1);
  CHECK(router.refit(contexts, losses(30, {0, 1, 2}), kDraws).status == RefitStatus::EmptyCluster);
  contexts(7, 1) = 2;  // two points for three experts
  const moe::Refit refit = router.refit(contexts, losses(30, {0, 1, 2}), kDraws);
  CHECK(refit.status == RefitStatus::EmptyCluster);
  CHECK(refit.experts.empty());
  CHECK(router.refit(blobs(30, 3), losses(30, {0, 1, 2}), kDraws, {.rounds = 1}).status == RefitStatus::NotConverged);
  CHECK(test::same_bits(logits(router, blobs(30, 0.5)), before));
}

TEST_CASE("LeastSquaresRouter: a start that was cut off does not count where another was not", "[router]") {
  const Matrix<double> contexts = test::random_matrix<double>(40, 4, 11);  // without clusters, so that k-means is slow
  const auto rounds = GENERATE(Index{4}, Index{8});
  const moe::RefitOptions options{.rounds = rounds};
  int rescued = 0, none = 0;
  for (std::uint64_t seed = 1; seed < 60; ++seed) {
    const moe::RandomField random(moe::Purpose::User, seed);
    moe::KMeans<double> sound, any;
    sound.sum_of_squares = any.sum_of_squares = INFINITY;
    for (Index start = 0; start < options.starts; ++start) {
      const auto found =
          moe::k_means(contexts, 3, moe::RandomField(moe::Purpose::Draw, random.bits(start)), {.rounds = rounds});
      if (found.sum_of_squares < any.sum_of_squares) any = found;
      if (found.converged && found.sum_of_squares < sound.sum_of_squares) sound = found;
    }
    Router router(3, 4);
    const moe::Refit refit = router.refit(contexts, losses(40, {0, 1, 2}), random, options);
    CAPTURE(seed);
    REQUIRE((refit.status == RefitStatus::Updated) == !sound.labels.empty());
    none += sound.labels.empty() ? 1 : 0;
    rescued += !sound.labels.empty() && !any.converged ? 1 : 0;
    for (std::size_t i = 1; i < refit.experts.size(); ++i)
      CHECK((refit.experts[i] == refit.experts[0]) == (sound.labels[i] == sound.labels[0]));
  }
  CHECK((rounds == 8 ? rescued : none) > 0);
}

TEST_CASE("LeastSquaresRouter: a cluster between two others on a line is not its expert's", "[router]") {
  Matrix<double> contexts(30, 1);
  for (Index i = 0; i < 30; ++i) contexts(i, 0) = double(blob_of(i)) + (i % 2 == 0 ? 0.1 : -0.1);
  Router router(3, 1);
  const moe::Refit refit = router.refit(contexts, losses(30, {0, 1, 2}), kDraws);
  REQUIRE(refit.status == RefitStatus::Updated);
  CHECK(refit.agreement < 0.7);  // as documented; two columns would do
  Matrix<double> remote(1, 1);
  remote(0, 0) = 1e9;
  CHECK(best(logits(router, remote))[0] == 2);
}

TEST_CASE("LeastSquaresRouter: the same draws give the same bits, on any number of threads", "[router][property]") {
  const auto contexts = blobs(200, 1.5);
  const auto results = test::on_thread_counts([&] {
    Router router(3, 4);
    router.refit(contexts, losses(200, {2, 0, 1}), kDraws);
    return logits(router, contexts);
  });
  CHECK(test::all_equal(results));
}

TEST_CASE("LeastSquaresRouter: it learns nothing by gradients, and contexts do", "[router]") {
  Router router(3, 4);
  router.refit(blobs(30, 0.5), losses(30, {2, 0, 1}), kDraws);
  CHECK(moe::num_parameters(router) == 0);
  CHECK(moe::num_state(router) == 3 * 5);
  auto contexts = test::random_matrix<double>(6, 4, 8);
  const auto slope = test::random_matrix<double>(6, 3, 9);
  const auto loss = [&] { return test::total(logits(router, contexts).cwiseProduct(slope)); };
  Router::Tape tape;
  Matrix<double> out(6, 3), dcontexts = Matrix<double>::Zero(6, 4), only = dcontexts;
  router.logits(contexts, Step{}, out, tape);
  Router gradient = moe::zeros_like(router);
  router.backward(contexts, Step{}, tape, slope, gradient, dcontexts);
  router.backward(contexts, Step{}, tape, slope, gradient);
  router.backward(contexts, Step{}, tape, slope, moe::NoGradient{}, only);
  CHECK(test::gradient_error(loss, contexts, dcontexts) < 1e-8);
  CHECK(test::same_bits(dcontexts, only));
  STATIC_REQUIRE(moe::RouterSkipsGradient<Router>);
  CHECK(test::same_bits(logits(moe::Frozen(router), contexts), logits(router, contexts)));
}

TEST_CASE("LeastSquaresRouter: the weight of its expert is exactly 1, however large the logits", "[router]") {
  moe::MoeLayer layer(moe::ColumnsRouter(moe::LeastSquaresRouter(3, 4), 6, 2),
                      moe::TopKGate{.k = 1, .constant_weights = moe::ConstantWeights::Accept},
                      moe::ExpertPool<moe::Mlp>::random(3, {.input = 6, .hidden = 5, .output = 2}, 1));
  Matrix<float> contexts = blobs(9, 0.3).cast<float>(), tokens(9, 6), out(9, 2), alone(9, 2), dtokens(9, 6);
  tokens << test::random_matrix<float>(9, 2, 2), contexts;
  layer.router().router().refit(contexts, losses(9, {2, 0, 1}), kDraws);
  decltype(layer)::Tape tape;
  layer.forward(tokens, Step::train(0, 1), out, tape);
  for (Index t = 0; t < 9; ++t) {
    const Index expert = tape.routing.experts(t)[0];
    CHECK(tape.routing.weights(t)[0] == 1.0f);
    layer.experts()[expert].forward(tokens, alone, Step{});
    CHECK(test::same_bits(out.row(t), alone.row(t)));
  }
  auto gradient = moe::zeros_like(layer);
  layer.backward(tokens, tape, out, gradient, dtokens);
  CHECK(test::largest(dtokens.rightCols(4)) > 0);  // contexts learn through the expert
}

TEST_CASE("LeastSquaresRouter: what cannot be fitted is refused, and nothing changes", "[router][error]") {
  using Catch::Matchers::ContainsSubstring;
  Router router(3, 4);
  const auto loss = losses(5, {0, 1, 2});
  const auto refused = [&](const Matrix<double>& contexts, const Matrix<double>& of, const char* text,
                           const moe::RefitOptions& options = {}) {
    CHECK_THROWS_WITH(router.refit(contexts, of, kDraws, options), ContainsSubstring(text));
    CHECK(test::all_zero(logits(router, blobs(5, 1))));
  };
  auto contexts = blobs(5, 1);
  refused(blobs(2, 1), losses(2, {0, 1, 2}), "there are 2 contexts, expected at least num_experts = 3");
  refused(contexts, losses(4, {0, 1, 2}), "losses is [4, 3], expected [5, 3]");
  refused(Matrix<double>(5, 3), loss, "contexts is [5, 3], expected [5, 4]");
  refused(contexts, loss, "starts is 0, expected at least 1", {.starts = 0});
  refused(contexts, loss, "rounds is 0, expected at least 1", {.rounds = 0});
  Matrix<double> infinite = loss;
  infinite(3, 1) = INFINITY;
  refused(contexts, infinite, "a loss on context 3 is not finite");
  contexts(4, 0) = NAN;
  refused(contexts, loss, "context 4 is not finite");
  refused(blobs(5, 1) * 1e200, loss, "squared distances of contexts are inf");
  CHECK_THROWS_AS(Router(0, 4), std::invalid_argument);
}
