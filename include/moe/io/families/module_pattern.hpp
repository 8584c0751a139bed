// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI::detail {

/// Whether `text` is `pattern`, in which `*` stands for any characters.
constexpr bool matches(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0, star = pattern.npos, from = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++, from = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p, ++t;
    } else if (star != pattern.npos) {
      p = star + 1, t = ++from;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == pattern.npos;
}

/// Takes the part before the first dot.
constexpr std::string_view take_part(std::string_view& name) {
  const std::size_t dot = std::min(name.find('.'), name.size());
  const std::string_view part = name.substr(0, dot);
  name.remove_prefix(std::min(dot + 1, name.size()));
  return part;
}

/// Whether `name` begins with the parts of `pattern`.
constexpr bool begins_with_parts(std::string_view name, std::string_view pattern) {
  while (!pattern.empty()) {
    if (name.empty()) return false;
    if (!matches(take_part(pattern), take_part(name))) return false;
  }
  return true;
}

/// A regular expression as Python's re.match takes it: it is of the begin of a name. Characters, `.`, escaped ones and
/// \d, \w, classes, groups, `|`, `*`, `+`, `?`, `^` and `$`; no counts, no looking ahead, no references. Names are
/// matched in time proportional to pattern and name, whatever they are: both come from files.
class ModulePattern {
 public:
  /// None where the text is no such expression, longer than 4096 characters, or nested deeper than 32.
  static std::optional<ModulePattern> compile(std::string_view text) {
    constexpr std::size_t kLongest = 4096;
    ModulePattern pattern;
    pattern.rest_ = text;
    if (text.size() > kLongest) return std::nullopt;
    const auto whole = pattern.alternatives(0);
    if (!whole || !pattern.rest_.empty()) return std::nullopt;
    pattern.nodes_[whole->end].kind = Kind::Accept;
    pattern.start_ = whole->start;
    return pattern;
  }

  bool matches_begin(std::string_view name) const {
    std::vector<std::size_t> here, next, open;
    std::vector<std::size_t> seen(nodes_.size(), 0);
    for (std::size_t at = 0;; ++at) {
      if (at == 0) open = {start_};
      if (reach(open, here, seen, at, name.size())) return true;
      if (at == name.size() || here.empty()) return false;
      open.clear();
      for (const std::size_t node : here)
        if (nodes_[node].characters[static_cast<unsigned char>(name[at])]) open.push_back(nodes_[node].next);
    }
  }

 private:
  using Characters = std::bitset<256>;
  enum class Kind { Jump, Split, Characters, Begin, End, Accept };
  struct Node {
    Kind kind = Kind::Jump;
    std::size_t next = 0, other = 0;
    Characters characters = {};
  };
  /// From the first node to the last, a jump whose end is still open.
  struct Part {
    std::size_t start, end;
  };
  using MaybePart = std::optional<Part>;

