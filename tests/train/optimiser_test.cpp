// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "moe/train/adam_w.hpp"
#include "moe/train/sgd.hpp"
#include "support/catch.hpp"
#include "support/sample_layer.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::WithinAbs;
using test::flatten;
using test::Number;
using test::SampleLayer;

constexpr moe::Index kWide = 37;  // two registers of AVX-512 and a rest

struct Vector {
  moe::RowVector<float> x;
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("x", self.x...);
  }
};

const moe::RandomField kRandom(moe::Purpose::User, 7);

/// A parameter of magnitude 0.5 to 1.5 for the k-th position, so that tolerances can be relative.
double value(moe::Index k) { return (k % 2 ? 1 : -1) * (0.5 + kRandom.uniform(k)); }
double slope(moe::Index k, int step) { return kRandom.normal(k, step + 1); }

/// Runs `steps` of an optimiser over a whole layer.
template <class Codec, class Optimiser>
SampleLayer<Codec> train(const Optimiser& optimiser, int steps) {
  SampleLayer<Codec> layer, gradient;
  test::fill(layer, value);
  typename Optimiser::template State<SampleLayer<Codec>> state(layer);
  for (int step = 0; step < steps; ++step) {
    test::fill(gradient, [&](moe::Index k) { return slope(k, step); });
    optimiser.step(layer, gradient, state, 0.01 / (1 + step));
  }
  return layer;
}

/// The same for one number, in plain double arithmetic as the papers write it.
double reference(const moe::Sgd& sgd, moe::Index k, int steps) {
  double x = value(k), velocity = 0;
  for (int step = 0; step < steps; ++step) {
    const double descent = slope(k, step) + sgd.weight_decay * x;
    velocity = sgd.momentum * velocity + descent;
    x -= 0.01 / (1 + step) * (sgd.kind == moe::Momentum::Nesterov ? descent + sgd.momentum * velocity : velocity);
  }
  return x;
}
double reference(const moe::AdamW& adam, moe::Index k, int steps) {
  double x = value(k), first = 0, second = 0;
  for (int step = 0; step < steps; ++step) {
    const double gradient = slope(k, step), rate = 0.01 / (1 + step);
    first = adam.beta1 * first + (1 - adam.beta1) * gradient;
    second = adam.beta2 * second + (1 - adam.beta2) * gradient * gradient;
    const double mean = first / (1 - std::pow(adam.beta1, step + 1));
    const double square = second / (1 - std::pow(adam.beta2, step + 1));
    x -= rate * (mean / (std::sqrt(square) + adam.epsilon) + adam.weight_decay * x);
  }
  return x;
}

/// |x| stays below 2 and each of 20 steps rounds it once to eps / 2 relative; the step itself, at most 0.1 long,
/// carries some ten roundings and the rounding of the coefficients. 20 * (2 * eps + 0.1 * 12 * eps) < 64 eps.
template <class Codec, class Optimiser>
void require_like_reference(const Optimiser& optimiser) {
  const std::vector<double> found = flatten(train<Codec>(optimiser, 20));
  const double tolerance = 64 * std::numeric_limits<typename Codec::Storage>::epsilon();
  for (std::size_t k = 0; k < found.size(); ++k) {
    CAPTURE(k);
    REQUIRE_THAT(found[k], WithinAbs(reference(optimiser, static_cast<moe::Index>(k), 20), tolerance));
  }
}

/// After training with gradients that are not zero, the stored scalars that are +0 are those of the padding.
template <class Codec, class Optimiser>
void require_padding_zero(const Optimiser& optimiser) {
  const SampleLayer<Codec> layer = train<Codec>(optimiser, 3);
  const moe::Index padding = test::num_stored(layer) - moe::num_parameters(layer);
  REQUIRE(padding > 0);
  REQUIRE(test::count_zero_bits(layer) == padding);
}

}  // namespace

TEMPLATE_TEST_CASE("Sgd: follows the double reference for 20 steps", "[train]", moe::F32, moe::F64) {
  require_like_reference<TestType>(moe::Sgd{});
  require_like_reference<TestType>(moe::Sgd{.momentum = 0.9, .weight_decay = 0.1});
  require_like_reference<TestType>(moe::Sgd{.momentum = 0.9, .kind = moe::Momentum::Nesterov, .weight_decay = 0.1});
}

