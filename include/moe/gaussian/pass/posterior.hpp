// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "moe/gaussian/model/model.hpp"
#include "moe/gaussian/pass/products.hpp"
#include "moe/numeric/elementary.hpp"

namespace moe::inline MOE_ABI::detail {

/// The numbers of a model as the loops over rows read them.
class MixtureCoefficients {
 public:
  MixtureCoefficients(const GaussianParameters& model, const GateForm& form);

  Index num_experts, num_features;  // k and d + 1
  Index active;                     // experts per row
  double inverse_temperature;
  bool keep_scores = true;             // false: nobody reads z, which saves stores where that is the bound
  std::vector<double> forms;           // [d + 1][2][k]: u, and minus the mean, by feature
  std::vector<double> outside;         // [k]: what is added to inner(u); zero where beta_0 is in u already
  std::vector<double> offset, weight;  // [k]: log density = offset + weight * residual^2
};

inline MixtureCoefficients::MixtureCoefficients(const GaussianParameters& model, const GateForm& form)
    : num_experts(model.num_experts()),
      num_features(model.input_dim() + 1),
      active(form.active),
      inverse_temperature(1 / model.temperature) {
  const bool bias_in_u = form.bias == BiasPlace::Inside && form.ranks_bias;
  for (Index c = 0; c + 1 < num_features; ++c) {
    for (Index j = 0; j < num_experts; ++j) forms.push_back(model.gate_slope(j, c));
    for (Index j = 0; j < num_experts; ++j) forms.push_back(-model.slope(j, c));
  }
  for (Index j = 0; j < num_experts; ++j) forms.push_back(bias_in_u ? model.gate_bias(j) : 0);
  for (Index j = 0; j < num_experts; ++j) {
    forms.push_back(-model.intercept(j));
    outside.push_back(bias_in_u ? 0 : model.gate_bias(j));
    offset.push_back(-0.5 * std::log(2 * std::numbers::pi * model.variance(j)));
    weight.push_back(-0.5 / model.variance(j));
  }
}

/// What is known of the rows of a block, by columns [k][kBlockRows]. Pointers by value: a loop takes a copy, as stores
/// of registers may alias anything and would have every pointer that is not a local variable read anew.
struct PosteriorColumns {
  double* inner;      ///< u, for gates with an activation and sparse ones
  double* score;      ///< z, -infinity where inactive
  double* residual;   ///< y - mean
  double* prior;      ///< pi, to be multiplied by prior_scale
  double* posterior;  ///< r, to be multiplied by posterior_scale; right behind prior
  double *prior_scale, *posterior_scale;
  double *shift, *ratio;  ///< log density of a row = shift + log(ratio), ratio in [1 / k, k]

  static constexpr Index size(Index num_experts) { return (5 * num_experts + 4) * kBlockRows; }
  PosteriorColumns(double* memory, Index num_experts) {
    for (double** columns : {&inner, &score, &residual, &prior, &posterior}) {
      *columns = memory;
      memory += num_experts * kBlockRows;
    }
    for (double** column : {&prior_scale, &posterior_scale, &shift, &ratio}) {
      *column = memory;
      memory += kBlockRows;
    }
  }
};

/// Makes the weights of rows that only fill the block zero, so that no sum counts them.
inline void clear_padding(const PosteriorColumns& columns, Index rows) {
  for (Index i = rows; i < kBlockRows; ++i) {
    columns.prior_scale[i] = columns.posterior_scale[i] = columns.shift[i] = 0;
    columns.ratio[i] = 1;
  }
}

inline Lanes load_column(const double* columns, Index j, Index i) { return simd::load(columns + j * kBlockRows + i); }

/// The loops over the rows of a block: scores, weights, responsibilities, density. They are loops of their own, so that
/// in each the registers of rows are independent: in one loop the chain from forms to maximum, exponential, sum and
/// quotient is longer than what a core looks ahead.
template <class Inner>
class Posterior {
 public:
  Posterior(const MixtureCoefficients& model, const PosteriorColumns& columns) : m_(model), c_(columns) {}

