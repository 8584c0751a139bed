// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/memory_bytes.hpp"
#include "moe/expert/concept.hpp"
#include "moe/io/file/parameters.hpp"

namespace moe::inline MOE_ABI {

/// Experts that stay in a mapped file of save_parameters() until they are asked for, one by one:
///   moe::save_parameters("experts.safetensors", layer);                 // or layer.experts(), without a prefix
///   const moe::ExpertFile<moe::Glu> file("experts.safetensors", moe::Glu(64, 256), "experts.");
///   moe::Glu third = file.load(3);                                      // its bits
/// `prototype` says what an expert is: sizes, biases, activation; its numbers do not matter. Codes take the formats of
/// the file, floats of the file those of the prototype. Immutable, share freely.
/// Caution: a mapped file that is cut while an expert is read from it ends the program, see MappedFile. With
/// FileAccess::Read that cannot happen, and all of the file stays in memory.
template <class E>
class ExpertFile {
  static_assert(Expert<E>,
                "moe::ExpertFile: an Expert needs `Scalar`, `input_dim()`, `output_dim()` and "
                "`void forward(const ConstMatrixRef<S>& rows, MatrixRef<S> out, const Context&) const` "
                "(see moe/expert/concept.hpp)");
  static_assert(HasParameters<E> || HasState<E>,
                "moe::ExpertFile: the expert needs "
                "`template <class F, class... Self> static void visit(F&&, Self&...)`, which names what is loaded "
                "(see moe/core/visit.hpp)");

 public:
  /// Opens a file whose tensors of expert e are called `prefix` e "." and their name in the expert, and checks them
  /// all. Throws std::runtime_error that names file and tensor if it cannot be opened, has no expert, one of another
  /// shape or with tensors that the prototype does not name, and where experts are not numbered 0, 1, 2, ...
  ExpertFile(const std::filesystem::path& path, E prototype, std::string prefix = "",
             Narrowing narrowing = Narrowing::Refuse, FileAccess access = FileAccess::Map)
      : file_(path, access),
        label_("moe::ExpertFile: '" + path.string() + "'"),
        prefix_(std::move(prefix)),
        prototype_(std::move(prototype)),
        narrowing_(narrowing) {
    std::map<std::vector<std::int64_t>, std::size_t> bytes_of_formats;
    for (Index e = 0; has_expert(e); ++e) {
      std::vector<std::int64_t> formats;
      std::set<std::string, std::less<>> expected;
      for_each_leaf(e, prototype_, [&](const std::string& name, const auto& leaf) {
        detail::check_leaf(label_, file_, name, leaf, [&](const std::string& tensor) { expected.insert(tensor); });
        if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>) append_format(name, formats);
      });
      require_no_other(e, expected);
      const auto [found, is_new] = bytes_of_formats.emplace(std::move(formats), 0);
      if (is_new) found->second = memory_bytes(read(e));
      bytes_.push_back(found->second);
    }
    if (bytes_.empty()) fail_environment(label_, ": no tensor of an expert '", prefix_, "0.', expected some");
    require_numbered();
  }

  Index size() const { return std::ssize(bytes_); }
  const E& prototype() const { return prototype_; }
  /// What an expert takes when it is loaded, memory_bytes() of it.
  const std::vector<std::size_t>& bytes() const { return bytes_; }

  /// Expert e, bit for bit. What was read of the file leaves memory again; a matrix at a time is copied on the way.
  /// Throws std::runtime_error if the file has become shorter before or is broken, std::invalid_argument for an e that
  /// is not there.
  E load(Index e) const {
    if (e < 0 || e >= size()) fail("moe::ExpertFile::load: expert ", e, ", expected 0 <= expert < ", size());
    return read(e);
  }

 private:
  E read(Index e) const {
    E expert = prototype_;
    for_each_leaf(e, expert, [&](const std::string& name, auto& leaf) {
      detail::load_leaf(label_, file_, name, leaf, narrowing_);
      detail::check_leaf(label_, file_, name, leaf, [&](const std::string& tensor) { file_.forget(tensor); });
    });
    return expert;
  }
  std::string prefix_of(Index e) const { return prefix_ + std::to_string(e) + "."; }
  bool has_expert(Index e) const {
    const std::string prefix = prefix_of(e);
    const auto found = file_.tensors().lower_bound(prefix);
    return found != file_.tensors().end() && found->first.starts_with(prefix);
  }
  /// Of an expert; the state of moments, which versions before 0.2.0 wrote, may be there.
  void require_no_other(Index e, std::set<std::string, std::less<>>& expected) const {
    const std::string prefix = prefix_of(e);
    detail::walk<detail::Walked::Ever>([&](const std::string& name, const auto&) { expected.insert(prefix + name); },
                                       [&](auto&& walker) { visit(walker, prototype_); });
    for (auto at = file_.tensors().lower_bound(prefix); at != file_.tensors().end(); ++at) {
      if (!at->first.starts_with(prefix)) return;
      if (!expected.contains(at->first))
        fail_environment(label_, ": tensor '", at->first, "' is not a parameter of the prototype");
    }
  }
  /// A gap between the numbers of experts would hide those behind it.
  void require_numbered() const {
    for (auto at = file_.tensors().lower_bound(prefix_); at != file_.tensors().end(); ++at) {
      if (!at->first.starts_with(prefix_)) return;
      const std::string_view rest = std::string_view(at->first).substr(prefix_.size()),
                             number = rest.substr(0, rest.find('.'));
      const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
      if (number.empty() || number.size() == rest.size() || !std::ranges::all_of(number, is_digit)) continue;
      // As texts of digits without zeros in front, the longer of two numbers is the larger.
      const std::string end = std::to_string(size());
      const bool is_there = number.size() < end.size() || (number.size() == end.size() && number < end);
      if (!is_there || (number.size() > 1 && number[0] == '0'))
        fail_environment(label_, ": tensor '", at->first, "' of an expert ", number, ", expected those of 0 to ",
                         size() - 1, " without a gap");
    }
  }
  template <class Object, class F>
  void for_each_leaf(Index e, Object& expert, const F& f) const {
    visit_all([&, prefix = prefix_of(e)](const std::string& name, auto& leaf) { f(prefix + name, leaf); }, expert);
  }
  void append_format(const std::string& name, std::vector<std::int64_t>& formats) const {
    if (!detail::has_codes(file_, name)) return formats.push_back(-1);
    const auto numbers = read_all<std::int64_t>(file_.view(name + ".format"));
    formats.insert(formats.end(), numbers.begin(), numbers.end());
  }

  SafetensorsReader file_;
  std::string label_, prefix_;
  E prototype_;
  Narrowing narrowing_;
  std::vector<std::size_t> bytes_;
};

}  // namespace moe::inline MOE_ABI
