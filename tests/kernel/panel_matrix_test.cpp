// SPDX-License-Identifier: MIT
#include "moe/kernel/panel_matrix.hpp"

#include <set>

#include "support/catch.hpp"
#include "support/matrices.hpp"

using moe::F32;
using moe::F64;
using moe::Index;
using moe::PanelMatrix;
using moe::PanelOrder;

namespace {

constexpr PanelOrder kOrders[] = {PanelOrder::Plain, PanelOrder::Paired};

moe::RandomField draws() { return moe::RandomField(moe::Purpose::Initialise, 7); }

template <class Codec>
Index num_logical(const PanelMatrix<Codec>& matrix) {
  return matrix.outputs() * matrix.inputs();
}

/// Scalars of the storage that are not zero.
template <class Codec>
Index num_nonzero(const PanelMatrix<Codec>& matrix) {
  return static_cast<Index>(std::ranges::count_if(matrix.span(), [](auto x) { return x != 0; }));
}

}  // namespace

TEMPLATE_TEST_CASE("PanelMatrix: every element has a place of its own inside its panel", "[kernel]", F32, F64) {
  constexpr Index kWidth = PanelMatrix<TestType>::kWidth;
  for (const PanelOrder order : kOrders)
    for (const Index outputs : {Index{2}, kWidth - 2, kWidth, kWidth + 2, 4 * kWidth + 6})
      for (const Index inputs : {1, 3, 32}) {
        CAPTURE(order, outputs, inputs);
        PanelMatrix<TestType> matrix(outputs, inputs, order);
        std::set<const void*> places;
        for (Index o = 0; o < outputs; ++o)
          for (Index i = 0; i < inputs; ++i) {
            const Index offset = &matrix(o, i) - matrix.span().data();
            places.insert(&matrix(o, i));
            CHECK(offset / matrix.stride() < matrix.panels());
            CHECK(offset % matrix.stride() / kWidth == i);
          }
        CHECK(static_cast<Index>(places.size()) == num_logical(matrix));
      }
}

TEST_CASE("PanelMatrix: plain panels hold kWidth consecutive outputs", "[kernel]") {
  constexpr Index kWidth = PanelMatrix<F32>::kWidth;
  PanelMatrix<F32> matrix(2 * kWidth + 1, 5);
  CHECK(matrix.panels() == 3);
  CHECK(&matrix(kWidth + 3, 4) == matrix.panel(1) + 4 * kWidth + 3);
}

TEST_CASE("PanelMatrix: paired panels hold gates in the first register and their ups in the second", "[kernel]") {
  constexpr Index kLanes = PanelMatrix<F32>::kLanes, kWidth = 2 * kLanes, kUnits = 2 * kLanes + 1;
  PanelMatrix<F32> matrix(2 * kUnits, 5, PanelOrder::Paired);
  CHECK(matrix.panels() == 3);
  const Index unit = kLanes + 1;
  CHECK(&matrix(unit, 4) == matrix.panel(1) + 4 * kWidth + 1);
  CHECK(&matrix(kUnits + unit, 4) == matrix.panel(1) + 4 * kWidth + kLanes + 1);
}

TEMPLATE_TEST_CASE("PanelMatrix: from and matrix, write and read are inverse", "[kernel]", F32, F64) {
  using S = typename TestType::Scalar;
  for (const PanelOrder order : kOrders)
    for (const Index outputs : {0, 2, 6, 130})
      for (const Index inputs : {0, 1, 7}) {
        CAPTURE(order, outputs, inputs);
        const auto values = test::random_matrix<S>(outputs, inputs);
        const auto matrix = PanelMatrix<TestType>::from(values, order);
        CHECK(test::same_bits(matrix.matrix(), values));
        std::vector<double> read(static_cast<std::size_t>(outputs * inputs));
        matrix.read(std::span(read));
        PanelMatrix<TestType> copy(outputs, inputs, order);
        copy.write(std::span<const double>(read));
        CHECK(test::same_bits(copy.matrix(), values));
      }
}

TEST_CASE("PanelMatrix: a random element is the same in both orders and, rounded, in float and double", "[kernel]") {
  PanelMatrix<F64> reference(22, 5);
  reference.randomise(draws(), 0.5);
  for (const PanelOrder order : kOrders) {
    PanelMatrix<F32> single(22, 5, order);
    PanelMatrix<F64> twice(22, 5, order);
    single.randomise(draws(), 0.5);
    twice.randomise(draws(), 0.5);
    CAPTURE(order);
    CHECK(test::same_bits(twice.matrix(), reference.matrix()));
    CHECK(test::same_bits(single.matrix(), reference.matrix().cast<float>()));
  }
}

TEST_CASE("PanelMatrix: random elements lie inside the bound and use its range", "[kernel]") {
  PanelMatrix<F64> matrix(64, 64);
  matrix.randomise(draws(), 0.5);
  const auto [least, most] = std::ranges::minmax(matrix.span());
  CHECK((least > -0.5 && most < 0.5));
  CHECK((least < -0.49 && most > 0.49));  // 4096 draws all below 0.49 have a probability of 0.99^4096 = 1e-18
}

