// SPDX-License-Identifier: MIT
#include "moe/compress/dense_to_mixture.hpp"

#include <numeric>

#include "layer/fixtures.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/routings.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::F32;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::NeuronSplit;
using moe::SplitOptions;
using Ids = std::vector<Index>;

namespace {

constexpr Index kDim = 7, kHidden = 24;

std::vector<double> random_scores(Index count, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  std::vector<double> scores;
  for (Index j = 0; j < count; ++j) scores.push_back(random.uniform(j));
  return scores;
}

/// Every unit once, in ascending lists, in parts of sizes that differ by one at most.
bool is_partition(const NeuronSplit& split, Index hidden) {
  Ids all = split.shared;
  bool fits = std::ranges::is_sorted(split.shared);
  const Index left = hidden - std::ssize(split.shared);
  for (const Ids& part : split.parts) {
    all.insert(all.end(), part.begin(), part.end());
    const Index size = std::ssize(part), least = left / split.num_parts();
    fits = fits && std::ranges::is_sorted(part) && (size == least || size == least + 1);
  }
  std::ranges::sort(all);
  Ids expected(static_cast<std::size_t>(hidden));
  std::iota(expected.begin(), expected.end(), Index{0});
  return fits && all == expected;
}

double sum_of(const std::vector<double>& scores, const Ids& units) {
  double sum = 0;
  for (const Index j : units) sum += scores[static_cast<std::size_t>(j)];
  return sum;
}

/// Of a dense expert and the mixture of all its parts: outputs within the bound of a sum in another order, twice as
/// parts add a term each and divide the bias.
template <class E>
void check_all_parts(const E& dense) {
  using S = typename E::Scalar;
  const auto rows = test::random_matrix<S>(9, kDim, 3);
  const auto whole = test::reference_of(dense, test::Mat(rows.template cast<double>()));
  const auto split = moe::snake_split(random_scores(kHidden, 4), {.num_parts = 5});
  auto layer = moe::dense_to_mixture(dense, split, 5);
  test::randomise(layer.router(), 8);  // whatever it says
  CHECK(whole.worst(test::forward(layer, rows)) <= 2);
  const auto shared = moe::snake_split(random_scores(kHidden, 4), {.num_parts = 3, .num_shared = 7});
  auto beside = moe::dense_to_shared_mixture(dense, shared, 3);
  test::randomise(beside.layer().router(), 8);
  CHECK(whole.worst(test::forward(beside, rows)) <= 2);
}

}  // namespace

TEST_CASE("snake_split: units are dealt out forth and back", "[compress]") {
  const std::vector<double> falling = {8, 7, 6, 5, 4, 3, 2, 1};
  const NeuronSplit split = moe::snake_split(falling, {.num_parts = 2});
  CHECK(split.parts == std::vector<Ids>{{0, 3, 4, 7}, {1, 2, 5, 6}});
  CHECK(split.shared.empty());
  const NeuronSplit shared = moe::snake_split(falling, {.num_parts = 2, .num_shared = 3});
  CHECK(shared.shared == Ids{0, 1, 2});
  CHECK(shared.parts == std::vector<Ids>{{3, 6, 7}, {4, 5}});
  CHECK(shared.with_shared(1) == Ids{0, 1, 2, 4, 5});
  const std::vector<double> equal(6, 1.0);
  CHECK(moe::snake_split(equal, {.num_parts = 3}).parts == std::vector<Ids>{{0, 5}, {1, 4}, {2, 3}});
}

