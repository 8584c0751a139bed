// SPDX-License-Identifier: MIT
// Linear, Mlp and Glu on their own: against the reference, and their gradients against central differences.
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/gradient.hpp"

using moe::Bias;
using moe::F32;
using moe::F64;
using moe::Index;
using moe::Matrix;
using test::Mat;

namespace {

/// Errors of dL/drows and dL/dparameters of L = sum of out * c, relative as in gradient_error.
template <class E>
double gradient_error(E expert, Index num_rows) {
  Matrix<double> rows = test::random_matrix<double>(num_rows, expert.input_dim(), 3);
  const auto c = test::random_matrix<double>(num_rows, expert.output_dim(), 4);
  const moe::Step step;
  moe::Scratch scratch;
  const moe::Context context(step, scratch);
  typename E::Tape tape;
  auto out = test::nan_matrix<double>(num_rows, expert.output_dim());
  auto drows = test::nan_matrix<double>(num_rows, expert.input_dim());
  expert.forward(rows, out, context, tape);
  E gradient = moe::zeros_like(expert);
  expert.backward(rows, tape, c, drows, gradient, context);
  const auto loss = [&] {
    expert.forward(rows, out, context);
    double sum = 0;
    for (Index i = 0; i < out.size(); ++i) sum += out.data()[i] * c.data()[i];
    return sum;
  };
  return std::max(test::gradient_error(loss, rows, drows), test::parameter_gradient_error(loss, expert, gradient));
}

}  // namespace

TEMPLATE_TEST_CASE("Experts: forward is the reference within the error of the arithmetic", "[expert]",
                   moe::BasicLinear<F32>, moe::BasicLinear<F64>, moe::BasicMlp<F32>, moe::BasicMlp<F64>,
                   moe::BasicGlu<F32>, moe::BasicGlu<F64>) {
  using S = typename TestType::Scalar;
  constexpr Index kLanes = moe::simd::kLanes<S>;
  for (const Index dim : {Index{1}, kLanes - 1, kLanes + 1, 4 * kLanes + 3})
    for (const Index other : {Index{1}, kLanes, 2 * kLanes + 1})
      for (const Bias bias : {Bias::Off, Bias::Zero})
        for (const Index rows : {0, 1, 2, 6, 13}) {
          const auto expert = test::random_expert<TestType>(dim, other, 1, bias);
          const auto x = test::random_matrix<S>(rows, expert.input_dim());
          CAPTURE(dim, other, bias, rows);
          CHECK(test::reference_of(expert, x.template cast<double>()).worst(test::run(expert, x)) <= 1);
        }
}

TEST_CASE("Glu: the default is SwiGLU and gelu that of the reference", "[expert]") {
  const auto x = test::random_matrix<double>(5, 7);
  const auto glu = test::random_expert<moe::BasicGlu<F64>>(7, 9, 1);
  const Mat hidden = reference::swiglu(reference::linear(x, test::in_double(glu.gate_up())));
  const auto expected = reference::linear(hidden, test::in_double(glu.down()));
  CHECK(test::largest(expected - test::run(glu, x)) < 1e-13);  // 30 operations on numbers of order 1
  const auto mlp = test::random_expert<moe::BasicMlp<F64>>(7, 9, 1);
  const Mat up = reference::linear(x, test::in_double(mlp.up()), test::in_double(mlp.up_bias()));
  const auto gelu = reference::linear(reference::map(up, reference::gelu), test::in_double(mlp.down()),
                                      test::in_double(mlp.down_bias()));
  CHECK(test::largest(gelu - test::run(mlp, x)) < 1e-13);
}

TEMPLATE_TEST_CASE("Experts: gradients are central differences, with and without biases", "[expert]",
                   moe::BasicLinear<F64>, moe::BasicMlp<F64>, moe::BasicGlu<F64>) {
  for (const Bias bias : {Bias::Off, Bias::Zero})
    for (const Index rows : {1, 7}) {
      CAPTURE(bias, rows);
      CHECK(gradient_error(test::random_expert<TestType>(6, 19, 5, bias), rows) < 1e-6);
    }
}

TEST_CASE("Experts: a hidden size of zero leaves the last bias", "[expert]") {
  const auto expert = test::random_expert<moe::BasicMlp<F64>>(5, 0, 1, Bias::Zero);
  const auto out = test::run(expert, test::random_matrix<double>(3, 5));
  for (Index r = 0; r < 3; ++r) CHECK(test::same_bits(out.row(r), expert.down_bias().matrix().transpose()));
}

TEST_CASE("Experts: buffers full of NaN do not change a bit, forward or backward", "[expert]") {
  using Glu = moe::BasicGlu<F64>;
  const auto expert = test::random_expert<Glu>(13, 21, 3, Bias::Zero);
  const auto x = test::random_matrix<double>(7, 13), c = test::random_matrix<double>(7, 13, 2);
  const moe::Step step;
  const auto run = [&](const Matrix<double>& rows, const Matrix<double>& dout, moe::Scratch& scratch, Glu::Tape& tape) {
    const moe::Context context(step, scratch);
    auto out = test::nan_matrix<double>(rows.rows(), 13), dx = out;
    auto gradient = moe::zeros_like(expert);
    expert.forward(rows, out, context, tape);
    expert.backward(rows, tape, dout, dx, gradient, context);
    return std::tuple{out, dx, gradient};
  };
  moe::Scratch clean_scratch, dirty_scratch;
  Glu::Tape clean, dirty;
  const auto nans = test::nan_matrix<double>(16, 13);
  CHECK(std::get<1>(run(nans, nans, dirty_scratch, dirty)).hasNaN());
  const auto [out, dx, gradient] = run(x, c, clean_scratch, clean);
  const auto [out2, dx2, gradient2] = run(x, c, dirty_scratch, dirty);
  CHECK(test::same_bits(out, out2));
  CHECK(test::same_bits(dx, dx2));
  CHECK(test::same_parameters(gradient, gradient2));
}

