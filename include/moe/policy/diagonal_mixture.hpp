// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <span>
#include <vector>

#include "moe/core/overlap.hpp"
#include "moe/core/parallel.hpp"
#include "moe/policy/action_range.hpp"
#include "moe/routing/step.hpp"

// Long, as the density, its gradient and draws read the same three matrices, and share what they say of a row.
namespace moe::inline MOE_ABI {

namespace detail {

inline constexpr Index kMixtureRowsPerTask = 64;

/// log sum_k exp(z_k) of n >= 1 numbers; z becomes exp(z_k - that), shares that add up to 1. With all -inf: -inf, and
/// zeros.
inline double log_sum_and_shares(double* z, Index n) {
  const double most = *std::max_element(z, z + n);
  if (most == -std::numeric_limits<double>::infinity()) {
    std::fill_n(z, n, 0.0);
    return most;
  }
  double sum = 0;
  for (Index k = 0; k < n; ++k) sum += z[k] = std::exp(z[k] - most);
  for (Index k = 0; k < n; ++k) z[k] /= sum;
  return most + std::log(sum);
}

/// A number per component, on the stack for as many as there mostly are.
class PerComponent {
 public:
  explicit PerComponent(Index count) : many_(static_cast<std::size_t>(count > kFew ? count : 0)) {}
  double* data() { return many_.empty() ? few_.data() : many_.data(); }

 private:
  static constexpr Index kFew = 64;
  std::array<double, static_cast<std::size_t>(kFew)> few_;
  std::vector<double> many_;
};

}  // namespace detail

/// Mixtures of diagonal Gaussians, one per row: what a policy says of the actions of each state.
///   p(u) = sum_k w_k prod_d N(u_d; m_kd, s_kd^2),   a = range.action(u),   p(a) = p(u) / prod_d |da_d / du_d|
///   log_weight     [num_rows, num_components]: the exponentials of a row add up to 1; -inf for a component without
///   part mean, log_std  [num_rows, num_components * dim], component by component; finite
/// Points are latent (u), as the density of a squashed action is lost where tanh is rounded to 1; densities are those
/// of the actions. The same type holds gradients by the three matrices, which functions named ..._backward add to;
/// log_weight is differentiated as if its numbers were free, and log_weight_backward() makes gradients by logits of
/// that. A plain value; const members may be called by several threads. Each row is computed by itself, in double, so
/// that its bits depend neither on threads nor on the batch. No allocation with up to 64 components, but for resize()
/// to more. A draw is rounded to S beside its mean, and gradients read (u - mean) / s of it: keep log_std well above
/// log(eps |mean|), which is -16 in float and -36 in double for |mean| = 1, or that is rounding. Ren, Li, Ding, Pan &
/// Dong, "Probabilistic mixture-of-experts for efficient deep reinforcement learning" (arXiv:2104.09122).
template <class S>
struct DiagonalMixture {
  using Scalar = S;

  Matrix<S> log_weight, mean, log_std;
  ActionRange range;

  /// Room for mixtures; contents are unspecified. Throws std::invalid_argument unless there is a component and a
  /// dimension.
  void resize(Index num_rows, Index num_components, Index dim) {
    constexpr const char* kName = "moe::DiagonalMixture::resize";
    detail::checked_size(kName, "num_rows", num_rows);
    const Index width = detail::checked_product(kName, detail::checked_size(kName, "num_components", num_components, 1),
                                                detail::checked_size(kName, "dim", dim, 1));
    log_weight.resize(num_rows, num_components);
    mean.resize(num_rows, width);
    log_std.resize(num_rows, width);
  }
  /// The shape and the range of `other`, and zeros: an empty gradient.
  void clear_like(const DiagonalMixture& other) {
    resize(other.num_rows(), other.num_components(), other.dim());
    range = other.range;
    log_weight.setZero();
    mean.setZero();
    log_std.setZero();
  }

  Index num_rows() const { return log_weight.rows(); }
  Index num_components() const { return log_weight.cols(); }
  Index dim() const { return num_components() == 0 ? 0 : mean.cols() / num_components(); }

  /// Throws std::invalid_argument, in the name of `function`, unless the shapes agree and the range is one.
  void validate(const char* function) const {
    if (num_components() < 1 || dim() < 1)
      fail(function, ": the mixture has ", num_components(), " components of dimension ", dim(),
           ", expected at least 1 of 1");
    detail::require_shape(function, "mean", mean, num_rows(), num_components() * dim());
    detail::require_shape(function, "log_std", log_std, num_rows(), num_components() * dim());
    range.validate();
  }