TEST_CASE("splits: every unit once, shared ones of the highest scores, like sums of scores", "[compress]") {
  for (const Index parts : {1, 2, 3, 7, 24})
    for (const Index shared : {0, 1, 5, 17}) {
      if (parts + shared > 24) continue;
      CAPTURE(parts, shared);
      const auto scores = random_scores(24, static_cast<std::uint64_t>(parts + shared));
      const SplitOptions options{.num_parts = parts, .num_shared = shared, .seed = 3};
      Matrix<float> activity(1, 24);
      for (Index j = 0; j < 24; ++j) activity(0, j) = static_cast<float>(scores[static_cast<std::size_t>(j)]);
      const NeuronSplit snake = moe::snake_split(scores, options);
      for (const NeuronSplit& split :
           {snake, moe::random_split(scores, options), moe::coactivation_split(activity, options)}) {
        CHECK(is_partition(split, 24));
        CHECK(split.shared == snake.shared);
        for (const Ids& part : split.parts)
          for (const Index j : part)
            for (const Index s : split.shared)
              CHECK(scores[static_cast<std::size_t>(s)] >= scores[static_cast<std::size_t>(j)]);
      }
      if ((24 - shared) % parts != 0) continue;
      double least = 1e9, most = 0;
      for (const Ids& part : snake.parts)
        least = std::min(least, sum_of(scores, part)), most = std::max(most, sum_of(scores, part));
      CHECK(most - least <= *std::ranges::max_element(scores) + 1e-12);
    }
}

TEST_CASE("random_split: a function of its seed", "[compress]") {
  const auto scores = random_scores(24, 1);
  const auto parts = [&](std::uint64_t seed) {
    return moe::random_split(scores, {.num_parts = 3, .seed = seed}).parts;
  };
  CHECK(parts(1) == parts(1));
  CHECK(parts(1) != parts(2));
}

TEST_CASE("coactivation_split: units that are active together come together", "[compress]") {
  // Unit j is on for rows of its family j % 4 alone, some never.
  for (const std::uint64_t seed : {1u, 2u, 3u, 4u, 5u}) {
    Matrix<double> activity = Matrix<double>::Zero(40, 20);
    const moe::RandomField random(moe::Purpose::User, seed);
    for (Index r = 0; r < 40; ++r)
      for (Index j = 0; j < 18; ++j)
        if (r % 4 == j % 4) activity(r, j) = 0.5 + random.uniform(r, j);
    const NeuronSplit split = moe::coactivation_split(activity, {.num_parts = 4, .seed = seed});
    CHECK(is_partition(split, 20));
    Index strangers = 0;
    for (const Ids& part : split.parts) {
      std::vector<Index> counts(4);
      Index alive = 0;
      for (const Index j : part)
        if (j < 18) ++counts[static_cast<std::size_t>(j % 4)], ++alive;
      strangers += alive - *std::ranges::max_element(counts);
    }
    CHECK(strangers == 0);
    CHECK(moe::coactivation_split(activity, {.num_parts = 4, .seed = seed}).parts == split.parts);
  }
}

TEST_CASE("domain_split: masks of the most used units, without what all share", "[compress]") {
  Matrix<double> scores(2, 6);
  scores << 9, 8, 7, 1, 2, 0,  //
      9, 1, 7, 8, 2, 2;
  const NeuronSplit split = moe::domain_split(scores, 3);
  CHECK(split.shared == Ids{0, 2});
  CHECK(split.parts == std::vector<Ids>{{1}, {3}});
  CHECK(split.with_shared(0) == Ids{0, 1, 2});
  CHECK(moe::domain_split(scores, 4).parts == std::vector<Ids>{{1}, {3}});  // 4 before 5 at equal scores
  const NeuronSplit one = moe::domain_split(scores.topRows(1), 6);
  CHECK(one.shared == Ids{0, 1, 2, 3, 4, 5});
  CHECK(one.parts == std::vector<Ids>{{}});
  CHECK_THROWS_WITH(moe::domain_split(scores, 0), ContainsSubstring("moe::domain_split: keep is 0"));
  CHECK_THROWS_WITH(moe::domain_split(scores, 7), ContainsSubstring("keep is 7"));
  CHECK_THROWS_WITH(moe::domain_split(Matrix<double>(0, 6), 1), ContainsSubstring("0 domains"));
}

