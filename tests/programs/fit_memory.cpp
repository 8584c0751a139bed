// SPDX-License-Identifier: MIT
// A fit takes one copy of the data and what does not grow with the number of rows. Exits with 1 if it takes more.
#include <cstdio>

#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/predict/sample.hpp"
#include "programs/heap.hpp"

namespace {

using moe::Index;

/// Bytes that a fit of so many rows takes at its peak, beside the data.
long peak(Index num_rows) {
  auto truth = moe::GaussianMoe<moe::SoftmaxGate>::zero(2, 5);
  truth.gate_slope(0, 0) = 2;
  truth.slope.row(0).setOnes();
  truth.intercept << -1, 1;
  moe::RegressionData data{moe::Matrix<double>(num_rows, 5), {}};
  const moe::RandomField random(moe::Purpose::User, 1);
  for (Index i = 0; i < num_rows; ++i)
    for (Index c = 0; c < 5; ++c) data.x(i, c) = random.uniform(i, c);
  data.y = moe::sample(truth, data.x, 2);
  const long before = test::bytes_held.load();
  test::most_bytes_held = before;
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 6});
  if (!fit.converged) std::printf("the fit of %ld rows did not converge\n", static_cast<long>(num_rows));
  return test::most_bytes_held.load() - before;
}

}  // namespace

int main() {
  constexpr Index kFew = 60'000, kMany = 260'000;
  constexpr long kColumns = 5 + 2;  // inputs, ones, y
  constexpr long kHugePage = long{2} << 20;
  const long few = peak(kFew), many = peak(kMany), copy = (kMany - kFew) * kColumns * 8;
  std::printf("peak of %ld rows: %ld bytes, of %ld: %ld; %ld for a copy of the difference\n", static_cast<long>(kFew),
              few, static_cast<long>(kMany), many, copy);
  return many - few > copy + 2 * kHugePage ? 1 : 0;
}
