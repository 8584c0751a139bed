// SPDX-License-Identifier: MIT
// Predictions of fit_gaussian_moe.cpp for the rows of a table.
#pragma once

#include <array>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include <moe/gaussian.hpp>
#include <moe/io/file/csv.hpp>
#include <moe/io/saved_fit.hpp>

#include "data.hpp"

namespace fitting {

/// A line per row: its number in the table, mean, standard deviation, 5, 50 and 95 % quantiles, the expert with the
/// largest weight, and the bounds of intervals if there are any.
template <class Gate>
void write_predictions(const moe::GaussianMoe<Gate>& model, const moe::DesignRows& rows, const std::string& path,
                       const moe::PredictionIntervals& intervals = {}) {
  const moe::Moments moments = moe::predict_moments(model, rows.data);
  const moe::Matrix<double> quantiles = moe::predict_quantiles(model, rows.data, std::array{0.05, 0.5, 0.95});
  const std::vector<Index> experts = moe::predict_expert(model, rows.data.x);
  moe::Matrix<double> table(rows.data.num_rows(), 7);
  for (Index i = 0; i < table.rows(); ++i) {
    const auto s = static_cast<std::size_t>(i);
    table.row(i) << static_cast<double>(rows.rows[s] + 1), moments.mean(i), std::sqrt(moments.variance(i)),
        quantiles.row(i), static_cast<double>(experts[s] + 1);
  }
  std::vector<std::string> names = {"row", "mean", "sd", "q05", "q50", "q95", "expert"};
  if (intervals.lower.size() > 0) {
    names.insert(names.end(), {"lower", "upper"});
    table.conservativeResize(Eigen::NoChange, 9);
    table.rightCols(2) << intervals.lower, intervals.upper;
  }
  moe::write_csv(path, names, table);
  std::printf("predictions: %s, %td rows\n", path.c_str(), table.rows());
}

/// Intervals that hold y with that probability, the uncertainty of the parameters included; says what is taken as
/// known.
template <class Gate>
moe::PredictionIntervals intervals_of(const moe::GaussianFit<Gate>& fit, const moe::RegressionData& data,
                                      const moe::DesignRows& rows, double level) {
  moe::PredictionIntervals intervals = moe::prediction_intervals(fit, data, rows.data, {.level = level});
  std::printf("intervals: %g%%, of %td parameters' uncertainty%s%s\n", 100 * level, intervals.drawn,
              intervals.explanation.empty() ? "" : "; the others are taken as known: ", intervals.explanation.c_str());
  return intervals;
}

/// The rows with all inputs, whether they have a response or not.
inline moe::DesignRows rows_to_predict(const moe::Design& design, const moe::DataFrame& frame) {
  return moe::design_rows(design, frame, moe::MissingRows::LeaveOut, moe::ResponseColumn::Ignored);
}

/// How well a saved fit explains the rows that have a response.
template <class Gate>
void print_likelihood(const moe::SavedFit<Gate>& saved, const moe::DataFrame& frame) try {
  const moe::DesignRows rows = moe::design_rows(saved.design, frame);
  if (rows.data.y.size() == 0) return;
  std::printf("log-likelihood per row %.6f of %td rows, in the fit %.6f\n",
              moe::log_likelihood(saved.model, rows.data) / static_cast<double>(rows.data.num_rows()),
              rows.data.num_rows(), saved.log_likelihood / saved.total_weight);
} catch (const std::invalid_argument& error) {  // predictions need no response
  std::printf("no log-likelihood: %s\n", error.what());
}

/// Predicts the rows of a table by a saved fit.
template <class Gate>
void predict_saved(const std::string& fit_path, const Gate& gate, const std::string& data_path,
                   const moe::DataFileOptions& options, const std::string& predictions_path) {
  const moe::SavedFit<Gate> saved = moe::load_fit(fit_path, gate);
  const moe::DataFrame frame = read_table(data_path, options);
  const moe::DesignRows rows = rows_to_predict(saved.design, frame);
  std::printf("%s: fitted to %td rows, %td of these are predicted, %td miss an input\n", fit_path.c_str(),
              saved.num_rows, rows.data.num_rows(), rows.missing_rows);
  if (rows.data.num_rows() == 0) moe::fail_environment("'", data_path, "' has no row with all inputs");
  print_likelihood(saved, frame);
  write_predictions(saved.model, rows, predictions_path);
}

}  // namespace fitting
