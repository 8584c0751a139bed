// SPDX-License-Identifier: MIT
#include "moe/expert/concatenated.hpp"

#include <numeric>

#include "layer/fixtures.hpp"
#include "layer/gradient_check.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/routing/balance/load_balancing.hpp"
#include "moe/train/routed_pass.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Concatenated;
using moe::ExpertPool;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Routing;
using moe::Step;
using moe::TopKGate;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;
using Identity = moe::BasicScaledIdentity<F64>;
using Router = moe::BasicLinearRouter<F64>;
using Inner = moe::LayerExpert<test::Layer<Mlp, moe::NoisyTopKGate>>;

namespace {

constexpr Index kTokens = 33;

template <class E, class... Options>
ExpertPool<E> pool_of(Index num_experts, std::uint64_t seed, Options... options) {
  std::vector<E> experts;
  for (Index e = 0; e < num_experts; ++e) {
    if constexpr (std::is_same_v<E, Identity>)
      experts.push_back({kModelDim, 1 + 0.5 * static_cast<double>(e)});
    else if constexpr (std::is_same_v<E, Inner>)
      experts.emplace_back(test::layer_of<Mlp>(2 + e, moe::NoisyTopKGate{.top_k = {.k = 2}, .scale = 3}));
    else
      experts.push_back(
          test::random_expert<E>(kModelDim, 5 + e, seed + 10 * static_cast<std::uint64_t>(e), options...));
  }
  return ExpertPool<E>(std::move(experts));
}

template <class X, class Gate = TopKGate>
auto layer_around(X experts, Gate gate = {.k = 3}) {
  auto router = Router::random(experts.size(), kModelDim, 7);
  return moe::MoeLayer(std::move(router), std::move(gate), std::move(experts));
}

/// All stored parameters, in order, of objects of any type.
template <class T>
moe::RowVector<double> parameters_of(const T& object) {
  std::vector<double> values;
  moe::visit(
      [&](const std::string&, const auto& leaf) {
        const auto span = moe::parameter_span(leaf);
        values.insert(values.end(), span.begin(), span.end());
      },
      object);
  return Eigen::Map<const moe::RowVector<double>>(values.data(), static_cast<Index>(values.size()));
}

/// Everything that a layer computes is that of another, bit for bit.
template <class A, class B>
void check_same(const A& a, const B& b, const Step& step) {
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1),
             dout = test::random_matrix<double>(kTokens, kModelDim, 2);
  CHECK(test::same_bits(test::forward(a, tokens, step), test::forward(b, tokens, step)));
  const test::TrainingPass of_a(a, tokens, dout, step);
  const test::TrainingPass of_b(b, tokens, dout, step);
  CHECK(test::same_bits(of_a.out, of_b.out));
  CHECK(test::same_bits(of_a.dtokens, of_b.dtokens));
  CHECK(test::same_bits(parameters_of(of_a.gradient), parameters_of(of_b.gradient)));
}

/// Losses of every router that has had tokens.
struct LossesOfAll {
  template <class Layer>
  double operator()(const Layer& layer, typename Layer::Tape& tape, moe::RoutingGradient<double>&) const {
    double sum = 0;
    moe::for_each_routed(layer, tape, [&](const moe::RoutedPass<double>& pass) {
      sum += 0.3 * moe::load_balancing_loss<double>(pass.probability, pass.routing, pass.step, 0.3, pass.losses);
    });
    return sum;
  }
};

auto three_sets() { return Concatenated(pool_of<Glu>(2, 1), pool_of<Mlp>(2, 5), pool_of<Inner>(2, 9)); }

/// A set that cannot be trained through.
struct ForwardOnly {
  using Scalar = double;
  Index size() const { return 2; }
  Index input_dim() const { return kModelDim; }
  Index output_dim() const { return kModelDim; }
  void forward(const moe::ConstMatrixRef<double>& tokens, const moe::PlanView& plan, const moe::Context&,
               moe::RowBuffer<double>& rows) const {
    for (Index r = plan.first_row(); r < plan.last_row(); ++r)
      rows.matrix().row(r).leftCols(kModelDim) = -tokens.row(plan.token_of_row(r));
  }
};

