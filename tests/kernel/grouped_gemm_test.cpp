// SPDX-License-Identifier: MIT
#include "moe/kernel/grouped_gemm.hpp"

#include <cmath>

#include "kernel/products.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"
#include "support/tolerance.hpp"

using moe::Index;
using moe::Matrix;
using test::Mat;
using test::Products;

namespace kernel = moe::kernel;

namespace {

/// Sizes around the vector width.
template <class S>
std::vector<Index> sizes() {
  constexpr Index kLanes = moe::simd::kLanes<S>;
  return {1, kLanes - 1, kLanes, kLanes + 1, 2 * kLanes, 4 * kLanes + 3, 130};
}

/// How rows may fall on groups, with 0 to 14 rows in all: heights around the tile of 6, empty groups, all in one.
const std::vector<std::vector<Index>> kSplits = {{0}, {1}, {2},        {3},        {4},      {5},
                                                 {6}, {7}, {0, 14, 0}, {1, 0, 13}, {6, 2, 5}};

}  // namespace

TEMPLATE_TEST_CASE("grouped_multiply: is x W^T within the error of a sum of products", "[kernel]", moe::F32, moe::F64) {
  using S = typename TestType::Scalar;
  for (const auto& split : kSplits)
    for (const Index outputs : sizes<S>())
      for (const Index inputs : {Index{0}, Index{1}, sizes<S>()[3], Index{130}}) {
        const Products<TestType> product(split, outputs, inputs);
        const auto x = test::random_matrix<S>(product.num_rows(), inputs);
        const Matrix<S> y = product.multiply(kernel::RowSource<S>::from(x));
        for (Index g = 0; g < product.groups().count; ++g) {
          CAPTURE(split, outputs, inputs, g);
          const auto rows = [&](const auto& m) { return product.rows(m, product.groups(), g); };
          const test::Bounded<S> exact{Mat(rows(x).template cast<double>())};
          CHECK(exact.linear(product(g).matrix().template cast<double>()).worst(rows(y)) <= 1);
        }
      }
}

TEMPLATE_TEST_CASE("grouped_multiply: a product is the chain of fused multiply-adds from +0, bit for bit", "[kernel]",
                   moe::F32, moe::F64) {
  using S = typename TestType::Scalar;
  for (const Index rows : {1, 2, 3, 5, 6, 7, 13}) {
    const Products<TestType> product({rows}, 4 * moe::simd::kLanes<S> + 3, 67);
    const auto x = test::random_matrix<S>(rows, 67);
    const Matrix<S> y = product.multiply(kernel::RowSource<S>::from(x));
    for (Index r = 0; r < rows; ++r)
      for (Index o = 0; o < product.outputs(); ++o) {
        S sum = 0;
        for (Index k = 0; k < 67; ++k) sum = moe::simd::fma(x(r, k), product(0)(o, k), sum);
        CAPTURE(rows, r, o);
        REQUIRE(test::same_bits(sum, y(r, o)));
      }
  }
}

TEST_CASE("grouped_multiply: rows are read in place through an index, at any address and distance", "[kernel]") {
  constexpr Index kRows = 9, kInputs = 37, kStride = 41;
  const Products<moe::F32> product({4, 5}, 35, kInputs);
  const auto x = test::random_matrix<float>(kRows, kInputs);
  const Matrix<float> expected = product.multiply(kernel::RowSource<float>::from(x));
  const std::vector<Index> index = {8, 1, 6, 3, 0, 5, 2, 7, 4};
  for (Index misalignment = 0; misalignment < 4; ++misalignment) {
    std::vector<float> memory(kRows * kStride + 4, test::kNan<float>);
    Eigen::Map<Matrix<float>, 0, Eigen::OuterStride<>> shuffled(memory.data() + misalignment, kRows, kInputs,
                                                                Eigen::OuterStride<>(kStride));
    for (Index r = 0; r < kRows; ++r) shuffled.row(index[static_cast<std::size_t>(r)]) = x.row(r);
    CAPTURE(misalignment);
    CHECK(test::same_bits(product.multiply(kernel::RowSource<float>::from(shuffled, index.data())), expected));
  }
}

TEMPLATE_TEST_CASE("grouped_input_gradient: is dout W within the error of a sum of products", "[kernel]", moe::F32,
                   moe::F64) {
  using S = typename TestType::Scalar;
  for (const auto& split : kSplits)
    for (const Index inputs : sizes<S>())
      for (const Index outputs : {Index{1}, sizes<S>()[3], Index{130}}) {
        const Products<TestType> product(split, outputs, inputs);
        const auto dy = test::random_matrix<S>(product.num_rows(), outputs);
        const Matrix<S> dx = product.input_gradient(product.padded(dy));
        for (Index g = 0; g < product.groups().count; ++g) {
          CAPTURE(split, outputs, inputs, g);
          const auto rows = [&](const auto& m) { return product.rows(m, product.groups(), g); };
          const test::Bounded<S> exact{Mat(rows(dy).template cast<double>())};
          const Mat transposed = product(g).matrix().transpose().template cast<double>();
          CHECK(exact.linear(transposed).worst(rows(dx)) <= 1);
        }
      }
}

