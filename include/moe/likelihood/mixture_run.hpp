// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "moe/gaussian/fit/run.hpp"
#include "moe/likelihood/fit_options.hpp"
#include "moe/likelihood/mixture_pass.hpp"

// Long, as EM, Newton's method and what they leave behind share one state.
namespace moe::inline MOE_ABI::detail {

/// The end of a run from one start, on standardised inputs.
struct MixtureRun {
  MixtureNumbers numbers = {};
  double criterion = -std::numeric_limits<double>::infinity();
  double score_norm = 0;
  bool converged = false;
  Index iterations = 0;
  std::vector<double> path = {};
  Eigen::RowVectorXd expert_rows = {};
  MixtureFlags flags = {};

  /// As Run::standing().
  int standing() const { return flags.interior() ? 2 : flags.collapsed() ? 0 : 1; }
  bool better_than(const MixtureRun& other) const {
    if (standing() != other.standing()) return standing() > other.standing();
    return criterion > other.criterion || (!std::isnan(criterion) && std::isnan(other.criterion));
  }
};

/// Have the coefficients of an expert of counts or classes no finite maximum, as far as one can see: is one at its
/// bound, or is there a direction, of size 1 in root mean square over the rows, about which there is less information
/// than 1 / 30^2?
template <class F>
bool is_separated(const F& family, const ExpertRows& rows, const Eigen::VectorXd& weight, const ExpertNumbers& expert) {
  constexpr double kLeast = 1e-3;
  if (F::kContinuous || !(weight.sum() > 0)) return false;
  if (expert.coefficients.cwiseAbs().maxCoeff() >= F::kLargest * (1 - 1e-9)) return true;
  Eigen::VectorXd score;
  Eigen::MatrixXd information;
  weighted_derivatives(family, rows, weight, expert, score, information);
  const Index p = rows.x.cols(), predictors = expert.coefficients.rows();
  const Eigen::LLT<Eigen::MatrixXd> cholesky(rows.gram(rows.weight) / rows.weight.sum());
  Eigen::MatrixXd white = information.topLeftCorner(predictors * p, predictors * p);
  for (Index c = 0; c < predictors; ++c) {
    white.middleRows(c * p, p) = cholesky.matrixL().solve(Eigen::MatrixXd(white.middleRows(c * p, p)));
    white.middleCols(c * p, p) =
        cholesky.matrixL().solve(Eigen::MatrixXd(white.middleCols(c * p, p).transpose())).transpose();
  }
  return Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(white, Eigen::EigenvaluesOnly).eigenvalues()(0) < kLeast;
}

/// Takes starts to a maximum: EM, in which the gate's step is that of moe/gaussian and the experts' that of their
/// family, then Newton's method on all parameters. Not thread-safe.
template <class F>
class MixtureRunner {
 public:
  MixtureRunner(const F& family, const ExpertRows& rows, const GateObjective& gate, const MixtureLayout& at,
                const ShapeBounds& shapes, const MixtureFitOptions& options)
      : gate_(static_cast<GateObjective*>(gate.clone().release())),
        pass_(family, rows, *gate_, at),
        shapes_(shapes),
        options_(options),
        bounds_{.gate_box = options.gate_box} {}

  /// A few EM iterations; sparse gates start dense and lose one component after the other.
  MixtureRun short_run(MixtureNumbers start) {
    MixtureRun run;
    const Index active = gate_->form().active;
    for (Index a = pass_.layout().gate.num_experts; a >= active; --a) {
      gate_->set_active(a);
      run.path.clear();
      climb(std::move(start), (a > active ? 2 : 1) * options_.short_iterations, run);
      start = run.numbers;
    }
    finish(run);
    return run;
  }