TEMPLATE_TEST_CASE("PanelMatrix: the padding is zero after randomise and write", "[kernel]", F32, F64) {
  for (const PanelOrder order : kOrders)
    for (const Index outputs : {2, 14, 34, 66}) {
      CAPTURE(order, outputs);
      PanelMatrix<TestType> matrix(outputs, 9, order);
      matrix.randomise(draws(), 1);
      CHECK(num_nonzero(matrix) == num_logical(matrix));  // a draw is never 0
      matrix.write(std::span<const double>(std::vector<double>(static_cast<std::size_t>(num_logical(matrix)), 2)));
      CHECK(num_nonzero(matrix) == num_logical(matrix));
    }
}

TEMPLATE_TEST_CASE("PanelMatrix: panels are aligned to a cache line and never a multiple of 4096 bytes apart",
                   "[kernel]", F32, F64) {
  for (const Index inputs : {1, 2, 3, 31, 32, 64, 128, 4096}) {
    CAPTURE(inputs);
    const PanelMatrix<TestType> matrix(3 * PanelMatrix<TestType>::kWidth, inputs);
    CHECK(matrix.stride() >= inputs * PanelMatrix<TestType>::kWidth);
    CHECK(matrix.stride() * static_cast<Index>(sizeof(typename TestType::Storage)) % 4096 != 0);
    for (Index p = 0; p < matrix.panels(); ++p) CHECK(reinterpret_cast<std::uintptr_t>(matrix.panel(p)) % 64 == 0);
  }
}

TEST_CASE("PanelMatrix: those below a huge page share one", "[kernel]") {
  const PanelMatrix<F32> first(64, 512), second(64, 512);
  if (!moe::detail::HugePages::serves(first.span().size_bytes())) return;
  const auto distance = std::abs(first.panel(0) - second.panel(0)) * static_cast<std::ptrdiff_t>(sizeof(float));
  CHECK(distance < std::ptrdiff_t{256} << 20);  // in one stretch of them
}

TEST_CASE("PanelMatrix: copies are deep and moves keep the values", "[kernel]") {
  const auto values = test::random_matrix<float>(10, 4);
  auto matrix = PanelMatrix<F32>::from(values, PanelOrder::Paired);
  PanelMatrix<F32> copy = matrix;
  copy(3, 2) = 99;
  CHECK(test::same_bits(matrix.matrix(), values));
  copy = std::move(matrix);
  CHECK(test::same_bits(copy.matrix(), values));
  CHECK(copy.order() == PanelOrder::Paired);
}

TEST_CASE("PanelMatrix: sizes of zero have no panels or no inputs, and no values", "[kernel]") {
  CHECK(PanelMatrix<F32>().empty());
  CHECK(PanelMatrix<F32>(0, 5).span().empty());
  CHECK(PanelMatrix<F32>(5, 0).span().empty());
  CHECK(PanelMatrix<F32>(5, 0).panels() == 1);
}

TEST_CASE("PanelMatrix: a bias has the shape of a vector", "[kernel]") {
  CHECK(PanelMatrix<F32>::bias(5).shape() == std::vector<Index>{5});
  CHECK(PanelMatrix<F32>(5, 1).shape() == std::vector<Index>{5, 1});
}

TEST_CASE("PanelMatrix: what has been moved from is empty", "[kernel]") {
  PanelMatrix<F32> matrix(5, 3), assigned(2, 2);
  const PanelMatrix<F32> moved = std::move(matrix);
  assigned = PanelMatrix<F32>(moved);
  for (const auto& empty : {matrix, PanelMatrix<F32>()}) {
    CHECK(empty.empty());
    CHECK(empty.shape() == std::vector<Index>{0, 0});
    CHECK(empty.panels() == 0);
    CHECK(empty.span().empty());
  }
  CHECK(assigned.is_shaped_as(moved));
  CHECK(moved.shape() == std::vector<Index>{5, 3});
}

TEST_CASE("PanelMatrix: impossible sizes are refused", "[kernel][error]") {
  CHECK_THROWS_WITH(PanelMatrix<F32>(-1, 2), "moe::PanelMatrix: outputs is -1, expected at least 0");
  CHECK_THROWS_WITH(PanelMatrix<F32>(1, -2), "moe::PanelMatrix: inputs is -2, expected at least 0");
  CHECK_THROWS_AS(PanelMatrix<F32>(Index{1} << 33, Index{1} << 33), std::invalid_argument);  // 2^66 wraps to 0
  CHECK_THROWS_AS(PanelMatrix<F32>(Index{1} << 47, Index{1} << 47), std::invalid_argument);
  CHECK_THROWS_WITH(PanelMatrix<F32>(Index{1} << 62, 1),
                    "moe::PanelMatrix: outputs is 4611686018427387904, expected at most 2^48");
  CHECK_THROWS_WITH(PanelMatrix<F32>(3, 2, PanelOrder::Paired),
                    "moe::PanelMatrix: paired order with 3 outputs, expected an even number");
  PanelMatrix<F32> matrix(2, 3);
  std::vector<float> values(5);
  CHECK_THROWS_WITH(matrix.read(std::span(values)), "moe::PanelMatrix::read: 5 values, expected outputs * inputs = 6");
  CHECK_THROWS_WITH(matrix.write(std::span<const float>(values)),
                    "moe::PanelMatrix::write: 5 values, expected outputs * inputs = 6");
}