using Mixed = Concatenated<ExpertPool<Glu>, ExpertPool<Identity>>;
static_assert(moe::ExpertSet<Mixed> && moe::DifferentiableExpertSet<Mixed> && moe::SetSkipsTokenGradient<Mixed>);
static_assert(moe::ExpertSet<Concatenated<Mixed, ForwardOnly>>);
static_assert(!moe::DifferentiableExpertSet<Concatenated<Mixed, ForwardOnly>>);
static_assert(Mixed::kPerToken && Concatenated<ExpertPool<Inner>>::kPerToken == Inner::kPerToken);

}  // namespace

TEST_CASE("Concatenated: a single set does as it does alone, bit for bit", "[layer][property]") {
  for (const Index workers : {1, 2, 5}) {
    CAPTURE(workers);
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    const auto check = [](const auto& pool) {
      const Step step = Step::train(3, 4);
      check_same(layer_around(Concatenated(pool)), layer_around(pool), step);
      check_same(moe::MoeLayer(Router::random(pool.size(), kModelDim, 7), TopKGate{.k = 2}, Concatenated(pool),
                               moe::WeightOn::Input),
                 moe::MoeLayer(Router::random(pool.size(), kModelDim, 7), TopKGate{.k = 2}, pool, moe::WeightOn::Input),
                 step);
    };
    check(pool_of<Glu>(5, 1, moe::Bias::Zero));
    check(pool_of<Mlp>(4, 1));
    check(pool_of<Identity>(3, 1));
    check(pool_of<Inner>(3, 1));
  }
}

TEST_CASE("Concatenated: experts with and without weights are the mixed pool of them", "[layer][property]") {
  using Any = moe::OneOf<Glu, Identity>;
  constexpr Index kGlus = 4, kIdentities = 3, kExperts = kGlus + kIdentities;
  const auto glus = pool_of<Glu>(kGlus, 1);
  const auto identities = pool_of<Identity>(kIdentities, 1);
  std::vector<Any> all;
  for (Index e = 0; e < kGlus; ++e) all.emplace_back(glus[e]);
  for (Index e = 0; e < kIdentities; ++e) all.emplace_back(identities[e]);
  const auto layer = layer_around(Concatenated(glus, identities));
  const auto mixed = layer_around(ExpertPool<Any>(std::move(all)));
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1),
             dout = test::random_matrix<double>(kTokens, kModelDim, 2);
  const test::TrainingPass sets(layer, tokens, dout);
  test::TrainingPass pool(mixed, tokens, dout);
  CHECK(test::same_bits(test::forward(layer, tokens), test::forward(mixed, tokens)));
  CHECK(test::same_bits(sets.out, pool.out));
  CHECK(test::same_bits(parameters_of(sets.gradient), parameters_of(pool.gradient)));
  // dL/dtokens is the same sum of terms, one per choice, in another order; the router adds as many.
  Matrix<double> reach = Matrix<double>::Zero(kTokens, kModelDim), part = reach;
  const auto& tape = pool.tape;
  const auto& drows = pool.tape.scratch.template get<moe::detail::RoutedRows<double>>().rows;
  for (Index e = 0; e < kExperts; ++e) {
    auto own = tape.mixture.experts;
    auto gradient = moe::zeros_like(mixed.experts());
    const auto wave = moe::PlanView(tape.mixture.plan).only(e, 1);
    moe::RowBuffer<double> rows;
    rows.resize(tape.mixture.plan.num_rows(), kModelDim);
    mixed.experts().forward(tokens, wave, Step{}, rows, own);
    mixed.experts().backward(tokens, wave, Step{}, own, drows, gradient, part);
    reach += part.cwiseAbs();
  }
  reach += tape.dlogits.cwiseAbs() * mixed.router().weight().matrix().cwiseAbs();
  const double bound = 2 * test::gamma<double>(3 + kExperts) * test::largest(reach);
  CHECK(test::largest(Matrix<double>(sets.dtokens - pool.dtokens)) <= bound);
}

