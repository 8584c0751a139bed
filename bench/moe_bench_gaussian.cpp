// SPDX-License-Identifier: MIT
// Speed of Gaussian mixtures of experts: one pass of the log-likelihood, of the score, of an EM iteration and of the
// information, beside what the machine allows, as medians of interleaved repetitions. Prints, per size,
//   ms of each pass; ns of the score per row and expert; EM iteration / score;
//   % limit: max(exponentials, bandwidth) / time of the score: the 2 n k exponentials alone, at the speed measured
//   beside
//            them, or the bytes of the rows at the read bandwidth, whichever takes longer
//   % work:  (exponentials + multiply-adds) / time: with the 2 k (d + 1) fused multiply-adds of the linear forms and
//   the
//            (2 k - 1) (d + 1) of the sums at the peak
//   naive:   a plain loop with std::exp / our log-likelihood, checked to agree
// Usage: moe_bench_gaussian [largest n = 1000000]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numbers>
#include <vector>

#include "limits.hpp"
#include "moe/gaussian/em.hpp"
#include "moe/gaussian/likelihood.hpp"
#include "moe/gaussian/sample.hpp"

namespace {

using moe::Index;

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Medians of so many rounds in which every contestant runs once (often enough to take a millisecond).
std::vector<double> medians(const std::vector<std::function<void()>>& contestants, int rounds) {
  std::vector<std::vector<double>> times(contestants.size());
  for (int round = -1; round < rounds; ++round)
    for (std::size_t c = 0; c < contestants.size(); ++c) {
      int calls = 0;
      double total = 0;
      while (total < 1e-3) total += seconds_of(contestants[c]), ++calls;
      if (round >= 0) times[c].push_back(total / calls);  // the first round warms up
    }
  std::vector<double> result;
  for (std::vector<double>& t : times) {
    std::nth_element(t.begin(), t.begin() + rounds / 2, t.end());
    result.push_back(t[static_cast<std::size_t>(rounds / 2)]);
  }
  return result;
}

moe::GaussianMoe<moe::SoftmaxGate> model_of(Index k, Index d) {
  auto m = moe::GaussianMoe<moe::SoftmaxGate>::zero(k, d);
  const moe::RandomField random(moe::Purpose::User, 1);
  for (Index j = 0; j < k; ++j)
    for (Index c = 0; c < d; ++c) {
      m.slope(j, c) = random.normal(j, c);
      if (j + 1 < k) m.gate_slope(j, c) = random.normal(j, c + d);
    }
  for (Index j = 0; j < k; ++j) m.intercept(j) = 2.0 * static_cast<double>(j), m.variance(j) = 0.3;
  return m;
}

double naive(const moe::GaussianParameters& m, const moe::RegressionData& data) {
  double sum = 0;
  for (Index i = 0; i < data.num_rows(); ++i) {
    double total = 0, density = 0;
    for (Index j = 0; j < m.num_experts(); ++j) {
      double z = m.gate_bias(j), mean = m.intercept(j);
      for (Index c = 0; c < m.input_dim(); ++c)
        z += m.gate_slope(j, c) * data.x(i, c), mean += m.slope(j, c) * data.x(i, c);
      const double e = data.y(i) - mean, weight = std::exp(z);
      total += weight;
      density += weight * std::exp(-0.5 * e * e / m.variance(j)) / std::sqrt(2 * std::numbers::pi * m.variance(j));
    }
    sum += std::log(density / total);
  }
  return sum;
}

/// The exponentials of a pass, alone: the same function over a block that stays in the cache.
void exponentials(Index count) {
  const Index blocks = std::max<Index>(1, count / 1024);
  moe::parallel_ranges(blocks, std::max<Index>(1, blocks / 64), [&](Index begin, Index end, Index) {
    alignas(64) double x[1024];
    std::fill_n(x, 1024, -1.5);
    for (Index b = begin; b < end; ++b)
      for (Index i = 0; i < 1024; i += moe::detail::kDoubles)
        moe::simd::store(x + i, moe::simd::negate(moe::simd::exp_nonpositive(moe::simd::load(x + i))));
    volatile double sink = x[5];
    static_cast<void>(sink);
  });
}

int run(Index n, Index k, Index d) {
  const auto model = model_of(k, d);
  moe::RegressionData data{moe::Matrix<double>(n, d), {}};
  const moe::RandomField random(moe::Purpose::User, 2);
  for (Index i = 0; i < n; ++i)
    for (Index c = 0; c < d; ++c) data.x(i, c) = 2 * random.uniform(i, c) - 1;
  data.y = moe::sample(model, data.x, 3);
  const moe::detail::RowBlocks rows(data, moe::detail::Standardisation::none(d));
  const moe::detail::ObjectiveOf<moe::Identity> objective(rows, moe::layout(model), model.form());
  if (n <= 100'000 && !(std::abs(naive(model, data) - objective.value(model)) < 1e-9 * static_cast<double>(n))) {
    std::printf("n = %td: the naive loop disagrees\n", n);
    return 1;
  }
  moe::detail::Em em(objective, {}, moe::GateStep::Newton);
  moe::detail::EmState state = em.start(model);
  Eigen::VectorXd score;
  Eigen::MatrixXd information;
  volatile double sink = 0;
  const std::vector<double> t =
      medians({[&] { sink = objective.value(model); }, [&] { sink = objective.score(model, score); },
               [&] {
                 moe::detail::EmState next = state;
                 em.iterate(next);
               },
               [&] { sink = objective.information(model, score, information); }, [&] { exponentials(2 * n * k); },
               [&] {
                 if (n <= 100'000) sink = naive(model, data);
               }},
              n > 200'000 ? 5 : 15);
  const int threads = static_cast<int>(moe::num_workers());
  const double rows_bytes = static_cast<double>(n * (d + 2) * 8);
  const bench::Limits limits = bench::LimitMeter(static_cast<Index>(rows_bytes), threads).measure();
  const double bytes = rows_bytes / limits.bytes;
  // The peak is of float operations: half as many lanes for double, two operations each.
  const double fma = static_cast<double>(n * (2 * k + 2 * k - 1) * (d + 1)) * 2 / (limits.flop / 2);
  const double limit = std::max(t[4], bytes), work = std::max(t[4] + fma, bytes);
  std::printf("%9td %2td %2td %2d %9.3f %9.3f %9.3f %9.3f   %6.2f %6.2f   %5.0f %5.0f   %6.1f\n", n, k, d, threads,
              1e3 * t[0], 1e3 * t[1], 1e3 * t[2], 1e3 * t[3], 1e9 * t[1] / static_cast<double>(n * k), t[2] / t[1],
              100 * limit / t[1], 100 * work / t[1], t[5] / t[0]);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const long largest = argc > 1 ? std::atol(argv[1]) : 1'000'000;
  std::printf(
      "        n  k  d  t   value ms  score ms     EM ms   info ms   ns/n/k EM/score  %%limit %%work   naive\n");
  int failed = 0;
  for (const auto& [k, d] : {std::pair<Index, Index>{2, 1}, {3, 5}, {8, 10}})
    for (Index n = 1000; n <= largest; n *= 10) failed += run(n, k, d);
  return failed == 0 ? 0 : 1;
}
