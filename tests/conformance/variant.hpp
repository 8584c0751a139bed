// SPDX-License-Identifier: MIT
// Files about routers, losses and rules of dispatch: each of their variants is a name, "<variant>.<tensor>" for its
// tensors and "variant.<variant>" for its parameters, in JSON. A file may hold anything: every tensor is checked for
// existence, type and shape before it is used, and no tensor may stay unread or uncompared without being named.
#pragma once

#include <cstring>
#include <moe/io/file/json_fields.hpp>
#include <moe/io/file/json_text.hpp>
#include <moe/io/file/message.hpp>
#include <set>
#include <sstream>

#include "run.hpp"

namespace check {

inline constexpr Index kAny = -1;
inline constexpr Index kMostNumbers = Index{1} << 26;  // of what a variant makes: tokens times experts, and the like

/// Throws std::runtime_error unless [rows, columns] can be worked with: what a broken file asks for may not fit memory.
inline void require_size(const std::string& what, Index rows, Index columns) {
  if (rows < 1 || columns < 1 || rows > kMostNumbers / columns)
    moe::fail_environment(what, " would be [", rows, ", ", columns, "], expected 1 to 2^26 numbers");
}

class Variant {
 public:
  Variant(const moe::Checkpoint& file, std::string name) : file_(file), name_(std::move(name)) {
    const auto found = file.metadata().find("variant." + name_);
    if (found == file.metadata().end()) return;
    // Deeper values than lists mean nothing here, and writing them in a message would recurse.
    facts_ = moe::detail::parse_json("metadata 'variant." + name_ + "'", found->second, /*most_depth=*/4);
    if (!facts_.is_object()) moe::fail_environment("metadata 'variant.", name_, "' is not a JSON object");
  }

  const std::string& name() const { return name_; }

  bool has(const std::string& tensor) const { return file_.contains(full(tensor)); }
  /// Throws std::runtime_error where the tensor is missing or empty.
  std::vector<Index> shape(const std::string& tensor) const {
    const moe::TensorView view = file_.at(full(tensor));
    Index size = 1;
    for (const Index extent : view.shape) {
      if (extent < 1 || extent > kMostNumbers / size) refuse(tensor, "1 to 2^26 numbers");
      size *= extent;
    }
    return view.shape;
  }
  Index last_extent(const std::string& tensor) const {
    const auto extents = shape(tensor);
    return extents.empty() ? 1 : extents.back();
  }

  /// Inputs. A tensor [.., columns] as a matrix, one of any shape as a list, one of floating point or of integers.
  Matrix<float> matrix(const std::string& tensor, Index rows = kAny, Index columns = kAny) {
    const Index found = last_extent(tensor);
    const Index size = file_.at(full(tensor)).size();
    if ((columns != kAny && found != columns) || (rows != kAny && size / found != rows))
      refuse(tensor, "[" + text_of(rows) + ", " + text_of(columns) + "]");
    const std::vector<float> values = read<float>(tensor);
    return Eigen::Map<const Matrix<float>>(values.data(), size / found, found);
  }
  std::vector<float> numbers(const std::string& tensor, Index size = kAny) { return list<float>(tensor, size); }
  std::vector<std::int64_t> integers(const std::string& tensor, Index size = kAny) {
    return list<std::int64_t>(tensor, size);
  }
  /// A mask of `size` tokens, of any type.
  std::vector<std::uint8_t> mask(const std::string& tensor, Index size) {
    std::vector<std::uint8_t> result;
    if (moe::is_floating(file_.at(full(tensor)).dtype))
      for (const float value : numbers(tensor, size)) result.push_back(value != 0);
    else
      for (const std::int64_t value : integers(tensor, size)) result.push_back(value != 0);
    return result;
  }

  /// Parameters. Numbers may be written as text: "1.25", or "(0.3, 0.5)", a list.
  bool knows(const std::string& key) const { return fields().has(key); }
  bool flag(const std::string& key, bool otherwise) const { return fields().flag(key, otherwise); }
  std::string text(const std::string& key, const std::string& otherwise = "") const {
    return fields().has(key) ? fields().text(key) : otherwise;
  }
  double number(const std::string& key, double otherwise) const { return numbers_in(key, otherwise).front(); }
  Index integer(const std::string& key, Index otherwise) const {
    const double value = number(key, static_cast<double>(otherwise));
    if (!(std::abs(value) < 1e9) || value != std::floor(value))
      moe::fail_environment("parameter '", key, "' is ", value, ", expected a whole number below 1e9");
    return static_cast<Index>(value);
  }

