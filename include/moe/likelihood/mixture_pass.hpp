// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "moe/core/block_sum.hpp"
#include "moe/gaussian/pass/standardise.hpp"
#include "moe/likelihood/expert_rows.hpp"
#include "moe/likelihood/gate_objective.hpp"
#include "moe/likelihood/model.hpp"

// Long, as the likelihood of a whole mixture, its score and its information are one chain rule.
namespace moe::inline MOE_ABI::detail {

/// The numbers of a mixture on standardised inputs.
struct MixtureNumbers {
  GaussianParameters gate = {};  // GateObjective::gate_of
  std::vector<ExpertNumbers> experts = {};
};

/// theta: that of the gate (ParameterLayout), then expert by expert (FamilyLayout).
struct MixtureLayout {
  ParameterLayout gate = {};
  FamilyLayout expert = {};
  Index num_experts = 1;

  Index num_gate() const { return gate.num_gate(); }
  Index at(Index expert_number) const { return num_gate() + expert_number * expert.size(); }
  Index size() const { return at(num_experts); }
};

inline Eigen::VectorXd pack(const MixtureNumbers& m, const MixtureLayout& at) {
  Eigen::VectorXd theta(at.size());
  theta.head(at.num_gate()) = pack(m.gate, at.gate).head(at.num_gate());
  for (Index j = 0; j < at.num_experts; ++j)
    theta.segment(at.at(j), at.expert.size()) = pack(m.experts[static_cast<std::size_t>(j)]);
  return theta;
}

inline void unpack(const Eigen::VectorXd& theta, const MixtureLayout& at, MixtureNumbers& m) {
  Eigen::VectorXd gate = pack(m.gate, at.gate);
  gate.head(at.num_gate()) = theta.head(at.num_gate());
  unpack(gate, at.gate, m.gate);
  for (Index j = 0; j < at.num_experts; ++j)
    m.experts[static_cast<std::size_t>(j)] = unpack(theta.segment(at.at(j), at.expert.size()), at.expert);
}

/// Layout of a model's parameters. Throws as layout(GaussianMoe).
template <class F, class G>
MixtureLayout mixture_layout(const MixtureRegression<F, G>& model) {
  const ParameterLayout gate = layout(model.gate_model());
  const Index d = model.expert_inputs ? std::ssize(*model.expert_inputs) : model.input_dim();
  return {gate, {model.family.num_predictors(), d + 1, F::kShapes}, model.num_experts()};
}

/// From the scale of the data to that of standardised inputs; y keeps its scale.
template <class F, class G>
MixtureNumbers to_standard(const MixtureRegression<F, G>& model, Standardisation by) {
  by.y_center = 0, by.y_scale = 1;
  MixtureNumbers m{GateObjective::gate_of(model.gate_slope, model.gate_bias, model.temperature), {}};
  m.gate.gate_inputs = model.gate_inputs;
  to_standard_scale(by, m.gate);
  const MixtureLayout at = mixture_layout(model);
  ParameterLayout columns = at.gate;
  columns.expert_inputs = model.expert_inputs;
  for (Index j = 0; j < at.num_experts; ++j) {
    ExpertNumbers expert{Matrix<double>(at.expert.predictors, at.expert.features), model.shape.row(j)};
    for (Index c = 0; c < at.expert.predictors; ++c) {
      const Index row = model.row(j, c), last = at.expert.features - 1;
      for (Index f = 0; f < last; ++f) {
        const Index column = columns.expert_input(f);
        expert.coefficients(c, f) = model.slope(row, column) * by.x_scale(column);
      }
      expert.coefficients(c, last) = model.intercept(row) + model.slope.row(row).dot(by.x_center);
    }
    m.experts.push_back(std::move(expert));
  }
  return m;
}

/// And back, into a model of the same sizes.
template <class F, class G>
void to_data(const MixtureNumbers& numbers, Standardisation by, MixtureRegression<F, G>& model) {
  by.y_center = 0, by.y_scale = 1;
  GaussianParameters gate = numbers.gate;
  to_data_scale(by, gate);
  model.gate_slope = gate.gate_slope;
  model.gate_bias = gate.gate_bias;
  model.temperature = gate.temperature;
  const MixtureLayout at = mixture_layout(model);
  ParameterLayout columns = at.gate;
  columns.expert_inputs = model.expert_inputs;
  for (Index j = 0; j < at.num_experts; ++j) {
    const ExpertNumbers& expert = numbers.experts[static_cast<std::size_t>(j)];
    model.shape.row(j) = expert.shape;
    for (Index c = 0; c < at.expert.predictors; ++c) {
      const Index row = model.row(j, c), last = at.expert.features - 1;
      model.slope.row(row).setZero();
      for (Index f = 0; f < last; ++f) {
        const Index column = columns.expert_input(f);
        model.slope(row, column) = expert.coefficients(c, f) / by.x_scale(column);
      }
      model.intercept(row) = expert.coefficients(c, last) - model.slope.row(row).dot(by.x_center);
    }
  }
}

/// The likelihood of some rows and its derivatives, on standardised inputs. Not thread-safe: it keeps the densities of
/// the last numbers it was asked about.
template <class F>
class MixturePass {
 public:
  MixturePass(const F& family, const ExpertRows& rows, GateObjective& gate, const MixtureLayout& at)
      : family_(family), rows_(rows), gate_(gate), at_(at) {}

