// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <functional>
#include <iomanip>
#include <limits>
#include <locale>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "moe/compress/second_moment.hpp"
#include "moe/kernel/quantised_matrix.hpp"

namespace moe::inline MOE_ABI {

/// How well the codes of a matrix stand for its weights W, V being what they decode to and S the second moment of what
/// the matrix reads.
struct MatrixReport {
  Index expert = 0;
  std::string name = {};  ///< as ExpertMatrix has it
  WeightFormat format = {};
  Index rows = 0;                                                  ///< of the calibration
  double output_error = std::numeric_limits<double>::quiet_NaN();  ///< sqrt(tr(D S D^T) / tr(W S W^T)), D = W - V;
                                                                   ///< NaN without rows
  double weight_error = 0;                                         ///< |D| / |W|
  double damping = 0;        ///< that it took, as a part of the mean of the diagonal; 0 where a method has none
  double scaling = 0;        ///< exponent of Awq for what this matrix reads; 0: not scaled
  bool is_fallback = false;  ///< rounded to nearest, as there were too few rows
};

/// What quantise() with a calibration has done, matrix by matrix, in their order.
struct QuantisationReport {
  std::vector<MatrixReport> matrices = {};

  /// Root of the mean of output_error^2 over matrices whose error is known; NaN if there are none.
  double output_error() const {
    double sum = 0;
    Index count = 0;
    for (const MatrixReport& matrix : matrices)
      if (!std::isnan(matrix.output_error)) sum += matrix.output_error * matrix.output_error, ++count;
    return count > 0 ? std::sqrt(sum / static_cast<double>(count)) : std::numeric_limits<double>::quiet_NaN();
  }

  /// A line for each matrix. Numbers as in C, whatever the locale of the stream.
  void write_table(std::ostream& to) const {
    std::ostringstream text;
    text.imbue(std::locale::classic());
    text << std::setw(6) << "expert"
         << "  " << std::left << std::setw(16) << "matrix" << std::setw(14) << "format" << std::right << std::setw(8)
         << "rows" << std::setw(10) << "outputs" << std::setw(10) << "weights" << std::setw(9) << "damping"
         << std::setw(9) << "scaling" << '\n';
    for (const MatrixReport& matrix : matrices) {
      text << std::setw(6) << matrix.expert << "  " << std::left << std::setw(16) << matrix.name << std::setw(14)
           << matrix.format.name() << std::right << std::setprecision(3) << std::setw(8) << matrix.rows << std::setw(10)
           << matrix.output_error << std::setw(10) << matrix.weight_error << std::setw(9) << matrix.damping
           << std::setw(9) << matrix.scaling << (matrix.is_fallback ? "  too few rows: to nearest" : "") << '\n';
    }
    to << text.str();
  }
};

struct QuantisationOptions {
  /// With fewer rows of calibration a matrix is rounded to nearest: they say nothing of most directions, and a method
  /// would fit what few tokens happened to be. The default is the group of WeightFormat::int4().
  Index least_rows = 32;
  /// Called when a matrix is done, with how many are and how many there are to do; one call at a time, from any thread.
  std::function<void(Index done, Index total)> progress = {};
  /// Filled where it is asked for, which costs as much as a product of the weights with dim rows.
  QuantisationReport* report = nullptr;
};

namespace detail {

/// output_error and weight_error of `rounded` in place of `weights`.
inline void report_errors(const PanelMatrix<F32>& weights, const PanelMatrix<F32>& rounded, const SecondMoment& moment,
                          MatrixReport& report) {
  const auto weight = [&](Index o, Index i) { return static_cast<double>(weights(o, i)); };
  const auto difference = [&](Index o, Index i) { return weight(o, i) - static_cast<double>(rounded(o, i)); };
  double error = 0, whole = 0;
  for (Index o = 0; o < weights.outputs(); ++o)
    for (Index i = 0; i < weights.inputs(); ++i) {
      error += difference(o, i) * difference(o, i);
      whole += weight(o, i) * weight(o, i);
    }
  report.weight_error = whole > 0 ? std::sqrt(error / whole) : 0;
  report.rows = moment.rows();
  if (moment.rows() == 0 || moment.empty()) return;
  const auto sum = [](const std::vector<double>& errors) {
    double total = 0;
    for (const double e : errors) total += e;
    return std::max(0.0, total);
  };
  const double before = sum(output_errors(weights.outputs(), moment, weight));
  const double after = sum(output_errors(weights.outputs(), moment, difference));
  report.output_error = before > 0 ? std::sqrt(after / before) : 0;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
