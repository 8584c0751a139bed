// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "moe/gaussian/design/data_frame.hpp"
#include "moe/gaussian/model/data.hpp"

namespace moe::inline MOE_ABI {

/// A column of x and where it comes from.
struct DesignColumn {
  std::string name = {};    ///< "weight", or "groupb": the source and the level
  std::string source = {};  ///< column of the data frame
  std::string level = {};   ///< 1 where the source has this level, else 0; empty: the number of the source itself

  bool operator==(const DesignColumn&) const = default;
};

/// A factor, whose first level is the base: the one of rows whose dummies are all 0.
struct DesignFactor {
  std::string source = {};
  std::vector<std::string> levels = {};

  bool operator==(const DesignFactor&) const = default;
};

/// How the rows of a data frame become inputs: all that predictions for another data frame need. A plain value.
struct Design {
  std::string response = {};
  std::vector<DesignColumn> columns = {};  ///< of x
  std::vector<DesignFactor> factors = {};
  std::vector<std::string> dropped = {};  ///< names of columns that x would have, but for linear dependence

  bool operator==(const Design&) const = default;

  /// Names of the columns of x.
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const DesignColumn& column : columns) all.push_back(column.name);
    return all;
  }
};

/// What is done with rows that miss a value of a column that is used.
enum class MissingRows {
  LeaveOut,  ///< they are left out, and counted
  Refuse     ///< std::invalid_argument
};

/// Rows of a data frame as a model reads them.
struct DesignRows {
  RegressionData data = {};      ///< x [n, d], y [n]; y has no rows if the data frame has no response
  std::vector<Index> rows = {};  ///< which rows of the data frame these are, ascending
  Index missing_rows = 0;        ///< rows left out, as they miss a value
};

namespace detail {

inline const DataColumn& column_of(const char* function, const DataFrame& frame, const std::string& name) {
  if (const DataColumn* column = frame.find(name)) return *column;
  std::string names;
  for (const DataColumn& column : frame.columns) names += (names.empty() ? "" : ", ") + column.name;
  fail(function, ": there is no column '", name, "', expected one of: ", names);
}

/// A column of numbers that may be used as such.
inline const DataColumn& numbers_of(const char* function, const DataFrame& frame, const std::string& name) {
  const DataColumn& column = column_of(function, frame, name);
  if (!column.unusable.empty()) fail(function, ": column '", name, "' ", column.unusable);
  if (column.kind != ColumnKind::Number) fail(function, ": column '", name, "' holds no numbers, expected numbers");
  return column;
}

inline bool all_missing(const DataColumn& column, Index num_rows) {
  for (Index row = 0; row < num_rows; ++row)
    if (!column.missing(row)) return false;
  return true;
}

/// The rows that have all values of some columns, and who misses how many.
struct CompleteRows {
  std::vector<Index> rows = {};
  std::string who = {};  // "3 in x, 1 in y"

  CompleteRows(const char* function, const DataFrame& frame, const std::vector<const DataColumn*>& used,
               MissingRows missing) {
    std::vector<Index> counts(used.size(), 0);
    for (Index row = 0; row < frame.num_rows; ++row) {
      bool complete = true;
      for (std::size_t c = 0; c < used.size(); ++c) {
        if (!used[c]->missing(row)) continue;
        if (missing == MissingRows::Refuse)
          fail(function, ": row ", row + 1, " misses its value of '", used[c]->name, "', expected none missing");
        complete = false;
        ++counts[c];
      }
      if (complete) rows.push_back(row);
    }
    for (std::size_t c = 0; c < used.size(); ++c)
      if (counts[c] > 0) who += (who.empty() ? "" : ", ") + std::to_string(counts[c]) + " in " + used[c]->name;
  }
};

/// One number of x; the level is known.
inline double design_value(const DesignColumn& column, const DataColumn& source, Index row) {
  if (column.level.empty()) return source.numbers[static_cast<std::size_t>(row)];
  return source.level(row) == column.level ? 1 : 0;
}

/// Throws for a level that the design does not know.
inline void require_known_levels(const char* function, const DesignFactor& factor, const DataColumn& source,
                                 const std::vector<Index>& rows) {
  for (const Index row : rows) {
    const std::string level = source.level(row);
    if (std::find(factor.levels.begin(), factor.levels.end(), level) != factor.levels.end()) continue;
    std::string known;
    for (const std::string& l : factor.levels) known += (known.empty() ? "" : ", ") + l;
    fail(function, ": '", factor.source, "' is '", level, "' in row ", row + 1,
         ", expected a level of the fit: ", known);
  }
}

inline void fill_rows(const char* function, const Design& design, const DataFrame& frame, const DataColumn* response,
                      DesignRows& out) {
  const auto n = static_cast<Index>(out.rows.size()), d = static_cast<Index>(design.columns.size());
  out.data.x.resize(n, d);
  for (Index c = 0; c < d; ++c) {
    const DesignColumn& column = design.columns[static_cast<std::size_t>(c)];
    const DataColumn& source = column_of(function, frame, column.source);
    for (Index i = 0; i < n; ++i)
      out.data.x(i, c) = design_value(column, source, out.rows[static_cast<std::size_t>(i)]);
  }
  out.data.y.resize(response ? n : 0);
  for (Index i = 0; i < out.data.y.size(); ++i)
    out.data.y(i) = response->numbers[static_cast<std::size_t>(out.rows[static_cast<std::size_t>(i)])];
  for (Index i = 0; i < n; ++i)
    if (!out.data.x.row(i).allFinite() || (response && !std::isfinite(out.data.y(i))))
      fail(function, ": a number is infinite in row ", out.rows[static_cast<std::size_t>(i)] + 1,
           ", expected finite numbers");
}

}  // namespace detail

/// Rows of another data frame for the same model: the same columns with the same levels. Its response may be absent
/// or have no value, then y has no rows; else rows that miss it are left out, too.
/// Throws std::invalid_argument for a column that is not there or of another kind, a level that the design does not
/// know, or infinite numbers. O(n d).
inline DesignRows design_rows(const Design& design, const DataFrame& frame,
                              MissingRows missing = MissingRows::LeaveOut) {
  constexpr const char* kName = "moe::design_rows";
  frame.validate(kName);
  std::vector<const DataColumn*> used;
  for (const DesignColumn& column : design.columns)
    used.push_back(column.level.empty() ? &detail::numbers_of(kName, frame, column.source)
                                        : &detail::column_of(kName, frame, column.source));
  const DataColumn* response = frame.find(design.response);
  if (response && detail::all_missing(*response, frame.num_rows)) response = nullptr;
  if (response) used.push_back(&detail::numbers_of(kName, frame, design.response));
  std::sort(used.begin(), used.end());
  used.erase(std::unique(used.begin(), used.end()), used.end());
  DesignRows out{.data = {}, .rows = detail::CompleteRows(kName, frame, used, missing).rows};
  out.missing_rows = frame.num_rows - static_cast<Index>(out.rows.size());
  for (const DesignFactor& factor : design.factors)
    if (const DataColumn* source = frame.find(factor.source))
      if (std::find(used.begin(), used.end(), source) != used.end())
        detail::require_known_levels(kName, factor, *source, out.rows);
  detail::fill_rows(kName, design, frame, response, out);
  return out;
}

}  // namespace moe::inline MOE_ABI