  /// scale: see RowBlocks::scale().
  void operator()(const double* features, const double* output, const double* scale = nullptr) const {
    const Index k = m_.num_experts;
    for (Index first = 0; first < k; first += kGroup)
      simd::with_constant<kGroup>(static_cast<int>(std::min<Index>(kGroup, k - first)), [&](auto group) {
        if (group == k && m_.active == k && !scale)
          forms<group, true>(features, output, first);
        else
          forms<group, false>(features, output, first);
      });
    if (scale) scale_residuals(scale);
    if (m_.active < k) mask();
    if (m_.active < k || k > kGroup || scale) log_weights();
    if (scale) shift_densities(scale + kBlockRows);
    exponentials();
    sums();
  }

 private:
  static constexpr int kGroup = 4;  // experts whose forms are computed together: 8 accumulators

  /// z + log density of an expert. Bounded, so that a residual whose square overflows does not make all impossible.
  static Lanes joint(const Lanes& z, const Lanes& e, double weight, double offset) {
    return z + simd::max(simd::fma(Lanes(weight) * e, e, Lanes(offset)), Lanes(-1e300));
  }

  /// What the loop over forms reads besides its coefficients, in local variables.
  struct Local {
    PosteriorColumns c;
    const double *outside, *weight, *offset;
    double inverse;
    bool keep_scores;
  };

  /// u, residual and z of experts first ... first + G - 1; if they are all experts, also the logarithms of the weights.
  template <int G, bool kAll>
  void forms(const double* features, const double* output, Index first) const {
    // A coefficient that is loaded serves two registers of rows where their sums fit the registers: loads are the
    // bound.
    constexpr int kRows = 4 * G + 3 <= simd::kRegisters ? 2 : 1;
    const Index n = m_.num_features, k = kAll ? G : m_.num_experts;
    const Local local{kAll ? PosteriorColumns(c_.inner, G) : c_,
                      m_.outside.data() + first,
                      m_.weight.data(),
                      m_.offset.data(),
                      m_.inverse_temperature,
                      m_.keep_scores};
    const double *begin = m_.forms.data() + first, *constants = begin + 2 * k * (n - 1);
    for (Index i = 0; i < kBlockRows; i += kRows * kDoubles) {
      Lanes u[kRows][G], e[kRows][G];
      simd::unroll<G>([&](auto g) {
        simd::unroll<kRows>([&](auto r) {
          u[r][g] = Lanes(constants[g]);
          e[r][g] = simd::load(output + i + r * kDoubles) + Lanes(constants[k + g]);
        });
      });
      const double* x = features + i;
      for (const double* a = begin; a != constants; a += 2 * k, x += kBlockRows)
        simd::unroll<G>([&](auto g) {
          const Lanes gate(a[g]), expert(a[k + g]);
          simd::unroll<kRows>([&](auto r) {
            u[r][g] = simd::fma(gate, simd::load(x + r * kDoubles), u[r][g]);
            e[r][g] = simd::fma(expert, simd::load(x + r * kDoubles), e[r][g]);
          });
        });
      finish<G, kAll>(local, u[0], e[0], first * kBlockRows + i);
      if constexpr (kRows == 2) finish<G, kAll>(local, u[1], e[1], first * kBlockRows + i + kDoubles);
    }
  }

  /// The rest for a register of rows, which stands at `to` in the columns of the first expert.
  template <int G, bool kAll>
  [[gnu::always_inline]] static void finish(const Local& l, Lanes (&u)[G], Lanes (&e)[G], Index to) {
    const PosteriorColumns& c = l.c;
    simd::unroll<G>([&](auto g) {
      simd::store(c.residual + g * kBlockRows + to, e[g]);
      if (!std::is_same_v<Inner, Identity> || !kAll) simd::store(c.inner + g * kBlockRows + to, u[g]);
      u[g] = (Inner::value(u[g]) + Lanes(l.outside[g])) * Lanes(l.inverse);
    });
    if (!kAll || l.keep_scores) simd::unroll<G>([&](auto g) { simd::store(c.score + g * kBlockRows + to, u[g]); });
    if constexpr (kAll) {
      simd::unroll<G>([&](auto g) { e[g] = joint(u[g], e[g], l.weight[g], l.offset[g]); });
      Lanes most_z = u[0], most_t = e[0];
      simd::unroll<G - 1>([&](auto g) {
        most_z = simd::max(most_z, u[g + 1]);
        most_t = simd::max(most_t, e[g + 1]);
      });
      simd::unroll<G>([&](auto g) {
        simd::store(c.prior + g * kBlockRows + to, u[g] - most_z);
        simd::store(c.posterior + g * kBlockRows + to, e[g] - most_t);
      });
      simd::store(c.shift + to, most_t - most_z);
    }
  }

