// SPDX-License-Identifier: MIT
#include "moe/layer/merged_experts.hpp"

#include "layer/fixtures.hpp"
#include "layer/gradient_check.hpp"
#include "moe/expert/frozen.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/linear.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/gate/softmax.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::ExpertPool;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::MergedExperts;
using moe::Routing;
using moe::Step;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Linear = moe::BasicLinear<F64>;
using Mlp = moe::BasicMlp<F64>;
using Router = moe::BasicLinearRouter<F64>;

namespace {

constexpr Index kTokens = 17, kExperts = 4;

template <class E>
ExpertPool<E> pool_of(Index num_experts) {
  std::vector<E> experts;
  for (Index e = 0; e < num_experts; ++e)
    experts.push_back(test::random_expert<E>(kModelDim, test::kHiddenDim, std::uint64_t(100 * e + 1)));
  return ExpertPool<E>(std::move(experts));
}

template <class E, class Gate = moe::SoftmaxGate>
auto layer_of(Index num_experts, Gate gate = {}) {
  auto router = Router::random(num_experts, pool_of<E>(1).input_dim(), 7, moe::Bias::Zero);
  test::randomise(router, 8);
  return moe::MoeLayer(std::move(router), std::move(gate), MergedExperts(pool_of<E>(num_experts)));
}

/// Three groups that stand in turns, and padding.
struct Batch {
  std::vector<std::int64_t> group;
  std::vector<std::uint8_t> valid = test::every_nth_padding(kTokens, 5);
  Step step;

  Batch() {
    for (Index t = 0; t < kTokens; ++t) group.push_back(t % 3 == 1 ? 40 : t % 3 - 7);
    step.group_id = group;
    step.valid = valid;
  }
};

/// Weights of a softmax, as a routing to all experts; choices of padding are dropped.
Routing<double> dense_routing(Index num_experts, const Step& step) {
  auto routing =
      test::top_k_routing(test::probabilities_of(test::random_logits<double>(kTokens, num_experts, 3)), num_experts);
  for (Index a = 0; a < routing.num_assignments(); ++a)
    if (!step.is_valid(a / num_experts)) routing.drop(a, moe::kDroppedByGate);
  return routing;
}

/// The mean weights of the group of token t, in the plainest way.
std::vector<double> shares(const Routing<double>& routing, const Step& step, Index t, Index num_experts) {
  std::vector<double> share(static_cast<std::size_t>(num_experts));
  double size = 0;
  for (Index u = 0; u < routing.num_tokens(); ++u) {
    if (!step.is_valid(u) || step.group(u) != step.group(t)) continue;
    ++size;
    for (std::size_t s = 0; s < routing.experts(u).size(); ++s)
      share[static_cast<std::size_t>(routing.experts(u)[s])] += routing.weights(u)[s];
  }
  for (double& p : share) p /= size;
  return share;
}

template <class M>
Matrix<double> run(const M& mixture, const Matrix<double>& tokens, const Routing<double>& routing, const Step& step) {
  auto out = test::nan_matrix<double>(tokens.rows(), mixture.output_dim());
  mixture.forward(tokens, routing, step, out);
  return out;
}

}  // namespace

TEST_CASE("MergedExperts: runs one expert with the mean parameters of each group", "[layer]") {
  const Batch batch;
  const MergedExperts mixture(pool_of<Glu>(kExperts));
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto routing = dense_routing(kExperts, batch.step);
  const auto out = run(mixture, tokens, routing, batch.step);
  for (Index t = 0; t < kTokens; ++t) {
    if (!batch.step.is_valid(t)) {
      CHECK(test::all_zero(out.row(t)));
      continue;
    }
    const auto share = shares(routing, batch.step, t, kExperts);
    Glu merged = mixture.experts()[0];
    std::vector<double> sum(test::flatten(merged).size());
    for (Index e = 0; e < kExperts; ++e) {
      const auto own = test::flatten(mixture.experts()[e]);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += share[static_cast<std::size_t>(e)] * own[i];
    }
    test::fill(merged, [&](Index i) { return sum[static_cast<std::size_t>(i)]; });
    CHECK(test::largest(Matrix<double>(out.row(t) - test::run(merged, Matrix<double>(tokens.row(t))))) < 1e-12);
  }
}

namespace {

/// Gives every row its key, as an expert sees it.
struct KeyExpert {
  using Scalar = double;
  double scale = 1;
  Index input_dim() const { return kModelDim; }
  Index output_dim() const { return kModelDim; }
  void forward(const moe::ConstMatrixRef<double>& rows, moe::MatrixRef<double> out, const moe::Context& context) const {
    for (Index r = 0; r < rows.rows(); ++r)
      out.row(r).setConstant(scale * static_cast<double>(context.step.key[static_cast<std::size_t>(r)]));
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("scale", self.scale...);
  }
};

}  // namespace