  /// out(t, i) = log p of the action at point i of row t, by log-sum-exp.
  ///   latent  [num_rows, points * dim], point by point      out  [num_rows, points]
  /// Throws std::invalid_argument on wrong shapes. O(points * num_components * dim) per row.
  void log_density(const MatrixView<S>& latent, MatrixRef<S> out) const {
    constexpr const char* kName = "moe::DiagonalMixture::log_density";
    detail::require_shape(kName, "out", out, num_rows(), require_points(kName, latent));
    for_each_point(latent, [&](Index t, Index i, const S* u, double* z) {
      double density = log_density_at(t, u, z);
      for (Index d = 0; d < dim(); ++d) density -= range.log_slope(static_cast<double>(u[d]));
      out(t, i) = static_cast<S>(density);
    });
  }

  /// out(t, k) = w_k N_k(u) / p(u), [num_rows, num_components]: the share of component k in the density at latent
  /// [num_rows, dim]. Throws std::invalid_argument on wrong shapes.
  void responsibilities(const MatrixView<S>& latent, MatrixRef<S> out) const {
    constexpr const char* kName = "moe::DiagonalMixture::responsibilities";
    validate(kName);
    detail::require_shape(kName, "latent", latent, num_rows(), dim());
    detail::require_shape(kName, "out", out, num_rows(), num_components());
    for_each_point(latent, [&](Index t, Index, const S* u, double* z) {
      log_density_at(t, u, z);
      for (Index k = 0; k < num_components(); ++k) out(t, k) = static_cast<S>(z[k]);
    });
  }

  /// From dout [num_rows, points] = dL/dlog p of log_density(), with the responsibilities r_k and
  /// e_kd = (u_d - m_kd) / s_kd, summed over points:
  ///   dlog_weight_k += r_k dout,   dmean_kd += r_k e_kd / s_kd dout,   dlog_std_kd += r_k (e_kd^2 - 1) dout
  /// and, where it is given, dlatent [num_rows, points * dim], overwritten:
  ///   dlatent_d = -(sum_k r_k e_kd / s_kd + d log|da_d / du_d| / du_d) dout
  /// Throws std::invalid_argument on wrong shapes, for a gradient that is the mixture itself or of another shape, and
  /// for dlatent in the memory of latent or dout.
  void log_density_backward(const MatrixView<S>& latent, const MatrixView<S>& dout, DiagonalMixture& gradient) const {
    run_backward(latent, dout, gradient, nullptr);
  }
  void log_density_backward(const MatrixView<S>& latent, const MatrixView<S>& dout, DiagonalMixture& gradient,
                            MatrixRef<S> dlatent) const {
    run_backward(latent, dout, gradient, &dlatent);
  }

  /// dL/dlogits [num_rows, num_components] of log_weight = log_softmax(logits): dlogits_k = g_k - w_k sum_j g_j.
  void log_weight_backward(const MatrixView<S>& dlog_weight, MatrixRef<S> dlogits) const {
    constexpr const char* kName = "moe::DiagonalMixture::log_weight_backward";
    validate(kName);
    detail::require_shape(kName, "dlog_weight", dlog_weight, num_rows(), num_components());
    detail::require_shape(kName, "dlogits", dlogits, num_rows(), num_components());
    for_each_row([&](Index t) {
      double sum = 0;
      for (Index k = 0; k < num_components(); ++k) sum += static_cast<double>(dlog_weight(t, k));
      for (Index k = 0; k < num_components(); ++k)
        dlogits(t, k) = static_cast<S>(static_cast<double>(dlog_weight(t, k)) - weight(t, k) * sum);
    });
  }

  /// A draw of every component: latent(t, k dim + d) = m_kd + s_kd n, [num_rows, num_components * dim], where n is a
  /// standard normal number of (seed, update, layer, pass, id of the token; k, d). Throws std::invalid_argument on
  /// wrong shapes.
  void propose(const Step& step, MatrixRef<S> latent) const {
    constexpr const char* kName = "moe::DiagonalMixture::propose";
    require_rows(kName, step);
    detail::require_shape(kName, "latent", latent, num_rows(), mean.cols());
    const RandomField random = step.random(Purpose::Action);
    for_each_row([&](Index t) {
      for (Index c = 0; c < mean.cols(); ++c) latent(t, c) = draw(random, step.id(t), t, c);
    });
  }

