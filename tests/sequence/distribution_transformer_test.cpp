// SPDX-License-Identifier: MIT
// The network from priors and data to posteriors: what must hold whatever it has learned, its gradients, and that it
// learns.
#include "moe/sequence/distribution_transformer.hpp"

#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "moe/routing/balance/load_balancing.hpp"
#include "moe/train/adam_w.hpp"
#include "moe/train/routed_pass.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/parameters.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;
using moe::Sequences;
using moe::Step;

namespace {

constexpr Index kDim = 2, kData = 3, kModel = 4, kColumns = 6;
const Sequences kComponents(std::vector<Index>{2, 1, 3}), kRows(std::vector<Index>{2, 1, 0});

template <class Codec>
auto fresh(std::uint64_t seed) {
  using Layer = moe::MoeLayer<moe::BasicLinearRouter<Codec>, moe::TopKGate, moe::ExpertPool<moe::BasicMlp<Codec>>>;
  std::vector<Layer> layers;
  for (std::uint64_t l = 0; l < 2; ++l)
    layers.emplace_back(moe::BasicLinearRouter<Codec>::random(3, kModel, seed + l), moe::TopKGate{.k = 2},
                        moe::ExpertPool<moe::BasicMlp<Codec>>::random(3, kModel, 4, seed + l));
  return moe::DistributionTransformer<Layer>({.dim = kDim, .data_dim = kData, .hidden_dim = 5, .num_heads = 2},
                                             std::move(layers), seed);
}
using Model = decltype(fresh<moe::F64>(1));

template <class Codec = moe::F64>
auto model(std::uint64_t seed) {
  auto result = fresh<Codec>(seed);
  test::randomise(result, seed);
  return result;
}

template <class M, class S = typename M::Scalar>
Matrix<S> run(const M& model, const Matrix<S>& priors, const Sequences& components, const Matrix<S>& data,
              const Sequences& rows) {
  typename M::Workspace ws;
  auto out = test::nan_matrix<S>(priors.rows(), kColumns);
  model.forward({priors, components}, {data, rows}, Step{}, out, ws);
  return out;
}

}  // namespace

TEST_CASE("DistributionTransformer: untrained, and without data, the posterior is the prior, bit for bit",
          "[sequence]") {
  const auto priors = test::random_matrix<double>(6, kColumns, 1), data = test::random_matrix<double>(3, kData, 2);
  CHECK(test::same_bits(run(fresh<moe::F64>(1), priors, kComponents, data, kRows), priors));
  const auto trained = model(1);
  const auto out = run(trained, priors, kComponents, data, kRows);
  CHECK(test::same_bits(out.bottomRows(3), priors.bottomRows(3)));
  CHECK(test::largest(Matrix<double>(out.topRows(3) - priors.topRows(3))) > 0.01);
  const auto prior = moe::read_rows(priors.topRows(2), kDim);
  Model::Workspace ws;
  CHECK(test::same_bits(trained.posterior(prior, data.topRows(0), ws).means(), prior.means()));
}

TEST_CASE("DistributionTransformer: gradients are central differences", "[sequence]") {
  auto m = model(3);
  auto priors = test::random_matrix<double>(6, kColumns, 1);
  const auto data = test::random_matrix<double>(3, kData, 2), c = test::random_matrix<double>(6, kColumns, 4);
  Model::Tape tape;
  Model gradient = moe::zeros_like(m);
  Matrix<double> out(6, kColumns);
  auto dpriors = test::nan_matrix<double>(6, kColumns);
  m.forward({priors, kComponents}, {data, kRows}, Step{}, out, tape);
  CHECK(test::same_bits(out, run(m, priors, kComponents, data, kRows)));
  m.backward({priors, kComponents}, {data, kRows}, tape, c, gradient, dpriors);
  const auto loss = [&] { return run(m, priors, kComponents, data, kRows).cwiseProduct(c).eval().sum(); };
  CHECK(test::gradient_error(loss, priors, dpriors) < 1e-7);
  std::string worst;
  const double error = test::parameter_gradient_error(loss, m, gradient, &worst);
  CAPTURE(worst);
  CHECK(error < 1e-7);
}

