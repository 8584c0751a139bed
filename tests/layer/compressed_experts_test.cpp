// SPDX-License-Identifier: MIT
#include "moe/layer/compressed_experts.hpp"

#include "layer/fixtures.hpp"
#include "layer/gradient_check.hpp"
#include "moe/compress/compress_auxiliary.hpp"
#include "moe/expert/frozen.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/linear.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/gate/top_p.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/train/trainer.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using moe::CompressedExperts;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Routing;
using moe::SkippedWeight;
using moe::Step;
using moe::TopKGate;
using test::kModelDim;
using Linear = moe::BasicLinear<F64>;
using Mlp = moe::BasicMlp<F64>;
using Glu = moe::BasicGlu<F64>;

namespace {

constexpr Index kTokens = 19, kExperts = 6;

template <class E, class Gate>
auto compressed_layer(Gate gate, Index main, SkippedWeight auxiliary = SkippedWeight::Lost) {
  auto layer = moe::compress_auxiliary(test::layer_of<E>(kExperts, std::move(gate)), main, auxiliary);
  layer.mixture().theta() += test::random_matrix<double>(kExperts, layer.input_dim(), 5, 0.3);
  return layer;
}

TopKGate raw(Index k) { return {.k = k, .normalise = moe::Normalise::Off}; }

/// The output by its definition.
template <class Layer>
Matrix<double> reference_output(const Layer& layer, const Matrix<double>& tokens, const Routing<double>& routing) {
  Matrix<double> out = Matrix<double>::Zero(tokens.rows(), layer.output_dim());
  for (Index t = 0; t < tokens.rows(); ++t) {
    const auto experts = routing.experts(t);
    const auto weights = routing.weights(t);
    const auto main = static_cast<std::size_t>(layer.mixture().main());
    double sum = 0, all = 0, of_main = 0;
    for (std::size_t s = 0; s < experts.size(); ++s) {
      (s < main ? of_main : sum) += weights[s];
      all += weights[s];
    }
    Matrix<double> h = tokens.row(t);
    for (Index c = 0; c < h.cols() && experts.size() > main && sum > 0; ++c) {
      double theta = 0;
      for (std::size_t s = main; s < experts.size(); ++s)
        theta += weights[s] / sum * layer.mixture().theta()(experts[s], c);
      h(0, c) *= theta;
    }
    const double scale = layer.mixture().auxiliary() == SkippedWeight::Shared && of_main > 0 ? all / of_main : 1;
    for (std::size_t s = 0; s < std::min(main, experts.size()); ++s)
      out.row(t) += scale * weights[s] * test::run(layer.experts()[experts[s]], h);
  }
  return out;
}

}  // namespace

TEST_CASE("CompressedExperts: main choices run on tokens that the others have scaled", "[layer]") {
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto check = [&](const auto& layer) {
    typename std::remove_cvref_t<decltype(layer)>::Workspace ws;
    Matrix<double> out(kTokens, layer.output_dim());
    layer.forward(tokens, out, ws);
    CHECK(test::largest(Matrix<double>(out - reference_output(layer, tokens, ws.routing))) < 1e-12);
  };
  for (const SkippedWeight auxiliary : {SkippedWeight::Lost, SkippedWeight::Shared}) {
    check(compressed_layer<Glu>(raw(4), 2, auxiliary));
    check(compressed_layer<Mlp>(TopKGate{.k = 2}, 1, auxiliary));
    check(compressed_layer<Glu>(raw(kExperts), 2, auxiliary));
    check(compressed_layer<Glu>(moe::TopPGate{.p = 0.7}, 1, auxiliary));  // any number of choices
    check(compressed_layer<Glu>(raw(2), 2, auxiliary));                   // no auxiliary choices
  }
}

TEST_CASE("CompressedExperts: with theta = 1 it is the layer of the main choices, bit for bit", "[layer][property]") {
  const auto check = []<class Codec>(Codec) {
    using S = typename Codec::Scalar;
    const auto tokens = test::random_matrix<S>(kTokens, kModelDim, 1);
    for (const Index k : {2, 3, 6})
      for (Index main = 1; main <= k; ++main) {
        const auto full = test::layer_of<moe::BasicGlu<Codec>, TopKGate, Codec>(kExperts, raw(k));
        auto few = full;
        few.gate().k = main;
        const auto layer = moe::compress_auxiliary(full, main);
        CHECK(test::same_bits(test::forward(layer, tokens), test::forward(few, tokens)));
        const test::TrainingPass pass(layer, tokens, tokens);
        const test::TrainingPass of_few(few, tokens, tokens);
        CHECK(test::same_bits(pass.out, of_few.out));
      }
  };
  check(moe::F32{});
  check(F64{});
}

