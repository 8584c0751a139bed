// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstddef>
#include <numbers>
#include <vector>

#include "moe/gaussian/model/gate_weights.hpp"
#include "moe/numeric/elementary.hpp"

// What a mixture of experts is at one input: a mixture of normal distributions.
namespace moe::inline MOE_ABI::detail {

/// One of them, without experts that have no weight. A buffer: assign it row by row.
struct MixtureRow {
  std::vector<double> weight = {}, mean = {}, deviation = {};
  std::vector<double> height = {}, scale = {};  // height e^-(scale (y - mean))^2

  std::size_t size() const { return weight.size(); }

  /// Density at every lane of y.
  template <class V>
  V density(const V& y) const {
    V sum(0.0);
    for (std::size_t j = 0; j < size(); ++j) {
      const V t = (y - V(mean[j])) * V(scale[j]);
      sum = simd::fma(V(height[j]), simd::exp_nonpositive(simd::negate(t * t)), sum);
    }
    return sum;
  }

  void clear() {
    for (auto* numbers : {&weight, &mean, &deviation, &height, &scale}) numbers->clear();
  }
  void push_back(double pi, double m, double sigma) {
    weight.push_back(pi);
    mean.push_back(m);
    deviation.push_back(sigma);
    height.push_back(pi * std::numbers::inv_sqrtpi / std::numbers::sqrt2 / sigma);
    scale.push_back(1 / (std::numbers::sqrt2 * sigma));
  }
};

/// The mixtures of a model at all rows of x.
class MixtureRows {
 public:
  /// Throws std::invalid_argument, naming `function`, for a bad model, another shape of x or means that overflow.
  template <class G>
  MixtureRows(const char* function, const GaussianMoe<G>& model, const MatrixView<double>& x) {
    model.validate(function);
    if (x.rows() < 1) fail(function, ": x has no rows, expected at least one");
    require_shape(function, "x", x, x.rows(), model.input_dim());
    if (!x.allFinite()) fail(function, ": a number of x is not finite");
    pi_ = gate_weights(model, x);
    means_ = expert_means(model, x);
    if (!means_.allFinite() || !pi_.allFinite()) fail(function, ": a mean or a score overflows at a row of x");
    deviations_ = model.variance.cwiseSqrt();
  }

  void assign(Index row, MixtureRow& mixture) const {
    mixture.clear();
    for (Index j = 0; j < pi_.cols(); ++j)
      if (pi_(row, j) >= kNoWeight) mixture.push_back(pi_(row, j), means_(row, j), deviations_(j));
  }

 private:
  static constexpr double kNoWeight = 1e-30;  // adds no more to a distance, whose least measurable square is 1e-30

  Matrix<double> pi_ = {}, means_ = {};  // [n, k]
  Eigen::RowVectorXd deviations_ = {};
};

}  // namespace moe::inline MOE_ABI::detail
