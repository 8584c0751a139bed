// SPDX-License-Identifier: MIT
// Objects that do not belong together: tapes and gradients of other layers, parts of other sizes, objects that have
// been moved from, working memory that is in use. All are named before anything is written.
#include <atomic>
#include <thread>

#include "layer/fixtures.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/router/cosine.hpp"
#include "moe/router/noisy.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::ExpertPool;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using test::kHiddenDim;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Linear = moe::BasicLinear<F64>;
using Mlp = moe::BasicMlp<F64>;
using Router = moe::BasicLinearRouter<F64>;
using Identity = moe::BasicScaledIdentity<F64>;
using Inner = moe::LayerExpert<moe::MoeLayer<Router, TopKGate, ExpertPool<Mlp>>>;

namespace {

constexpr Index kTokens = 6;

template <class E = Glu, class Gate = TopKGate>
auto layer_of(Index num_experts, Index model_dim, Index hidden_dim, Gate gate = {}) {
  return moe::MoeLayer(Router::random(num_experts, model_dim, 1), gate,
                       ExpertPool<E>::random(num_experts, model_dim, hidden_dim, 2));
}

/// Backward of `layer` with the tape of `taped` and the gradient of `shaped` is refused with a message that has all of
/// `parts`, the gradient being left as it was.
template <class Layer>
void check_refused(const Layer& layer, const Layer& taped, const Layer& shaped, const std::string& message) {
  const auto tokens = test::random_matrix<double>(kTokens, layer.input_dim());
  const auto own = test::random_matrix<double>(kTokens, taped.input_dim());
  typename Layer::Tape tape;
  Matrix<double> out(kTokens, taped.output_dim()), dtokens = Matrix<double>::Constant(kTokens, layer.input_dim(), 42);
  const auto dout = test::random_matrix<double>(kTokens, layer.output_dim());
  taped.forward(own, Step{}, out, tape);
  Layer gradient = moe::zeros_like(shaped);
  CHECK_THROWS_WITH(layer.backward(tokens, tape, dout, gradient, dtokens), ContainsSubstring(message));
  CHECK(test::num_nonzero(gradient) == 0);
  CHECK(test::same_bits(dtokens, Matrix<double>::Constant(kTokens, layer.input_dim(), 42)));
}

template <class Layer>
void check_refused(const Layer& layer, const Layer& other, const std::string& of_tape, const std::string& of_gradient) {
  check_refused(layer, other, layer, of_tape);
  check_refused(layer, layer, other, of_gradient);
}

}  // namespace

TEST_CASE("MoeLayer: a tape or gradient of another layer is named", "[layer][error]") {
  const auto layer = layer_of(4, 11, 9);
  check_refused(layer, layer_of(8, 11, 9), "the tape is of a layer of 8 experts that maps 11 to 11, expected 4 experts",
                "gradient is [8, 11]");
  check_refused(layer, layer_of(4, 10, 9), "the tape is of a layer of 4 experts that maps 10 to 10, expected 4 experts",
                "gradient is [4, 10]");
  check_refused(layer, layer_of(4, 11, 90), "in the tape is [12,", "gradient of expert 0, stage 0 is [180, 11]");
}

TEST_CASE("MoeLayer: a tape that holds no finished pass is named", "[layer][error]") {
  const auto layer = layer_of(4, 11, 9);
  auto tokens = test::random_matrix<double>(kTokens, 11);
  Matrix<double> out(kTokens, 11), dtokens(kTokens, 11);
  auto gradient = moe::zeros_like(layer);
  decltype(gradient)::Tape tape;
  const auto refused = [&] {
    CHECK_THROWS_WITH(layer.backward(tokens, tape, tokens, gradient, dtokens),
                      "moe::MoeLayer::backward: the tape holds no forward pass that has ended");
    CHECK_THROWS_WITH(layer.replay(tokens, out, tape),
                      "moe::MoeLayer::replay: the tape holds no forward pass that has ended");
  };
  refused();
  layer.forward(tokens, Step{}, out, tape);
  tokens(2, 2) = test::kNan<double>;
  CHECK_THROWS(layer.forward(tokens, Step{}, out, tape));
  refused();  // half of it is of the first pass, half of the second
  CHECK(test::num_nonzero(gradient) == 0);
}

