// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "moe/gaussian/model/model.hpp"

namespace moe::inline MOE_ABI {

/// Where the free parameters of a model stand in a flat vector theta, in this order:
///   beta_1 of the free slopes, row by row | beta_0 of the free biases | [log tau] | a, row by row | [b] | log nu
/// Pinned are beta_0k and, unless last_slope is Free, beta_1k, and b where there is no intercept. Rows have the columns
/// that the gate and the experts read.
struct ParameterLayout {
  Index num_experts = 1, input_dim = 1;
  Index free_slopes = 0, free_biases = 0;  ///< k - 1 or k
  bool free_temperature = false;
  InputColumns gate_inputs = {}, expert_inputs = {};
  GateScoreKind score = GateScoreKind::Product;  ///< of the gate
  Intercept expert_intercept = Intercept::Free;
  /// Without an intercept, the point (x, y) that all experts go through: the origin of the data, in the coordinates of
  /// the model. No x: 0.
  Eigen::RowVectorXd through_x = {};
  double through_y = 0;

  Index gate_dim() const { return gate_inputs ? std::ssize(*gate_inputs) : input_dim; }
  Index expert_dim() const { return expert_inputs ? std::ssize(*expert_inputs) : input_dim; }
  /// Column of x that is input c of the gate, and of the experts.
  Index gate_input(Index c) const { return gate_inputs ? (*gate_inputs)[static_cast<std::size_t>(c)] : c; }
  Index expert_input(Index c) const { return expert_inputs ? (*expert_inputs)[static_cast<std::size_t>(c)] : c; }

  Index gate_slope(Index j) const { return j * gate_dim(); }
  Index gate_bias(Index j) const { return free_slopes * gate_dim() + j; }
  Index log_temperature() const { return free_slopes * gate_dim() + free_biases; }
  Index num_gate() const { return log_temperature() + (free_temperature ? 1 : 0); }
  Index slope(Index j) const { return num_gate() + j * expert_dim(); }
  bool has_intercept() const { return expert_intercept == Intercept::Free; }
  /// Of an expert: slopes and, if there is one, the intercept.
  Index num_coefficients() const { return expert_dim() + (has_intercept() ? 1 : 0); }
  Index intercept(Index j) const { return num_gate() + num_experts * expert_dim() + j; }  ///< where there is one
  Index log_variance(Index j) const { return num_gate() + num_experts * num_coefficients() + j; }
  Index size() const { return log_variance(num_experts); }

  /// "beta1[0,2]", "beta0[1]", "log tau", "a[0,2]", "b[1]", "log variance[0]"; of expert, column of x.
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    const auto matrix = [&](const char* name, Index rows, Index dim, Index (ParameterLayout::*column)(Index) const) {
      for (Index j = 0; j < rows; ++j)
        for (Index c = 0; c < dim; ++c)
          all.push_back(std::string(name) + '[' + std::to_string(j) + ',' + std::to_string((this->*column)(c)) + ']');
    };
    const auto vector = [&](const char* name, Index count) {
      for (Index j = 0; j < count; ++j) all.push_back(std::string(name) + '[' + std::to_string(j) + ']');
    };
    matrix("beta1", free_slopes, gate_dim(), &ParameterLayout::gate_input);
    vector("beta0", free_biases);
    if (free_temperature) all.push_back("log tau");
    matrix("a", num_experts, expert_dim(), &ParameterLayout::expert_input);
    if (has_intercept()) vector("b", num_experts);
    vector("log variance", num_experts);
    return all;
  }

  /// The same with intercepts that are free.
  ParameterLayout with_intercept() const {
    ParameterLayout out = *this;
    out.expert_intercept = Intercept::Free;
    return out;
  }
  /// b of an expert without an intercept.
  double held_intercept(const Eigen::RowVectorXd& slope) const {
    return through_x.size() > 0 ? through_y - slope.dot(through_x) : through_y;
  }
};

namespace detail {

inline ParameterLayout layout_of(const GaussianParameters& model, const GateForm& form, bool linear,
                                 bool free_temperature) {
  const Index k = model.num_experts();
  const bool free = model.last_slope == LastSlope::Free;
  if (linear && free)
    fail(
        "moe::ParameterLayout: last_slope is Free with a linear gate, expected Zero: a common shift of beta_1 changes "
        "nothing");
  return {.num_experts = k,
          .input_dim = model.input_dim(),
          .free_slopes = free ? k : k - 1,
          .free_biases = free && form.bias == BiasPlace::Inside ? k : k - 1,
          .free_temperature = free_temperature,
          .gate_inputs = model.gate_inputs,
          .expert_inputs = model.expert_inputs,
          .score = form.score.kind,
          .expert_intercept = model.expert_intercept,
          .through_x = {}};
}

}  // namespace detail