TEST_CASE("CompressedExperts: one auxiliary choice counts whatever it weighs, two of equal weight give the mean",
          "[layer]") {
  CompressedExperts mixture(moe::ExpertPool<Linear>(std::vector<Linear>(4, test::random_expert<Linear>(6, 5, 3))), 1);
  mixture.theta() = test::random_matrix<double>(4, 5, 4).array().abs() + 0.5;
  const auto run = [&](const std::vector<Index>& ids, const std::vector<double>& weights) {
    const auto token = test::random_matrix<double>(1, 5, 8);
    Matrix<double> out(1, 6);
    mixture.forward(token, Routing<double>::from(1, ids, weights, 4), Step{}, out);
    return out;
  };
  const auto by_hand = [&](const Matrix<double>& theta) {
    const Matrix<double> scaled = test::random_matrix<double>(1, 5, 8).array() * theta.array();
    return Matrix<double>(0.5 * test::run(mixture.experts()[0], scaled));
  };
  const auto close = [](const Matrix<double>& a, const Matrix<double>& b) {
    return test::largest(Matrix<double>(a - b)) < 1e-14;
  };
  CHECK(close(run({0, 2}, {0.5, 0.2}), by_hand(mixture.theta().row(2))));
  CHECK(close(run({0, 2}, {0.5, 1e-300}), by_hand(mixture.theta().row(2))));
  const Matrix<double> mean = 0.5 * (mixture.theta().row(2) + mixture.theta().row(3));
  CHECK(close(run({0, 2, 3}, {0.5, 0.2, 0.2}), by_hand(mean)));
  CHECK(close(run({0, 2, 3}, {0.5, 0, 0}), by_hand(mean)));  // underflow: alike
}

TEST_CASE("CompressedExperts: gradients of a layer are central differences", "[layer][property]") {
  for (const SkippedWeight auxiliary : {SkippedWeight::Lost, SkippedWeight::Shared}) {
    CAPTURE(int(auxiliary));
    CHECK(test::layer_gradient_error(compressed_layer<Glu>(raw(4), 2, auxiliary), Step{}) < 1e-6);
    CHECK(test::layer_gradient_error(compressed_layer<Mlp>(TopKGate{.k = 3}, 1, auxiliary), Step{}) < 1e-6);
    CHECK(test::layer_gradient_error(compressed_layer<Mlp>(moe::TopPGate{.p = 0.8}, 1, auxiliary), Step{}) < 1e-6);
  }
  const moe::WithCapacity<TopKGate> limited{.gate = raw(3), .capacity = {.factor = 0.7, .min_capacity = 1}};
  CHECK(test::layer_gradient_error(compressed_layer<Mlp>(limited, 1), Step{}, 17) < 1e-6);
  const auto valid = test::every_nth_padding(17, 5);
  Step step;
  step.valid = valid;
  CHECK(test::layer_gradient_error(compressed_layer<Linear>(raw(3), 2), step, 17) < 1e-6);
  const auto full = test::layer_of<Mlp>(kExperts, raw(3));
  const moe::MoeLayer on_inputs(full.router(), full.gate(), full.experts(), moe::WeightOn::Input);
  auto compressed = moe::compress_auxiliary(on_inputs, 2);
  compressed.mixture().theta() *= 1.25;
  CHECK(test::layer_gradient_error(compressed, Step{}) < 1e-6);
}

TEST_CASE("CompressedExperts: any number of threads gives the same bits, and backward without tokens too",
          "[layer][property]") {
  const auto layer = compressed_layer<Glu>(raw(4), 2);
  const auto tokens = test::random_matrix<double>(150, kModelDim, 1);
  const auto passes = test::on_thread_counts([&] { return test::TrainingPass(layer, tokens, tokens); });
  for (const auto& pass : passes) {
    CHECK(test::same_bits(pass.out, passes[0].out));
    CHECK(test::same_bits(pass.out, test::forward(layer, tokens)));
    CHECK(test::same_bits(pass.dtokens, passes[0].dtokens));
    CHECK(test::same_parameters(pass.gradient, passes[0].gradient));
  }
  auto gradient = moe::zeros_like(layer);
  auto tape = typename decltype(layer)::Tape{};
  Matrix<double> out(150, kModelDim);
  layer.forward(tokens, Step{}, out, tape);
  layer.backward(tokens, tape, tokens, gradient);
  CHECK(test::same_parameters(gradient, passes[0].gradient));
  for (const Index t : {0, 77, 149})
    CHECK(test::same_bits(test::forward(layer, Matrix<double>(tokens.row(t))), Matrix<double>(out.row(t))));
}

