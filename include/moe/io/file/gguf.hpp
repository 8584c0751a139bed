// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "moe/io/file/gguf_header.hpp"
#include "moe/io/file/lfs_pointer.hpp"
#include "moe/io/file/mapped_file.hpp"
#include "moe/io/file/tensor.hpp"

namespace moe::inline MOE_ABI {

/// Reads a GGUF file, the format of llama.cpp (see parse_gguf()): the constructor maps it and checks the header against
/// the size of the file; data are read when asked for. Tensors are listed whatever their type: values of F64, F32, F16,
/// BF16 and integers are read by read_values() and the like, those of blocks by WeightSource or decode_gguf(). Of a
/// file in parts this is one part; Checkpoint opens all of them. Every error about the file is a std::runtime_error
/// that names it and the tensor or key. Immutable, share freely; see MappedFile for files that shrink meanwhile.
///   const moe::GgufReader file("model.gguf");
///   file.value("general.architecture")->text();
class GgufReader {
 public:
  explicit GgufReader(const std::filesystem::path& path, FileAccess access = FileAccess::Map)
      : file_(std::string("moe::GgufReader: '") + path.string() + "'", path, access) {
    detail::refuse_lfs_pointer(file_.label(), file_.bytes());
    header_ = parse_gguf(file_.label(), file_.bytes());
  }

  /// Shapes are reversed: the last extent is the first in the file. Places count from the begin of the data.
  const std::map<std::string, TensorInfo, std::less<>>& tensors() const { return header_.tensors; }
  /// Values lie in the file, and live as long as the reader.
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return header_.metadata; }
  std::uint32_t version() const { return header_.version; }
  std::uint64_t alignment() const { return header_.alignment; }
  /// Opens messages about the file.
  const std::string& label() const { return file_.label(); }

  /// A value of the metadata, if it is there. Throws std::runtime_error where the file has become shorter than it was.
  std::optional<GgufValue> value(std::string_view key) const {
    const auto found = metadata().find(key);
    if (found == metadata().end()) return std::nullopt;
    require_intact(key);
    return found->second;
  }

  /// The tensor with its bytes in the mapping, which live as long as the reader. Throws std::runtime_error where the
  /// file has no such tensor or has become shorter than it was.
  TensorView view(std::string_view name) const {
    const auto found = tensors().find(name);
    if (found == tensors().end()) fail_environment(label(), ": tensor ", detail::in_quotes(name), " is missing");
    require_intact(name);
    const auto& [key, info] = *found;
    const std::uint64_t begin = header_.data_begin + info.begin;
    return {.label = label(),
            .name = key,
            .dtype = info.dtype,
            .shape = info.shape,
            .bytes =
                file_.bytes().subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(info.end - info.begin)),
            .other = info.other};
  }

 private:
  void require_intact(std::string_view what) const {
    if (!file_.is_intact())
      fail_environment(label(), ": cannot read ", detail::in_quotes(what),
                       ": the file has become shorter since it was opened");
  }

  MappedFile file_;
  GgufHeader header_;
};

}  // namespace moe::inline MOE_ABI
