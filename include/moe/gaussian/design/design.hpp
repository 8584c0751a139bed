// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "moe/gaussian/design/data_frame.hpp"
#include "moe/gaussian/design/level_codes.hpp"
#include "moe/gaussian/model/data.hpp"
#include "moe/gaussian/model/input_columns.hpp"

namespace moe::inline MOE_ABI {

/// A column of x and where it comes from.
struct DesignColumn {
  std::string name = {};    ///< "weight", "groupb": the source and the level, "weight^2" or "weight:age"
  std::string source = {};  ///< column of the data frame
  std::string level = {};   ///< 1 where the source has this level, else 0; empty: the number of the source itself
  bool of_experts = true, of_gate = true;  ///< who reads it
  std::string times = {};                  ///< column of the data frame that the source is multiplied by; empty: none

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
  std::vector<std::string> offsets = {};         ///< columns of the data frame whose sum is the offset
  std::string precision = {};                    ///< column of precision weights; empty: none
  Intercept expert_intercept = Intercept::Free;  ///< Zero: y ~ x - 1
  std::vector<std::string> dropped = {};         ///< names of columns that x would have, but for linear dependence

  bool operator==(const Design&) const = default;

  /// Names of the columns of x.
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const DesignColumn& column : columns) all.push_back(column.name);
    return all;
  }

  /// What the experts and the gate read, for FitOptions; not given where they read all columns.
  InputColumns expert_inputs() const { return inputs(&DesignColumn::of_experts); }
  InputColumns gate_inputs() const { return inputs(&DesignColumn::of_gate); }

  /// Throws std::invalid_argument for a dummy that is a product or of no factor with its level, or a level given twice.
  void validate(const char* function) const;

 private:
  InputColumns inputs(bool DesignColumn::*reads) const {
    std::vector<Index> some;
    for (std::size_t c = 0; c < columns.size(); ++c)
      if (columns[c].*reads) some.push_back(static_cast<Index>(c));
    return some.size() == columns.size() ? InputColumns() : InputColumns(some);
  }
};

/// What is done with rows that miss a value of a column that is used.
enum class MissingRows {
  LeaveOut,  ///< they are left out, and counted
  Refuse     ///< std::invalid_argument
};

/// What is done with the response of another data frame.
enum class ResponseColumn {
  IfThere,  ///< y has its values; rows that miss it are left out, unless all do
  Ignored   ///< y has no rows
};

/// Rows of a data frame as a model reads them.
struct DesignRows {
  RegressionData data = {};      ///< x [n, d], y [n]; y has no rows if the data frame has no response
  std::vector<Index> rows = {};  ///< which rows of the data frame these are, ascending
  Index missing_rows = 0;        ///< rows left out, as they miss a value
};

namespace detail {

/// The columns of a data frame by name.
class ColumnNames {
 public:
  ColumnNames(const char* function, const DataFrame& frame) : function_(function), frame_(frame) {
    frame.validate(function);
    for (const DataColumn& column : frame.columns) columns_.emplace(column.name, &column);
  }

  const DataColumn* find(const std::string& name) const {
    const auto found = columns_.find(name);
    return found == columns_.end() ? nullptr : found->second;
  }
  const DataColumn& at(const std::string& name) const {
    if (const DataColumn* column = find(name)) return *column;
    std::vector<std::string_view> names;
    for (const DataColumn& column : frame_.columns) names.push_back(column.name);
    fail(function_, ": there is no column ", in_quotes(name), ", expected one of: ", shown_list(names));
  }

  /// A column of numbers that may be used as such.
  const DataColumn& numbers(const std::string& name) const {
    const DataColumn& column = at(name);
    if (!column.unusable.empty()) fail(function_, ": column ", in_quotes(name), " ", column.unusable);
    if (column.kind != ColumnKind::Number)
      fail(function_, ": column ", in_quotes(name), " holds no numbers, expected numbers");
    return column;
  }

