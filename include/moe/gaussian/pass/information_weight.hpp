// SPDX-License-Identifier: MIT
#pragma once

#include "moe/gaussian/pass/score_blocks.hpp"

namespace moe::inline MOE_ABI::detail {

/// Minus the second derivative of the log density of a row in two score blocks, without their features. As
/// l = lse(t) - lse(z) with t_j = z_j + log f_j, it is
///   Cov_pi(dz, dz) - Cov_r(dt, dt) - sum_j (r_j - pi_j) d^2 z_j - sum_j r_j d^2 log f_j
/// where dt_j is not 0 for the owner of a block alone, but for the temperature, where it is -z_j.
/// Louis, "Finding the observed information matrix when using the EM algorithm", JRSS B 1982.
struct InformationWeight {
  using Kind = ScoreBlock::Kind;

  template <class Factors>
  [[gnu::always_inline]] static Lanes at(const Factors& f, const ScoreBlock& p, const ScoreBlock& q, Index i) {
    const auto r = [&](Index j) { return f.posterior(j, i); };
    const auto pi = [&](Index j) { return f.prior(j, i); };
    Lanes sum = curvature(f, p, q, i) - covariance(f, r, p, q, i);
    if (p.is_gate() && q.is_gate()) sum = sum + covariance(f, pi, p, q, i);
    return sum;
  }

  /// Covariance of dt under weights w_j.
  template <class Factors, class Weights>
  [[gnu::always_inline]] static Lanes covariance(const Factors& f, const Weights& w, const ScoreBlock& p,
                                                 const ScoreBlock& q, Index i) {
    const bool tau_p = p.kind == Kind::Temperature, tau_q = q.kind == Kind::Temperature;
    if (tau_p || tau_q) {
      Lanes mean(0.0), square(0.0);
      for (Index j = 0; j < f.num_experts(); ++j) {
        const Lanes z = f.score(j, i);
        mean = simd::fma(w(j), z, mean);
        square = simd::fma(w(j) * z, z, square);
      }
      if (tau_p && tau_q) return simd::fnma(mean, mean, square);
      const ScoreBlock& other = tau_p ? q : p;
      return f.own(other, i) * w(other.expert) * (mean - f.score(other.expert, i));
    }
    const Lanes share = p.expert == q.expert ? simd::fnma(w(p.expert), w(p.expert), w(p.expert))
                                             : simd::negate(w(p.expert) * w(q.expert));
    return share * f.own(p, i) * f.own(q, i);
  }

 private:
  /// - sum_j (r_j - pi_j) d^2 z_j - sum_j r_j d^2 log f_j.
  template <class Factors>
  [[gnu::always_inline]] static Lanes curvature(const Factors& f, const ScoreBlock& p, const ScoreBlock& q, Index i) {
    if (p.kind == Kind::Temperature && q.kind == Kind::Temperature) {  // d^2 z = z
      Lanes sum(0.0);
      for (Index j = 0; j < f.num_experts(); ++j)
        sum = simd::fma(f.prior(j, i) - f.posterior(j, i), f.score(j, i), sum);
      return sum;
    }
    if (q.kind == Kind::Temperature || p.kind == Kind::Temperature) {  // d^2 z = -dz
      const ScoreBlock& other = p.kind == Kind::Temperature ? q : p;
      return other.is_gate() ? f(other, i) : Lanes(0.0);
    }
    if (p.expert != q.expert) return Lanes(0.0);
    const Index j = p.expert;
    if (p.kind == Kind::Gate && q.kind == Kind::Gate) return (f.prior(j, i) - f.posterior(j, i)) * f.bend(j, i);
    const Lanes information = f.posterior(j, i) * f.precision(j), e = f.residual(j, i);
    if (p.kind == Kind::Mean && q.kind == Kind::Mean) return information;
    if (p.kind == Kind::Mean && q.kind == Kind::Variance) return information * e;
    if (p.kind == Kind::Variance && q.kind == Kind::Variance) return information * e * e * Lanes(0.5);
    return Lanes(0.0);
  }
};

/// The information of the complete data, by which an M-step divides: the gate's expected one, sum J^T (diag pi - pi
/// pi^T) J, and the weighted least squares of each mean, r_j / nu_j.
struct CompleteWeight {
  static bool keep(const ScoreBlock& p, const ScoreBlock& q) {
    return (p.is_gate() && q.is_gate()) || keep_experts(p, q);
  }
  /// Without the gate's, whose pairs grow with k^2.
  static bool keep_experts(const ScoreBlock& p, const ScoreBlock& q) {
    return p.kind == ScoreBlock::Kind::Mean && q.kind == ScoreBlock::Kind::Mean && p.expert == q.expert;
  }
  /// Variance with variance stands for r_j alone: its sum are the rows of expert j.
  static bool keep_rows(const ScoreBlock& p, const ScoreBlock& q) {
    return p.kind == ScoreBlock::Kind::Variance && q.kind == ScoreBlock::Kind::Variance && p.expert == q.expert;
  }
  template <class Factors>
  [[gnu::always_inline]] static Lanes at(const Factors& f, const ScoreBlock& p, const ScoreBlock& q, Index i) {
    if (p.kind == ScoreBlock::Kind::Variance) return f.posterior(p.expert, i);
    if (p.kind == ScoreBlock::Kind::Mean) return f.posterior(p.expert, i) * f.precision(p.expert);
    return InformationWeight::covariance(
        f, [&](Index j) { return f.prior(j, i); }, p, q, i);
  }
};

/// s_P s_Q.
struct ScoreProductWeight {
  template <class Factors>
  [[gnu::always_inline]] static Lanes at(const Factors& factors, const ScoreBlock& p, const ScoreBlock& q, Index i) {
    return factors(p, i) * factors(q, i);
  }
};

}  // namespace moe::inline MOE_ABI::detail
