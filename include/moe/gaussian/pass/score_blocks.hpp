// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>
#include <utility>
#include <vector>

#include "moe/gaussian/model/parameters.hpp"
#include "moe/gaussian/pass/posterior.hpp"

namespace moe::inline MOE_ABI::detail {

/// Parameters whose scores share a factor per row: d l_i / d theta = factor_i * (x_1 ... x_d, 1).
struct ScoreBlock {
  enum class Kind { Gate, GateBias, Temperature, Mean, Variance };

  Kind kind = Kind::Mean;
  Index expert = 0;        ///< owner; none of Temperature
  Index slope_at = -1;     ///< where the coefficients of x stand in theta; -1: none, a narrow block
  Index constant_at = -1;  ///< where the coefficient of 1 stands; -1: none

  bool is_wide() const { return slope_at >= 0; }
  bool is_gate() const { return kind != Kind::Mean && kind != Kind::Variance; }
};

/// Calls f with the kind as a compile-time constant.
template <class F>
void with_kind(ScoreBlock::Kind kind, F&& f) {
  using Kind = ScoreBlock::Kind;
  switch (kind) {
    case Kind::Gate:
      return f(std::integral_constant<Kind, Kind::Gate>{});
    case Kind::GateBias:
      return f(std::integral_constant<Kind, Kind::GateBias>{});
    case Kind::Temperature:
      return f(std::integral_constant<Kind, Kind::Temperature>{});
    case Kind::Mean:
      return f(std::integral_constant<Kind, Kind::Mean>{});
    case Kind::Variance:
      return f(std::integral_constant<Kind, Kind::Variance>{});
  }
}

/// All parameters in blocks, wide ones first. A gate bias outside of an activation is a block of its own, as its
/// derivative lacks the slope of the activation.
struct ScoreBlocks {
  std::vector<ScoreBlock> blocks;
  Index num_wide = 0;
  std::vector<Index> gate_place, expert_place;  // of a column of x among the inputs; -1: none

  ScoreBlocks(const ParameterLayout& at, bool bias_follows_slope)
      : gate_place(static_cast<std::size_t>(at.input_dim), -1), expert_place(gate_place) {
    using Kind = ScoreBlock::Kind;
    for (Index c = 0; c < at.gate_dim(); ++c) gate_place[static_cast<std::size_t>(at.gate_input(c))] = c;
    for (Index c = 0; c < at.expert_dim(); ++c) expert_place[static_cast<std::size_t>(at.expert_input(c))] = c;
    for (Index j = 0; j < at.free_slopes; ++j)
      blocks.push_back({Kind::Gate, j, at.gate_slope(j), bias_follows_slope ? at.gate_bias(j) : -1});
    for (Index j = 0; j < at.num_experts; ++j) blocks.push_back({Kind::Mean, j, at.slope(j), at.intercept(j)});
    num_wide = static_cast<Index>(blocks.size());
    if (!bias_follows_slope)
      for (Index j = 0; j < at.free_biases; ++j) blocks.push_back({Kind::GateBias, j, -1, at.gate_bias(j)});
    if (at.free_temperature) blocks.push_back({Kind::Temperature, 0, -1, at.log_temperature()});
    for (Index j = 0; j < at.num_experts; ++j) blocks.push_back({Kind::Variance, j, -1, at.log_variance(j)});
  }

  /// Where the coefficient of a feature, the last of which is 1, stands in theta; -1: nowhere.
  Index coordinate(const ScoreBlock& block, Index feature) const {
    if (feature == std::ssize(gate_place)) return block.constant_at;
    const Index place = (block.is_gate() ? gate_place : expert_place)[static_cast<std::size_t>(feature)];
    return block.is_wide() && place >= 0 ? block.slope_at + place : -1;
  }

  Index size() const { return static_cast<Index>(blocks.size()); }
  const ScoreBlock& operator[](Index i) const { return blocks[static_cast<std::size_t>(i)]; }
};

/// Pairs of score blocks: wide with wide, then wide with narrow, then narrow with narrow.
struct BlockPairs {
  std::vector<std::pair<Index, Index>> pairs;
  Index wide = 0, mixed = 0, narrow = 0;

  /// Those p <= q for which keep(block p, block q).
  template <class Wanted>
  BlockPairs(const ScoreBlocks& blocks, Wanted&& keep) {
    const auto add = [&](Index p, Index begin, Index end) {
      const std::size_t before = pairs.size();
      for (Index q = begin; q < end; ++q)
        if (keep(blocks[p], blocks[q])) pairs.emplace_back(p, q);
      return static_cast<Index>(pairs.size() - before);
    };
    for (Index p = 0; p < blocks.num_wide; ++p) wide += add(p, p, blocks.num_wide);
    for (Index p = 0; p < blocks.num_wide; ++p) mixed += add(p, blocks.num_wide, blocks.size());
    for (Index p = blocks.num_wide; p < blocks.size(); ++p) narrow += add(p, p, blocks.size());
  }
  explicit BlockPairs(const ScoreBlocks& blocks)
      : BlockPairs(blocks, [](const ScoreBlock&, const ScoreBlock&) { return true; }) {}

