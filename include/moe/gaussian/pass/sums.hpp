// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/gaussian/pass/score_blocks.hpp"
#include "moe/gaussian/pass/sweep.hpp"

// What a sweep may add up besides the log-likelihood.
namespace moe::inline MOE_ABI::detail {

struct NoSums {
  struct Memory {
    explicit Memory(const NoSums&) {}
  };
  Index size() const { return 0; }
  void add(Memory&, const PosteriorColumns&, const SummedColumns&, double*) const {}
};

/// columns [count][kBlockRows] times a number of each row.
[[gnu::noinline]] inline void multiply_columns(const double* by, double* columns, Index count) {
  for (double* to = columns; to != columns + count * kBlockRows; to += kBlockRows)
    for (Index i = 0; i < kBlockRows; i += kDoubles) simd::store(to + i, simd::load(to + i) * simd::load(by + i));
}

/// The score: [num_wide][d + 1], then a number for each narrow block.
template <class Inner>
class ScoreSums {
 public:
  struct Memory {
    explicit Memory(const ScoreSums& sums) : factors(sums.blocks_.size() * kBlockRows), scales(2 * kBlockRows) {}
    AlignedBuffer<double> factors, scales;
  };

  ScoreSums(const MixtureCoefficients& model, const ScoreBlocks& blocks) : m_(model), blocks_(blocks) {}

  Index size() const { return blocks_.num_wide * m_.num_features + blocks_.size() - blocks_.num_wide; }

  void add(Memory& scratch, const PosteriorColumns& columns, const SummedColumns& rows, double* out) const {
    const double* features = rows.features;
    const ScoreFactors<Inner> factors(m_,
                                      rows.weights ? weighted(columns, rows.weights, scratch.scales.data()) : columns);
    double* to = scratch.factors.data();
    if (rows.scale) return add_scaled(factors, rows, to, out);
    const Index k = m_.num_experts, n = m_.num_features, wide = blocks_.num_wide, narrow = blocks_.size() - wide;
    const Index first = std::min<Index>(kFirst, n);
    for (Index j = 0; j < k; ++j)
      simd::with_constant<kFirst>(static_cast<int>(first), [&](auto count) {
        const Index mean = wide - k + j;
        ExpertSums at{.expert = j,
                      .features = features,
                      .gate_factor = to + j * kBlockRows,
                      .mean_factor = to + mean * kBlockRows,
                      .gate = out + j * n * kDoubles,
                      .mean = out + mean * n * kDoubles,
                      .variance = out + (wide * n + narrow - k + j) * kDoubles,
                      .keep_factors = n > first};
        j < wide - k ? add_expert<count, true>(factors, at) : add_expert<count, false>(factors, at);
      });
    if (n > first) add_products(to, wide, features + first * kBlockRows, n - first, n, out + first * kDoubles);
    for (Index b = wide; b + k < blocks_.size(); ++b) fill(factors, blocks_[b], to + b * kBlockRows);
    add_products(to + wide * kBlockRows, narrow - k, features + (n - 1) * kBlockRows, 1, 1, out + wide * n * kDoubles);
  }

  /// Puts the sums where the parameters stand.
  void scatter(const double* total, Eigen::VectorXd& score) const {
    const Index d = m_.num_features - 1;
    for (Index b = 0; b < blocks_.size(); ++b) {
      const ScoreBlock& block = blocks_[b];
      const double* from = b < blocks_.num_wide ? total + b * (d + 1) : total + blocks_.num_wide * d + b;
      for (Index c = 0; block.is_wide() && c < d; ++c)
        if (const Index to = blocks_.coordinate(block, c); to >= 0) score(to) = from[c];
      if (block.constant_at >= 0) score(block.constant_at) = block.is_wide() ? from[d] : from[0];
    }
  }

 private:
  /// The same of rows with precisions: residuals are scaled already, and with the factor of a mean so are its features.
  [[gnu::noinline]] void add_scaled(const ScoreFactors<Inner>& factors, const SummedColumns& rows, double* to,
                                    double* out) const {
    const Index n = m_.num_features, wide = blocks_.num_wide;
    for (Index b = 0; b < blocks_.size(); ++b) {
      double* column = to + b * kBlockRows;
      fill(factors, blocks_[b], column);
      if (blocks_[b].kind == ScoreBlock::Kind::Mean) multiply_columns(rows.scale, column, 1);
    }
    add_products(to, wide, rows.features, n, n, out);
    add_products(to + wide * kBlockRows, blocks_.size() - wide, rows.features + (n - 1) * kBlockRows, 1, 1,
                 out + wide * n * kDoubles);
  }

  /// Features whose sums are made while the factors of an expert are in registers.
  static constexpr int kFirst = 6;

