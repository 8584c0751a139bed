// SPDX-License-Identifier: MIT
#include "moe/train/trainer.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "layer/fixtures.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/layer/branches.hpp"
#include "moe/routing/balance/importance.hpp"
#include "moe/train/squared_error.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"
#include "support/sample_layer.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using test::flatten;
using test::kModelDim;

constexpr double kInf = std::numeric_limits<double>::infinity();

template <class Codec>
using LayerOf = test::Layer<moe::BasicMlp<Codec>, TopKGate, Codec>;

template <class Codec>
LayerOf<Codec> sample_layer(Index k = 2) {
  return test::layer_of<moe::BasicMlp<Codec>, TopKGate, Codec>(4, TopKGate{.k = k});
}

auto with_branches() {
  return moe::WithBranches(sample_layer<moe::F32>(), moe::BasicScaledIdentity<moe::F32>{kModelDim, 0.5f});
}

/// A batch of a regression, with padding.
template <class S>
struct Batch {
  Matrix<S> tokens, target;
  std::vector<std::uint8_t> valid;

  explicit Batch(Index count, Index padding = 0)
      : tokens(test::random_matrix<S>(count, kModelDim, 1)),
        target(test::random_matrix<S>(count, kModelDim, 2)),
        valid(static_cast<std::size_t>(count), 1) {
    for (Index t = 0; t < padding; ++t) valid[static_cast<std::size_t>(2 * t)] = 0;
  }
  Step step(std::uint64_t update = 0) const {
    Step result = Step::train(update, 3);
    result.valid = valid;
    return result;
  }
  auto loss() const {
    return [this](const Matrix<S>& output, Matrix<S>& doutput) {
      return moe::squared_error(output, target, step(), doutput);
    };
  }
  Batch part(Index first, Index count) const {
    Batch result(0);
    result.tokens = tokens.middleRows(first, count);
    result.target = target.middleRows(first, count);
    result.valid.assign(valid.begin() + first, valid.begin() + first + count);
    return result;
  }
  double num_valid() const { return static_cast<double>(step().num_valid(tokens.rows())); }
};

/// The MoeLayer of a layer, and its tape.
template <class Layer>
const auto& routed(const Layer& layer) {
  if constexpr (requires { layer.layer(); })
    return layer.layer();
  else
    return layer;
}
template <class Tape>
auto& routed_tape(Tape& tape) {
  if constexpr (requires { tape.layer; })
    return tape.layer;
  else
    return tape;
}

/// Training as one writes it without a trainer.
template <class Layer, class Optimiser>
std::vector<double> train_by_hand(Layer layer, const Optimiser& optimiser, const moe::TrainerOptions& options) {
  using S = typename Layer::Scalar;
  const Batch<S> batch(37, 3);
  Layer gradient = moe::zeros_like(layer);
  typename Layer::Tape tape;
  typename Optimiser::template State<Layer> state(layer);
  Matrix<S> output(37, kModelDim), doutput, dtokens(37, kModelDim), probabilities;
  for (std::uint64_t update = 0; update < 5; ++update) {
    const Step step = batch.step(update);
    layer.forward(batch.tokens, step, output, tape);
    moe::squared_error(output, batch.target, step, doutput);
    auto& losses = routed_tape(tape).losses;
    if (options.balance != 0) {
      routed(layer).gate().probabilities(routed_tape(tape).logits, step, probabilities);
      moe::load_balancing_loss<S>(probabilities, routed_tape(tape).routing, step, options.balance, losses);
    }
    if (options.z_loss != 0) moe::z_loss<S>(routed_tape(tape).logits, step, options.z_loss, losses);
    moe::set_zero(gradient);
    layer.backward(batch.tokens, tape, doutput, gradient, dtokens);
    moe::clip_by_norm(gradient, options.max_norm);
    optimiser.step(layer, gradient, state, 0.01);
  }
  return flatten(layer);
}

template <class Layer, class Optimiser>
std::vector<double> train(Layer layer, const Optimiser& optimiser, const moe::TrainerOptions& options) {
  const Batch<typename Layer::Scalar> batch(37, 3);
  moe::Trainer trainer(layer, optimiser, options);
  for (std::uint64_t update = 0; update < 5; ++update) {
    trainer.accumulate(batch.tokens, batch.step(update), batch.loss());
    REQUIRE(trainer.update(0.01).taken);
  }
  return flatten(layer);
}

