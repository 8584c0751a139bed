// SPDX-License-Identifier: MIT
// Weights that are codes: whatever the format, the bits are those of panels of the decoded weights.
#include <variant>

#include "kernel/truncated_panels.hpp"
#include "layer/fixtures.hpp"
#include "moe/train/adam_w.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::Bias;
using moe::F32;
using moe::Index;
using moe::Matrix;
using moe::PanelMatrix;
using moe::PanelOrder;
using moe::TopKGate;
using Expanded = test::Truncated<test::FewRows::Expanded>;
using Streamed = test::Truncated<test::FewRows::Streamed>;

namespace {

/// A matrix of any format, as one pool may hold them side by side.
class AnyPanels {
 public:
  using Scalar = float;
  AnyPanels() = default;
  template <class Codec>
  AnyPanels(PanelMatrix<Codec> panels) : panels_(std::move(panels)) {}

  Index outputs() const {
    return std::visit([](const auto& panels) { return panels.outputs(); }, panels_);
  }
  Index inputs() const {
    return std::visit([](const auto& panels) { return panels.inputs(); }, panels_);
  }
  Index panels() const {
    return std::visit([](const auto& panels) { return panels.panels(); }, panels_);
  }
  PanelOrder order() const {
    return std::visit([](const auto& panels) { return panels.order(); }, panels_);
  }
  moe::kernel::PanelSource<float> source() const {
    return std::visit([](const auto& panels) { return panels.source(); }, panels_);
  }

 private:
  std::variant<PanelMatrix<F32>, PanelMatrix<Expanded>, PanelMatrix<Streamed>> panels_;
};

/// A Glu of AnyPanels.
class AnyGlu : public moe::StagedExpert<AnyGlu, F32> {
 public:
  using Tape = moe::StagedExpert<AnyGlu, F32>::Tape<AnyGlu>;
  template <class Codec>
  explicit AnyGlu(const moe::BasicGlu<Codec>& glu)
      : gate_up_(glu.gate_up()), down_(glu.down()), gate_up_bias_(glu.gate_up_bias()), down_bias_(glu.down_bias()) {}
  Index input_dim() const { return gate_up_.inputs(); }
  Index output_dim() const { return down_.outputs(); }
  template <class Self>
  static auto stages(Self& self) {
    return std::tuple{moe::make_stage<moe::Gated<moe::SwiGlu>>(self.gate_up_, self.gate_up_bias_),
                      moe::make_stage<moe::Elementwise<moe::Identity>>(self.down_, self.down_bias_)};
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("gate_up.bias", self.gate_up_bias_...);
    f("down.bias", self.down_bias_...);
  }