  Index size() const { return static_cast<Index>(pairs.size()); }
};

/// Multiplies the weights by their scales, which are 1 from then on.
inline void normalise_weights(const PosteriorColumns& columns, Index num_experts) {
  const PosteriorColumns c = columns;
  for (Index i = 0; i < kBlockRows; i += kDoubles) {
    const Lanes prior = simd::load(c.prior_scale + i), posterior = simd::load(c.posterior_scale + i);
    for (Index j = 0; j < num_experts; ++j) {
      double *pi = c.prior + j * kBlockRows + i, *r = c.posterior + j * kBlockRows + i;
      simd::store(pi, simd::load(pi) * prior);
      simd::store(r, simd::load(r) * posterior);
    }
    simd::store(c.prior_scale + i, Lanes(1.0));
    simd::store(c.posterior_scale + i, Lanes(1.0));
  }
}

/// The derivatives of z_j in u_j of a block of rows, computed once where pairs of score blocks read them often.
struct GateDerivatives {
  const double *first = nullptr, *second = nullptr;  // [k][kBlockRows]
};

/// The factors of a block of rows. `own` is d t_j / d theta of the owner j without its features, where t_j = z_j + log
/// density; the score multiplies it by r_j, or by r_j - pi_j for the gate.
/// kPrepared: the weights are normalised (normalise_weights), and the derivatives of a gate with an activation made.
template <class Inner, bool kPrepared = false>
class ScoreFactors {
 public:
  ScoreFactors(const MixtureCoefficients& model, const PosteriorColumns& columns, const GateDerivatives& gate = {})
      : c_(columns),
        gate_(gate),
        k_(model.num_experts),
        weight_(model.weight.data()),
        inverse_(model.inverse_temperature) {}

  Lanes prior(Index j, Index i) const {
    const Lanes weight = load_column(c_.prior, j, i);
    return kPrepared ? weight : weight * simd::load(c_.prior_scale + i);
  }
  Lanes posterior(Index j, Index i) const {
    const Lanes weight = load_column(c_.posterior, j, i);
    return kPrepared ? weight : weight * simd::load(c_.posterior_scale + i);
  }
  Lanes score(Index j, Index i) const { return load_column(c_.score, j, i); }
  Lanes inner(Index j, Index i) const { return load_column(c_.inner, j, i); }
  Lanes residual(Index j, Index i) const { return load_column(c_.residual, j, i); }
  Lanes precision(Index j) const { return Lanes(-2 * weight_[j]); }
  Lanes inverse_temperature() const { return Lanes(inverse_); }
  /// First and second derivative of z_j in u_j.
  Lanes slope(Index j, Index i) const {
    if constexpr (kStored) return load_column(gate_.first, j, i);
    return Inner::derivative(inner(j, i)) * inverse_temperature();
  }
  Lanes bend(Index j, Index i) const {
    if constexpr (kStored) return load_column(gate_.second, j, i);
    return Inner::second_derivative(inner(j, i)) * inverse_temperature();
  }
  Index num_experts() const { return k_; }

  [[gnu::always_inline]] Lanes own(const ScoreBlock& block, Index i) const {
    const Index j = block.expert;
    switch (block.kind) {
      case ScoreBlock::Kind::Gate:
        return slope(j, i);
      case ScoreBlock::Kind::GateBias:
        return inverse_temperature();
      case ScoreBlock::Kind::Temperature:
        return simd::negate(score(j, i));
      case ScoreBlock::Kind::Mean:
        return residual(j, i) * precision(j);
      case ScoreBlock::Kind::Variance:
        break;
    }
    const Lanes e = residual(j, i);
    return simd::fma(e * e, precision(j), Lanes(-1.0)) * Lanes(0.5);
  }

  /// d l_i / d theta without its features.
  [[gnu::always_inline]] Lanes operator()(const ScoreBlock& block, Index i) const {
    const Index j = block.expert;
    if (block.kind == ScoreBlock::Kind::Temperature) {
      Lanes sum(0.0);
      for (Index l = 0; l < k_; ++l) sum = simd::fma(prior(l, i) - posterior(l, i), score(l, i), sum);
      return sum;
    }
    const Lanes share = block.is_gate() ? posterior(j, i) - prior(j, i) : posterior(j, i);
    return share * own(block, i);
  }

 private:
  static constexpr bool kStored = kPrepared && !std::is_same_v<Inner, Identity>;

  PosteriorColumns c_;
  GateDerivatives gate_;
  Index k_;
  const double* weight_;
  double inverse_;
};

}  // namespace moe::inline MOE_ABI::detail
