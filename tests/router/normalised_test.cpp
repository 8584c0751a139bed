// SPDX-License-Identifier: MIT
#include "moe/router/normalised.hpp"

#include "moe/router/frozen.hpp"
#include "moe/router/linear.hpp"
#include "moe/router/none.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"
#include "support/routings.hpp"
#include "support/text.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::Matrix;
using moe::Step;
using Linear = moe::BasicLinearRouter<moe::F64>;
using Router = moe::NormalisedRouter<Linear>;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The linear router with some experts masked for every token.
struct MaskingRouter {
  using Scalar = double;
  using Tape = Linear::Tape;
  Linear linear;
  std::vector<Index> masked = {};

  Index num_experts() const { return linear.num_experts(); }
  Index model_dim() const { return linear.model_dim(); }
  void mask(moe::MatrixRef<double> out) const {
    for (const Index e : masked) out.col(e).setConstant(-kInfinity);
  }
  void logits(const moe::ConstMatrixRef<double>& tokens, const moe::Context& context,
              moe::MatrixRef<double> out) const {
    linear.logits(tokens, context, out);
    mask(out);
  }
  void logits(const moe::ConstMatrixRef<double>& tokens, const moe::Context& context, moe::MatrixRef<double> out,
              Tape& tape) const {
    linear.logits(tokens, context, out, tape);
    mask(out);
  }
  void backward(const moe::ConstMatrixRef<double>& tokens, const moe::Context& context, Tape& tape,
                const moe::ConstMatrixRef<double>& dlogits, MaskingRouter& gradient,
                moe::MatrixRef<double> dtokens) const {
    linear.backward(tokens, context, tape, dlogits, gradient.linear, dtokens);
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "linear", self.linear...);
  }
};

template <class R>
Matrix<double> logits(const R& router, const Matrix<double>& tokens, const Step& step = {}) {
  Matrix<double> out(tokens.rows(), router.num_experts());
  router.logits(tokens, step, out);
  return out;
}

/// Gradients of a fixed linear function of the logits of valid tokens that are not masked, by parameters and tokens.
template <class R>
double gradient_error(R router, Matrix<double> tokens, const Step& step = {}) {
  const auto slope = test::random_matrix<double>(tokens.rows(), router.num_experts(), 9);
  const auto loss = [&] {
    const auto z = logits(router, tokens, step);
    double sum = 0;
    for (Index t = 0; t < z.rows(); ++t)
      for (Index e = 0; e < z.cols(); ++e)
        if (step.is_valid(t) && z(t, e) > -kInfinity) sum += slope(t, e) * z(t, e);
    return sum;
  };
  typename R::Tape tape;
  Matrix<double> out(tokens.rows(), router.num_experts()), dtokens = Matrix<double>::Zero(tokens.rows(), tokens.cols());
  router.logits(tokens, step, out, tape);
  R gradient = moe::zeros_like(router);
  router.backward(tokens, step, tape, slope, gradient, dtokens);
  return std::max(test::gradient_error(loss, tokens, dtokens), test::parameter_gradient_error(loss, router, gradient));
}

}  // namespace

TEST_CASE("NormalisedRouter: rows have mean 0 and the given standard deviation, in the order they had", "[router]") {
  for (const double scale : {1.0, 0.3, 7.0})
    for (const Index experts : {2, 5, 17, 5000}) {
      const Router router(Linear::random(experts, 6, 1), {.scale = scale});
      const auto tokens = test::random_matrix<double>(9, 6, 2);
      const auto out = logits(router, tokens), raw = logits(router.router(), tokens);
      for (Index t = 0; t < 9; ++t) {
        double mean = 0, square = 0, raw_mean = 0;
        for (Index e = 0; e < experts; ++e)
          mean += out(t, e) / double(experts), raw_mean += raw(t, e) / double(experts);
        for (Index e = 0; e < experts; ++e) square += out(t, e) * out(t, e) / double(experts);
        CAPTURE(scale, experts, t);
        CHECK_THAT(mean, WithinAbs(0, 1e-14 * scale));
        CHECK_THAT(square, WithinAbs(scale * scale, 1e-9 * scale * scale));  // epsilon beside variances above 1e-3
        for (Index e = 0; e < experts; ++e) CHECK((out(t, e) > 0) == (raw(t, e) > raw_mean));
      }
    }
}

