// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/when_used.hpp"
#include "moe/gaussian/model/parameters.hpp"
#include "moe/gaussian/pass/row_blocks.hpp"

// Experts without an intercept. Sums over rows have one for every expert; where it is no parameter, it is that of the
// expert through a point, b_j = y_0 - a_j . x_0, and the chain rule takes the sums to the a_j. So inputs are centred
// all the same, and the gate, whose bias stays, does not see how far they are from 0.
namespace moe::inline MOE_ABI::detail {

/// From sums in the layout with intercepts to those of a layout. Nothing is done where it has intercepts. Immutable.
template <class = WhenUsed>
class HeldIntercept {
 public:
  explicit HeldIntercept(const ParameterLayout& at) {
    if (at.has_intercept()) return;
    const ParameterLayout whole = at.with_intercept();
    const Index before = at.log_variance(0);
    jacobian_ = Eigen::MatrixXd::Zero(whole.size(), at.size());
    jacobian_.topLeftCorner(before, before).setIdentity();
    for (Index j = 0; j < at.num_experts; ++j) {
      jacobian_.row(whole.intercept(j)).segment(at.slope(j), at.expert_dim()) = slopes(at);
      jacobian_(whole.log_variance(j), at.log_variance(j)) = 1;
    }
  }

  /// d b_j / d a_j, of the inputs of the experts.
  static Eigen::RowVectorXd slopes(const ParameterLayout& at) {
    Eigen::RowVectorXd out = Eigen::RowVectorXd::Zero(at.expert_dim());
    for (Index c = 0; at.through_x.size() > 0 && c < out.size(); ++c) out(c) = -at.through_x(at.expert_input(c));
    return out;
  }

  void reduce(Eigen::VectorXd& score) const {
    if (jacobian_.size() > 0) score = (jacobian_.transpose() * score).eval();
  }
  void reduce(Eigen::MatrixXd& information) const {
    if (jacobian_.size() > 0) information = (jacobian_.transpose() * information * jacobian_).eval();
  }

 private:
  Eigen::MatrixXd jacobian_;  // d theta with intercepts / d theta; empty: the same
};

/// Experts without an intercept go through the origin of the data, which is elsewhere on standardised data.
inline void hold_origin(const Standardisation& by, ParameterLayout& at) {
  if (at.has_intercept()) return;
  at.through_x = -by.x_center.cwiseQuotient(by.x_scale);
  at.through_y = -by.y_center / by.y_scale;
}

}  // namespace moe::inline MOE_ABI::detail
