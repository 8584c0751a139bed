// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/core/random.hpp"
#include "moe/sequence/cholesky.hpp"

// Long, as a mixture is one value: what is known of it, and the two operations that keep it a mixture.
namespace moe::inline MOE_ABI {

/// Mixture of k normals in d dimensions with Cholesky factors: p(x) = sum_i w_i N(x; m_i, L_i L_i^T), L_i lower
/// triangular with a diagonal above 0. Components with weight 0 take no part in densities, moments, draws and updates,
/// which leave them as they are. Small d is meant: O(k d^2) per point. A plain value; share freely while nobody writes.
///   auto prior = moe::GaussianMixture<double>::from_covariances(weights, means, covariances);
///   auto posterior = prior.condition_linear(H, R, y);  // exact, where y = H x + noise of covariance R
/// On the line, with quantiles and modes: NormalMixture (moe/gaussian.hpp).
template <class T = double>
class GaussianMixture {
 public:
  using Scalar = T;
  using Vector = Eigen::Ref<const RowVector<T>>;
  using MatrixIn = ConstMatrixRef<T>;

  /// The standard normal of d dimensions. Throws std::invalid_argument for a dimension below 1.
  explicit GaussianMixture(Index dim = 1) : GaussianMixture(detail::checked_size(kName, "dim", dim, 1), Checked{}) {}

  /// Weights [k] are divided by their sum; means [k, d]; k factors [d, d], of which the lower triangle is read. Throws
  /// std::invalid_argument unless the sizes agree, weights are >= 0 with a sum > 0, diagonals > 0, and all are finite.
  GaussianMixture(const Vector& weights, const MatrixIn& means, std::vector<Matrix<T>> factors)
      : weights_(weights), means_(means), factors_(std::move(factors)) {
    require_valid();
    weights_ /= total(weights_);
    for (Matrix<T>& factor : factors_)
      for (Index r = 0; r < dim(); ++r)
        for (Index c = r + 1; c < dim(); ++c) factor(r, c) = 0;
    log_scales_.resize(size());
    for (Index i = 0; i < size(); ++i) {
      double log_scale = std::log(static_cast<double>(weights_(i))) -
                         0.5 * static_cast<double>(dim()) * std::log(2 * std::numbers::pi);
      for (Index j = 0; j < dim(); ++j) log_scale -= std::log(static_cast<double>(factor(i)(j, j)));
      log_scales_(i) = static_cast<T>(log_scale);
    }
  }

  /// The same of covariances [d, d]. Throws std::invalid_argument, naming the component, for one that is not symmetric
  /// or not positive definite: singular to working precision.
  static GaussianMixture from_covariances(const Vector& weights, const MatrixIn& means,
                                          const std::vector<Matrix<T>>& covariances) {
    std::vector<Matrix<T>> factors;
    for (std::size_t i = 0; i < covariances.size(); ++i) {
      detail::require_shape(kName, "a covariance", covariances[i], means.cols(), means.cols());
      factors.push_back(
          detail::cholesky<T>(kName, "the covariance of component", static_cast<Index>(i), covariances[i]));
    }
    return GaussianMixture(weights, means, std::move(factors));
  }

  Index size() const { return weights_.size(); }
  Index dim() const { return means_.cols(); }
  const RowVector<T>& weights() const { return weights_; }                                           ///< w [k]
  const Matrix<T>& means() const { return means_; }                                                  ///< m [k, d]
  const Matrix<T>& factor(Index i) const { return factors_[static_cast<std::size_t>(i)]; }           ///< L_i [d, d]
  Matrix<T> covariance(Index i) const { return detail::product(factor(i), factor(i).transpose()); }  ///< [d, d]

  /// Natural logarithm of p(x), right where p(x) itself underflows; -infinity where squares overflow. Throws
  /// std::invalid_argument for another dimension or NaN, as do all functions of x.
  T log_density(const Vector& x) const {
    const RowVector<T> terms = log_terms("log_density", x);
    return log_sum(terms);
  }
  /// P(component i | x) [k]. Throws std::invalid_argument where all log-densities overflow.
  RowVector<T> responsibilities(const Vector& x) const {
    RowVector<T> terms = log_terms("responsibilities", x);
    const T log_p = log_sum(terms);
    if (!std::isfinite(log_p))
      fail(kName, "::responsibilities: log p(x) is ", log_p, ", expected a point where it is finite");
    for (T& term : terms) term = std::exp(term - log_p);
    return terms;
  }
  /// d log p / dx = sum_i r_i Sigma_i^-1 (m_i - x), [d].
  RowVector<T> score(const Vector& x) const {
    const RowVector<T> r = responsibilities(x);
    RowVector<T> result = RowVector<T>::Zero(dim());
    for (Index i = 0; i < size(); ++i)
      if (r(i) > 0) {
        RowVector<T> v = x - means_.row(i);
        detail::solve_lower(factor(i), v);
        detail::solve_upper(factor(i), v);
        result -= r(i) * v;
      }
    return result;
  }