TEST_CASE("NormalisedRouter: logits 1, 2, 3, 6 become (z - 3) / sqrt(3.5)", "[router]") {
  Linear linear(4, 1);
  for (const auto& [e, weight] : {std::pair{0, 1.0}, {1, 2.0}, {2, 3.0}, {3, 6.0}}) linear.weight().set(e, 0, weight);
  const auto out = logits(Router(linear, {.scale = 2}), Matrix<double>(Matrix<double>::Ones(1, 1)));
  for (const auto& [e, z] : {std::pair{0, 1.0}, {1, 2.0}, {2, 3.0}, {3, 6.0}})
    CHECK_THAT(out(0, e), WithinAbs(2 * (z - 3) / std::sqrt(3.5), 1e-11));
}

TEST_CASE("NormalisedRouter: neither the size of the weights nor a constant counts", "[router][property]") {
  Linear linear = Linear::random(7, 5, 3, moe::Bias::Zero), larger = linear;
  for (Index e = 0; e < 7; ++e) larger.bias().set(e, 0, 2.5);
  for (double& weight : larger.weight().span()) weight *= 1000;
  const auto tokens = test::random_matrix<double>(6, 5, 4);
  CHECK(test::largest(logits(Router(linear), tokens) - logits(Router(larger), tokens)) < 1e-8);
}

TEST_CASE("NormalisedRouter: equal logits are zeros, and so is the logit of one expert", "[router]") {
  const auto tokens = test::random_matrix<double>(3, 5, 5);
  CHECK(test::all_zero(logits(moe::NormalisedRouter(moe::BasicNoRouter<moe::F64>(4, 5)), tokens)));
  CHECK(test::all_zero(logits(Router(Linear::random(1, 5, 6)), tokens)));
  Linear equal(3, 5, moe::Bias::Zero);
  for (Index e = 0; e < 3; ++e) equal.bias().set(e, 0, 0.1);  // whose sum, over three, is not 0.1
  CHECK(test::all_zero(logits(Router(equal), tokens)));
}

TEST_CASE("NormalisedRouter: masked experts stay so, and the others are normalised without them", "[router]") {
  const Linear linear = Linear::random(5, 4, 7);
  const auto tokens = test::random_matrix<double>(6, 4, 8);
  const moe::NormalisedRouter masking(MaskingRouter{linear, {1, 3}});
  const auto out = logits(masking, tokens), taken = logits(Router(linear).take(std::vector<Index>{0, 2, 4}), tokens);
  for (Index t = 0; t < 6; ++t) {
    CHECK(out(t, 1) == -kInfinity);
    CHECK(out(t, 3) == -kInfinity);
    for (Index i = 0; i < 3; ++i) CHECK(test::same_bits(out(t, 2 * i), taken(t, i)));
  }
  const auto none = logits(moe::NormalisedRouter(MaskingRouter{linear, {0, 1, 2, 3, 4}}), tokens);
  CHECK((none.array() == -kInfinity).all());
}

TEST_CASE("NormalisedRouter: gradients agree with central differences", "[router]") {
  const auto tokens = test::random_matrix<double>(6, 4, 9);
  CHECK(gradient_error(Router(Linear::random(5, 4, 10, moe::Bias::Zero), {.scale = 1.7}), tokens) < 1e-6);
  CHECK(gradient_error(Router(Linear::random(2, 4, 11), {.epsilon = 0.5}), tokens) < 1e-6);
  CHECK(gradient_error(moe::NormalisedRouter(MaskingRouter{Linear::random(5, 4, 12), {0, 4}}), tokens) < 1e-6);
  const std::vector<std::uint8_t> valid = {1, 0, 1, 1, 0, 1};
  Step step;
  step.valid = valid;
  CHECK(gradient_error(Router(Linear::random(5, 4, 13)), tokens, step) < 1e-6);
}

