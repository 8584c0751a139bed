// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "moe/gaussian/design/design.hpp"
#include "moe/gaussian/design/formula.hpp"

// Long, as terms, levels, weights and dependent columns are decided in one order.
namespace moe::inline MOE_ABI {

/// A regression out of a data frame.
struct Regression {
  Design design = {};
  DesignRows rows = {};
  std::vector<std::string> notes = {};  ///< a sentence for each decision: base levels, columns and rows left out

  const RegressionData& data() const { return rows.data; }
};

namespace detail {

inline constexpr const char* kRegression = "moe::regression";

/// A column that counts as linearly dependent on those before it keeps less than this share of its length once they are
/// taken out. R's lm() has 1e-7; the information of a fit is singular earlier, from 1e-10 of the variance on.
inline constexpr double kDependent = 2e-5;

/// The levels that occur in the rows: numbers ascending, text by its bytes (as R sorts it in the C locale).
inline std::vector<std::string> levels_of(const DataColumn& column, const std::vector<Index>& rows) {
  std::vector<std::pair<double, std::string>> found;
  for (const Index row : rows) {
    const bool text = column.kind == ColumnKind::Text;
    found.emplace_back(text ? 0 : column.numbers[static_cast<std::size_t>(row)], text ? column.level(row) : "");
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  std::vector<std::string> levels;
  for (auto& [number, text] : found) {
    const DataColumn one{.name = {}, .kind = column.kind, .numbers = {number}, .texts = {text}, .unusable = {}};
    levels.push_back(one.level(0));
  }
  return levels;
}

/// A term and who reads it.
struct UsedTerm {
  FormulaTerm term = {};
  bool of_experts = true, of_gate = true;
};

/// Terms with `.` written out.
inline std::vector<FormulaTerm> all_terms(const DataFrame& frame, const ColumnNames& names, const Formula& formula,
                                          const FormulaInputs& inputs) {
  std::vector<FormulaTerm> terms = inputs.terms;
  std::unordered_set<std::string_view> taken{formula.response, formula.weights, formula.precision};
  taken.insert(formula.offsets.begin(), formula.offsets.end());
  for (const std::string& name : inputs.removed) taken.insert(names.at(name).name);
  for (const FormulaTerm& term : inputs.terms)
    if (term.times.empty()) taken.insert(term.column);
  for (const DataColumn& column : frame.columns)
    if (inputs.rest && !taken.contains(column.name)) terms.push_back({.column = column.name});
  for (const FormulaTerm& term : terms)
    if (term.column == formula.response || term.times == formula.response)
      fail(kRegression, ": ", in_quotes(formula.response), " is the response and an input, expected one of both");
  return terms;
}

/// The terms of the experts, then those of the gate alone.
inline std::vector<UsedTerm> used_terms(const DataFrame& frame, const ColumnNames& names, const Formula& formula) {
  std::vector<UsedTerm> used;
  for (const FormulaTerm& term : all_terms(frame, names, formula, formula)) used.push_back({term, true, !formula.gate});
  const std::size_t of_experts = used.size();
  if (formula.gate)
    for (const FormulaTerm& term : all_terms(frame, names, formula, *formula.gate)) {
      const auto end = used.begin() + static_cast<std::ptrdiff_t>(of_experts);
      const auto same = std::find_if(used.begin(), end, [&](const UsedTerm& u) { return u.term.same_columns(term); });
      if (same == end) {
        used.push_back({term, false, true});
        continue;
      }
      if (!term.base.empty() && same->term.base != term.base)
        fail(kRegression, ": ", in_quotes(term.column), " has the base level ", in_quotes(same->term.base),
             " in the experts and ", in_quotes(term.base), " in the gate, expected one");
      same->of_gate = true;
    }
  if (used.empty()) fail(kRegression, ": the formula has no inputs, expected at least one");
  return used;
}

/// The columns of the data frame that terms read, each once.
inline std::vector<const DataColumn*> columns_of(const ColumnNames& names, const std::vector<UsedTerm>& terms) {
  std::vector<const DataColumn*> used;
  std::unordered_set<const DataColumn*> seen;
  for (const auto& [term, of_experts, of_gate] : terms)
    for (const std::string& name : {term.column, term.times}) {
      if (name.empty()) continue;
      const DataColumn& column = names.at(name);
      if (!term.factor && !column.unusable.empty())
        fail(kRegression, ": column ", in_quotes(name), " ", column.unusable);
      if (!term.times.empty() && column.kind != ColumnKind::Number)
        fail(kRegression, ": column ", in_quotes(name), " holds no numbers, expected numbers in a product");
      if (seen.insert(&column).second) used.push_back(&column);
    }
  return used;
}

/// The columns that a term stands for.
inline void add_term(const DataColumn& column, const FormulaTerm& term, const std::vector<Index>& rows,
                     Regression& out) {
  if (!term.times.empty()) {
    const std::string name = term.times == term.column ? term.column + "^2" : term.column + ':' + term.times;
    out.design.columns.push_back({.name = name, .source = term.column, .times = term.times});
    return;
  }
  if (!term.factor && column.kind == ColumnKind::Number) {
    out.design.columns.push_back({.name = column.name, .source = column.name});
    return;
  }
  DesignFactor factor{.source = column.name, .levels = levels_of(column, rows)};
  auto& levels = factor.levels;
  if (!term.base.empty()) {
    const auto base = std::find(levels.begin(), levels.end(), term.base);
    if (base == levels.end())
      fail(kRegression, ": ", in_quotes(term.base), " is the base level of ", in_quotes(column.name),
           ", expected one of its levels: ", shown_list(levels));
    std::rotate(levels.begin(), base, base + 1);
  }
  const std::string prefix =
      term.factor && column.kind == ColumnKind::Number ? "factor(" + column.name + ')' : column.name;
  for (std::size_t l = 1; l < levels.size(); ++l)
    out.design.columns.push_back({.name = prefix + levels[l], .source = column.name, .level = levels[l]});
  if (levels.size() > 1)
    out.notes.push_back("factor " + in_quotes(column.name) + ": the base level is " + shown(levels.front(), 40) +
                        ", the others are " + shown_list(std::span(levels).subspan(1)));
  else
    out.notes.push_back(in_quotes(column.name) + " is left out: it has one level, " + shown(levels.front(), 40));
  out.design.factors.push_back(std::move(factor));
}

/// A fit to n rows cannot have n inputs, and those of a text that names the rows would fill the memory.
inline void require_fewer_columns(const Regression& out) {
  const Index columns = std::ssize(out.design.columns), rows = std::ssize(out.rows.rows);
  if (columns < rows) return;
  const auto& factors = out.design.factors;
  const auto most = std::max_element(factors.begin(), factors.end(), [](const DesignFactor& a, const DesignFactor& b) {
    return a.levels.size() < b.levels.size();
  });
  const std::string cause =
      most == factors.end()
          ? std::string()
          : "; " + in_quotes(most->source) + " has " + std::to_string(most->levels.size()) + " levels: is it an input?";
  fail(kRegression, ": ", columns, " columns of x for ", rows, " complete rows, expected fewer columns than rows",
       cause);
}

/// Columns that do not follow from a constant and those before them: Gram-Schmidt, twice, of centred columns.
inline std::vector<Index> independent_columns(const Matrix<double>& x) {
  std::vector<Index> kept;
  std::vector<Eigen::VectorXd> basis;
  for (Index c = 0; c < x.cols(); ++c) {
    Eigen::VectorXd column = x.col(c);
    const double reach = column.cwiseAbs().maxCoeff();
    if (!(reach > 0)) continue;
    column /= reach;  // no square overflows
    column.array() -= column.mean();
    const double length = column.norm();
    if (length <= 1e-13 * std::sqrt(static_cast<double>(x.rows()))) continue;  // constant: standardisation's bound
    for (int pass = 0; pass < 2; ++pass)
      for (const Eigen::VectorXd& direction : basis) column -= direction.dot(column) * direction;
    if (column.norm() <= kDependent * length) continue;
    kept.push_back(c);
    basis.push_back(column.normalized());
  }
  return kept;
}

/// Adds the columns of offsets and precisions, which are numbers and not the response.
inline void use_known_terms(const ColumnNames& names, const Formula& formula, std::vector<const DataColumn*>& used) {
  for (const std::string& name : formula.offsets) {
    if (name == formula.response)
      fail(kRegression, ": column ", in_quotes(name), " is the response and an offset, expected two columns");
    used.push_back(&names.numbers(name));
  }
  if (formula.precision.empty()) return;
  if (formula.precision == formula.response)
    fail(kRegression, ": column ", in_quotes(formula.response),
         " is the response and the precision, expected two columns");
  used.push_back(&names.numbers(formula.precision));
}

/// Leaves rows of weight 0 out, with a word; throws for weights that are none.
inline void take_weights(const DataColumn& column, Regression& out) {
  std::vector<Index> rows;
  std::vector<double> weights;
  for (const Index row : out.rows.rows) {
    const double weight = column.numbers[static_cast<std::size_t>(row)];
    if (!(weight >= 0 && std::isfinite(weight)))
      fail(kRegression, ": the weight ", in_quotes(column.name), " is ", weight, " in row ", row + 1,
           ", expected a finite number >= 0");
    if (weight == 0) continue;
    rows.push_back(row);
    weights.push_back(weight);
  }
  const std::size_t without = out.rows.rows.size() - rows.size();
  if (rows.empty())
    fail(kRegression, ": the weight ", in_quotes(column.name), " is 0 in every row, expected some above");
  if (without > 0)
    out.notes.push_back(std::to_string(without) + (without == 1 ? " row is" : " rows are") +
                        " left out, of weight 0: " + in_quotes(column.name));
  out.rows.rows = std::move(rows);
  out.rows.data.weights = Eigen::Map<const Eigen::VectorXd>(weights.data(), std::ssize(weights));
}

/// Without an intercept the dummies of a factor would be those of all its levels, which beside the bias of the gate are
/// one too many.
inline void require_numbers(const Design& design) {
  if (std::none_of(design.columns.begin(), design.columns.end(), [](const DesignColumn& c) { return c.of_experts; }))
    fail(kRegression, ": the experts have no intercept and no inputs, expected one of both");
  for (const DesignColumn& column : design.columns)
    if (column.of_experts && !column.level.empty())
      fail(kRegression, ": factor ", in_quotes(column.source),
           " is an input of experts without an intercept, expected an intercept, which its base level needs");
}

/// Takes from `reads` the columns that depend on others of its own, with a word.
inline void drop_dependent(Regression& out, bool DesignColumn::*reads, const std::string& of) {
  std::vector<Index> read;
  for (std::size_t c = 0; c < out.design.columns.size(); ++c)
    if (out.design.columns[c].*reads) read.push_back(static_cast<Index>(c));
  const std::vector<Index> kept = independent_columns(out.rows.data.x(Eigen::all, read));
  for (Index r = 0; r < std::ssize(read); ++r) {
    if (std::binary_search(kept.begin(), kept.end(), r)) continue;
    const Index c = read[static_cast<std::size_t>(r)];
    DesignColumn& column = out.design.columns[static_cast<std::size_t>(c)];
    const auto values = out.rows.data.x.col(c);
    if (out.design.expert_intercept == Intercept::Zero && reads == &DesignColumn::of_experts)
      fail(kRegression, ": ", in_quotes(column.name),
           " is constant or follows from a constant and the columns before it, expected an intercept, or a column that "
           "does not, in experts without one");
    out.notes.push_back(
        in_quotes(column.name) + " is left out" + of + ": it is " +
        (values.minCoeff() == values.maxCoeff() ? "constant" : "a linear combination of the columns before it"));
    column.*reads = false;
  }
}

/// Leaves dependent columns out, with a word: among those of the experts, and among those of the gate.
inline void drop_dependent(Regression& out, bool own_gate) {
  drop_dependent(out, &DesignColumn::of_experts, own_gate ? " of the experts" : "");
  if (own_gate)
    drop_dependent(out, &DesignColumn::of_gate, " of the gate");
  else
    for (DesignColumn& column : out.design.columns) column.of_gate = column.of_experts;
  std::vector<Index> kept;
  std::vector<DesignColumn> columns;
  for (std::size_t c = 0; c < out.design.columns.size(); ++c) {
    DesignColumn& column = out.design.columns[c];
    if (!column.of_experts && !column.of_gate) {
      out.design.dropped.push_back(std::move(column.name));
      continue;
    }
    kept.push_back(static_cast<Index>(c));
    columns.push_back(std::move(column));
  }
  if (columns.empty()) fail(kRegression, ": no input varies, expected one that does");
  out.design.columns = std::move(columns);
  out.rows.data.x = out.rows.data.x(Eigen::all, kept).eval();
}

}  // namespace detail

/// The inputs and the response that a formula picks from a data frame. Text, TRUE/FALSE and factor() become dummies
/// with the treatment contrast: one column per level but the base level. Rows that miss a value of a column that is
/// used are left out and counted, or refused. Columns that are constant, or linear combinations of a constant and
/// columns before them, are left out of the experts or the gate that read them, as R's lm() does from 1e-7 on. Rows of
/// weight 0 are left out, too (with whatever levels they alone have). What the gate and the experts read is said in the
/// data. Each decision is a sentence in `notes`. Throws
/// std::invalid_argument for a column that is not there, cannot be used or is the response and an input, a response
/// that is no number, infinite numbers, negative weights, no complete row, as many columns as rows before dependent
/// ones are left out, or no input that varies. O(n d^2).
inline Regression regression(const DataFrame& frame, const Formula& formula,
                             MissingRows missing = MissingRows::LeaveOut) {
  constexpr const char* kName = detail::kRegression;
  const detail::ColumnNames names(kName, frame);
  const DataColumn& response = names.numbers(formula.response);
  const std::vector<detail::UsedTerm> terms = detail::used_terms(frame, names, formula);
  std::vector<const DataColumn*> used = detail::columns_of(names, terms);
  used.push_back(&response);
  detail::use_known_terms(names, formula, used);
  const DataColumn* weights = formula.weights.empty() ? nullptr : &names.numbers(formula.weights);
  if (formula.weights == formula.response)
    fail(kName, ": column ", detail::in_quotes(formula.response),
         " is the response and the weights, expected two columns");
  if (weights) used.push_back(weights);
  const detail::CompleteRows complete(kName, frame, used, missing);
  Regression out;
  out.rows.rows = complete.rows;
  out.rows.missing_rows = frame.num_rows - static_cast<Index>(complete.rows.size());
  if (complete.rows.empty()) fail(kName, ": no row has all its values (", complete.who, " missing), expected some");
  if (out.rows.missing_rows > 0)
    out.notes.push_back(std::to_string(out.rows.missing_rows) + " of " + std::to_string(frame.num_rows) +
                        " rows are left out, as values are missing: " + complete.who);
  if (weights) detail::take_weights(*weights, out);
  out.design.response = formula.response;
  out.design.offsets = formula.offsets;
  out.design.precision = formula.precision;
  for (std::size_t t = 0; t < terms.size(); ++t) {
    const std::size_t before = out.design.columns.size();
    detail::add_term(names.at(terms[t].term.column), terms[t].term, out.rows.rows, out);
    for (std::size_t c = before; c < out.design.columns.size(); ++c) {
      out.design.columns[c].of_experts = terms[t].of_experts;
      out.design.columns[c].of_gate = terms[t].of_gate;
    }
  }
  out.design.expert_intercept = formula.intercept;
  if (formula.intercept == Intercept::Zero) detail::require_numbers(out.design);
  detail::require_fewer_columns(out);
  detail::fill_rows(kName, out.design, names, &response, out.rows);
  detail::drop_dependent(out, formula.gate.has_value());
  out.rows.data.gate_inputs = out.design.gate_inputs();
  out.rows.data.expert_inputs = out.design.expert_inputs();
  out.rows.data.expert_intercept = out.design.expert_intercept;
  return out;
}

}  // namespace moe::inline MOE_ABI
