// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/symmetric.hpp"
#include "moe/gaussian/pass/row_blocks.hpp"
#include "moe/likelihood/expert_family.hpp"

// The rows as experts see them, and what an M-step does with them.
namespace moe::inline MOE_ABI::detail {

/// The numbers of an expert on standardised inputs.
struct ExpertNumbers {
  Matrix<double> coefficients = {};  // [C, p], the last of 1
  Eigen::RowVectorXd shape = {};     // [E]
};

/// Where the numbers of a shape may be.
struct ShapeBounds {
  Eigen::RowVectorXd lower = {}, upper = {};  // [E]

  double clamp(Index i, double value) const { return std::clamp(value, lower(i), upper(i)); }
};

/// Rows of weight above 0: standardised inputs that experts read and ones, responses, offsets, weights. Immutable.
struct ExpertRows {
  Eigen::MatrixXd x;  // [n, p], column by column
  Eigen::VectorXd y, trials, offset, weight;
  Matrix<double> further;  // [n, outputs - 1]

  ExpertRows(const ResponseData& data, const Standardisation& by)
      : y(data.y), trials(data.num_rows()), offset(data.num_rows()), weight(data.num_rows()), further(data.further) {
    std::vector<Index> columns;
    for (Index c = 0; c < data.input_dim(); ++c)
      if (reads(data.expert_inputs, c)) columns.push_back(c);
    const Index d = std::ssize(columns);
    x.setOnes(data.num_rows(), d + 1);
    for (Index c = 0; c < d; ++c) {
      const Index column = columns[static_cast<std::size_t>(c)];
      x.col(c) = (data.x.col(column).array() - by.x_center(column)) / by.x_scale(column);
    }
    for (Index i = 0; i < data.num_rows(); ++i) {
      trials(i) = data.trials_of(i);
      offset(i) = data.offset_of(i);
      weight(i) = data.weight(i);
    }
  }

  Index size() const { return y.size(); }
  Response response(Index i) const {
    return {.y = y(i), .trials = trials(i), .further = further.cols() > 0 ? further.row(i).data() : nullptr};
  }
  Eigen::VectorXd output(Index c) const { return c == 0 ? y : Eigen::VectorXd(further.col(c - 1)); }
  /// The linear predictor c of all rows [n].
  Eigen::VectorXd predictor(const ExpertNumbers& expert, Index c) const {
    Eigen::VectorXd eta = offset;
    for (Index f = 0; f < x.cols(); ++f) eta += expert.coefficients(c, f) * x.col(f);
    return eta;
  }
  /// All of them [n, C].
  Matrix<double> predictors(const ExpertNumbers& expert) const {
    Matrix<double> eta(size(), expert.coefficients.rows());
    for (Index c = 0; c < eta.cols(); ++c) eta.col(c) = predictor(expert, c);
    return eta;
  }
  /// X^T W X. Sums over rows in one order, whatever the number of threads.
  Eigen::MatrixXd gram(const Eigen::VectorXd& w) const {
    Eigen::MatrixXd out(x.cols(), x.cols());
    for (Index f = 0; f < x.cols(); ++f) {
      const Eigen::VectorXd column = w.cwiseProduct(x.col(f));
      for (Index g = 0; g <= f; ++g) out(f, g) = out(g, f) = column.dot(x.col(g));
    }
    return out;
  }
};

inline Eigen::VectorXd residuals(const ExpertRows& rows, const ExpertNumbers& expert) {
  return rows.y - rows.predictor(expert, 0);
}

/// Moves the coefficients of the one predictor to weighted least squares; returns the residuals there.
template <class = WhenUsed>
Eigen::VectorXd least_squares(const ExpertRows& rows, const Eigen::VectorXd& weight, ExpertNumbers& expert) {
  const Eigen::VectorXd e = residuals(rows, expert), we = weight.cwiseProduct(e);
  Eigen::VectorXd right(rows.x.cols());
  for (Index f = 0; f < right.size(); ++f) right(f) = rows.x.col(f).dot(we);
  expert.coefficients.row(0) += solve_semidefinite(rows.gram(weight), right).transpose();
  return residuals(rows, expert);
}

/// Where the numbers of an expert stand in a vector: coefficients predictor by predictor, then the log of the shape.
struct FamilyLayout {
  Index predictors, features, shapes;

  Index size() const { return predictors * features + shapes; }
  Index factors() const { return predictors + shapes; }  // of a row
};

inline Eigen::VectorXd pack(const ExpertNumbers& expert) {
  Eigen::VectorXd theta(expert.coefficients.size() + expert.shape.size());
  theta << expert.coefficients.reshaped<Eigen::RowMajor>(), expert.shape.array().log().matrix().transpose();
  return theta;
}

inline ExpertNumbers unpack(const Eigen::VectorXd& theta, const FamilyLayout& at) {
  ExpertNumbers expert{Matrix<double>(at.predictors, at.features), Eigen::RowVectorXd(at.shapes)};
  for (Index c = 0; c < at.predictors; ++c)
    for (Index f = 0; f < at.features; ++f) expert.coefficients(c, f) = theta(c * at.features + f);
  for (Index s = 0; s < at.shapes; ++s) expert.shape(s) = std::exp(theta(at.predictors * at.features + s));
  return expert;
}

/// A row's derivatives in the parameters of an expert, from those in its predictors and shape.
class RowDerivatives {
 public:
  explicit RowDerivatives(const FamilyLayout& at)
      : at_(at), factor_(at.factors()), bend_(at.factors() * at.factors()) {}