TEST_CASE("MoeLayer: a tape of a layer that weighs elsewhere is named", "[layer][error]") {
  const auto with = [](moe::WeightOn weight_on) {
    return moe::MoeLayer(Router::random(4, 11, 1), TopKGate{}, ExpertPool<Glu>::random(4, 11, 9, 2), weight_on);
  };
  const auto input = with(moe::WeightOn::Input), output = with(moe::WeightOn::Output);
  check_refused(input, output, input, "the tape is of a mixture with another WeightOn");
  check_refused(output, input, output, "the tape is of a mixture with another WeightOn");
}

/// An identity that gives up when it is told to.
struct Unreliable : Identity {
  bool gives_up = false;

  using Identity::forward;
  void forward(const moe::MatrixView<double>& rows, moe::MatrixRef<double> out, const moe::Context& context,
               Tape&) const {
    if (gives_up) throw std::runtime_error("gave up");
    forward(rows, out, context);
  }
};

TEST_CASE("WithBranches: a tape that a failing branch has left behind is named", "[layer][error]") {
  moe::WithBranches layer(layer_of(4, 11, 9), Unreliable{{.dim = 11}});
  const auto tokens = test::random_matrix<double>(kTokens, 11);
  Matrix<double> out(kTokens, 11), dtokens(kTokens, 11);
  auto gradient = moe::zeros_like(layer);
  decltype(layer)::Tape tape;
  const auto backward = [&] { layer.backward(tokens, tape, tokens, gradient, dtokens); };
  layer.forward(tokens, Step{}, out, tape);
  layer.branch<0>().gives_up = true;
  CHECK_THROWS_WITH(layer.forward(tokens, Step{}, out, tape), "gave up");
  CHECK_THROWS_WITH(backward(), ContainsSubstring("the tape holds no forward pass that has ended"));
  layer.branch<0>().gives_up = false;
  layer.forward(tokens, Step{}, out, tape);
  layer.branch<0>().gives_up = true;
  CHECK_THROWS_WITH(layer.replay(tokens, out, tape), "gave up");
  CHECK_THROWS_WITH(backward(), ContainsSubstring("the tape holds no forward pass that has ended"));
  CHECK(test::num_nonzero(gradient) == 0);
}

TEST_CASE("Layers: a tape that a failed replay has left behind is named", "[layer][error]") {
  const auto check = [](const auto& layer) {
    auto tokens = test::random_matrix<double>(kTokens, 11);
    Matrix<double> out(kTokens, 11), dtokens(kTokens, 11);
    auto gradient = moe::zeros_like(layer);
    typename decltype(gradient)::Tape tape;
    layer.forward(tokens, Step{}, out, tape);
    tokens(2, 2) = test::kNan<double>;
    CHECK_THROWS(layer.replay(tokens, out, tape));
    CHECK_THROWS_WITH(layer.backward(tokens, tape, out, gradient, dtokens),
                      ContainsSubstring("the tape holds no forward pass that has ended"));
    CHECK(test::num_nonzero(gradient) == 0);
  };
  check(layer_of(4, 11, 9));
  check(moe::WithBranches(layer_of(4, 11, 9), test::random_expert<Glu>(11, 5, 1)));
}

TEST_CASE("WithBranches: a branch that has been replaced by another of another size is named", "[layer][error]") {
  const auto tokens = test::random_matrix<double>(kTokens, 11);
  const auto check = [&](auto change, const std::string& message) {
    auto layer = moe::WithBranches(layer_of(4, 11, 9), test::random_expert<Glu>(11, 5, 1));
    change(layer);
    Matrix<double> out = Matrix<double>::Constant(kTokens, 11, 42);
    moe::BasicWorkspace<double> ws;
    typename decltype(layer)::Tape tape;
    CHECK_THROWS_WITH(layer.forward(tokens, out, ws), ContainsSubstring(message));
    CHECK_THROWS_WITH(layer.forward(tokens, Step{}, out, tape), ContainsSubstring(message));
    CHECK(test::same_bits(out, Matrix<double>::Constant(kTokens, 11, 42)));
  };
  check([](auto& layer) { layer.template branch<0>() = Glu::random(12, 9, 1); },
        "moe::WithBranches::forward: branch 0 maps 12 to 12, expected 11 to 11");
  check([](auto& layer) { layer.template branch<0>().down() = moe::PanelMatrix<F64>(11, 90); },
        "stage 1 of expert 0 is [11, 90]");
}

