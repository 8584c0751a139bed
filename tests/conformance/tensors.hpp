// SPDX-License-Identifier: MIT
// The tensors of a file of reference vectors, and which of them have been used.
#pragma once

#include <cmath>
#include <moe/core/matrix.hpp>
#include <moe/io/checkpoint/checkpoint.hpp>
#include <set>
#include <string>
#include <vector>

namespace check {

using moe::Index;
using moe::Matrix;
using Shape = std::vector<Index>;

/// A file that remembers what was read of it, so that nothing in it passes unseen. Errors are std::runtime_error that
/// name the tensor.
class Tensors {
 public:
  explicit Tensors(const moe::Checkpoint& file) : file_(file) {}

  const moe::Checkpoint& file() const { return file_; }
  bool has(const std::string& name) const { return file_.contains(name); }
  Shape shape(const std::string& name) const { return file_.at(name).shape; }
  void use(const std::string& name) { used_.insert(name); }

  /// All numbers of a tensor, which must be finite.
  template <class S>
  std::vector<S> read(const std::string& name) {
    use(name);
    std::vector<S> values = moe::read_all<S>(file_.at(name));
    if constexpr (std::is_floating_point_v<S>)
      for (std::size_t i = 0; i < values.size(); ++i)
        if (!std::isfinite(values[i]))
          throw std::runtime_error("tensor '" + name + "' holds " + std::to_string(values[i]) + " as number " +
                                   std::to_string(i) + ", expected finite numbers");
    return values;
  }

  std::vector<std::string> unused() const {
    std::vector<std::string> names;
    for (const std::string& name : file_.names())
      if (!used_.contains(name)) names.push_back(name);
    return names;
  }

 private:
  const moe::Checkpoint& file_;
  std::set<std::string> used_;
};

/// The tensors of one run, "t33." in front of their names: 33 tokens, in sequences if the input says so.
class Reference {
 public:
  Reference(Tensors& file, Index tokens) : file_(file), tokens_(tokens), prefix_("t" + std::to_string(tokens) + ".") {
    leading_ = file.shape(prefix_ + "input");
    if (leading_.empty() || leading_.size() > 3) refuse("input", "[batch, sequence, width] or [tokens, width]");
    leading_.pop_back();
    const Index each = leading_.empty() ? 0 : leading_.back();  // product by division: it may not fit
    const bool is_whole = each > 0 && tokens % each == 0;
    if (!is_whole || (leading_.size() == 2 ? leading_[0] != tokens / each : each != tokens))
      refuse("input", "rows for " + std::to_string(tokens) + " tokens");
  }

  const std::string& prefix() const { return prefix_; }
  Tensors& file() const { return file_; }
  Index tokens() const { return tokens_; }
  /// Tokens of a sequence: all where the input has no batch.
  Index length() const { return leading_.size() == 2 ? leading_[1] : tokens_; }
  bool has(const std::string& name) const { return file_.has(prefix_ + name); }

  /// A tensor with `columns` numbers per token, or without that extent: [tokens], where it is 0.
  template <class S>
  std::vector<S> read(const std::string& name, Index columns) const {
    Shape flat{tokens_}, nested = leading_;
    if (columns != 0) flat.push_back(columns), nested.push_back(columns);
    const Shape found = file_.shape(prefix_ + name);
    if (found != flat && found != nested) refuse(name, "[" + moe::detail::join(nested, ", ") + "]");
    return file_.read<S>(prefix_ + name);
  }
  Matrix<float> matrix(const std::string& name, Index columns) const {
    const std::vector<float> all = read<float>(name, columns);
    return Eigen::Map<const Matrix<float>>(all.data(), tokens_, columns);
  }
  double scalar(const std::string& name) const {
    if (const Shape found = file_.shape(prefix_ + name); !found.empty() && found != Shape{1}) refuse(name, "[1]");
    return file_.read<double>(prefix_ + name).at(0);
  }
  /// Numbers per token of a tensor whose width the file decides.
  Index columns(const std::string& name) const {
    const Shape found = file_.shape(prefix_ + name);
    return found.empty() ? 0 : found.back();
  }

  [[noreturn]] void refuse(const std::string& name, const std::string& expected) const {
    throw std::runtime_error("tensor '" + prefix_ + name + "' has shape [" +
                             moe::detail::join(file_.shape(prefix_ + name), ", ") + "], expected " + expected);
  }

 private:
  Tensors& file_;
  Index tokens_;
  std::string prefix_;
  Shape leading_;
};

}  // namespace check
