// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/memory_bytes.hpp"
#include "moe/serve/nested_experts.hpp"

namespace moe::inline MOE_ABI {

/// Experts whose precision comes from a file level by level:
///   moe::save_nested_experts("planes.safetensors", pool, std::array{2, 3, 4});
///   const moe::NestedExpertFile<E> file("planes.safetensors", pool[0]);
///   E third = file.load(3, 0);                  // with 2 bits
///   file.add(third, 3, 1, file.read(3, 1));     // with 3, the bits of nested_experts()
/// read() only reads and add() only computes, so that two threads may do one each. Immutable, share freely. As
/// ExpertFile, with the same caution about files that are cut.
template <class E>
class NestedExpertFile {
 public:
  /// What a level adds, tensor by tensor, as it lies in the file.
  using Level = std::vector<std::vector<std::byte>>;

  /// `prototype` says what an expert is, formats and numbers apart. Throws std::runtime_error that names file and
  /// tensor if the file cannot be opened, has no expert, or one that is not of this kind.
  NestedExpertFile(const std::filesystem::path& path, E prototype, FileAccess access = FileAccess::Map)
      : file_(path, access),
        label_("moe::NestedExpertFile: '" + path.string() + "'"),
        prototype_(std::move(prototype)) {
    read_levels();
    for (Index e = 0; has_expert(e); ++e) {
      read_formats(e);
      const E expert = empty_expert();
      for (Index l = 0; l < levels(); ++l) {
        std::size_t bytes = 0;
        for_each_part(e, l, [&](const std::string& tensor, const auto&) { bytes += bytes_of(tensor); });
        file_bytes_.push_back(bytes);
        bytes_.push_back(memory_bytes(expert) + codes_bytes(expert, l));
      }
    }
    if (bytes_.empty()) fail_environment(label_, ": no tensor of an expert '0.', expected some");
  }

  Index size() const { return std::ssize(bytes_) / levels(); }
  Index levels() const { return std::ssize(bits_); }
  /// Of each level.
  const std::vector<int>& bits() const { return bits_; }
  const E& prototype() const { return prototype_; }
  /// What expert e takes with the levels up to this one, memory_bytes() of it; what the level takes in the file.
  std::size_t bytes(Index e, Index level) const { return bytes_[at(e, level)]; }
  std::size_t file_bytes(Index e, Index level) const { return file_bytes_[at(e, level)]; }

  /// What the level adds. Throws std::runtime_error if the file has become shorter, std::invalid_argument for an expert
  /// or level that is not there.
  Level read(Index e, Index level) const {
    require("moe::NestedExpertFile::read", e, level);
    Level result;
    for_each_part(e, level, [&](const std::string& tensor, const auto&) {
      const auto bytes = file_.view(tensor).bytes;
      result.emplace_back(bytes.begin(), bytes.end());
      file_.forget(tensor);
    });
    return result;
  }
  /// Puts it into the expert, which must have the levels below, and is another object of this kind for level 0. Throws
  /// std::invalid_argument if not, std::runtime_error for bytes that are no such level; the expert is what it was then.
  void add(E& expert, Index e, Index level, const Level& read) const {
    constexpr const char* kFunction = "moe::NestedExpertFile::add";
    require(kFunction, e, level);
    require_parts(e, level, read);
    if (level > 0) require_below(kFunction, expert, e, level);
    auto part = read.begin();
    E next = level == 0 ? empty_expert() : expert;
    try {
      visit_leaves(e, next, [&](const std::string& name, auto& leaf) {
        if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>) {
          if (level == 0)
            leaf = lowest(leaf, name, part);
          else
            leaf = leaf.with_planes(words_of(*part++));
        } else if (level == 0) {
          using S = ParameterScalar<decltype(leaf)>;
          std::vector<S> values(part->size() / sizeof(S));
          std::memcpy(values.data(), part->data(), part->size());
          ++part;
          write_parameter(leaf, std::span<const S>(values));
        }
      });
    } catch (const std::invalid_argument& error) {
      fail_environment(label_, ": level ", level, " of expert ", e, ": ", error.what());
    }
    expert = std::move(next);
  }
  /// With the levels up to this one. Throws as read().
  E load(Index e, Index level) const {
    require("moe::NestedExpertFile::load", e, level);
    E expert = prototype_;
    for (Index l = 0; l <= level; ++l) add(expert, e, l, read(e, l));
    return expert;
  }

