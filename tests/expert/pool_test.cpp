// SPDX-License-Identifier: MIT
#include "moe/expert/pool.hpp"

#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"

using moe::Bias;
using moe::ExpertPool;
using moe::F64;
using moe::Index;
using moe::Matrix;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;
using Identity = moe::BasicScaledIdentity<F64>;
using Any = moe::OneOf<Glu, Mlp, Identity, test::Diagonal>;

namespace {

constexpr Index kDim = 11, kTokens = 23;

/// Everything that one pass through a pool gives.
struct Pass {
  Matrix<double> out, drows;
  moe::DispatchPlan plan;
};

/// Where a pool of such experts leaves the gradients of its rows.
template <class E>
const moe::RowBuffer<double>& row_gradients(moe::Scratch& scratch) {
  if constexpr (moe::PanelExpert<E>)
    return scratch.get<moe::StageMemoryOf<E>>().drows;
  else
    return scratch.get<typename moe::detail::GatheredRunner<E>::Gradients>().drows;
}

/// Rows of a pool, in plan order, and their gradients for dout = `dout`, both [num_rows, kDim].
template <class E>
Pass pass(const ExpertPool<E>& pool, const moe::DispatchPlan& plan, const Matrix<double>& tokens,
          const Matrix<double>& dout, ExpertPool<E>& gradient) {
  typename ExpertPool<E>::Tape tape;
  moe::RowBuffer<double> out, padded;
  out.resize(plan.num_rows(), pool.row_width());
  const moe::Step step;
  moe::Scratch scratch;
  const moe::Context context(step, scratch);
  pool.forward(tokens, plan, context, out, tape);
  moe::kernel::gather<double>(
      dout, plan.num_rows(), pool.row_width(), [](Index r) { return r; }, padded);
  auto dtokens = test::nan_matrix<double>(tokens.rows(), kDim);
  pool.backward(tokens, plan, context, tape, padded, gradient, dtokens);
  const moe::RowBuffer<double>& drows = row_gradients<E>(scratch);
  for (Index t = 0; t < tokens.rows(); ++t) {  // in the order of the assignments
    Matrix<double> sum = Matrix<double>::Zero(1, kDim);
    for (Index a = plan.begin(t); a < plan.end(t); ++a)
      if (const Index row = plan.row_of_assignment()[std::size_t(a)]; row >= 0)
        sum += drows.matrix().row(row).leftCols(kDim);
    CHECK(test::same_bits(dtokens.row(t), sum));
  }
  return {out.matrix().leftCols(kDim), drows.matrix().leftCols(kDim), plan};
}

/// Expects of every expert of a pool what it does when it runs alone on its rows, bit for bit.
template <class E>
void check_as_alone(ExpertPool<E> pool) {
  const auto routing = test::random_ragged_routing(kTokens, pool.size());
  moe::DispatchPlan plan;
  plan.build(routing, pool.size());
  const auto tokens = test::random_matrix<double>(kTokens, kDim, 1);
  const auto dout = test::random_matrix<double>(plan.num_rows(), kDim, 2);
  auto gradient = moe::zeros_like(pool), alone_gradient = gradient;
  const Pass all = pass(pool, plan, tokens, dout, gradient);
  for (Index e = 0; e < pool.size(); ++e) {
    const moe::Step step;
    moe::Scratch scratch;
    const moe::Context context(step, scratch);
    const Index begin = plan.offset(e), count = plan.rows_of(e);
    Matrix<double> rows(count, kDim), out(count, kDim), drows(count, kDim);
    for (Index r = 0; r < count; ++r) rows.row(r) = tokens.row(plan.token_of_row()[std::size_t(begin + r)]);
    typename E::Tape tape;
    pool[e].forward(rows, out, context, tape);
    pool[e].backward(rows, tape, dout.middleRows(begin, count), drows, alone_gradient[e], context);
    CAPTURE(e, count);
    CHECK(test::same_bits(all.out.middleRows(begin, count), out));
    CHECK(test::same_bits(all.drows.middleRows(begin, count), drows));
  }
  CHECK(test::same_parameters(gradient, alone_gradient));
}

std::vector<Any> any_experts() {
  return {test::random_expert<Glu>(kDim, 5, 1), test::random_expert<Mlp>(kDim, 20, 2), Identity{kDim, 0.5},
          test::Diagonal{test::random_matrix<double>(1, kDim, 3)}, test::random_expert<Glu>(kDim, 7, 4)};
}

}  // namespace

