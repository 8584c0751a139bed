// SPDX-License-Identifier: MIT
// Panel experts as a user would write them: stages that none of the shipped experts has, over several panels.
#include "layer/gradient_check.hpp"
#include "support/catch.hpp"

using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using Panels = moe::PanelMatrix<F64>;

namespace {

constexpr Index kDim = 21, kFirst = 37, kSecond = 19;  // none a multiple of a register, most above a panel

/// y = Tanh(((Silu-gated x) W1^T + b1) W2^T + b2): the middle stage is linear and the last has an activation.
class Chain : public moe::StagedExpert<Chain, F64> {
 public:
  using Tape = moe::StagedExpert<Chain, F64>::Tape<Chain>;
  Index input_dim() const { return first_.inputs(); }
  Index output_dim() const { return last_.outputs(); }
  template <class Self>
  static auto stages(Self& self) {
    return std::tuple{moe::make_stage<moe::Gated<moe::SwiGlu>>(self.first_, self.first_bias_),
                      moe::make_stage<moe::Elementwise<moe::Identity>>(self.middle_, self.middle_bias_),
                      moe::make_stage<moe::Elementwise<moe::Tanh>>(self.last_, self.last_bias_)};
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("first", self.first_...);
    f("first_bias", self.first_bias_...);
    f("middle", self.middle_...);
    f("middle_bias", self.middle_bias_...);
    f("last", self.last_...);
    f("last_bias", self.last_bias_...);
  }

  Matrix<double> reference(const Matrix<double>& rows) const {
    Matrix<double> hidden(rows.rows(), kFirst), out(rows.rows(), kDim);
    const Matrix<double> pre = affine(rows, first_, first_bias_);
    for (Index r = 0; r < rows.rows(); ++r)
      for (Index c = 0; c < kFirst; ++c) hidden(r, c) = pre(r, c) / (1 + std::exp(-pre(r, c))) * pre(r, kFirst + c);
    const Matrix<double> end = affine(affine(hidden, middle_, middle_bias_), last_, last_bias_);
    for (Index i = 0; i < end.size(); ++i) out.data()[i] = std::tanh(end.data()[i]);
    return out;
  }

 private:
  static Matrix<double> affine(const Matrix<double>& rows, const Panels& weight, const Panels& bias) {
    Matrix<double> out = Matrix<double>::Zero(rows.rows(), weight.outputs());
    for (Index r = 0; r < rows.rows(); ++r)
      for (Index o = 0; o < weight.outputs(); ++o) {
        for (Index i = 0; i < weight.inputs(); ++i) out(r, o) += rows(r, i) * weight(o, i);
        out(r, o) += bias(o, 0);
      }
    return out;
  }

  Panels first_{2 * kFirst, kDim, moe::PanelOrder::Paired};
  Panels first_bias_ = Panels::bias(2 * kFirst, moe::PanelOrder::Paired);
  Panels middle_{kSecond, kFirst}, middle_bias_ = Panels::bias(kSecond);
  Panels last_{kDim, kSecond}, last_bias_ = Panels::bias(kDim);
};

/// y = Silu(g) u of one product: a last stage that writes one register for two.
class GatedOnly : public moe::StagedExpert<GatedOnly, F64> {
 public:
  using Tape = moe::StagedExpert<GatedOnly, F64>::Tape<GatedOnly>;
  Index input_dim() const { return weight_.inputs(); }
  Index output_dim() const { return weight_.outputs() / 2; }
  template <class Self>
  static auto stages(Self& self) {
    return std::tuple{moe::make_stage<moe::Gated<moe::SwiGlu>>(self.weight_, self.bias_)};
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight_...);
    f("bias", self.bias_...);
  }

 private:
  Panels weight_{2 * kDim, kDim, moe::PanelOrder::Paired};
  Panels bias_ = Panels::bias(2 * kDim, moe::PanelOrder::Paired);
};

template <class E>
E random_chain(std::uint64_t seed) {
  E expert;
  test::randomise(expert, seed, 0.3);
  return expert;
}

template <class E>
auto layer_of() {
  return moe::MoeLayer(moe::BasicLinearRouter<F64>::random(2, kDim, 1), TopKGate{},
                       moe::ExpertPool<E>({random_chain<E>(1), random_chain<E>(20)}));
}

}  // namespace

TEST_CASE("PanelExpert: a chain with a linear middle and an activation at its end is computed as written", "[expert]") {
  const auto expert = random_chain<Chain>(1);
  const auto rows = test::random_matrix<double>(7, kDim);
  // Outputs below 1, sums of some 40 products below 10: 1e-13 is ten times their rounding.
  CHECK(test::largest(test::run(expert, rows) - expert.reference(rows)) < 1e-13);
}

TEST_CASE("PanelExpert: gradients of a user's stages are central differences in a pool", "[expert]") {
  CHECK(test::layer_gradient_error(layer_of<Chain>(), Step{}, 3) < 1e-6);
  CHECK(test::layer_gradient_error(layer_of<GatedOnly>(), Step{}, 3) < 1e-6);
}

TEST_CASE("PanelExpert: a user's stages have the same gradient outside a pool, and padding stays zero", "[expert]") {
  const auto expert = random_chain<Chain>(1);
  const auto rows = test::random_matrix<double>(7, kDim), dout = test::random_matrix<double>(7, kDim, 2);
  const moe::MoeLayer layer(moe::BasicLinearRouter<F64>(1, kDim), TopKGate{.k = 1}, moe::ExpertPool<Chain>({expert}));
  const test::TrainingPass pass(layer, rows, dout);
  moe::Scratch scratch;
  const Step step;
  const moe::Context context(step, scratch);
  Chain::Tape tape;
  Chain gradient = moe::zeros_like(expert);
  Matrix<double> out(7, kDim), drows(7, kDim);
  expert.forward(rows, out, context, tape);
  expert.backward(rows, tape, dout, drows, gradient, context);
  CHECK(test::same_bits(out, pass.out));
  CHECK(test::same_bits(drows, pass.dtokens));
  CHECK(test::same_parameters(gradient, pass.gradient.experts()[0]));
  CHECK(test::num_nonzero(gradient) == moe::num_parameters(gradient));
}
