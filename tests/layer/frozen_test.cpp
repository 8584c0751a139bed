// SPDX-License-Identifier: MIT
// Parts that do not learn and are shared: bits of the parts themselves, and no gradient.
#include "moe/expert/frozen.hpp"

#include "layer/fixtures.hpp"
#include "moe/expert/concatenated.hpp"
#include "moe/expert/feature_gated.hpp"
#include "moe/expert/film.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/expert/normalised.hpp"
#include "moe/expert/offset.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/structure.hpp"
#include "moe/router/cosine.hpp"
#include "moe/router/frozen.hpp"
#include "moe/router/noisy.hpp"
#include "moe/router/none.hpp"
#include "moe/train/squared_error.hpp"
#include "moe/train/trainer.hpp"
#include "support/catch.hpp"

using moe::F64;
using moe::Frozen;
using moe::Index;
using moe::Matrix;
using moe::TopKGate;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;
using Router = moe::BasicLinearRouter<F64>;

static_assert(moe::PanelExpert<Frozen<Glu>> && moe::DifferentiableExpert<Frozen<Glu>>);
static_assert(moe::DifferentiableExpertSet<Frozen<moe::ExpertPool<Mlp>>>);
static_assert(moe::DifferentiableExpert<Frozen<moe::BasicOffset<F64>>>);
static_assert(moe::DifferentiableRouter<Frozen<Router>>);
static_assert(moe::PanelExpert<Frozen<Glu>> && moe::SkipsGradient<Glu> && moe::SkipsGradient<Frozen<Glu>>);

/// Whether a composite of a part that cannot leave out its gradient knows that it cannot, and one of others that it
/// can.
template <template <class> class Composite>
constexpr bool kAsItsPart =
    moe::DifferentiableExpert<Frozen<Composite<Glu>>> && moe::Expert<Frozen<Composite<test::Diagonal>>> &&
    !moe::DifferentiableExpert<Frozen<Composite<test::Diagonal>>>;
template <class E>
using OneOfMlp = moe::OneOf<Mlp, E>;
template <class E>
using Gated = moe::GatedExpert<E, F64>;
static_assert(kAsItsPart<OneOfMlp> && kAsItsPart<Gated>);
template <class E>
using Sets = Frozen<moe::Concatenated<moe::ExpertPool<Mlp>, moe::ExpertPool<E>>>;
static_assert(moe::DifferentiableExpertSet<Sets<Gated<Glu>>> && moe::ExpertSet<Sets<test::Diagonal>>);
static_assert(!moe::DifferentiableExpertSet<Sets<test::Diagonal>>);

