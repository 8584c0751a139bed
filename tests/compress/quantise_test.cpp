// SPDX-License-Identifier: MIT
// Experts, pools and layers with weights in few bits: the bits of the layer of decoded weights, everywhere.
#include "moe/compress/quantise.hpp"

#include "layer/fixtures.hpp"
#include "moe/train/adam_w.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::Bias;
using moe::ExpertMatrix;
using moe::Index;
using moe::Matrix;
using moe::Quantised;
using moe::TopKGate;
using moe::WeightFormat;

namespace {

constexpr Index kExperts = 5;

template <class E>
auto layer_of(const moe::Widths& widths) {
  std::vector<E> experts;
  for (std::uint64_t e = 0; e < kExperts; ++e) {
    E expert(widths, Bias::Zero);
    test::randomise(expert, 10 * e, 0.2);
    experts.push_back(std::move(expert));
  }
  return moe::MoeLayer(moe::LinearRouter::random(kExperts, widths.input, 3), TopKGate{.k = 2},
                       moe::ExpertPool<E>(std::move(experts)));
}

/// Every expert and matrix in a format of its own.
WeightFormat any_format(const ExpertMatrix& matrix) {
  const WeightFormat formats[] = {WeightFormat::int4(),    WeightFormat::bf16(),
                                  WeightFormat::planes(3), WeightFormat::fp8(),
                                  WeightFormat::mxfp4(),   WeightFormat::int8(),
                                  WeightFormat::planes(2), WeightFormat::f16(),
                                  WeightFormat::nvfp4(),   WeightFormat::int4().with_zero_points()};
  return formats[static_cast<std::size_t>(2 * matrix.expert + (matrix.name == "down.weight" ? 1 : 0)) % 10];
}

/// What does not depend on whether weights have a gradient: outputs, input gradients, gradients of router and biases.
struct Pass {
  Matrix<float> out, trained, dtokens;
  std::vector<float> gradients;
};

template <class Layer>
Pass pass(const Layer& layer, const Matrix<float>& tokens) {
  Pass result;
  result.out = test::forward(layer, tokens);
  result.trained = test::nan_matrix<float>(tokens.rows(), layer.output_dim());
  result.dtokens = test::nan_matrix<float>(tokens.rows(), tokens.cols());
  typename Layer::Tape tape;
  layer.forward(tokens, moe::Step{}, result.trained, tape);
  Layer gradient = moe::zeros_like(layer);
  const auto dout = test::random_matrix<float>(tokens.rows(), layer.output_dim(), 9);
  layer.backward(tokens, tape, dout, gradient, result.dtokens);
  moe::visit(
      [&](const std::string& name, const auto& leaf) {
        if (!name.starts_with("router") && !name.ends_with("bias")) return;
        const auto values = moe::parameter_span(leaf);
        result.gradients.insert(result.gradients.end(), values.begin(), values.end());
      },
      gradient);
  return result;
}

template <class Layer>
void check_decoded(const Layer& layer) {
  const auto decoded = moe::dequantise(layer);
  for (const Index tokens : {0, 1, 2, 7, 90})
    for (const Index threads : {1, 3}) {
      test::ThreadExecutor executor(threads);
      const moe::UseExecutor use(executor);
      CAPTURE(tokens, threads);
      const auto x = test::random_matrix<float>(tokens, layer.input_dim(), 5);
      const Pass a = pass(layer, x), b = pass(decoded, x);
      CHECK(test::same_bits(a.out, b.out));
      CHECK(test::same_bits(a.trained, b.trained));
      CHECK(test::same_bits(a.dtokens, b.dtokens));
      REQUIRE(a.gradients.size() == b.gradients.size());
      for (std::size_t i = 0; i < a.gradients.size(); ++i) REQUIRE(test::same_bits(a.gradients[i], b.gradients[i]));
    }
}

}  // namespace

TEST_CASE("quantise: a layer has the bits of its decoded weights, whatever the formats", "[compress]") {
  for (const moe::Widths& widths : {moe::Widths{.input = 130, .hidden = 70, .output = 19}, {5, 7, 3}, {64, 515, 64}}) {
    check_decoded(moe::quantise(layer_of<moe::Glu>(widths), any_format));
    check_decoded(moe::quantise(layer_of<moe::Mlp>(widths), any_format));
  }
}

