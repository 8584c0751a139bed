// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>
#include <vector>

#include "moe/gaussian/fit/separation.hpp"
#include "moe/likelihood/likelihood.hpp"
#include "moe/likelihood/mixture_run.hpp"
#include "moe/likelihood/mixture_starts.hpp"

// Long, as preparing the data, searching and reporting belong to one fit.
namespace moe::inline MOE_ABI {

namespace detail {

/// The family that another one becomes at the end of its shape, with the same noise.
template <class F>
auto limit_of(const F& family) {
  using Limit = typename F::Limit;
  if constexpr (num_noise<F>() > 0)
    return UniformNoise<Limit>(Limit(), family.low, family.high);
  else
    return Limit();
}

/// One estimation: standardised data, searches, and the way back.
template <class F, class G>
class MixtureFitting {
 public:
  using Inner = typename GateModel<G>::Inner;
  using Model = MixtureRegression<F, G>;

  /// `shape` says family, gate, sizes and what gate and experts read.
  MixtureFitting(const char* function, const ResponseData& all, Model shape, const MixtureFitOptions& options)
      : options_(checked(function, options)),
        shape_(prepared(function, std::move(shape), all)),
        data_(counted_rows(all)),
        form_(shape_.gate_model().form()),
        at_(mixture_layout(shape_)),
        by_(standardised(function)),
        blocks_(gate_rows_of(data_), by_),
        rows_(data_, by_),
        gate_(blocks_, at_.gate, form_, Penalty{.ridge = form_.active > 1 ? options.ridge : 0}),
        shapes_(shape_bounds()),
        starts_(shape_.family, data_, by_, at_, form_, Starts<>::function<Inner>(), first_shape_, shapes_,
                options.seed) {
    check(function);
  }
  MixtureFitting(const MixtureFitting&) = delete;
  MixtureFitting& operator=(const MixtureFitting&) = delete;

  /// Searches, each of its own, until enough agree.
  MixtureRun search(MixtureFit<F, G>& fit) {
    std::vector<MixtureRun> ends = limit_ends();
    if (at_.gate.num_experts == 1) {
      ends.push_back(runner().long_run(
          {GateObjective::gate_of(shape_.gate_slope, shape_.gate_bias, 1), {starts_.expert(starts_.rows().weight)}}));
      fit.starts = fit.searches = fit.hits = 1;
      return std::move(*best_of(ends));
    }
    const Index wanted = options_.wanted_hits;
    do {
      ends.push_back(one_search(fit.searches++));
      fit.starts += kStarts;
      const MixtureRun& best = *best_of(ends);
      fit.hits = std::count_if(ends.begin(), ends.end(), [&](const MixtureRun& end) {
        return end.standing() == best.standing() && std::abs(end.criterion - best.criterion) < kSameEnd;
      });
    } while (fit.hits < wanted && fit.starts + kStarts <= options_.most_starts);
    fit.flags.not_reproduced = fit.hits < wanted;
    return std::move(*best_of(ends));
  }

  /// A long run from a model on the data's scale.
  MixtureRun from(const Model& start) { return runner().long_run(to_standard(start, by_)); }
  /// As above, from numbers on standardised inputs.
  MixtureRun from(MixtureNumbers start) { return runner().long_run(std::move(start)); }

  void report(MixtureRun run, MixtureFit<F, G>& fit) {
    const bool not_reproduced = fit.flags.not_reproduced;
    fit.flags = run.flags;
    fit.flags.not_reproduced = not_reproduced;
    fit.flags.far_origin = keeps_origin(shape_.gate_model()) && origin_is_far(blocks_, shape_.gate_inputs);
    gate_.set_log_densities(densities(run.numbers));
    const Separation separation(gate_, run.numbers.gate);
    fit.flags.separated = fit.flags.at_box ? separation.exists_beyond(options_.gate_box) : separation.exists();
    fit.penalised_log_likelihood = run.criterion;
    fit.log_likelihood = run.criterion + gate_.penalty()(run.numbers.gate, at_.gate);
    fit.converged = run.converged;
    fit.iterations = run.iterations;
    fit.score_norm = run.score_norm;
    fit.path = std::move(run.path);
    fit.num_parameters = at_.size();
    fit.num_rows = data_.total_weight();
    fit.model = shape_;
    to_data(run.numbers, by_, fit.model);
    fit.expert_rows = run.expert_rows;
    sort_experts(fit);
  }

  const Model& shape() const { return shape_; }

 private:
  static constexpr Index kStarts = 12, kLong = 3;  // of a search

  static const MixtureFitOptions& checked(const char* function, const MixtureFitOptions& options) {
    options.validate(function);
    return options;
  }

  static Model prepared(const char* function, Model shape, const ResponseData& data) {
    data.validate(function);
    require_outputs<F>(function, data);
    shape.family.require(function, data);
    if constexpr (requires { shape.family.prepare(data); }) {
      shape.family.prepare(counted_rows(data));
      shape.family.require_range(function);
    }
    shape.validate(function);
    return shape;
  }