namespace {

constexpr Index kTokens = 13;

template <class E>
std::vector<Frozen<E>> frozen_experts(const moe::ExpertPool<E>& pool) {
  std::vector<Frozen<E>> experts;
  for (Index e = 0; e < pool.size(); ++e) experts.emplace_back(pool[e]);
  return experts;
}

struct Pass {
  Matrix<double> out, dtokens, inferred;
  std::vector<double> router;  ///< the gradient
};

template <class Layer>
Pass pass(const Layer& layer, const moe::Step& step = {}) {
  const auto tokens = test::random_matrix<double>(kTokens, layer.input_dim(), 1);
  const auto dout = test::random_matrix<double>(kTokens, layer.output_dim(), 2);
  Pass result{test::nan_matrix<double>(kTokens, layer.output_dim()),
              test::nan_matrix<double>(kTokens, layer.input_dim()),
              {},
              {}};
  result.inferred = test::forward(layer, tokens);
  typename Layer::Tape tape;
  Layer gradient = moe::zeros_like(layer), without = gradient;
  layer.forward(tokens, step, result.out, tape);
  layer.backward(tokens, tape, dout, gradient, result.dtokens);
  layer.backward(tokens, tape, dout, without);
  moe::visit(
      [&](const std::string&, const auto& a, const auto& b) {
        for (std::size_t i = 0; i < moe::parameter_span(a).size(); ++i)
          REQUIRE(test::same_bits(moe::parameter_span(a)[i], moe::parameter_span(b)[i]));
      },
      gradient, without);
  moe::visit(
      [&](const std::string& name, const auto& leaf) {
        if (!name.starts_with("router")) return;
        const auto values = moe::parameter_span(leaf);
        result.router.insert(result.router.end(), values.begin(), values.end());
      },
      gradient);
  return result;
}

void check_equal(const Pass& a, const Pass& b) {
  CHECK(test::same_bits(a.inferred, b.inferred));
  CHECK(test::same_bits(a.out, b.out));
  CHECK(test::same_bits(a.dtokens, b.dtokens));
  CHECK(a.router == b.router);
}

/// All numbers of an object.
template <class T>
std::vector<double> numbers(const T& object) {
  std::vector<double> all;
  moe::visit_all(
      [&](const std::string&, const auto& leaf) {
        std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
        moe::read_parameter(leaf, std::span<double>(values));
        all.insert(all.end(), values.begin(), values.end());
      },
      object);
  return all;
}

template <class E>
void check_experts() {
  const auto layer = test::layer_of<E>(5, TopKGate{.k = 2});
  const Pass expected = pass(layer);
  const moe::MoeLayer of_set(layer.router(), layer.gate(), Frozen(layer.experts()));
  const moe::MoeLayer of_experts(layer.router(), layer.gate(), moe::ExpertPool(frozen_experts(layer.experts())));
  check_equal(pass(of_set), expected);
  check_equal(pass(of_experts), expected);
  for (const auto& count : {moe::num_parameters(of_set), moe::num_parameters(of_experts)})
    CHECK(count == moe::num_parameters(layer.router()));
  CHECK(numbers(of_set) == numbers(layer));
  CHECK(numbers(of_experts) == numbers(layer));
}

/// Experts behind random gates.
template <class E>
std::vector<Gated<E>> random_gated(std::uint64_t count) {
  std::vector<Gated<E>> gated;
  for (std::uint64_t e = 0; e < count; ++e)
    gated.emplace_back(test::random_expert<E>(test::kModelDim, 7, 10 * e),
                       test::random_expert<moe::BasicLinear<F64>>(1, test::kModelDim, 10 * e + 1));
  return gated;
}

template <class X>
void check_set(const X& set) {
  const auto router = Router::random(set.size(), test::kModelDim, 7);
  for (const auto weight_on : {moe::WeightOn::Output, moe::WeightOn::Input}) {
    const moe::MoeLayer frozen(router, TopKGate{.k = 2}, Frozen(set), weight_on);
    check_equal(pass(frozen), pass(moe::MoeLayer(router, TopKGate{.k = 2}, set, weight_on)));
    CHECK(moe::num_parameters(frozen) == moe::num_parameters(router));
    CHECK(moe::num_parameters(set) > 0);
  }
}

template <class R>
void check_router(const R& router, const moe::Step& step) {
  const auto experts = test::layer_of<Glu>(4, TopKGate{.k = 2}).experts();
  const moe::MoeLayer frozen(Frozen<R>(router), TopKGate{.k = 2}, experts);
  const Pass a = pass(frozen, step), b = pass(moe::MoeLayer(router, TopKGate{.k = 2}, experts), step);
  CHECK(test::same_bits(a.out, b.out));
  CHECK(test::same_bits(a.dtokens, b.dtokens));
  CHECK(moe::num_parameters(frozen) == moe::num_parameters(experts));
}

moe::DispatchPlan plan_of(const std::vector<Index>& counts) { return moe::DispatchPlan::from_counts(counts); }

}  // namespace

TEST_CASE("Frozen: experts and sets have the bits of what they hold, and no gradient", "[layer]") {
  check_experts<Glu>();
  check_experts<Mlp>();
}