  /// To the maximum; sparse gates then move their borders, and climb again while that gains.
  MixtureRun long_run(MixtureNumbers start) {
    MixtureRun run;
    maximise(std::move(start), run);
    const BoundarySearch<> borders(*gate_, bounds_);
    for (int round = 0; round < kBorderRounds && borders.sparse(); ++round) {
      MixtureRun next = run;
      pass_.set_densities(next.numbers);
      if (!borders.improve(*gate_, next.numbers.gate)) {
        run.converged = run.iterations < options_.max_iterations;
        break;
      }
      maximise(MixtureNumbers(next.numbers), next);
      if (!(next.criterion > run.criterion)) break;
      run = std::move(next);
    }
    finish(run);
    return run;
  }

  /// log f_ij [n, components].
  const Matrix<double>& log_densities(const MixtureNumbers& m) {
    pass_.set_densities(m);
    return pass_.log_densities();
  }

 private:
  static constexpr int kBorderRounds = 10;
  static constexpr double kRounding = 1e-13;  // of a criterion, relative

  void clamp_all(MixtureNumbers& m) const {
    bounds_.clamp(pass_.layout().gate, m.gate);
    for (ExpertNumbers& expert : m.experts) clamp(pass_.family(), shapes_, expert);
  }

  /// EM. The criterion never falls: an iteration that would is not made, and ends it.
  void climb(MixtureNumbers start, Index iterations, MixtureRun& run) {
    constexpr double kSettled = 1e-9;  // relative change after which Newton's method does better
    clamp_all(start);
    run.numbers = std::move(start);
    pass_.set_densities(run.numbers);
    Em em(*gate_, bounds_, GateStep::Automatic);
    EmState state = em.start(run.numbers.gate);
    run.criterion = state.criterion;
    run.path.push_back(run.criterion);
    for (Index i = 0; i < iterations && run.iterations < options_.max_iterations; ++i) {
      MixtureNumbers next = run.numbers;
      improve_experts(next);
      pass_.set_densities(next);
      if (!em.iterate(state)) {
        pass_.set_densities(run.numbers);
        break;
      }
      ++run.iterations;
      next.gate = state.model;
      const double gain = state.criterion - run.criterion;
      run.numbers = std::move(next);
      run.criterion = state.criterion;
      run.path.push_back(run.criterion);
      if (gain < kSettled * (1 + std::abs(run.criterion))) break;
    }
  }

  void improve_experts(MixtureNumbers& m) const {
    const Matrix<double> r = pass_.responsibilities(m.gate);
    for (Index j = 0; j < pass_.layout().num_experts; ++j) {
      const Eigen::VectorXd weight = pass_.rows().weight.cwiseProduct(r.col(j));
      improve_expert(pass_.family(), pass_.rows(), weight, shapes_, m.experts[static_cast<std::size_t>(j)]);
    }
  }

  void maximise(MixtureNumbers start, MixtureRun& run) {
    climb(std::move(start), options_.em_iterations, run);
    for (int round = 0; round < 4 && run.iterations < options_.max_iterations; ++round) {
      newton(run);
      if (run.converged) return;
      climb(MixtureNumbers(run.numbers), 20, run);  // a kick, where Newton's method is stuck
    }
  }

  struct Curvature {
    double score_norm = 0, remaining = 0;
    bool singular = false;
    Eigen::VectorXd step = {}, escape = {};  // escape: along the most negative curvature, if there is any
  };

  /// Coordinates that are not held by a bound that the score points beyond.
  std::vector<Index> free_coordinates(const Eigen::VectorXd& theta, const Eigen::VectorXd& score) const {
    const MixtureLayout& at = pass_.layout();
    constexpr double kInside = 1 - 1e-9;
    std::vector<Index> free;
    const auto add = [&](Index i, double lower, double upper) {
      const bool held = (theta(i) >= upper && score(i) >= 0) || (theta(i) <= lower && score(i) <= 0);
      if (!held) free.push_back(i);
    };
    for (Index i = 0; i < at.num_gate(); ++i) {
      const bool tau = at.gate.free_temperature && i == at.gate.log_temperature();
      const double box = options_.gate_box * kInside;
      add(i, tau ? std::log(Bounds::kColdest) * kInside : -box, tau ? std::log(Bounds::kHottest) * kInside : box);
    }
    for (Index j = 0; j < at.num_experts; ++j) {
      const Index coefficients = at.expert.predictors * at.expert.features;
      for (Index i = 0; i < coefficients; ++i) add(at.at(j) + i, -F::kLargest * kInside, F::kLargest * kInside);
      for (Index s = 0; s < at.expert.shapes; ++s)
        add(at.at(j) + coefficients + s, std::log(shapes_.lower(s)) + 1e-9, std::log(shapes_.upper(s)) - 1e-9);
    }
    return free;
  }

