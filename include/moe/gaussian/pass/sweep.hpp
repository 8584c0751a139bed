// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "moe/core/block_sum.hpp"
#include "moe/gaussian/pass/posterior.hpp"

namespace moe::inline MOE_ABI::detail {

/// What of the blocks of rows one thread adds up at a time.
inline SumBlocks sweep_blocks(Index num_blocks) { return SumBlocks::at_most<64>(num_blocks, /*smallest=*/8); }

/// Adds the lanes of each sum.
inline void add_lanes(const double* sums, Index size, double* to) {
  for (Index s = 0; s < size; ++s) to[s] = simd::reduce_add(simd::load(sums + s * kDoubles));
}

/// Sum of the log densities of a block's rows. The ratios are multiplied up first: each lies in [1 / k, k], so that a
/// product of all kBlockRows stays inside double up to k = 200, and one logarithm serves them all; else one per lane.
inline double block_log_density(const PosteriorColumns& columns, Index num_experts) {
  Lanes shift(0.0), product(1.0);
  for (Index i = 0; i < kBlockRows; i += kDoubles) {
    shift = shift + simd::load(columns.shift + i);
    product = product * simd::load(columns.ratio + i);
  }
  const double sum = simd::reduce_add(shift);
  if (num_experts <= 200)
    return sum + std::log(simd::reduce(product, [](const auto& a, const auto& b) { return a * b; }));
  alignas(64) double lanes[kDoubles];
  simd::store(lanes, product);
  double logarithms = 0;
  for (const double lane : lanes) logarithms += std::log(lane);
  return sum + logarithms;
}

/// The same with weights, where each row has a logarithm.
inline double weighted_log_density(const PosteriorColumns& columns, const double* weights) {
  double sum = 0;
  for (Index i = 0; i < kBlockRows; ++i) sum += weights[i] * (columns.shift[i] + std::log(columns.ratio[i]));
  return sum;
}

struct KeepColumns {
  void operator()(Index, const PosteriorColumns&) const {}
};

/// Runs over all rows with a model and returns the log-likelihood, and behind it [size()] what else `Sums` adds up:
///   Index size() const                                            numbers to be summed
///   typename Sums::Memory(sums)                                  working memory of a thread
///   void add(scratch, columns, rows, double* out) const           out [size()][kDoubles] += a block of rows
/// What the columns say of block b may be changed before, by change(b, columns): another density of the experts.
template <class Inner, class Sums, class Change = KeepColumns>
std::vector<double> sweep(const RowBlocks& rows, const MixtureCoefficients& model, const Sums& sums,
                          const Change& change = {}) {
  struct Worker {
    Worker(const MixtureCoefficients& m, const Sums& s)
        : memory(PosteriorColumns::size(m.num_experts)),
          columns(memory.data(), m.num_experts),
          scratch(s),
          lanes(s.size() * kDoubles) {}
    AlignedBuffer<double> memory;
    PosteriorColumns columns;
    typename Sums::Memory scratch;
    AlignedBuffer<double> lanes;
  };
  const Index size = sums.size();
  std::vector<double> total(static_cast<std::size_t>(size + 1));
  std::vector<std::unique_ptr<Worker>> workers(static_cast<std::size_t>(num_workers()));
  const auto add = [&](Index begin, Index end, double* sum, Index w) {
    auto& worker = workers[static_cast<std::size_t>(w)];
    if (!worker) worker = std::make_unique<Worker>(model, sums);
    std::fill_n(worker->lanes.data(), size * kDoubles, 0.0);
    const Posterior<Inner> posterior(model, worker->columns);
    double log_likelihood = 0;
    for (Index b = begin; b < end; ++b) {
      rows.prefetch(b + 1);
      posterior(rows.features(b), rows.output(b), rows.scale(b));
      change(b, worker->columns);
      clear_padding(worker->columns, rows.rows(b));
      const double* weights = rows.weights(b);
      log_likelihood += weights ? weighted_log_density(worker->columns, weights)
                                : block_log_density(worker->columns, model.num_experts);
      sums.add(worker->scratch, worker->columns, rows.summed(b), worker->lanes.data());
    }
    sum[0] = log_likelihood;
    add_lanes(worker->lanes.data(), size, sum + 1);
  };
  add_blocks(sweep_blocks(rows.num_blocks()), total, add);
  return total;
}

}  // namespace moe::inline MOE_ABI::detail