TEST_CASE("Concatenated: sets of three types give the rows of each by itself", "[layer][property]") {
  const auto experts = three_sets();
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto layer = layer_around(experts);
  for (const Index workers : {1, 3}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    typename decltype(layer)::Workspace ws;
    Matrix<double> out(kTokens, kModelDim);
    const Step step = Step::train(1, 2);
    layer.forward(tokens, step, out, ws);
    moe::DispatchPlan plan;
    plan.build(ws.routing, 6);
    moe::RowBuffer<double> together, alone;
    test::poison(together, plan.num_rows(), experts.row_width());
    test::poison(alone, plan.num_rows(), experts.row_width());
    experts.forward(tokens, plan, step, together);
    experts.set<0>().forward(tokens, moe::PlanView(plan).part(0, 2), step, alone);
    experts.set<1>().forward(tokens, moe::PlanView(plan).part(2, 2), step, alone);
    experts.set<2>().forward(tokens, moe::PlanView(plan).part(4, 2), step, alone);
    CHECK(test::same_bits(together.matrix().leftCols(kModelDim), alone.matrix().leftCols(kModelDim)));
  }
}

TEST_CASE("Concatenated: draws do not depend on how experts are cut into sets", "[layer][property]") {
  const auto pool = pool_of<Inner>(5, 1);
  const auto part = [&](Index first, Index count) {
    std::vector<Inner> experts;
    for (Index e = first; e < first + count; ++e) experts.push_back(pool[e]);
    return ExpertPool<Inner>(std::move(experts));
  };
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const Step step = Step::train(5, 6);
  const auto expected = test::forward(layer_around(pool), tokens, step);
  CHECK(test::same_bits(test::forward(layer_around(Concatenated(part(0, 1), part(1, 4))), tokens, step), expected));
  const auto nested = layer_around(Concatenated(Concatenated(part(0, 2), part(2, 1)), part(3, 2)));
  CHECK(test::same_bits(test::forward(nested, tokens, step), expected));
  CHECK(test::same_bits(test::TrainingPass(nested, tokens, tokens, step).out, expected));
  // Two sets of the same expert draw differently: a token sent to both gets two outputs.
  const auto twice = Concatenated(part(3, 1), part(3, 1));
  const std::vector<Index> ids(static_cast<std::size_t>(kTokens), 0);
  moe::RowBuffer<double> rows;
  rows.resize(2 * kTokens, kModelDim);
  std::vector<Index> both;
  for (Index t = 0; t < kTokens; ++t) both.insert(both.end(), {0, 1});
  moe::DispatchPlan plan;
  plan.build(Routing<double>::from(kTokens, std::span<const Index>(both), {}, 2), 2);
  twice.forward(tokens, plan, step, rows);
  CHECK_FALSE(test::same_bits(rows.matrix().topRows(kTokens), rows.matrix().bottomRows(kTokens)));
}

TEST_CASE("Concatenated: gradients are central differences, losses of inner routers included", "[layer][property]") {
  CHECK(test::layer_gradient_error(layer_around(three_sets()), Step::train(1, 2), 9, LossesOfAll{}) < 1e-6);
  const auto mixed = layer_around(Concatenated(pool_of<Glu>(2, 1), pool_of<Identity>(2, 1)));
  CHECK(test::layer_gradient_error(moe::MoeLayer(mixed.router(), mixed.gate(), mixed.experts(), moe::WeightOn::Input),
                                   Step{}) < 1e-6);
  using Expert = moe::LayerExpert<std::remove_const_t<decltype(mixed)>>;
  const auto outer =
      layer_around(Concatenated(pool_of<Mlp>(1, 3), ExpertPool<Expert>({Expert(mixed)})), moe::SoftmaxGate{});
  CHECK(test::layer_gradient_error(moe::WithBranches(outer, Expert(mixed)), Step{}, 7, LossesOfAll{}) < 1e-6);
}

TEST_CASE("Concatenated: every inner router that had tokens is found", "[layer]") {
  const auto layer = layer_around(three_sets(), TopKGate{.k = 6});
  const auto tokens = test::random_matrix<double>(9, kModelDim);
  Matrix<double> out(9, kModelDim);
  decltype(layer)::Tape tape;
  layer.forward(tokens, Step::train(0), out, tape);
  std::vector<Index> experts;
  moe::for_each_routed(layer, tape,
                       [&](const moe::RoutedPass<double>& pass) { experts.push_back(pass.logits.cols()); });
  CHECK(experts == std::vector<Index>{6, 2, 3});
}