TEST_CASE("hidden_activity: the size of what the second matrix reads", "[compress]") {
  const auto glu = test::random_expert<moe::BasicGlu<F64>>(kDim, 13, 2, moe::Bias::Zero);
  const auto rows = test::random_matrix<double>(5, kDim, 1);
  const auto hidden = test::Bounded<double>(rows)
                          .linear(test::in_double(glu.gate_up()), test::in_double(glu.gate_up_bias()))
                          .gated([](double x) { return moe::Silu::value(x); });
  const Matrix<double> activity = moe::hidden_activity(glu, rows);
  CHECK((activity - hidden.value.cwiseAbs()).cwiseAbs().maxCoeff() < 1e-12);
  const std::vector<double> scores = moe::neuron_scores(activity);
  CHECK(std::abs(scores[3] - hidden.value.col(3).cwiseAbs().mean()) < 1e-12);
  CHECK(moe::hidden_activity(glu, Matrix<double>(0, kDim)).rows() == 0);
  CHECK_THROWS_WITH(moe::neuron_scores(Matrix<double>(0, 13)), ContainsSubstring("0 rows"));
}

TEMPLATE_TEST_CASE("dense_to_mixture: all parts together are the dense expert", "[compress]", F32, F64) {
  for (const moe::Bias bias : {moe::Bias::Off, moe::Bias::Zero}) {
    check_all_parts(test::random_expert<moe::BasicMlp<TestType, moe::Relu>>(kDim, kHidden, 1, bias));
    check_all_parts(test::random_expert<moe::BasicGlu<TestType>>(kDim, kHidden, 1, bias));
  }
}

TEST_CASE("dense_to_mixture: gradients of all parts are the dense expert's", "[compress]") {
  using Mlp = moe::BasicMlp<F64, moe::Relu>;
  const auto dense = test::random_expert<Mlp>(kDim, kHidden, 1);
  const NeuronSplit split = moe::snake_split(random_scores(kHidden, 2), {.num_parts = 4});
  const auto layer = moe::dense_to_mixture(dense, split, 4);
  const auto tokens = test::random_matrix<double>(6, kDim, 3), dout = test::random_matrix<double>(6, kDim, 4);
  const test::TrainingPass pass(layer, tokens, dout);
  typename Mlp::Tape tape;
  moe::Scratch scratch;
  const moe::Step step;
  const moe::Context context(step, scratch);
  Matrix<double> out(6, kDim), dtokens(6, kDim);
  Mlp gradient = moe::zeros_like(dense);
  dense.forward(tokens, out, context, tape);
  dense.backward(tokens, tape, dout, dtokens, gradient, context);
  // The router's part: zero logits in all columns, so its weights are 0 and pass nothing to the tokens.
  CHECK((pass.dtokens - dtokens).cwiseAbs().maxCoeff() < 1e-12 * dtokens.cwiseAbs().maxCoeff());
  for (std::size_t p = 0; p < split.parts.size(); ++p) {
    const Mlp& part = pass.gradient.experts()[static_cast<Index>(p)];
    double off = 0, most = 0;
    const auto compare = [&](double found, double expected) {
      off = std::max(off, std::abs(found - expected)), most = std::max(most, std::abs(expected));
    };
    for (Index o = 0; o < kDim; ++o) compare(part.down_bias()(o, 0), gradient.down_bias()(o, 0));
    for (std::size_t u = 0; u < split.parts[p].size(); ++u) {
      const Index j = split.parts[p][u], i = static_cast<Index>(u);
      compare(part.up_bias()(i, 0), gradient.up_bias()(j, 0));
      for (Index c = 0; c < kDim; ++c) {
        compare(part.up()(i, c), gradient.up()(j, c));
        compare(part.down()(c, i), gradient.down()(c, j));
      }
    }
    CHECK(most > 0);
    CHECK(off < 1e-12 * most);
  }
}

