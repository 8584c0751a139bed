// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/gaussian/model/input_columns.hpp"

namespace moe::inline MOE_ABI {

/// A column on the right-hand side of a formula.
struct FormulaTerm {
  std::string column = {};
  bool factor = false;    ///< factor(column): each of its values is a level, also if they are numbers
  std::string base = {};  ///< factor(column, ref = base): the level without a dummy; empty: the first one
  /// Of a product of two columns of numbers the other one; empty: no product.
  std::string times = {};

  bool operator==(const FormulaTerm&) const = default;

  /// Do both stand for the same columns, but for the base level? a:b is b:a.
  bool same_columns(const FormulaTerm& other) const {
    return factor == other.factor &&
           ((column == other.column && times == other.times) || (column == other.times && times == other.column));
  }
};

/// A sum of terms: what a part of a model reads.
struct FormulaInputs {
  std::vector<FormulaTerm> terms = {};    ///< what is named, in this order
  bool rest = false;                      ///< `.`: all other columns follow
  std::vector<std::string> removed = {};  ///< `- name`: but these
};

/// response ~ inputs | gate: what is explained by what.
struct Formula : FormulaInputs {
  std::string response = {};
  Intercept intercept = Intercept::Free;   ///< of the experts; Zero: `- 1`, `+ 0`
  std::optional<FormulaInputs> gate = {};  ///< inputs of the gate; none: those of the experts
  std::vector<std::string> offsets = {};   ///< offset(name): columns whose sum is RegressionData::offset
  std::string weights = {};  ///< column of frequency weights (RegressionData::weights); empty: none. Not in the text
  std::string precision =
      {};  ///< column of precision weights (RegressionData::precision); empty: none. Not in the text
};

namespace detail {

/// Reads a formula from left to right; knows it for its messages.
class FormulaParser {
 public:
  explicit FormulaParser(std::string_view text) : text_(text), rest_(text) {}

  Formula parse() {
    Formula formula;
    formula.response = name("the name of the response");
    if (!take("~")) refuse("'~' after the response");
    experts_ = &formula;
    sum(formula);
    experts_ = nullptr;
    if (take("|")) gate(formula);
    skip();
    if (!rest_.empty()) refuse("'+', '-' or the end");
    return formula;
  }

 private:
  void sum(FormulaInputs& inputs) {
    bool minus = take("-");
    do term(inputs, minus);
    while ((minus = take("-")) || take("+"));
  }

  void term(FormulaInputs& inputs, bool minus) {
    skip();
    if (rest_.starts_with('1') || rest_.starts_with('0')) {
      const bool intercept = (rest_.front() == '1') != minus;
      rest_.remove_prefix(1);
      if (!experts_ && !intercept) fail(label(), "has no intercept of the gate, expected one: gates have one");
      if (experts_) experts_->intercept = intercept ? Intercept::Free : Intercept::Zero;
      return;
    }
    if (!minus && rest_.starts_with('.') && !in_name(1)) {
      rest_.remove_prefix(1);
      inputs.rest = true;
      return;
    }
    FormulaTerm read{.column = name("the name of a column, '.' or one of factor(), quadratic() and I()")};
    if (take("(")) {
      if (read.column == "offset") return offset(minus);
      if (read.column == "quadratic") return quadratic(inputs, minus);
      function(read);
    } else if (take(":")) {
      read.times = name("the name of a column");
      if (read.times == read.column) fail(label(), "has '", read.column, "' by itself, expected I(name^2)");
    }
    for (const char* sign : {":", "*", "^", "/", "%in%", "("})
      if (take(sign))
        fail(label(), "has '", sign, "' behind a term, expected sums of terms: of products there are a:b and ",
             "I(a^2) of columns of numbers; put others into a column");
    minus ? remove(inputs, read) : add(inputs, std::move(read));
  }

  static void add(FormulaInputs& inputs, FormulaTerm term) {
    const auto same = [&](const FormulaTerm& t) { return t.base == term.base && t.same_columns(term); };
    if (std::none_of(inputs.terms.begin(), inputs.terms.end(), same)) inputs.terms.push_back(std::move(term));
  }

  /// A column goes without its products, as in R, but with its dummies.
  static void remove(FormulaInputs& inputs, const FormulaTerm& term) {
    std::erase_if(inputs.terms, [&](const FormulaTerm& t) {
      return term.times.empty() ? t.column == term.column && t.times.empty() : t.same_columns(term);
    });
    if (term.times.empty()) inputs.removed.push_back(term.column);
  }

  /// quadratic(a, b), behind the bracket: the names, then their squares and products.
  void quadratic(FormulaInputs& inputs, bool minus) {
    if (minus) fail(label(), "takes quadratic() away, expected its terms one by one");
    std::vector<std::string> names;
    do {
      names.push_back(name("the name of a column"));
      if (std::find(names.begin(), names.end() - 1, names.back()) != names.end() - 1)
        fail(label(), "has '", names.back(), "' twice in quadratic(), expected different names");
    } while (take(","));
    if (!take(")")) refuse("',' or ')'");
    for (const std::string& column : names) add(inputs, {.column = column});
    for (std::size_t a = 0; a < names.size(); ++a)
      for (std::size_t b = a; b < names.size(); ++b) add(inputs, {.column = names[a], .times = names[b]});
  }

  /// I(name^2) or I(name * name), behind the bracket.
  void product(FormulaTerm& read) {
    read = {.column = name("the name of a column")};
    if (take("^")) {
      if (!take("2")) refuse("2, the only power that is known,");
      read.times = read.column;
    } else if (take("*")) {
      read.times = name("the name of a column");
    } else {
      refuse("'^2' or '* name'");
    }
    if (!take(")")) refuse("')'");
  }