  /// E x = sum_i w_i m_i, [d].
  RowVector<T> mean() const {
    RowVector<T> result = RowVector<T>::Zero(dim());
    for (Index i = 0; i < size(); ++i)
      if (weights_(i) > 0) result += weights_(i) * means_.row(i);
    return result;
  }
  /// Cov x = sum_i w_i (Sigma_i + (m_i - E x)(m_i - E x)^T), [d, d].
  Matrix<T> covariance() const {
    const RowVector<T> centre = mean();
    Matrix<T> result = Matrix<T>::Zero(dim(), dim());
    for (Index i = 0; i < size(); ++i) {
      if (!(weights_(i) > 0)) continue;
      const RowVector<T> off = means_.row(i) - centre;
      result += weights_(i) * covariance(i);
      for (Index r = 0; r < dim(); ++r)
        for (Index c = 0; c < dim(); ++c) result(r, c) += weights_(i) * off(r) * off(c);
    }
    return result;
  }

  /// The draw of row `row` of a field of random numbers, a pure function of it: component by inversion, then m + L z.
  RowVector<T> sample(const RandomField& random, Index row) const {
    const Index i = component(random.uniform(row, 0));
    RowVector<T> x = means_.row(i);
    for (Index c = 0; c < dim(); ++c) {
      const T z = static_cast<T>(random.normal(row, 1 + c));
      for (Index r = c; r < dim(); ++r) x(r) += factor(i)(r, c) * z;
    }
    return x;
  }

  /// The exact posterior after y = H x + e, e ~ N(0, R) independent of x: H [m, d], R [m, m], y [m]. Component by
  /// component the update of Kalman, and the weight times N(y; H m_i, S) with S = H Sigma_i H^T + R. Covariances are
  /// products of factors with themselves, (H L)(H L)^T + R and, in the form of Joseph with the gain K and R = C C^T,
  /// ((I - K H) L)((I - K H) L)^T + (K C)(K C)^T: symmetric to the bit. Components with weight 0 stay as they are.
  /// Throws std::invalid_argument for wrong shapes, numbers that are not finite, R not positive definite, or y that no
  /// component gives a density above 0.
  GaussianMixture condition_linear(const MatrixIn& h, const MatrixIn& r, const Vector& y) const {
    constexpr const char* kFunction = "moe::GaussianMixture::condition_linear";
    const Index m = y.size();
    detail::require_shape(kFunction, "H", h, m, dim());
    detail::require_shape(kFunction, "R", r, m, m);
    require_finite(kFunction, "H", h);
    require_finite(kFunction, "R", r);
    require_finite(kFunction, "y", y);
    const Matrix<T> factor_r = detail::cholesky<T>(kFunction, "the matrix R of observation", 0, r);
    GaussianMixture result(*this);
    RowVector<T> log_weights = RowVector<T>::Constant(size(), -std::numeric_limits<T>::infinity());
    for (Index i = 0; i < size(); ++i) {
      if (!(weights_(i) > 0)) continue;
      const Matrix<T> moved = detail::product(h, factor(i));           // H L [m, d]
      Matrix<T> gain = detail::product(moved, factor(i).transpose());  // H Sigma
      Matrix<T> s = detail::product(moved, moved.transpose());
      for (Index a = 0; a < m; ++a)
        for (Index b = 0; b <= a; ++b) s(b, a) = s(a, b) += r(a, b);
      const Matrix<T> factor_s = detail::cholesky<T>(kFunction, "the covariance of y under component", i, s);
      RowVector<T> z = y - detail::product(means_.row(i), h.transpose());
      detail::solve_lower(factor_s, z);
      log_weights(i) = std::log(weights_(i)) - detail::log_diagonal(factor_s) - T(0.5) * detail::squares(z);
      detail::solve_upper(factor_s, z);
      result.means_.row(i) += detail::product(z, gain);
      for (Index c = 0; c < dim(); ++c) {  // S^-1 H Sigma: the transposed gain
        RowVector<T> column = gain.col(c).transpose();
        detail::solve_lower(factor_s, column);
        detail::solve_upper(factor_s, column);
        gain.col(c) = column.transpose();
      }
      const Matrix<T> rest = detail::product(
          Matrix<T>(Matrix<T>::Identity(dim(), dim()) - detail::product(gain.transpose(), h)), factor(i));
      const Matrix<T> seen = detail::product(gain.transpose(), factor_r);
      result.factors_[static_cast<std::size_t>(i)] =
          detail::cholesky<T>(kFunction, "the posterior covariance of component", i,
                              detail::product(rest, rest.transpose()) + detail::product(seen, seen.transpose()));
    }
    const T most = largest(log_weights);
    if (!std::isfinite(most)) fail(kFunction, ": the largest log-density of y is ", most, ", expected a finite one");
    for (Index i = 0; i < size(); ++i) result.weights_(i) = std::exp(log_weights(i) - most);
    return GaussianMixture(result.weights_, result.means_, std::move(result.factors_));
  }