TEMPLATE_TEST_CASE("grouped_weight_gradient: adds dout^T x and column sums, within the error of the sums", "[kernel]",
                   moe::F32, moe::F64) {
  using S = typename TestType::Scalar;
  for (const auto& split : kSplits)
    for (const Index outputs : sizes<S>())
      for (const Index inputs : {1, 5, 6, 7, 13}) {
        const Products<TestType> product(split, outputs, inputs);
        const auto x = test::random_matrix<S>(product.num_rows(), inputs, 3);
        const auto dy = test::random_matrix<S>(product.num_rows(), outputs, 4);
        auto gradient = product.zero_gradient();
        product.add_weight_gradient(x, product.padded(dy), gradient);
        for (Index g = 0; g < product.groups().count; ++g) {
          CAPTURE(split, outputs, inputs, g);
          const auto transposed = [&](const auto& m) {
            return Mat(product.rows(m, product.groups(), g).transpose().template cast<double>());
          };
          const test::Bounded<S> exact{transposed(dy)};
          const auto at = static_cast<std::size_t>(g);
          CHECK(exact.linear(transposed(x)).worst(gradient.weight[at].matrix()) <= 1);
          const Mat ones = Mat::Ones(1, product.groups().size(g));
          CHECK(exact.linear(ones).worst(gradient.bias[at].matrix()) <= 1);
        }
      }
}

TEST_CASE("grouped_weight_gradient: accumulates, and leaves the padding of the panels zero", "[kernel]") {
  const Products<moe::F32> product({7, 0, 3}, 35, 8);
  const auto x = test::random_matrix<float>(10, 8, 3), dy = test::random_matrix<float>(10, 35, 4);
  auto once = product.zero_gradient(), twice = product.zero_gradient();
  product.add_weight_gradient(x, product.padded(dy), once);
  for (int i = 0; i < 2; ++i) product.add_weight_gradient(x, product.padded(dy), twice);
  for (std::size_t g = 0; g < 3; ++g) {
    const auto logical = once.weight[g].matrix();
    // A sum of n terms that starts at itself: 2 n roundings.
    const double bound = test::gamma<float>(14) * 2 * 7 * test::largest(x) * test::largest(dy);
    CHECK(test::largest(twice.weight[g].matrix() - 2 * logical) <= bound);
    const auto nonzero = [](float v) { return v != 0; };
    CHECK(std::ranges::count_if(twice.weight[g].span(), nonzero) == (g == 1 ? 0 : 35 * 8));
    CHECK(std::ranges::count_if(twice.bias[g].span(), nonzero) == (g == 1 ? 0 : 35));
  }
}

TEMPLATE_TEST_CASE("grouped kernels: a row gives the same bits in a batch of any size", "[kernel][property]", moe::F32,
                   moe::F64) {
  using S = typename TestType::Scalar;
  // Every height of a tile, several panels at once, and several tiles.
  constexpr Index kRows = 3 * kernel::kTileRows + 2, kOutputs = 18 * moe::simd::kLanes<S> + 3, kInputs = 71;
  const Products<TestType> whole({kRows}, kOutputs, kInputs);
  const auto x = test::random_matrix<S>(kRows, kInputs), dy = test::random_matrix<S>(kRows, kOutputs);
  const Matrix<S> y = whole.multiply(kernel::RowSource<S>::from(x)), dx = whole.input_gradient(whole.padded(dy));
  for (Index rows = 1; rows < kRows; ++rows) {
    CAPTURE(rows);
    const Products<TestType> part({rows}, kOutputs, kInputs);
    const Matrix<S> some = x.bottomRows(rows), some_dy = dy.bottomRows(rows);
    CHECK(test::same_bits(part.multiply(kernel::RowSource<S>::from(some)), y.bottomRows(rows)));
    CHECK(test::same_bits(part.input_gradient(part.padded(some_dy)), dx.bottomRows(rows)));
  }
}

TEMPLATE_TEST_CASE("grouped_multiply: sums that wait between blocks of a long product are the same chain, bit for bit",
                   "[kernel]", moe::F32, moe::F64) {
  using S = typename TestType::Scalar;
  const Index inputs = 2 * kernel::detail::kDepthBlock<S> + 37;
  for (const Index rows : {Index{1}, Index{kernel::kTileRows}, kernel::kLeastRows + 5}) {
    const Products<TestType> product({rows}, 2 * moe::simd::kLanes<S> + 1, inputs);
    const auto x = test::random_matrix<S>(rows, inputs);
    const Matrix<S> y = product.multiply(kernel::RowSource<S>::from(x));
    for (const Index r : {Index{0}, rows / 2, rows - 1})
      for (const Index o : {Index{0}, product.outputs() - 1}) {
        S sum = 0;
        for (Index k = 0; k < inputs; ++k) sum = moe::simd::fma(x(r, k), product(0)(o, k), sum);
        CAPTURE(rows, r, o);
        CHECK(test::same_bits(sum, y(r, o)));
      }
  }
}