/// A layer as a user may write it: one matrix, no gate, dtokens always written.
struct Scale {
  using Scalar = double;
  struct Tape {};
  double factor = 2;

  Index input_dim() const { return 3; }
  Index output_dim() const { return 3; }
  void forward(const moe::ConstMatrixRef<double>& tokens, const Step&, moe::MatrixRef<double> out, Tape&) const {
    out = factor * tokens;
  }
  void backward(const moe::ConstMatrixRef<double>& tokens, Tape&, const moe::ConstMatrixRef<double>& dout,
                Scale& gradient, moe::MatrixRef<double> dtokens) const {
    for (Index t = 0; t < tokens.rows(); ++t)
      for (Index j = 0; j < 3; ++j) gradient.factor += tokens(t, j) * dout(t, j);
    dtokens = factor * dout;
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("factor", self.factor...);
  }
};

/// The same, which gives up half-way when it is told to.
struct Failing : Scale {
  bool* fails = nullptr;

  void backward(const moe::ConstMatrixRef<double>& tokens, Tape& tape, const moe::ConstMatrixRef<double>& dout,
                Failing& gradient, moe::MatrixRef<double> dtokens) const {
    Scale::backward(tokens, tape, dout, gradient, dtokens);
    if (*fails) throw std::runtime_error("gave up");
  }
};

/// An optimiser as a user may write it.
struct Descent {
  template <class Layer>
  struct State {
    explicit State(const Layer&) {}
  };
  template <class Layer>
  bool step(Layer& layer, const Layer& gradient, State<Layer>&, double rate) const {
    layer.factor -= rate * gradient.factor;
    return true;
  }
};

/// One that tells how it was asked to treat numbers that are not finite.
struct Asked : Descent {
  moe::NonFinite non_finite = moe::NonFinite::Refuse;
  moe::NonFinite* seen = nullptr;
  template <class Layer>
  bool step(Layer&, const Layer&, Descent::State<Layer>&, double) const {
    *seen = non_finite;
    return true;
  }
};

double sum_loss(const Matrix<double>& output, Matrix<double>& doutput) {
  doutput.setOnes();
  double sum = 0;
  for (Index t = 0; t < output.rows(); ++t)
    for (Index j = 0; j < output.cols(); ++j) sum += output(t, j);
  return sum;
}

}  // namespace

TEST_CASE("Trainer: the same bits as the loop written by hand", "[train][property]") {
  const moe::TrainerOptions clipped{.max_norm = 0.5}, all{.max_norm = 0.5, .balance = 0.1, .z_loss = 0.01};
  const moe::AdamW adam{.weight_decay = 0.1};
  const moe::Sgd sgd{.momentum = 0.9};
  for (const auto& options : {moe::TrainerOptions{}, clipped, all}) {
    CAPTURE(options.max_norm, options.balance, options.z_loss);
    CHECK(train(sample_layer<moe::F32>(), adam, options) == train_by_hand(sample_layer<moe::F32>(), adam, options));
    CHECK(train(sample_layer<moe::F64>(), sgd, options) == train_by_hand(sample_layer<moe::F64>(), sgd, options));
    CHECK(train(with_branches(), sgd, options) == train_by_hand(with_branches(), sgd, options));
  }
}

TEST_CASE("Trainer: the same bits for any number of threads", "[train][property]") {
  // More tokens and parameters than go to one thread.
  const moe::TrainerOptions options{.max_norm = 0.5, .balance = 0.1, .z_loss = 0.01};
  const moe::MoeLayer layer(moe::LinearRouter::random(8, kModelDim, 1), TopKGate{},
                            moe::ExpertPool<moe::Mlp>::random(8, kModelDim, 400, 2));
  REQUIRE(moe::num_parameters(layer) > 3 * moe::detail::kElementGrain);
  const Batch<float> batch(900, 40);
  const auto trained = test::on_thread_counts([&] {
    auto own = layer;
    moe::Trainer trainer(own, moe::AdamW{}, options);
    for (std::uint64_t update = 0; update < 2; ++update) {
      trainer.accumulate(batch.tokens, batch.step(update), batch.loss());
      trainer.update(0.01);
    }
    return flatten(own);
  });
  CHECK(test::all_equal(trained));
}

