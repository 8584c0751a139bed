// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "moe/policy/diagonal_mixture.hpp"
#include "moe/policy/frequency_loss.hpp"

namespace moe::inline MOE_ABI {

/// How weights learn which component should act, where an action is drawn from a mixture and the draw of the component
/// has no derivative.
enum class MixtureGradient {
  Frequency,      ///< weights follow how often each component proposes the best; no gradient of the return
  GumbelSoftmax,  ///< one point between the proposals, by relaxed draws of the component; biased
  ScoreRatio,     ///< one drawn component; unbiased, with the largest variance
  Marginalised,   ///< all proposals, each with its weight: exact over components
};

/// Whether the point of GumbelSoftmax lies between the proposals, or is one of them and only its gradient does not.
enum class Relaxation { Soft, StraightThrough };

/// Which components learn from their proposals with Frequency.
enum class Learners { Winner, Every };

struct MixtureGradientOptions {
  MixtureGradient kind = MixtureGradient::Marginalised;
  double temperature = 1;  ///< of GumbelSoftmax; above 0
  Relaxation relaxation = Relaxation::Soft;
  Learners learners = Learners::Winner;
};

/// Estimates the gradient of J = mean over rows of E[f(u)], u drawn from a mixture: by which weights, means and
/// standard deviations become better at what f says, as a critic does. With g the gradient of f:
///   estimator.propose(mixture, step);                       // latent(): the points where f is to be known
///   ... value [num_rows, points] = f, dvalue [num_rows, points * dim] = g at them, as of f = Q(s, range.action(u))
///   estimator.backward(mixture, value, dvalue, {}, step, gradient);     // += that of -J, for descent
/// With u_k = m_k + s_k n_k the proposals, c relaxed draws and j the component that is drawn:
///   Marginalised   points u_1 ... u_K    dlog w_k = w_k f(u_k)                 du_k = w_k g(u_k)
///   ScoreRatio     point u_j             dlog w_j = f(u_j) - baseline          du_j = g(u_j)
///   GumbelSoftmax  point sum_k c_k u_k   dc_k = <g, u_k>                       du_k = c_k g
///   and with StraightThrough, point u_j  dc_k = <g, u_k>                       du_j = g, of the largest c_j alone
///                  c = softmax((log w + Gumbel) / temperature)
///   Frequency      points u_1 ... u_K    that of -frequency_loss(w, f)         du_j = g(u_j) of the best f(u_j), or of
///                                                                              all with Learners::Every
/// The first two are unbiased; of f and g only the second is read by GumbelSoftmax, whose bias, with Soft, falls with
/// the temperature while its variance grows. Frequency is not a gradient of J (see frequency_loss): its f is only
/// compared. An entropy term is part of f: with f = Q - alpha log p(a), where p is the mixture's own density, the
/// derivative by u is part of g, and that by p's parameters is left out. It has mean zero for the two unbiased kinds;
/// otherwise, as for points between proposals and winners, leaving it out is a bias. Rows of padding give and get
/// nothing. Draws are those of DiagonalMixture for the same step; gradients are the same for any number of threads and
/// other rows but for the number of valid ones, which they are divided by. One per thread; no allocation when warm. Ren
/// et al. (arXiv:2104.09122); Jang, Gu & Poole, "Categorical reparameterization with Gumbel-softmax", ICLR 2017
/// (arXiv:1611.01144); Williams, "Simple statistical gradient-following algorithms", Machine Learning 1992.
template <class S>
class MixtureEstimator {
 public:
  /// Throws std::invalid_argument unless the temperature is finite and above 0.
  explicit MixtureEstimator(MixtureGradientOptions options = {}) : options_(options) {
    if (!(options.temperature > 0) || !std::isfinite(options.temperature))
      fail("moe::MixtureEstimator: temperature is ", options.temperature, ", expected a finite value above 0");
  }

  const MixtureGradientOptions& options() const { return options_; }
  /// Points per row of a mixture of so many components.
  Index num_points(Index num_components) const { return needs_all() ? num_components : 1; }

  /// Draws what is to be valued. Throws std::invalid_argument for a mixture or step that does not fit.
  void propose(const DiagonalMixture<S>& mixture, const Step& step) {
    const Index num_rows = mixture.num_rows(), count = mixture.num_components();
    proposals_.resize(num_rows, mixture.mean.cols());
    mixture.propose(step, proposals_);
    latent_.resize(num_rows, num_points(count) * mixture.dim());
    component_.assign(static_cast<std::size_t>(num_rows), 0);
    if (needs_all()) latent_ = proposals_;
    if (options_.kind == MixtureGradient::ScoreRatio) {
      mixture.draw_components(step, component_);
      take_drawn(mixture.dim());
    }
    if (options_.kind == MixtureGradient::GumbelSoftmax) relax(mixture, step);
  }

