// SPDX-License-Identifier: MIT
#include <numeric>

#include "layer/fixtures.hpp"
#include "layer/gradient_check.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/routing/balance/load_balancing.hpp"
#include "moe/routing/balance/z_loss.hpp"
#include "moe/routing/padding.hpp"
#include "moe/train/routed_pass.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::ExpertPool;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Routing;
using moe::Step;
using moe::TopKGate;
using moe::WeightOn;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;
using Identity = moe::BasicScaledIdentity<F64>;
using Router = moe::BasicLinearRouter<F64>;

namespace {

constexpr Index kTokens = 17, kExperts = 5;

/// What a layer's mixture gives for the ids and weights of `routing`, as somebody else would hand them over.
template <class Layer>
void check_external(const Layer& layer, const Step& step) {
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1),
             dout = test::random_matrix<double>(kTokens, kModelDim, 2);
  const test::TrainingPass pass(layer, tokens, dout, step);
  const Routing<double>& own = pass.tape.routing;
  const auto routing = Routing<double>::from(own.token_begin(), own.experts(), own.weights(), layer.num_experts());
  const auto& mixture = layer.mixture();
  using M = std::remove_cvref_t<decltype(mixture)>;
  auto out = test::nan_matrix<double>(kTokens, kModelDim), inferred = out, dtokens = out;
  typename M::Tape tape;
  mixture.forward(tokens, routing, step, inferred);
  mixture.forward(tokens, routing, step, out, tape);
  CHECK(test::same_bits(inferred, pass.out));
  CHECK(test::same_bits(out, pass.out));
  M gradient = moe::zeros_like(mixture);
  std::vector<double> dweight(own.weights().size());
  mixture.backward(tokens, routing, step, tape, dout, gradient, std::span(dweight), dtokens);
  CHECK(test::same_parameters(gradient, pass.gradient.mixture()));
  CHECK(dweight == pass.tape.dweight);
  // What the router adds to dtokens is zero where its weights are.
  Layer without = layer;
  without.router() = Router(layer.num_experts(), kModelDim, moe::Bias::Zero);
  without.router().bias() = layer.router().bias();
  auto replayed = out;
  typename Layer::Tape zero;
  without.replay(tokens, step, routing, replayed, zero);
  auto zero_dtokens = out;
  auto zero_gradient = moe::zeros_like(without);
  zero.routing = routing;  // weights of the layer itself again
  without.mixture().forward(tokens, routing, step, replayed, zero.mixture);
  without.backward(tokens, zero, dout, zero_gradient, zero_dtokens);
  CHECK(test::same_bits(zero_dtokens, dtokens));
}

/// A tape built from recorded choices gives the bits of the recorded pass, forward and backward.
template <class Layer>
void check_replay(const Layer& layer, const Step& step) {
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1),
             dout = test::random_matrix<double>(kTokens, kModelDim, 2);
  const test::TrainingPass pass(layer, tokens, dout, step);
  Routing<double> choices = pass.tape.routing;
  for (double& weight : choices.weights()) weight = test::kNan<double>;  // they are not read
  auto out = test::nan_matrix<double>(kTokens, kModelDim), dtokens = out;
  typename Layer::Tape tape;
  layer.replay(tokens, step, choices, out, tape);
  Layer gradient = moe::zeros_like(layer);
  layer.backward(tokens, tape, dout, gradient, dtokens);
  CHECK(test::same_bits(out, pass.out));
  CHECK(test::same_bits(dtokens, pass.dtokens));
  CHECK(test::same_parameters(gradient, pass.gradient));
}

/// The mean of all experts, whatever the routing: as small as a mixture of one's own can be.
struct MeanOfExperts {
  using Scalar = double;
  ExpertPool<Glu> pool;

