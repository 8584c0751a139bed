// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/shown.hpp"
#include "moe/gaussian/fit/flag_words.hpp"
#include "moe/gaussian/inference/criteria.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "moe/gaussian/predict/residuals.hpp"

namespace moe::inline MOE_ABI {

/// What summary() calls things.
struct SummaryOptions {
  std::vector<std::string> inputs = {};  ///< names of the columns of x, [d]; empty: x1, x2, ...
  std::string response = "y";
  StandardErrorOptions errors = {};
};

/// A line of the table of a summary.
struct SummaryLine {
  std::string label = {};  ///< "intercept", an input, "variance", ...
  ParameterEstimate parameter = {};
};

/// Lines that belong together: the gate scores of an expert, or its regression.
struct SummaryBlock {
  std::string title = {};
  std::vector<SummaryLine> lines = {};
};

/// A fit as people read it.
struct FitSummary {
  std::string headline = {};  ///< sizes
  std::string search = {};    ///< how the maximum was found
  Criteria criteria = {};
  StandardErrors errors = {};
  double level = 0.95;                    ///< of the intervals
  std::vector<SummaryBlock> blocks = {};  ///< gate, then experts
  std::vector<FlagWords> flags = {};
  /// Least, quartiles and largest of the quantile residuals: 0, 25, 50, 75, 100 %; those of a standard normal if the
  /// model is right.
  std::array<double, 5> residual_quantiles = {};
  /// Rows by tenths of P(Y <= y | x), by their weights: n / 10 each if the model is right.
  std::array<double, 10> tenths = {};
  /// Largest distance of the distribution of P(Y <= y | x) from the uniform one (Kolmogorov and Smirnov's).
  double distance = 0;

  /// All of it as text, for a terminal of 100 characters.
  std::string text() const;
};

namespace detail {

inline std::string digits(double value, int significant = 5) {
  std::array<char, 40> text;
  std::snprintf(text.data(), text.size(), "%.*g", significant, value);
  return text.data();
}
inline std::string right(const std::string& text, std::size_t width) {
  return std::string(width - std::min(width, text.size()), ' ') + text;
}
inline std::string left(const std::string& text, std::size_t width) {
  return text + std::string(width - std::min(width, text.size()), ' ');
}

/// Gate and experts, with the names of the inputs.
inline std::vector<SummaryBlock> summary_blocks(const StandardErrors& errors, const ParameterLayout& at,
                                                const std::vector<std::string>& inputs,
                                                const Eigen::RowVectorXd& expert_rows) {
  std::vector<SummaryBlock> blocks;
  const auto parameter = [&](Index i) { return errors.parameters[static_cast<std::size_t>(i)]; };
  const auto line = [&](const std::string& label, Index i) { blocks.back().lines.push_back({label, parameter(i)}); };
  const auto slope = [&](Index column, Index i) { line(inputs[static_cast<std::size_t>(column)], i); };
  const auto is_ratio = [&](Index i) { return parameter(i).name.find('/') != std::string::npos; };
  const bool ratios = at.num_gate() > 0 && at.free_temperature && is_ratio(0);
  const bool biases = ratios && at.free_biases > 0 && is_ratio(at.gate_bias(0));
  const std::string unit = !ratios ? "" : biases ? ", over the temperature" : ", inputs over the temperature";
  for (Index j = 0; j < std::max(at.free_slopes, at.free_biases); ++j) {
    blocks.push_back({"gate score of expert " + std::to_string(j + 1) + unit, {}});
    if (j < at.free_biases) line("bias", at.gate_bias(j));
    for (Index c = 0; j < at.free_slopes && c < at.gate_dim(); ++c) slope(at.gate_input(c), at.gate_slope(j) + c);
  }
  if (at.free_temperature) {
    blocks.push_back({"gate", {}});
    line("temperature", at.size() + at.num_experts);
  }
  for (Index j = 0; j < at.num_experts; ++j) {
    blocks.push_back({"expert " + std::to_string(j + 1) + ", " + digits(expert_rows(j), 4) + " rows", {}});
    if (at.has_intercept()) line("intercept", at.intercept(j));
    for (Index c = 0; c < at.expert_dim(); ++c) slope(at.expert_input(c), at.slope(j) + c);
    line("variance", at.size() + j);
  }
  return blocks;
}

/// The residuals of rows, each as often as its weight says, in ascending order.
struct WeightedResiduals {
  std::vector<double> z = {}, end = {};  // values, and the sums of weights up to each

