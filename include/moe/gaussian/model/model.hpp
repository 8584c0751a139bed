// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/core/visit.hpp"
#include "moe/gaussian/model/gate_model.hpp"
#include "moe/gaussian/model/gate_record.hpp"
#include "moe/gaussian/model/input_columns.hpp"

namespace moe::inline MOE_ABI {

/// What identifies the last expert of a gate with an activation: beta_1k = 0 as in the theory, or beta_1k free and
/// (with the bias outside of the activation) beta_0k = 0 alone. Linear gates always pin both; cosine, Laplace and
/// SigmoidGates have a direction or centre for every expert, Free, whatever the options of a fit say.
enum class LastSlope { Zero, Free };

/// The numbers of a Gaussian mixture of k experts on d inputs. Variances are variances, not standard deviations.
struct GaussianParameters {
  Matrix<double> gate_slope = {};     ///< beta_1 [k, d]
  Eigen::RowVectorXd gate_bias = {};  ///< beta_0 [k]
  double temperature = 1;             ///< tau > 0; 1 for gates without one
  Matrix<double> slope = {};          ///< a [k, d]
  Eigen::RowVectorXd intercept = {};  ///< b [k]
  Eigen::RowVectorXd variance = {};   ///< nu [k], > 0
  LastSlope last_slope = LastSlope::Zero;
  /// What the gate and the experts read; coefficients of other columns are 0, and no parameters. So y ~ x | z is a
  /// model whose x [n, d] has the columns of both.
  InputColumns gate_inputs = {}, expert_inputs = {};
  Intercept expert_intercept = Intercept::Free;  ///< Zero: b is 0, and no parameter

  Index num_experts() const { return slope.rows(); }
  Index input_dim() const { return slope.cols(); }
};

/// Gaussian mixture of linear experts, d inputs and one output, with any of the library's gates:
///   p(y | x) = sum_j pi_j(x) N(y; a_j . x + b_j, nu_j),   pi(x) = softmax(z) on the active experts
/// where z are the scores of the gate (GateForm). The same gate class routes tokens in a MoeLayer: see routing_gate().
/// A plain value; share freely while nobody writes.
/// Jacobs, Jordan, Nowlan & Hinton, "Adaptive mixtures of local experts", Neural Computation 1991; Nguyen, Nguyen &
/// Ho (arXiv:2305.03288), top-K: Nguyen et al. (arXiv:2309.13850), temperature and activation: (arXiv:2401.13875).
template <class G = SoftmaxGate>
struct GaussianMoe : GaussianParameters {
  static_assert(LikelihoodGate<G>,
                "moe::GaussianMoe: a gate needs `route` for double and a specialisation of moe::GateModel "
                "(see moe/gaussian/model/gate_model.hpp)");
  using GateType = G;

  G gate = {};

  GaussianMoe() = default;
  GaussianMoe(GaussianParameters parameters, G g = {})
      : GaussianParameters(std::move(parameters)), gate(std::move(g)) {}

  /// All experts alike: slopes and intercepts 0, variances 1.
  static GaussianMoe zero(Index num_experts, Index input_dim, G gate = {});

  /// How the gate enters the likelihood. Throws std::invalid_argument for a gate that cannot.
  GateForm form() const { return GateModel<G>::form(gate, num_experts()); }

  /// Throws std::invalid_argument, naming `function` and the first number that is wrong.
  void validate(const char* function) const;

  /// All that predictions need, for save_parameters() and load_parameters() (moe/io): the parameters, and the gate's
  /// own numbers, which a file must agree with. See also load_gaussian_moe(), which takes the sizes from the file.
  /// last_slope, gate_inputs, expert_inputs and expert_intercept are not among them; they say which of the parameters
  /// are free.
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("gate_slope", self.gate_slope...);
    f("gate_bias", self.gate_bias...);
    f("temperature", self.temperature...);
    f("slope", self.slope...);
    f("intercept", self.intercept...);
    f("variance", self.variance...);
    detail::visit_records(f, "gate", detail::GateRecord(self.gate, self.num_experts())...);
  }
};

template <class G>
GaussianMoe<G> GaussianMoe<G>::zero(Index num_experts, Index input_dim, G gate) {
  if (num_experts < 1) fail("moe::GaussianMoe::zero: num_experts is ", num_experts, ", expected at least 1");
  if (input_dim < 1) fail("moe::GaussianMoe::zero: input_dim is ", input_dim, ", expected at least 1");
  GaussianMoe model;
  model.gate_slope = model.slope = Matrix<double>::Zero(num_experts, input_dim);
  model.gate_bias = model.intercept = Eigen::RowVectorXd::Zero(num_experts);
  model.variance = Eigen::RowVectorXd::Ones(num_experts);
  model.temperature = GateModel<G>::temperature(gate);
  if (detail::ScoredInner<typename GateModel<G>::Inner>) model.last_slope = LastSlope::Free;
  model.gate = std::move(gate);
  return model;
}