  /// offset(name), behind the bracket.
  void offset(bool minus) {
    if (minus) fail(label(), "takes an offset away, expected it to be left out");
    if (!experts_) fail(label(), "has an offset of the gate, expected it to the left of '|': offsets are of experts");
    const std::string column = name("the name of a column");
    std::vector<std::string>& offsets = experts_->offsets;
    if (std::find(offsets.begin(), offsets.end(), column) != offsets.end())
      fail(label(), "has the offset '", column, "' twice, expected it once");
    offsets.push_back(column);
    if (!take(")")) refuse("')'");
  }

  /// factor(name) or factor(name, ref = level), behind the bracket; or I().
  void function(FormulaTerm& read) {
    if (read.column == "I") return product(read);
    if (read.column != "factor")
      fail(label(), "calls ", read.column,
           "(), expected factor(), quadratic(), I(), offset() or names: put transformed numbers into a column");
    read = {.column = name("the name of a column"), .factor = true};
    if (take(",")) {
      if (!take("ref") || !take("=")) refuse("ref = level");
      skip();
      read.base = rest_.starts_with('"') || rest_.starts_with('\'') ? quoted(rest_.front()) : until(",)");
      if (read.base.empty()) refuse("a level");
    }
    if (!take(")")) refuse("')'");
  }

  /// The inputs of the gate, unless they are those of the experts.
  void gate(Formula& experts) {
    FormulaInputs inputs;
    sum(inputs);
    const auto sorted = [](auto names) { return std::sort(names.begin(), names.end()), names; };
    const auto columns = [&](const FormulaInputs& f) {
      std::vector<std::array<std::string, 3>> names;
      for (const FormulaTerm& t : f.terms)
        names.push_back({std::min(t.column, t.times), std::max(t.column, t.times), t.factor ? "() " + t.base : ""});
      return sorted(std::move(names));
    };
    if (columns(inputs) != columns(experts) || inputs.rest != experts.rest ||
        sorted(inputs.removed) != sorted(experts.removed))
      experts.gate = std::move(inputs);
  }

  /// A name: letters, digits, '.', '_' and all that is no ASCII; anything between backticks.
  std::string name(const char* expected) {
    skip();
    if (rest_.starts_with("``")) refuse(expected);
    if (rest_.starts_with('`')) return quoted('`');
    std::size_t length = 0;
    while (in_name(length)) ++length;
    if (length == 0) refuse(expected);
    return take_text(length);
  }
  bool in_name(std::size_t place) const {
    if (place >= rest_.size()) return false;
    const char c = rest_[place];
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           static_cast<unsigned char>(c) >= 128;
  }
  std::string quoted(char quote) {
    const std::size_t end = rest_.find(quote, 1);
    if (end == rest_.npos) refuse("a quote that ends");
    std::string text(rest_.substr(1, end - 1));
    rest_.remove_prefix(end + 1);
    return text;
  }
  std::string until(const char* ends) {
    std::string text = take_text(std::min(rest_.find_first_of(ends), rest_.size()));
    text.erase(text.find_last_not_of(" \t") + 1);
    return text;
  }
  std::string take_text(std::size_t length) {
    std::string text(rest_.substr(0, length));
    rest_.remove_prefix(length);
    return text;
  }
  void skip() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\r\n"), rest_.size())); }
  bool take(std::string_view token) {
    skip();
    if (!rest_.starts_with(token)) return false;
    rest_.remove_prefix(token.size());
    return true;
  }

  std::string label() const { return "moe::parse_formula: '" + std::string(text_) + "' "; }
  [[noreturn]] void refuse(const char* expected) {
    skip();
    fail(label(), "has ", rest_.empty() ? "its end" : "'" + std::string(rest_) + "'", " where ", expected,
         " is expected");
  }

  std::string_view text_, rest_;
  Formula* experts_ = nullptr;  // while theirs are read
};

}  // namespace detail

/// Reads a formula in the notation of R:  y ~ x + factor(group, ref = "b") + `a name`,  y ~ . - id
///   name              a column: a number, or the dummies of text and of TRUE and FALSE
///   factor(name)      its dummies, also if its values are numbers; with ref = level another base level than the first
///   a:b  I(a * b)     the product of two columns of numbers, in the column a:b
///   I(a^2)            the square of one, a^2
///   quadratic(a, b)   a + b + I(a^2) + a:b + I(b^2): a polynomial of degree 2, so that y ~ x | quadratic(x) has
///                     a quadratic gate
///   offset(name)      a column that is added to the mean of every expert, with a coefficient of 1 that is known
///   .  - name         all columns but the response and offsets, and without some
///   1                 nothing, as there is an intercept; alone, no inputs
///   - 1, + 0          no intercept of the experts: they go through 0. Gates have one
///   experts | gate    inputs of the gate; without them it reads those of the experts
/// Throws std::invalid_argument with the formula and what was expected for anything else: other interactions and
/// functions, no intercept of the gate.
/// Wilkinson & Rogers, "Symbolic description of factorial models for analysis of variance", Applied Statistics 1973;
/// quadratic gates: Akbarian et al., "Quadratic gating mixture of experts: statistical insights into self-attention"
/// (arXiv:2410.11222).
inline Formula parse_formula(std::string_view text) { return detail::FormulaParser(text).parse(); }

}  // namespace moe::inline MOE_ABI