TEMPLATE_TEST_CASE("AdamW: follows the double reference for 20 steps", "[train]", moe::F32, moe::F64) {
  require_like_reference<TestType>(moe::AdamW{});
  require_like_reference<TestType>(moe::AdamW{.beta1 = 0.5, .beta2 = 0.9, .epsilon = 1e-3, .weight_decay = 0.5});
}

TEMPLATE_TEST_CASE("Optimisers: padding of panels stays +0", "[train]", moe::F32, moe::F64) {
  require_padding_zero<TestType>(moe::Sgd{.momentum = 0.9, .kind = moe::Momentum::Nesterov, .weight_decay = 0.1});
  require_padding_zero<TestType>(moe::AdamW{.epsilon = std::numeric_limits<float>::min()});
}

TEST_CASE("Optimisers: minimise a quadratic", "[train]") {
  // f = 1/2 sum_k c_k (x_k - k)^2 with curvatures 0.1 to 1: gradient descent contracts by 1 - rate * c_k per step.
  const auto distance = [](const auto& optimiser, double rate, int steps) {
    Vector vector{moe::RowVector<float>::Zero(10)}, gradient = vector;
    typename std::remove_cvref_t<decltype(optimiser)>::template State<Vector> state(vector);
    for (int step = 0; step < steps; ++step) {
      for (moe::Index k = 0; k < 10; ++k)
        gradient.x(k) = 0.1f * static_cast<float>(k + 1) * (vector.x(k) - static_cast<float>(k));
      optimiser.step(vector, gradient, state, rate * (1 - static_cast<double>(step) / steps));
    }
    double worst = 0;
    for (moe::Index k = 0; k < 10; ++k)
      worst = std::max(worst, std::abs(static_cast<double>(vector.x(k)) - static_cast<double>(k)));
    return worst;
  };
  REQUIRE(distance(moe::Sgd{}, 1, 400) < 1e-5);
  REQUIRE(distance(moe::Sgd{.momentum = 0.9, .kind = moe::Momentum::Nesterov}, 0.5, 400) < 1e-5);
  REQUIRE(distance(moe::AdamW{.weight_decay = 0}, 0.5, 400) < 1e-3);  // steps of a sign method end at the last rates
}

TEST_CASE("Optimisers: every length around the register width gives the bits of a lone element", "[train]") {
  const moe::AdamW adam{.weight_decay = 0.1};
  constexpr moe::Index kLanes = moe::simd::kLanes<float>;
  for (const moe::Index size : {moe::Index{0}, moe::Index{1}, kLanes - 1, kLanes, kLanes + 1, 4 * kLanes + 3}) {
    CAPTURE(size);
    Vector vector{moe::RowVector<float>::Constant(size, 0.7f)};
    const Vector gradient{moe::RowVector<float>::Constant(size, -0.3f)};
    moe::AdamW::State state(vector);
    adam.step(vector, gradient, state, 0.01);
    Vector one{moe::RowVector<float>::Constant(1, 0.7f)};
    moe::AdamW::State one_state(one);
    adam.step(one, Vector{moe::RowVector<float>::Constant(1, -0.3f)}, one_state, 0.01);
    for (moe::Index k = 0; k < size; ++k) REQUIRE(vector.x(k) == one.x(0));
  }
}

TEST_CASE("Optimisers: the same bits for any number of threads", "[train]") {
  const moe::Index size = 3 * moe::detail::kElementGrain + 5;
  const auto run = [&](moe::Index threads) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    Vector vector{moe::RowVector<float>(size)}, gradient = vector;
    for (moe::Index k = 0; k < size; ++k)
      vector.x(k) = static_cast<float>(k % 97), gradient.x(k) = static_cast<float>(k % 89);
    moe::AdamW::State state(vector);
    moe::AdamW{}.step(vector, gradient, state, 0.01);
    return vector.x;
  };
  const moe::RowVector<float> serial = run(1);
  REQUIRE(run(2) == serial);
  REQUIRE(run(5) == serial);
}

