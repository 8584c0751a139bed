// SPDX-License-Identifier: MIT
#include "moe/expert/latent.hpp"

#include <numeric>
#include <set>

#include "layer/fixtures.hpp"
#include "layer/gradient_check.hpp"
#include "moe/expert/concatenated.hpp"
#include "moe/expert/frozen.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::ExpertPool;
using moe::F64;
using moe::Index;
using moe::LatentExperts;
using moe::LatentSides;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using test::kHiddenDim;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Latent = LatentExperts<Glu>;
using Router = moe::BasicLinearRouter<F64>;

static_assert(moe::DifferentiableExpertSet<Latent> && moe::SetSkipsTokenGradient<Latent> &&
              moe::SetSkipsGradient<Latent> && moe::TakesExperts<Latent> && moe::Concatenates<Latent>);
static_assert(moe::ExpertSet<LatentExperts<test::AddTokenId>>);

namespace {

constexpr Index kTokens = 37, kLatent = 5;

Latent latent(Index num_experts, Index group, LatentSides sides, std::uint64_t seed = 1) {
  auto set =
      Latent::random(num_experts, {.model = kModelDim, .latent = kLatent, .hidden = kHiddenDim}, group, sides, seed);
  test::randomise(set, seed + 50);
  return set;
}

template <class X>
auto layer_around(X experts, Index k = 3) {
  auto router = Router::random(experts.size(), kModelDim, 7);
  return moe::MoeLayer(std::move(router), TopKGate{.k = k}, std::move(experts));
}

Index group_of(const Latent& set, Index expert) {
  Index q = 0;
  while (set.group_begin()[static_cast<std::size_t>(q) + 1] <= expert) ++q;
  return q;
}

/// An expert with its projections, each called by itself.
Matrix<double> by_hand(const Latent& set, Index expert, const Matrix<double>& rows) {
  const Index q = group_of(set, expert);
  const Matrix<double> narrow = test::run(set.experts()[expert], test::run(set.input()[q], rows));
  return set.sides() == LatentSides::Both ? test::run(set.output()[q], narrow) : narrow;
}

moe::DispatchPlan plan_of(const moe::Routing<double>& routing, Index num_experts) {
  moe::DispatchPlan plan;
  plan.build(routing, num_experts);
  return plan;
}

}  // namespace

TEST_CASE("LatentExperts: a row is the expert of the projected token, bit for bit", "[layer][property]") {
  const auto sides = GENERATE(LatentSides::Input, LatentSides::Both);
  const auto [experts, group] =
      GENERATE(std::pair<Index, Index>{7, 3}, std::pair<Index, Index>{4, 4}, std::pair<Index, Index>{3, 1});
  CAPTURE(experts, group);
  const Latent set = latent(experts, group, sides);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 2);
  const auto plan = plan_of(test::random_ragged_routing(kTokens, experts), experts);
  moe::RowBuffer<double> rows;
  rows.resize(plan.num_rows(), moe::row_width(set));
  set.forward(tokens, plan, Step{}, rows);
  for (Index e = 0; e < experts; ++e) {
    const auto expected = by_hand(set, e, tokens);
    for (Index r = plan.offset(e); r < plan.offset(e + 1); ++r)
      CHECK(test::same_bits(Matrix<double>(rows.matrix().row(r).leftCols(kModelDim)),
                            Matrix<double>(expected.row(plan.token_of_row()[static_cast<std::size_t>(r)]))));
  }
}

TEST_CASE("LatentExperts: a token is projected once for every group that it meets", "[layer]") {
  const Latent set = latent(7, 3, LatentSides::Both);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 2);
  auto routing = test::random_ragged_routing(kTokens, 7);
  for (Index a = 0; a < routing.num_assignments(); ++a)  // no row of group 1
    if (group_of(set, routing.experts()[static_cast<std::size_t>(a)]) == 1) routing.drop(a, moe::kDroppedByGate);
  const auto plan = plan_of(routing, 7);
  std::set<std::pair<Index, Index>> met;
  for (Index e = 0; e < 7; ++e)
    for (Index r = plan.offset(e); r < plan.offset(e + 1); ++r)
      met.emplace(group_of(set, e), plan.token_of_row()[static_cast<std::size_t>(r)]);
  moe::RowBuffer<double> rows;
  rows.resize(plan.num_rows(), moe::row_width(set));
  Latent::Tape tape;
  set.forward(tokens, plan, Step{}, rows, tape);
  CHECK(tape.plans.input.num_rows() == std::ssize(met));
  CHECK(std::ssize(met) < plan.num_rows());
  CHECK(tape.plans.input.rows_of(1) == 0);
}