  /// From dlatent of what propose() has drawn: dmean += dlatent, dlog_std += dlatent (latent - mean), as
  /// latent = mean + exp(log_std) n. Throws std::invalid_argument on wrong shapes, and for the mixture as its gradient.
  void propose_backward(const MatrixView<S>& latent, const MatrixView<S>& dlatent, DiagonalMixture& gradient) const {
    constexpr const char* kName = "moe::DiagonalMixture::propose_backward";
    require_gradient(kName, gradient);
    detail::require_shape(kName, "latent", latent, num_rows(), mean.cols());
    detail::require_shape(kName, "dlatent", dlatent, num_rows(), mean.cols());
    for_each_row([&](Index t) {
      for (Index c = 0; c < mean.cols(); ++c) {
        const double from_mean = static_cast<double>(latent(t, c)) - static_cast<double>(mean(t, c));
        gradient.mean(t, c) += dlatent(t, c);
        gradient.log_std(t, c) += static_cast<S>(static_cast<double>(dlatent(t, c)) * from_mean);
      }
    });
  }

  /// A component of every row [num_rows], drawn with the weights. Throws std::invalid_argument for another size.
  void draw_components(const Step& step, std::span<Index> component) const {
    constexpr const char* kName = "moe::DiagonalMixture::draw_components";
    require_rows(kName, step);
    if (std::ssize(component) != num_rows())
      fail(kName, ": component has ", component.size(), " entries, expected num_rows = ", num_rows());
    const RandomField random = step.random(Purpose::Action);
    for_each_row([&](Index t) { component[static_cast<std::size_t>(t)] = draw_component(random, step.id(t), t); });
  }

  /// A draw of every row, latent [num_rows, dim]: what propose() gives for the component of draw_components().
  void sample(const Step& step, MatrixRef<S> latent) const {
    constexpr const char* kName = "moe::DiagonalMixture::sample";
    require_rows(kName, step);
    detail::require_shape(kName, "latent", latent, num_rows(), dim());
    const RandomField random = step.random(Purpose::Action);
    for_each_row([&](Index t) {
      const Index first = draw_component(random, step.id(t), t) * dim();
      for (Index d = 0; d < dim(); ++d) latent(t, d) = draw(random, step.id(t), t, first + d);
    });
  }

  /// The mean of the component with the largest weight, the first of equal ones: latent [num_rows, dim].
  void most_probable(MatrixRef<S> latent) const {
    constexpr const char* kName = "moe::DiagonalMixture::most_probable";
    validate(kName);
    detail::require_shape(kName, "latent", latent, num_rows(), dim());
    for_each_row([&](Index t) {
      const S* const weights = log_weight.row(t).data();
      const Index k = std::max_element(weights, weights + num_components()) - weights;
      for (Index d = 0; d < dim(); ++d) latent(t, d) = mean(t, k * dim() + d);
    });
  }

  /// w_k of row t.
  double weight(Index t, Index k) const { return std::exp(static_cast<double>(log_weight(t, k))); }

 private:
  template <class Body>
  void for_each_row(const Body& body) const {
    parallel_ranges(num_rows(), detail::kMixtureRowsPerTask, 50 * mean.size(), [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) body(t);
    });
  }
  /// body(t, i, u, z): point i of row t, and room for a number per component.
  template <class Body>
  void for_each_point(const ConstMatrixRef<S>& latent, const Body& body) const {
    const Index points = latent.cols() / dim();
    parallel_ranges(num_rows(), detail::kMixtureRowsPerTask, 50 * mean.size() * points,
                    [&](Index begin, Index end, Index) {
                      detail::PerComponent z(num_components());
                      for (Index t = begin; t < end; ++t)
                        for (Index i = 0; i < points; ++i)
                          body(t, i, latent.data() + t * latent.outerStride() + i * dim(), z.data());
                    });
  }