  std::size_t add(Kind kind, std::size_t next = 0, std::size_t other = 0) {
    nodes_.push_back({kind, next, other, {}});
    return nodes_.size() - 1;
  }
  Part single(Kind kind, const Characters& characters = {}) {
    const std::size_t end = add(Kind::Jump), start = add(kind, end);
    nodes_[start].characters = characters;
    return {start, end};
  }
  bool take(char c) {
    if (rest_.empty() || rest_.front() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  MaybePart alternatives(int depth) {
    MaybePart whole = sequence(depth);
    while (whole && take('|')) {
      const MaybePart other = sequence(depth);
      if (!other) return std::nullopt;
      const std::size_t end = add(Kind::Jump), start = add(Kind::Split, whole->start, other->start);
      nodes_[whole->end].next = nodes_[other->end].next = end;
      whole = Part{start, end};
    }
    return whole;
  }
  MaybePart sequence(int depth) {
    const std::size_t empty = add(Kind::Jump);
    Part whole{empty, empty};
    while (!rest_.empty() && rest_.front() != '|' && rest_.front() != ')') {
      MaybePart part = atom(depth);
      if (!part) return std::nullopt;
      *part = repeated(*part);
      nodes_[whole.end].next = part->start;
      whole.end = part->end;
    }
    return whole;
  }
  Part repeated(Part part) {
    for (const char c : {'*', '+', '?'}) {
      if (!take(c)) continue;
      (void)take('?');  // as little as will do: which of the matches is not asked
      const std::size_t end = add(Kind::Jump), split = add(Kind::Split, part.start, end);
      nodes_[part.end].next = c == '?' ? end : split;
      return {c == '+' ? part.start : split, end};
    }
    return part;
  }
  MaybePart atom(int depth) {
    constexpr int kDeepest = 32;
    const char c = rest_.front();
    rest_.remove_prefix(1);
    switch (c) {
      case '(': {
        if (take('?') && !take(':')) return std::nullopt;
        if (depth == kDeepest) return std::nullopt;
        const MaybePart inner = alternatives(depth + 1);
        return take(')') ? inner : std::nullopt;
      }
      case '[':
        return char_class();
      case '.':
        return single(Kind::Characters, Characters().set());
      case '^':
        return single(Kind::Begin);
      case '$':
        return single(Kind::End);
      case '*':
      case '+':
      case '?':
      case '{':
        return std::nullopt;
      case '\\': {
        const std::optional<Characters> characters = escaped();
        return characters ? MaybePart(single(Kind::Characters, *characters)) : std::nullopt;
      }
      default:
        return single(Kind::Characters, one(c));
    }
  }

  static Characters one(char c) { return Characters().set(static_cast<unsigned char>(c)); }
  static Characters range(char first, char last) {
    Characters characters;
    for (int c = static_cast<unsigned char>(first); c <= static_cast<unsigned char>(last); ++c)
      characters.set(static_cast<std::size_t>(c));
    return characters;
  }
  std::optional<Characters> escaped() {
    if (rest_.empty()) return std::nullopt;
    const char c = rest_.front();
    rest_.remove_prefix(1);
    const Characters digits = range('0', '9'), letters = range('a', 'z') | range('A', 'Z');
    if (c == 'd') return digits;
    if (c == 'w') return digits | letters | one('_');
    if ((digits | letters)[static_cast<unsigned char>(c)]) return std::nullopt;
    return one(c);
  }
  MaybePart char_class() {
    const bool is_inverse = take('^');
    Characters characters;
    for (bool is_first = true; is_first || !take(']'); is_first = false) {
      if (rest_.empty()) return std::nullopt;
      const char c = rest_.front();
      rest_.remove_prefix(1);
      if (c == '\\') {
        const std::optional<Characters> part = escaped();
        if (!part) return std::nullopt;
        characters |= *part;
      } else if (rest_.size() >= 2 && rest_[0] == '-' && rest_[1] != ']') {
        if (rest_[1] == '\\' || rest_[1] < c) return std::nullopt;
        characters |= range(c, rest_[1]);
        rest_.remove_prefix(2);
      } else {
        characters |= one(c);
      }
    }
    return single(Kind::Characters, is_inverse ? ~characters : characters);
  }

  /// Nodes of characters that are reached from those in `open` without one, at a place of a name. True if the end of
  /// the pattern is, too.
  bool reach(std::vector<std::size_t>& open, std::vector<std::size_t>& here, std::vector<std::size_t>& seen,
             std::size_t at, std::size_t size) const {
    here.clear();
    while (!open.empty()) {
      const std::size_t node = open.back();
      open.pop_back();
      if (seen[node] == at + 1) continue;
      seen[node] = at + 1;
      const Node& n = nodes_[node];
      if (n.kind == Kind::Accept) return true;
      if (n.kind == Kind::Characters) here.push_back(node);
      const bool is_open = n.kind == Kind::Jump || n.kind == Kind::Split || (n.kind == Kind::Begin && at == 0) ||
                           (n.kind == Kind::End && at == size);
      if (is_open) open.push_back(n.next);
      if (n.kind == Kind::Split) open.push_back(n.other);
    }
    return false;
  }

  std::string_view rest_;  ///< of the text that is compiled
  std::vector<Node> nodes_;
  std::size_t start_ = 0;
};

}  // namespace moe::inline MOE_ABI::detail
