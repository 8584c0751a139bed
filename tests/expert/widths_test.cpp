// SPDX-License-Identifier: MIT
// Experts whose output is wider or narrower than their input.
#include "moe/expert/widths.hpp"

#include "moe/expert/gated_expert.hpp"
#include "moe/expert/one_of.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"

using moe::Bias;
using moe::ExpertPool;
using moe::F32;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Widths;
using test::Mat;

namespace {

/// Around one, two and three registers of every instruction set; narrower,
/// wider, one column, and as wide.
constexpr Widths kWidths[] = {{11, 9, 3}, {3, 17, 35}, {1, 5, 7}, {33, 2, 1}, {16, 16, 32}, {11, 9, 11}};

template <class E>
E random_expert(const Widths& widths, Bias bias, std::uint64_t seed = 1) {
  E expert(widths, bias);
  test::randomise(expert, seed);
  return expert;
}

template <class E>
void check_forward(const Widths& widths, Bias bias) {
  using S = typename E::Scalar;
  const auto expert = random_expert<E>(widths, bias);
  CAPTURE(widths.input, widths.hidden, widths.output, bias == Bias::Zero);
  CHECK(expert.input_dim() == widths.input);
  CHECK(expert.hidden_dim() == widths.hidden);
  CHECK(expert.output_dim() == widths.output);
  for (const Index rows : {0, 1, 7}) {
    const auto x = test::random_matrix<S>(rows, widths.input, 2);
    CHECK(test::reference_of(expert, Mat(x.template cast<double>())).worst(test::run(expert, x)) <= 1);
  }
}

/// dL/drows and dL/dparameters of L = <out, c> against central differences.
template <class E>
double expert_gradient_error(E expert) {
  auto x = test::random_matrix<double>(5, expert.input_dim(), 2);
  const auto c = test::random_matrix<double>(5, expert.output_dim(), 3);
  auto out = test::nan_matrix<double>(5, expert.output_dim()), dx = test::nan_matrix<double>(5, expert.input_dim());
  const moe::Step step;
  moe::Scratch scratch;
  moe::Context context{step, scratch};
  typename E::Tape tape;
  E gradient = moe::zeros_like(expert);
  expert.forward(x, out, context, tape);
  expert.backward(x, tape, c, dx, gradient, context);
  CHECK(test::num_nonzero(gradient) <= moe::num_parameters(gradient));  // nothing in the padding
  const auto loss = [&] {
    double sum = 0;
    const Matrix<double> y = test::run(expert, x);
    for (Index i = 0; i < y.size(); ++i) sum += y.data()[i] * c.data()[i];
    return sum;
  };
  return std::max(test::gradient_error(loss, x, dx), test::parameter_gradient_error(loss, expert, gradient));
}

/// Rows of a pool in plan order are those of its experts alone, bit for bit.
template <class E>
void check_pool(const ExpertPool<E>& pool) {
  using S = typename E::Scalar;
  moe::DispatchPlan plan;
  plan.build(test::random_ragged_routing(23, pool.size()), pool.size());
  const auto tokens = test::random_matrix<S>(23, pool.input_dim(), 4);
  moe::RowBuffer<S> out;
  out.resize(plan.num_rows(), pool.row_width());
  pool.forward(tokens, plan, moe::Step{}, out);
  for (Index e = 0; e < pool.size(); ++e) {
    Matrix<S> rows(plan.rows_of(e), pool.input_dim());
    for (Index r = 0; r < rows.rows(); ++r)
      rows.row(r) = tokens.row(plan.token_of_row()[std::size_t(plan.offset(e) + r)]);
    CAPTURE(e);
    CHECK(test::same_bits(Matrix<S>(out.matrix().middleRows(plan.offset(e), rows.rows()).leftCols(pool.output_dim())),
                          test::run(pool[e], rows)));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("Widths: forward is the reference, whatever the output is wide", "[expert]", F32, F64) {
  for (const Widths& widths : kWidths)
    for (const Bias bias : {Bias::Off, Bias::Zero}) {
      check_forward<moe::BasicMlp<TestType>>(widths, bias);
      check_forward<moe::BasicGlu<TestType>>(widths, bias);
    }
}

TEST_CASE("Widths: gradients are central differences", "[expert]") {
  for (const Widths& widths : kWidths)
    for (const Bias bias : {Bias::Off, Bias::Zero}) {
      CAPTURE(widths.input, widths.hidden, widths.output, bias == Bias::Zero);
      CHECK(expert_gradient_error(random_expert<moe::BasicMlp<F64>>(widths, bias)) < 1e-7);
      CHECK(expert_gradient_error(random_expert<moe::BasicGlu<F64>>(widths, bias)) < 1e-7);
    }
}

TEST_CASE("Widths: an expert with a gate of its own may change the width", "[expert]") {
  using Gated = moe::GatedExpert<moe::BasicMlp<F64>, F64>;
  const Gated gated(random_expert<moe::BasicMlp<F64>>({7, 5, 3}, Bias::Zero), moe::BasicLinear<F64>::random(1, 7, 5));
  CHECK(gated.output_dim() == 3);
  CHECK(expert_gradient_error(gated) < 1e-7);
}

TEMPLATE_TEST_CASE("Widths: a pool computes the bits of its experts alone", "[expert]", F32, F64) {
  for (const Widths& widths : kWidths) {
    CAPTURE(widths.input, widths.hidden, widths.output);
    check_pool(ExpertPool<moe::BasicMlp<TestType>>::random(4, widths, 1));
    check_pool(ExpertPool<moe::BasicGlu<TestType>>::random(4, widths, 1, Bias::Zero));
  }
  using Either = moe::OneOf<moe::BasicMlp<TestType>, moe::BasicGlu<TestType>>;
  check_pool(ExpertPool<Either>(
      {moe::BasicMlp<TestType>::random({5, 9, 3}, 1), moe::BasicGlu<TestType>::random({5, 4, 3}, 2)}));
}

TEST_CASE(
    "Widths: where the output is as wide as the input, experts are those "
    "of (model_dim, hidden_dim)",
    "[expert]") {
  const Widths same{.input = 11, .hidden = 9, .output = 11};
  CHECK(test::same_parameters(moe::Mlp::random(same, 5), moe::Mlp::random(11, 9, 5)));
  CHECK(test::same_parameters(moe::Glu::random(same, 5, Bias::Zero), moe::Glu::random(11, 9, 5, Bias::Zero)));
  CHECK(test::same_parameters(ExpertPool<moe::Glu>::random(3, same, 5), ExpertPool<moe::Glu>::random(3, 11, 9, 5)));
  CHECK(test::same_parameters(ExpertPool<moe::Mlp>::random(3, same, 5, Bias::Off),
                              ExpertPool<moe::Mlp>::random(3, 11, 9, 5, Bias::Off)));
}

TEST_CASE("Widths: random weights are bounded by the inputs of their stage", "[expert]") {
  const auto expert = moe::Mlp::random({.input = 4, .hidden = 100, .output = 3}, 1);
  CHECK(test::in_double(expert.up()).cwiseAbs().maxCoeff() <= 0.5);
  CHECK(test::in_double(expert.up()).cwiseAbs().maxCoeff() > 0.45);
  CHECK(test::in_double(expert.down()).cwiseAbs().maxCoeff() <= 0.1f);
  CHECK(test::in_double(expert.down()).cwiseAbs().maxCoeff() > 0.09);
}

TEST_CASE("Widths: one that is forgotten or negative is refused by name", "[expert][error]") {
  CHECK_THROWS_WITH(moe::Mlp(Widths{.input = 4, .hidden = 8}), "moe::Mlp: output is 0, expected at least 1");
  CHECK_THROWS_WITH(moe::Glu(Widths{.input = 4, .output = 8}), "moe::Glu: hidden is 0, expected at least 1");
  CHECK_THROWS_WITH(moe::Glu::random(Widths{.input = -1, .hidden = 8, .output = 2}, 1),
                    "moe::Glu: input is -1, expected at least 1");
  CHECK_THROWS_WITH(moe::Mlp(-1, 8), "moe::Mlp: model_dim is -1, expected at least 0");
  CHECK_THROWS_WITH(moe::Glu(4, -8), "moe::Glu: hidden_dim is -8, expected at least 0");
  CHECK_NOTHROW(moe::Mlp(0, 0));
  std::vector<moe::Mlp> experts{moe::Mlp(Widths{5, 4, 3}), moe::Mlp(Widths{5, 4, 2})};
  CHECK_THROWS_WITH(ExpertPool<moe::Mlp>(std::move(experts)),
                    "moe::ExpertPool: expert 1 maps 5 to 2, expected 5 to 3 as expert 0");
}