  const F& family() const { return family_; }
  const ExpertRows& rows() const { return rows_; }
  const GateObjective& gate() const { return gate_; }
  const MixtureLayout& layout() const { return at_; }

  /// log f_ij of all components go to the gate's objective.
  void set_densities(const MixtureNumbers& m) {
    const Index k = at_.num_experts;
    densities_.resize(rows_.size(), k + num_noise<F>());
    std::vector<Matrix<double>> eta;
    for (const ExpertNumbers& expert : m.experts) eta.push_back(rows_.predictors(expert));
    parallel_ranges(rows_.size(), /*grain=*/256, [&](Index begin, Index end, Index) {
      for (Index i = begin; i < end; ++i) {
        for (Index j = 0; j < k; ++j) {
          const auto e = static_cast<std::size_t>(j);
          densities_(i, j) = family_.log_density(rows_.response(i), eta[e].row(i).data(), m.experts[e].shape.data());
        }
        if constexpr (num_noise<F>() > 0) densities_(i, k) = family_.noise_log_density(rows_.y(i));
      }
    });
    gate_.set_log_densities(densities_);
  }

  const Matrix<double>& log_densities() const { return densities_; }

  /// sum_i w_i log p_i minus the ridge of the gate.
  double value(const MixtureNumbers& m) {
    set_densities(m);
    return gate_.value(m.gate);
  }

  /// r_ij [n, components] at the densities that are set.
  Matrix<double> responsibilities(const GaussianParameters& gate) const {
    Matrix<double> r(rows_.size(), at_.num_experts + num_noise<F>());
    gate_.for_each_block(gate, [&](Index first, Index count, const PosteriorColumns& columns) {
      for (Index i = 0; i < count; ++i)
        for (Index j = 0; j < r.cols(); ++j) r(first + i, j) = columns.posterior[j * kBlockRows + i];
    });
    return r;
  }

  /// Also score [P] and minus the second derivatives [P, P]:
  ///   Cov_pi(dz) - Cov_r(dt) - sum_j (r_j - pi_j) d^2 z_j - sum_j r_j d^2 log f_j,  t_j = z_j + log f_j
  /// The gate's part is that of moe/gaussian.
  double information(const MixtureNumbers& m, Eigen::VectorXd& score, Eigen::MatrixXd& information) {
    set_densities(m);
    const Index g = at_.num_gate(), size = at_.size();
    Eigen::VectorXd gate_score;
    Eigen::MatrixXd gate_information;
    const double value = gate_.information(m.gate, gate_score, gate_information);
    const Eigen::MatrixXd sums = add_rows(m, size + 1, [&](Index i, const RowTerms& row, Eigen::MatrixXd& to) {
      const double w = rows_.weight(i);
      to.col(size) += w * row.mean;
      to.leftCols(size).noalias() += w * row.mean * row.mean.transpose();
      for (Index j = 0; j < at_.num_experts; ++j) {
        const double r = row.posterior(j);
        if (!(r > 0)) continue;
        const Index at = at_.at(j), width = at_.expert.size();
        const auto s = row.scores.col(j);
        to.block(at, at, width, width).noalias() -= w * r * s * s.transpose();
        to.block(0, at, g, width).noalias() -= w * r * row.gate.col(j) * s.transpose();
        row.bends[static_cast<std::size_t>(j)].add_information(w * r, rows_.x.row(i), to.block(at, at, width, width));
      }
    });
    score = sums.col(size);
    score.head(g) = gate_score.head(g);
    information = sums.leftCols(size);
    information.topLeftCorner(g, g) = gate_information.topLeftCorner(g, g);
    information.bottomLeftCorner(size - g, g) = information.topRightCorner(g, size - g).transpose();
    return value;
  }

  /// sum_i w_i s_i s_i^T of the scores of rows, without the ridge.
  Eigen::MatrixXd score_covariance(const MixtureNumbers& m) {
    set_densities(m);
    return add_rows(m, at_.size(), [&](Index i, const RowTerms& row, Eigen::MatrixXd& to) {
      Eigen::VectorXd s = row.mean;
      s.head(at_.num_gate()) -= row.gate * row.prior;
      to.noalias() += rows_.weight(i) * s * s.transpose();
    });
  }

 private:
  /// What is known of a row.
  struct RowTerms {
    Eigen::VectorXd posterior, prior;   // [components]
    Eigen::MatrixXd gate;               // [gate parameters, components]: dz_j
    Eigen::MatrixXd scores;             // [expert parameters, k]: d log f_j
    Eigen::VectorXd mean;               // [P]: sum_j r_j dt_j
    std::vector<RowDerivatives> bends;  // [k]
  };

