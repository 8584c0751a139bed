// SPDX-License-Identifier: MIT
// Reads the regression of fit_gaussian_moe.cpp from a CSV file whose last column is the output.
#pragma once

#include <string>
#include <vector>

#include <moe/gaussian.hpp>
#include <moe/io/file/csv.hpp>

namespace fitting {

using moe::Index;

struct Problem {
  std::string path;
  std::vector<std::string> inputs;  // names, [d]
  std::string output;               // name
  moe::RegressionData data;
};

/// Throws std::runtime_error for a file that is no table, or has a single column.
inline Problem load(const std::string& path) {
  const moe::CsvTable table = moe::read_csv(path);
  const Index d = table.values.cols() - 1;
  if (d < 1) moe::fail_environment("'", path, "' has one column, expected inputs and, last, the output");
  return {.path = path,
          .inputs = {table.names.begin(), table.names.end() - 1},
          .output = table.names.back(),
          .data = {.x = table.values.leftCols(d), .y = table.values.col(d)}};
}

}  // namespace fitting