TEST_CASE("NormalisedRouter: padding may hold anything, and NaN is left for the gate to name", "[router]") {
  const Router router(Linear::random(3, 2, 14));
  auto tokens = test::random_matrix<double>(3, 2, 15);
  const auto clean = logits(router, tokens);
  tokens(1, 0) = kInfinity;
  const auto out = logits(router, tokens), raw = logits(router.router(), tokens);
  CHECK(test::same_bits(out.row(0), clean.row(0)));
  CHECK(test::same_bits(out.row(1), raw.row(1)));
  CHECK(test::same_bits(out.row(2), clean.row(2)));
  const std::vector<std::uint8_t> valid = {1, 0, 1};
  Step step;
  step.valid = valid;
  Router::Tape tape;
  Matrix<double> again(3, 3), dtokens = Matrix<double>::Zero(3, 2);
  router.logits(tokens, step, again, tape);
  Router gradient = moe::zeros_like(router);
  Matrix<double> dlogits = test::random_matrix<double>(3, 3, 16);
  dlogits.row(1).setConstant(NAN);
  router.backward(tokens, step, tape, dlogits, gradient, dtokens);
  CHECK(test::all_zero(tape.dz.matrix().row(1)));
  CHECK(test::all_zero(dtokens.row(1)));
}

TEST_CASE("NormalisedRouter: the same bits for any number of threads and in any batch", "[router][property]") {
  const moe::NormalisedRouter router(moe::LinearRouter::random(9, 8, 16));
  const auto tokens = test::random_matrix<float>(300, 8, 17);
  const auto on = [&](const Matrix<float>& rows) {
    Matrix<float> out(rows.rows(), 9);
    router.logits(rows, Step{}, out);
    return out;
  };
  const auto results = test::on_thread_counts([&] { return on(tokens); });
  CHECK(test::all_equal(results));
  CHECK(test::same_bits(on(tokens.row(123)), results[0].row(123)));
}

TEST_CASE("NormalisedRouter: it is of its router in names, structure and freezing", "[router]") {
  STATIC_REQUIRE(moe::DifferentiableRouter<moe::NormalisedRouter<moe::LinearRouter>>);
  STATIC_REQUIRE(moe::RouterSkipsGradient<moe::NormalisedRouter<moe::LinearRouter>>);
  STATIC_REQUIRE_FALSE(moe::RouterSkipsGradient<moe::NormalisedRouter<MaskingRouter>>);
  const Router router(Linear::random(4, 3, 18), {.scale = 2});
  moe::visit([](const std::string& name, const auto&) { CHECK(name == "weight"); }, router);
  const auto tokens = test::random_matrix<double>(5, 3, 19);
  const moe::Frozen frozen(router);
  CHECK(test::same_bits(logits(frozen, tokens), logits(router, tokens)));
  CHECK(router.concatenate(router).num_experts() == 8);
  CHECK_THROWS_AS(router.concatenate(Router(Linear::random(4, 3, 18))), std::invalid_argument);
  // Without dtokens the same gradient.
  Router::Tape tape;
  Matrix<double> out(5, 4), dtokens = Matrix<double>::Zero(5, 3), only = dtokens;
  router.logits(tokens, Step{}, out, tape);
  Router with = moe::zeros_like(router), without = with;
  router.backward(tokens, Step{}, tape, out, with, dtokens);
  router.backward(tokens, Step{}, tape, out, without);
  router.backward(tokens, Step{}, tape, out, moe::NoGradient{}, only);
  CHECK(std::ranges::equal(with.router().weight().span(), without.router().weight().span()));
  CHECK(test::same_bits(dtokens, only));
}

TEST_CASE("NormalisedRouter: numbers out of range and other tapes are refused", "[router][error]") {
  const Linear linear(3, 4);
  CHECK_THROWS_WITH(Router(linear, {.scale = 0}), "moe::NormalisedRouter: scale is 0, expected a finite number > 0");
  CHECK_THROWS_WITH(Router(linear, {.epsilon = NAN}),
                    "moe::NormalisedRouter: epsilon is nan, expected a finite number > 0");
  const Router router(linear);
  Router::Tape tape;
  Router gradient = router;
  Matrix<double> tokens = Matrix<double>::Zero(2, 4), dlogits(2, 3);
  CHECK_THROWS_WITH(router.backward(tokens, Step{}, tape, dlogits, gradient, tokens),
                    "moe::NormalisedRouter::backward: tape.z is [0, 0], expected [2, 3]");
}