  template <class F>
  void evaluate(const F& family, const Response& response, const double* eta, const double* shape) {
    family.derivatives(response, eta, shape, factor_.data(), bend_.data());
  }

  /// score [size()] += scale * that of the row.
  template <class Row, class To>
  void add_score(double scale, const Row& x, To&& score) const {
    Index to = 0;
    for (Index c = 0; c < at_.predictors; ++c)
      for (Index f = 0; f < at_.features; ++f) score(to++) += scale * factor_(c) * x(f);
    for (Index s = 0; s < at_.shapes; ++s) score(to++) += scale * factor_(at_.predictors + s);
  }

  /// information [size(), size()] += scale * minus the second derivatives.
  template <class Row, class To>
  void add_information(double scale, const Row& x, To&& information) const {
    const Index m = at_.factors();
    for (Index p = 0; p < m; ++p)
      for (Index q = 0; q < m; ++q) {
        const double w = scale * bend_(p * m + q);
        for (Index f = 0; f < features(p); ++f)
          for (Index g = 0; g < features(q); ++g)
            information(place(p) + f, place(q) + g) += w * feature(p, f, x) * feature(q, g, x);
      }
  }

 private:
  Index features(Index factor) const { return factor < at_.predictors ? at_.features : 1; }
  Index place(Index factor) const {
    return factor < at_.predictors ? factor * at_.features : at_.predictors * (at_.features - 1) + factor;
  }
  template <class Row>
  double feature(Index factor, Index f, const Row& x) const {
    return factor < at_.predictors ? x(f) : 1;
  }

  FamilyLayout at_;
  Eigen::VectorXd factor_, bend_;
};

/// sum_i w_i log f_i of an expert.
template <class F>
double weighted_log_density(const F& family, const ExpertRows& rows, const Eigen::VectorXd& weight,
                            const ExpertNumbers& expert) {
  const Matrix<double> eta = rows.predictors(expert);
  double sum = 0;
  for (Index i = 0; i < rows.size(); ++i)
    if (weight(i) > 0) sum += weight(i) * family.log_density(rows.response(i), eta.row(i).data(), expert.shape.data());
  return sum;
}

/// Its score [size()] and information [size(), size()].
template <class F>
void weighted_derivatives(const F& family, const ExpertRows& rows, const Eigen::VectorXd& weight,
                          const ExpertNumbers& expert, Eigen::VectorXd& score, Eigen::MatrixXd& information) {
  const FamilyLayout at{expert.coefficients.rows(), expert.coefficients.cols(), expert.shape.size()};
  const Matrix<double> eta = rows.predictors(expert);
  RowDerivatives row(at);
  score.setZero(at.size());
  information.setZero(at.size(), at.size());
  for (Index i = 0; i < rows.size(); ++i) {
    if (!(weight(i) > 0)) continue;
    row.evaluate(family, rows.response(i), eta.row(i).data(), expert.shape.data());
    row.add_score(weight(i), rows.x.row(i), score);
    row.add_information(weight(i), rows.x.row(i), information);
  }
}

/// Coefficients and shape inside their bounds.
template <class F>
void clamp(const F&, const ShapeBounds& bounds, ExpertNumbers& expert) {
  if (std::isfinite(F::kLargest))
    expert.coefficients = expert.coefficients.cwiseMax(-F::kLargest).cwiseMin(F::kLargest).eval();
  for (Index s = 0; s < expert.shape.size(); ++s) expert.shape(s) = bounds.clamp(s, expert.shape(s));
}

/// An M-step that never lowers sum_i w_i log f_i: the family's own, or a step of Newton's method that is halved until
/// that holds, and given up if it never does.
template <class F>
void improve_expert(const F& family, const ExpertRows& rows, const Eigen::VectorXd& weight, const ShapeBounds& bounds,
                    ExpertNumbers& expert) {
  constexpr double kLeastRows = 1e-9, kLongest = 20;  // of steps where exp is the inverse link
  constexpr int kHalvings = 40;
  if (!(weight.sum() > kLeastRows)) return;
  if constexpr (requires { family.improve(rows, weight, bounds, expert); }) {
    ExpertNumbers next = expert;
    family.improve(rows, weight, bounds, next);
    if (next.coefficients.allFinite()) expert = std::move(next);
  } else {
    const FamilyLayout at{expert.coefficients.rows(), expert.coefficients.cols(), expert.shape.size()};
    Eigen::VectorXd score;
    Eigen::MatrixXd information;
    weighted_derivatives(family, rows, weight, expert, score, information);
    Eigen::VectorXd step = solve_semidefinite(information, score);
    const double largest = step.cwiseAbs().maxCoeff(), before = weighted_log_density(family, rows, weight, expert);
    if (!std::isfinite(largest)) return;
    if (std::isfinite(F::kLargest) && largest > kLongest) step *= kLongest / largest;
    const Eigen::VectorXd theta = pack(expert);
    for (int halving = 0; halving < kHalvings; ++halving, step *= 0.5) {
      ExpertNumbers next = unpack(theta + step, at);
      clamp(family, bounds, next);
      if (!(weighted_log_density(family, rows, weight, next) >= before)) continue;
      expert = std::move(next);
      return;
    }
  }
}

}  // namespace moe::inline MOE_ABI::detail