TEST_CASE("MoeLayer: a gradient with other parameters of router or gate is named", "[layer][error]") {
  const auto layer = layer_of(4, 11, 9), biased = [] {
    return moe::MoeLayer(Router::random(4, 11, 1, moe::Bias::Zero), TopKGate{}, ExpertPool<Glu>::random(4, 11, 9, 2));
  }();
  check_refused(layer, layer, biased, "moe::LinearRouter::backward: gradient is [4, 11] with 4 biases, expected");
  const auto weighed = layer_of(4, 11, 9, TopKGate{.weight_bias = Eigen::RowVectorXd::Zero(4)});
  check_refused(layer, layer, weighed, "moe::MoeLayer::backward: gradient.gate has 1 parameters, expected 0");
  check_refused(weighed, weighed, layer, "moe::MoeLayer::backward: gradient.gate has 0 parameters, expected 1");

  auto itself = layer;
  decltype(itself)::Tape tape;
  const auto tokens = test::random_matrix<double>(kTokens, 11);
  Matrix<double> out(kTokens, 11), dtokens(kTokens, 11);
  itself.forward(tokens, Step{}, out, tape);
  CHECK_THROWS_WITH(itself.backward(tokens, tape, out, itself, dtokens),
                    ContainsSubstring("gradient is the layer itself"));
}

TEST_CASE("Routers: a tape or gradient of another router is named", "[router][error]") {
  const auto pool = ExpertPool<Glu>::random(4, 11, 9, 2);
  const auto cosine = [&](Index dim) {
    return moe::MoeLayer(moe::BasicCosineRouter<F64>::random(4, 11, dim, 1), TopKGate{}, pool);
  };
  check_refused(cosine(3), cosine(2), "moe::CosineRouter::backward: tape.unit is [6, 2], expected [6, 3]",
                "moe::CosineRouter::backward: gradient has [4, 2] vectors, expected [4, 3]");
  const moe::BasicNoisyRouter<F64> router(4, 11);
  moe::BasicNoisyRouter<F64>::Tape tape;
  const auto tokens = test::random_matrix<double>(kTokens, 11), fewer = test::random_matrix<double>(2, 11);
  Matrix<double> logits(kTokens, 4), two(2, 4), dtokens(kTokens, 11);
  auto gradient = moe::zeros_like(router);
  router.logits(fewer, Step::train(1), two, tape);
  CHECK_THROWS_WITH(router.backward(tokens, Step::train(1), tape, logits, gradient, dtokens),
                    "moe::NoisyRouter::backward: tape.clean is [2, 4], expected [6, 4]");
}

TEST_CASE("WithBranches: a tape or gradient with another branch is named before the layer writes", "[layer][error]") {
  const auto with = [](Index hidden_dim) {
    return moe::WithBranches(layer_of(4, 11, 9), test::random_expert<Glu>(11, hidden_dim, 1));
  };
  check_refused(with(9), with(90), "in the tape is [6,", "gradient of expert 0, stage 0 is [180, 11]");
  const auto with_gate = [](Index hidden_dim) {
    using Gated = moe::GatedExpert<Glu, F64>;
    return moe::WithBranches(layer_of(4, 11, 9),
                             Gated(test::random_expert<Glu>(11, hidden_dim, 1), test::random_expert<Linear>(1, 11, 2)));
  };
  check_refused(with_gate(9), with_gate(90), "in the tape is [6,", "gradient of expert 0, stage 0 is [180, 11]");
}

TEST_CASE("Hierarchies: a tape or gradient of other inner experts is named before any writes", "[layer][error]") {
  using Any = moe::OneOf<Inner, Glu, Identity>;
  const auto hierarchy = [](Index hidden_dim, bool swapped) {
    std::vector<Any> experts = {Any(Glu::random(11, 5, 1)), Any(Inner(layer_of<Mlp>(2, 11, hidden_dim))),
                                Any(Identity{11})};
    if (swapped) std::swap(experts[0], experts[2]);
    return moe::MoeLayer(Router::random(3, 11, 1), moe::SoftmaxGate{}, ExpertPool<Any>(std::move(experts)));
  };
  check_refused(hierarchy(9, false), hierarchy(90, false), "in the tape is [",
                "gradient of expert 0, stage 0 is [90, 11]");
  check_refused(hierarchy(9, false), hierarchy(9, true), "moe::OneOf::backward: the tape is of alternative 2",
                "moe::OneOf::backward: the tape is of alternative 1 and the gradient of 2, expected 1");
}