  /// log p(u) of the latent point; z becomes the responsibilities.
  double log_density_at(Index t, const S* u, double* z) const {
    const double half_log_two_pi = 0.5 * std::log(2 * std::numbers::pi);
    const S *m = mean.row(t).data(), *l = log_std.row(t).data();
    for (Index k = 0; k < num_components(); ++k) {
      z[k] = static_cast<double>(log_weight(t, k));
      for (Index d = 0; d < dim(); ++d, ++m, ++l) {
        const double e = (static_cast<double>(u[d]) - static_cast<double>(*m)) * std::exp(-static_cast<double>(*l));
        z[k] -= 0.5 * e * e + static_cast<double>(*l) + half_log_two_pi;
      }
    }
    return detail::log_sum_and_shares(z, num_components());
  }

  S draw(const RandomField& random, std::int64_t id, Index t, Index column) const {
    return static_cast<S>(static_cast<double>(mean(t, column)) +
                          std::exp(static_cast<double>(log_std(t, column))) * random.normal(id, column));
  }

  /// By the distribution function; where rounding leaves less than 1, the last component that has a part.
  Index draw_component(const RandomField& random, std::int64_t id, Index t) const {
    double left = random.uniform(id, -1);  // columns from 0 on are those of normal numbers
    Index chosen = 0;
    for (Index k = 0; k < num_components() && left >= 0; ++k) {
      const double own = weight(t, k);
      if (own > 0) chosen = k;
      left -= own;
    }
    return chosen;
  }

  void run_backward(const ConstMatrixRef<S>& latent, const ConstMatrixRef<S>& dout, DiagonalMixture& gradient,
                    MatrixRef<S>* dlatent) const {
    constexpr const char* kName = "moe::DiagonalMixture::log_density_backward";
    detail::require_shape(kName, "dout", dout, num_rows(), require_points(kName, latent));
    require_gradient(kName, gradient);
    if (dlatent != nullptr) {
      detail::require_shape(kName, "dlatent", *dlatent, latent.rows(), latent.cols());
      detail::require_apart(kName, "dlatent", *dlatent, "latent", latent);
      detail::require_apart(kName, "dlatent", *dlatent, "dout", dout);
    }
    for_each_point(latent, [&](Index t, Index i, const S* u, double* z) {
      log_density_at(t, u, z);
      S* const du = dlatent == nullptr ? nullptr : dlatent->data() + t * dlatent->outerStride() + i * dim();
      backward_at(t, u, z, static_cast<double>(dout(t, i)), gradient, du);
    });
  }

  void backward_at(Index t, const S* u, const double* responsibility, double dout, DiagonalMixture& gradient,
                   S* du) const {
    for (Index d = 0; d < dim() && du != nullptr; ++d)
      du[d] = static_cast<S>(-range.log_slope_gradient(static_cast<double>(u[d])) * dout);
    for (Index k = 0; k < num_components(); ++k) {
      const double share = responsibility[k] * dout;
      if (share == 0) continue;  // of a component so far away that the square of its distance may be infinite
      gradient.log_weight(t, k) += static_cast<S>(share);
      for (Index d = 0, c = k * dim(); d < dim(); ++d, ++c) {
        const double inverse = std::exp(-static_cast<double>(log_std(t, c)));
        const double e = (static_cast<double>(u[d]) - static_cast<double>(mean(t, c))) * inverse;
        gradient.mean(t, c) += static_cast<S>(share * e * inverse);
        gradient.log_std(t, c) += static_cast<S>(share * (e * e - 1));
        if (du != nullptr) du[d] -= static_cast<S>(share * e * inverse);
      }
    }
  }

  void require_rows(const char* function, const Step& step) const {
    validate(function);
    step.validate(function, num_rows());
  }
  /// The number of points in a row.
  Index require_points(const char* function, const ConstMatrixRef<S>& latent) const {
    validate(function);
    if (latent.rows() != num_rows() || latent.cols() % dim() != 0)
      fail(function, ": latent is [", latent.rows(), ", ", latent.cols(), "], expected ", num_rows(),
           " rows of points of dimension ", dim());
    return latent.cols() / dim();
  }
  void require_gradient(const char* function, const DiagonalMixture& gradient) const {
    validate(function);
    if (&gradient == this) fail(function, ": gradient is the mixture itself, expected one of its own (clear_like)");
    detail::require_shape(function, "gradient.log_weight", gradient.log_weight, num_rows(), num_components());
    detail::require_shape(function, "gradient.mean", gradient.mean, num_rows(), mean.cols());
    detail::require_shape(function, "gradient.log_std", gradient.log_std, num_rows(), mean.cols());
  }
};

}  // namespace moe::inline MOE_ABI
