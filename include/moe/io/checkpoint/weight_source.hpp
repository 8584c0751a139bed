// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/io/checkpoint/layouts.hpp"

namespace moe::inline MOE_ABI {

/// The values of a weight, however a checkpoint stores it. `name` is that of the weight, "experts.0.up_proj.weight";
/// what is read, [out, in] each:
///   plain       `name`, of any floating-point type
///   FP8         `name` in F8_E4M3 or F8_E5M2 times scales in `name_scale_inv` or `name_scale`      layout_fp8.hpp
///   MXFP4       `name_blocks` and `name_scales` (or with `.` for `_`); `name_packed`, `name_scale`  layout_fp4.hpp
///   NVFP4       of modelopt and compressed-tensors                                                  layout_fp4.hpp
///   INT1..INT8  of compressed-tensors, packed, and of 8 bits                                 layout_compressed.hpp
///   GPTQ, AWQ   `qweight`, `qzeros` and `scales` of the module                                     layout_gptq.hpp
///   GGUF        `name` in blocks, "Q8_0" to "MXFP4"                                                layout_gguf.hpp
/// A value is (code - zero) * scale, rounded once, see WeightFormat, and of GGUF what gguf_blocks.hpp says. One more
/// layout is a class as in those files, and a line in layouts.hpp. A handle; keeps its checkpoint open. Immutable,
/// share freely. One that was not found is of no weight: it can only be asked whether it is, and assigned to.
class WeightSource {
 public:
  WeightSource() = default;

  /// `stated` is what shapes leave open; without it, blocks are 128 x 128 and groups are even. Throws
  /// std::runtime_error naming file and tensor if there is no such weight, it is stored in more than one way, of a
  /// wrong type or shape, or scales are missing, misshaped or those of another format; std::invalid_argument for
  /// numbers of `stated` that are out of range.
  static WeightSource find(const Checkpoint& checkpoint, const std::string& name, const StatedStorage& stated = {}) {
    stated.validate();
    const detail::StorageLayout& layout = layout_of(checkpoint, name, stated);
    detail::StoredParts parts(checkpoint, name, stated);
    State state{.name = name, .checkpoint = checkpoint, .storage = layout.open(parts)};
    state.size = state.storage->size();
    parts.require_all_used(state.storage->codes);
    state.tensors.emplace_back(state.storage->codes.name);
    for (const std::string& tensor : parts.used()) {
      state.bytes += checkpoint.at(tensor).bytes.size();
      if (tensor != state.storage->codes.name) state.tensors.push_back(tensor);
    }
    for (std::string& tensor : parts.of_activations()) state.tensors.push_back(std::move(tensor));
    return WeightSource(std::move(state));
  }

  /// Whether find() has something to look at under this name.
  static bool exists(const Checkpoint& checkpoint, const std::string& name) {
    return std::any_of(detail::kStorageLayouts.begin(), detail::kStorageLayouts.end(),
                       [&](const detail::StorageLayout& layout) { return checkpoint.contains(layout.codes(name)); });
  }

  /// Whether it is of a weight.
  explicit operator bool() const { return state_ != nullptr; }

  const std::string& name() const { return state_->name; }
  /// The tensors of the file that belong to it: codes first, then scales and the like, and those about the tokens of
  /// its module, which are not read.
  std::vector<std::string> stored_names() const { return state_->tensors; }
  /// Codes F8_E4M3 or F8_E5M2, with scales or without.
  bool is_fp8() const { return codes() == Dtype::F8_E4M3 || codes() == Dtype::F8_E5M2; }
  bool has_scales() const { return storage().has_scales; }
  QuantMethod method() const { return storage().method; }
  /// Type of the stored codes; U8, I8 or I32 for those of fewer bits and integers, Other where values have none of
  /// their own (K-quants and the like of GGUF).
  Dtype codes() const { return storage().codes.dtype; }
  /// Opens messages about the weight: who found it, in which file.
  std::string_view label() const { return storage().codes.label; }
  /// Of the values: [.., out, in] for all that has scales.
  const std::vector<Index>& shape() const { return storage().shape; }
  /// Number of values.
  Index size() const { return state_->size; }
  /// Bytes in the file, scales included.
  std::uint64_t bytes() const { return state_->bytes; }
  /// How the values are stored, as it is said in reports: "BF16", "F8_E4M3 x 128", "MXFP4", "GPTQ INT4 x 128".
  std::string format() const { return storage().format; }