TEST_CASE("LatentExperts: gradients of a layer are central differences", "[layer][property]") {
  const auto sides = GENERATE(LatentSides::Input, LatentSides::Both);
  CHECK(test::layer_gradient_error(layer_around(latent(5, 2, sides)), Step{}) < 1e-6);
  CHECK(test::layer_gradient_error(layer_around(latent(3, 3, sides), 2), Step{}) < 1e-6);
}

TEST_CASE("LatentExperts: any threads, company or cut give the same bits, forward and backward", "[layer][property]") {
  const Latent set = latent(6, 2, LatentSides::Both);
  const auto layer = layer_around(set);
  const std::vector<Index> first = {0, 1}, rest = {2, 3, 4, 5};
  const auto cut = layer_around(moe::Concatenated(set.take(first), set.take(rest)));
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto out = test::forward(layer, tokens);
  for (Index t = 0; t < kTokens; t += 5)
    CHECK(test::same_bits(test::forward(layer, Matrix<double>(tokens.row(t))), Matrix<double>(out.row(t))));
  const auto passes = test::on_thread_counts([&] { return test::TrainingPass(layer, tokens, out); });
  for (const auto& pass : passes) {
    CHECK(test::same_bits(pass.out, out));
    CHECK(test::same_bits(pass.dtokens, passes[0].dtokens));
    CHECK(test::same_parameters(pass.gradient, passes[0].gradient));
  }
  const test::TrainingPass parts(cut, tokens, out);
  CHECK(test::same_bits(parts.out, out));
  CHECK(test::largest(Matrix<double>(parts.dtokens - passes[0].dtokens)) < 1e-12);  // sums in another order
  const auto& whole = passes[0].gradient.experts();
  CHECK(test::same_parameters(parts.gradient.experts().set<1>(), whole.take(rest)));
}

TEST_CASE("LatentExperts: a wave of a plan writes its rows alone", "[layer]") {
  const Latent set = latent(6, 4, LatentSides::Both);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 2);
  const auto plan = plan_of(test::random_ragged_routing(kTokens, 6), 6);
  moe::RowBuffer<double> whole, waves;
  for (auto* rows : {&whole, &waves}) rows->resize(plan.num_rows(), moe::row_width(set));
  set.forward(tokens, plan, Step{}, whole);
  waves.matrix().setConstant(7);
  const moe::PlanView view = moe::PlanView(plan).only(2, 3);  // cuts both groups
  set.forward(tokens, view, Step{}, waves);
  for (Index r = 0; r < plan.num_rows(); ++r)
    if (r >= view.first_row() && r < view.last_row())
      CHECK(test::same_bits(Matrix<double>(waves.matrix().row(r).leftCols(kModelDim)),
                            Matrix<double>(whole.matrix().row(r).leftCols(kModelDim))));
    else
      CHECK(waves.row(r)[0] == 7);
}

TEST_CASE("LatentExperts: frozen they give the same gradients of tokens", "[layer][property]") {
  const Latent set = latent(5, 2, LatentSides::Both);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const test::TrainingPass free(layer_around(set), tokens, tokens);
  const test::TrainingPass frozen(layer_around(moe::Frozen(set)), tokens, tokens);
  CHECK(test::same_bits(frozen.out, free.out));
  CHECK(test::same_bits(frozen.dtokens, free.dtokens));
}