namespace detail {

/// Throws unless columns are ascending ones of coefficients [k, d], which are 0 elsewhere.
inline void require_columns(const char* function, const char* name, const InputColumns& columns,
                            const Matrix<double>& coefficients) {
  if (!columns) return;
  std::vector<bool> read(static_cast<std::size_t>(coefficients.cols()), false);
  Index next = 0;
  for (const Index c : *columns) {
    if (c < next || c >= coefficients.cols())
      fail(function, ": ", name, " has column ", c, ", expected different ones in ascending order, below ",
           coefficients.cols());
    read[static_cast<std::size_t>(c)] = true;
    next = c + 1;
  }
  for (Index c = 0; c < coefficients.cols(); ++c)
    if (!read[static_cast<std::size_t>(c)] && !coefficients.col(c).isZero(0))
      fail(function, ": a coefficient of column ", c, ", which is none of ", name, ", is not 0, expected 0");
}

/// Throws unless the intercepts of experts without one are 0 and the experts have inputs.
inline void require_no_intercept(const char* function, const InputColumns& inputs, const Eigen::RowVectorXd& b) {
  if (inputs && inputs->empty()) fail(function, ": the experts have no intercept and no inputs, expected one of both");
  if (!b.isZero(0))
    fail(function, ": an intercept is not 0 in a model without intercepts, expected 0 (expert_intercept)");
}

}  // namespace detail

template <class G>
void GaussianMoe<G>::validate(const char* function) const {
  const Index k = num_experts(), d = input_dim();
  if (k < 1 || d < 1) fail(function, ": slope is [", k, ", ", d, "], expected at least one expert and one input");
  detail::require_shape(function, "gate_slope", gate_slope, k, d);
  detail::require_shape(function, "gate_bias", gate_bias, 1, k);
  detail::require_shape(function, "intercept", intercept, 1, k);
  detail::require_shape(function, "variance", variance, 1, k);
  if (!gate_slope.allFinite() || !gate_bias.allFinite() || !slope.allFinite() || !intercept.allFinite())
    fail(function, ": a coefficient of the model is not finite");
  for (Index j = 0; j < k; ++j)
    if (!(variance(j) > 0 && std::isfinite(variance(j))))
      fail(function, ": the variance of expert ", j, " is ", variance(j), ", expected a finite number > 0");
  if (!(temperature > 0 && std::isfinite(temperature)))
    fail(function, ": temperature is ", temperature, ", expected a finite number > 0");
  detail::require_columns(function, "gate_inputs", gate_inputs, gate_slope);
  detail::require_columns(function, "expert_inputs", expert_inputs, slope);
  if (expert_intercept == Intercept::Zero) detail::require_no_intercept(function, expert_inputs, intercept);
  const bool plain = std::is_same_v<typename GateModel<G>::Inner, Identity> && !GateModel<G>::kFreeTemperature;
  if (gate_inputs && gate_inputs->empty() && k > 1 && (!plain || form().active < k))
    fail(function, ": gate_inputs is empty, expected some columns for a gate that is no plain softmax of all experts");
  form();
}

/// Router logits [n, k] of rows x [n, d], for routing_gate(model): beta_1 . x, or the cosines or distances of a
/// ScoredGate, plus beta_0 unless it belongs to the gate.
template <class G>
Matrix<double> gate_logits(const GaussianMoe<G>& model, const MatrixView<double>& x) {
  detail::require_shape("moe::gate_logits", "x", x, x.rows(), model.input_dim());
  Matrix<double> logits(x.rows(), model.num_experts());
  if constexpr (detail::ScoredInner<typename GateModel<G>::Inner>) {
    const GateScore score = model.form().score;
    for (Index i = 0; i < x.rows(); ++i)
      for (Index j = 0; j < logits.cols(); ++j)
        logits(i, j) = detail::score_of_row(score, model.gate_inputs, model.gate_slope.row(j), x.row(i));
    if (score.link == ScoreLink::LogSigmoid) logits /= model.temperature;
  } else {
    logits = x * model.gate_slope.transpose();
  }
  if (!GateModel<G>::bias_in_gate(model.gate)) logits.rowwise() += model.gate_bias;
  return logits;
}

/// The gate with the numbers of the model in it, dense where it may be: its weights on gate_logits(model, x), at
/// inference, are the gate_weights of the likelihood. Put it into a MoeLayer behind a router with weight beta_1.
template <class G>
G routing_gate(const GaussianMoe<G>& model) {
  return GateModel<G>::with(model.gate, model.gate_bias, model.temperature);
}

}  // namespace moe::inline MOE_ABI
