// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI {

/// Does the first line name the columns?
enum class HeaderLine {
  Found,  ///< as its fields and those below them say; refused where both may be
  Yes,
  Absent  ///< columns are called V1, V2, ...
};

/// What is known of a data file; what is not is found out.
struct DataFileOptions {
  char separator = 0;  ///< ',', ';', '\t', or ' ' for runs of blanks; 0: found
  char decimal = 0;    ///< '.' or ','; 0: found
  HeaderLine header = HeaderLine::Found;
  char comment = '#';  ///< begins lines that are passed over, unless they are rows; 0: none are
  std::vector<std::string> missing = {
      "NA",  "N/A",  "n/a",  "#N/A", "<NA>", "NaN",
      "nan", "NULL", "null", "None", "."};  ///< values that are missing, as are empty ones

  bool is_missing(std::string_view text) const {
    return text.empty() || std::find(missing.begin(), missing.end(), text) != missing.end();
  }
};

}  // namespace moe::inline MOE_ABI
