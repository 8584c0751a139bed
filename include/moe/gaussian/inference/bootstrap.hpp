// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/relabel.hpp"
#include "moe/gaussian/model/identified.hpp"
#include "moe/gaussian/predict/sample.hpp"

namespace moe::inline MOE_ABI {

struct BootstrapOptions {
  Index replications = 200;  ///< >= 2; some thousand for the ends of 99 % intervals
  std::uint64_t seed = 1;
  double level = 0.95;      ///< of the intervals, in (0, 1)
  Index random_starts = 0;  ///< besides the start from the model itself; the better end counts
  FitOptions fit = {};      ///< of every refit: penalties as in the fit itself; floor 0: its; its progress is not used
  std::function<void(Index done, Index replications)> progress = {};  ///< called from one thread at a time

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(const char* function) const {
    if (replications < 2) fail(function, ": replications is ", replications, ", expected at least 2");
    if (!(level > 0 && level < 1)) fail(function, ": level is ", level, ", expected a number in (0, 1)");
    if (random_starts < 0) fail(function, ": random_starts is ", random_starts, ", expected at least 0");
    fit.validate(function);
  }
};

/// Spread of the replicates of a parameter.
struct BootstrapError {
  double standard_error = 0;    ///< standard deviation, divisor m - 1
  double bias = 0;              ///< mean minus estimate
  double lower = 0, upper = 0;  ///< percentile interval, linear between order statistics
};

struct BootstrapParameter {
  std::string name = {};
  double estimate = 0;
  std::optional<BootstrapError> error = {};  ///< none with less than two usable replications
};

/// What bootstrap() says. Columns are as in StandardErrors: theta (ratios where there is a temperature ray), variances,
/// and an identified temperature.
struct Bootstrap {
  std::vector<BootstrapParameter> parameters = {};
  Matrix<double> replicates = {};           ///< [replications, parameters], experts matched
  std::vector<double> log_likelihood = {};  ///< of each refit on its own sample
  /// False: a variance at the floor, or an expert without rows. An expert without support (FitOptions::support) is no
  /// reason, as to leave such replicates out would make the spread too small.
  std::vector<bool> usable = {};
  Index num_usable = 0, num_not_converged = 0;
  Index num_discarded = 0;  ///< refits that gave up an end of higher likelihood (FitFlags::discarded)

  /// The parameter with that name. Throws std::invalid_argument if there is none.
  const BootstrapParameter& operator[](const std::string& name) const {
    for (const BootstrapParameter& p : parameters)
      if (p.name == name) return p;
    fail("moe::Bootstrap: there is no parameter \"", name, "\", expected one of `parameters`");
  }
};

namespace detail {

/// The numbers of a model that a bootstrap compares, all comparable between fits.
template <class G>
class BootstrapColumns {
 public:
  explicit BootstrapColumns(const GaussianMoe<G>& model)
      : at_(layout(model)), ray_(has_temperature_ray(model)), hard_(is_hard(model) && model.num_experts() > 1) {
    const std::vector<std::string> all = identified_names(model);
    for (Index i = 0; i < at_.size(); ++i)
      if (!(ray_ && i == at_.log_temperature())) {
        kept_.push_back(i);
        names_.push_back(all[static_cast<std::size_t>(i)]);
      }
    for (Index j = 0; j < at_.num_experts; ++j) names_.push_back("variance[" + std::to_string(j) + ']');
    if (at_.free_temperature && !ray_) names_.push_back("tau");
    if (hard_) gate_norm_ = gate_of(pack(model, at_)).norm();
  }

  const std::vector<std::string>& names() const { return names_; }

  Eigen::RowVectorXd operator()(GaussianMoe<G> model) const {
    if (ray_) to_unit_temperature(model);
    Eigen::VectorXd theta = pack(model, at_);
    const double norm = hard_ ? gate_of(theta).norm() : 0;
    if (norm > 0) theta.head(at_.num_gate()) *= gate_norm_ / norm;  // a factor moves no boundary
    Eigen::RowVectorXd row(static_cast<Index>(names_.size()));
    Index column = 0;
    for (const Index i : kept_) row(column++) = theta(i);
    for (Index j = 0; j < at_.num_experts; ++j) row(column++) = model.variance(j);
    if (column < row.size()) row(column) = model.temperature;
    return row;
  }