  WeightedResiduals(const Eigen::VectorXd& all, const RegressionData& data) {
    std::vector<std::pair<double, double>> rows;
    for (Index i = 0; i < all.size(); ++i)
      if (data.weight(i) > 0) rows.emplace_back(all(i), data.weight(i));
    std::sort(rows.begin(), rows.end());
    for (const auto& [value, weight] : rows) {
      z.push_back(value);
      end.push_back((end.empty() ? 0 : end.back()) + weight);
    }
  }

  /// The one with that many before it.
  double at(double place) const {
    const auto after = std::upper_bound(end.begin(), end.end() - 1, place);
    return z[static_cast<std::size_t>(after - end.begin())];
  }
};

inline void fill_residuals(const WeightedResiduals& residuals, FitSummary& out) {
  const double n = residuals.end.back();
  for (std::size_t q = 0; q < out.residual_quantiles.size();
       ++q) {  // linear between order statistics, as R's quantile()
    const double place = static_cast<double>(q) / 4 * std::max(n - 1, 0.0), lower = std::floor(place);
    const double share = place - lower;
    out.residual_quantiles[q] = (1 - share) * residuals.at(lower) + share * residuals.at(lower + 1);
  }
  const NormalMixture normal;
  double before = 0;
  for (std::size_t i = 0; i < residuals.z.size(); ++i) {
    const double p = normal.cdf(residuals.z[i]), end = residuals.end[i];
    out.tenths[static_cast<std::size_t>(std::min(10 * p, 9.0))] += end - before;
    out.distance = std::max({out.distance, p - before / n, end / n - p});
    before = end;
  }
}

inline constexpr std::size_t kLongestLabel = 60;  // of names out of files

inline std::string summary_table(const FitSummary& summary) {
  std::size_t width = 22;
  for (const SummaryBlock& block : summary.blocks)
    for (const SummaryLine& line : block.lines) width = std::max(width, shown(line.label, kLongestLabel).size() + 3);
  std::string text = left("", width) + right("estimate", 12) + right("std. error", 12) + right("sandwich", 12) +
                     right(digits(100 * summary.level, 4) + "% interval", 26) + '\n';
  for (const SummaryBlock& block : summary.blocks) {
    text += block.title + '\n';
    for (const auto& [label, parameter] : block.lines) {
      text += left("  " + shown(label, kLongestLabel), width) + right(digits(parameter.estimate), 12);
      if (const auto& error = parameter.error)
        text += right(digits(error->observed), 12) + right(digits(error->sandwich), 12) +
                right(digits(error->lower), 13) + right(digits(error->upper), 13) + '\n';
      else
        text += right("-", 12) + right("-", 12) + right("-", 13) + right("-", 13) + '\n';
    }
  }
  return text;
}

/// A bar per tenth, '|' where it would end if the model were right.
inline std::string summary_residuals(const FitSummary& summary) {
  constexpr double kExpected = 30;  // characters
  std::string text = "quantile residuals (standard normal if the model is right): least";
  const std::array<const char*, 5> names = {"", ", 25% ", ", median ", ", 75% ", ", largest "};
  for (std::size_t q = 0; q < names.size(); ++q)
    text += (q ? names[q] : " ") + digits(summary.residual_quantiles[q], 3);
  double each = 0;
  for (const double count : summary.tenths) each += count / 10;
  text += "\nrows by tenths of P(Y <= y | x), where | is what is expected; largest distance from uniform " +
          digits(summary.distance, 2) + '\n';
  for (std::size_t t = 0; t < summary.tenths.size(); ++t) {
    const double length = kExpected * summary.tenths[t] / each;
    std::string bar(static_cast<std::size_t>(std::lround(std::min(length, 2.5 * kExpected))), '#');
    bar = left(bar, static_cast<std::size_t>(kExpected) + 1);
    if (bar[static_cast<std::size_t>(kExpected)] == ' ') bar[static_cast<std::size_t>(kExpected)] = '|';
    bar.erase(bar.find_last_not_of(' ') + 1);
    text += "  0." + std::to_string(t) + right(digits(summary.tenths[t], 9), 7) + " " + bar + '\n';
  }
  return text;
}

}  // namespace detail

inline std::string FitSummary::text() const {
  std::string out = headline + "\nlog-likelihood " + detail::digits(criteria.log_likelihood, 10) + ", AIC " +
                    detail::digits(criteria.aic, 8) + ", BIC " + detail::digits(criteria.bic, 8) + ", ICL " +
                    detail::digits(criteria.icl, 8) + ", " + std::to_string(criteria.num_parameters) + " parameters\n" +
                    search + "\n\n" + detail::summary_table(*this);
  if (!errors.explanation.empty()) out += '\n' + errors.explanation + '\n';
  for (const FlagWords& flag : flags) out += "note: " + flag.sentence + '\n';
  return out + '\n' + detail::summary_residuals(*this);
}

/// A fit for people: `summary(fit, data).text()` is a table of estimates with their standard errors where they exist,
/// information criteria, how the search went and what to distrust, and how the residuals are distributed.
///   data  those of the fit
/// Throws std::invalid_argument for names that are not as many as inputs, and as standard_errors() and criteria() do.
/// Costs what they cost, O(n k^2 d^2 + p^3).
template <class G>
FitSummary summary(const GaussianFit<G>& fit, const RegressionData& data, const SummaryOptions& options = {}) {
  const Index d = fit.model.input_dim();
  std::vector<std::string> inputs = options.inputs;
  for (Index c = 0; options.inputs.empty() && c < d; ++c) inputs.push_back('x' + std::to_string(c + 1));
  if (std::ssize(inputs) != d) fail("moe::summary: inputs has ", inputs.size(), " names, expected input_dim = ", d);
  FitSummary out{.criteria = criteria(fit, data), .errors = standard_errors(fit, data, options.errors)};
  const ParameterLayout at = layout(fit.model);
  out.level = options.errors.level;
  out.blocks = detail::summary_blocks(out.errors, at, inputs, fit.expert_rows);
  out.flags = flag_words(fit.flags);
  out.headline = detail::shown(options.response, detail::kLongestLabel) + ": " + std::to_string(fit.num_rows) +
                 " rows" + (data.weighted() ? " of weight " + detail::digits(data.total_weight(), 10) : "") + ", " +
                 std::to_string(d) + (d == 1 ? " input" : " inputs") +
                 (at.gate_inputs || at.expert_inputs ? " (" + std::to_string(at.expert_dim()) + " of the experts, " +
                                                           std::to_string(at.gate_dim()) + " of the gate)"
                                                     : "") +
                 ", " + std::to_string(at.num_experts) + (at.num_experts == 1 ? " expert" : " experts");
  out.search = std::string(fit.converged ? "converged" : "NOT converged") + " after " + std::to_string(fit.iterations) +
               " iterations; " + std::to_string(fit.starts) + (fit.starts == 1 ? " start" : " starts") +
               ", the best end reached by " + std::to_string(fit.hits) + " of " + std::to_string(fit.searches) +
               (fit.searches == 1 ? " search" : " searches");
  detail::fill_residuals({quantile_residuals(fit.model, data, data.y), data}, out);
  return out;
}

}  // namespace moe::inline MOE_ABI