 private:
  AnyPanels gate_up_, down_;
  PanelMatrix<F32> gate_up_bias_, down_bias_;
};

/// Weights that the codes hold exactly.
PanelMatrix<F32> representable(PanelMatrix<F32> weights) {
  for (float& weight : weights.span()) weight = test::restored(test::truncated(weight));
  return weights;
}
moe::Linear representable(moe::Linear expert) {
  expert.weight() = representable(expert.weight());
  return expert;
}
moe::Mlp representable(moe::Mlp expert) {
  expert.up() = representable(expert.up());
  expert.down() = representable(expert.down());
  return expert;
}
moe::Glu representable(moe::Glu expert) {
  expert.gate_up() = representable(expert.gate_up());
  expert.down() = representable(expert.down());
  return expert;
}

template <class Codec>
moe::BasicLinear<Codec> coded(const moe::Linear& expert) {
  moe::BasicLinear<Codec> result(expert.output_dim(), expert.input_dim(), Bias::Zero);
  result.weight() = PanelMatrix<Codec>::from(expert.weight());
  result.bias() = expert.bias();
  return result;
}
template <class Codec>
moe::BasicMlp<Codec> coded(const moe::Mlp& expert) {
  moe::BasicMlp<Codec> result({expert.input_dim(), expert.hidden_dim(), expert.output_dim()}, Bias::Zero);
  result.up() = PanelMatrix<Codec>::from(expert.up());
  result.down() = PanelMatrix<Codec>::from(expert.down());
  result.up_bias() = expert.up_bias();
  result.down_bias() = expert.down_bias();
  return result;
}
template <class Codec>
moe::BasicGlu<Codec> coded(const moe::Glu& expert) {
  moe::BasicGlu<Codec> result({expert.input_dim(), expert.hidden_dim(), expert.output_dim()}, Bias::Zero);
  result.gate_up() = PanelMatrix<Codec>::from(expert.gate_up());
  result.down() = PanelMatrix<Codec>::from(expert.down());
  result.gate_up_bias() = expert.gate_up_bias();
  result.down_bias() = expert.down_bias();
  return result;
}

template <class E>
auto layer_of(std::vector<E> experts) {
  auto router = moe::LinearRouter::random(std::ssize(experts), experts[0].input_dim(), 3);
  return moe::MoeLayer(std::move(router), TopKGate{.k = 2}, moe::ExpertPool<E>(std::move(experts)));
}

/// Everything that does not depend on whether weights have a gradient.
struct Pass {
  Matrix<float> out, trained, dtokens;
  std::vector<float> gradients;  ///< of the router, then of all biases
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

void check_equal(const Pass& a, const Pass& b) {
  CHECK(test::same_bits(a.out, b.out));
  CHECK(test::same_bits(a.trained, b.trained));
  CHECK(test::same_bits(a.dtokens, b.dtokens));
  REQUIRE(a.gradients.size() == b.gradients.size());
  for (std::size_t i = 0; i < a.gradients.size(); ++i) REQUIRE(test::same_bits(a.gradients[i], b.gradients[i]));
}

/// For every number of tokens and threads, codes are their decoded weights.
template <class Codec, class E>
void check_coded(const std::vector<E>& plain) {
  std::vector<decltype(coded<Codec>(plain[0]))> codes;
  for (const E& expert : plain) codes.push_back(coded<Codec>(expert));
  const auto decoded = layer_of(plain);
  const auto layer = layer_of(std::move(codes));
  for (const Index tokens : {0, 1, 2, 7, 70})
    for (const Index threads : {1, 3}) {
      test::ThreadExecutor executor(threads);
      const moe::UseExecutor use(executor);
      CAPTURE(tokens, threads);
      const auto x = test::random_matrix<float>(tokens, decoded.input_dim(), 5);
      check_equal(pass(layer, x), pass(decoded, x));
    }
}

template <class E>
std::vector<E> experts_of(const moe::Widths& widths) {
  std::vector<E> experts;
  for (std::uint64_t e = 0; e < 3; ++e) {
    E expert(widths, Bias::Zero);
    test::randomise(expert, 10 * e, 0.2);
    experts.push_back(representable(expert));
  }
  return experts;
}

}  // namespace

TEMPLATE_TEST_CASE("coded weights: bits of the decoded weights, for sizes around registers, panels and blocks",
                   "[expert]", Expanded, Streamed) {
  const auto [input, hidden, output] =
      GENERATE(std::tuple{1, 1, 1}, std::tuple{5, 7, 3}, std::tuple{33, 70, 16}, std::tuple{64, 17, 66},
               std::tuple{130, 515, 20}, std::tuple{700, 3, 1});
  CAPTURE(input, hidden, output);
  const moe::Widths widths{.input = input, .hidden = hidden, .output = output};
  check_coded<TestType>(experts_of<moe::Glu>(widths));
  check_coded<TestType>(experts_of<moe::Mlp>(widths));
}

TEST_CASE("coded weights: rows in several blocks, and more than can wait", "[expert]") {
  constexpr Index kInputs = 2 * moe::kernel::detail::kExpandedInputs<float> + 14;
  const auto plain = experts_of<moe::Glu>({.input = kInputs, .hidden = 40, .output = 35});
  std::vector<moe::BasicGlu<Expanded>> codes;
  for (const moe::Glu& expert : plain) codes.push_back(coded<Expanded>(expert));
  // Two of three experts: some have more rows than can wait.
  const auto x = test::random_matrix<float>(moe::kernel::detail::kWaitingRows<float> * 7 / 4, kInputs, 5);
  check_equal(pass(layer_of(std::move(codes)), x), pass(layer_of(plain), x));
}

TEST_CASE("coded weights: a product of the format's own serves few rows, and no others", "[expert]") {
  const auto expert = coded<Streamed>(experts_of<moe::Glu>({.input = 33, .hidden = 50, .output = 19})[0]);
  const auto products = [&](Index rows) {
    const Index before = PanelMatrix<Streamed>::products;
    test::run(expert, test::random_matrix<float>(rows, 33));
    return PanelMatrix<Streamed>::products - before;
  };
  CHECK(products(1) > 0);
  CHECK(products(moe::kernel::kTileRows / 2) > 0);
  CHECK(products(moe::kernel::kTileRows / 2 + 1) == 0);
}

TEST_CASE("coded weights: one pool mixes formats", "[expert]") {
  const auto plain = experts_of<moe::Glu>({.input = 130, .hidden = 50, .output = 19});
  const std::vector<AnyGlu> mixed = {AnyGlu(coded<Expanded>(plain[0])), AnyGlu(plain[1]),
                                     AnyGlu(coded<Streamed>(plain[2]))};
  for (const Index tokens : {1, 5, 60}) {
    const auto x = test::random_matrix<float>(tokens, 130, 5);
    check_equal(pass(layer_of(mixed), x), pass(layer_of(plain), x));
  }
}

TEST_CASE("coded weights: a linear expert, alone and in a pool", "[expert]") {
  std::vector<moe::Linear> plain;
  for (std::uint64_t e = 0; e < 3; ++e) {
    moe::Linear expert(37, 300, Bias::Zero);
    test::randomise(expert, e, 0.1);
    plain.push_back(representable(expert));
  }
  check_coded<Expanded>(plain);
  const auto x = test::random_matrix<float>(9, 300, 5);
  CHECK(test::same_bits(test::run(coded<Streamed>(plain[0]), x), test::run(plain[0], x)));
}

TEST_CASE("coded weights: are state, which gradients share and optimisers leave alone", "[expert]") {
  const auto plain = experts_of<moe::Mlp>({.input = 9, .hidden = 21, .output = 9});
  moe::BasicMlp<Expanded> expert = coded<Expanded>(plain[0]);
  CHECK(moe::num_parameters(expert) == 21 + 9);
  CHECK(moe::num_state(expert) == 2 * 9 * 21);
  std::vector<std::string> names;
  moe::visit_all([&](const std::string& name, const auto&) { names.push_back(name); }, expert);
  CHECK(names == std::vector<std::string>{"up.bias", "down.bias", "up.weight", "down.weight"});

  auto gradient = moe::zeros_like(expert);
  CHECK(gradient.up().codes() == expert.up().codes());
  CHECK(gradient.down().codes() == expert.down().codes());
  gradient.up_bias().set(3, 0, 1.0f);
  const auto before = expert;
  moe::AdamW adam{.weight_decay = 0.5};
  moe::AdamW::State state(expert);
  CHECK(state.first.up().codes() == expert.up().codes());
  REQUIRE(adam.step(expert, gradient, state, 0.1));
  CHECK(expert.up_bias().get(3, 0) != before.up_bias().get(3, 0));
  CHECK(expert.up().codes() == before.up().codes());

  expert.up().set(2, 1, 8.0f);  // a copy is made for the one that is written
  CHECK(expert.up().get(2, 1) == 8.0f);
  CHECK(before.up().get(2, 1) == plain[0].up().get(2, 1));
}

TEST_CASE("coded weights: parts that do not fit are refused by name", "[expert]") {
  auto expert = coded<Expanded>(experts_of<moe::Mlp>({.input = 9, .hidden = 21, .output = 9})[0]);
  expert.down() = PanelMatrix<Expanded>(9, 20);
  CHECK_THROWS_WITH(test::run(expert, test::random_matrix<float>(2, 9)),
                    Catch::Matchers::ContainsSubstring("stage 1 of expert 0 is [9, 20] with 9 biases"));
}

namespace {

/// Weights that hand other sizes to the kernels than they claim.
struct Liar {
  using Scalar = float;
  Index claimed_panels = 1, source_panels = 1, source_inputs = 5;
  PanelMatrix<F32> honest{3, 5};

