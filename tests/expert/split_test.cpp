// SPDX-License-Identifier: MIT
// Experts cut along their hidden units.
#include <algorithm>
#include <numeric>

#include "moe/expert/gated_expert.hpp"
#include "moe/expert/linear.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"

using moe::F32;
using moe::F64;
using moe::Index;

namespace {

constexpr Index kDim = 11, kHidden = 37;

/// The sum of what the parts give, in the precision of the expert.
template <class E>
auto sum_of(const std::vector<E>& parts, const moe::Matrix<typename E::Scalar>& rows) {
  moe::Matrix<typename E::Scalar> sum = test::run(parts[0], rows);
  for (std::size_t p = 1; p < parts.size(); ++p) sum += test::run(parts[p], rows);
  return sum;
}

/// The bound of the whole is one for its sums in any order, and hidden + 1 terms; parts add a term each and divide the
/// bias: twice as many at most.
template <class E>
void check_sum(const E& expert) {
  using S = typename E::Scalar;
  const auto rows = test::random_matrix<S>(13, kDim, 3);
  const auto whole = test::reference_of(expert, test::Mat(rows.template cast<double>()));
  for (const Index parts : {1, 2, 3, 8, 36, 37}) {
    const auto cut = expert.split(parts);
    Index hidden = 0;
    for (const E& part : cut) {
      hidden += part.hidden_dim();
      CHECK((part.hidden_dim() == kHidden / parts || part.hidden_dim() == kHidden / parts + 1));
    }
    CAPTURE(parts);
    CHECK(std::ssize(cut) == parts);
    CHECK(hidden == kHidden);
    CHECK(whole.worst(sum_of(cut, rows)) <= 2);
  }
  CHECK(test::same_bits(test::run(expert.split(1)[0], rows), test::run(expert, rows)));
}

/// Stored numbers of the parts that are not zero: as many as logical ones if padding is zero.
template <class E>
bool has_clean_padding(const E& expert, Index parts) {
  for (const E& part : expert.split(parts))
    if (test::num_nonzero(part) != moe::num_parameters(part)) return false;
  return true;
}

}  // namespace

TEMPLATE_TEST_CASE("split: the parts of an expert add up to it", "[expert]", F32, F64) {
  for (const moe::Bias bias : {moe::Bias::Off, moe::Bias::Zero}) {
    check_sum(test::random_expert<moe::BasicMlp<TestType>>(kDim, kHidden, 1, bias));
    check_sum(test::random_expert<moe::BasicMlp<TestType, moe::Relu>>(kDim, kHidden, 1, bias));
    check_sum(test::random_expert<moe::BasicGlu<TestType>>(kDim, kHidden, 1, bias));
    check_sum(test::random_expert<moe::BasicGlu<TestType, moe::GeGlu>>(kDim, kHidden, 1, bias));
  }
}

TEST_CASE("split: padding of the parts is zero, and the output bias is divided", "[expert]") {
  const auto mlp = test::random_expert<moe::BasicMlp<F64>>(kDim, kHidden, 1);
  const auto glu = test::random_expert<moe::BasicGlu<F64>>(kDim, kHidden, 1, moe::Bias::Zero);
  for (const Index parts : {1, 2, 5, 37}) {
    CHECK(has_clean_padding(mlp, parts));
    CHECK(has_clean_padding(glu, parts));
  }
  for (const auto& part : mlp.split(4)) CHECK(part.down_bias()(3, 0) == mlp.down_bias()(3, 0) / 4);
}

TEST_CASE("split: outputs may be wider than inputs, and a product keeps its numbers", "[expert]") {
  using Clamped = moe::BasicGlu<F64, moe::ClampedSwiGlu>;
  Clamped clamped(moe::Widths{.input = kDim, .hidden = 7, .output = 4}, moe::Bias::Zero, {.limit = 0.5, .alpha = 1.5});
  test::randomise(clamped, 3);
  const auto rows = test::random_matrix<double>(9, kDim, 4);
  const auto parts = clamped.split(3);
  CHECK(parts[2].product().limit == 0.5);
  CHECK(parts[2].product().alpha == 1.5);
  CHECK(parts[0].output_dim() == 4);
  // 7 terms of order 1: below 16 eps times 7
  CHECK(test::largest(moe::Matrix<double>(sum_of(parts, rows) - test::run(clamped, rows))) < 2e-14);
}