  /// The mixture of A x + b + e, e ~ N(0, Q) independent of x: A [n, d], b [n], Q [n, n], which may be zero. The
  /// transition of a filter, and a change of units, of components with weight 0, too. Throws std::invalid_argument for
  /// wrong shapes, and where a covariance A Sigma_i A^T + Q is singular.
  GaussianMixture push_forward(const MatrixIn& a, const Vector& b, const MatrixIn& q) const {
    constexpr const char* kFunction = "moe::GaussianMixture::push_forward";
    const Index n = b.size();
    detail::require_shape(kFunction, "A", a, n, dim());
    detail::require_shape(kFunction, "Q", q, n, n);
    std::vector<Matrix<T>> factors;
    Matrix<T> means(size(), n);
    for (Index i = 0; i < size(); ++i) {
      const Matrix<T> moved = detail::product(a, factor(i));
      means.row(i) = detail::product(means_.row(i), a.transpose()) + b;
      factors.push_back(detail::cholesky<T>(kFunction, "the covariance of component", i,
                                            detail::product(moved, moved.transpose()) + q));
    }
    return GaussianMixture(weights_, means, std::move(factors));
  }

 private:
  static constexpr const char* kName = "moe::GaussianMixture";
  struct Checked {};

  GaussianMixture(Index dim, Checked)
      : GaussianMixture(RowVector<T>::Ones(1), Matrix<T>::Zero(1, dim), {Matrix<T>::Identity(dim, dim)}) {}

  void require_valid() const {
    const Index k = size(), d = dim();
    if (k < 1) fail(kName, ": weights is empty, expected at least one component");
    if (d < 1) fail(kName, ": means have 0 columns, expected at least one dimension");
    detail::require_shape(kName, "means", means_, k, d);
    if (std::ssize(factors_) != k) fail(kName, ": there are ", factors_.size(), " factors, expected ", k);
    for (Index i = 0; i < k; ++i) {
      if (!(weights_(i) >= 0 && std::isfinite(weights_(i))))
        fail(kName, ": weight ", i, " is ", weights_(i), ", expected a finite number >= 0");
      detail::require_shape(kName, "a factor", factor(i), d, d);
      for (Index r = 0; r < d; ++r) {
        if (!std::isfinite(means_(i, r)))
          fail(kName, ": mean ", i, " has entry ", means_(i, r), ", expected finite numbers");
        if (!(factor(i)(r, r) > 0))
          fail(kName, ": factor ", i, " has diagonal entry ", factor(i)(r, r),
               ", expected numbers > 0: the covariance is singular");
        for (Index c = 0; c <= r; ++c)
          if (!std::isfinite(factor(i)(r, c)))
            fail(kName, ": factor ", i, " has entry ", factor(i)(r, c), ", expected finite numbers");
      }
    }
    const T sum = total(weights_);
    if (!(sum > 0 && std::isfinite(sum))) fail(kName, ": the weights add up to ", sum, ", expected a sum > 0");
  }

  static void require_finite(const char* function, const char* name, const MatrixIn& values) {
    for (Index i = 0; i < values.rows(); ++i)
      for (Index c = 0; c < values.cols(); ++c)
        if (!std::isfinite(values(i, c)))
          fail(function, ": ", name, " has entry ", values(i, c), ", expected finite numbers");
  }
  static T total(const RowVector<T>& values) {
    T sum = 0;
    for (const T value : values) sum += value;
    return sum;
  }
  static T largest(const RowVector<T>& values) {
    T most = -std::numeric_limits<T>::infinity();
    for (const T value : values) most = std::max(most, value);
    return most;
  }
  static T log_sum(const RowVector<T>& terms) {
    const T most = largest(terms);
    if (!std::isfinite(most)) return most;
    T sum = 0;
    for (const T term : terms) sum += std::exp(term - most);
    return most + std::log(sum);
  }