 private:
  const char* function_;
  const DataFrame& frame_;
  std::unordered_map<std::string_view, const DataColumn*> columns_ = {};
};

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
          fail(function, ": row ", row + 1, " misses its value of ", in_quotes(used[c]->name),
               ", expected none missing");
        complete = false;
        ++counts[c];
      }
      if (complete) rows.push_back(row);
    }
    std::vector<std::string> parts;
    for (std::size_t c = 0; c < used.size(); ++c)
      if (counts[c] > 0) parts.push_back(std::to_string(counts[c]) + " in " + shown(used[c]->name, 30));
    who = shown_list(parts);
  }
};

/// The level of each of some rows; throws for one that the factor does not have.
inline std::vector<Index> level_codes(const char* function, const DesignFactor& factor, const DataColumn& source,
                                      const std::vector<Index>& rows) {
  const LevelCodes levels(factor.levels, source.kind);
  std::vector<Index> codes;
  codes.reserve(rows.size());
  for (const Index row : rows) {
    codes.push_back(levels.code(source, row));
    if (codes.back() == LevelCodes::kSeveral)
      fail(function, ": ", in_quotes(factor.source), " is ", source.level(row), " in row ", row + 1,
           ", which several levels of the fit are, expected one: ", shown_list(factor.levels));
    if (codes.back() < 0)
      fail(function, ": ", in_quotes(factor.source), " is ", in_quotes(source.level(row)), " in row ", row + 1,
           ", expected a level of the fit: ", shown_list(factor.levels));
  }
  return codes;
}

/// The first factor of each source.
inline std::unordered_map<std::string_view, const DesignFactor*> factors_by_source(const Design& design) {
  std::unordered_map<std::string_view, const DesignFactor*> factors;
  for (const DesignFactor& factor : design.factors) factors.emplace(factor.source, &factor);
  return factors;
}

/// The dummies of one factor: levels and columns of x.
inline void fill_dummies(const char* function, const DesignFactor& factor, const DataColumn& source,
                         const std::vector<std::pair<std::string_view, Index>>& dummies, DesignRows& out) {
  std::unordered_map<std::string_view, Index> places;
  for (Index l = 0; l < std::ssize(factor.levels); ++l) places.emplace(factor.levels[static_cast<std::size_t>(l)], l);
  const std::vector<Index> codes = level_codes(function, factor, source, out.rows);
  std::vector<std::vector<Index>> columns(factor.levels.size());  // of a level
  for (const auto& [level, c] : dummies) {
    out.data.x.col(c).setZero();
    columns[static_cast<std::size_t>(places.at(level))].push_back(c);
  }
  for (Index i = 0; i < std::ssize(codes); ++i)
    for (const Index c : columns[static_cast<std::size_t>(codes[static_cast<std::size_t>(i)])]) out.data.x(i, c) = 1;
}

/// The design is valid.
inline void fill_rows(const char* function, const Design& design, const ColumnNames& names, const DataColumn* response,
                      DesignRows& out) {
  const auto n = static_cast<Index>(out.rows.size()), d = static_cast<Index>(design.columns.size());
  const auto at = [&](const DataColumn& column, Index i) {
    return column.numbers[static_cast<std::size_t>(out.rows[static_cast<std::size_t>(i)])];
  };
  out.data.x.resize(n, d);
  const auto factors = factors_by_source(design);
  std::map<const DesignFactor*, std::vector<std::pair<std::string_view, Index>>> dummies;
  for (Index c = 0; c < d; ++c) {
    const DesignColumn& column = design.columns[static_cast<std::size_t>(c)];
    if (!column.level.empty()) {
      dummies[factors.at(column.source)].emplace_back(column.level, c);
      continue;
    }
    const DataColumn& source = names.at(column.source);
    const DataColumn* times = column.times.empty() ? nullptr : &names.at(column.times);
    for (Index i = 0; i < n; ++i) out.data.x(i, c) = times ? at(source, i) * at(*times, i) : at(source, i);
  }
  for (const auto& [factor, columns] : dummies) fill_dummies(function, *factor, names.at(factor->source), columns, out);
  out.data.gate_inputs = design.gate_inputs();
  out.data.expert_inputs = design.expert_inputs();
  out.data.expert_intercept = design.expert_intercept;
  out.data.offset.setZero(design.offsets.empty() ? 0 : n);
  for (const std::string& name : design.offsets)
    for (Index i = 0; i < n; ++i) out.data.offset(i) += at(names.at(name), i);
  out.data.precision.resize(design.precision.empty() ? 0 : n);
  for (Index i = 0; i < out.data.precision.size(); ++i) {
    out.data.precision(i) = at(names.at(design.precision), i);
    if (!(out.data.precision(i) >= 1e-100 && out.data.precision(i) <= 1e100))
      fail(function, ": the precision ", in_quotes(design.precision), " is ", out.data.precision(i), " in row ",
           out.rows[static_cast<std::size_t>(i)] + 1, ", expected 1e-100 to 1e100");
  }
  out.data.y.resize(response ? n : 0);
  for (Index i = 0; i < out.data.y.size(); ++i) out.data.y(i) = at(*response, i);
  for (Index i = 0; i < n; ++i)
    if (!out.data.x.row(i).allFinite() || (response && !std::isfinite(out.data.y(i))) ||
        !std::isfinite(out.data.offset_of(i)))
      fail(function, ": a number is infinite in row ", out.rows[static_cast<std::size_t>(i)] + 1,
           ", expected finite numbers");
}

}  // namespace detail

