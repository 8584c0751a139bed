// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/gaussian/pass/posterior.hpp"

namespace moe::inline MOE_ABI::detail {

/// Rows are summed up in at most 64 chunks, each by one thread, and the chunks in order: the bits of a sum depend on
/// the data alone, not on the number of threads.
struct Chunks {
  Index blocks_each, count;

  explicit Chunks(Index num_blocks)
      : blocks_each(std::max<Index>(8, (num_blocks + 63) / 64)), count((num_blocks + blocks_each - 1) / blocks_each) {}
};

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

/// Runs over all rows with a model and returns the log-likelihood. `Sums` says what else is added up:
///   Index size() const                                            numbers to be summed
///   typename Sums::Scratch(sums)                                  working memory of a thread
///   void add(scratch, columns, features, double* out) const       out [size()][kDoubles] += a block of rows
/// total [size()] is overwritten.
template <class Inner, class Sums>
double sweep(const RowBlocks& rows, const MixtureCoefficients& model, const Sums& sums, double* total) {
  struct Worker {
    Worker(const MixtureCoefficients& m, const Sums& s)
        : memory(PosteriorColumns::size(m.num_experts)),
          columns(memory.data(), m.num_experts),
          scratch(s),
          lanes(s.size() * kDoubles) {}
    AlignedBuffer<double> memory;
    PosteriorColumns columns;
    typename Sums::Scratch scratch;
    AlignedBuffer<double> lanes;
  };
  const Index size = sums.size();
  const Chunks chunks(rows.num_blocks());
  std::vector<double> parts(static_cast<std::size_t>(chunks.count * (size + 1)));
  std::vector<std::unique_ptr<Worker>> workers(static_cast<std::size_t>(num_workers()));
  parallel_for(chunks.count, [&](Index chunk, Index w) {
    auto& worker = workers[static_cast<std::size_t>(w)];
    if (!worker) worker = std::make_unique<Worker>(model, sums);
    std::fill_n(worker->lanes.data(), size * kDoubles, 0.0);
    const Posterior<Inner> posterior(model, worker->columns);
    double log_likelihood = 0;
    const Index end = std::min(rows.num_blocks(), (chunk + 1) * chunks.blocks_each);
    for (Index b = chunk * chunks.blocks_each; b < end; ++b) {
      rows.prefetch(b + 1);
      posterior(rows.features(b), rows.output(b));
      clear_padding(worker->columns, rows.rows(b));
      log_likelihood += block_log_density(worker->columns, model.num_experts);
      sums.add(worker->scratch, worker->columns, rows.features(b), worker->lanes.data());
    }
    double* part = parts.data() + chunk * (size + 1);
    part[0] = log_likelihood;
    add_lanes(worker->lanes.data(), size, part + 1);
  });
  double log_likelihood = 0;
  std::fill_n(total, size, 0.0);
  for (Index chunk = 0; chunk < chunks.count; ++chunk) {
    const double* part = parts.data() + chunk * (size + 1);
    log_likelihood += part[0];
    for (Index s = 0; s < size; ++s) total[s] += part[s + 1];
  }
  return log_likelihood;
}

}  // namespace moe::inline MOE_ABI::detail
