// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "moe/gaussian/model/gate_record.hpp"
#include "moe/gaussian/model/gate_weights.hpp"
#include "moe/gaussian/model/identified.hpp"
#include "moe/gaussian/model/parameters.hpp"
#include "moe/likelihood/expert_family.hpp"
#include "moe/likelihood/uniform_noise.hpp"

namespace moe::inline MOE_ABI {

/// Mixture of k regressions of any family of experts, with any of the library's gates, d inputs:
///   p(y | x) = sum_j pi_j(x) f(y; eta_j, shape_j),   eta_jc = a_jc . x + b_jc + offset,   pi(x) = softmax(z)
/// where z are the scores of the gate on its active components (GateForm). Components are the k experts and, with
/// UniformNoise, one of noise behind them; C predictors and E numbers of shape are as the family says.
///   moe::MixtureRegression<moe::StudentT>     moe::MixtureRegression<moe::Poisson, moe::TopKGate>
/// A plain value; share freely while nobody writes.
/// Jacobs, Jordan, Nowlan & Hinton, "Adaptive mixtures of local experts", Neural Computation 1991; Jordan & Jacobs,
/// "Hierarchical mixtures of experts and the EM algorithm", Neural Computation 1994; families: see there.
template <class F, class G = SoftmaxGate>
struct MixtureRegression {
  static_assert(ExpertFamily<F>,
                "moe::MixtureRegression: a family needs `log_density`, `derivatives` and what else "
                "moe/likelihood/expert_family.hpp lists");
  static_assert(LikelihoodGate<G>,
                "moe::MixtureRegression: a gate needs `route` for double and a specialisation of moe::GateModel "
                "(see moe/gaussian/model/gate_model.hpp)");
  static_assert(
      !requires { requires detail::ScoredInner<typename GateModel<G>::Inner>; },
      "moe::MixtureRegression: gates of cosines and distances serve moe::GaussianMoe alone");
  using FamilyType = F;
  using GateType = G;

  F family = {};
  G gate = {};
  Matrix<double> gate_slope = {};     ///< beta_1 [components, d]
  Eigen::RowVectorXd gate_bias = {};  ///< beta_0 [components]
  double temperature = 1;             ///< tau > 0; 1 for gates without one
  Matrix<double> slope = {};          ///< a [k C, d], predictor c of expert j in row j C + c
  Eigen::RowVectorXd intercept = {};  ///< b [k C]
  Matrix<double> shape = {};          ///< [k, E], > 0: variances, degrees of freedom
  /// What the gate and the experts read; coefficients of other columns are 0, and no parameters.
  InputColumns gate_inputs = {}, expert_inputs = {};

  Index num_components() const { return gate_slope.rows(); }
  Index num_experts() const { return num_components() - detail::num_noise<F>(); }
  Index input_dim() const { return gate_slope.cols(); }
  Index row(Index expert, Index predictor) const { return expert * family.num_predictors() + predictor; }

  /// All experts and the gate alike: coefficients 0, shapes 1.
  static MixtureRegression zero(Index num_experts, Index input_dim, F family = {}, G gate = {}) {
    if (num_experts < 1) fail("moe::MixtureRegression::zero: num_experts is ", num_experts, ", expected at least 1");
    if (input_dim < 1) fail("moe::MixtureRegression::zero: input_dim is ", input_dim, ", expected at least 1");
    MixtureRegression m;
    const Index components = num_experts + detail::num_noise<F>(), predictors = num_experts * family.num_predictors();
    m.temperature = GateModel<G>::temperature(gate);
    m.family = std::move(family);
    m.gate = std::move(gate);
    m.gate_slope = Matrix<double>::Zero(components, input_dim);
    m.gate_bias = Eigen::RowVectorXd::Zero(components);
    m.slope = Matrix<double>::Zero(predictors, input_dim);
    m.intercept = Eigen::RowVectorXd::Zero(predictors);
    m.shape = Matrix<double>::Ones(num_experts, F::kShapes);
    return m;
  }