inline void Design::validate(const char* function) const {
  const auto by_source = detail::factors_by_source(*this);
  std::unordered_map<const DesignFactor*, std::unordered_set<std::string_view>> levels;
  for (const DesignFactor& factor : factors)
    for (const std::string& level : factor.levels)
      if (!levels[&factor].insert(level).second)
        fail(function, ": factor ", detail::in_quotes(factor.source), " has the level ", detail::in_quotes(level),
             " twice, expected different ones");
  for (const DesignColumn& column : columns) {
    if (column.level.empty()) continue;
    if (!column.times.empty())
      fail(function, ": column ", detail::in_quotes(column.name), " is a dummy and a product with ",
           detail::in_quotes(column.times), ", expected one of both");
    const auto factor = by_source.find(column.source);
    if (factor == by_source.end())
      fail(function, ": column ", detail::in_quotes(column.name), " is a dummy of ", detail::in_quotes(column.source),
           ", expected a factor of that name");
    if (!levels[factor->second].contains(column.level))
      fail(function, ": column ", detail::in_quotes(column.name), " is the dummy of ", detail::in_quotes(column.level),
           ", expected a level of ", detail::in_quotes(column.source), ": ",
           detail::shown_list(factor->second->levels));
  }
}

/// Rows of another data frame for the same model: the same columns with the same levels, offsets and precisions. Its
/// response may be absent or have no value, then y has no rows; else rows that miss it are left out, too, unless it is
/// ignored. Levels are compared by value where the column holds numbers or TRUE and FALSE here, as 01 and F may be read
/// there. Throws std::invalid_argument for a column that is not there or of another kind, a level that the design does
/// not know, infinite numbers, or as Design::validate() does. O(n d).
inline DesignRows design_rows(const Design& design, const DataFrame& frame, MissingRows missing = MissingRows::LeaveOut,
                              ResponseColumn use = ResponseColumn::IfThere) {
  constexpr const char* kName = "moe::design_rows";
  design.validate(kName);
  const detail::ColumnNames names(kName, frame);
  std::vector<const DataColumn*> used;
  for (const DesignColumn& column : design.columns) {
    used.push_back(column.level.empty() ? &names.numbers(column.source) : &names.at(column.source));
    if (!column.times.empty()) used.push_back(&names.numbers(column.times));
  }
  for (const std::string& name : design.offsets) used.push_back(&names.numbers(name));
  if (!design.precision.empty()) used.push_back(&names.numbers(design.precision));
  std::sort(used.begin(), used.end());
  used.erase(std::unique(used.begin(), used.end()), used.end());
  const DataColumn* response = use == ResponseColumn::IfThere ? names.find(design.response) : nullptr;
  if (response && detail::all_missing(*response, frame.num_rows)) response = nullptr;
  if (response) used.push_back(&names.numbers(design.response));
  DesignRows out{.data = {}, .rows = detail::CompleteRows(kName, frame, used, missing).rows};
  out.missing_rows = frame.num_rows - static_cast<Index>(out.rows.size());
  detail::fill_rows(kName, design, names, response, out);
  return out;
}

}  // namespace moe::inline MOE_ABI