TEST_CASE("split: the parts of a gated expert stand behind its gate", "[expert]") {
  const moe::GatedExpert<moe::BasicMlp<F64>, F64> gated(test::random_expert<moe::BasicMlp<F64>>(kDim, 6, 1),
                                                        test::random_expert<moe::BasicLinear<F64>>(1, kDim, 2));
  const auto rows = test::random_matrix<double>(9, kDim, 4);
  CHECK(test::largest(moe::Matrix<double>(sum_of(gated.split(4), rows) - test::run(gated, rows))) < 2e-14);
}

TEST_CASE("split: numbers of parts that cannot be", "[expert][error]") {
  const auto mlp = test::random_expert<moe::BasicMlp<F64>>(kDim, 6, 1);
  auto glu = test::random_expert<moe::BasicGlu<F64>>(kDim, 6, 1);
  CHECK_THROWS_WITH(mlp.split(0), "moe::Mlp::split: parts is 0, expected 1 <= parts <= hidden_dim = 6");
  CHECK_THROWS_WITH(mlp.split(7), "moe::Mlp::split: parts is 7, expected 1 <= parts <= hidden_dim = 6");
  CHECK_THROWS_WITH(glu.split(-1), "moe::Glu::split: parts is -1, expected 1 <= parts <= hidden_dim = 6");
  const auto moved = std::move(glu);
  CHECK_THROWS_AS(glu.split(1), std::invalid_argument);
  auto uneven = moved;
  uneven.down() = moe::PanelMatrix<F64>(kDim, 5);
  CHECK_THROWS_AS(uneven.split(1), std::invalid_argument);
}

TEMPLATE_TEST_CASE("take_hidden: the units asked for, and the output bias", "[expert]", F32, F64) {
  using S = typename TestType::Scalar;
  const auto mlp = test::random_expert<moe::BasicMlp<TestType, moe::Relu>>(kDim, kHidden, 1);
  const auto rows = test::random_matrix<S>(5, kDim, 2);
  std::vector<Index> all(kHidden);
  std::iota(all.begin(), all.end(), Index{0});
  CHECK(test::same_bits(test::run(mlp.take_hidden(all), rows), test::run(mlp, rows)));
  const std::vector<Index> some = {30, 2, 36};
  const auto taken = mlp.take_hidden(some);
  CHECK(taken.hidden_dim() == 3);
  CHECK(test::num_nonzero(taken) == moe::num_parameters(taken));
  auto masked = mlp;  // whose other units are read with 0
  for (Index j = 0; j < kHidden; ++j)
    if (std::ranges::find(some, j) == some.end())
      for (Index o = 0; o < kDim; ++o) masked.down()(o, j) = 0;
  CHECK(test::reference_of(masked, test::Mat(rows.template cast<double>())).worst(test::run(taken, rows)) <= 1);
  const auto glu = test::random_expert<moe::BasicGlu<TestType>>(kDim, kHidden, 1, moe::Bias::Zero);
  CHECK(test::same_bits(test::run(glu.take_hidden(all), rows), test::run(glu, rows)));
  auto half = glu;
  for (Index j = 0; j < kHidden; ++j)
    if (std::ranges::find(some, j) == some.end())
      for (Index o = 0; o < kDim; ++o) half.down()(o, j) = 0;
  CHECK(
      test::reference_of(half, test::Mat(rows.template cast<double>())).worst(test::run(glu.take_hidden(some), rows)) <=
      1);
  CHECK_THROWS_AS(mlp.take_hidden(std::vector<Index>{}), std::invalid_argument);
  CHECK_THROWS_AS(glu.take_hidden(std::vector<Index>{37}), std::invalid_argument);
}