 private:
  Eigen::VectorXd gate_of(const Eigen::VectorXd& theta) const { return theta.head(at_.num_gate()); }

  ParameterLayout at_;
  bool ray_, hard_;
  double gate_norm_ = 0;
  std::vector<Index> kept_;
  std::vector<std::string> names_;
};

/// Standard deviation and percentiles of some values, at least two.
inline BootstrapError bootstrap_error(std::vector<double> values, double estimate, double level) {
  const double n = static_cast<double>(values.size());
  double mean = 0, squares = 0;
  for (const double v : values) mean += v / n;
  for (const double v : values) squares += (v - mean) * (v - mean);
  std::sort(values.begin(), values.end());
  const auto percentile = [&](double p) {
    const double place = p * (n - 1), below = std::floor(place);
    const auto i = static_cast<std::size_t>(below);
    return values[i] + (place - below) * (values[std::min(i + 1, values.size() - 1)] - values[i]);
  };
  return {.standard_error = std::sqrt(squares / (n - 1)),
          .bias = mean - estimate,
          .lower = percentile((1 - level) / 2),
          .upper = percentile((1 + level) / 2)};
}

/// Fills `parameters` from the usable replicates.
inline void summarise(const std::vector<std::string>& names, const Eigen::RowVectorXd& estimates, double level,
                      Bootstrap& out) {
  for (Index c = 0; c < out.replicates.cols(); ++c) {
    std::vector<double> values;
    for (Index r = 0; r < out.replicates.rows(); ++r)
      if (out.usable[static_cast<std::size_t>(r)]) values.push_back(out.replicates(r, c));
    BootstrapParameter p{.name = names[static_cast<std::size_t>(c)], .estimate = estimates(c)};
    if (values.size() >= 2) p.error = bootstrap_error(std::move(values), p.estimate, level);
    out.parameters.push_back(std::move(p));
  }
}

/// One refit to a sample from the model.
template <class G>
GaussianFit<G> refit(const GaussianMoe<G>& model, RegressionData data, FitOptions options, Index starts,
                     std::uint64_t seed) {
  options.progress = {};
  options.last_slope = model.last_slope;
  data.gate_inputs = model.gate_inputs;
  data.expert_inputs = model.expert_inputs;
  data.expert_intercept = model.expert_intercept;
  GaussianFit<G> best = fit_from(data, model, options);
  if (starts == 0) return best;
  options.starts = starts;
  options.seed = seed;
  GaussianFit<G> other = moe::fit(data, model.num_experts(), model.gate, options);
  const auto standing = [](const FitFlags& flags) { return flags.interior() ? 2 : flags.collapsed() ? 0 : 1; };
  const int gain = standing(other.flags) - standing(best.flags);
  const bool better = gain > 0 || (gain == 0 && other.penalised_log_likelihood > best.penalised_log_likelihood);
  if (better) std::swap(best, other);
  const double highest = std::fmax(other.penalised_log_likelihood,  // NaN is none
                                   std::fmax(best.discarded_log_likelihood, other.discarded_log_likelihood));
  best.flags.discarded = highest > best.penalised_log_likelihood;
  best.discarded_log_likelihood = best.flags.discarded ? highest : std::numeric_limits<double>::quiet_NaN();
  return best;
}

/// Of rows without weights, whose y plays no part.
template <class G>
Bootstrap bootstrap_rows(const GaussianMoe<G>& model, const RegressionData& rows, const BootstrapOptions& options) {
  constexpr const char* kName = "moe::bootstrap";
  options.validate(kName);
  require_normal_form(kName, model);
  const BootstrapColumns<G> columns(model);
  const Index count = options.replications, width = static_cast<Index>(columns.names().size());
  Bootstrap out{.replicates = Matrix<double>(count, width)};
  out.log_likelihood.resize(static_cast<std::size_t>(count));
  std::vector<char> usable(static_cast<std::size_t>(count)), converged(usable), discarded(usable);
  const RandomField seeds(Purpose::User, options.seed, 0x626f6f74);
  std::mutex mutex;
  Index done = 0;
  parallel_for(count, [&](Index r, Index) {
    RegressionData data = rows;
    data.y = sample(model, rows, seeds.bits(r, 0));
    const GaussianFit<G> fit = refit(model, data, options.fit, options.random_starts, seeds.bits(r, 1));
    const auto s = static_cast<std::size_t>(r);
    out.replicates.row(r) = columns(relabelled(model, fit.model, rows.x));
    out.log_likelihood[s] = fit.log_likelihood;
    usable[s] = !fit.flags.collapsed();
    converged[s] = fit.converged;
    discarded[s] = fit.flags.discarded;
    const std::lock_guard lock(mutex);
    ++done;
    if (options.progress) options.progress(done, count);
  });
  out.usable.assign(usable.begin(), usable.end());
  out.num_usable = std::count(usable.begin(), usable.end(), 1);
  out.num_discarded = std::count(discarded.begin(), discarded.end(), 1);
  out.num_not_converged = std::count(converged.begin(), converged.end(), 0);
  summarise(columns.names(), columns(model), options.level, out);
  return out;
}

}  // namespace detail

/// Parametric bootstrap: refits the model to samples drawn from it at the same x [n, d], and takes standard errors and
/// percentile intervals from the replicates. Experts are matched to those of the model by the assignment of least total
/// distance (means, variances and gate weights over x), never by index. Refits start at the model.
/// It assumes that the model is right; it asks for no derivatives, so it serves where standard_errors() has none or n
/// is small. It is not valid for more experts than the truth (estimates at the boundary of what is identified), nor for
/// a separated gate, whose replicates have no finite spread. Sparse gates: a refit moves boundaries only as far as EM
/// from the model does (with one active expert not at all), so that the spread of the gate is too small, and that of
/// the experts is given the boundaries; random_starts help. Gates with one active expert are scaled to the length of
/// the model's gate.
/// The result depends on arguments alone, not on the number of threads. Costs `replications` fits, in parallel. Throws
/// as fit_from does, and for options out of range.
/// Efron & Tibshirani, "An Introduction to the Bootstrap", 1993; for mixtures: McLachlan & Peel 2000, section 2.16.
template <class G>
Bootstrap bootstrap(const GaussianMoe<G>& model, const MatrixView<double>& x, const BootstrapOptions& options = {}) {
  return detail::bootstrap_rows(model, RegressionData{.x = x}, options);
}

/// The same at the rows of data, with their offsets; a row of weight w has w outcomes: see repeated_rows().
template <class G>
Bootstrap bootstrap(const GaussianMoe<G>& model, const RegressionData& data, const BootstrapOptions& options = {}) {
  return detail::bootstrap_rows(model, repeated_rows(data), options);
}

/// The same for the model of a fit and its data.
template <class G>
Bootstrap bootstrap(const GaussianFit<G>& fit, const RegressionData& data, BootstrapOptions options = {}) {
  if (options.fit.variance_floor == 0) options.fit.variance_floor = fit.variance_floor;
  return bootstrap(fit.model, data, options);
}

/// The same for the model of a fit, and one outcome for each row of x. Throws std::invalid_argument for a weighted fit,
/// unless there are as many rows as its weights stand for.
template <class G>
Bootstrap bootstrap(const GaussianFit<G>& fit, const MatrixView<double>& x, BootstrapOptions options = {}) {
  if (fit.total_weight != static_cast<double>(fit.num_rows) && fit.total_weight != static_cast<double>(x.rows()))
    fail("moe::bootstrap: the fit stands for ", fit.total_weight,
         " rows, expected its data with their weights in place of ", x.rows(), " rows of x");
  if (options.fit.variance_floor == 0) options.fit.variance_floor = fit.variance_floor;
  return bootstrap(fit.model, x, options);
}

}  // namespace moe::inline MOE_ABI
