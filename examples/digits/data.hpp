// SPDX-License-Identifier: MIT
// Reads the handwritten digits of examples/data/digits.csv.
#pragma once

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/matrix.hpp>

namespace digits {

inline constexpr moe::Index kPixels = 64, kClasses = 10;

struct Images {
  moe::Matrix<float> pixels;       // [num_images, 64], 0 to 1
  std::vector<moe::Index> labels;  // [num_images]
};

struct Data {
  Images train, test;  // row i of the file is a test row where i % 4 == 3
};

inline Images to_images(const std::vector<std::vector<int>>& rows) {
  Images images{moe::Matrix<float>(static_cast<moe::Index>(rows.size()), kPixels), {}};
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (std::size_t p = 0; p < kPixels; ++p)
      images.pixels(static_cast<moe::Index>(r), static_cast<moe::Index>(p)) = static_cast<float>(rows[r][p]) / 16.0f;
    images.labels.push_back(rows[r][kPixels]);
  }
  return images;
}

/// A field that is a whole number from 0 to `most`, else -1.
inline int to_number(const std::string& field, int most) {
  int value = -1;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
  return error == std::errc() && end == field.data() + field.size() && value >= 0 && value <= most ? value : -1;
}

/// Throws std::runtime_error if the file is missing or a line is not 64 grey levels and a class.
inline Data load(const std::string& path) {
  std::ifstream file(path);
  if (!file) moe::fail_environment("digits: cannot open ", path);
  std::vector<std::vector<int>> train, test;
  std::string line;
  for (std::size_t i = 0; std::getline(file, line); ++i) {
    std::istringstream fields(line);
    std::vector<int> row;
    for (std::string field; std::getline(fields, field, ',');)
      row.push_back(to_number(field, std::ssize(row) < kPixels ? 16 : static_cast<int>(kClasses) - 1));
    if (row.size() != kPixels + 1 || std::ranges::count(row, -1) > 0)
      moe::fail_environment("digits: line ", i + 1, " of ", path, " is not 64 grey levels 0 to 16 and a class 0 to 9");
    (i % 4 == 3 ? test : train).push_back(row);
  }
  if (train.empty() || test.empty()) moe::fail_environment("digits: ", path, " has fewer than 4 lines");
  return {to_images(train), to_images(test)};
}

}  // namespace digits
