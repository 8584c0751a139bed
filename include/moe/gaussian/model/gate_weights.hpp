// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "moe/gaussian/model/input_rows.hpp"
#include "moe/gaussian/model/model.hpp"
#include "moe/numeric/top_k.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Weights of one row: softmax(z) on the active experts, exactly 0 elsewhere; pi [k] is overwritten.
template <class G>
class GateRow {
 public:
  explicit GateRow(const GaussianMoe<G>& model)
      : model_(model),
        form_(model.form()),
        active_(static_cast<std::size_t>(form_.active)),
        u_(model.num_experts()),
        z_(model.num_experts()) {}

  template <class Row>
  void operator()(const Row& x, Eigen::Ref<Eigen::RowVectorXd> pi) {
    using Inner = typename GateModel<G>::Inner;
    const Index k = model_.num_experts();
    const bool inside = form_.bias == BiasPlace::Inside;
    for (Index j = 0; j < k; ++j) {
      if constexpr (ScoredInner<Inner>)
        u_(j) = score_of_row(form_.score, model_.gate_inputs, model_.gate_slope.row(j), x);
      else
        u_(j) = model_.gate_slope.row(j).dot(x);
      if constexpr (ScoredInner<Inner>) {
        z_(j) = linked_score(form_.score, u_(j), model_.gate_bias(j), model_.temperature);
        continue;  // dense, so that no ranks are needed
      }
      const double outside = inside ? 0.0 : model_.gate_bias(j),
                   argument = inside ? u_(j) + model_.gate_bias(j) : u_(j);
      z_(j) = (Inner::value(argument) + outside) / model_.temperature;
      if (form_.ranks_bias) u_(j) = z_(j);
    }
    if (form_.active < k) mask();
    const double largest = z_.maxCoeff();
    for (Index j = 0; j < k; ++j) pi(j) = std::exp(z_(j) - largest);  // 0 at -infinity, where Eigen has 5.6e-309
    pi /= pi.sum();
  }

 private:
  /// Takes all but the `active` experts of highest rank out; ties go to the lower one.
  void mask() {
    top_k(u_.data(), u_.size(), std::span(active_));
    u_.setConstant(-std::numeric_limits<double>::infinity());
    for (const Index j : active_) u_(j) = z_(j);
    u_.swap(z_);
  }

  const GaussianMoe<G>& model_;
  GateForm form_;
  std::vector<Index> active_;
  Eigen::RowVectorXd u_, z_;  // rank scores and scores
};

}  // namespace detail

/// Gate weights pi_j(x) [n, k] of rows x [n, d]; each row sums to 1, inactive experts are exactly 0.
/// Throws std::invalid_argument for a bad model or another number of columns. O(n k d).
template <class G>
Matrix<double> gate_weights(const GaussianMoe<G>& model, const MatrixView<double>& x) {
  model.validate("moe::gate_weights");
  detail::require_shape("moe::gate_weights", "x", x, x.rows(), model.input_dim());
  Matrix<double> pi(x.rows(), model.num_experts());
  detail::GateRow<G> weigh(model);
  for (Index i = 0; i < x.rows(); ++i) weigh(x.row(i), pi.row(i));
  return pi;
}

/// Means m_j(x) = a_j . x + b_j (+ offset) of the experts, [n, k], at rows x [n, d] or of RegressionData with their
/// offsets.
inline Matrix<double> expert_means(const GaussianParameters& model, const InputRows& rows) {
  rows.validate("moe::expert_means", model.input_dim());
  Matrix<double> means = rows.x() * model.slope.transpose();
  means.rowwise() += model.intercept;
  for (Index i = 0; i < means.rows(); ++i)
    if (const double offset = rows.offset(i); offset != 0) means.row(i).array() += offset;
  return means;
}

}  // namespace moe::inline MOE_ABI