  /// All numbers in a text, a list of numbers, or a number.
  std::vector<double> numbers_in(const std::string& key, double otherwise) const {
    if (!knows(key)) return {otherwise};
    std::string text = facts_[key].is_string() ? facts_[key].get<std::string>() : facts_[key].dump();
    for (char& c : text) c = std::strchr("+-.eE0123456789", c) ? c : ' ';
    std::istringstream stream(text);
    std::vector<double> found;
    for (double value = 0; stream >> value;) found.push_back(value);
    if (found.empty() || !std::isfinite(found.front()) || !stream.eof())
      moe::fail_environment("parameter '", key, "' is ", moe::detail::in_quotes(facts_[key].dump()),
                            ", expected a number");
    return found;
  }

  /// Comparisons, of tensors that are there. Throw std::runtime_error for another type or shape than ours.
  void near(const std::string& tensor, const Matrix<float>& ours, double tolerance = kForward) {
    if (!has(tensor)) return;
    const auto reference = matrix(tensor, ours.rows(), ours.cols());
    note_compared(tensor);
    report_.add_values(label(tensor), span_of(ours), span_of(reference), tolerance);
  }
  template <class S>
  void near(const std::string& tensor, const std::vector<S>& ours, double tolerance = kForward) {
    if (!has(tensor)) return;
    const auto reference = numbers(tensor, static_cast<Index>(ours.size()));
    note_compared(tensor);
    report_.add_values(label(tensor), span_of(ours), span_of(reference), tolerance);
  }
  void near(const std::string& tensor, double ours) { near(tensor, std::vector<double>{ours}); }
  /// Integers, which must be equal.
  void same(const std::string& tensor, const std::vector<std::int64_t>& ours) {
    if (!has(tensor)) return;
    const auto reference = integers(tensor, static_cast<Index>(ours.size()));
    long mismatches = 0;
    for (std::size_t i = 0; i < ours.size(); ++i) mismatches += ours[i] != reference[i];
    note_compared(tensor);
    report_.add_count(label(tensor), mismatches);
  }
  /// A number of ours that the parameters tell, too.
  void same_fact(const std::string& key, Index ours) {
    if (knows(key)) report_.add_count(label("parameter " + key), integer(key, 0) == ours ? 0 : 1);
  }

  /// Adds the line of this variant: its worst comparison, or what was not compared.
  void finish(Report& report) const {
    std::string others;
    for (const std::string& tensor : file_.names()) {
      if (!tensor.starts_with(name_ + ".") || used_.contains(tensor)) continue;
      others += (others.empty() ? "" : ", ") + tensor.substr(name_.size() + 1);
      report.note(moe::detail::shown("not compared: " + tensor));
    }
    if (!others.empty()) return report.add(label("not compared: " + others), INFINITY, kForward);
    if (compared_ == 0) return report.add(label("nothing to compare"), INFINITY, kForward);
    const Line& worst = report_.worst();
    report.add(worst.name, worst.error, worst.tolerance);
  }

 private:
  std::string full(const std::string& tensor) const { return name_ + "." + tensor; }
  std::string label(const std::string& tensor) const { return moe::detail::shown(name_ + " (" + tensor + ")"); }
  static std::string text_of(Index extent) { return extent == kAny ? ".." : std::to_string(extent); }
  moe::detail::JsonFields fields() const { return {"parameters of " + name_, facts_}; }
  void note_compared(const std::string& tensor) {
    used_.insert(full(tensor));
    ++compared_;
  }

  [[noreturn]] void refuse(const std::string& tensor, const std::string& expected) const {
    const auto found = file_.at(full(tensor)).shape;
    moe::fail_environment("tensor ", moe::detail::in_quotes(full(tensor)), " is [", moe::detail::join(found, ", "),
                          "], expected ", expected);
  }
  template <class V>
  std::vector<V> read(const std::string& tensor) {
    used_.insert(full(tensor));
    return moe::read_all<V>(file_.at(full(tensor)));
  }
  template <class V>
  std::vector<V> list(const std::string& tensor, Index size) {
    shape(tensor);
    if (size != kAny && file_.at(full(tensor)).size() != size) refuse(tensor, std::to_string(size) + " numbers");
    return read<V>(tensor);
  }

  const moe::Checkpoint& file_;
  std::string name_;
  nlohmann::json facts_ = nlohmann::json::object();
  std::set<std::string> used_;
  long compared_ = 0;
  Report report_;
};

}  // namespace check