TEST_CASE("MoeLayer: parts that have been replaced by others of another size are named", "[layer][error]") {
  const auto tokens = test::random_matrix<double>(kTokens, 11);
  Matrix<double> out = Matrix<double>::Constant(kTokens, 11, 42);
  const auto refused = [&](auto change, const std::string& message) {
    auto layer = layer_of(4, 11, 9);
    change(layer);
    moe::BasicWorkspace<double> ws;
    typename decltype(layer)::Tape tape;
    CHECK_THROWS_WITH(layer.forward(tokens, out, ws), ContainsSubstring(message));
    CHECK_THROWS_WITH(layer.forward(tokens, Step{}, out, tape), ContainsSubstring(message));
    CHECK(test::same_bits(out, Matrix<double>::Constant(kTokens, 11, 42)));
  };
  using moe::PanelMatrix;
  refused([](auto& layer) { layer.experts()[2] = Glu::random(40, 9, 1); }, "stage 0 of expert 2 is [18, 40]");
  refused([](auto& layer) { layer.experts()[2] = Glu::random(3, 9, 1); }, "stage 0 of expert 2 is [18, 3]");
  refused([](auto& layer) { layer.experts()[3].down() = PanelMatrix<F64>(11, 70); }, "stage 1 of expert 3 is [11, 70]");
  refused([](auto& layer) { layer.experts()[3].down() = PanelMatrix<F64>(12, 9); },
          "expert 3 has 12 outputs, expected 11");
  refused([](auto& layer) { layer.experts()[1].gate_up() = PanelMatrix<F64>(18, 11); },
          "stage 0 of expert 1 is [18, 11]");
  refused([](auto& layer) { layer.experts()[1].down_bias() = PanelMatrix<F64>::bias(10); }, "with 10 biases");
  refused([](auto& layer) { layer.router() = Router::random(5, 11, 1); }, "the router maps 11 columns to 5 experts");
  refused([](auto& layer) { layer.router().bias() = PanelMatrix<F64>::bias(3); }, "bias has 3 entries, expected 4");
  refused([](auto& layer) { layer.experts() = ExpertPool<Glu>::random(3, 11, 9, 1); },
          "expected 11 to 3 as the experts");
  refused([](auto& layer) { layer.gate().k = 9; }, "moe::TopKGate: k is 9");
  auto narrower = layer_of(4, 11, 9);  // one that fits, of another hidden width
  narrower.experts()[2] = Glu::random(11, 4, 1);
  CHECK(test::largest(test::forward(narrower, tokens)) < INFINITY);
}

TEST_CASE("ExpertPool: an expert without rows is not looked at until it has some", "[expert][error]") {
  auto pool = ExpertPool<Glu>::random(4, 11, 9, 1), gradient = moe::zeros_like(pool);
  const auto tokens = test::random_matrix<double>(kTokens, 11);
  const auto run = [&](Index expert, moe::RowBuffer<double>& rows) {
    moe::Routing<double> routing;
    routing.resize(kTokens, 1);
    std::ranges::fill(routing.experts(), expert);
    moe::DispatchPlan plan;
    plan.build(routing, 4);
    ExpertPool<Glu>::Tape tape;
    moe::RowBuffer<double> kept;
    rows.resize(kTokens, pool.row_width());
    kept.resize(kTokens, pool.row_width());
    pool.forward(tokens, plan, Step{}, rows);
    pool.forward(tokens, plan, Step{}, kept, tape);
    pool.backward(tokens, plan, Step{}, tape, rows, gradient);
    return test::same_bits(rows.matrix(), kept.matrix());
  };
  moe::RowBuffer<double> before, after;
  CHECK(run(1, before));
  pool[3] = Glu::random(40, 90, 1);
  CHECK(run(1, after));
  CHECK(test::same_bits(before.matrix(), after.matrix()));
  CHECK_THROWS_WITH(run(3, after), ContainsSubstring("stage 0 of expert 3 is [180, 40]"));
  pool[3] = Glu::random(11, 90, 1);
  CHECK_THROWS_WITH(run(3, after), ContainsSubstring("gradient of expert 3, stage 0 is [18, 11]"));
}