 private:
  std::size_t at(Index e, Index level) const { return static_cast<std::size_t>(e * levels() + level); }
  void require(const char* function, Index e, Index level) const {
    if (e < 0 || e >= size() || level < 0 || level >= levels())
      fail(function, ": level ", level, " of expert ", e, ", expected one of ", levels(), " levels of ", size(),
           " experts");
  }
  std::size_t bytes_of(const std::string& tensor) const {
    const TensorInfo& info = file_.tensor(tensor);
    return static_cast<std::size_t>(info.end - info.begin);
  }
  bool has_expert(Index e) const {
    const std::string prefix = std::to_string(e) + ".";
    const auto found = file_.tensors().lower_bound(prefix);
    return found != file_.tensors().end() && found->first.starts_with(prefix);
  }
  template <class Object, class F>
  void visit_leaves(Index e, Object& expert, const F& f) const {
    visit_all([&](const std::string& name, auto& leaf) { f(std::to_string(e) + "." + name, leaf); }, expert);
  }
  /// Calls f(tensor, leaf) for the tensors of a level, in the order of the leaves.
  template <class F>
  void for_each_part(Index e, Index level, const F& f) const {
    visit_leaves(e, prototype_, [&](const std::string& name, const auto& leaf) {
      if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>) {
        if (level == 0) f(name + ".scales", leaf);
        if (level == 0 && file_.tensors().contains(name + ".zeros")) f(name + ".zeros", leaf);
        f(name + ".planes" + std::to_string(level), leaf);
      } else if (level == 0) {
        f(name, leaf);
      }
    });
  }

  void read_levels() {
    if (file_.tensor("levels").dtype != Dtype::I64 || file_.tensor("levels").shape.size() != 1)
      fail_environment(label_, ": tensor 'levels', expected I64 [levels]");
    std::vector<std::int64_t> numbers(static_cast<std::size_t>(file_.tensor("levels").shape[0]));
    file_.read("levels", std::span<std::int64_t>(numbers));
    for (const std::int64_t bits : numbers) bits_.push_back(static_cast<int>(std::clamp<std::int64_t>(bits, 0, 9)));
    try {
      detail::require_levels("moe::NestedExpertFile", bits_);
    } catch (const std::invalid_argument& error) {
      fail_environment(label_, ": ", error.what());
    }
  }
  int added(Index level) const {
    const auto l = static_cast<std::size_t>(level);
    return bits_[l] - (l > 0 ? bits_[l - 1] : 0);
  }
  void require_tensor(const std::string& name, Dtype dtype, const std::vector<Index>& shape) const {
    const TensorInfo& info = file_.tensor(name);
    if (info.dtype != dtype || info.shape != shape)
      fail_environment(label_, ": tensor '", name, "' is ", dtype_name(info.dtype), " [",
                       detail::join(info.shape, ", "), "], expected ", dtype_name(dtype), " [",
                       detail::join(shape, ", "), "]");
  }
  /// A look at all tensors of an expert, so that nobody need look again.
  void read_formats(Index e) {
    visit_leaves(e, prototype_, [&](const std::string& name, const auto& leaf) {
      if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>) {
        const WeightFormat format = detail::read_format(label_, file_, name, leaf);
        if (format.code != WeightCode::Planes || format.bits != bits_.back())
          fail_environment(label_, ": '", name, "' is ", format.name(), ", expected ", bits_.back(), " planes");
        for (const auto& [part, info] : detail::tensors_of(name, leaf.outputs(), leaf.inputs(), format))
          if (part != name + ".codes") require_tensor(part, info.dtype, info.shape);
        for (Index l = 0; l < levels(); ++l)
          require_tensor(name + ".planes" + std::to_string(l), Dtype::U32,
                         {added(l), (leaf.inputs() + 31) / 32, leaf.outputs()});
        formats_.emplace(name, format);
      } else {
        require_tensor(name, dtype_of<ParameterScalar<decltype(leaf)>>(), parameter_shape(leaf));
      }
    });
  }
  /// The prototype with matrices of no codes in it.
  E empty_expert() const {
    E expert = prototype_;
    visit_all(
        [](const std::string&, auto& leaf) {
          if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>)
            leaf = PanelMatrix<Quantised>(leaf.outputs(), leaf.inputs(), leaf.order());
        },
        expert);
    return expert;
  }
  /// Throws std::runtime_error unless each part of a level has the bytes that it has in the file.
  void require_parts(Index e, Index level, const Level& read) const {
    std::size_t count = 0;
    for_each_part(e, level, [&](const std::string& tensor, const auto&) {
      const std::size_t bytes = bytes_of(tensor);
      if (count < read.size() && read[count].size() != bytes)
        fail_environment(label_, ": level ", level, " of expert ", e, " has ", read[count].size(), " bytes of '",
                         tensor, "', expected ", bytes);
      ++count;
    });
    if (count != read.size())
      fail_environment(label_, ": level ", level, " of expert ", e, " has ", read.size(), " parts, expected ", count);
  }
  /// Throws std::invalid_argument unless the expert is one of these with the levels below this one.
  void require_below(const char* function, const E& expert, Index e, Index level) const {
    std::vector<std::pair<Index, Index>> shapes;
    const auto shape_of = [](const auto& leaf) { return std::pair(leaf.outputs(), leaf.inputs()); };
    visit_leaves(e, prototype_, [&](const std::string&, const auto& leaf) {
      if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>) shapes.push_back(shape_of(leaf));
    });
    std::size_t count = 0;
    visit_leaves(e, expert, [&](const std::string& name, const auto& leaf) {
      if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>) {
        if (count >= shapes.size() || shape_of(leaf) != shapes[count])
          fail(function, ": '", name, "' is of ", leaf.outputs(), " x ", leaf.inputs(),
               ", expected the shapes of the prototype");
        if (leaf.format() != format_of(name, level - 1))
          fail(function, ": '", name, "' is ", leaf.format().name(), ", expected it with the level below ", level);
        ++count;
      }
    });
    if (count != shapes.size())
      fail(function, ": an expert of ", count, " matrices, expected the ", shapes.size(), " of the prototype");
  }
  /// Of the matrices of an expert with the levels up to this one.
  std::size_t codes_bytes(const E& expert, Index level) {
    std::size_t bytes = 0;
    const Index e = std::ssize(bytes_) / levels();  // the next one
    visit_leaves(e, expert, [&](const std::string& name, const auto& leaf) {
      if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>)
        bytes += matrix_bytes(leaf, format_of(name, level));
    });
    return bytes;
  }
  /// A matrix is made once for each shape and format, to be asked for its bytes.
  std::size_t matrix_bytes(const PanelMatrix<Quantised>& leaf, const WeightFormat& format) {
    for (const auto& [shape, of, bytes] : sizes_)
      if (leaf.is_shaped_as(shape) && of == format) return bytes;
    const std::size_t bytes = PanelMatrix<Quantised>(leaf.outputs(), leaf.inputs(), leaf.order(), format).bytes();
    sizes_.push_back({PanelMatrix<Quantised>(leaf.outputs(), leaf.inputs(), leaf.order()), format, bytes});
    return bytes;
  }
  WeightFormat format_of(const std::string& name, Index level) const {
    WeightFormat format = formats_.at(name);
    format.bits = bits_[static_cast<std::size_t>(level)];
    return format;
  }
  static std::vector<std::uint32_t> words_of(const std::vector<std::byte>& bytes) {
    std::vector<std::uint32_t> words(bytes.size() / 4);
    std::memcpy(words.data(), bytes.data(), 4 * words.size());
    return words;
  }
  /// The lowest level of a matrix from its next parts.
  PanelMatrix<Quantised> lowest(const PanelMatrix<Quantised>& leaf, const std::string& name,
                                typename Level::const_iterator& part) const {
    const WeightFormat format = format_of(name, 0);
    const int bits = format.bits;
    PanelMatrix<Quantised> result(leaf.outputs(), leaf.inputs(), leaf.order(), format);
    const std::vector<std::byte>& scales = *part++;
    const std::vector<std::byte> none, &zeros = format.has_zero_points ? *part++ : none;
    result.set_groups(scales, zeros);
    const std::vector<std::uint32_t> words = words_of(*part++);
    const std::size_t size = words.size() / static_cast<std::size_t>(bits);
    for (int p = 0; p < bits; ++p)
      result.set_plane(p, std::span(words).subspan(static_cast<std::size_t>(p) * size, size));
    return result;
  }

  SafetensorsReader file_;
  std::string label_;
  E prototype_;
  std::vector<int> bits_;
  std::map<std::string, WeightFormat> formats_;  ///< of matrices, with all planes
  std::vector<std::size_t> bytes_, file_bytes_;  ///< [experts, levels]
  struct Sized {
    PanelMatrix<Quantised> shape;  ///< of no codes
    WeightFormat format;
    std::size_t bytes;
  };
  std::vector<Sized> sizes_;
};

}  // namespace moe::inline MOE_ABI