  Index num_experts() const { return pool.size(); }
  Index input_dim() const { return pool.input_dim(); }
  Index output_dim() const { return pool.output_dim(); }
  void forward(const moe::ConstMatrixRef<double>& tokens, const Routing<double>&, const moe::Context& context,
               moe::MatrixRef<double> out) const {
    Matrix<double> one(out.rows(), out.cols());
    out.setZero();
    for (Index e = 0; e < pool.size(); ++e) {
      pool[e].forward(tokens, one, context);
      out += one / static_cast<double>(pool.size());
    }
  }
};

moe::DispatchPlan plan_of(const Routing<double>& routing, Index num_experts) {
  moe::DispatchPlan plan;
  plan.build(routing, num_experts);
  return plan;
}

/// Losses of every router of a hierarchy.
struct LossesOfAll {
  template <class Layer>
  double operator()(const Layer& layer, typename Layer::Tape& tape, moe::RoutingGradient<double>&) const {
    double sum = 0;
    moe::for_each_routed(layer, tape, [&](const moe::RoutedPass<double>& pass) {
      sum += 0.3 * moe::load_balancing_loss<double>(pass.probability, pass.routing, pass.step, 0.3, pass.losses) +
             0.2 * moe::z_loss<double>(pass.logits, pass.step, 0.2, pass.losses);
    });
    return sum;
  }
};

auto hierarchy() {
  using Inner = moe::LayerExpert<test::Layer<Mlp>>;
  std::vector<Inner> experts;
  for (const Index e : {2, 3, 4}) experts.emplace_back(test::layer_of<Mlp>(e, TopKGate{.k = 2}));
  return moe::MoeLayer(Router::random(3, kModelDim, 21), TopKGate{.k = 2}, ExpertPool<Inner>(std::move(experts)));
}

}  // namespace

TEST_CASE("RoutedExperts: ids and weights of elsewhere give the layer's own bits, forward and backward",
          "[layer][property]") {
  const auto layer = test::layer_of<Glu>(kExperts, TopKGate{.k = 2});
  check_external(layer, Step{});
  check_external(test::layer_of<Mlp>(kExperts, moe::SoftmaxGate{}), Step::train(1, 2));
  check_external(moe::MoeLayer(layer.router(), layer.gate(), layer.experts(), WeightOn::Input), Step{});
}

TEST_CASE("MoeLayer: recorded choices replay the recorded pass, bit for bit", "[layer][property]") {
  const auto layer = test::layer_of<Glu>(kExperts, TopKGate{.k = 2});
  check_replay(layer, Step::train(1, 2));
  check_replay(test::layer_of<Glu>(kExperts, moe::NoisyTopKGate{}), Step::train(1, 2));
  check_replay(test::layer_of<Mlp>(kExperts, moe::SoftmaxGate{}), Step{});
  using Limited = moe::WithCapacity<TopKGate>;
  check_replay(test::layer_of<Glu>(kExperts, Limited{.capacity = {.factor = 0.6, .min_capacity = 1}}),
               Step::train(1, 2));
  check_replay(moe::MoeLayer(layer.router(), layer.gate(), layer.experts(), WeightOn::Input), Step::train(1, 2));
}