TEST_CASE("Trainer: the gradient is that of scale times all losses, by central differences", "[train][property]") {
  auto layer = sample_layer<moe::F64>(4);  // all experts: no choice that a step of the difference could change
  const Batch<double> batch(9, 2);
  const moe::TrainerOptions options{.balance = 0.3, .z_loss = 0.2};
  const auto importance = [](const moe::RoutedPass<double>& pass) {
    return moe::importance_loss<double>(pass.routing, 4, pass.step, 0.1, pass.losses);  // any other loss
  };
  const auto run = [&](const LayerOf<moe::F64>& of) {
    LayerOf<moe::F64> copy = of;
    moe::Trainer trainer(copy, moe::Sgd{}, options);
    const double loss = trainer.accumulate(batch.tokens, batch.step(), batch.loss(), importance, 0.25);
    const moe::AuxiliaryLosses& auxiliary = trainer.auxiliary();
    return std::pair(0.25 * (loss + 0.3 * auxiliary.balance + 0.2 * auxiliary.z_loss + 0.1 * auxiliary.other),
                     trainer.gradient());
  };
  const auto gradient = run(layer).second;
  std::string name;
  const double error = test::parameter_gradient_error([&] { return run(layer).first; }, layer, gradient, &name);
  CAPTURE(name);
  CHECK(error < 1e-6);
}

TEST_CASE("Trainer: auxiliary losses of one batch are gone in the next", "[train]") {
  auto layer = sample_layer<moe::F32>();
  const Batch<float> batch(9), larger(12);
  moe::Trainer trainer(layer), fresh(layer);
  trainer.accumulate(batch.tokens, batch.step(), batch.loss(), [](const moe::RoutedPass<float>& pass) {
    return moe::importance_loss<float>(pass.routing, 4, pass.step, 3, pass.losses) +
           moe::importance_loss<float>(pass.probability, pass.step, 3, pass.losses) +
           moe::z_loss<float>(pass.logits, pass.step, 3, pass.losses);
  });
  CHECK(trainer.auxiliary().other > 0);
  for (const Batch<float>* next : {&batch, &larger}) {
    trainer.discard();
    fresh.discard();
    trainer.accumulate(next->tokens, next->step(), next->loss());
    fresh.accumulate(next->tokens, next->step(), next->loss());
    CHECK(flatten(trainer.gradient()) == flatten(fresh.gradient()));
    CHECK(trainer.auxiliary().other == 0);
  }
}

TEST_CASE("Trainer: micro-batches scaled by their valid tokens are the whole batch", "[train][property]") {
  auto layer = sample_layer<moe::F64>();
  const Batch<double> whole(40, 5);
  const double all = whole.num_valid();
  std::vector<double> counts;
  const auto balance = [&](const moe::RoutedPass<double>& pass) {
    return moe::load_balancing_loss<double>(pass.probability, pass.routing, pass.step, 0.1, pass.losses,
                                            {.counts = counts});
  };
  moe::Trainer trainer(layer, moe::Sgd{}, {.z_loss = 0.01});
  const double loss = trainer.accumulate(whole.tokens, whole.step(), whole.loss(), balance);
  counts = moe::count_choices(trainer.tape().routing, 4, whole.step());
  const double auxiliary = trainer.auxiliary().other;
  const auto expected = flatten(trainer.gradient());
  trainer.discard();
  double mean = 0, mean_auxiliary = 0;
  for (const auto& [first, count] : {std::pair<Index, Index>{0, 7}, {7, 20}, {27, 0}, {27, 13}}) {
    const Batch<double> part = whole.part(first, count);
    const double share = part.num_valid() / all;
    mean += share * trainer.accumulate(part.tokens, part.step(), part.loss(), balance, share);
    mean_auxiliary += share * trainer.auxiliary().other;
  }
  CHECK_THAT(mean, WithinRel(loss, 1e-13));  // some hundred terms in another order
  CHECK_THAT(mean_auxiliary, WithinRel(auxiliary, 1e-13));
  const auto found = flatten(trainer.gradient());
  for (std::size_t i = 0; i < found.size(); ++i) REQUIRE_THAT(found[i], WithinAbs(expected[i], 1e-12));
}