TEST_CASE("Frozen: experts that are not panels", "[layer]") {
  using Any = moe::BasicOffset<F64>;
  std::vector<Any> offsets(3, Any(test::kModelDim));
  for (std::uint64_t e = 0; e < 3; ++e) test::randomise(offsets[e], e);
  const auto router = Router::random(3, test::kModelDim, 7);
  const moe::MoeLayer plain(router, TopKGate{.k = 2}, moe::ExpertPool(offsets));
  check_equal(pass(moe::MoeLayer(router, TopKGate{.k = 2}, Frozen(plain.experts()))), pass(plain));
  check_equal(pass(moe::MoeLayer(router, TopKGate{.k = 2}, moe::ExpertPool(frozen_experts(plain.experts())))),
              pass(plain));
}

TEST_CASE("Frozen: routers", "[layer]") {
  const auto layer = test::layer_of<Glu>(4, TopKGate{.k = 2});
  check_router(layer.router(), moe::Step{});
  auto cosine = moe::BasicCosineRouter<F64>::random(4, test::kModelDim, 3, 7);
  test::randomise(cosine, 8);
  check_router(cosine, moe::Step{});
  moe::BasicNoisyRouter<F64> noisy(4, test::kModelDim);
  test::randomise(noisy, 9);
  check_router(noisy, moe::Step{});
  check_router(noisy, moe::Step::train(3));
  check_router(moe::BasicNoRouter<F64>(4, test::kModelDim), moe::Step{});
}

TEST_CASE("Frozen: sets side by side", "[layer]") {
  const moe::Concatenated sets(test::layer_of<Glu>(3, TopKGate{.k = 2}).experts(),
                               moe::ExpertPool(std::vector<moe::BasicScaledIdentity<F64>>(2, {test::kModelDim, 0.5})),
                               moe::ExpertPool(random_gated<Mlp>(2)));
  check_set(sets);
}

TEST_CASE("Frozen: a pool of experts of several types", "[layer]") {
  using Any = moe::OneOf<Mlp, Gated<Glu>, moe::BasicOffset<F64>>;
  std::vector<Any> experts;
  for (std::uint64_t e = 0; e < 2; ++e) {
    experts.push_back(test::random_expert<Mlp>(test::kModelDim, 5, e));
    experts.push_back(random_gated<Glu>(2)[e]);
    moe::BasicOffset<F64> offset(test::kModelDim);
    test::randomise(offset, e);
    experts.push_back(offset);
  }
  check_set(moe::ExpertPool(experts));
}

TEST_CASE("Frozen: experts around experts", "[layer]") {
  std::vector<moe::Normalised<moe::FeatureGated<Mlp>>> normalised;
  std::vector<moe::Film<moe::BasicLinear<F64>>> films;
  for (std::uint64_t e = 0; e < 3; ++e) {
    normalised.emplace_back(moe::FeatureGated<Mlp>(test::random_expert<Mlp>(test::kModelDim, 5, e), {.rank = 2}, e));
    for (double& variance : normalised.back().variance()) variance = 1.5;
    films.emplace_back(test::random_expert<moe::BasicLinear<F64>>(2 * test::kModelDim, test::kModelDim, 10 + e));
  }
  check_set(moe::ExpertPool(normalised));
  check_set(moe::ExpertPool(films));
}

TEST_CASE("Frozen: a gated expert as a branch", "[layer]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{.k = 2});
  const auto gated = random_gated<Mlp>(1)[0];
  const moe::WithBranches frozen(layer, Frozen(gated));
  check_equal(pass(frozen), pass(moe::WithBranches(layer, gated)));
  CHECK(moe::num_parameters(frozen) == moe::num_parameters(layer));
}