/// A step with `bad` in the k-th of three elements of the gradient changes no bit, says so, and the next one works.
template <class Optimiser>
void check_non_finite(Optimiser optimiser, float bad, moe::Index k, const std::string& message) {
  using State = typename Optimiser::template State<Vector>;
  CAPTURE(bad, k);
  const Vector before{moe::RowVector<float>::LinSpaced(kWide, -1, 1)}, good{moe::RowVector<float>::Ones(kWide)};
  Vector vector = before, gradient = good, expected = before;
  gradient.x(k) = bad;
  State state(vector), expected_state(vector);
  REQUIRE_THROWS_WITH(optimiser.step(vector, gradient, state, 0.1), message);
  optimiser.non_finite = moe::NonFinite::Skip;
  REQUIRE_FALSE(optimiser.step(vector, gradient, state, 0.1));
  REQUIRE(vector.x == before.x);
  REQUIRE(optimiser.step(vector, good, state, 0.1));
  REQUIRE(optimiser.step(expected, good, expected_state, 0.1));
  REQUIRE(vector.x == expected.x);
  optimiser.non_finite = moe::NonFinite::Apply;
  REQUIRE(optimiser.step(vector, gradient, state, 0.1));
  REQUIRE_FALSE(vector.x.allFinite());
}

TEST_CASE("Optimisers: a gradient that is not finite changes nothing and is told", "[train][error]") {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const moe::Index k : {moe::Index{0}, moe::Index{20}, kWide - 1}) {
    const std::string sentence = "::step: the gradient of 'x' holds ",
                      rest = ", expected finite numbers (see moe::NonFinite)";
    check_non_finite(moe::Sgd{.momentum = 0.9}, nan, k, "moe::Sgd" + sentence + "nan" + rest);
    check_non_finite(moe::AdamW{}, infinity, k, "moe::AdamW" + sentence + "inf" + rest);
    check_non_finite(moe::AdamW{}, -infinity, k, "moe::AdamW" + sentence + "-inf" + rest);
  }
  const float largest = std::numeric_limits<float>::max();
  Vector vector{moe::RowVector<float>::Constant(kWide, largest)};
  moe::Sgd::State state(vector);
  REQUIRE(moe::Sgd{}.step(vector, vector, state, 0));  // large is not infinite
}

TEST_CASE("Optimisers: a gradient of another shape is refused and changes nothing", "[train][error]") {
  Vector vector{moe::RowVector<float>::Ones(4)};
  const Vector gradient{moe::RowVector<float>::Ones(5)};
  moe::AdamW::State state(vector);
  REQUIRE_THROWS_AS(moe::AdamW{}.step(vector, gradient, state, 0.1), std::invalid_argument);
  moe::AdamW::State short_state(gradient);
  REQUIRE_THROWS_AS(moe::AdamW{}.step(vector, vector, short_state, 0.1), std::invalid_argument);
  moe::Sgd::State velocity(gradient);
  REQUIRE_THROWS_AS(moe::Sgd{}.step(vector, vector, velocity, 0.1), std::invalid_argument);
  REQUIRE(vector.x == moe::RowVector<float>::Ones(4));
  REQUIRE(state.update == 0);
}

TEST_CASE("Optimisers: a gradient in another panel order is refused", "[train][error]") {
  SampleLayer<moe::F32> layer, gradient;
  gradient.paired.weight = moe::PanelMatrix<moe::F32>(10, 3, moe::PanelOrder::Plain);
  moe::Sgd::State state(layer);
  REQUIRE_THROWS_WITH(moe::Sgd{}.step(layer, gradient, state, 0.1),
                      Catch::Matchers::ContainsSubstring("'paired.weight'"));
}

TEST_CASE("Optimisers: numbers out of range are refused", "[train][error]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  REQUIRE_THROWS_AS((moe::Sgd{.momentum = 1}.validate()), std::invalid_argument);
  REQUIRE_THROWS_AS((moe::Sgd{.weight_decay = -1}.validate()), std::invalid_argument);
  REQUIRE_THROWS_AS((moe::AdamW{.beta1 = nan}.validate()), std::invalid_argument);
  REQUIRE_THROWS_AS((moe::AdamW{.beta2 = 1}.validate()), std::invalid_argument);
  REQUIRE_THROWS_AS((moe::AdamW{.epsilon = 0}.validate()), std::invalid_argument);
  for (const double rate : {-1.0, nan, 1e39}) {
    CAPTURE(rate);
    Number number{1};
    moe::AdamW::State state(number);
    REQUIRE_THROWS_AS(moe::AdamW{}.step(number, number, state, rate), std::invalid_argument);
    moe::Sgd::State velocity(number);
    REQUIRE_THROWS_AS(moe::Sgd{}.step(number, number, velocity, rate), std::invalid_argument);
  }
}
