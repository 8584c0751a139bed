// SPDX-License-Identifier: MIT
#include "moe/layer/soft_moe.hpp"

#include "layer/fixtures.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/layer/branches.hpp"
#include "moe/router/cosine.hpp"
#include "moe/train/squared_error.hpp"
#include "moe/train/trainer.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using moe::ExpertPool;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::SoftMoeLayer;
using moe::Step;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;
using Identity = moe::BasicScaledIdentity<F64>;
using Router = moe::BasicLinearRouter<F64>;

namespace {

constexpr Index kTokens = 23, kExperts = 3, kSlots = 2;

template <class E, class R = Router>
auto layer_of(R router) {
  std::vector<E> experts;
  for (Index e = 0; e < kExperts; ++e)
    experts.push_back(test::random_expert<E>(kModelDim, test::kHiddenDim, std::uint64_t(100 * e + 1)));
  test::randomise(router, 8);
  return SoftMoeLayer(std::move(router), ExpertPool<E>(std::move(experts)));
}
Router router_of(Index slots) { return Router::random(slots, kModelDim, 7, moe::Bias::Zero); }

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

/// Straight from the definition, for the tokens of one group.
template <class Layer>
Matrix<double> by_definition(const Layer& layer, const Matrix<double>& tokens) {
  const Index slots = layer.router().num_experts(), rows = tokens.rows();
  Matrix<double> logits(rows, slots), slot = Matrix<double>::Zero(slots, tokens.cols());
  layer.router().logits(tokens, Step{}, logits);
  Matrix<double> out = Matrix<double>::Zero(rows, layer.output_dim()), d = logits, c = logits;
  for (Index s = 0; s < slots; ++s) {
    double sum = 0;
    for (Index t = 0; t < rows; ++t) sum += std::exp(logits(t, s));
    for (Index t = 0; t < rows; ++t) d(t, s) = std::exp(logits(t, s)) / sum;
    for (Index t = 0; t < rows; ++t) slot.row(s) += d(t, s) * tokens.row(t);
  }
  for (Index t = 0; t < rows; ++t) {
    double sum = 0;
    for (Index s = 0; s < slots; ++s) sum += std::exp(logits(t, s));
    for (Index s = 0; s < slots; ++s) {
      const auto y = test::run(layer.experts()[s / layer.slots_per_expert()], Matrix<double>(slot.row(s)));
      out.row(t) += std::exp(logits(t, s)) / sum * y;
    }
  }
  return out;
}

/// Worst error of dL/dtokens and of dL/dparameter for L = <out, c>.
template <class Layer>
double gradient_error(Layer layer, const Step& step) {
  auto tokens = test::random_matrix<double>(kTokens, layer.input_dim(), 3);
  const auto c = test::random_matrix<double>(kTokens, layer.output_dim(), 4);
  const test::TrainingPass pass(layer, tokens, c, step);
  auto out = c;
  typename Layer::Tape tape;
  const auto loss = [&] {
    layer.forward(tokens, step, out, tape);
    double sum = 0;
    for (Index i = 0; i < out.size(); ++i) sum += out.data()[i] * c.data()[i];
    return sum;
  };
  return std::max(test::gradient_error(loss, tokens, pass.dtokens),
                  test::parameter_gradient_error(loss, layer, pass.gradient));
}

}  // namespace

TEST_CASE("SoftMoeLayer: the worked example of two tokens and two slots", "[layer]") {
  Router router(2, 2, moe::Bias::Off);
  const std::vector<double> phi = {1, 0, 0, 2};
  moe::write_parameter(router.weight(), std::span<const double>(phi));
  const SoftMoeLayer layer(router, ExpertPool<Identity>({Identity{2}, Identity{2}}));
  const auto out = test::forward(layer, Matrix<double>(Matrix<double>::Identity(2, 2)));
  CHECK_THAT(out(0, 0), WithinAbs(.566505, 1e-6));  // given to six digits
  CHECK_THAT(out(0, 1), WithinAbs(.433495, 1e-6));
  CHECK_THAT(out(1, 0), WithinAbs(.192138, 1e-6));
  CHECK_THAT(out(1, 1), WithinAbs(.807862, 1e-6));
  const auto same = test::forward(layer, Matrix<double>(Matrix<double>::Constant(5, 2, 3)));
  for (Index t = 0; t < 5; ++t) CHECK_THAT(same(t, 1), WithinAbs(3, 1e-14));
}