  /// Residuals in units of the standard deviation that their row has beside those of the experts.
  [[gnu::noinline]] void scale_residuals(const double* scale) const {
    for (double *e = c_.residual, *end = e + m_.num_experts * kBlockRows; e != end; e += kBlockRows)
      for (Index i = 0; i < kBlockRows; i += kDoubles) simd::store(e + i, simd::load(e + i) * simd::load(scale + i));
  }

  /// The Jacobian of that.
  [[gnu::noinline]] void shift_densities(const double* log_scale) const {
    for (Index i = 0; i < kBlockRows; i += kDoubles)
      simd::store(c_.shift + i, simd::load(c_.shift + i) + simd::load(log_scale + i));
  }

  /// Takes an expert out when `active` others beat it: a higher rank score, or an equal one and a lower number.
  void mask() const {
    const PosteriorColumns c = c_;
    const Index k = m_.num_experts;
    const Lanes one(1.0), zero(0.0), limit(static_cast<double>(m_.active)),
        out(-std::numeric_limits<double>::infinity());
    for (Index j = 0; j < k; ++j)
      for (Index i = 0; i < kBlockRows; i += kDoubles) {
        const Lanes own = load_column(c.inner, j, i);
        Lanes better = zero;
        for (Index l = 0; l < j; ++l) better = better + simd::select(load_column(c.inner, l, i) < own, zero, one);
        for (Index l = j + 1; l < k; ++l) better = better + simd::select(own < load_column(c.inner, l, i), one, zero);
        simd::store(c.score + j * kBlockRows + i, simd::select(better < limit, load_column(c.score, j, i), out));
      }
  }

  /// Logarithms of the weights up to a number per row, largest 0.
  void log_weights() const {
    const PosteriorColumns c = c_;
    const Index k = m_.num_experts;
    const double *weight = m_.weight.data(), *offset = m_.offset.data();
    for (Index i = 0; i < kBlockRows; i += kDoubles) {
      Lanes most_z = load_column(c.score, 0, i), most_t(-std::numeric_limits<double>::infinity());
      for (Index j = 0; j < k; ++j) {
        const Lanes z = load_column(c.score, j, i), t = joint(z, load_column(c.residual, j, i), weight[j], offset[j]);
        most_z = simd::max(most_z, z);
        most_t = simd::max(most_t, t);
        simd::store(c.posterior + j * kBlockRows + i, t);
      }
      for (Index j = 0; j < k; ++j) {
        simd::store(c.prior + j * kBlockRows + i, load_column(c.score, j, i) - most_z);
        simd::store(c.posterior + j * kBlockRows + i, load_column(c.posterior, j, i) - most_t);
      }
      simd::store(c.shift + i, most_t - most_z);
    }
  }

  void exponentials() const {
    double* x = c_.prior;  // and the posterior behind it
    const Index size = 2 * m_.num_experts * kBlockRows;
    for (Index i = 0; i < size; i += kDoubles) simd::store(x + i, simd::exp_nonpositive(simd::load(x + i)));
  }

  void sums() const {
    const PosteriorColumns c = c_;
    const Index k = m_.num_experts;
    for (Index i = 0; i < kBlockRows; i += kDoubles) {
      Lanes sum_z = load_column(c.prior, 0, i), sum_t = load_column(c.posterior, 0, i);
      for (Index j = 1; j < k; ++j) {
        sum_z = sum_z + load_column(c.prior, j, i);
        sum_t = sum_t + load_column(c.posterior, j, i);
      }
      const Lanes inverse = Lanes(1.0) / (sum_z * sum_t);  // one division for two; the sums lie in [1, k]
      const Lanes inverse_z = sum_t * inverse;
      simd::store(c.prior_scale + i, inverse_z);
      simd::store(c.posterior_scale + i, sum_z * inverse);
      simd::store(c.ratio + i, sum_t * inverse_z);
    }
  }

  const MixtureCoefficients& m_;
  PosteriorColumns c_;
};

}  // namespace moe::inline MOE_ABI::detail