  /// Sums of [P, columns] numbers that add(i, row terms, to) adds for every row, in blocks, as matrices of one column
  /// may be worth no more than the row.
  template <class Add>
  Eigen::MatrixXd add_rows(const MixtureNumbers& m, Index columns, Add&& add) const {
    const Index k = at_.num_experts, components = k + num_noise<F>(), size = at_.size();
    std::vector<Matrix<double>> eta;
    for (const ExpertNumbers& expert : m.experts) eta.push_back(rows_.predictors(expert));
    const Index num_blocks = gate_.rows().num_blocks(), per_sum = (num_blocks + kSums - 1) / kSums;
    std::vector<Eigen::MatrixXd> sums(static_cast<std::size_t>((num_blocks + per_sum - 1) / per_sum));
    std::vector<Eigen::MatrixXd> weights(static_cast<std::size_t>(num_blocks));  // z, u, pi, r by block
    gate_.for_each_block(m.gate, [&](Index first, Index count, const PosteriorColumns& c) {
      Eigen::MatrixXd& w = weights[static_cast<std::size_t>(first / kBlockRows)];
      w.resize(4 * components, count);
      for (Index i = 0; i < count; ++i)
        for (Index j = 0; j < components; ++j) {
          const Index at = j * kBlockRows + i;
          w.col(i).segment(4 * j, 4) << c.score[at], gate_.linear() ? 0 : c.inner[at], c.prior[at], c.posterior[at];
        }
    });
    parallel_for(std::ssize(sums), [&](Index s, Index) {
      Eigen::MatrixXd& sum = sums[static_cast<std::size_t>(s)];
      sum.setZero(size, columns);
      RowTerms row{Eigen::VectorXd(components),
                   Eigen::VectorXd(components),
                   Eigen::MatrixXd(at_.num_gate(), components),
                   Eigen::MatrixXd(at_.expert.size(), k),
                   Eigen::VectorXd(size),
                   std::vector<RowDerivatives>(static_cast<std::size_t>(k), RowDerivatives(at_.expert))};
      for (Index b = s * per_sum; b < std::min(num_blocks, (s + 1) * per_sum); ++b)
        for (Index i = 0; i < gate_.rows().rows(b); ++i) {
          const auto w = weights[static_cast<std::size_t>(b)].col(i);
          fill(m, eta, b, i, w, row);
          add(b * kBlockRows + i, std::as_const(row), sum);
        }
    });
    Eigen::MatrixXd total = std::move(sums.front());
    for (std::size_t s = 1; s < sums.size(); ++s) total += sums[s];
    return total;
  }

  template <class Weights>
  void fill(const MixtureNumbers& m, const std::vector<Matrix<double>>& eta, Index block, Index in_block,
            const Weights& weights, RowTerms& row) const {
    const ParameterLayout& at = at_.gate;
    const Index i = block * kBlockRows + in_block, components = row.posterior.size();
    const double* features = gate_.rows().features(block) + in_block;
    const double inverse = 1 / m.gate.temperature;
    row.gate.setZero();
    row.mean.setZero();
    for (Index j = 0; j < components; ++j) {
      const double z = weights(4 * j), slope = gate_.slope(weights(4 * j + 1)) * inverse;
      row.prior(j) = weights(4 * j + 2);
      row.posterior(j) = weights(4 * j + 3);
      if (!(row.prior(j) > 0 || row.posterior(j) > 0)) continue;  // inactive: z is no number to multiply
      for (Index c = 0; j < at.free_slopes && c < at.gate_dim(); ++c)
        row.gate(at.gate_slope(j) + c, j) = slope * features[at.gate_input(c) * kBlockRows];
      if (j < at.free_biases)
        row.gate(at.gate_bias(j), j) = bias_follows_slope(gate_.form(), gate_.linear()) ? slope : inverse;
      if (at.free_temperature) row.gate(at.log_temperature(), j) = -z;
      row.mean.head(at.num_gate()) += row.posterior(j) * row.gate.col(j);
    }
    row.scores.setZero();
    for (Index j = 0; j < at_.num_experts; ++j) {
      const auto e = static_cast<std::size_t>(j);
      if (!(row.posterior(j) > 0)) continue;
      row.bends[e].evaluate(family_, rows_.response(i), eta[e].row(i).data(), m.experts[e].shape.data());
      row.bends[e].add_score(1.0, rows_.x.row(i), row.scores.col(j));
      row.mean.segment(at_.at(j), at_.expert.size()) = row.posterior(j) * row.scores.col(j);
    }
  }

  static constexpr Index kSums = 32;  // of blocks: the bits do not depend on threads

  const F& family_;
  const ExpertRows& rows_;
  GateObjective& gate_;
  MixtureLayout at_;
  Matrix<double> densities_ = {};
};

}  // namespace moe::inline MOE_ABI::detail