TEST_CASE("quantise: one format for all, and its numbers", "[compress]") {
  const auto layer = layer_of<moe::Glu>({.input = 64, .hidden = 96, .output = 64});
  const auto small = moe::quantise(layer, WeightFormat::int8());
  for (Index e = 0; e < kExperts; ++e) {
    CHECK(small.experts()[e].gate_up().format() == WeightFormat::int8());
    CHECK(small.experts()[e].gate_up().order() == moe::PanelOrder::Paired);
    CHECK(test::same_bits(small.experts()[e].down().decoded().matrix(),
                          moe::round_to_nearest(layer.experts()[e].down(), WeightFormat::int8()).decoded().matrix()));
    CHECK(test::same_bits(small.experts()[e].gate_up_bias().matrix(), layer.experts()[e].gate_up_bias().matrix()));
  }
  const auto x = test::random_matrix<float>(50, 64);
  const Matrix<float> exact = test::forward(layer, x), rounded = test::forward(small, x);
  CHECK((exact - rounded).norm() < 0.01f * exact.norm());
  // What is learned are router and biases; the rest is state.
  CHECK(moe::num_parameters(small) == moe::num_parameters(layer) - kExperts * (2 * 96 * 64 + 64 * 96));
  CHECK(moe::num_state(small) == kExperts * (2 * 96 * 64 + 64 * 96));
}

TEST_CASE("quantise: what a format cannot hold is named with its expert", "[compress]") {
  auto layer = layer_of<moe::Mlp>({.input = 6, .hidden = 9, .output = 6});
  layer.experts()[3].down().set(2, 1, test::kNan<float>);
  CHECK_THROWS_WITH(moe::quantise(layer, WeightFormat::int4()),
                    "moe::quantise: expert 3, down.weight: moe::PanelMatrix::round: weight of output 2, input 1 is "
                    "nan, expected one that int4-g32 can hold");
}

TEST_CASE("quantise: a quantiser of one's own gets every matrix", "[compress]") {
  struct Halves {
    moe::PanelMatrix<Quantised> operator()(const moe::PanelMatrix<moe::F32>& weights,
                                           const WeightFormat& format) const {
      moe::PanelMatrix<moe::F32> half = weights;
      for (float& w : half.span()) w *= 0.5f;
      return moe::round_to_nearest(half, format);
    }
  };
  moe::Linear linear(7, 40, Bias::Zero);
  test::randomise(linear, 1, 0.3);
  const auto small = moe::quantise(linear, WeightFormat::f16(), Halves{});
  CHECK(small.weight().get(3, 20) == 0.5f * moe::quantise(linear, WeightFormat::f16()).weight().get(3, 20));
}

TEST_CASE("quantise: branches stay, and training moves router and biases around the codes", "[compress]") {
  const moe::WithBranches layer(layer_of<moe::Mlp>({.input = 20, .hidden = 33, .output = 20}),
                                moe::Mlp::random(20, 15, 4));
  auto small = moe::quantise(layer, WeightFormat::int4());
  check_decoded(small);
  const auto before = small;
  const auto x = test::random_matrix<float>(12, 20);
  typename decltype(small)::Tape tape;
  Matrix<float> out(12, 20);
  small.forward(x, moe::Step{}, out, tape);
  auto gradient = moe::zeros_like(small);
  small.backward(x, tape, out, gradient);
  CHECK(gradient.layer().experts()[0].up().source().matrix == small.layer().experts()[0].up().source().matrix);
  moe::AdamW adam{.weight_decay = 0.5};
  moe::AdamW::State state(small);
  REQUIRE(adam.step(small, gradient, state, 0.1));
  CHECK(small.layer().experts()[1].up().source().matrix == before.layer().experts()[1].up().source().matrix);
  CHECK(
      !test::same_bits(small.layer().experts()[1].up_bias().matrix(), before.layer().experts()[1].up_bias().matrix()));
}

TEST_CASE("quantise: experts of no weights give their biases", "[compress]") {
  const auto layer = layer_of<moe::Mlp>({.input = 6, .hidden = 9, .output = 6});
  const auto none = moe::quantise(layer, WeightFormat::none());
  const Matrix<float> out = test::run(none.experts()[2], test::random_matrix<float>(3, 6));
  for (Index r = 0; r < 3; ++r) CHECK(test::same_bits(out.row(r), layer.experts()[2].down_bias().matrix().transpose()));
  check_decoded(none);
}