  /// What propose() has drawn: [num_rows, points * dim], point by point.
  const Matrix<S>& latent() const { return latent_; }

  /// Adds the gradient of -J to `gradient`; `mixture` and `step` as in propose().
  ///   value     [num_rows, points], may be empty (0 rows) for GumbelSoftmax
  ///   dvalue    [num_rows, points * dim]
  ///   baseline  [num_rows] or none, of ScoreRatio: what the value is compared with; a function of the state alone
  ///             leaves the estimate unbiased
  /// Throws std::invalid_argument on wrong shapes, without propose(), and for a baseline of another estimator.
  void backward(const DiagonalMixture<S>& mixture, const MatrixView<S>& value, const MatrixView<S>& dvalue,
                std::span<const S> baseline, const Step& step, DiagonalMixture<S>& gradient) {
    require_backward(mixture, value, dvalue, baseline, step);
    dproposals_.setZero(proposals_.rows(), proposals_.cols());
    dlog_weight_.setZero(mixture.num_rows(), mixture.num_components());
    weight_.resize(1, mixture.num_components());
    const double share = 1.0 / static_cast<double>(std::max<Index>(1, step.num_valid(mixture.num_rows())));
    for (Index t = 0; t < mixture.num_rows(); ++t)
      if (step.is_valid(t)) backward_row(mixture, value, dvalue, baseline, t, share);
    mixture.propose_backward(proposals_, dproposals_, gradient);
    gradient.log_weight += dlog_weight_;
  }

 private:
  bool needs_all() const {
    return options_.kind == MixtureGradient::Marginalised || options_.kind == MixtureGradient::Frequency;
  }

  /// latent_ = the proposals of component_.
  void take_drawn(Index dim) {
    for (Index t = 0; t < latent_.rows(); ++t)
      std::copy_n(proposals_.row(t).data() + component_[static_cast<std::size_t>(t)] * dim, dim, latent_.row(t).data());
  }

  /// relaxed_ = softmax((log w + Gumbel) / temperature), component_ its largest entries, and the points.
  void relax(const DiagonalMixture<S>& mixture, const Step& step) {
    const Index count = mixture.num_components(), dim = mixture.dim();
    const RandomField random = step.random(Purpose::Action);
    relaxed_.resize(mixture.num_rows(), count);
    shares_.resize(static_cast<std::size_t>(count));
    for (Index t = 0; t < relaxed_.rows(); ++t) {
      for (Index k = 0; k < count; ++k)  // columns from 0 on are normal numbers, -1 draws components
        shares_[static_cast<std::size_t>(k)] =
            (static_cast<double>(mixture.log_weight(t, k)) + random.gumbel(step.id(t), -2 - k)) / options_.temperature;
      component_[static_cast<std::size_t>(t)] = std::ranges::max_element(shares_) - shares_.begin();
      detail::log_sum_and_shares(shares_.data(), count);
      for (Index k = 0; k < count; ++k) relaxed_(t, k) = shares_[static_cast<std::size_t>(k)];
    }
    if (options_.relaxation == Relaxation::StraightThrough) return take_drawn(dim);
    for (Index t = 0; t < relaxed_.rows(); ++t)
      for (Index d = 0; d < dim; ++d) {
        double sum = 0;
        for (Index k = 0; k < count; ++k) sum += relaxed_(t, k) * static_cast<double>(proposals_(t, k * dim + d));
        latent_(t, d) = static_cast<S>(sum);
      }
  }