  struct ExpertSums {
    Index expert;
    const double* features;
    double *gate_factor, *mean_factor, *gate, *mean, *variance;
    bool keep_factors;
  };

  /// With the weights of rows in the scales of both probabilities, in which scores are linear; scales [2][kBlockRows].
  /// Apart, so that sums without weights are compiled as if there were none.
  [[gnu::noinline]] static PosteriorColumns weighted(PosteriorColumns columns, const double* weights, double* scales) {
    double* posterior_scales = scales + kBlockRows;
    for (Index i = 0; i < kBlockRows; i += kDoubles) {
      const Lanes weight = simd::load(weights + i);
      simd::store(scales + i, simd::load(columns.prior_scale + i) * weight);
      simd::store(posterior_scales + i, simd::load(columns.posterior_scale + i) * weight);
    }
    columns.prior_scale = scales;
    columns.posterior_scale = posterior_scales;
    return columns;
  }

  /// Constant factors are multiplied in at the end; the stores are for features beyond the first.
  template <int F, bool kGate>
  static void add_expert(const ScoreFactors<Inner>& all, const ExpertSums& to) {
    const ScoreFactors<Inner> factors = all;
    const Index j = to.expert;
    const double* features = to.features;
    double *gate_factor = to.gate_factor, *mean_factor = to.mean_factor;
    const Lanes precision = factors.precision(j), inverse = factors.inverse_temperature();
    const bool keep = to.keep_factors;
    Lanes gate[F], mean[F], rows(0.0), squares(0.0);
    simd::unroll<F>([&](auto f) { gate[f] = mean[f] = Lanes(0.0); });
    for (Index i = 0; i < kBlockRows; i += kDoubles) {
      const Lanes r = factors.posterior(j, i), e = factors.residual(j, i), re = r * e;
      rows = rows + r;
      squares = simd::fma(re, e, squares);
      Lanes g(0.0);
      if constexpr (kGate) g = r - factors.prior(j, i);
      if constexpr (kGate && !std::is_same_v<Inner, Identity>) g = g * Inner::derivative(factors.inner(j, i));
      if (keep) {
        simd::store(mean_factor + i, re * precision);
        if constexpr (kGate) simd::store(gate_factor + i, g * inverse);
      }
      simd::unroll<F>([&](auto f) {
        const Lanes x = simd::load(features + f * kBlockRows + i);
        if constexpr (kGate) gate[f] = simd::fma(g, x, gate[f]);
        mean[f] = simd::fma(re, x, mean[f]);
      });
    }
    double *gate_out = to.gate, *mean_out = to.mean;
    simd::unroll<F>([&](auto f) {
      double *q = gate_out + f * kDoubles, *p = mean_out + f * kDoubles;
      if constexpr (kGate) simd::store(q, simd::fma(gate[f], inverse, simd::load(q)));
      simd::store(p, simd::fma(mean[f], precision, simd::load(p)));
    });
    const Lanes twice = simd::fma(squares, precision, simd::negate(rows));
    simd::store(to.variance, simd::fma(twice, Lanes(0.5), simd::load(to.variance)));
  }

  /// A loop for each kind, as the choice within one is not taken out of it by the compiler.
  static void fill(const ScoreFactors<Inner>& all, const ScoreBlock& block, double* to) {
    with_kind(block.kind, [&](auto kind) {
      const ScoreFactors<Inner> factors = all;
      ScoreBlock constant = block;
      constant.kind = kind;
      for (Index i = 0; i < kBlockRows; i += kDoubles) simd::store(to + i, factors(constant, i));
    });
  }

  const MixtureCoefficients& m_;
  const ScoreBlocks& blocks_;
};

/// Sums of weight(P, Q) (features of P) (features of Q)^T over pairs of score blocks: second derivatives and the
/// covariance of scores. `Weight::at(factors, p, q, i)` is the weight of a register of rows.
template <class Inner, class Weight>
class PairSums {
 public:
  struct Memory {
    explicit Memory(const PairSums& sums)
        : weights(sums.pairs_.size() * kBlockRows), derivatives(2 * sums.m_.num_experts * kBlockRows) {}
    AlignedBuffer<double> weights, derivatives;
    PairProducts products;
  };

  PairSums(const MixtureCoefficients& model, const ScoreBlocks& blocks, const BlockPairs& pairs)
      : m_(model), blocks_(blocks), pairs_(pairs) {}

  Index size() const {
    return pairs_.wide * num_pairs(m_.num_features) + pairs_.mixed * m_.num_features + pairs_.narrow;
  }