TEST_CASE("Trainer: a top-1 router learns with Switch's gate, and is refused without gradient", "[train]") {
  const Batch<double> batch(12);
  const auto router_moves = [&](const TopKGate& gate) {
    auto layer = test::layer_of<moe::BasicMlp<moe::F64>>(4, gate);
    const auto before = flatten(layer.router());
    moe::Trainer trainer(layer, moe::Sgd{});
    trainer.accumulate(batch.tokens, batch.step(), batch.loss());
    trainer.update(0.1);
    return flatten(layer.router()) != before;
  };
  CHECK(router_moves(TopKGate::switch_transformer()));
  CHECK_FALSE(router_moves({.k = 1, .constant_weights = moe::ConstantWeights::Accept}));
  auto layer = test::layer_of<moe::BasicMlp<moe::F64>>(4, TopKGate{.k = 1});
  moe::Trainer trainer(layer, moe::Sgd{});
  CHECK_THROWS_WITH(trainer.accumulate(batch.tokens, batch.step(), batch.loss()),
                    ContainsSubstring("moe::TopKGate::backward: k is 1"));
  CHECK_THROWS_WITH(trainer.update(0.1), ContainsSubstring("nothing was accumulated"));
}

TEST_CASE("Trainer: update clips, tells the norm and starts anew", "[train]") {
  Scale layer;
  moe::Trainer trainer(layer, moe::Sgd{}, {.max_norm = 2});
  const Matrix<double> tokens = Matrix<double>::Ones(2, 3);
  CHECK(trainer.accumulate(tokens, Step::train(0), sum_loss) == 12);
  trainer.accumulate(tokens, Step::train(0), sum_loss, 0.5);
  CHECK(trainer.gradient().factor == 9);
  const moe::UpdateResult result = trainer.update(0.25);
  CHECK(result.taken);
  CHECK(result.gradient_norm == 9);
  CHECK_THAT(layer.factor, WithinRel(2 - 0.25 * 2, 1e-15));
  CHECK(trainer.gradient().factor == 0);
}

TEST_CASE("Trainer: layers and optimisers of one's own", "[train]") {
  Scale layer;
  moe::Trainer trainer(layer, Descent{});
  const Matrix<double> tokens = Matrix<double>::Ones(2, 3);
  trainer.accumulate(tokens, Step::train(0), sum_loss);
  CHECK(trainer.update(0.5).taken);
  CHECK(layer.factor == -1);
  CHECK_THROWS_WITH(moe::Trainer(layer, Descent{}, {.balance = 0.1}), ContainsSubstring("balance is 0.1"));
  trainer.accumulate(tokens, Step::train(0), sum_loss, 1e200);
  trainer.accumulate(tokens, Step::train(0), sum_loss, 1e200);
  CHECK_THROWS_WITH(trainer.update(0.5), ContainsSubstring("the norm of the gradient is inf"));
  CHECK(layer.factor == -1);
}

TEST_CASE("Trainer: a finite norm spares the optimiser its own look", "[train]") {
  Scale layer;
  moe::NonFinite seen = moe::NonFinite::Refuse;
  Asked optimiser;
  optimiser.seen = &seen;
  moe::Trainer trainer(layer, optimiser);
  trainer.accumulate(Matrix<double>::Ones(2, 3), Step::train(0), sum_loss);
  trainer.update(0.5);
  CHECK(seen == moe::NonFinite::Apply);
  CHECK(trainer.optimiser().non_finite == moe::NonFinite::Refuse);
}

TEMPLATE_TEST_CASE("Trainer: a gradient that is not finite leaves the layer alone", "[train][error]", moe::Sgd,
                   moe::AdamW) {
  auto layer = sample_layer<moe::F32>();
  const auto before = flatten(layer);
  Batch<float> good(6), bad(6);
  bad.target(3, 2) = test::kNan<float>;
  {
    moe::Trainer trainer(layer, TestType{}, {.max_norm = 1});
    trainer.accumulate(bad.tokens, bad.step(), bad.loss());
    CHECK_THROWS_WITH(trainer.update(0.1),
                      ContainsSubstring("moe::Trainer::update: the gradient of '") && ContainsSubstring("holds nan"));
    CHECK(flatten(layer) == before);
    trainer.discard();
    trainer.accumulate(good.tokens, good.step(), good.loss());
    CHECK(trainer.update(0).taken);
  }
  TestType skipping;
  skipping.non_finite = moe::NonFinite::Skip;
  moe::Trainer trainer(layer, skipping);
  trainer.accumulate(bad.tokens, bad.step(), bad.loss());
  const moe::UpdateResult result = trainer.update(0.1);
  CHECK_FALSE(result.taken);
  CHECK(std::isnan(result.gradient_norm));
  CHECK(flatten(layer) == before);
  trainer.accumulate(good.tokens, good.step(), good.loss());
  CHECK(trainer.update(0.1).taken);
  CHECK(flatten(layer) != before);
}