TEST_CASE("MergedExperts: the expert sees the keys of its rows", "[layer]") {
  Batch batch;
  const std::vector<std::int64_t> keys = batch.group;
  batch.step.key = keys;
  const MergedExperts mixture{ExpertPool<KeyExpert>{std::vector<KeyExpert>(std::size_t(kExperts))}};
  const auto out =
      run(mixture, test::random_matrix<double>(kTokens, kModelDim, 1), dense_routing(kExperts, batch.step), batch.step);
  for (Index t = 0; t < kTokens; ++t)
    if (batch.step.is_valid(t)) CHECK(std::abs(out(t, 0) - static_cast<double>(keys[std::size_t(t)])) < 1e-12);
}

TEST_CASE("MergedExperts: linear experts give the weighted sum of their outputs", "[layer][property]") {
  std::vector<Linear> experts;
  for (Index e = 0; e < kExperts; ++e)
    experts.push_back(test::random_expert<Linear>(6, kModelDim, 10 + std::uint64_t(e)));
  const MergedExperts mixture{ExpertPool<Linear>(experts)};
  const Batch batch;
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto routing = dense_routing(kExperts, batch.step);
  const auto out = run(mixture, tokens, routing, batch.step);
  Matrix<double> sum = Matrix<double>::Zero(kTokens, 6);
  for (Index e = 0; e < kExperts; ++e) {
    const auto own = test::run(experts[static_cast<std::size_t>(e)], tokens);
    for (Index t = 0; t < kTokens; ++t)
      if (batch.step.is_valid(t))
        sum.row(t) += shares(routing, batch.step, t, kExperts)[static_cast<std::size_t>(e)] * own.row(t);
  }
  CHECK(test::largest(Matrix<double>(out - sum)) < 1e-12);
}

TEST_CASE("MergedExperts: an expert with all of the weight is that expert, bit for bit", "[layer][property]") {
  const MergedExperts mixture(pool_of<Mlp>(kExperts));
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  for (Index e = 0; e < kExperts; ++e) {
    const std::vector<Index> ids(kTokens, e);
    const auto routing = Routing<double>::from(kTokens, ids, std::vector<double>(kTokens, 1.0), kExperts);
    CHECK(test::same_bits(run(mixture, tokens, routing, {}), test::run(mixture.experts()[e], tokens)));
  }
}

TEST_CASE("MergedExperts: gradients of a layer are central differences", "[layer][property]") {
  const Batch batch;
  CHECK(test::layer_gradient_error(layer_of<Glu>(kExperts), batch.step, kTokens) < 1e-6);
  CHECK(test::layer_gradient_error(layer_of<Mlp>(3), Step{}) < 1e-6);
  CHECK(test::layer_gradient_error(layer_of<Linear>(1), Step{}) < 1e-6);
  CHECK(test::layer_gradient_error(layer_of<Mlp>(5, moe::TopKGate{.k = 2}), batch.step, kTokens) < 1e-6);
}

TEST_CASE("MergedExperts: any number of threads gives the same bits, forward and backward", "[layer][property]") {
  const auto layer = layer_of<Glu>(kExperts);
  const Batch batch;
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto passes = test::on_thread_counts([&] { return test::TrainingPass(layer, tokens, tokens, batch.step); });
  for (const auto& pass : passes) {
    CHECK(test::same_bits(pass.out, passes[0].out));
    CHECK(test::same_bits(pass.out, test::forward(layer, tokens, batch.step)));
    CHECK(test::same_bits(pass.dtokens, passes[0].dtokens));
    CHECK(test::same_parameters(pass.gradient, passes[0].gradient));
  }
}

TEST_CASE("MergedExperts: groups do not see each other, and padding is not read", "[layer]") {
  const auto layer = layer_of<Mlp>(kExperts);
  Batch batch;
  auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto out = test::forward(layer, tokens, batch.step);
  const test::TrainingPass clean(layer, tokens, out, batch.step);
  for (Index t = 0; t < kTokens; ++t)
    if (!batch.step.is_valid(t)) tokens.row(t).setConstant(test::kNan<double>);
  CHECK(test::same_bits(test::forward(layer, tokens, batch.step), out));
  const test::TrainingPass pass(layer, tokens, out, batch.step);
  CHECK(test::same_bits(pass.dtokens, clean.dtokens));
  CHECK(test::same_parameters(pass.gradient, clean.gradient));
  for (Index t = 0; t < kTokens; ++t)
    if (batch.step.group(t) == 40 && batch.step.is_valid(t)) tokens.row(t) *= 2;
  const auto other = test::forward(layer, tokens, batch.step);
  for (Index t = 0; t < kTokens; ++t)
    if (batch.step.is_valid(t)) CHECK(test::same_bits(other.row(t), out.row(t)) == (batch.step.group(t) != 40));
}