  void backward_row(const DiagonalMixture<S>& mixture, const ConstMatrixRef<S>& value, const ConstMatrixRef<S>& dvalue,
                    std::span<const S> baseline, Index t, double share) {
    const Index count = mixture.num_components(), dim = mixture.dim();
    const S* const g = dvalue.data() + t * dvalue.outerStride();
    const Index drawn = component_[static_cast<std::size_t>(t)];
    // dL/du_k = -factor g, with g that of `point`.
    const auto learn = [&](Index k, Index point, double factor) {
      for (Index d = 0; d < dim; ++d)
        dproposals_(t, k * dim + d) = static_cast<S>(-share * factor * static_cast<double>(g[point * dim + d]));
    };
    switch (options_.kind) {
      case MixtureGradient::Marginalised:
        for (Index k = 0; k < count; ++k) {
          const double weight = mixture.weight(t, k);
          dlog_weight_(t, k) = static_cast<S>(-share * weight * static_cast<double>(value(t, k)));
          learn(k, k, weight);
        }
        break;
      case MixtureGradient::ScoreRatio: {
        const double expected = baseline.empty() ? 0.0 : static_cast<double>(baseline[static_cast<std::size_t>(t)]);
        dlog_weight_(t, drawn) = static_cast<S>(-share * (static_cast<double>(value(t, 0)) - expected));
        learn(drawn, 0, 1);
        break;
      }
      case MixtureGradient::GumbelSoftmax:
        gumbel_row(mixture, g, t, share, learn);
        break;
      case MixtureGradient::Frequency: {
        const S* const values = value.data() + t * value.outerStride();
        const Index winner = std::max_element(values, values + count) - values;
        for (Index k = 0; k < count; ++k) weight_(0, k) = static_cast<S>(mixture.weight(t, k));
        detail::frequency_row(weight_.data(), values, count, share, dlog_weight_.row(t).data());
        dlog_weight_.row(t).array() *= weight_.row(0).array();
        for (Index k = 0; k < count; ++k)
          if (k == winner || options_.learners == Learners::Every) learn(k, k, 1);
        break;
      }
    }
  }

  /// Of c = softmax(z / temperature): dz_k = c_k (dc_k - sum_j c_j dc_j) / temperature.
  template <class Learn>
  void gumbel_row(const DiagonalMixture<S>& mixture, const S* g, Index t, double share, const Learn& learn) {
    const Index count = mixture.num_components(), dim = mixture.dim();
    double mean = 0;
    for (Index k = 0; k < count; ++k) {
      double& dc = shares_[static_cast<std::size_t>(k)];
      dc = 0;
      for (Index d = 0; d < dim; ++d) dc += static_cast<double>(g[d]) * static_cast<double>(proposals_(t, k * dim + d));
      mean += relaxed_(t, k) * dc;
    }
    const bool soft = options_.relaxation == Relaxation::Soft;
    for (Index k = 0; k < count; ++k) {
      const double dc = shares_[static_cast<std::size_t>(k)];
      dlog_weight_(t, k) = static_cast<S>(-share * relaxed_(t, k) * (dc - mean) / options_.temperature);
      if (soft || k == component_[static_cast<std::size_t>(t)]) learn(k, 0, soft ? relaxed_(t, k) : 1.0);
    }
  }

  void require_backward(const DiagonalMixture<S>& mixture, const ConstMatrixRef<S>& value,
                        const ConstMatrixRef<S>& dvalue, std::span<const S> baseline, const Step& step) const {
    constexpr const char* kName = "moe::MixtureEstimator::backward";
    mixture.validate(kName);
    const Index num_rows = mixture.num_rows(), points = num_points(mixture.num_components());
    if (proposals_.rows() != num_rows || proposals_.cols() != mixture.mean.cols())
      fail(kName, ": propose() has drawn [", proposals_.rows(), ", ", proposals_.cols(), "], expected [", num_rows,
           ", ", mixture.mean.cols(), "] as the mixture has");
    step.validate(kName, num_rows);
    if (options_.kind != MixtureGradient::GumbelSoftmax || value.size() != 0)
      detail::require_shape(kName, "value", value, num_rows, points);
    detail::require_shape(kName, "dvalue", dvalue, num_rows, points * mixture.dim());
    if (baseline.empty()) return;
    if (options_.kind != MixtureGradient::ScoreRatio)
      fail(kName, ": there is a baseline, expected none but for ScoreRatio");
    if (std::ssize(baseline) != num_rows)
      fail(kName, ": baseline has ", baseline.size(), " entries, expected 0 or num_rows = ", num_rows);
  }

  MixtureGradientOptions options_;
  Matrix<S> proposals_, latent_, dproposals_, dlog_weight_;
  Matrix<S> weight_;              ///< of one row
  Matrix<double> relaxed_;        ///< [num_rows, num_components], of GumbelSoftmax
  std::vector<Index> component_;  ///< [num_rows], of ScoreRatio and GumbelSoftmax
  std::vector<double> shares_;
};

}  // namespace moe::inline MOE_ABI
