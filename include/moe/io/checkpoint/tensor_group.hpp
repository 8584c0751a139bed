// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/checkpoint/load_weight.hpp"
#include "moe/io/file/safetensors.hpp"

namespace moe::inline MOE_ABI {

namespace detail {
class CheckpointRewriter;
}

/// Takes the bytes of new tensors of a checkpoint, part by part in any order. Thread-safe.
class TensorSink {
 public:
  using Tensors = std::map<std::string, TensorInfo, std::less<>>;

  /// A part of a tensor, from byte `first` of it on, in its type. Throws std::invalid_argument for a tensor that was
  /// not announced and for bytes that it does not have, std::runtime_error if the file cannot be written.
  void write(std::string_view name, std::uint64_t first, std::span<const std::byte> bytes) {
    const auto found = place_.find(name);
    if (found == place_.end()) fail("moe::TensorSink::write: tensor ", detail::in_quotes(name), " was not announced");
    const std::lock_guard lock(mutex_);
    writers_[found->second]->write_part(name, first, bytes);
    meter_.add(bytes.size());
  }
  /// A whole tensor.
  void write(std::string_view name, std::span<const std::byte> bytes) { write(name, 0, bytes); }

 private:
  friend class detail::CheckpointRewriter;

  explicit TensorSink(detail::ProgressMeter& meter) : meter_(meter) {}

  void open_file(const std::filesystem::path& path, const Tensors& tensors, const Metadata& metadata) {
    writers_.push_back(
        std::make_unique<SafetensorsWriter>(path, SafetensorsHeader{.tensors = tensors, .metadata = metadata}));
    for (const auto& [name, info] : tensors) {
      place_.emplace(name, writers_.size() - 1);
      if (std::find(info.shape.begin(), info.shape.end(), 0) != info.shape.end())
        writers_.back()->write_bytes(name, {});  // nothing will come
    }
  }
  void commit() {
    for (const auto& writer : writers_) writer->commit();
  }

  detail::ProgressMeter& meter_;
  std::vector<std::unique_ptr<SafetensorsWriter>> writers_;
  std::map<std::string, std::size_t, std::less<>> place_;
  std::mutex mutex_;
};

/// Tensors that take the place of others when a checkpoint is rewritten.
struct TensorGroup {
  std::set<std::string> replaced = {};          ///< of the source; may be empty
  TensorSink::Tensors tensors = {};             ///< instead: types and shapes, known before anything is computed
  std::function<void(TensorSink&)> write = {};  ///< gives every byte of them; called once, when it is their turn
};

namespace detail {

/// Bytes of a tensor that is announced. Throws std::invalid_argument where its type or shape has no size.
inline std::uint64_t announced_bytes(const std::string& name, const TensorInfo& info) {
  SafetensorsHeader header{.tensors = {{name, info}}};
  return assign_offsets(header);
}

/// The bytes of a tensor as it is in a file.
inline TensorInfo info_of(const TensorView& tensor) {
  return {.dtype = tensor.dtype, .shape = tensor.shape, .other = std::string(tensor.other)};
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
