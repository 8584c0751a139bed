// SPDX-License-Identifier: MIT
// The regression of fit_gaussian_moe.cpp out of a table as R, pandas and spreadsheets write it.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include <moe/gaussian.hpp>
#include <moe/io/file/data_file.hpp>

namespace fitting {

using moe::Index;

/// What is explained by what: a formula, or names; and what is known of the table.
struct Choice {
  std::string formula, response, weights, offset, precision;
  std::vector<std::string> predictors, gate_predictors;
  bool without_intercept = false;
  moe::DataFileOptions file;
};

struct Problem {
  std::string path;
  std::vector<std::string> inputs;  // names, [d]
  std::string output;               // name
  moe::DesignRows rows;
  moe::Design design;
  moe::DataFrame frame;

  const moe::RegressionData& data() const { return rows.data; }
};

inline void print_notes(const std::vector<std::string>& notes) {
  for (const std::string& note : notes) std::printf("  %s\n", note.c_str());
}

/// A column of that name, or factor(name).
inline moe::FormulaTerm term_of(const moe::DataFrame& frame, const std::string& text, const char* option) {
  if (frame.find(text) || !text.starts_with("factor(")) return {.column = text};
  const moe::Formula formula = moe::parse_formula("y ~ " + text);
  if (formula.terms.size() != 1 || formula.rest || !formula.removed.empty())
    moe::fail(option, " has '", text, "', expected one name or factor(name) between commas");
  return formula.terms[0];
}

/// The formula; else the response, which is the last column but weights, offset and precision unless named, and what is
/// named or all other columns.
inline moe::Formula formula_of(const moe::DataFrame& frame, const Choice& choice) {
  moe::Formula formula;
  if (!choice.formula.empty()) {
    formula = moe::parse_formula(choice.formula);
  } else {
    auto last = frame.columns.rbegin();
    const auto is_taken = [&](const std::string& name) {
      return name == choice.weights || name == choice.offset || name == choice.precision;
    };
    while (last + 1 != frame.columns.rend() && is_taken(last->name)) ++last;
    formula.response = choice.response.empty() ? last->name : choice.response;
    formula.rest = choice.predictors.empty();
    for (const std::string& name : choice.predictors) formula.terms.push_back(term_of(frame, name, "--predictors"));
    if (!choice.gate_predictors.empty()) formula.gate.emplace();
    for (const std::string& name : choice.gate_predictors)
      formula.gate->terms.push_back(term_of(frame, name, "--gate-predictors"));
  }
  formula.weights = choice.weights;
  formula.precision = choice.precision;
  if (choice.without_intercept) formula.intercept = moe::Intercept::Zero;
  if (!choice.offset.empty()) formula.offsets.push_back(choice.offset);
  return formula;
}

/// Reads a table and prints what was decided about it.
inline moe::DataFrame read_table(const std::string& path, const moe::DataFileOptions& options) {
  moe::DataFrame frame = moe::read_data_frame(path, options);
  std::printf("%s: %td rows, %zu columns\n", path.c_str(), frame.num_rows, frame.columns.size());
  print_notes(frame.notes);
  return frame;
}

/// The same for what is to be fitted.
inline Problem load(const std::string& path, const Choice& choice) {
  moe::DataFrame frame = read_table(path, choice.file);
  moe::Regression regression = moe::regression(frame, formula_of(frame, choice));
  print_notes(regression.notes);
  return {.path = path,
          .inputs = regression.design.names(),
          .output = regression.design.response,
          .rows = std::move(regression.rows),
          .design = std::move(regression.design),
          .frame = std::move(frame)};
}

}  // namespace fitting
