// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/boundary.hpp"
#include "moe/gaussian/fit/quasi_newton.hpp"
#include "moe/gaussian/fit/starts.hpp"

namespace moe::inline MOE_ABI::detail {

/// Ends of runs whose criteria are no further apart are one and the same: convergence leaves 1e-6, rounding less.
inline constexpr double kSameEnd = 1e-3;

/// The end of a run from one start, on standardised data.
struct Run {
  GaussianParameters model;
  double criterion = -std::numeric_limits<double>::infinity();
  double score_norm = 0;
  bool converged = false, interior = false;
  Index iterations = 0, start = 0;
  std::vector<double> path;
  Eigen::RowVectorXd expert_rows;
  FitFlags flags;
  int revivals_left = 2;
  double given_up = -std::numeric_limits<double>::infinity();  // highest criterion left to start an expert anew

  /// 2: interior; 1: but for an expert without support; 0: at the floor of variances, or with too few rows for a plane.
  int standing() const { return interior ? 2 : flags.collapsed() ? 0 : 1; }

  /// By standing, then by criterion; NaN last.
  bool better_than(const Run& other) const {
    if (standing() != other.standing()) return standing() > other.standing();
    return criterion > other.criterion || (!std::isnan(criterion) && std::isnan(other.criterion));
  }
};

/// The rule of FitOptions::support.
inline bool experts_are_supported(const Eigen::RowVectorXd& rows, const Eigen::RowVectorXd& variance, double num_rows,
                                  Index input_dim, double support) {
  constexpr double kNarrow = 0.2;  // ratio of standard deviations
  if (support == 0 || rows.size() == 1) return true;
  const double d = static_cast<double>(input_dim), widest = variance.maxCoeff();
  double planes = 0;  // log C(n, d + 1)
  for (double i = 0; i <= std::min(d, num_rows - 1); ++i) planes += std::log((num_rows - i) / (i + 1));
  for (Index j = 0; j < rows.size(); ++j) {
    const double ratio = std::sqrt(variance(j) / widest);
    if (!(rows(j) >= 2 * (d + 2))) return false;
    if (ratio < kNarrow && !((rows(j) - (d + 1)) * -std::log(ratio) >= support * planes)) return false;
  }
  return true;
}

/// Takes a start to a maximum: EM, then direct maximisation, with the remedies for what goes wrong on the way.
template <class = WhenUsed>
class Runner {
 public:
  Runner(const Objective& objective, const Bounds& bounds, const FitOptions& options, const Starts<>& starts)
      : objective_(objective), bounds_(bounds), options_(options), starts_(starts), borders_(objective, bounds) {}

  /// A few EM iterations. Sparse gates start dense and lose one expert after the other, as a start knows nothing of who
  /// should be active, and a point whose expert is not active would decide everything.
  Run short_run(GaussianParameters start) const {
    Run run;
    const Index k = start.num_experts(), active = objective_.form().active;
    const std::unique_ptr<Objective> annealed = objective_.clone();
    for (Index a = k; a >= active; --a) {
      annealed->set_active(a);
      Em em(*annealed, bounds_, options_.gate_step);
      EmState state = em.start(std::move(start));
      const Index iterations = a > active ? kDenseIterations * options_.short_iterations : options_.short_iterations;
      for (Index i = 0; i < iterations && em.iterate(state); ++i) ++run.iterations;
      if (a == active) finish(em, state, run);
      start = std::move(state.model);
    }
    return run;
  }

  /// To the maximum; sparse gates then move their borders, and climb again while that gains.
  Run long_run(GaussianParameters start) const {
    Run run;
    borders_.centre(start);
    climb_from(std::move(start), run);
    for (int round = 0; round < kBorderRounds; ++round) {
      GaussianParameters moved = run.model;
      if (!borders_.improve(objective_, moved)) {
        run.converged = run.converged || (borders_.sparse() && run.iterations < options_.max_iterations);
        if (run.converged) run.flags.decreased = false;
        break;
      }
      Run next = run;
      climb_from(std::move(moved), next);
      if (!(next.criterion > run.criterion)) break;
      run = std::move(next);
    }
    return run;
  }

 private:
  /// Every round must gain, or it is the last: this only bounds the time.
  static constexpr int kBorderRounds = 10;
  static constexpr int kDenseIterations = 5;  ///< times as long, while more experts are active than in the end

  void climb_from(GaussianParameters start, Run& run) const {
    run.converged = false;
    Em em(objective_, bounds_, options_.gate_step);
    EmState state = em.start(std::move(start));
    run.path.push_back(state.criterion);
    const bool direct = options_.direct != DirectMethod::Off;
    const Index before = run.iterations;
    const Index end =
        direct ? std::min(before + options_.em_iterations, options_.max_iterations) : options_.max_iterations;
    bool moved = true;
    while (moved && !run.converged && run.iterations < end) {
      moved = iterate(em, state, run);
      run.converged = converged(state, run);
    }
    run.flags.decreased = !moved;
    if (direct && run.iterations < options_.max_iterations) maximise(state, run);
    finish(em, state, run);
  }