TEST_CASE("dense_to_mixture: a router of zeros sends tokens to the first parts, with weight 1", "[compress]") {
  const auto dense = test::random_expert<moe::BasicMlp<F64>>(kDim, kHidden, 1);
  const NeuronSplit split = moe::random_split(random_scores(kHidden, 2), {.num_parts = 6});
  const auto layer = moe::dense_to_mixture(dense, split, 2);
  const auto tokens = test::random_matrix<double>(4, kDim, 3);
  test::TrainingPass pass(layer, tokens, Matrix<double>(Matrix<double>::Zero(4, kDim)));
  for (Index t = 0; t < 4; ++t) CHECK(test::copy_of(pass.tape.routing.experts(t)) == Ids{0, 1});
  for (const double weight : pass.tape.routing.weights()) CHECK(weight == 1);
  Ids units = split.parts[0];
  units.insert(units.end(), split.parts[1].begin(), split.parts[1].end());
  CHECK((pass.out - test::run(dense.take_hidden(units), tokens)).cwiseAbs().maxCoeff() < 1e-12);
}

TEST_CASE("dense_to_mixture: the router learns from what chosen experts would add", "[compress]") {
  const auto dense = test::random_expert<moe::BasicMlp<F64>>(kDim, kHidden, 1);
  auto layer = moe::dense_to_mixture(dense, moe::snake_split(random_scores(kHidden, 2), {.num_parts = 4}), 2);
  test::randomise(layer.router(), 5);
  const auto tokens = test::random_matrix<double>(5, kDim, 3), dout = test::random_matrix<double>(5, kDim, 4);
  const test::TrainingPass pass(layer, tokens, dout);
  Matrix<double> expected = Matrix<double>::Zero(4, kDim);
  for (Index t = 0; t < 5; ++t) {
    const auto& w = layer.router().weight();
    Eigen::VectorXd p(4), dp = Eigen::VectorXd::Zero(4);
    for (Index e = 0; e < 4; ++e) {
      double logit = layer.router().bias()(e, 0);
      for (Index i = 0; i < kDim; ++i) logit += w(e, i) * tokens(t, i);
      p(e) = std::exp(logit);
    }
    p /= p.sum();
    for (const Index e : pass.tape.routing.experts(t))
      dp(e) = test::run(layer.experts()[e], Matrix<double>(tokens.row(t))).row(0).dot(dout.row(t));
    const Eigen::VectorXd dlogits = p.array() * (dp.array() - p.dot(dp));
    expected += dlogits * tokens.row(t);
  }
  for (Index e = 0; e < 4; ++e)
    for (Index i = 0; i < kDim; ++i) CHECK(std::abs(pass.gradient.router().weight()(e, i) - expected(e, i)) < 1e-12);
}

TEST_CASE("fit_router: the weights solve the normal equations", "[compress]") {
  const auto dense = test::random_expert<moe::BasicMlp<F64, moe::Relu>>(kDim, kHidden, 1);
  const NeuronSplit split = moe::snake_split(random_scores(kHidden, 2), {.num_parts = 4, .num_shared = 4});
  auto layer = moe::dense_to_shared_mixture(dense, split, 2);
  const Index n = 50;
  const auto tokens = test::random_matrix<double>(n, kDim, 3);
  const double ridge = 0.3;
  moe::fit_router(layer, tokens, {.ridge = ridge});
  Matrix<double> norms(n, 4);
  for (Index e = 0; e < 4; ++e) norms.col(e) = test::run(layer.layer().experts()[e], tokens).rowwise().norm();
  norms /= std::sqrt(norms.squaredNorm() / static_cast<double>(norms.size()));
  const auto mean = tokens.colwise().mean();
  double squares = 0;
  for (Index t = 0; t < n; ++t) squares += (tokens.row(t) - mean).squaredNorm();
  const auto& router = layer.layer().router();
  for (Index e = 0; e < 4; ++e) {
    Eigen::VectorXd residual = norms.col(e);
    for (Index t = 0; t < n; ++t) {
      residual(t) -= router.bias()(e, 0);
      for (Index i = 0; i < kDim; ++i) residual(t) -= router.weight()(e, i) * tokens(t, i);
    }
    CHECK(std::abs(residual.sum()) < 1e-9);
    for (Index i = 0; i < kDim; ++i)
      CHECK(std::abs(residual.dot(tokens.col(i)) - ridge * squares / kDim * router.weight()(e, i)) < 1e-9);
  }
}