  /// Newton's step at the free coordinates, in which every eigenvalue counts by its size: it always leads uphill.
  Curvature curvature(const MixtureNumbers& m) {
    constexpr double kFlat = 1e-9;
    Curvature out;
    Eigen::VectorXd score;
    Eigen::MatrixXd information;
    pass_.information(m, score, information);
    const Eigen::VectorXd theta = pack(m, pass_.layout());
    const std::vector<Index> free = free_coordinates(theta, score);
    out.step.setZero(theta.size());
    if (free.empty() || !score.allFinite() || !information.allFinite()) return out;
    const Eigen::VectorXd s = score(free);
    out.score_norm = s.cwiseAbs().maxCoeff() / pass_.rows().weight.sum();
    const Eigen::MatrixXd a = information(free, free);
    const double largest = a.diagonal().cwiseAbs().maxCoeff();
    const Eigen::VectorXd unit =
        a.diagonal().cwiseAbs().cwiseMax(std::max(1e-14 * largest, 1e-290)).cwiseSqrt().cwiseInverse();
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(unit.asDiagonal() * a * unit.asDiagonal());
    const Eigen::VectorXd along = eigen.eigenvectors().transpose() * unit.cwiseProduct(s);
    const double top = eigen.eigenvalues().cwiseAbs().maxCoeff();
    Eigen::VectorXd step(along.size());
    for (Index i = 0; i < along.size(); ++i) {
      const double value = eigen.eigenvalues()(i);
      out.singular = out.singular || value < kSingular * top;
      step(i) = along(i) / std::max(std::abs(value), kFlat * std::max(top, 1e-290));
    }
    out.remaining = 0.5 * along.dot(step);
    const auto place = [&](const Eigen::VectorXd& in_unit) {
      Eigen::VectorXd all = Eigen::VectorXd::Zero(theta.size());
      for (std::size_t i = 0; i < free.size(); ++i)
        all(free[i]) = unit(static_cast<Index>(i)) * in_unit(static_cast<Index>(i));
      return all;
    };
    out.step = place(eigen.eigenvectors() * step);
    if (eigen.eigenvalues()(0) < -kFlat * top) out.escape = place(eigen.eigenvectors().col(0));
    return out;
  }

  /// Moves to theta if the criterion is at least `least` there; false, and nothing changed, otherwise.
  bool attempt(const Eigen::VectorXd& theta, double least, MixtureRun& run) {
    MixtureNumbers next = run.numbers;
    unpack(theta, pass_.layout(), next);
    clamp_all(next);
    const double value = pass_.value(next);
    if (!(value >= least)) return false;
    run.criterion = std::max(value, run.criterion);
    run.numbers = std::move(next);
    return true;
  }

  /// Away from a point where the score is 0 and no maximum, if the criterion gains.
  bool leave_saddle(const Eigen::VectorXd& theta, const Eigen::VectorXd& direction, MixtureRun& run) {
    if (direction.size() == 0) return false;
    const double size = direction.cwiseAbs().maxCoeff();
    for (const double length : {1.0, -1.0, 0.1, -0.1, 0.01, -0.01})
      if (attempt(theta + length / size * direction, run.criterion + gain_to_come(run), run)) return true;
    return false;
  }

  /// What a gain is none below: the tolerance, and rounding.
  double gain_to_come(const MixtureRun& run) const {
    return std::max(options_.remaining_tolerance, kRounding * (1 + std::abs(run.criterion)));
  }

