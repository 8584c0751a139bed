// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "moe/compress/quantise_calibrated.hpp"

namespace moe::inline MOE_ABI {

/// What each expert in each format would cost the outputs of a layer on `tokens`, [num_experts, formats]: the Frobenius
/// norm of the difference when that expert alone is quantised, sqrt(sum over its tokens of g^2 |y - y'|^2). 0 for an
/// expert that no token chooses. `quantiser` as for quantise() with a calibration. Throws std::invalid_argument as that
/// and as forward. Every expert is quantised and run once per format, in parallel; same bits for any number of threads.
///   const auto errors = moe::quantisation_errors(layer, tokens, formats, moe::Gptq{}, calibration);
template <class R, class G, detail::HasFloatPanels E, detail::AnyQuantiser Q>
Matrix<double> quantisation_errors(const MoeLayer<R, G, ExpertPool<E>>& layer,
                                   const MatrixView<typename E::Scalar>& tokens, std::span<const WeightFormat> formats,
                                   const Q& quantiser, const Calibration& calibration) {
  constexpr const char* kFunction = "moe::quantisation_errors";
  using S = typename E::Scalar;
  if (calibration.num_experts() != layer.num_experts())
    fail(kFunction, ": the calibration is of ", calibration.num_experts(), " experts, expected ", layer.num_experts());
  typename MoeLayer<R, G, ExpertPool<E>>::Tape tape;
  Matrix<S> out(tokens.rows(), layer.output_dim());
  layer.forward(tokens, Step{}, out, tape);
  const DispatchPlan& plan = tape.mixture.plan;
  const bool weighted = tape.mixture.weight_on == WeightOn::Input;
  Matrix<double> errors = Matrix<double>::Zero(layer.num_experts(), std::ssize(formats));
  parallel_for(layer.num_experts() * errors.cols(), [&](Index task, Index) {
    const Index e = task / errors.cols(), format = task % errors.cols(), first = plan.offset(e);
    Matrix<S> rows(plan.rows_of(e), layer.input_dim());
    if (rows.rows() == 0) return;
    const auto weight = [&](Index r) {
      return tape.routing
          .weights()[static_cast<std::size_t>(plan.assignment_of_row()[static_cast<std::size_t>(first + r)])];
    };
    for (Index r = 0; r < rows.rows(); ++r) {
      rows.row(r) = tokens.row(plan.token_of_row()[static_cast<std::size_t>(first + r)]);
      if (weighted) rows.row(r) *= weight(r);
    }
    const auto few = quantise(layer.experts()[e], formats[static_cast<std::size_t>(format)], quantiser, calibration[e]);
    Matrix<S> rounded(rows.rows(), layer.output_dim());
    Scratch scratch;
    const Step step;
    few.forward(rows, rounded, Context(step, scratch));
    double sum = 0;
    for (Index r = 0; r < rows.rows(); ++r)
      for (Index i = 0; i < rounded.cols(); ++i) {
        const double off =
            static_cast<double>(rounded(r, i)) - static_cast<double>(tape.mixture.rows.row(first + r)[i]);
        const double g = weighted ? 1 : static_cast<double>(weight(r));
        sum += g * g * off * off;
      }
    errors(e, format) = std::sqrt(sum);
  });
  return errors;
}
template <class Layer, class... Branches, detail::AnyQuantiser Q>
Matrix<double> quantisation_errors(const WithBranches<Layer, Branches...>& layer,
                                   const MatrixView<typename Layer::Scalar>& tokens,
                                   std::span<const WeightFormat> formats, const Q& quantiser,
                                   const Calibration& calibration) {
  return quantisation_errors(layer.layer(), tokens, formats, quantiser, calibration);
}

}  // namespace moe::inline MOE_ABI