TEST_CASE("DistributionTransformer: components and data are sets, and equal data count", "[sequence][property]") {
  const auto m = model(1);
  const auto priors = test::random_matrix<double>(3, kColumns, 1), data = test::random_matrix<double>(2, kData, 2);
  const auto one = Sequences::equal(1, 3), two = Sequences::equal(1, 2);
  const auto out = run(m, priors, one, data, two);
  Matrix<double> turned(3, kColumns), swapped(2, kData), equal = data;
  turned << priors.row(2), priors.row(0), priors.row(1);
  swapped << data.row(1), data.row(0);
  const auto of_turned = run(m, turned, one, data, two);
  // Sums of the same few numbers in another order.
  for (Index i = 0; i < 3; ++i) CHECK(test::largest(Matrix<double>(of_turned.row((i + 1) % 3) - out.row(i))) < 1e-12);
  CHECK(test::largest(Matrix<double>(run(m, priors, one, swapped, two) - out)) < 1e-12);
  equal.row(1) = data.row(0);
  const Matrix<double> first = data.topRows(1);
  CHECK(test::largest(Matrix<double>(run(m, priors, one, equal, two) -
                                     run(m, priors, one, first, Sequences::equal(1, 1)))) > 1e-3);
}

TEST_CASE("DistributionTransformer: a problem has the same bits alone and in any batch", "[sequence][property]") {
  const auto m = model<moe::F32>(1);
  const auto priors = test::random_matrix<float>(6, kColumns, 1), data = test::random_matrix<float>(3, kData, 2);
  const auto all = run(m, priors, kComponents, data, kRows);
  const Matrix<float> prior = priors.middleRows(2, 1), row = data.middleRows(2, 1);
  CHECK(test::same_bits(run(m, prior, Sequences::equal(1, 1), row, Sequences::equal(1, 1)), all.middleRows(2, 1)));
  const Matrix<float> none(0, kColumns), no_data(0, kData);
  CHECK(run(m, none, {}, no_data, {}).rows() == 0);
}

TEST_CASE("DistributionTransformer: posteriors and gradients have the same bits for any threads",
          "[sequence][property]") {
  const auto m = model(1);
  Sequences components, rows;
  for (Index i = 0; i < 64; ++i) components.push_back(13 + i % 7), rows.push_back(i == 5 ? 0 : 19 - i % 7);
  const auto priors = test::random_matrix<double>(components.num_rows(), kColumns, 1), c = priors;
  const auto data = test::random_matrix<double>(rows.num_rows(), kData, 2);
  struct Pass {
    Matrix<double> out, dpriors;
    Model gradient;
  };
  const auto pass = [&](Index workers) {
    test::ThreadExecutor threads(workers);
    const moe::UseExecutor use(threads);
    Pass result{priors, priors, moe::zeros_like(m)};
    Model::Tape tape;
    m.forward({priors, components}, {data, rows}, Step{}, result.out, tape);
    m.backward({priors, components}, {data, rows}, tape, c, result.gradient, result.dpriors);
    return result;
  };
  const Pass one = pass(1), three = pass(3);
  CHECK(test::same_bits(one.out, three.out));
  CHECK(test::same_bits(one.dpriors, three.dpriors));
  CHECK(test::same_parameters(one.gradient, three.gradient));
}

TEST_CASE("DistributionTransformer: one component, one row, all weight on one component: finite posteriors",
          "[sequence]") {
  const auto m = model(1);
  Model::Workspace ws;
  const auto data = test::random_matrix<double>(1, kData, 2);
  const moe::GaussianMixture<double> one(kDim);
  CHECK(std::isfinite(m.posterior(one, data, ws).log_density(moe::RowVector<double>::Ones(kDim))));
  moe::RowVector<double> weights(2);
  weights << 1, 0;
  const moe::GaussianMixture<double> certain(weights, Matrix<double>::Zero(2, kDim),
                                             std::vector(2, Matrix<double>(Matrix<double>::Identity(kDim, kDim))));
  CHECK(std::isfinite(m.posterior(certain, data, ws).log_density(moe::RowVector<double>::Ones(kDim))));
}

TEST_CASE("DistributionTransformer: the losses of its routers are found, and reach backward", "[sequence]") {
  const auto m = model(1);
  const auto priors = test::random_matrix<double>(6, kColumns, 1), data = test::random_matrix<double>(3, kData, 2);
  const auto gradient_of = [&](double weight) {
    Model::Tape tape;
    Model gradient = moe::zeros_like(m);
    Matrix<double> out(6, kColumns), dpriors(6, kColumns);
    m.forward({priors, kComponents}, {data, kRows}, Step{}, out, tape);
    Index found = 0;
    moe::for_each_routed(m, tape, [&](const moe::RoutedPass<double>& pass) {
      moe::load_balancing_loss<double>(pass.probability, pass.routing, pass.step, weight, pass.losses);
      ++found;
    });
    CHECK(found == 2);
    m.backward({priors, kComponents}, {data, kRows}, tape, Matrix<double>::Zero(6, kColumns), gradient, dpriors);
    return gradient;
  };
  CHECK(test::count_zero_bits(gradient_of(0)) > test::count_zero_bits(gradient_of(1)));
}