TEST_CASE("SoftMoeLayer: equals its definition, group by group and without padding", "[layer]") {
  const Batch batch;
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto check = [&](const auto& layer) {
    CHECK(test::largest(Matrix<double>(test::forward(layer, tokens) - by_definition(layer, tokens))) < 1e-12);
    const auto out = test::forward(layer, tokens, batch.step);
    for (const Index id : {-7, -5, 40}) {
      std::vector<Index> members;
      for (Index t = 0; t < kTokens; ++t)
        if (batch.step.is_valid(t) && batch.step.group(t) == id) members.push_back(t);
      Matrix<double> own(std::ssize(members), kModelDim);
      for (Index i = 0; i < own.rows(); ++i) own.row(i) = tokens.row(members[static_cast<std::size_t>(i)]);
      const auto expected = by_definition(layer, own);
      for (Index i = 0; i < own.rows(); ++i)
        CHECK(test::largest(Matrix<double>(out.row(members[static_cast<std::size_t>(i)]) - expected.row(i))) < 1e-12);
    }
    for (Index t = 0; t < kTokens; t += 5) CHECK(test::all_zero(out.row(t)));
    Step keyed = batch.step;
    keyed.key = batch.group;  // slots have none
    CHECK(test::same_bits(test::forward(layer, tokens, keyed), out));
  };
  for (const Index slots : {1, 2, 11}) {  // 33 slots do not fill panels
    CAPTURE(slots);
    check(layer_of<Glu>(router_of(kExperts * slots)));
  }
  check(layer_of<Mlp>(moe::BasicCosineRouter<F64>::random(kExperts * kSlots, kModelDim, 4, 1)));
}

TEST_CASE("SoftMoeLayer: D sums to 1 over tokens and C over slots", "[layer][property]") {
  const Batch batch;
  const auto layer = layer_of<Mlp>(router_of(kExperts * kSlots));
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  Matrix<double> out(kTokens, kModelDim);
  decltype(layer)::Tape tape;
  layer.forward(tokens, batch.step, out, tape);
  const auto& slots = tape.soft;
  REQUIRE(slots.num_groups() == 3);
  for (Index r = 0; r < slots.all_slots(); ++r) {
    double sum = 0;
    for (Index i = 0; i < slots.of.groups.size(r / slots.num_slots); ++i) sum += slots.dispatch.row(r)[i];
    CHECK_THAT(sum, WithinAbs(1, 1e-14));
  }
  for (Index r = 0; r < slots.combine.rows(); ++r)
    CHECK_THAT(test::total(slots.combine.matrix().row(r)), WithinAbs(1, 1e-14));
  CHECK(slots.combine.rows() == batch.step.num_valid(kTokens));
}

TEST_CASE("SoftMoeLayer: tokens in another order give outputs in that order", "[layer][property]") {
  const auto layer = layer_of<Glu>(router_of(kExperts * kSlots));
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  Matrix<double> turned(kTokens, kModelDim);
  for (Index t = 0; t < kTokens; ++t) turned.row(t) = tokens.row((7 * t + 2) % kTokens);
  const auto out = test::forward(layer, tokens), turned_out = test::forward(layer, turned);
  for (Index t = 0; t < kTokens; ++t)
    CHECK(test::largest(Matrix<double>(turned_out.row(t) - out.row((7 * t + 2) % kTokens))) < 1e-12);
}

TEST_CASE("SoftMoeLayer: gradients are central differences", "[layer][property]") {
  const Batch batch;
  const auto layer = layer_of<Glu>(router_of(kExperts * kSlots));
  CHECK(gradient_error(layer, batch.step) < 1e-6);
  CHECK(gradient_error(layer_of<Mlp>(router_of(kExperts)), Step{}) < 1e-6);
  CHECK(gradient_error(layer_of<Mlp>(moe::BasicCosineRouter<F64>::random(6, kModelDim, 4, 1)), batch.step) < 1e-6);
  CHECK(gradient_error(moe::WithBranches(layer, layer.experts()[0]), batch.step) < 1e-6);
}

TEST_CASE("SoftMoeLayer: any number of threads gives the same bits, forward and backward", "[layer][property]") {
  const auto layer = layer_of<Glu>(router_of(kExperts * 11));
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

TEST_CASE("SoftMoeLayer: -infinity keeps a token out of a slot, and out of all of them", "[layer]") {
  Matrix<double> logits = test::random_matrix<double>(4, 2, 3);
  logits(1, 0) = logits(2, 0) = logits(2, 1) = -INFINITY;
  moe::detail::SoftSlots<double> slots;
  slots.build("test", logits, Step{}, 2);
  CHECK(slots.dispatch.row(0)[1] == 0);
  CHECK(slots.dispatch.row(1)[1] > 0);
  CHECK(slots.combine.row(1)[0] == 0);
  CHECK(slots.combine.row(1)[1] == 1);
  for (Index s = 0; s < 2; ++s) {
    CHECK(slots.dispatch.row(s)[2] == 0);
    CHECK(slots.combine.row(2)[s] == 0);
  }
}

TEST_CASE("SoftMoeLayer: out may be the tokens, and replay gives the bits again", "[layer]") {
  const auto layer = layer_of<Mlp>(router_of(kExperts * kSlots));
  const Batch batch;
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto out = test::forward(layer, tokens, batch.step);
  Matrix<double> in_place = tokens, trained(kTokens, kModelDim), again = trained;
  typename decltype(layer_of<Mlp>(router_of(6)))::Workspace ws;
  layer.forward(in_place, batch.step, in_place, ws);
  CHECK(test::same_bits(in_place, out));
  typename decltype(layer_of<Mlp>(router_of(6)))::Tape tape;
  layer.forward(tokens, batch.step, trained, tape);
  layer.replay(tokens, again, tape);
  CHECK(test::same_bits(trained, out));
  CHECK(test::same_bits(again, out));
}

TEST_CASE("SoftMoeLayer: padding may hold anything, forward and backward", "[layer]") {
  const auto layer = layer_of<Mlp>(router_of(kExperts * kSlots));
  const Batch batch;
  auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1), dout = tokens;
  const test::TrainingPass clean(layer, tokens, dout, batch.step);
  for (Index t = 0; t < kTokens; t += 5) dout.row(t).setConstant(1e30);
  const test::TrainingPass pass(layer, tokens, dout, batch.step);
  CHECK(test::same_bits(pass.dtokens, clean.dtokens));
  CHECK(test::same_parameters(pass.gradient, clean.gradient));
  for (Index t = 0; t < kTokens; t += 5) tokens.row(t).setConstant(test::kNan<double>);
  const test::TrainingPass unread(layer, tokens, dout, batch.step);
  CHECK(test::same_bits(unread.out, clean.out));
  CHECK(test::same_bits(unread.dtokens, clean.dtokens));
  CHECK(test::same_parameters(unread.gradient, clean.gradient));
}