TEST_CASE("ExpertPool: plans and tokens of other sizes are named", "[expert][error]") {
  const auto pool = ExpertPool<Glu>::random(3, 11, 9, 1);
  moe::Routing<double> routing;
  routing.resize(kTokens, 1);
  std::ranges::fill(routing.experts(), 0);
  moe::DispatchPlan plan, of_four;
  plan.build(routing, 3);
  of_four.build(routing, 4);
  moe::RowBuffer<double> rows, narrow;
  rows.resize(kTokens, pool.row_width());
  const auto tokens = test::random_matrix<double>(kTokens, 11);
  CHECK_THROWS_WITH(pool.forward(tokens, of_four, Step{}, rows),
                    "moe::ExpertPool::forward: the plan is of 4 experts, expected 3");
  CHECK_THROWS_WITH(pool.forward(tokens.topRows(5), plan, Step{}, rows),
                    "moe::ExpertPool::forward: tokens is [5, 11], expected [6, 11]");
  ExpertPool<Glu>::Tape tape;
  pool.forward(tokens, plan, Step{}, rows, tape);
  auto gradient = moe::zeros_like(pool);
  for (const auto& other : {of_four, moe::DispatchPlan()})
    CHECK_THROWS_WITH(pool.require_backward(other, tape, gradient), ContainsSubstring("experts, expected 3"));
  narrow.resize(kTokens, 3);
  CHECK_THROWS_WITH(pool.backward(tokens, plan, Step{}, tape, narrow, gradient), ContainsSubstring("dout is [6, 3]"));
}

TEST_CASE("Layers: what has been moved from is empty, and says so", "[layer][error]") {
  auto layer = layer_of(4, 11, 9);
  const auto tokens = test::random_matrix<double>(kTokens, 11);
  Matrix<double> out(kTokens, 11);
  moe::BasicWorkspace<double> ws, moved_ws;
  decltype(layer)::Tape tape;
  layer.forward(tokens, Step{}, out, tape);
  auto gradient = moe::zeros_like(layer);
  const auto moved_tape = std::move(tape);
  CHECK_THROWS_WITH(layer.backward(tokens, tape, out, gradient, out),
                    "moe::MoeLayer::backward: the tape holds no forward pass that has ended");
  layer.forward(tokens, out, ws);
  const auto expected = out;
  moved_ws = std::move(ws);
  layer.forward(tokens, out, ws);  // an empty workspace, like a new one
  CHECK(test::same_bits(out, expected));

  const auto moved = std::move(layer);
  CHECK_THROWS_WITH(layer.forward(tokens, out, ws),
                    "moe::MoeLayer::forward: the layer has no experts: it has been moved from");
  CHECK(layer.num_experts() == 0);
  auto pool = ExpertPool<Glu>::random(3, 11, 9, 1);
  const auto moved_pool = std::move(pool);
  CHECK(pool.size() == 0);
  CHECK(pool.input_dim() == 0);
  CHECK(pool.output_dim() == 0);
  auto expert = Glu::random(11, 9, 1);
  const auto moved_expert = std::move(expert);
  CHECK_THROWS_WITH(test::run(expert, tokens), ContainsSubstring("rows is [6, 11], expected [6, 0]"));
  auto router = Router::random(4, 11, 1);
  const auto moved_router = std::move(router);
  CHECK_THROWS_WITH(router.logits(tokens, Step{}, out), ContainsSubstring("tokens is [6, 11], expected [6, 0]"));
}

TEST_CASE("Workspace: one that is in use is refused, and free again afterwards", "[layer][error]") {
  struct Waiting {
    using Scalar = double;
    std::atomic<bool>*entered, *leave;
    Index input_dim() const { return 11; }
    Index output_dim() const { return 11; }
    void forward(const moe::ConstMatrixRef<double>& rows, moe::MatrixRef<double> out, const moe::Context&) const {
      *entered = true;
      while (!*leave) std::this_thread::yield();
      out = rows;
    }
  };
  std::atomic<bool> entered = false, leave = false;
  const moe::MoeLayer layer(Router::random(1, 11, 1), TopKGate{.k = 1},
                            ExpertPool<Waiting>({Waiting{&entered, &leave}}));
  const auto with_branch = moe::WithBranches(layer_of(4, 11, 9), Waiting{&entered, &leave});
  const auto tokens = test::random_matrix<double>(kTokens, 11);
  const auto check = [&](const auto& slow) {
    entered = leave = false;
    moe::BasicWorkspace<double> ws;
    Matrix<double> out(kTokens, 11), other(kTokens, 11);
    std::thread first([&] { slow.forward(tokens, Step{}, out, ws); });
    while (!entered) std::this_thread::yield();
    CHECK_THROWS_WITH(slow.forward(tokens, Step{}, other, ws),
                      ContainsSubstring("forward: workspace is in use by another thread, expected one per thread"));
    leave = true;
    first.join();
    slow.forward(tokens, Step{}, other, ws);
    CHECK(test::same_bits(other, out));
  };
  check(layer);
  check(with_branch);
}