TEST_CASE("Trainer: NonFinite::Apply goes on as if they were numbers", "[train]") {
  Scale layer;
  moe::Trainer trainer(layer, moe::Sgd{.non_finite = moe::NonFinite::Apply});
  trainer.accumulate(Matrix<double>::Ones(2, 3), Step::train(0), [](const Matrix<double>&, Matrix<double>& doutput) {
    doutput.setConstant(kInf);
    return 0.0;
  });
  CHECK(trainer.update(0.5).taken);
  CHECK(layer.factor == -kInf);
}

TEST_CASE("Trainer: empty batches and batches of padding alone", "[train]") {
  auto layer = sample_layer<moe::F32>();
  const auto before = flatten(layer);
  moe::Trainer trainer(layer, moe::Sgd{}, {.max_norm = 1, .balance = 0.1, .z_loss = 0.1});
  const Batch<float> empty(0), batch(5);
  CHECK(trainer.accumulate(empty.tokens, empty.step(), empty.loss()) == 0);
  CHECK(trainer.update(0.1).gradient_norm == 0);
  std::vector<std::uint8_t> none(5, 0);
  Step padding = Step::train(1);
  padding.valid = none;
  const auto loss = [&](const auto& output, auto& doutput) {
    return moe::squared_error(output, batch.target, padding, doutput);
  };
  CHECK(trainer.accumulate(batch.tokens, padding, loss) == 0);
  CHECK(trainer.update(0.1).taken);
  CHECK(flatten(layer) == before);
  trainer.accumulate(batch.tokens, batch.step(), batch.loss());  // of other sizes after that
  CHECK(trainer.update(0.1).gradient_norm > 0);
}

TEST_CASE("Trainer: what a loss refuses adds nothing up", "[train][error]") {
  Scale layer;
  moe::Trainer trainer(layer, moe::Sgd{});
  const Matrix<double> tokens = Matrix<double>::Ones(2, 3);
  CHECK_THROWS_WITH(trainer.update(0.1), ContainsSubstring("nothing was accumulated"));
  CHECK_THROWS_AS(trainer.accumulate(tokens, Step::train(0),
                                     [](const auto&, auto&) -> double { throw std::invalid_argument("no"); }),
                  std::invalid_argument);
  CHECK_THROWS_WITH(
      trainer.accumulate(tokens, Step::train(0), [](const auto&, auto& d) { return d.resize(1, 1), 0.0; }),
      "moe::Trainer::accumulate: doutput is [1, 1], expected [2, 3]");
  CHECK_THROWS_WITH(trainer.accumulate(tokens, Step::train(0), sum_loss, test::kNan<double>),
                    ContainsSubstring("scale is nan"));
  CHECK_THROWS_WITH(trainer.update(0.1), ContainsSubstring("nothing was accumulated"));
  auto floats = sample_layer<moe::F32>();
  moe::Trainer of_floats(floats, moe::Sgd{});
  const Batch<float> batch(6);
  for (const double scale : {1e39, 1e-50})
    CHECK_THROWS_WITH(of_floats.accumulate(batch.tokens, batch.step(), batch.loss(), scale),
                      ContainsSubstring("expected a number that the scalar of the layer holds"));
  trainer.accumulate(tokens, Step::train(0), [](const auto&, auto&) { return 0.0; });  // forgets doutput
  CHECK_THROWS_WITH(trainer.update(0.1), ContainsSubstring("the gradient of 'factor' holds nan"));
}

TEST_CASE("Trainer: a part that fails in the middle of backward leaves nothing behind", "[train][error]") {
  bool fails = false;
  Failing layer;
  layer.fails = &fails;
  moe::Trainer trainer(layer, moe::Sgd{});
  const Matrix<double> tokens = Matrix<double>::Ones(2, 3);
  trainer.accumulate(tokens, Step::train(0), sum_loss);
  fails = true;
  CHECK_THROWS_WITH(trainer.accumulate(tokens, Step::train(0), sum_loss), "gave up");
  CHECK(trainer.gradient().factor == 0);
  CHECK_THROWS_WITH(trainer.update(0.1), ContainsSubstring("nothing was accumulated"));
  fails = false;
  trainer.accumulate(tokens, Step::train(0), sum_loss);
  CHECK(trainer.update(0.5).gradient_norm == 6);
}