TEST_CASE("fit_router: without a bias the weights solve the equations of inputs as they are", "[compress]") {
  const auto dense = test::random_expert<moe::BasicMlp<F64, moe::Relu>>(kDim, kHidden, 1);
  auto layer = moe::dense_to_mixture(dense, moe::snake_split(random_scores(kHidden, 2), {.num_parts = 4}), 2);
  layer.router() = moe::BasicLinearRouter<F64>(4, kDim);
  auto tokens = test::random_matrix<double>(50, kDim, 3);
  tokens.array() += 0.7;  // a mean, which nothing takes away
  const double ridge = 0.3;
  moe::fit_router(layer, tokens, {.ridge = ridge});
  CHECK(layer.router().bias().empty());
  Matrix<double> norms(50, 4);
  for (Index e = 0; e < 4; ++e) norms.col(e) = test::run(layer.experts()[e], tokens).rowwise().norm();
  norms /= std::sqrt(norms.squaredNorm() / 200);
  const Matrix<double> weight = layer.router().weight().matrix();
  const Matrix<double> residual = norms - tokens * weight.transpose();
  const Matrix<double> equations =
      residual.transpose() * tokens - ridge * tokens.squaredNorm() / kDim * weight;  // [parts, inputs]
  CHECK(test::largest(equations) < 1e-9);
  CHECK(test::largest(weight) > 0.01);
}

TEST_CASE("dense_to_mixture: misuse is named", "[compress]") {
  const auto dense = test::random_expert<moe::BasicMlp<F32>>(kDim, 4, 1);
  const auto convert = [&](NeuronSplit split, Index k) { static_cast<void>(moe::dense_to_mixture(dense, split, k)); };
  CHECK_THROWS_WITH(convert({}, 1), ContainsSubstring("moe::dense_to_mixture: the split has no parts"));
  CHECK_THROWS_WITH(convert({{{0, 1}, {}}}, 1), ContainsSubstring("part 1 has no units"));
  CHECK_THROWS_WITH(convert({{{0, 4}}}, 1), ContainsSubstring("part 0 has unit 4, expected one below hidden_dim = 4"));
  CHECK_THROWS_WITH(convert({{{1, 0}}}, 1), ContainsSubstring("unit 1 before 0"));
  CHECK_THROWS_WITH(convert({{{0, 1}, {2, 3}}}, 3), ContainsSubstring("k is 3"));
  CHECK_THROWS_WITH(convert({{{0, 1}}, {2}}, 1), ContainsSubstring("1 shared units"));
  CHECK_THROWS_WITH(moe::dense_to_shared_mixture(dense, {{{0, 1}}}, 1), ContainsSubstring("no shared units"));
  CHECK_THROWS_WITH(moe::dense_to_shared_mixture(dense, {{{0, 1}}, {1}}, 1),
                    ContainsSubstring("unit 1 is shared and in"));
  CHECK_THROWS_WITH(moe::snake_split(random_scores(4, 1), {.num_parts = 0}), ContainsSubstring("num_parts is 0"));
  CHECK_THROWS_WITH(moe::snake_split(random_scores(4, 1), {.num_parts = 3, .num_shared = 2}),
                    ContainsSubstring("num_shared is 2"));
  CHECK_THROWS_WITH(moe::snake_split(std::vector<double>{1, test::kNan<double>}, {.num_parts = 1}),
                    ContainsSubstring("score of unit 1"));
  auto layer = moe::dense_to_mixture(dense, {{{0, 1}, {2, 3}}}, 1);
  CHECK_THROWS_WITH(moe::fit_router(layer, Matrix<float>(0, kDim)), ContainsSubstring("0 tokens"));
  CHECK_THROWS_WITH(moe::fit_router(layer, test::random_matrix<float>(3, kDim, 1), {.ridge = 0}),
                    ContainsSubstring("ridge is 0"));
  CHECK_THROWS_WITH(moe::fit_router(layer, test::random_matrix<float>(3, kDim + 1, 1)), ContainsSubstring("tokens"));
}