  Standardisation standardised(const char* function) const {
    ParameterLayout both = at_.gate;
    both.expert_inputs = shape_.expert_inputs;
    Standardisation by = standardisation_of(function, data_, keeps_origin(shape_.gate_model()), both);
    by.y_center = 0, by.y_scale = 1;
    return by;
  }

  ShapeBounds shape_bounds() {
    ShapeBounds bounds{Eigen::RowVectorXd(F::kShapes), Eigen::RowVectorXd(F::kShapes)};
    first_shape_.resize(F::kShapes);
    const double floor = variance_floor_of(options_.variance_floor, data_.total_weight());
    for (Index c = 0; F::kShapes > 0 && c < num_outputs_of<F>(); ++c) {
      const Eigen::VectorXd column = data_.offset.size() > 0 ? data_.output(c) - data_.offset : data_.output(c);
      const ColumnMoments y(column, data_);
      const double variance = y.constant() ? 1 : y.scale * y.scale;
      if constexpr (F::kShapes > 0)
        shape_.family.shape_bounds(variance, floor, bounds.lower.data() + c, first_shape_.data() + c,
                                   bounds.upper.data() + c);
    }
    return bounds;
  }

  void check(const char* function) const {
    if (data_.total_weight() < static_cast<double>(at_.size()))
      fail(function, ": there are ", data_.total_weight(), data_.weighted() ? " rows by their weights" : " rows",
           ", expected at least as many as parameters, ", at_.size());
    require_independent_columns(function, data_, by_, shape_.expert_inputs);
    if (at_.gate.num_experts > 1 && shape_.gate_inputs != shape_.expert_inputs)
      require_independent_columns(function, data_, by_, shape_.gate_inputs);
  }

  MixtureRunner<F> runner() const { return {shape_.family, rows_, gate_, at_, shapes_, options_}; }

  static typename std::vector<MixtureRun>::iterator best_of(std::vector<MixtureRun>& runs) {
    const auto worse = [](const MixtureRun& a, const MixtureRun& b) { return b.better_than(a); };
    return std::max_element(runs.begin(), runs.end(), worse);
  }

  MixtureRun one_search(Index search) const {
    const GaussianParameters gate =
        GateObjective::gate_of(shape_.gate_slope, shape_.gate_bias, GateModel<G>::temperature(shape_.gate));
    GaussianParameters with_inputs = gate;
    with_inputs.gate_inputs = shape_.gate_inputs;
    std::vector<MixtureRun> runs(kStarts);
    parallel_for(kStarts, [&](Index s, Index) {
      runs[static_cast<std::size_t>(s)] = runner().short_run(starts_(search * kStarts + s, with_inputs));
    });
    std::stable_sort(runs.begin(), runs.end(),
                     [](const MixtureRun& a, const MixtureRun& b) { return a.better_than(b); });
    runs.resize(kLong);
    parallel_for(kLong, [&](Index r, Index) {
      MixtureRun& run = runs[static_cast<std::size_t>(r)];
      const Index before = run.iterations;
      run = runner().long_run(std::move(run.numbers));
      run.iterations += before;
    });
    return std::move(*best_of(runs));
  }

  /// From the best mixture of the limit of the family, which is one of the family.
  std::vector<MixtureRun> limit_ends() {
    std::vector<MixtureRun> ends;
    if constexpr (requires { typename F::Limit; }) {
      if (!(shapes_.upper(F::kShapes - 1) >= 1e6)) return ends;
      auto limit = limit_of(shape_.family);
      using L = decltype(limit);
      auto shape = MixtureRegression<L, G>::zero(at_.num_experts, data_.input_dim(), limit, shape_.gate);
      shape.gate_inputs = shape_.gate_inputs;
      shape.expert_inputs = shape_.expert_inputs;
      MixtureFitting<L, G> fitting("moe::fit_mixture", data_, std::move(shape), options_);
      MixtureFit<L, G> fit;
      MixtureNumbers start = fitting.search(fit).numbers;
      for (ExpertNumbers& expert : start.experts) {
        expert.shape.conservativeResize(F::kShapes);
        expert.shape(F::kShapes - 1) = shapes_.upper(F::kShapes - 1);
      }
      ends.push_back(from(std::move(start)));
    }
    return ends;
  }

  Matrix<double> densities(const MixtureNumbers& m) const {
    MixtureRunner<F> unused = runner();
    return unused.log_densities(m);
  }