  void newton(MixtureRun& run) {
    constexpr double kLongest = 5;  // of a step
    constexpr int kHalvings = 40, kMostIdle = 3;
    bool last = false;
    int idle = 0;  // steps that gained nothing
    while (run.iterations < options_.max_iterations && idle < kMostIdle) {
      const Curvature here = curvature(run.numbers);
      run.score_norm = here.score_norm;
      run.flags.singular = here.singular;
      run.converged = here.remaining <= gain_to_come(run);
      const Eigen::VectorXd theta = pack(run.numbers, pass_.layout());
      const double before = run.criterion;
      bool moved = run.converged && leave_saddle(theta, here.escape, run);
      if (moved) {
        last = run.converged = false;
      } else {
        if (last && run.converged) return;
        last = run.converged;  // one step more, as it squares the error
        Eigen::VectorXd step = here.step;
        if (const double size = step.cwiseAbs().maxCoeff(); size > kLongest) step *= kLongest / size;
        const double least = before - (run.converged ? kRounding * (1 + std::abs(before)) : 0);
        for (int halving = 0; halving < kHalvings && !moved; ++halving, step *= 0.5)
          moved = attempt(theta + step, least, run);
      }
      if (!moved) {
        run.flags.decreased = !run.converged;
        return;
      }
      idle = run.criterion > before ? 0 : idle + 1;
      ++run.iterations;
      run.path.push_back(run.criterion);
    }
  }

  void finish(MixtureRun& run) {
    const MixtureLayout& at = pass_.layout();
    const Index k = at.num_experts, features = at.expert.features;
    pass_.set_densities(run.numbers);
    const Matrix<double> r = pass_.responsibilities(run.numbers.gate);
    run.expert_rows = pass_.rows().weight.transpose() * r;
    const Eigen::RowVectorXd rows = run.expert_rows.head(k);
    MixtureFlags& flags = run.flags;
    const double d = static_cast<double>(features - 1), fewest = rows.minCoeff();
    flags.small_expert = fewest < 5 * (d + 2);
    flags.dead_expert = fewest < (F::kContinuous ? d + 2 : 1);
    flags.at_box = gate_->form().active > 1 && bounds_.hold_gate(at.gate, run.numbers.gate);
    flags.at_floor = flags.shape_at_bound = flags.unsupported = flags.expert_separated = false;
    Eigen::MatrixXd variance(num_outputs_of<F>(), k);
    for (Index j = 0; j < k; ++j) {
      const ExpertNumbers& expert = run.numbers.experts[static_cast<std::size_t>(j)];
      for (Index s = 0; s < at.expert.shapes; ++s) {
        const bool low = expert.shape(s) <= shapes_.lower(s) * (1 + 1e-9);
        const bool bound = low || expert.shape(s) >= shapes_.upper(s) * (1 - 1e-9);
        if (s < num_outputs_of<F>() && F::kContinuous)
          flags.at_floor = flags.at_floor || low;
        else
          flags.shape_at_bound = flags.shape_at_bound || bound;
      }
      if constexpr (F::kShapes > 0) variance.col(j) = expert.shape.head(variance.rows()).transpose();
      const Eigen::VectorXd weight = pass_.rows().weight.cwiseProduct(r.col(j));
      flags.expert_separated = flags.expert_separated || is_separated(pass_.family(), pass_.rows(), weight, expert);
    }
    for (Index c = 0; F::kContinuous && F::kShapes > 0 && c < variance.rows(); ++c)
      flags.unsupported = flags.unsupported || !experts_are_supported(rows, variance.row(c), pass_.rows().weight.sum(),
                                                                      features - 1, options_.support);
  }

  std::unique_ptr<GateObjective> gate_;
  MixturePass<F> pass_;
  const ShapeBounds& shapes_;
  const MixtureFitOptions& options_;
  Bounds bounds_;
};

}  // namespace moe::inline MOE_ABI::detail