TEST_CASE("Trainer: what a wrong auxiliary loss leaves does not stay", "[train][error]") {
  auto layer = sample_layer<moe::F32>();
  moe::Trainer trainer(layer, moe::Sgd{});
  const Batch<float> batch(6);
  CHECK_THROWS_WITH(trainer.accumulate(batch.tokens, batch.step(), batch.loss(),
                                       [](const moe::RoutedPass<float>& pass) {
                                         pass.losses.logits = Matrix<float>::Zero(6, 2);
                                         return 0.0;
                                       }),
                    ContainsSubstring("losses.logits is [6, 2]"));
  CHECK_NOTHROW(trainer.accumulate(batch.tokens, batch.step(), batch.loss()));
}

TEST_CASE("Trainer: tokens that are its own output are refused", "[train][error]") {
  auto layer = sample_layer<moe::F32>();
  moe::Trainer trainer(layer, moe::Sgd{});
  const Batch<float> batch(60), half = batch.part(0, 30);
  trainer.accumulate(batch.tokens, batch.step(), batch.loss());
  for (const Index count : {60, 30}) {
    const auto& same = count == 60 ? batch : half;
    CHECK_THROWS_WITH(trainer.accumulate(trainer.output().topRows(count), same.step(), same.loss()),
                      ContainsSubstring("moe::Trainer::accumulate: tokens overlaps output() of the trainer"));
  }
}

TEST_CASE("Trainer: gradients can be changed before the update, options between batches", "[train]") {
  Scale layer;
  moe::Trainer trainer(layer, moe::Sgd{});
  trainer.accumulate(Matrix<double>::Ones(2, 3), Step::train(0), sum_loss);
  trainer.gradient().factor *= 2;  // as the sum over two ranks
  trainer.options().max_norm = 3;
  CHECK(trainer.update(0.5).gradient_norm == 12);
  CHECK(layer.factor == 0.5);
  trainer.options().max_norm = 0;
  CHECK_THROWS_AS(trainer.accumulate(Matrix<double>::Ones(2, 3), Step::train(0), sum_loss), std::invalid_argument);
}

TEST_CASE("Trainer: a learning rate that is refused keeps the gradient", "[train][error]") {
  Scale layer;
  moe::Trainer trainer(layer, moe::Sgd{});
  trainer.accumulate(Matrix<double>::Ones(2, 3), Step::train(0), sum_loss);
  CHECK_THROWS_AS(trainer.update(-1), std::invalid_argument);
  CHECK(layer.factor == 2);
  CHECK(trainer.update(0.5).gradient_norm == 6);
}

namespace {

/// Two layers, one after the other, as a user writes them.
template <class Layer>
struct Pair {
  using Scalar = typename Layer::Scalar;
  using Rows = Matrix<Scalar>;
  struct Tape {
    typename Layer::Tape first, second;
    Rows between;
  };
  Layer first, second;

  Index input_dim() const { return first.input_dim(); }
  Index output_dim() const { return second.output_dim(); }
  void forward(const moe::ConstMatrixRef<Scalar>& tokens, const Step& step, moe::MatrixRef<Scalar> out,
               Tape& tape) const {
    tape.between.resize(tokens.rows(), first.output_dim());
    first.forward(tokens, step, tape.between, tape.first);
    second.forward(tape.between, step, out, tape.second);
  }
  void backward(const moe::ConstMatrixRef<Scalar>& tokens, Tape& tape, const moe::ConstMatrixRef<Scalar>& dout,
                Pair& gradient, moe::MatrixRef<Scalar> dtokens) const {
    Rows dbetween(tokens.rows(), first.output_dim());
    second.backward(tape.between, tape.second, dout, gradient.second, dbetween);
    first.backward(tokens, tape.first, dbetween, gradient.first, dtokens);
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "first", self.first...);
    moe::visit_part(f, "second", self.second...);
  }
  template <class F>
  void for_each_layer(Tape& tape, F&& f) const {
    f(first, tape.first);
    f(second, tape.second);
  }
};

}  // namespace