TEST_CASE("grouped_weight_gradient: is the chain of fused multiply-adds over rows, bit for bit", "[kernel]") {
  constexpr Index kInputs = kernel::detail::kGradientInputs + 5, kOutputs = 35;
  for (const Index rows : {Index{1}, Index{7}, 2 * kernel::detail::kGradientRows + 3}) {
    const Products<moe::F32> product({rows}, kOutputs, kInputs);
    const auto x = test::random_matrix<float>(rows, kInputs, 3), dy = test::random_matrix<float>(rows, kOutputs, 4);
    auto gradient = product.zero_gradient();
    product.add_weight_gradient(x, product.padded(dy), gradient);
    for (Index o = 0; o < kOutputs; ++o) {
      float bias = 0;
      for (Index r = 0; r < rows; ++r) bias = moe::simd::fma(1.0f, dy(r, o), bias);
      CAPTURE(rows, o);
      CHECK(test::same_bits(gradient.bias[0](o, 0), bias));
      for (Index i = 0; i < kInputs; ++i) {
        float sum = 0;
        for (Index r = 0; r < rows; ++r) sum = moe::simd::fma(x(r, i), dy(r, o), sum);
        REQUIRE(test::same_bits(gradient.weight[0](o, i), sum));
      }
    }
  }
}

TEMPLATE_TEST_CASE("grouped kernels: the number of threads does not change a bit", "[kernel][property]", moe::F32,
                   moe::F64) {
  using S = typename TestType::Scalar;
  const Products<TestType> product({9, 0, 40, 1}, 130, 150);
  const auto x = test::random_matrix<S>(50, 150), dy = test::random_matrix<S>(50, 130);
  const auto run = [&](Index workers) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    auto gradient = product.zero_gradient();
    product.add_weight_gradient(x, product.padded(dy), gradient);
    return std::tuple{product.multiply(kernel::RowSource<S>::from(x)), product.input_gradient(product.padded(dy)),
                      gradient.weight[2].matrix(), gradient.bias[2].matrix()};
  };
  const auto serial = run(1);
  for (const Index workers : {2, 3, 8}) {
    const auto parallel = run(workers);
    CAPTURE(workers);
    CHECK(test::same_bits(std::get<0>(parallel), std::get<0>(serial)));
    CHECK(test::same_bits(std::get<1>(parallel), std::get<1>(serial)));
    CHECK(test::same_bits(std::get<2>(parallel), std::get<2>(serial)));
    CHECK(test::same_bits(std::get<3>(parallel), std::get<3>(serial)));
  }
}

TEMPLATE_TEST_CASE("grouped_input_gradient: is zero behind the last input", "[kernel]", moe::F32, moe::F64) {
  using S = typename TestType::Scalar;
  for (const Index inputs : sizes<S>()) {
    const Products<TestType> product({7}, 35, inputs);
    const auto dx = product.input_gradient_panels(product.padded(test::random_matrix<S>(7, 35)));
    CAPTURE(inputs);
    CHECK(test::all_zero(dx.rightCols(dx.cols() - inputs)));
  }
}

TEST_CASE("grouped_multiply: rows in several blocks are each their own", "[kernel]") {
  constexpr Index kInputs = 2048;
  const Index block = kernel::detail::kRowBytes / (kInputs * Index{sizeof(float)});
  const Products<moe::F32> product({2 * block + 3}, 17, kInputs), alone({1}, 17, kInputs);
  const auto x = test::random_matrix<float>(product.num_rows(), kInputs);
  const Matrix<float> y = product.multiply(kernel::RowSource<float>::from(x));
  for (Index r = 0; r < product.num_rows(); ++r) {
    CAPTURE(r);
    const Matrix<float> one = x.row(r);
    REQUIRE(test::same_bits(alone.multiply(kernel::RowSource<float>::from(one)), y.row(r)));
  }
}

TEST_CASE("grouped_input_gradient: finite padding of dout does not reach the result", "[kernel]") {
  const Products<moe::F64> product({5}, 19, 23);
  const auto dy = test::random_matrix<double>(5, 19);
  CHECK(test::same_bits(product.input_gradient(product.padded(dy, 1e300)), product.input_gradient(product.padded(dy))));
}

TEST_CASE("grouped_multiply: NaN and infinity reach their own row alone", "[kernel]") {
  const Products<moe::F32> product({7}, 20, 9);
  auto x = test::random_matrix<float>(7, 9);
  const Matrix<float> clean = product.multiply(kernel::RowSource<float>::from(x));
  x(3, 4) = test::kNan<float>;
  const Matrix<float> y = product.multiply(kernel::RowSource<float>::from(x));
  CHECK(test::same_bits(y.topRows(3), clean.topRows(3)));
  CHECK(test::same_bits(y.bottomRows(3), clean.bottomRows(3)));
  for (Index o = 0; o < 20; ++o) CHECK(std::isnan(y(3, o)));
}
