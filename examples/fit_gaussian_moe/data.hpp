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

/// Adds a column of that name, or the terms of factor(name), quadratic(name), a:b or I(a^2).
inline void add_terms(const moe::DataFrame& frame, const std::string& text, const char* option,
                      std::vector<moe::FormulaTerm>& terms) {
  if (frame.find(text) || text.find_first_of("(:") == text.npos) return terms.push_back({.column = text});
  const moe::Formula formula = moe::parse_formula("y ~ " + text);
  const std::size_t expected = text.starts_with("quadratic(") ? 2 : 1;  // the name and its square
  if (formula.terms.size() != expected || formula.rest || !formula.removed.empty() || formula.gate)
    moe::fail(option, " has '", text, "', expected one name or factor(name), quadratic(name) between commas");
  terms.insert(terms.end(), formula.terms.begin(), formula.terms.end());
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
    for (const std::string& name : choice.predictors) add_terms(frame, name, "--predictors", formula.terms);
    if (!choice.gate_predictors.empty()) formula.gate.emplace();
    for (const std::string& name : choice.gate_predictors)
      add_terms(frame, name, "--gate-predictors", formula.gate->terms);
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