  Index outputs() const { return 3; }
  Index inputs() const { return 5; }
  Index panels() const { return claimed_panels; }
  PanelOrder order() const { return PanelOrder::Plain; }
  moe::kernel::PanelSource<float> source() const {
    auto source = honest.source();
    source.panels = source_panels;
    source.inputs = source_inputs;
    return source;
  }
};

class LyingExpert : public moe::StagedExpert<LyingExpert, F32> {
 public:
  explicit LyingExpert(const Liar& weight) : weight_(weight) {}
  Index input_dim() const { return 5; }
  Index output_dim() const { return 3; }
  template <class Self>
  static auto stages(Self& self) {
    return std::tuple{moe::make_stage<moe::Elementwise<moe::Identity>>(self.weight_, self.bias_)};
  }

 private:
  Liar weight_;
  PanelMatrix<F32> bias_;
};

}  // namespace

TEST_CASE("coded weights: a source of other sizes than its weight is refused", "[expert]") {
  const auto rows = test::random_matrix<float>(2, 5);
  CHECK_NOTHROW(test::run(LyingExpert(Liar{}), rows));
  CHECK_THROWS_WITH(
      test::run(LyingExpert({.source_inputs = 6}), rows),
      "moe::PanelExpert: stage 0 of expert 0 has 1 panels, and a source of 1 with 6 inputs, expected those "
      "of a matrix [3, 5]");
  CHECK_THROWS_AS(test::run(LyingExpert({.source_panels = 2}), rows), std::invalid_argument);
  CHECK_THROWS_AS(test::run(LyingExpert({.claimed_panels = 2, .source_panels = 2}), rows), std::invalid_argument);
}

TEST_CASE("coded weights: NaN and infinity reach their own output alone, for few rows and many", "[expert]") {
  moe::Linear plain(37, 300, Bias::Zero);
  test::randomise(plain, 1, 0.1);
  plain = representable(plain);
  plain.weight().set(5, 7, std::numeric_limits<float>::infinity());
  plain.weight().set(20, 299, test::kNan<float>);
  const auto expanded = coded<Expanded>(plain);
  const auto streamed = coded<Streamed>(plain);
  for (const Index count : {1, 40}) {
    const auto rows = test::random_matrix<float>(count, 300, 5);
    const Matrix<float> expected = test::run(plain, rows);
    for (const Matrix<float>& out : {test::run(expanded, rows), test::run(streamed, rows)})
      for (Index r = 0; r < count; ++r)
        for (Index o = 0; o < 37; ++o) {
          REQUIRE(std::isfinite(out(r, o)) == (o != 5 && o != 20));
          if (o != 20) REQUIRE(test::same_bits(out(r, o), expected(r, o)));
        }
  }
}

TEST_CASE("PanelMatrix: get and set look whether the place is there", "[expert]") {
  PanelMatrix<F32> matrix(3, 2);
  matrix.set(2, 1, 5);
  CHECK(matrix.get(2, 1) == 5);
  CHECK(matrix(2, 1) == 5);
  CHECK_THROWS_WITH(matrix.get(3, 0), "moe::PanelMatrix::get: output 3, input 0, expected places of a matrix [3, 2]");
  CHECK_THROWS_WITH(matrix.get(0, -1), "moe::PanelMatrix::get: output 0, input -1, expected places of a matrix [3, 2]");
  CHECK_THROWS_WITH(matrix.set(0, 2, 1),
                    "moe::PanelMatrix::set: output 0, input 2, expected places of a matrix [3, 2]");
}
