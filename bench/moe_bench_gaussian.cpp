// SPDX-License-Identifier: MIT
// Speed of Gaussian mixtures of experts: one pass of the log-likelihood, of the score with it, of an EM iteration and
// of the information, beside what the machine allows in the same minute, as medians of interleaved repetitions. Prints,
// per size and number of threads,
//   ms of each pass, and ns per row and expert;
//   EM / score;
//   limit:  max(exponentials, bandwidth) / score in %: the 2 n k exponentials and n / 128 logarithms of a pass alone,
//           or the rows at the read bandwidth, whichever takes longer;
//   work:   (exponentials + multiply-adds) / score in %, with the 2 k (d + 1) of the linear forms and the
//           (2 k - 1) (d + 1) of the sums at the peak in double;
//   naive:  a plain loop with std::exp on one thread / our log-likelihood; the values are checked to agree.
// Usage: moe_bench_gaussian [--large | --tiny]: also 1e7 rows; only few rows, to see that it runs
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numbers>
#include <vector>

#include "clock.hpp"
#include "gaussian_problem.hpp"
#include "measure.hpp"
#include "moe/gaussian/fit/em.hpp"
#include "moe/gaussian/pass/likelihood.hpp"

namespace {

using moe::Index;

struct Size {
  Index rows, experts, input_dim;
};

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

/// What no pass avoids: the exponentials of the gate and of the densities, in blocks that stay in L1, and a logarithm
/// for each block. Threads share the blocks as they do in a pass.
void transcendentals(Index rows, Index experts) {
  const Index count = 2 * experts * moe::detail::kBlockRows;
  const Index num_blocks = (rows + moe::detail::kBlockRows - 1) / moe::detail::kBlockRows;
  moe::parallel_ranges(num_blocks, moe::detail::sweep_blocks(num_blocks).size, [&](Index begin, Index end, Index) {
    moe::AlignedBuffer<double> memory(2 * count);
    double *from = memory.data(), *to = from + count, sum = 0;
    for (Index i = 0; i < count; ++i) from[i] = -0.01 * static_cast<double>(i % 700);
    for (Index b = begin; b < end; ++b) {
      bench::keep(*from);
      for (Index i = 0; i < count; i += moe::detail::kDoubles)
        moe::simd::store(to + i, moe::simd::exp_nonpositive(moe::simd::load(from + i)));
      sum += std::log(to[b % count]);
    }
    bench::keep(sum);
  });
}

/// A model, rows drawn from it, and the passes over them.
class Passes {
 public:
  explicit Passes(const Size& size)
      : size_(size),
        model_(bench::gaussian_model(size.experts, size.input_dim)),
        data_(bench::gaussian_rows(model_, size.rows)),
        rows_(data_, moe::detail::Standardisation::none(size.input_dim)),
        objective_(rows_, moe::layout(model_), model_.form()),
        em_(objective_, {}, moe::GateStep::Newton),
        state_(em_.start(model_)) {}

  double bytes() const { return static_cast<double>(size_.rows * (size_.input_dim + 2)) * sizeof(double); }
  double multiply_adds() const {
    return static_cast<double>(size_.rows * (4 * size_.experts - 1) * (size_.input_dim + 1));
  }

  /// Do the values agree, and does EM move? A sum of n terms in two orders differs by less than n eps sum |terms|, of
  /// which 1e-9 n leaves orders of magnitude.
  bool is_right() {
    moe::detail::EmState next = state_;
    const double tolerance = 1e-9 * static_cast<double>(size_.rows);
    return std::abs(naive(model_, data_) - objective_.value(model_)) < tolerance && em_.iterate(next);
  }