  /// One EM iteration; every tenth looks for experts that have lost their rows.
  bool iterate(Em<>& em, EmState& state, Run& run) const {
    const bool moved = em.iterate(state);
    ++run.iterations;
    if ((run.iterations % 10 == 5 || !moved) && revive(em, state, run)) {
      run.path.clear();
      run.path.push_back(state.criterion);
      return true;
    }
    run.path.push_back(state.criterion);
    return moved;
  }

  bool revive(Em<>& em, EmState& state, Run& run) const {
    if (run.revivals_left == 0) return false;
    const Eigen::RowVectorXd rows = em.expert_rows(state);
    Index poorest = 0;
    if (rows.minCoeff(&poorest) >= 1) return false;
    --run.revivals_left;
    run.given_up = std::max(run.given_up, state.criterion);
    run.flags.revived = true;
    GaussianParameters model = state.model;
    starts_.reseed(objective_.log_density(model), objective_.rows(), poorest, model);
    state = em.start(std::move(model));
    return true;
  }

  /// Also where EM has converged, as EM rests at saddles too and does not see that the information is singular.
  void maximise(EmState& state, Run& run) const {
    run.converged = false;
    const bool newton = options_.direct == DirectMethod::Newton ||
                        (options_.direct == DirectMethod::Automatic && objective_.layout().size() <= 200);
    for (int round = 0; round < 3 && !run.converged && run.iterations < options_.max_iterations; ++round) {
      if (newton)
        climb(Newton(objective_, bounds_, state.model), state, run);
      else
        climb(QuasiNewton(objective_, bounds_, state.model), state, run);
      if (run.converged) return;
      Em em(objective_, bounds_, options_.gate_step);  // a kick, where the direct method is stuck
      state = em.start(std::move(state.model));
      for (int i = 0; i < 20 && run.iterations < options_.max_iterations; ++i)
        if (!iterate(em, state, run)) break;
    }
  }

  template <class Method>
  void climb(Method method, EmState& state, Run& run) const {
    run.converged = is_small(method.state());
    while (!run.converged && run.iterations < options_.max_iterations) {
      const bool moved = method.iterate();
      if (moved) ++run.iterations, run.path.push_back(method.state().criterion);
      run.converged = is_small(method.state()) && settled(run);
      run.flags.decreased = !moved;
      if (!moved) break;
    }
    run.flags.singular = method.state().singular;
    state.model = method.state().model;
    state.information.resize(0, 0);  // its sums belong to another point
  }

  bool is_small(const DirectState& s) const {
    return s.score_norm < options_.score_tolerance && s.remaining < options_.remaining_tolerance && !s.saddle;
  }

  /// Is the last relative change small?
  bool settled(const Run& run) const {
    if (run.path.size() < 2) return true;
    const double last = run.path.back(), change = last - run.path[run.path.size() - 2];
    return std::abs(change) / (1 + std::abs(last)) < options_.relative_tolerance;
  }

  /// The three tests for EM; the gain to come is extrapolated from the last three values (Aitken).
  bool converged(const EmState& state, const Run& run) const {
    const std::size_t size = run.path.size();
    if (size < 3 || !settled(run)) return false;
    const double last = run.path[size - 1] - run.path[size - 2], before = run.path[size - 2] - run.path[size - 3];
    const double rate = before > 0 ? last / before : 0;
    if (rate >= 1 || last * rate / (1 - rate) > options_.remaining_tolerance) return false;
    return score_norm(state) < options_.score_tolerance;
  }

  double score_norm(const EmState& state) const {
    Eigen::VectorXd score = state.score;
    objective_.held().reduce(score);
    objective_.penalty().add_to_score(state.model, objective_.layout(), score);
    const BoxedTheta box(objective_.layout(), bounds_);
    return box.score_norm(pack(state.model, objective_.layout()), score) / objective_.total_weight();
  }

  void finish(const Em<>& em, EmState& state, Run& run) const {
    if (state.information.size() == 0) state = em.start(state.model);
    run.model = state.model;
    run.criterion = state.criterion;
    run.score_norm = score_norm(state);
    run.flags.decreased = run.flags.decreased && !run.converged && run.score_norm >= options_.score_tolerance;
    run.expert_rows = em.expert_rows(state);
    const Index d = objective_.layout().num_coefficients() - 1;
    const double fewest = run.expert_rows.minCoeff();
    run.flags.at_floor = at_variance_floor(run.model, bounds_.variance_floor);
    run.flags.small_expert = fewest < 5 * (static_cast<double>(d) + 2);
    run.flags.dead_expert = fewest < static_cast<double>(d) + 2;
    run.flags.unsupported =
        !experts_are_supported(run.expert_rows, run.model.variance, objective_.total_weight(), d, options_.support);
    const bool identified = objective_.form().active > 1;  // top-1 weights are 1 whatever the size of the gate
    run.flags.at_box = identified && bounds_.hold_gate(objective_.layout(), run.model);
    // (beta, tau) and (c beta, c tau) are one model; the eigenvalue is 0 only as far as the score is.
    const bool ray = objective_.linear() || objective_.form().score.tempers_product();
    if (ray && objective_.layout().free_temperature) run.flags.singular = true;
    run.interior = run.flags.interior();
  }

  const Objective& objective_;
  Bounds bounds_;
  const FitOptions& options_;
  const Starts<>& starts_;
  BoundarySearch<> borders_;
};

}  // namespace moe::inline MOE_ABI::detail
