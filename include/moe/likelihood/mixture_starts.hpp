// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "moe/gaussian/fit/starts.hpp"
#include "moe/gaussian/model/row_counts.hpp"
#include "moe/likelihood/mixture_pass.hpp"

namespace moe::inline MOE_ABI::detail {

/// Where searches begin: the starts of Gaussian mixtures for y where linear predictors are (ExpertFamily::link), in at
/// most 4000 rows, evenly spaced by their weights, of several outputs for each in turn; their responsibilities give
/// every expert its rows, and M-steps its numbers. Noise begins with a share of 5%. Immutable; the start of a number is
/// always the same.
template <class F>
class MixtureStarts {
 public:
  MixtureStarts(const F& family, const ResponseData& data, const Standardisation& by, const MixtureLayout& at,
                const GateForm& form, double (*inner)(double), const Eigen::RowVectorXd& first_shape,
                const ShapeBounds& shapes, std::uint64_t seed)
      : family_(family),
        at_(at),
        thinned_(thinned(data)),
        rows_(thinned_, by),
        first_shape_(first_shape),
        shapes_(shapes) {
    for (Index c = 0; c < num_outputs_of<F>(); ++c) {
      links_.push_back(with_links(family, thinned_, c));
      starts_.emplace_back(RowBlocks(links_.back(), link_scale(links_.back(), by)), gaussian_layout(at, data),
                           dense(form), inner, seed);
    }
  }

  MixtureNumbers operator()(Index start, const GaussianParameters& gate) const {
    const Index k = at_.num_experts, d = gate.input_dim();
    GaussianParameters m;
    m.gate_slope = m.slope = Matrix<double>::Zero(k, d);
    m.gate_bias = m.intercept = Eigen::RowVectorXd::Zero(k);
    m.variance = Eigen::RowVectorXd::Ones(k);
    m.temperature = gate.temperature;
    const Starts<>& of_output = starts_[static_cast<std::size_t>(start % num_outputs_of<F>())];
    m = of_output(start / num_outputs_of<F>(), std::move(m));
    MixtureNumbers numbers{gate, {}};
    set_gate(m, numbers.gate);
    const Eigen::MatrixXd r = of_output.responsibilities(m);
    for (Index j = 0; j < k; ++j) numbers.experts.push_back(expert(r.col(j)));
    return numbers;
  }

  /// An expert on rows of these weights.
  ExpertNumbers expert(const Eigen::VectorXd& weight) const {
    constexpr int kSteps = 5;
    ExpertNumbers expert{Matrix<double>::Zero(at_.expert.predictors, at_.expert.features), first_shape_};
    if (at_.expert.predictors == 1) {
      ExpertRows links = rows_;
      links.y = links_.front().y;
      least_squares(links, weight, expert);
    }
    for (int i = 0; i < kSteps; ++i) improve_expert(family_, rows_, weight, shapes_, expert);
    return expert;
  }

  const ExpertRows& rows() const { return rows_; }

 private:
  static ResponseData thinned(const ResponseData& data) {
    constexpr Index kMost = 2000;
    const Index stride = data.num_rows() / kMost;
    if (stride < 2) return data;
    if (data.weighted()) {
      const RowCounts drawn = proportional_rows(data.num_rows(), data.total_weight(), data.num_rows() / stride,
                                                [&](Index i) { return data.weights(i); });
      ResponseData part = rows_of(data, drawn.rows);
      part.weights = Eigen::Map<const Eigen::VectorXd>(drawn.counts.data(), std::ssize(drawn.counts));
      return part;
    }
    std::vector<Index> rows;
    for (Index i = 0; i < data.num_rows(); i += stride) rows.push_back(i);
    return rows_of(data, rows);
  }

  /// With an output in the place of y.
  static RegressionData with_links(const F& family, const ResponseData& data, Index output) {
    RegressionData links = data;
    const Eigen::VectorXd y = data.output(output);
    for (Index i = 0; i < data.num_rows(); ++i) links.y(i) = family.link({.y = y(i), .trials = data.trials_of(i)});
    return links;
  }

  static Standardisation link_scale(const RegressionData& links, Standardisation by) {
    const ColumnMoments y(links.explained(), links);
    by.y_center = y.center;
    by.y_scale = y.constant() ? 1 : y.scale;
    return by;
  }

  static ParameterLayout gaussian_layout(const MixtureLayout& at, const ResponseData& data) {
    ParameterLayout layout = at.gate;
    layout.num_experts = at.num_experts;
    layout.free_slopes = layout.free_biases = at.num_experts - 1;
    layout.expert_inputs = data.expert_inputs;
    return layout;
  }

  static GateForm dense(GateForm form) {
    form.active = 1;  // not asked for: starts have all experts active
    return form;
  }

  /// The gate of the experts; noise, behind them, is what it is pinned to.
  void set_gate(const GaussianParameters& m, GaussianParameters& gate) const {
    const Index k = at_.num_experts;
    const double noise = num_noise<F>() > 0 ? m.gate_bias.maxCoeff() + m.temperature * std::log(0.05) : 0.0;
    gate.gate_slope.setZero();
    gate.gate_bias.setZero();
    gate.gate_slope.topRows(k) = m.gate_slope;
    gate.gate_bias.head(k) = m.gate_bias.array() - noise;
    gate.temperature = m.temperature;
  }

  const F& family_;
  MixtureLayout at_;
  ResponseData thinned_;
  ExpertRows rows_;
  std::vector<RegressionData> links_;  // one of every output
  std::vector<Starts<>> starts_;
  Eigen::RowVectorXd first_shape_;
  const ShapeBounds& shapes_;
};

}  // namespace moe::inline MOE_ABI::detail