  enum { kScore, kValue, kEm, kInformation, kLimit, kNaive };
  /// In the order above.
  std::vector<bench::Contestant> contestants() {
    return {{"score", {}, [this](Index) { bench::keep(objective_.score(model_, score_)); }},
            {"value", {}, [this](Index) { bench::keep(objective_.value(model_)); }},
            {"EM iteration",
             {},
             [this](Index) {
               moe::detail::EmState next = state_;
               bench::keep(em_.iterate(next));
             }},
            {"information", {}, [this](Index) { bench::keep(objective_.information(model_, score_, information_)); }},
            {"transcendentals", {}, [this](Index) { transcendentals(size_.rows, size_.experts); }},
            {"naive", {}, [this](Index) { bench::keep(naive(model_, data_)); }}};
  }

 private:
  Size size_;
  moe::GaussianMoe<moe::SoftmaxGate> model_;
  moe::RegressionData data_;
  moe::detail::RowBlocks rows_;
  moe::detail::ObjectiveOf<moe::Identity> objective_;
  moe::detail::Em<> em_;
  moe::detail::EmState state_;
  Eigen::VectorXd score_ = {};
  Eigen::MatrixXd information_ = {};
};

/// Measures and prints a row of the table.
void measure(Passes& passes, const Size& size, int threads, double budget) {
  bench::set_threads(threads);
  const bench::LimitMeter meter(static_cast<Index>(passes.bytes()), threads);
  // The peak is one of float operations: half as many lanes for double, two operations each.
  const bench::Work work{.flop = 4 * passes.multiply_adds(), .bytes = passes.bytes()};
  std::vector<bench::Contestant> contestants = passes.contestants();
  const bench::Measurement m =
      bench::interleave(contestants, {work}, meter, {.seconds = budget, .least = 5, .most = 31});
  const auto seconds = [&](int pass) { return m.timings[static_cast<std::size_t>(pass)].seconds; };
  const double score = seconds(Passes::kScore), bytes = work.bytes / m.limits.bytes,
               exponentials = seconds(Passes::kLimit);
  std::printf("%9td %2td %2td %2d ", size.rows, size.experts, size.input_dim, threads);
  for (const int pass : {Passes::kValue, Passes::kScore, Passes::kEm, Passes::kInformation})
    std::printf(" %9.4f %6.2f", 1e3 * seconds(pass),
                1e9 * seconds(pass) / static_cast<double>(size.rows * size.experts));
  std::printf("   %5.2f   %5.0f %5.0f  %6.1f\n", m.timings[Passes::kEm].ratio,
              100 * std::max(exponentials, bytes) / score, 100 * (exponentials + work.flop / m.limits.flop) / score,
              seconds(Passes::kNaive) / seconds(Passes::kValue));
  std::fflush(stdout);
}

int run(const std::vector<Index>& rows, double budget) {
  std::printf("%s, %s; per pass ms and ns per row and expert\n", bench::processor_name().c_str(),
              bench::instruction_set().c_str());
  std::printf(
      "        n  k  d  t      value             score                EM       information      EM/score "
      " %%limit %%work   naive\n");
  for (const auto& [k, d] : {std::pair<Index, Index>{3, 5}, {2, 1}, {8, 10}})
    for (const Index n : rows) {
      const Size size{n, k, d};
      Passes passes(size);
      if (!passes.is_right()) {
        std::fprintf(stderr, "n = %td, k = %td, d = %td: the plain loop disagrees, or EM stands still\n", n, k, d);
        return 1;
      }
      measure(passes, size, 1, budget);
      if (bench::all_threads() > 1) measure(passes, size, bench::all_threads(), budget);
    }
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc == 2 && std::strcmp(argv[1], "--tiny") == 0) return run({300}, 0);
  std::vector<Index> rows{1'000, 10'000, 100'000, 1'000'000};
  if (argc == 2 && std::strcmp(argv[1], "--large") == 0) {
    rows.push_back(10'000'000);
  } else if (argc > 1) {
    std::fprintf(stderr, "Usage: moe_bench_gaussian [--large | --tiny]\n");
    return 2;
  }
  return run(rows, /*budget=*/1);
} catch (const std::exception& error) {
  std::fprintf(stderr, "moe_bench_gaussian: %s\n", error.what());
  return 1;
}