TEST_CASE("MergedExperts: experts of other shapes, or with state, are refused", "[layer][error]") {
  CHECK_THROWS_WITH(MergedExperts(ExpertPool<Mlp>({Mlp(4, 5), Mlp(4, 6)})),
                    "moe::MergedExperts: expert 1 has other parameters than expert 0, expected the same names and "
                    "shapes");
  CHECK_THROWS_WITH(MergedExperts(ExpertPool<moe::Frozen<Mlp>>({moe::Frozen(Mlp(2, 3))})),
                    ContainsSubstring("numbers that are not learned, expected none"));
  MergedExperts mixture(pool_of<Mlp>(2));
  mixture.experts()[1] = Mlp(kModelDim, 3);
  Matrix<double> out(kTokens, kModelDim);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  CHECK_THROWS_WITH(mixture.forward(tokens, dense_routing(2, {}), Step{}, out),
                    ContainsSubstring("moe::MergedExperts::forward: expert 1 has other parameters"));
}

TEST_CASE("MergedExperts: tapes and gradients of others are refused, no tokens are nothing", "[layer][error]") {
  const MergedExperts mixture(pool_of<Mlp>(2));
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto routing = dense_routing(2, {});
  decltype(mixture)::Tape tape;
  auto gradient = moe::zeros_like(mixture);
  CHECK_THROWS_WITH(mixture.require_backward(routing, tape, gradient),
                    ContainsSubstring("holds no forward pass that has ended"));
  Matrix<double> out(kTokens, kModelDim), none(0, kModelDim);
  mixture.forward(tokens, routing, Step{}, out, tape);
  CHECK_THROWS_WITH(mixture.require_backward(routing, tape, mixture), ContainsSubstring("the mixture itself"));
  const MergedExperts three(pool_of<Mlp>(3));
  CHECK_THROWS_WITH(mixture.require_backward(routing, tape, three), ContainsSubstring("3 experts, expected 2"));
  CHECK_THROWS_WITH(three.require_backward(routing, tape, moe::zeros_like(three)),
                    ContainsSubstring("the tape is of 2 experts"));
  Routing<double> empty;
  mixture.forward(Matrix<double>(0, kModelDim), empty, Step{}, none, tape);
  std::vector<double> dweight;
  mixture.backward(Matrix<double>(0, kModelDim), empty, Step{}, tape, none, gradient, dweight, none);
}

TEST_CASE("MergedExperts: a routing of other choices is refused in backward", "[layer][error]") {
  const MergedExperts mixture(pool_of<Mlp>(2));
  const auto tokens = test::random_matrix<double>(2, kModelDim, 1);
  const auto of = [](std::vector<Index> begin, Index last) {
    Routing<double> routing;
    routing.resize_ragged(2, [&](Index t) { return begin[std::size_t(t) + 1] - begin[std::size_t(t)]; });
    std::ranges::fill(routing.experts(), 0);
    routing.experts().back() = last;
    std::ranges::fill(routing.weights(), 0.5);
    return routing;
  };
  const auto forward = of({0, 1, 3}, 1);
  MergedExperts<Mlp>::Tape tape;
  moe::Scratch scratch;
  const Step step;
  Matrix<double> out(2, kModelDim), dtokens = out;
  mixture.forward(tokens, forward, {step, scratch}, out, tape);
  auto gradient = moe::zeros_like(mixture);
  std::vector<double> dweight(3);
  CHECK_THROWS_WITH(mixture.backward(tokens, of({0, 2, 3}, 1), {step, scratch}, tape, out, gradient, dweight, dtokens),
                    ContainsSubstring("MergedExperts::backward: the choices of token 0 end at 2, expected 1"));
  CHECK_THROWS_WITH(mixture.backward(tokens, of({0, 1, 3}, 3), {step, scratch}, tape, out, gradient, dweight, dtokens),
                    ContainsSubstring("MergedExperts::backward") && ContainsSubstring("3"));
  CHECK_NOTHROW(mixture.backward(tokens, forward, {step, scratch}, tape, out, gradient, dweight, dtokens));
}

TEST_CASE("MergedExperts: a group without weight gets an expert of zeros, and out may be the tokens", "[layer]") {
  const MergedExperts mixture(pool_of<Mlp>(kExperts));
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  auto routing = dense_routing(kExperts, Step{});
  Matrix<double> in_place = tokens;
  moe::Scratch scratch;
  const Step step;
  mixture.forward(in_place, routing, {step, scratch}, in_place);
  CHECK(test::same_bits(in_place, run(mixture, tokens, routing, step)));
  for (Index a = 0; a < routing.num_assignments(); ++a) routing.drop(a, moe::kDroppedByGate);
  CHECK(test::all_zero(run(mixture, tokens, routing, step)));
}

TEST_CASE("MergedExperts: takes and joins experts", "[layer]") {
  const MergedExperts mixture(pool_of<Mlp>(4));
  const std::vector<Index> ids = {3, 1}, others = {0, 2};
  const auto joined = mixture.take(ids).concatenate(mixture.take(others));
  const std::vector<Index> back = {3, 1, 0, 2};
  CHECK(test::same_parameters(joined, mixture.take(back)));
}