  /// Values [first, first + values.size()) in row-major order of shape(), rounded to float where that is narrower.
  /// Throws std::invalid_argument for values that it does not have. No allocation.
  void read_values(Index first, std::span<float> values) const {
    const Index count = std::ssize(values);
    if (first < 0 || first > size() || count > size() - first)
      fail("moe::WeightSource::read_values: values [", first, ", ", first, " + ", count, ") of ",
           detail::in_quotes(name()), " with ", size(), " values");
    storage().read(first, values);
  }

  /// The format that holds the stored values bit for bit, in groups along the last extent of shape(). None for F32 and
  /// F64, for blocks of GGUF but Q8_0, Q4_0 and MXFP4, and for groups that are no multiple of 8. Zero points that are
  /// all in the middle of the codes are no part of it. O(zero points).
  std::optional<WeightFormat> kept_format() const { return storage().kept_format(); }
  /// Value `place` in row-major order of shape(), as kept_format() has it. Throws std::invalid_argument for F32,
  /// F64 and codes of type Other, and for values that it does not have. No allocation.
  StoredWeight stored(Index place) const {
    constexpr const char* kFunction = "moe::WeightSource::stored";
    if (codes() == Dtype::F32 || codes() == Dtype::F64 || codes() == Dtype::Other)
      fail(kFunction, ": ", detail::in_quotes(name()), " is stored as ", format(), ", expected codes of few bits");
    if (place < 0 || place >= size())
      fail(kFunction, ": value ", place, " of ", detail::in_quotes(name()), " with ", size(), " values");
    const Index row = place / storage().columns(), column = place % storage().columns();
    const detail::GroupNumbers group = storage().numbers(row, column);
    return {.code = storage().code(row, column), .scale = group.scale, .zero = group.zero};
  }
  /// The codes of values [place, place + codes.size()), all of one row of the last extent: stored() for many. Throws as
  /// it, and for values of several rows.
  void stored_codes(Index place, std::span<std::uint32_t> codes) const {
    constexpr const char* kFunction = "moe::WeightSource::stored_codes";
    if (codes.empty()) return;
    static_cast<void>(stored(place));
    const Index row = place / storage().columns(), column = place % storage().columns();
    if (std::ssize(codes) > storage().columns() - column)
      fail(kFunction, ": ", codes.size(), " values from column ", column, " of ", detail::in_quotes(name()),
           " on, expected those of one row of ", storage().columns());
    storage().read_codes(row, column, codes);
  }
  /// What all scales are multiplied with, rounded, before a value is: 1 unless the format is NVFP4.
  float matrix_scale() const { return storage().matrix_scale; }

  /// The bytes of all values where they are stored plainly as this type, for loops that decode on their own; else none.
  std::span<const std::byte> stored_as(Dtype dtype) const {
    if (has_scales() || codes() != dtype) return {};
    return storage().codes.bytes;
  }

 private:
  struct State {
    std::string name;
    Checkpoint checkpoint;
    std::unique_ptr<const detail::WeightStorage> storage;
    Index size = 0;
    std::uint64_t bytes = 0;
    std::vector<std::string> tensors = {};
  };

  explicit WeightSource(State state) : state_(std::make_shared<const State>(std::move(state))) {}

  const detail::WeightStorage& storage() const { return *state_->storage; }

  static const detail::StorageLayout& layout_of(const Checkpoint& checkpoint, const std::string& name,
                                                const StatedStorage& stated) {
    const detail::StoredParts parts(checkpoint, name, stated);
    const detail::StorageLayout* found = nullptr;
    std::string codes;
    for (const detail::StorageLayout& layout : detail::kStorageLayouts) {
      const std::string here = layout.codes(name);
      if (!checkpoint.contains(here)) continue;
      if (found && here != codes)
        fail_environment(checkpoint.at(here).label, ": both ", detail::in_quotes(here), " and ",
                         detail::in_quotes(codes), " are there, expected one of them");
      if (found || !layout.takes(parts, checkpoint.at(here))) continue;
      found = &layout;
      codes = here;
    }
    if (!found) (void)checkpoint.at(name);  // which says that it is missing
    return *found;
  }

  std::shared_ptr<const State> state_;
};

}  // namespace moe::inline MOE_ABI