TEST_CASE("CompressedExperts: a planted theta is found, which the main choices alone cannot make up for", "[layer]") {
  const auto full = test::layer_of<Mlp>(kExperts, raw(3));
  const moe::MoeLayer frozen(full.router(), full.gate(), moe::Frozen(full.experts()));
  auto teacher = moe::compress_auxiliary(frozen, 1);
  teacher.mixture().theta() += test::random_matrix<double>(kExperts, kModelDim, 5, 0.3);
  auto student = moe::compress_auxiliary(frozen, 1);
  const auto tokens = test::random_matrix<double>(600, kModelDim, 1);
  const Matrix<double> target = test::forward(teacher, tokens);
  const auto error = [&] { return (test::forward(student, tokens) - target).squaredNorm(); };
  const double before = error();
  moe::Trainer trainer(student, moe::AdamW{.weight_decay = 0});
  for (std::uint64_t i = 0; i < 400; ++i) {
    student.router() = teacher.router();  // theta alone
    trainer.accumulate(tokens, Step::train(i), [&](const Matrix<double>& out, Matrix<double>& dout) {
      dout = (out - target) / 600;
      return 0.0;
    });
    REQUIRE(trainer.update(i < 300 ? 0.03 : 0.003).taken);
  }
  student.router() = teacher.router();
  CHECK(error() < 0.01 * before);
  CHECK((student.mixture().theta() - teacher.mixture().theta()).norm() < 1e-2 * teacher.mixture().theta().norm());
}

TEST_CASE("CompressedExperts: routers of layers among the main experts are found", "[layer]") {
  const moe::LayerExpert inner(test::layer_of<Mlp>(2, raw(1)));
  const moe::MoeLayer full(moe::BasicLinearRouter<F64>::random(3, kModelDim, 7), raw(2),
                           moe::ExpertPool<std::remove_const_t<decltype(inner)>>({inner, inner, inner}));
  const auto layer = moe::compress_auxiliary(full, 1);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  typename std::remove_const_t<decltype(layer)>::Tape tape;
  Matrix<double> out(kTokens, kModelDim);
  layer.forward(tokens, Step{}, out, tape);
  std::vector<Index> rows;
  moe::for_each_routed(layer, tape,
                       [&](const moe::RoutedPass<double>& pass) { rows.push_back(pass.routing.num_tokens()); });
  REQUIRE(rows.size() == 4);
  CHECK(rows[0] == kTokens);
  CHECK(rows[1] + rows[2] + rows[3] == kTokens);
}

TEST_CASE("CompressedExperts: experts are taken and joined with their theta, and branches stay", "[layer]") {
  const auto layer = compressed_layer<Mlp>(raw(2), 1);
  const auto few = moe::take_experts(layer, {4, 1, 2});
  CHECK(test::same_bits(few.mixture().theta().row(0), layer.mixture().theta().row(4)));
  const auto both = moe::concatenate(layer, few);
  CHECK(both.num_experts() == 9);
  CHECK(test::same_bits(both.mixture().theta().row(7), layer.mixture().theta().row(1)));
  CHECK_THROWS_WITH(layer.mixture().concatenate(CompressedExperts(layer.experts(), 2)),
                    "moe::CompressedExperts::concatenate: main is not the same in both, expected equal options");
  const moe::WithBranches around(test::layer_of<Mlp>(3, raw(2)), Mlp::random(kModelDim, 5, 4));
  CHECK(moe::compress_auxiliary(around, 1).layer().mixture().main() == 1);
  CHECK(moe::num_parameters(layer) ==
        moe::num_parameters(test::layer_of<Mlp>(kExperts, raw(2))) + kExperts * kModelDim);
}

TEST_CASE("CompressedExperts: too many main choices, other sizes and other tapes are refused", "[layer][error]") {
  const auto full = test::layer_of<Mlp>(3, raw(2));
  CHECK_THROWS_WITH(moe::compress_auxiliary(full, 4),
                    "moe::CompressedExperts: main is 4, expected 1 <= main <= num_experts = 3");
  CHECK_THROWS_AS(moe::compress_auxiliary(full, 0), std::invalid_argument);
  CHECK_NOTHROW(moe::compress_auxiliary(full, 3));
  auto layer = moe::compress_auxiliary(full, 1);
  const auto tokens = test::random_matrix<double>(4, kModelDim);
  Matrix<double> out(4, kModelDim);
  typename decltype(layer)::Tape tape;
  auto gradient = moe::zeros_like(layer);
  CHECK_THROWS_AS(layer.backward(tokens, tape, out, gradient), std::invalid_argument);
  layer.forward(tokens, Step{}, out, tape);
  gradient.mixture().theta().resize(2, kModelDim);
  CHECK_THROWS_AS(layer.backward(tokens, tape, out, gradient), std::invalid_argument);
  layer.mixture().theta().resize(3, 2);
  CHECK_THROWS_WITH(layer.forward(tokens, Step{}, out, tape),
                    "moe::CompressedExperts::forward: theta is [3, 2], expected [3, 11]");
}