TEST_CASE("ExpertPool: experts of different hidden sizes, with and without biases, do as they do alone", "[expert]") {
  check_as_alone(
      ExpertPool<Glu>({test::random_expert<Glu>(kDim, 40, 1), test::random_expert<Glu>(kDim, 3, 2, Bias::Zero),
                       test::random_expert<Glu>(kDim, 0, 3), test::random_expert<Glu>(kDim, 17, 4)}));
  check_as_alone(
      ExpertPool<Mlp>({test::random_expert<Mlp>(kDim, 1, 1, Bias::Off), test::random_expert<Mlp>(kDim, 33, 2)}));
}

TEST_CASE("ExpertPool: a user's expert does as it does alone", "[expert]") {
  check_as_alone(ExpertPool<test::Diagonal>(
      {{test::random_matrix<double>(1, kDim, 1)}, {test::random_matrix<double>(1, kDim, 2)}}));
}

TEST_CASE("OneOf: every alternative does as it does alone", "[expert]") {
  check_as_alone(ExpertPool<Any>(any_experts()));
}

TEST_CASE("OneOf: one forward-only type is enough for a set that cannot be trained through", "[expert]") {
  using Half = moe::OneOf<Glu, test::AddTokenId>;
  STATIC_REQUIRE(moe::Expert<Half>);
  STATIC_REQUIRE(!moe::DifferentiableExpert<Half>);
  STATIC_REQUIRE(!moe::DifferentiableExpertSet<ExpertPool<Half>>);
  STATIC_REQUIRE(!moe::DifferentiableExpertSet<ExpertPool<test::AddTokenId>>);
  STATIC_REQUIRE(moe::DifferentiableExpertSet<ExpertPool<Any>>);
  const Half expert(test::AddTokenId{kDim});
  const auto rows = test::random_matrix<double>(1, kDim);
  CHECK(test::same_bits(test::run(expert, rows), rows));  // the token of row 0 has id 0
}

TEST_CASE("OneOf: a tape serves another alternative afterwards", "[expert]") {
  const auto experts = any_experts();
  const auto rows = test::random_matrix<double>(4, kDim);
  const moe::Step step;
  moe::Scratch scratch;
  const moe::Context context(step, scratch);
  Any::Tape reused;
  for (const std::size_t e : {0u, 3u, 1u, 2u, 0u, 4u}) {
    Any::Tape fresh;
    Matrix<double> out(4, kDim), expected = out, drows = out, dexpected = out;
    Any gradient = moe::zeros_like(experts[e]), gradient_expected = gradient;
    experts[e].forward(rows, out, context, reused);
    experts[e].forward(rows, expected, context, fresh);
    experts[e].backward(rows, reused, rows, drows, gradient, context);
    experts[e].backward(rows, fresh, rows, dexpected, gradient_expected, context);
    CAPTURE(e);
    CHECK(test::same_bits(out, expected));
    CHECK(test::same_bits(drows, dexpected));
    CHECK(test::same_parameters(gradient, gradient_expected));
  }
}

TEST_CASE("ExpertPool: a user's expert is told the ids of the tokens in its rows", "[expert]") {
  const ExpertPool<test::AddTokenId> pool({{kDim}, {kDim}, {kDim}});
  const auto routing = test::random_ragged_routing(kTokens, 3);
  moe::DispatchPlan plan;
  plan.build(routing, 3);
  const auto tokens = test::random_matrix<double>(kTokens, kDim);
  std::vector<std::int64_t> id(kTokens);
  for (std::size_t t = 0; t < id.size(); ++t) id[t] = std::int64_t(1000 * t);
  for (const bool named : {false, true}) {
    moe::Step step;
    if (named) step.token_id = id;
    moe::RowBuffer<double> out;
    out.resize(plan.num_rows(), pool.row_width());
    pool.forward(tokens, plan, step, out);
    for (Index r = 0; r < plan.num_rows(); ++r) {
      const Index token = plan.token_of_row()[std::size_t(r)];
      CAPTURE(named, r, token);
      CHECK(out.row(r)[0] == tokens(token, 0) + static_cast<double>(step.id(token)));
    }
  }
}