  /// Its gate, as a Gaussian mixture whose experts are all alike: what gate_weights(), gate_logits(), routing_gate(),
  /// layout() and normalise() take.
  GaussianMoe<G> gate_model() const {
    GaussianParameters m;
    m.gate_slope = gate_slope;
    m.gate_bias = gate_bias;
    m.temperature = temperature;
    m.slope = Matrix<double>::Zero(num_components(), input_dim());
    m.intercept = Eigen::RowVectorXd::Zero(num_components());
    m.variance = Eigen::RowVectorXd::Ones(num_components());
    m.gate_inputs = gate_inputs;
    m.expert_inputs = std::vector<Index>();
    return {std::move(m), gate};
  }

  /// Throws std::invalid_argument, naming `function` and the first number that is wrong.
  void validate(const char* function) const {
    const Index k = num_experts(), d = input_dim(), predictors = k * family.num_predictors();
    if (k < 1 || d < 1)
      fail(function, ": gate_slope is [", num_components(), ", ", d, "], expected at least one expert and one input");
    gate_model().validate(function);
    detail::require_shape(function, "slope", slope, predictors, d);
    detail::require_shape(function, "intercept", intercept, 1, predictors);
    detail::require_shape(function, "shape", shape, k, F::kShapes);
    if (!slope.allFinite() || !intercept.allFinite()) fail(function, ": a coefficient of the model is not finite");
    for (Index j = 0; j < k; ++j)
      for (Index s = 0; s < F::kShapes; ++s)
        if (!(shape(j, s) > 0 && std::isfinite(shape(j, s))))
          fail(function, ": the ", F::kShapeNames[static_cast<std::size_t>(s)], " of expert ", j, " is ", shape(j, s),
               ", expected a finite number > 0");
    detail::require_columns(function, "expert_inputs", expert_inputs, slope);
    if constexpr (detail::num_noise<F>() > 0) family.require_range(function);
  }

  /// All that predictions need, for save_parameters() and load_parameters() (moe/io) into a model of the same family
  /// and sizes; that a file is of this gate is checked, of the family its sizes. The range of UniformNoise, gate_inputs
  /// and expert_inputs are not among them.
  template <class V, class... Self>
  static void visit(V&& f, Self&... self) {
    f("gate_slope", self.gate_slope...);
    f("gate_bias", self.gate_bias...);
    f("temperature", self.temperature...);
    f("slope", self.slope...);
    f("intercept", self.intercept...);
    if constexpr (F::kShapes > 0) f("shape", self.shape...);
    detail::visit_records(f, "gate", detail::GateRecord(self.gate, self.num_components())...);
  }
};

/// Weights pi_j(x) of the components [n, components] at rows x [n, d]. Errors as for GaussianMoe.
template <class F, class G>
Matrix<double> gate_weights(const MixtureRegression<F, G>& model, const MatrixView<double>& x) {
  return gate_weights(model.gate_model(), x);
}

/// The robust experts that a Gaussian mixture is: of the same density up to 1e-10 by most_degrees degrees of freedom,
/// from where fit_mixture_from() finds a t mixture that fits at least as well.
template <class F, class G>
MixtureRegression<F, G> mixture_of(const GaussianMoe<G>& normal, F family = {}) {
  static_assert(F::kContinuous && detail::num_noise<F>() == 0 && detail::num_outputs_of<F>() == 1,
                "moe::mixture_of: a Gaussian mixture is one of Normal or StudentT experts, without noise");
  normal.validate("moe::mixture_of");
  if (normal.expert_intercept == Intercept::Zero)
    fail("moe::mixture_of: the experts have no intercept, expected one: the families of moe/likelihood have");
  auto m = MixtureRegression<F, G>::zero(normal.num_experts(), normal.input_dim(), family, normal.gate);
  m.gate_slope = normal.gate_slope;
  m.gate_bias = normal.gate_bias;
  m.temperature = normal.temperature;
  m.slope = normal.slope;
  m.intercept = normal.intercept;
  m.shape.col(0) = normal.variance.transpose();
  if constexpr (requires { family.most_degrees; }) m.shape.col(1).setConstant(family.most_degrees);
  m.gate_inputs = normal.gate_inputs;
  m.expert_inputs = normal.expert_inputs;
  return m;
}

}  // namespace moe::inline MOE_ABI