  /// log(w_i N(x; m_i, Sigma_i)), -infinity for a component without weight.
  RowVector<T> log_terms(const char* function, const Vector& x) const {
    if (x.size() != dim())
      fail(kName, "::", function, ": x has ", x.size(), " entries, expected the dimension ", dim());
    for (const T value : x)
      if (std::isnan(value)) fail(kName, "::", function, ": x has an entry NaN, expected numbers");
    RowVector<T> terms(size());
    for (Index i = 0; i < size(); ++i) {
      RowVector<T> u = x - means_.row(i);
      detail::solve_lower(factor(i), u);
      const T squared = detail::squares(u);
      terms(i) = weights_(i) > 0 && !std::isnan(squared) ? log_scales_(i) - T(0.5) * squared
                                                         : -std::numeric_limits<T>::infinity();
    }
    return terms;
  }
  Index component(double uniform) const {
    double cumulative = 0;
    Index last = 0;
    for (Index i = 0; i < size(); ++i) {
      if (!(weights_(i) > 0)) continue;
      cumulative += static_cast<double>(weights_(i));
      last = i;
      if (uniform < cumulative) break;
    }
    return last;
  }

  RowVector<T> weights_;
  Matrix<T> means_;
  std::vector<Matrix<T>> factors_;
  RowVector<T> log_scales_;
};

/// An estimate by simulation.
struct MonteCarlo {
  double value = 0, standard_error = 0;
};

/// KL(p || q) = E_p log(p(x) / q(x)) from `draws` draws of p, which are pure functions of the seed: unbiased, and
/// therefore below 0 at times where p and q are close. Throws std::invalid_argument for other dimensions, fewer than 2
/// draws, and a draw where q has no density.
template <class T>
MonteCarlo kl_divergence(const GaussianMixture<T>& p, const GaussianMixture<T>& q, Index draws, std::uint64_t seed) {
  constexpr const char* kFunction = "moe::kl_divergence";
  if (p.dim() != q.dim()) fail(kFunction, ": q has ", q.dim(), " dimensions, expected ", p.dim(), " as p");
  if (draws < 2) fail(kFunction, ": draws is ", draws, ", expected at least 2");
  const RandomField random(Purpose::Draw, seed);
  double mean = 0, squares = 0;
  for (Index t = 0; t < draws; ++t) {
    const RowVector<T> x = p.sample(random, t);
    const double ratio = static_cast<double>(p.log_density(x)) - static_cast<double>(q.log_density(x));
    if (!std::isfinite(ratio)) fail(kFunction, ": log p/q of a draw is ", ratio, ", expected a density of q above 0");
    const double off = ratio - mean;
    mean += off / static_cast<double>(t + 1);
    squares += off * (ratio - mean);
  }
  return {mean, std::sqrt(squares / static_cast<double>(draws - 1) / static_cast<double>(draws))};
}

/// Upper bound of KL(p || q) by matching component i of p with component i of q: sum_i w_i (log(w_i / v_i) + KL_i),
/// KL_i between the normals, in closed form. Exact for one component; +infinity where q gives no weight to one that p
/// has. Throws std::invalid_argument for other dimensions or numbers of components. Chain rule; Goldberger, Gordon &
/// Greenspan, "An efficient image similarity measure based on approximations of KL-divergence", ICCV 2003.
template <class T>
T kl_bound(const GaussianMixture<T>& p, const GaussianMixture<T>& q) {
  if (p.dim() != q.dim() || p.size() != q.size())
    fail("moe::kl_bound: q has ", q.size(), " components in ", q.dim(), " dimensions, expected ", p.size(), " in ",
         p.dim(), " as p");
  T sum = 0;
  for (Index i = 0; i < p.size(); ++i) {
    if (!(p.weights()(i) > 0)) continue;
    RowVector<T> off = p.means().row(i) - q.means().row(i);
    detail::solve_lower(q.factor(i), off);
    T kl = T(0.5) * (detail::squares(off) - static_cast<T>(p.dim())) + detail::log_diagonal(q.factor(i)) -
           detail::log_diagonal(p.factor(i));
    for (Index c = 0; c < p.dim(); ++c) {  // trace of Sigma_q^-1 Sigma_p, as the squares of L_q^-1 L_p
      RowVector<T> column = p.factor(i).col(c).transpose();
      detail::solve_lower(q.factor(i), column);
      kl += T(0.5) * detail::squares(column);
    }
    sum += p.weights()(i) * (std::log(p.weights()(i) / q.weights()(i)) + kl);
  }
  return sum;
}

}  // namespace moe::inline MOE_ABI