TEST_CASE("Trainer: a stack of one's own names its layers, whose routers are balanced", "[train][property]") {
  using Layers = Pair<LayerOf<moe::F64>>;
  auto second = sample_layer<moe::F64>(4);  // all experts: no choice that a step of the difference could change
  test::randomise(second, 5, 0.3);
  Layers layers{sample_layer<moe::F64>(4), std::move(second)};
  const Batch<double> batch(9, 2);
  const auto run = [&](const Layers& of) {
    Layers copy = of;
    moe::Trainer trainer(copy, moe::Sgd{}, {.balance = 0.3, .z_loss = 0.2});
    Index passes = 0;
    const double loss = trainer.accumulate(
        batch.tokens, batch.step(), batch.loss(),
        [&](const moe::RoutedPass<double>&) { return static_cast<double>(++passes); }, 0.25);
    CHECK(passes == 2);
    const moe::AuxiliaryLosses& auxiliary = trainer.auxiliary();
    return std::pair(0.25 * (loss + 0.3 * auxiliary.balance + 0.2 * auxiliary.z_loss), trainer.gradient());
  };
  const Layers gradient = run(layers).second;
  std::string name;
  const double error = test::parameter_gradient_error([&] { return run(layers).first; }, layers, gradient, &name);
  CAPTURE(name);
  CHECK(error < 1e-6);
}

TEST_CASE("Trainer: numbers out of range are refused", "[train][error]") {
  auto layer = sample_layer<moe::F32>();
  for (const moe::TrainerOptions& options :
       {moe::TrainerOptions{.max_norm = 0}, {.max_norm = test::kNan<double>}, {.balance = -1}, {.z_loss = kInf}})
    CHECK_THROWS_AS(moe::Trainer(layer, moe::AdamW{}, options), std::invalid_argument);
  CHECK_THROWS_AS(moe::Trainer(layer, moe::AdamW{.beta1 = 1}), std::invalid_argument);
}

TEST_CASE("Trainer: losses of a router that is not there are refused, when they are set later, too", "[train][error]") {
  Scale layer;
  CHECK_THROWS_WITH(moe::Trainer(layer, moe::Sgd{}, {.balance = 0.1}), ContainsSubstring("balance is 0.1"));
  moe::Trainer trainer(layer, moe::Sgd{});
  trainer.options().z_loss = 0.5;
  CHECK_THROWS_WITH(trainer.accumulate(Matrix<double>::Ones(2, 3), Step::train(0), sum_loss),
                    ContainsSubstring("z_loss is 0.5, expected 0 with a layer that shows no gate"));
  CHECK(trainer.gradient().factor == 0);
}

TEST_CASE("Trainer: a moved trainer goes on with the same bits", "[train]") {
  auto layer = sample_layer<moe::F32>(), other = layer;
  const Batch<float> batch(9);
  moe::Trainer trainer(layer), plain(other);
  trainer.accumulate(batch.tokens, batch.step(), batch.loss());
  plain.accumulate(batch.tokens, batch.step(), batch.loss());
  moe::Trainer moved = std::move(trainer);
  moved.update(0.1);
  plain.update(0.1);
  moved.accumulate(batch.tokens, batch.step(1), batch.loss());
  plain.accumulate(batch.tokens, batch.step(1), batch.loss());
  moved.update(0.1);
  plain.update(0.1);
  CHECK(flatten(layer) == flatten(other));
  CHECK(moved.state().update == 2);
}

TEST_CASE("Trainer: a layer that is narrower at its output learns its targets", "[train]") {
  using Narrow = moe::ExpertPool<moe::BasicMlp<moe::F32>>;
  moe::MoeLayer layer(moe::LinearRouter::random(4, 6, 1), TopKGate{},
                      Narrow::random(4, {.input = 6, .hidden = 16, .output = 2}, 2));
  const auto tokens = test::random_matrix<float>(32, 6, 1), target = test::random_matrix<float>(32, 2, 2);
  moe::Trainer trainer(layer, moe::AdamW{.weight_decay = 0});
  const auto loss = [&](const Matrix<float>& output, Matrix<float>& doutput) {
    return moe::squared_error<float>(output, target, Step{}, doutput);
  };
  double first = 0, last = 0;
  for (std::uint64_t update = 0; update < 150; ++update) {
    last = trainer.accumulate(tokens, Step::train(update), loss);
    if (update == 0) first = last;
    trainer.update(0.01);
  }
  CHECK(last < 0.3 * first);
}