TEST_CASE("LatentExperts: experts of any kind see the ids of their tokens", "[layer]") {
  const ExpertPool<moe::BasicLinear<F64>> input = ExpertPool<moe::BasicLinear<F64>>::random(2, 3, kModelDim, 4);
  const LatentExperts<test::AddTokenId> set(input, ExpertPool(std::vector<test::AddTokenId>(4, {3})), 2);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 2);
  std::vector<std::int64_t> ids(kTokens);
  std::iota(ids.begin(), ids.end(), 100);
  Step step;
  step.token_id = ids;
  const auto plan = plan_of(test::random_ragged_routing(kTokens, 4), 4);
  moe::RowBuffer<double> rows;
  rows.resize(plan.num_rows(), 3);
  set.forward(tokens, plan, step, rows);
  for (Index e = 0; e < 4; ++e) {
    const auto projected = test::run(input[e / 2], tokens);
    for (Index r = plan.offset(e); r < plan.offset(e + 1); ++r) {
      const Index t = plan.token_of_row()[static_cast<std::size_t>(r)];
      CHECK(rows.row(r)[1] == projected(t, 1) + static_cast<double>(100 + t));
    }
  }
}

TEST_CASE("LatentExperts: taken and joined experts are those experts", "[layer]") {
  const auto sides = GENERATE(LatentSides::Input, LatentSides::Both);
  const Latent set = latent(6, 4, sides);
  const auto tokens = test::random_matrix<double>(3, kModelDim, 2);
  const std::vector<Index> ids = {5, 0, 3, 3, 4};
  const Latent taken = set.take(ids), joined = set.concatenate(taken);
  CHECK(taken.num_groups() == 3);
  CHECK(joined.num_groups() == 5);
  for (Index i = 0; i < taken.size(); ++i) {
    const auto expected = by_hand(set, ids[static_cast<std::size_t>(i)], tokens);
    CHECK(test::same_bits(by_hand(taken, i, tokens), expected));
    CHECK(test::same_bits(by_hand(joined, 6 + i, tokens), expected));
  }
  CHECK_THROWS_WITH(set.concatenate(latent(2, 1, sides == LatentSides::Both ? LatentSides::Input : LatentSides::Both)),
                    ContainsSubstring("LatentSides is not the same in both"));
}

TEST_CASE("LatentExperts: no tokens are nothing, and what does not fit is refused", "[layer][error]") {
  const Latent set = latent(5, 2, LatentSides::Both);
  const auto layer = layer_around(set);
  CHECK(test::forward(layer, Matrix<double>(0, kModelDim)).rows() == 0);
  const test::TrainingPass nothing(layer, Matrix<double>(0, kModelDim), Matrix<double>(0, kModelDim));
  CHECK(test::count_zero_bits(nothing.gradient) == test::num_stored(nothing.gradient));

  CHECK_THROWS_WITH(latent(3, 0, LatentSides::Input), ContainsSubstring("group is 0, expected at least 1"));
  CHECK_THROWS_WITH(Latent(set.input(), set.experts(), set.output(), 5),
                    ContainsSubstring("the number of input projections is 3, expected 1"));
  const auto wide = ExpertPool<Glu>::random(5, kModelDim, 3, 1);
  CHECK_THROWS_WITH(Latent(set.input(), wide, 2), ContainsSubstring("the input_dim of experts is 11, expected 5"));
  CHECK_THROWS_WITH(latent(2, 1, LatentSides::Input).output(), ContainsSubstring("expected LatentSides::Both"));

  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 2);
  const auto plan = plan_of(test::random_ragged_routing(kTokens, 5), 5);
  moe::RowBuffer<double> rows;
  rows.resize(plan.num_rows(), moe::row_width(set) - 1);
  CHECK_THROWS_WITH(set.forward(tokens, plan, Step{}, rows), ContainsSubstring("moe::LatentExperts::forward: rows is"));
  rows.resize(plan.num_rows(), moe::row_width(set));
  Latent::Tape tape;
  set.forward(tokens, plan, Step{}, rows, tape);
  CHECK_THROWS_WITH(set.require_backward(plan, tape, set), ContainsSubstring("gradient is the set itself"));
  CHECK_THROWS_WITH(set.require_backward(plan, tape, moe::zeros_like(latent(5, 3, LatentSides::Both))),
                    ContainsSubstring("expected the groups and sides of this set"));
  CHECK_THROWS_WITH(set.require_backward(moe::PlanView(plan).only(0, 2), tape, moe::zeros_like(set)),
                    ContainsSubstring("the tape is of rows"));
}