TEST_CASE("MoeLayer: ids alone, of any integer type, train the router through their own weights", "[layer]") {
  const auto layer = test::layer_of<Glu>(kExperts, TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(3, kModelDim);
  const std::vector<std::int32_t> ids = {4, 0, 1, 3, 2, -1};
  Matrix<double> out(3, kModelDim), dtokens(3, kModelDim);
  decltype(layer)::Tape tape;
  layer.replay(tokens, Step::train(0), Routing<double>::from(3, ids, {}, kExperts), out, tape);
  CHECK(tape.routing.experts(1)[0] == 1);
  CHECK(tape.routing.experts(2).size() == 1);
  CHECK(tape.routing.weights(2)[0] == 1);  // nothing shares with -1
  CHECK_THAT(tape.routing.weights(0)[0] + tape.routing.weights(0)[1], Catch::Matchers::WithinAbs(1, 1e-15));
  auto gradient = moe::zeros_like(layer);
  layer.backward(tokens, tape, tokens, gradient, dtokens);
  CHECK(test::num_nonzero(gradient.router()) > 0);
}

TEST_CASE("RoutedExperts: two gates share one mixture, and its router may read other inputs", "[layer]") {
  const auto layer = test::layer_of<Glu>(kExperts, TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1),
             seen = test::random_matrix<double>(kTokens, 3);
  const auto router = Router::random(kExperts, 3, 9);
  Matrix<double> logits(kTokens, kExperts), out(kTokens, kModelDim), other = out;
  moe::Scratch scratch;
  const Step step;
  Routing<double> routing;
  router.logits(seen, {step, scratch}, logits);
  TopKGate{.k = 2}.route<double>(logits, {step, scratch}, routing);
  layer.mixture().forward(tokens, routing, {step, scratch}, out);
  CHECK(test::reference_of(layer, tokens, routing).worst(out) <= 1);
  moe::SoftmaxGate{}.route<double>(logits, {step, scratch}, routing);
  layer.mixture().forward(tokens, routing, {step, scratch}, other);
  CHECK(test::reference_of(layer, tokens, routing).worst(other) <= 1);
}

TEST_CASE("MoeLayer: computes with a mixture of another kind", "[layer]") {
  const auto pool = ExpertPool<Glu>::random(kExperts, kModelDim, 5, 1);
  const moe::MoeLayer layer(Router::random(kExperts, kModelDim, 1), TopKGate{}, MeanOfExperts{pool});
  const auto tokens = test::random_matrix<double>(4, kModelDim);
  Matrix<double> expected(4, kModelDim);
  MeanOfExperts{pool}.forward(tokens, {}, Step{}, expected);
  CHECK(test::same_bits(test::forward(layer, tokens), expected));
}

TEST_CASE("Routing: what others hand over is checked, and what is wrong is named", "[routing][error]") {
  using R = Routing<float>;
  const std::vector<int> ids = {0, 1, 2, 7}, low = {0, -2};
  const std::vector<float> weights = {1, 2, 3, 4}, bad = {1, NAN};
  CHECK_THROWS_WITH(R::from(3, std::span(ids), weights, 8),
                    "moe::Routing::from: 4 experts, expected a multiple of num_tokens = 3");
  CHECK_THROWS_WITH(R::from(0, std::span(ids), weights, 8), ContainsSubstring("multiple of num_tokens = 0"));
  CHECK_THROWS_WITH(R::from(-1, std::span(ids), weights, 8), ContainsSubstring("num_tokens is -1"));
  CHECK_THROWS_WITH(R::from(2, std::span(ids), weights, 7),
                    "moe::Routing::from: assignment 3 names expert 7, expected -1 <= expert < num_experts = 7");
  CHECK_THROWS_WITH(R::from(1, std::span(low), {}, 7), ContainsSubstring("assignment 1 names expert -2"));
  CHECK_THROWS_WITH(R::from(2, std::span(ids), std::span(weights).first(3), 8),
                    "moe::Routing::from: 3 weights, expected none or one per expert = 4");
  CHECK_THROWS_WITH(R::from(1, std::span(ids).first(2), bad, 8),
                    "moe::Routing::from: weight of assignment 1 is nan, expected a finite number");
  const std::vector<Index> begin = {0, 1, 4}, late = {1, 4}, falling = {0, 3, 2, 4}, none;
  CHECK_THROWS_WITH(R::from(late, std::span(ids), weights, 8), ContainsSubstring("token_begin goes from 1 to 4"));
  CHECK_THROWS_WITH(R::from(none, std::span(ids), weights, 8), ContainsSubstring("token_begin goes from 0 to 0"));
  CHECK_THROWS_WITH(R::from(falling, std::span(ids), weights, 8), ContainsSubstring("token 1 has -1 choices"));
  const R ragged = R::from(begin, std::span(ids), weights, 8);
  CHECK(ragged.num_tokens() == 2);
  CHECK(ragged.choices_per_token() == -1);
  CHECK(ragged.experts(1)[2] == 7);
  CHECK(ragged.weights(1)[0] == 2);
  CHECK(R::from(0, std::span(ids).first(0), {}, 8).num_tokens() == 0);
}

TEST_CASE("MoeLayer: replay refuses choices of other tokens or experts", "[layer][error]") {
  const auto layer = test::layer_of<Glu>(kExperts, TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(3, kModelDim);
  Matrix<double> out(3, kModelDim);
  decltype(layer)::Tape tape;
  const std::vector<int> ids = {0, 1, 2, 6};
  const auto two = Routing<double>::from(2, std::span(ids), {}, 7),
             four = Routing<double>::from(4, std::span(ids), {}, 7);
  CHECK_THROWS_WITH(layer.replay(tokens, Step{}, two, out, tape),
                    "moe::MoeLayer::replay: routing has 2 tokens, expected num_tokens = 3");
  CHECK_THROWS_WITH(layer.replay(tokens.topRows(2), Step{}, two, out.topRows(2), tape),
                    "moe::MoeLayer::replay: assignment 3 names expert 6, expected 0 <= expert < num_experts = 5");
  CHECK_THROWS_WITH(layer.mixture().forward(tokens, four, Step{}, out),
                    "moe::RoutedExperts::forward: tokens is [3, 11], expected [4, 11]");
  CHECK_THROWS_WITH(layer.mixture().forward(tokens.topRows(2), two, Step{}, out.topRows(2)),
                    ContainsSubstring("assignment 3 names expert 6"));
  decltype(layer)::MixtureType::Tape empty;
  auto gradient = layer.mixture();
  CHECK_THROWS_WITH(layer.mixture().require_backward(two, empty, gradient),
                    "moe::RoutedExperts::backward: the tape holds no forward pass that has ended");
}

TEST_CASE("RoutedExperts: the routing of backward has to be that of forward", "[layer][error]") {
  const auto layer = test::layer_of<Glu>(kExperts, TopKGate{.k = 2});
  const auto& mixture = layer.mixture();
  const auto tokens = test::random_matrix<double>(2, kModelDim);
  const std::vector<int> ids = {0, 1, 2, 3};
  const auto pairs = Routing<double>::from(2, std::span(ids), {}, 5);
  const auto single = Routing<double>::from(2, std::span(ids).first(2), {}, 5);
  decltype(layer)::MixtureType::Tape tape;
  Matrix<double> out(2, kModelDim);
  mixture.forward(tokens, pairs, Step{}, out, tape);
  auto gradient = moe::zeros_like(mixture);
  std::vector<double> dweight(4);
  CHECK_THROWS_WITH(mixture.backward(tokens, single, Step{}, tape, tokens, gradient, std::span(dweight)),
                    ContainsSubstring("routing has 2 tokens and 2 assignments, expected 2 and 4"));
  CHECK_THROWS_WITH(mixture.backward(tokens, pairs, Step{}, tape, tokens, gradient, std::span(dweight).first(3)),
                    "moe::RoutedExperts::backward: dweight has 3 entries, expected num_assignments = 4");
  CHECK(test::num_nonzero(gradient) == 0);
}

TEST_CASE("DispatchPlan: from_counts is the plan of rows that are sorted already", "[plan]") {
  const std::vector<Index> counts = {2, 0, 3};
  const auto plan = moe::DispatchPlan::from_counts(counts);
  CHECK(plan.num_experts() == 3);
  CHECK(plan.num_tokens() == 5);
  CHECK(std::vector<Index>(plan.offsets().begin(), plan.offsets().end()) == std::vector<Index>{0, 2, 2, 5});
  for (Index r = 0; r < 5; ++r) {
    CHECK(plan.token_of_row()[static_cast<std::size_t>(r)] == r);
    CHECK(plan.row_of_assignment()[static_cast<std::size_t>(r)] == r);
    CHECK(plan.begin(r) == r);
  }
  CHECK(moe::DispatchPlan::from_counts({}).num_rows() == 0);
  CHECK_THROWS_WITH(moe::DispatchPlan::from_counts(std::vector<Index>{1, -1}),
                    ContainsSubstring("moe::DispatchPlan::build_from_counts: count is -1"));
}

TEST_CASE("PlanView: parts and waves of a plan, run one by one, fill the rows of one run", "[plan][expert][property]") {
  using Any = moe::OneOf<Glu, Identity>;
  const auto check = [](const auto& pool) {
    using Pool = std::remove_cvref_t<decltype(pool)>;
    const auto routing = test::random_ragged_routing(kTokens, kExperts);
    const auto plan = plan_of(routing, kExperts);
    const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
    moe::RowBuffer<double> whole, dout, rows;
    for (auto* buffer : {&whole, &dout, &rows}) buffer->resize(plan.num_rows(), pool.row_width());
    dout.matrix().setZero();
    dout.matrix().leftCols(kModelDim) = test::random_matrix<double>(plan.num_rows(), kModelDim, 2);
    typename Pool::Tape tape;
    Pool gradient = moe::zeros_like(pool), of_parts = gradient;
    Matrix<double> dtokens(kTokens, kModelDim), sum = Matrix<double>::Zero(kTokens, kModelDim);
    pool.forward(tokens, plan, Step{}, whole, tape);
    pool.backward(tokens, plan, Step{}, tape, dout, gradient, dtokens);
    for (const bool trains : {false, true}) {
      rows.matrix().setConstant(test::kNan<double>);
      for (const auto& [first, count] : {std::pair<Index, Index>{0, 2}, {2, 0}, {2, 1}, {3, 2}}) {
        const moe::PlanView wave = moe::PlanView(plan).only(first, count);
        typename Pool::Tape own;
        if (!trains) {
          pool.forward(tokens, wave, Step{}, rows);
        } else {
          pool.forward(tokens, wave, Step{}, rows, own);
          Matrix<double> part(kTokens, kModelDim);
          pool.backward(tokens, wave, Step{}, own, dout, of_parts, part);
          sum += part;
        }
      }
      CHECK(test::same_bits(rows.matrix().leftCols(kModelDim), whole.matrix().leftCols(kModelDim)));
    }
    CHECK(test::same_parameters(of_parts, gradient));
    // A token has up to 5 rows of order 1 to 10, whose sums are rounded in another order.
    CHECK(test::largest(Matrix<double>(sum - dtokens)) < 1e-12);
  };
  check(test::layer_of<Glu>(kExperts, TopKGate{}).experts());
  check(test::layer_of<Mlp>(kExperts, TopKGate{}).experts());
  check(ExpertPool<Any>({test::random_expert<Glu>(kModelDim, 5, 1), Identity{kModelDim, 2}, Identity{kModelDim, 0.5},
                         test::random_expert<Glu>(kModelDim, 7, 4), test::random_expert<Glu>(kModelDim, 5, 9)}));
}

TEST_CASE("PlanView: a part numbers its experts from 0, and other ranges are refused", "[plan][error]") {
  const std::vector<Index> counts = {2, 0, 3, 1};
  const auto plan = moe::DispatchPlan::from_counts(counts);
  const moe::PlanView part = moe::PlanView(plan).part(1, 2);
  CHECK(part.num_experts() == 2);
  CHECK(part.rows_of(0) == 0);
  CHECK(part.rows_of(1) == 3);
  CHECK(part.first_row() == 2);
  CHECK(part.num_rows() == 3);
  CHECK(part.part(1, 1).rows_of(0) == 3);
  CHECK(part.only(0, 1).num_rows() == 0);
  CHECK_THROWS_WITH(part.part(1, 2), "moe::PlanView::part: experts [1, 1 + 2), expected them in [0, 2)");
  CHECK_THROWS_WITH(part.only(-1, 1), ContainsSubstring("moe::PlanView::only"));
}

TEST_CASE("Hierarchies: gradients of the losses of all routers are central differences", "[layer][property]") {
  CHECK(test::layer_gradient_error(hierarchy(), Step{}, 7, LossesOfAll{}) < 1e-6);
  const auto inner = test::layer_of<Mlp>(3, TopKGate{});
  CHECK(test::layer_gradient_error(moe::WithBranches(inner, moe::LayerExpert(hierarchy())), Step{}, 7, LossesOfAll{}) <
        1e-6);
}

TEST_CASE("Hierarchies: every router that had tokens is found, the outermost first", "[layer]") {
  const auto layer = hierarchy();
  const auto tokens = test::random_matrix<double>(9, kModelDim);
  Matrix<double> out(9, kModelDim);
  decltype(layer)::Tape tape;
  layer.forward(tokens, Step::train(0), out, tape);
  std::vector<Index> experts, rows;
  moe::for_each_routed(layer, tape, [&](const moe::RoutedPass<double>& pass) {
    experts.push_back(pass.logits.cols());
    rows.push_back(pass.routing.num_tokens());
    CHECK(pass.probability.rows() == pass.logits.rows());
    CHECK(pass.losses.logits.size() == 0);
    pass.losses.logits.setOnes(pass.logits.rows(), pass.logits.cols());
  });
  CHECK(experts == std::vector<Index>{3, 2, 3, 4});
  CHECK(rows[0] == 9);
  CHECK(rows[1] + rows[2] + rows[3] == 18);
  layer.forward(tokens, Step::train(1), out, tape);
  moe::for_each_routed(layer, tape, [&](const moe::RoutedPass<double>& pass) {
    CHECK(test::largest(pass.losses.logits) == 0);  // emptied by forward
  });
}

TEST_CASE("RoutedExperts: padding with choices is refused", "[layer][error]") {
  const auto layer = test::layer_of<Glu>(kExperts, TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(2, kModelDim);
  const std::vector<int> ids = {0, 1, 2, 3};
  auto routing = Routing<double>::from(2, ids, {}, kExperts);
  const std::vector<std::uint8_t> valid = {1, 0};
  Step step;
  step.valid = valid;
  Matrix<double> out(2, kModelDim);
  CHECK_THROWS_WITH(layer.mixture().forward(tokens, routing, step, out),
                    "moe::RoutedExperts::forward: token 1 is padding and has choices, expected them dropped (see "
                    "drop_padding)");
  moe::drop_padding(step, routing);
  layer.mixture().forward(tokens, routing, step, out);
  CHECK(test::all_zero(out.row(1)));
}

TEST_CASE("RoutedExperts: a routing with other numbers of choices per token is not that of the tape",
          "[layer][error]") {
  const auto layer = test::layer_of<Glu>(kExperts, TopKGate{.k = 2});
  const auto& mixture = layer.mixture();
  const auto tokens = test::random_matrix<double>(2, kModelDim);
  const std::vector<int> ids = {0, 1, 2, 3};
  const std::vector<Index> one_three = {0, 1, 4}, three_one = {0, 3, 4};
  const auto first = Routing<double>::from(one_three, ids, {}, 5),
             second = Routing<double>::from(three_one, ids, {}, 5);
  decltype(layer)::MixtureType::Tape tape;
  Matrix<double> out(2, kModelDim);
  mixture.forward(tokens, first, Step{}, out, tape);
  auto gradient = moe::zeros_like(mixture);
  CHECK_THROWS_WITH(mixture.require_backward(second, tape, gradient),
                    ContainsSubstring("the choices of token 1 begin at 3, expected 1"));
  mixture.require_backward(first, tape, gradient);
}

TEST_CASE("PlanView: a tape serves the view that filled it", "[plan][expert][error]") {
  const auto check = [](const auto& pool) {
    using Pool = std::remove_cvref_t<decltype(pool)>;
    const auto plan = moe::DispatchPlan::from_counts(std::vector<Index>{2, 2});
    const moe::PlanView first = moe::PlanView(plan).only(0, 1), second = moe::PlanView(plan).only(1, 1);
    const auto tokens = test::random_matrix<double>(4, kModelDim);
    moe::RowBuffer<double> rows;
    rows.resize(4, pool.row_width());
    typename Pool::Tape tape;
    pool.forward(tokens, second, Step{}, rows, tape);
    const Pool gradient = moe::zeros_like(pool);
    CHECK_THROWS_WITH(pool.require_backward(first, tape, gradient),
                      ContainsSubstring("the tape is of rows [2, 4) of a plan, from expert 0 on, expected [0, 2)"));
    pool.require_backward(second, tape, gradient);
  };
  using Any = moe::OneOf<Glu, Identity>;
  check(test::layer_of<Glu>(2, TopKGate{}).experts());
  check(ExpertPool<Any>({test::random_expert<Glu>(kModelDim, 5, 1), Identity{kModelDim, 2}}));
}

TEST_CASE("DispatchPlan: is empty after a routing that it has refused", "[plan][error]") {
  const std::vector<int> ids = {0, 1, 2, 3};
  moe::DispatchPlan plan;
  plan.build(Routing<double>::from(2, ids, {}, 4), 4);
  CHECK_THROWS_AS(plan.build(Routing<double>::from(4, ids, {}, 4), 3), std::invalid_argument);
  CHECK(plan.num_tokens() == 0);
  CHECK(plan.num_rows() == 0);
  CHECK(plan.row_of_assignment().empty());
}

TEST_CASE("WithBranches: recorded choices replay the recorded pass, bit for bit", "[layer][property]") {
  const moe::WithBranches layer(test::layer_of<Glu>(kExperts, moe::NoisyTopKGate{}),
                                test::random_expert<Glu>(kModelDim, 5, 1), Identity{kModelDim});
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const Step step = Step::train(1, 2);
  const test::TrainingPass pass(layer, tokens, tokens, step);
  auto out = test::nan_matrix<double>(kTokens, kModelDim), dtokens = out;
  decltype(layer)::Tape tape;
  layer.replay(tokens, step, pass.tape.layer.routing, out, tape);
  auto gradient = moe::zeros_like(layer);
  layer.backward(tokens, tape, tokens, gradient, dtokens);
  CHECK(test::same_bits(out, pass.out));
  CHECK(test::same_bits(dtokens, pass.dtokens));
  CHECK(test::same_parameters(gradient, pass.gradient));
}

namespace {

/// An expert set made of a mixture of its own, which finds its working memory apart from that of the mixture around it.
struct Nested {
  using Scalar = double;
  moe::RoutedExperts<ExpertPool<Glu>> inner;

  Index size() const { return 2; }
  Index input_dim() const { return inner.input_dim(); }
  Index output_dim() const { return inner.output_dim(); }
  void forward(const moe::ConstMatrixRef<double>& tokens, const moe::PlanView& plan, const moe::Context& context,
               moe::RowBuffer<double>& rows) const {
    for (Index r = plan.first_row(); r < plan.last_row(); ++r) {
      const std::vector<Index> first = {0};
      const std::vector<double> one = {1};
      inner.forward(tokens.row(plan.token_of_row(r)), Routing<double>::from(1, first, one, inner.num_experts()),
                    context, rows.matrix().row(r));
    }
  }
};

}  // namespace

TEST_CASE("RoutedExperts: one inside of another has working memory of its own", "[layer]") {
  const auto pool = ExpertPool<Glu>::random(3, kModelDim, 5, 1);
  const moe::MoeLayer layer(Router::random(2, kModelDim, 1), TopKGate{.k = 2}, Nested{moe::RoutedExperts(pool)});
  const auto tokens = test::random_matrix<double>(9, kModelDim);
  const auto expected = test::run(pool[0], tokens);
  CHECK(test::largest(Matrix<double>(test::forward(layer, tokens) - expected)) < 1e-12);  // weights sum to 1
}