  void add(Memory& scratch, const PosteriorColumns& columns, const SummedColumns& rows, double* out) const {
    normalise_weights(columns, m_.num_experts);
    const Factors factors(m_, columns, gate_derivatives(scratch, columns));
    double* to = scratch.weights.data();
    for (const auto& [p, q] : pairs_.pairs) {
      fill(factors, blocks_[p], blocks_[q], to);
      to += kBlockRows;
    }
    if (rows.weights) multiply_columns(rows.weights, scratch.weights.data(), pairs_.size());
    if (rows.scale) scale_means(rows.scale, scratch.weights.data());
    const double* features = rows.features;
    const Index num_features = m_.num_features;
    const double* weights = scratch.weights.data();
    scratch.products.add(weights, pairs_.wide, features, num_features, out);
    weights += pairs_.wide * kBlockRows;
    out += pairs_.wide * num_pairs(num_features) * kDoubles;
    add_products(weights, pairs_.mixed, features, num_features, num_features, out);
    weights += pairs_.mixed * kBlockRows;
    out += pairs_.mixed * num_features * kDoubles;
    add_products(weights, pairs_.narrow, features + (num_features - 1) * kBlockRows, 1, 1, out);
  }

  /// Puts the sums where the parameters stand; matrix [p, p].
  void scatter(const double* total, Eigen::MatrixXd& matrix) const {
    for (const auto& [p, q] : pairs_.pairs) {
      const bool wide_p = p < blocks_.num_wide, wide_q = q < blocks_.num_wide;
      place(blocks_[p], blocks_[q], total, matrix);
      total += wide_p && wide_q ? num_pairs(m_.num_features) : wide_p || wide_q ? m_.num_features : 1;
    }
  }

 private:
  using Factors = ScoreFactors<Inner, true>;

  /// A loop for each pair of kinds: choices within one would be made for every register.
  static void fill(const Factors& all, const ScoreBlock& p, const ScoreBlock& q, double* to) {
    with_kind(p.kind, [&](auto kind_p) {
      with_kind(q.kind, [&](auto kind_q) {
        const Factors factors = all;
        ScoreBlock first = p, second = q;
        first.kind = kind_p, second.kind = kind_q;
        for (Index i = 0; i < kBlockRows; i += kDoubles) simd::store(to + i, Weight::at(factors, first, second, i));
      });
    });
  }

  /// Once for each mean of a pair, whose features are scaled.
  [[gnu::noinline]] void scale_means(const double* scale, double* columns) const {
    for (const auto& [p, q] : pairs_.pairs) {
      for (const Index b : {p, q})
        if (blocks_[b].kind == ScoreBlock::Kind::Mean) multiply_columns(scale, columns, 1);
      columns += kBlockRows;
    }
  }

  GateDerivatives gate_derivatives(Memory& scratch, const PosteriorColumns& columns) const {
    if constexpr (std::is_same_v<Inner, Identity>) return {};
    const ScoreFactors<Inner> factors(m_, columns);
    const Index size = m_.num_experts * kBlockRows;
    double *first = scratch.derivatives.data(), *second = first + size;
    for (Index i = 0; i < size; i += kDoubles) {
      simd::store(first + i, factors.slope(0, i));
      simd::store(second + i, factors.bend(0, i));
    }
    return {first, second};
  }

  void place(const ScoreBlock& p, const ScoreBlock& q, const double* sums, Eigen::MatrixXd& matrix) const {
    const Index n = m_.num_features;
    for (Index f = p.is_wide() ? 0 : n - 1; f < n; ++f)
      for (Index g = q.is_wide() ? 0 : n - 1; g < n; ++g) {
        const Index row = blocks_.coordinate(p, f), col = blocks_.coordinate(q, g);
        if (row < 0 || col < 0) continue;
        const Index at = p.is_wide() && q.is_wide() ? pair_index(std::min(f, g), std::max(f, g), n)
                         : p.is_wide()              ? f
                                                    : 0;
        matrix(row, col) = matrix(col, row) = sums[at];
      }
  }

  const MixtureCoefficients& m_;
  const ScoreBlocks& blocks_;
  const BlockPairs& pairs_;
};

/// Two kinds of sums in one sweep.
template <class First, class Second>
class JoinedSums {
 public:
  struct Memory {
    explicit Memory(const JoinedSums& sums) : first(sums.first_), second(sums.second_) {}
    typename First::Memory first;
    typename Second::Memory second;
  };

  JoinedSums(const First& first, const Second& second) : first_(first), second_(second) {}

  Index size() const { return first_.size() + second_.size(); }

  void add(Memory& scratch, const PosteriorColumns& columns, const SummedColumns& rows, double* out) const {
    first_.add(scratch.first, columns, rows, out);
    second_.add(scratch.second, columns, rows, out + first_.size() * kDoubles);
  }

 private:
  const First& first_;
  const Second& second_;
};

}  // namespace moe::inline MOE_ABI::detail