  /// Ascending by intercept; a component that an activation pins stays last, and so does noise.
  void sort_experts(MixtureFit<F, G>& fit) const {
    const Index k = at_.num_experts, predictors = at_.expert.predictors;
    const bool all = std::is_same_v<Inner, Identity> || num_noise<F>() > 0;
    std::vector<Index> order(static_cast<std::size_t>(at_.gate.num_experts));
    std::iota(order.begin(), order.end(), Index{0});
    const Model before = fit.model;
    std::stable_sort(order.begin(), order.begin() + (all ? k : k - 1), [&](Index a, Index b) {
      return before.intercept(a * predictors) < before.intercept(b * predictors);
    });
    GaussianMoe<G> gate = permuted(before.gate_model(), order);
    normalise(gate);
    fit.model.gate_slope = gate.gate_slope;
    fit.model.gate_bias = gate.gate_bias;
    fit.expert_rows = fit.expert_rows(order).eval();
    for (Index i = 0; i < k; ++i) {
      const Index j = order[static_cast<std::size_t>(i)];
      fit.model.slope.middleRows(i * predictors, predictors) = before.slope.middleRows(j * predictors, predictors);
      fit.model.intercept.segment(i * predictors, predictors) = before.intercept.segment(j * predictors, predictors);
      fit.model.shape.row(i) = before.shape.row(j);
    }
  }

  const MixtureFitOptions& options_;
  Model shape_;
  ResponseData data_;
  GateForm form_;
  MixtureLayout at_;
  Standardisation by_;
  RowBlocks blocks_;
  ExpertRows rows_;
  GateObjectiveOf<Inner> gate_;
  Eigen::RowVectorXd first_shape_ = {};
  ShapeBounds shapes_;
  MixtureStarts<F> starts_;
};

}  // namespace detail

/// Maximum likelihood for a mixture of num_experts regressions of a family, by the EM of moe/gaussian: the same steps
/// of the gate, M-steps of the family (ExpertFamily), and Newton's method on the observed information at the end. The
/// criterion never falls. Short runs from random starts and long ones from the best of them make up a search; searches
/// go on until several agree (MixtureFitOptions). Ends whose variances are above the floor and whose experts have their
/// support come first. StudentT also starts from the best mixture of Normal experts of such searches, and so is never
/// below it. A fit that does not converge is no error. The result depends on data, options and seed alone, not on the
/// number of threads.
///   moe::fit_mixture<moe::Poisson>(data, 3)
///   moe::fit_mixture(data, 2, moe::UniformNoise<moe::Normal>{}, moe::TopKGate{.k = 1}, {.seed = 7})
/// An iteration costs O(n k C^2 d^2), at most O(n P^2) for P parameters. Throws std::invalid_argument for y that the
/// family does not have (negative counts, classes out of range, ...), data that are not finite, constant or linearly
/// dependent columns of x among those that are read, weights with a sum below the number of parameters, and numbers of
/// experts, gates and options out of range.
/// Dempster, Laird & Rubin, JRSS B 1977; Jordan & Jacobs, Neural Computation 1994; Gruen & Leisch, "FlexMix version 2",
/// J. of Statistical Software 2008, which does this in R.
template <class F, class G = SoftmaxGate>
MixtureFit<F, G> fit_mixture(const ResponseData& data, Index num_experts, const F& family = {}, const G& gate = {},
                             const MixtureFitOptions& options = {}) {
  const auto started = std::chrono::steady_clock::now();
  constexpr const char* kName = "moe::fit_mixture";
  data.validate(kName);
  if (num_experts < 1) fail(kName, ": num_experts is ", num_experts, ", expected at least 1");
  detail::require_outputs<F>(kName, data);
  family.require(kName, data);
  auto shape = MixtureRegression<F, G>::zero(num_experts, data.input_dim(), family, gate);
  shape.gate_inputs = data.gate_inputs;
  shape.expert_inputs = data.expert_inputs;
  detail::MixtureFitting<F, G> fitting(kName, data, std::move(shape), options);
  MixtureFit<F, G> fit;
  fitting.report(fitting.search(fit), fit);
  fit.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return fit;
}

/// The same from one given model, by a single long run: for refits, simulations that start near the truth, and from the
/// mixture_of() a Gaussian fit. Family, gate and inputs are those of the model. Errors as for fit_mixture, and for a
/// model that is bad or not in normal form.
template <class F, class G>
MixtureFit<F, G> fit_mixture_from(const ResponseData& data, const MixtureRegression<F, G>& start,
                                  const MixtureFitOptions& options = {}) {
  const auto started = std::chrono::steady_clock::now();
  constexpr const char* kName = "moe::fit_mixture_from";
  detail::require_normal_mixture(kName, start);
  detail::check_mixture(kName, start, data);
  ResponseData rows = data;
  rows.gate_inputs = start.gate_inputs;
  rows.expert_inputs = start.expert_inputs;
  detail::MixtureFitting<F, G> fitting(kName, rows, start, options);
  MixtureFit<F, G> fit;
  fitting.report(fitting.from(start), fit);
  fit.starts = fit.searches = fit.hits = 1;
  fit.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return fit;
}

template <class F, class G>
Criteria criteria(const MixtureFit<F, G>& fit, const ResponseData& data) {
  return criteria(fit.model, data);
}

}  // namespace moe::inline MOE_ABI
