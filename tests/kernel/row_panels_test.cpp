// SPDX-License-Identifier: MIT
#include "moe/kernel/row_panels.hpp"

#include <vector>

#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/routings.hpp"

using moe::Index;
using moe::Matrix;
using moe::RowBuffer;

namespace {

template <class S>
RowBuffer<S> buffer_of(const Matrix<S>& values) {
  RowBuffer<S> rows;
  rows.resize(values.rows(), values.cols());
  rows.matrix() = values;
  return rows;
}

/// A B or A B^T group by group, the sums in the order that the kernel promises, where fma is exact in long double.
template <class S, class B>
Matrix<S> expected(const Matrix<S>& a, const std::vector<Index>& rows, const B& b, Index inputs, Index cols) {
  Matrix<S> result(a.rows(), cols);
  for (std::size_t g = 0; g + 1 < rows.size(); ++g)
    for (Index r = rows[g]; r < rows[g + 1]; ++r)
      for (Index c = 0; c < cols; ++c) {
        S sum = 0;
        for (Index i = 0; i < inputs; ++i) sum = std::fma(a(r, i), b(static_cast<Index>(g), i, c), sum);
        result(r, c) = sum;
      }
  return result;
}

template <class S>
Matrix<S> multiplied(const moe::kernel::RowGroups& groups, const RowBuffer<S>& a, const moe::kernel::RowPanels<S>& b,
                     Index cols) {
  moe::kernel::TaskList tasks;
  RowBuffer<S> out;
  test::poison(out, a.rows(), cols);
  moe::kernel::multiply_by_rows<S>(groups, moe::kernel::RowSource<S>::from(a), b, cols, tasks,
                                   [&](Index r) { return out.row(r); });
  return out.matrix();
}

}  // namespace

TEMPLATE_TEST_CASE("RowPanels: rows times rows of their group, bit for bit, for any number of threads", "[kernel]",
                   float, double) {
  moe::kernel::RowPanels<TestType> panels;  // reused: what is left of larger matrices is not read
  for (const Index cols : {70, 33, 16, 7, 1})
    for (const Index inputs : {40, 5, 1}) {
      CAPTURE(cols, inputs);
      const std::vector<Index> a_rows = {0, 3, 3, 20}, b_rows = {0, inputs, 2 * inputs, 3 * inputs};
      const Index groups = 3;
      const auto a = test::random_matrix<TestType>(20, inputs, 1);
      const auto b = test::random_matrix<TestType>(3 * inputs, cols, 2);
      const auto rows = buffer_of(b);
      panels.pack({b_rows.data(), groups}, cols, [&](Index r) { return rows.row(r); });
      const auto plain = expected(
          a, a_rows, [&](Index g, Index i, Index c) { return b(g * inputs + i, c); }, inputs, cols);
      const auto a_buffer = buffer_of(a);
      for (const auto& result : test::on_thread_counts([&] {
             return multiplied<TestType>({a_rows.data(), groups}, a_buffer, panels, cols);
           }))
        CHECK(test::same_bits(result, plain));
      // The same product from the transposed rows.
      Matrix<TestType> turned(3 * cols, inputs);
      std::vector<Index> turned_rows = {0, cols, 2 * cols, 3 * cols};
      for (Index g = 0; g < groups; ++g)
        for (Index c = 0; c < cols; ++c)
          for (Index i = 0; i < inputs; ++i) turned(g * cols + c, i) = b(g * inputs + i, c);
      const auto turned_buffer = buffer_of(turned);
      panels.pack_transposed({turned_rows.data(), groups}, inputs, [&](Index r) { return turned_buffer.row(r); });
      CHECK(test::same_bits(multiplied<TestType>({a_rows.data(), groups}, a_buffer, panels, cols), plain));
    }
}

TEST_CASE("RowPanels: no groups, and rows in an order of their own", "[kernel]") {
  moe::kernel::RowPanels<double> panels;
  const std::vector<Index> none = {0}, one = {0, 4};
  const auto b = test::random_matrix<double>(4, 9, 2);
  const auto rows = buffer_of(b);
  panels.pack({none.data(), 0}, 9, [&](Index r) { return rows.row(r); });
  panels.pack({one.data(), 1}, 9, [&](Index r) { return rows.row(3 - r); });
  const auto identity = buffer_of(Matrix<double>(Matrix<double>::Identity(4, 4)));
  const auto out = multiplied<double>({one.data(), 1}, identity, panels, 9);
  for (Index r = 0; r < 4; ++r) CHECK(test::same_bits(out.row(r), b.row(3 - r)));
}