namespace detail {

/// Must x keep its origin? Only where nothing in the gate takes up a shift of x: the bias of a nonlinear activation is
/// outside of it, or the experts of a sparse gate are ranked without theirs; centres move with x. Then another origin
/// is another model.
inline bool keeps_origin(const GateForm& form, bool linear, Index num_experts) {
  return num_experts > 1 && form.score.kind != GateScoreKind::Distance &&
         ((form.bias == BiasPlace::Outside && !linear) || (!form.ranks_bias && form.active < num_experts));
}

template <class G>
bool keeps_origin(const GaussianMoe<G>& model) {
  return keeps_origin(model.form(), std::is_same_v<typename GateModel<G>::Inner, Identity>, model.num_experts());
}

}  // namespace detail

/// The layout of a model's free parameters. Throws std::invalid_argument for a linear gate with a free last slope.
template <class G>
ParameterLayout layout(const GaussianMoe<G>& model) {
  using Likelihood = GateModel<G>;
  return detail::layout_of(model, model.form(), std::is_same_v<typename Likelihood::Inner, Identity>,
                           Likelihood::kFreeTemperature);
}

/// Moves the gate to its normal form, which changes no weight: beta_0k = 0, and for linear gates beta_1k = 0.
template <class G>
void normalise(GaussianMoe<G>& model) {
  const ParameterLayout at = layout(model);
  const Index last = model.num_experts() - 1;
  const bool linear = std::is_same_v<typename GateModel<G>::Inner, Identity>;
  if (linear) model.gate_slope.rowwise() -= Eigen::RowVectorXd(model.gate_slope.row(last));
  if (linear || model.form().bias == BiasPlace::Outside) model.gate_bias.array() -= double(model.gate_bias(last));
  if (!linear && at.free_slopes == last && !model.gate_slope.row(last).isZero(0))
    fail("moe::normalise: the last gate slope is not 0, expected 0 or last_slope = Free");
}

namespace detail {

/// The experts in another order: result i is expert order[i]; the gate is as it was, not in normal form.
template <class Model>
Model permuted(const Model& model, const std::vector<Index>& order) {
  Model out = model;
  for (Index i = 0; i < model.num_experts(); ++i) {
    const Index j = order[static_cast<std::size_t>(i)];
    out.gate_slope.row(i) = model.gate_slope.row(j);
    out.slope.row(i) = model.slope.row(j);
    out.gate_bias(i) = model.gate_bias(j);
    out.intercept(i) = model.intercept(j);
    out.variance(i) = model.variance(j);
  }
  return out;
}

}  // namespace detail

/// theta of a model in normal form.
inline Eigen::VectorXd pack(const GaussianParameters& model, const ParameterLayout& at) {
  Eigen::VectorXd theta(at.size());
  const Index k = at.num_experts;
  for (Index j = 0; j < k; ++j) {
    for (Index c = 0; j < at.free_slopes && c < at.gate_dim(); ++c)
      theta(at.gate_slope(j) + c) = model.gate_slope(j, at.gate_input(c));
    if (j < at.free_biases) theta(at.gate_bias(j)) = model.gate_bias(j);
    for (Index c = 0; c < at.expert_dim(); ++c) theta(at.slope(j) + c) = model.slope(j, at.expert_input(c));
    if (at.has_intercept()) theta(at.intercept(j)) = model.intercept(j);
    theta(at.log_variance(j)) = std::log(model.variance(j));
  }
  if (at.free_temperature) theta(at.log_temperature()) = std::log(model.temperature);
  return theta;
}

/// Writes theta into a model of the same shape; what is pinned stays.
inline void unpack(const Eigen::VectorXd& theta, const ParameterLayout& at, GaussianParameters& model) {
  MOE_ASSERT(theta.size() == at.size());
  for (Index j = 0; j < at.num_experts; ++j) {
    for (Index c = 0; j < at.free_slopes && c < at.gate_dim(); ++c)
      model.gate_slope(j, at.gate_input(c)) = theta(at.gate_slope(j) + c);
    if (j < at.free_biases) model.gate_bias(j) = theta(at.gate_bias(j));
    for (Index c = 0; c < at.expert_dim(); ++c) model.slope(j, at.expert_input(c)) = theta(at.slope(j) + c);
    model.intercept(j) = at.has_intercept() ? theta(at.intercept(j)) : at.held_intercept(model.slope.row(j));
    model.variance(j) = std::exp(theta(at.log_variance(j)));
  }
  if (at.free_temperature) model.temperature = std::exp(theta(at.log_temperature()));
}

}  // namespace moe::inline MOE_ABI