TEST_CASE("DistributionTransformer: AdamW lowers the loss of a batch", "[sequence]") {
  auto m = fresh<moe::F64>(1);
  const auto priors = test::random_matrix<double>(40, kColumns, 1, 0.5),
             data = test::random_matrix<double>(40, kData, 2);
  const auto components = Sequences::equal(20, 2), rows = Sequences::equal(20, 2);
  Matrix<double> truth(20, kDim), out(40, kColumns), dout, dpriors(40, kColumns);
  for (Index i = 0; i < 20; ++i) truth.row(i) = data.row(2 * i).head(kDim) + data.row(2 * i + 1).head(kDim);
  moe::AdamW::State<Model> state(std::as_const(m));
  Model::Tape tape;
  double first = 0, last = 0;
  for (int update = 0; update < 40; ++update) {
    Model gradient = moe::zeros_like(m);
    m.forward({priors, components}, {data, rows}, Step::train(1), out, tape);
    last = moe::mixture_nll<double>(out, components, truth, dout);
    if (update == 0) first = last;
    m.backward({priors, components}, {data, rows}, tape, dout, gradient, dpriors);
    moe::AdamW{}.step(m, gradient, state, 0.01);
  }
  CHECK(last < first - 0.5);
}

TEST_CASE("DistributionTransformer: sizes that do not fit are refused", "[sequence][error]") {
  const auto m = model(1);
  const auto priors = test::random_matrix<double>(6, kColumns, 1), data = test::random_matrix<double>(3, kData, 2);
  CHECK_THROWS_WITH(run(m, priors, kComponents, priors, kComponents),
                    ContainsSubstring("data is [6, 6], expected [6, 3]"));
  CHECK_THROWS_WITH(run(m, priors, kComponents, data, Sequences::equal(1, 3)),
                    ContainsSubstring("the data are of 1 problems, expected 3 as the priors"));
  Model::Workspace ws;
  CHECK_THROWS_WITH(m.posterior(moe::GaussianMixture<double>(3), data, ws),
                    ContainsSubstring("the prior has 3 dimensions, expected 2"));
  using Layer = std::remove_cvref_t<decltype(m.blocks()[0].layer())>;
  using Transformer = moe::DistributionTransformer<Layer>;
  CHECK_THROWS_WITH(Transformer({.dim = 2}, {}, 1), ContainsSubstring("there are no layers"));
  for (const Index size : {0, -3}) {
    const std::string expected = "_dim is " + std::to_string(size) + ", expected at least 1";
    CHECK_THROWS_WITH(Transformer({.dim = size}, {}, 1), ContainsSubstring("moe::DistributionTransformer: dim is "));
    CHECK_THROWS_WITH(Transformer({.data_dim = size}, {}, 1), ContainsSubstring("data" + expected));
    CHECK_THROWS_WITH(Transformer({.hidden_dim = size}, {}, 1), ContainsSubstring("hidden" + expected));
  }
  CHECK_THROWS_WITH(Transformer({.dim = Index{1} << 40}, {}, 1), ContainsSubstring("times 1099511627775 scalars"));
  Model gradient = moe::zeros_like(m);
  Model::Tape tape;
  Matrix<double> dpriors(6, kColumns);
  CHECK_THROWS_WITH(m.backward({priors, kComponents}, {data, kRows}, tape, priors, gradient, dpriors),
                    ContainsSubstring("the tape and the gradient are of 0 and 2 blocks, expected 2"));
  Matrix<double> out(6, kColumns), wide(6, kColumns + 1);
  m.forward({priors, kComponents}, {data, kRows}, Step{}, out, tape);
  CHECK_THROWS_WITH(m.backward({priors, kComponents}, {data, kRows}, tape, wide.leftCols(kColumns), gradient,
                               wide.rightCols(kColumns)),
                    ContainsSubstring("dpriors overlaps other rows of dout"));
  Model::Tape moved = std::move(tape);
  CHECK_THROWS_WITH(m.backward({priors, kComponents}, {data, kRows}, tape, priors, gradient, dpriors),
                    ContainsSubstring("the tape and the gradient are of 0 and 2 blocks"));
  m.backward({priors, kComponents}, {data, kRows}, moved, priors, gradient, dpriors);
}