TEST_CASE("Frozen: tapes of other passes are refused before anything is written", "[layer][error]") {
  const auto tokens = test::random_matrix<double>(kTokens, test::kModelDim, 1);
  const moe::Step step;
  moe::Scratch scratch;
  const moe::Context context(step, scratch);
  const auto refuse = [&](const auto& expert) {
    typename std::remove_cvref_t<decltype(expert)>::Tape tape;
    auto out = test::nan_matrix<double>(kTokens, test::kModelDim);
    auto drows = test::nan_matrix<double>(kTokens - 1, test::kModelDim);
    const auto untouched = drows;
    expert.forward(tokens, out, context, tape);
    CHECK_NOTHROW(expert.require_backward(kTokens, tape, moe::NoGradient{}));
    CHECK_THROWS_AS(expert.require_backward(kTokens - 1, tape, moe::NoGradient{}), std::invalid_argument);
    const Matrix<double> fewer = tokens.topRows(kTokens - 1);
    CHECK_THROWS_AS(expert.backward(fewer, tape, fewer, drows, moe::NoGradient{}, context), std::invalid_argument);
    CHECK(test::same_bits(drows, untouched));
  };
  const auto mlp = test::random_expert<Mlp>(test::kModelDim, 5, 1);
  refuse(mlp);
  refuse(random_gated<Glu>(1)[0]);
  refuse(Frozen(random_gated<Glu>(1)[0]));
  refuse(moe::OneOf<Glu, Mlp>(mlp));

  moe::OneOf<Glu, Mlp>::Tape of_glu;
  CHECK_THROWS_AS((moe::OneOf<Glu, Mlp>(mlp).require_backward(kTokens, of_glu, moe::NoGradient{})),
                  std::invalid_argument);
  const moe::Concatenated sets(test::layer_of<Glu>(2, TopKGate{}).experts(), moe::ExpertPool(random_gated<Mlp>(2)));
  const auto plan = plan_of({3, 0, 4, 6});
  moe::RowBuffer<double> rows;
  rows.resize(kTokens, sets.row_width());
  decltype(sets)::Tape tape;
  sets.forward(tokens, plan, context, rows, tape);
  CHECK_NOTHROW(sets.require_backward(plan, tape, moe::NoGradient{}));
  for (const auto& other : {plan_of({2, 0, 5, 6}), plan_of({3, 0, 5, 5}), plan_of({3, 0, 4, 5})})
    CHECK_THROWS_AS(sets.require_backward(other, tape, moe::NoGradient{}), std::invalid_argument);
}

TEST_CASE("Frozen: a layer refuses the tape of a frozen part before it writes anything", "[layer][error]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(kTokens, test::kModelDim, 1);
  const auto check = [&](const auto& whole, const auto& spoil) {
    using Layer = std::remove_cvref_t<decltype(whole)>;
    typename Layer::Tape tape;
    Layer gradient = moe::zeros_like(whole);
    auto out = test::nan_matrix<double>(kTokens, test::kModelDim), dtokens = out;
    const auto untouched = dtokens;
    const auto before = numbers(gradient);
    whole.forward(tokens, moe::Step{}, out, tape);
    spoil(tape);
    CHECK_THROWS_AS(whole.backward(tokens, tape, tokens, gradient, dtokens), std::invalid_argument);
    CHECK(test::same_bits(dtokens, untouched));
    CHECK(numbers(gradient) == before);
  };
  using Cosine = moe::BasicCosineRouter<F64>;
  const auto cosine = Cosine::random(3, test::kModelDim, 4, 1), wider = Cosine::random(3, test::kModelDim, 5, 1);
  check(moe::MoeLayer(Frozen(cosine), layer.gate(), layer.experts()), [&](auto& tape) {
    Matrix<double> logits(kTokens, 3);
    wider.logits(tokens, moe::Step{}, logits, tape.router);
  });
  check(moe::WithBranches(layer, Frozen(random_gated<Mlp>(1)[0])), [&](auto& tape) {
    Matrix<double> out(kTokens - 1, test::kModelDim);
    random_gated<Mlp>(1)[0].forward(tokens.topRows(kTokens - 1), out, moe::Step{}, std::get<0>(tape.branches));
  });
}

TEST_CASE("Frozen: beside experts that learn, and as a branch", "[layer]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{.k = 2});
  const auto learned = test::layer_of<Mlp>(2, TopKGate{.k = 1}).experts();
  const auto router = Router::random(5, test::kModelDim, 9);
  const moe::MoeLayer mixed(router, TopKGate{.k = 2}, moe::Concatenated(Frozen(layer.experts()), learned));
  const moe::MoeLayer plain(router, TopKGate{.k = 2}, moe::Concatenated(layer.experts(), learned));
  check_equal(pass(mixed), pass(plain));

  const auto shared = test::random_expert<Mlp>(test::kModelDim, 7, 3);
  check_equal(pass(moe::WithBranches(layer, Frozen(shared))), pass(moe::WithBranches(layer, shared)));
}