TEST_CASE("Concatenated: backward without dtokens gives the same parameter gradients", "[layer][property]") {
  const auto check = [](const auto& layer) {
    const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
    const Step step = Step::train(1, 2);
    test::TrainingPass pass(layer, tokens, tokens, step);
    auto gradient = moe::zeros_like(layer);
    layer.backward(tokens, pass.tape, tokens, gradient);
    CHECK(test::same_parameters(gradient, pass.gradient));
  };
  check(layer_around(three_sets()));
  check(layer_around(Concatenated(pool_of<Glu>(2, 1), pool_of<Identity>(2, 1))));
  using Odd = ExpertPool<test::Diagonal>;  // cannot leave them out
  check(layer_around(
      Concatenated(Odd({test::Diagonal{moe::RowVector<double>::Constant(kModelDim, 2)}}), pool_of<Glu>(3, 1))));
}

TEST_CASE("Concatenated: columns that a narrower set does not write matter to nobody", "[layer][property]") {
  const auto layer = layer_around(Concatenated(pool_of<Identity>(2, 1), pool_of<Glu>(3, 1)));
  CHECK(layer.experts().row_width() == layer.experts().set<1>().row_width());
  CHECK(layer.experts().row_width() > layer.experts().set<0>().row_width());
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const test::TrainingPass clean(layer, tokens, tokens);
  decltype(layer)::Tape tape;
  for (auto* buffer :
       {&tape.mixture.rows, &tape.scratch.get<moe::detail::RoutedRows<double>>().rows, &tape.mixture.experts.dtokens})
    test::poison(*buffer, 3 * kTokens, 64);
  Matrix<double> out(kTokens, kModelDim), dtokens(kTokens, kModelDim);
  auto gradient = moe::zeros_like(layer);
  layer.forward(tokens, Step{}, out, tape);
  layer.backward(tokens, tape, tokens, gradient, dtokens);
  CHECK(test::same_bits(out, clean.out));
  CHECK(test::same_bits(dtokens, clean.dtokens));
  CHECK(test::same_parameters(gradient, clean.gradient));
}

TEST_CASE("Concatenated: sets without rows, and batches without tokens", "[layer]") {
  const auto experts = three_sets();
  const moe::RoutedExperts mixture(experts);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  for (const Index only : {0, 3, 5}) {
    CAPTURE(only);
    const std::vector<Index> ids(static_cast<std::size_t>(kTokens), only);
    const std::vector<double> weights(ids.size(), 1);
    const auto routing = Routing<double>::from(kTokens, std::span<const Index>(ids), weights, 6);
    auto out = test::nan_matrix<double>(kTokens, kModelDim), inferred = out, dtokens = out;
    decltype(mixture)::Tape tape;
    auto gradient = moe::zeros_like(mixture);
    std::vector<double> dweight(ids.size());
    mixture.forward(tokens, routing, Step{}, inferred);
    mixture.forward(tokens, routing, Step{}, out, tape);
    mixture.backward(tokens, routing, Step{}, tape, tokens, gradient, std::span(dweight), dtokens);
    CHECK(test::same_bits(out, inferred));
    CHECK(std::isfinite(test::largest(dtokens)));
    CHECK((test::num_nonzero(gradient.experts().set<0>()) > 0) == (only < 2));
    CHECK((test::num_nonzero(gradient.experts().set<1>()) > 0) == (only == 3));
    CHECK((test::num_nonzero(gradient.experts().set<2>()) > 0) == (only == 5));
  }
  const auto layer = layer_around(experts);
  const Matrix<double> none(0, kModelDim);
  CHECK(test::forward(layer, none).rows() == 0);
  CHECK(test::num_nonzero(test::TrainingPass(layer, none, none).gradient) == 0);
}

TEST_CASE("Concatenated: a set that cannot be trained through serves inference", "[layer]") {
  const auto glus = pool_of<Glu>(2, 1);
  const auto layer = layer_around(Concatenated(glus, ForwardOnly{}), TopKGate{.k = 4});
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  CHECK(std::isfinite(test::largest(test::forward(layer, tokens))));
}

TEST_CASE("Concatenated: parameters are named by set and expert", "[layer]") {
  std::vector<std::string> names;
  const Concatenated experts(pool_of<Identity>(1, 1), pool_of<Mlp>(2, 1, moe::Bias::Off));
  moe::visit([&](const std::string& name, const auto&) { names.push_back(name); }, experts);
  CHECK(names == std::vector<std::string>{"1.0.up.weight", "1.0.down.weight", "1.1.up.weight", "1.1.down.weight"});
}