TEMPLATE_TEST_CASE("Experts: the padding of gradients stays zero", "[expert]", moe::BasicGlu<F64>, moe::BasicMlp<F64>,
                   moe::BasicLinear<F64>) {
  const Index hidden =
      4 * moe::simd::kLanes<double> + 5;  // padding in the last panel, whose activation has a slope at 0
  const auto expert = test::random_expert<TestType>(13, hidden, 3, Bias::Zero);
  const auto x = test::random_matrix<double>(7, expert.input_dim());
  const auto dout = test::random_matrix<double>(7, expert.output_dim());
  const moe::Step step;
  moe::Scratch scratch;
  const moe::Context context(step, scratch);
  typename TestType::Tape tape;
  Matrix<double> out(7, expert.output_dim()), dx(7, expert.input_dim());
  auto gradient = moe::zeros_like(expert);
  const auto nan_rows = test::nan_matrix<double>(7, expert.input_dim()),
             nan_dout = test::nan_matrix<double>(7, expert.output_dim());
  expert.forward(nan_rows, out, context, tape);  // leaves NaN wherever it writes
  expert.backward(nan_rows, tape, nan_dout, dx, gradient, context);
  gradient = moe::zeros_like(expert);
  expert.forward(x, out, context, tape);
  expert.backward(x, tape, dout, dx, gradient, context);
  CHECK(test::num_nonzero(gradient) == moe::num_parameters(gradient));
}

TEST_CASE("Experts: the tape of another expert is refused", "[expert][error]") {
  using Mlp = moe::BasicMlp<F64>;
  const Mlp narrow(4, 6), wide(4, 600);
  const Matrix<double> rows = Matrix<double>::Zero(2, 4);
  const moe::Step step;
  moe::Scratch scratch;
  const moe::Context context(step, scratch);
  Mlp::Tape tape;
  Matrix<double> out(2, 4);
  narrow.forward(rows, out, context, tape);
  auto gradient = moe::zeros_like(wide);
  CHECK_THROWS_WITH(wide.backward(rows, tape, rows, out, gradient, context),
                    Catch::Matchers::ContainsSubstring("pre of stage 0 in the tape is [2, "));
}

TEST_CASE("Experts: wrong shapes are refused", "[expert][error]") {
  using Mlp = moe::BasicMlp<F64>;
  Mlp expert(4, 6);
  const moe::Step step;
  moe::Scratch scratch;
  const moe::Context context(step, scratch);
  Mlp::Tape tape;
  Matrix<double> rows(2, 4), out(2, 4), narrow(2, 3), three(3, 4);
  for (auto* matrix : {&rows, &narrow, &three}) matrix->setZero();
  CHECK_THROWS_WITH(expert.forward(narrow, out, context),
                    "moe::StagedExpert::forward: rows is [2, 3], expected [2, 4]");
  CHECK_THROWS_WITH(expert.forward(rows, three, context), "moe::StagedExpert::forward: out is [3, 4], expected [2, 4]");
  expert.forward(rows, out, context, tape);
  Mlp gradient(4, 7), unbiased(4, 6, Bias::Off);
  CHECK_THROWS_WITH(
      expert.backward(rows, tape, rows, out, gradient, context),
      "moe::StagedExpert::backward: gradient of expert 0, stage 0 is [7, 4] with 7 biases, expected [6, 4] with 6");
  CHECK_THROWS_WITH(
      expert.backward(rows, tape, rows, out, unbiased, context),
      "moe::StagedExpert::backward: gradient of expert 0, stage 0 is [6, 4] with 0 biases, expected [6, 4] with 6");
  CHECK_THROWS_WITH(expert.backward(rows, tape, narrow, out, expert, context),
                    "moe::StagedExpert::backward: dout is [2, 3], expected [2, 4]");
  CHECK_THROWS_WITH(expert.backward(three, tape, rows, out, expert, context),
                    "moe::StagedExpert::backward: rows is [3, 4], expected [2, 4]");
  CHECK_THROWS_WITH(Mlp(4, -1), "moe::Mlp: hidden_dim is -1, expected at least 0");
  CHECK_THROWS_WITH(moe::Glu(4, -1), "moe::Glu: hidden_dim is -1, expected at least 0");
  CHECK_THROWS_WITH(moe::Glu(4, moe::Index{1} << 62),
                    "moe::Glu: hidden_dim is 4611686018427387904, expected at most 2^48");
  CHECK_THROWS_WITH(moe::Linear::random(-2, 3, 1), "moe::Linear: output_dim is -2, expected at least 0");
}