TEST_CASE("SoftMoeLayer: a trainer lowers its loss, and leaves out the gradient of tokens alone", "[layer]") {
  const auto start = layer_of<Mlp>(router_of(kExperts * kSlots));
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1),
             target = test::random_matrix<double>(kTokens, kModelDim, 2);
  auto with = start, without = moe::zeros_like(start);
  test::TrainingPass pass(start, tokens, target);
  start.backward(tokens, pass.tape, target, without);
  CHECK(test::same_parameters(without, pass.gradient));
  moe::Trainer trainer(with, moe::AdamW{.weight_decay = 0});
  std::vector<double> loss;
  for (std::uint64_t update = 0; update < 20; ++update) {
    loss.push_back(trainer.accumulate(tokens, Step::train(update), [&](const auto& out, auto& dout) {
      return moe::squared_error<double>(out, target, Step{}, dout);
    }));
    trainer.update(0.02);
  }
  CHECK(loss.back() < 0.8 * loss.front());
}

TEST_CASE("SoftMoeLayer: no tokens, one token, only padding", "[layer]") {
  const auto layer = layer_of<Mlp>(router_of(kExperts));
  const auto one = test::random_matrix<double>(1, kModelDim, 1);
  CHECK(test::forward(layer, Matrix<double>(0, kModelDim)).rows() == 0);
  CHECK(test::largest(Matrix<double>(test::forward(layer, one) - by_definition(layer, one))) < 1e-12);
  const std::vector<std::uint8_t> none = {0};
  Step step;
  step.valid = none;
  const test::TrainingPass pass(layer, one, one, step);
  CHECK(test::all_zero(pass.out));
  CHECK(test::all_zero(pass.dtokens));
  CHECK(test::num_nonzero(pass.gradient) == 0);
}

TEST_CASE("SoftMoeLayer: parts that do not fit, other tapes and NaN are refused", "[layer][error]") {
  const auto pool = ExpertPool<Mlp>::random(3, kModelDim, 5, 1);
  CHECK_THROWS_WITH(SoftMoeLayer(router_of(4), pool),
                    "moe::SoftMoeLayer: the router has 4 logits, expected a multiple of num_experts = 3, one per slot");
  CHECK_THROWS_WITH(SoftMoeLayer(Router::random(3, 4, 1), pool), ContainsSubstring("the router reads 4 columns"));
  const auto layer = layer_of<Mlp>(router_of(kExperts));
  auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1), out = tokens;
  decltype(layer)::Tape tape;
  auto gradient = moe::zeros_like(layer);
  CHECK_THROWS_WITH(layer.require_backward(kTokens, tape, gradient),
                    ContainsSubstring("no forward pass that has ended"));
  layer.forward(tokens, Step{}, out, tape);
  CHECK_THROWS_WITH(layer.require_backward(3, tape, gradient), ContainsSubstring("tokens has 3 rows, expected 23"));
  CHECK_THROWS_WITH(layer.require_backward(kTokens, tape, layer), ContainsSubstring("gradient is the layer itself"));
  CHECK_THROWS_WITH(layer_of<Mlp>(router_of(6)).require_backward(kTokens, tape, gradient),
                    ContainsSubstring("the tape is of 3 experts and 3 slots"));
  decltype(layer)::Workspace ws;
  ws.max_tokens = 4;
  CHECK_THROWS_WITH(layer.forward(tokens, out, ws), ContainsSubstring("workspace.max_tokens is 4, expected 0"));
  ws.max_tokens = 0;
  tokens(4, 2) = NAN;
  CHECK_THROWS_WITH(layer.forward(tokens, out, ws),
                    ContainsSubstring("moe::SoftMoeLayer::forward: logit of token 4 for slot 0 is nan"));
}