TEST_CASE("Frozen: training changes nothing in it, whoever shares it", "[layer]") {
  const Frozen experts(test::layer_of<Glu>(4, TopKGate{.k = 2}).experts());
  moe::MoeLayer first(Router::random(4, test::kModelDim, 1), TopKGate{.k = 2}, experts);
  const moe::MoeLayer second(Router::random(4, test::kModelDim, 2), TopKGate{.k = 1}, experts);
  const auto before = numbers(*experts);
  const auto router_before = numbers(first.router());
  CHECK(&*first.experts() == &*second.experts());
  CHECK(&*moe::zeros_like(first).experts() == &*experts);

  const auto tokens = test::random_matrix<double>(kTokens, test::kModelDim, 1);
  moe::Trainer trainer(first, moe::AdamW{.weight_decay = 0.5});
  CHECK(&*trainer.gradient().experts() == &*experts);
  CHECK(&*trainer.state().first.experts() == &*experts);
  for (std::uint64_t update = 0; update < 20; ++update) {
    trainer.accumulate(tokens, moe::Step::train(update), [&](const auto& output, auto& doutput) {
      return moe::squared_error(output, tokens, moe::Step{}, doutput);
    });
    trainer.update(0.01);
  }
  CHECK(&*first.experts() == &*experts);
  CHECK(numbers(*experts) == before);
  CHECK(numbers(first.router()) != router_before);
}

TEST_CASE("Frozen: whoever writes to it gets a copy of its own", "[layer]") {
  const Frozen shared(test::random_expert<Mlp>(5, 3, 1));
  Frozen written = shared;
  const auto before = numbers(shared);
  test::randomise(written, 9);
  CHECK(numbers(shared) == before);
  CHECK(numbers(written) != before);
  const Mlp* const own = &*written;
  test::randomise(written, 10);
  CHECK(&*written == own);

  Frozen source = shared;
  const Frozen moved = std::move(source);
  CHECK(&*source == &*moved);  // NOLINT: moved from, it is as before
}

TEST_CASE("Frozen: experts are taken as from what it holds", "[layer]") {
  const auto layer = test::layer_of<Mlp>(4, TopKGate{.k = 2});
  const moe::MoeLayer frozen(Frozen(layer.router()), layer.gate(), Frozen(layer.experts()));
  const auto tokens = test::random_matrix<double>(kTokens, test::kModelDim, 1);
  CHECK(test::same_bits(test::forward(moe::take_experts(frozen, {3, 0, 1}), tokens),
                        test::forward(moe::take_experts(layer, {3, 0, 1}), tokens)));
  CHECK(test::same_bits(test::forward(moe::concatenate(frozen, frozen), tokens),
                        test::forward(moe::concatenate(layer, layer), tokens)));
}

namespace {

/// Serves inference alone.
struct FixedRouter {
  using Scalar = double;
  Index num_experts() const { return 3; }
  Index model_dim() const { return test::kModelDim; }
  void logits(const moe::ConstMatrixRef<double>&, const moe::Context&, moe::MatrixRef<double> out) const {
    out.setZero();
  }
};

}  // namespace

static_assert(moe::Router<Frozen<FixedRouter>> && !moe::DifferentiableRouter<Frozen<FixedRouter>>);

TEST_CASE("Frozen: a walk over a const object leaves it shared", "[layer]") {
  const auto layer = test::layer_of<Mlp>(3, TopKGate{.k = 2});
  const moe::MoeLayer frozen(layer.router(), layer.gate(), Frozen(layer.experts()));
  const auto copy = frozen;
  numbers(copy);
  CHECK(&*copy.experts() == &*frozen.experts());
}