TEST_CASE("Concatenated: sets that do not belong together are named", "[layer][error]") {
  CHECK_THROWS_WITH(Concatenated(ExpertPool<Glu>::random(2, 4, 3, 1), ExpertPool<Mlp>::random(2, 5, 3, 1)),
                    "moe::Concatenated: set 1 maps 5 to 5, expected 4 to 4 as set 0");
  auto moved = pool_of<Glu>(2, 1);
  const auto kept = std::move(moved);
  CHECK_THROWS_WITH(Concatenated(kept, moved), "moe::Concatenated: set 1 has 0 experts, expected at least 1");
  auto layer = layer_around(Concatenated(kept, pool_of<Identity>(2, 1)));
  const auto tokens = test::random_matrix<double>(3, kModelDim);
  layer.experts().set<1>() = ExpertPool<Identity>({Identity{5}, Identity{5}});
  CHECK_THROWS_WITH(test::forward(layer, tokens),
                    "moe::Concatenated::forward: set 1 maps 5 to 5, expected 11 to 11 as set 0");
  layer.experts().set<1>() = pool_of<Identity>(1, 1);
  CHECK_THROWS_WITH(test::forward(layer, tokens), ContainsSubstring("the router maps 11 columns to 4 experts"));
  const auto last = std::move(layer);
  CHECK(layer.experts().size() == 0);
  CHECK(layer.experts().row_width() == 0);
  CHECK_THROWS_WITH(test::forward(layer, tokens), ContainsSubstring("it has been moved from"));
}

TEST_CASE("Concatenated: wrong sizes, tapes and gradients are named before anything is written", "[layer][error]") {
  const Concatenated experts(pool_of<Glu>(2, 1), pool_of<Mlp>(2, 1));
  const auto tokens = test::random_matrix<double>(4, kModelDim);
  const std::vector<Index> counts = {1, 1, 1, 1};
  const auto plan = moe::DispatchPlan::from_counts(counts), few = moe::DispatchPlan::from_counts({counts.data(), 3});
  moe::RowBuffer<double> rows, narrow;
  rows.resize(4, experts.row_width());
  narrow.resize(4, kModelDim - 1);
  decltype(experts)::Tape tape, empty;
  Matrix<double> dtokens = Matrix<double>::Constant(4, kModelDim, 42);
  CHECK_THROWS_WITH(experts.forward(tokens.topRows(3), few, Step{}, rows),
                    "moe::Concatenated::forward: the plan is of 3 experts, expected 4");
  CHECK_THROWS_WITH(experts.forward(tokens, plan, Step{}, narrow),
                    ContainsSubstring("moe::Concatenated::forward: rows is [4, 10], expected at least [4, "));
  CHECK_THROWS_WITH(experts.forward(tokens.topRows(3), plan, Step{}, rows),
                    "moe::Concatenated::forward: tokens is [3, 11], expected [4, 11]");
  experts.forward(tokens, plan, Step{}, rows, tape);
  rows.matrix().setZero();
  auto gradient = moe::zeros_like(experts), other = gradient, itself = experts;
  const auto backward = [&](auto& to, auto& from) { experts.backward(tokens, plan, Step{}, from, rows, to, dtokens); };
  other.set<1>() = moe::zeros_like(pool_of<Mlp>(3, 1));
  CHECK_THROWS_WITH(backward(other, tape), "moe::Concatenated::backward: set 1 of gradient has 3 experts, expected 2");
  CHECK_THROWS_WITH(itself.backward(tokens, plan, Step{}, tape, rows, itself, dtokens),
                    ContainsSubstring("gradient is the object itself"));
  CHECK_THROWS_AS(backward(gradient, empty), std::invalid_argument);
  other = moe::zeros_like(experts);
  other.set<1>() = ExpertPool<Mlp>::random(2, kModelDim, 77, 1);
  CHECK_THROWS_WITH(backward(other, tape), ContainsSubstring("77"));
  CHECK_THROWS_WITH(experts.backward(tokens, plan, Step{}, tape, rows, gradient, dtokens.topRows(3)),
                    "moe::Concatenated::backward: dtokens is [3, 11], expected [4, 11]");
  CHECK(test::num_nonzero(gradient) == 0);
  CHECK(test::same_bits(dtokens, Matrix<double>::Constant(4, kModelDim, 42)));
}