TEST_CASE("ScaledIdentity: scales, forward and backward, also by zero", "[expert]") {
  const auto rows = test::random_matrix<double>(3, kDim);
  CHECK(test::same_bits(test::run(Identity{kDim, 0.25}, rows), 0.25 * rows));
  CHECK(test::run(Identity{kDim, 0}, rows) == Matrix<double>::Zero(3, kDim));
}

TEST_CASE("ExpertPool: an expert without rows keeps a gradient of zero", "[expert]") {
  auto pool = ExpertPool<Mlp>::random(3, kDim, 5, 1);
  const auto routing = test::routing_of<double>({{0, 2}, {2}});
  moe::DispatchPlan plan;
  plan.build(routing, 3);
  auto gradient = moe::zeros_like(pool);
  pass(pool, plan, test::random_matrix<double>(2, kDim), test::random_matrix<double>(3, kDim), gradient);
  CHECK(test::num_nonzero(gradient[1]) == 0);
  CHECK(test::num_nonzero(gradient[2]) == moe::num_parameters(gradient[2]));
}

TEST_CASE("ExpertPool: random experts differ from each other and are the same for the same seed", "[expert]") {
  const auto pool = ExpertPool<Glu>::random(3, kDim, 5, 1), again = ExpertPool<Glu>::random(3, kDim, 5, 1);
  CHECK(test::same_parameters(pool, again));
  CHECK(!test::same_parameters(pool[0], pool[1]));
  CHECK(!test::same_parameters(pool, ExpertPool<Glu>::random(3, kDim, 5, 2)));
}

TEST_CASE("ExpertPool: parameters are named by expert", "[expert]") {
  const auto pool = ExpertPool<Glu>({Glu(3, 2, Bias::Zero), Glu(3, 2)});
  std::vector<std::string> names;
  moe::visit([&](const std::string& name, const auto&) { names.push_back(name); }, pool);
  CHECK(names == std::vector<std::string>{"0.gate_up.weight", "0.gate_up.bias", "0.down.weight", "0.down.bias",
                                          "1.gate_up.weight", "1.down.weight"});
}

TEST_CASE("ExpertPool: no experts, experts that do not fit together, and a foreign gradient are refused",
          "[expert][error]") {
  CHECK_THROWS_WITH(ExpertPool<Mlp>::random(0, 3, 4, 1), "moe::ExpertPool: 0 experts, expected at least 1");
  CHECK_THROWS_WITH(ExpertPool<Mlp>({Mlp(3, 4), Mlp(4, 4)}),
                    "moe::ExpertPool: expert 1 maps 4 to 4, expected 3 to 3 as expert 0");
  const auto pool = ExpertPool<Mlp>::random(2, kDim, 4, 1);
  auto three = ExpertPool<Mlp>::random(3, kDim, 4, 1), wide = ExpertPool<Mlp>::random(2, kDim, 40, 1);
  moe::DispatchPlan plan;
  plan.build(test::routing_of<double>({{0}, {1}}), 2);
  const auto x = test::random_matrix<double>(2, kDim);
  CHECK_THROWS_WITH(pass(pool, plan, x, x, three), "moe::ExpertPool::backward: gradient has 3 experts, expected 2");
  CHECK_THROWS_WITH(pass(pool, plan, x, x, wide),
                    Catch::Matchers::ContainsSubstring("gradient of expert 0, stage 0 is [40, 11]"));
}

namespace {

/// An expert set without a backward pass.
struct ForwardOnly : ExpertPool<Mlp> {
  using ExpertPool<Mlp>::ExpertPool;
  void backward() const = delete;
};

}  // namespace

TEST_CASE("DifferentiableExpertSet: asks for all that a layer calls", "[expert]") {
  STATIC_REQUIRE(moe::DifferentiableExpertSet<ExpertPool<Mlp>>);
  STATIC_REQUIRE(moe::ExpertSet<ForwardOnly>);
  STATIC_REQUIRE_FALSE(moe::DifferentiableExpertSet<ForwardOnly>);
}
