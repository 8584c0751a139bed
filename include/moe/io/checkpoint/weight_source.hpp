// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/file/convert_blocks.hpp"
#include "moe/kernel/weight_format.hpp"

namespace moe::inline MOE_ABI {

/// A weight as a file has it, in the terms of WeightFormat: (code - zero) * scale. A plain value.
struct StoredWeight {
  std::uint32_t code;  ///< in the lowest bits, of integers two's complement
  float scale = 1;     ///< of its group, without that of the matrix; 1 where there is none
  float zero = 0;      ///< as the codes count

  friend bool operator==(const StoredWeight&, const StoredWeight&) = default;
};

/// The values of a weight, however a checkpoint stores it:
///   plain   `name`, of any floating-point type
///   FP8     `name` in F8_E4M3 or F8_E5M2 with `name_scale_inv` [.., ceil(out/128), ceil(in/128)]: value = code times
///           the scale of its 128 x 128 block (the format of DeepSeek-V3, arXiv:2412.19437, section 3.3)
///   MXFP4   `name_blocks` [.., in/32, 16] and `name_scales` [.., in/32] in U8 (or with `.` for `_`): 32 elements share
///           2^(scale - 127), NaN for 255; a byte holds two codes, the even element in its low half (Open Compute
///           Project, "OCP Microscaling Formats (MX) Specification" 1.0)
/// A handle; keeps its checkpoint open. Immutable, share freely. One that was not found is of no weight: it can only be
/// asked whether it is, and assigned to.
class WeightSource {
 public:
  WeightSource() = default;

  /// Throws std::runtime_error naming file and tensor if there is no such weight, or it is stored in more than one of
  /// these ways, of a wrong type or shape, or with scales of another format.
  static WeightSource find(const Checkpoint& checkpoint, const std::string& name) {
    for (const char* separator : {"_", "."}) {
      const std::string blocks = name + separator + "blocks";
      if (!checkpoint.contains(blocks)) continue;
      if (checkpoint.contains(name))
        fail_environment(checkpoint.at(name).label, ": both ", detail::in_quotes(name), " and ",
                         detail::in_quotes(blocks), " are there, expected one of them");
      return mxfp4(checkpoint, name, checkpoint.at(blocks), checkpoint.at(name + separator + "scales"));
    }
    return plain_or_scaled(checkpoint, name);
  }

  /// Whether find() has something to look at under this name.
  static bool exists(const Checkpoint& checkpoint, const std::string& name) {
    return checkpoint.contains(name) || checkpoint.contains(name + "_blocks") || checkpoint.contains(name + ".blocks");
  }

  /// Whether it is of a weight.
  explicit operator bool() const { return state_ != nullptr; }

  const std::string& name() const { return state_->name; }
  /// The tensors of the file that it is read from.
  std::vector<std::string> stored_names() const {
    std::vector<std::string> names{std::string(state_->codes.name)};
    if (state_->kind == Kind::Scaled) names.push_back(state_->name + "_scale_inv");
    if (state_->kind == Kind::Mxfp4) names.push_back(names[0].substr(0, names[0].size() - 6) + "scales");
    return names;
  }
  /// Codes of 8 bits, with scales or without.
  bool is_fp8() const { return state_->kind != Kind::Mxfp4 && dtype_size(state_->codes.dtype) == 1; }
  bool has_scales() const { return state_->kind != Kind::Plain; }
  /// Type of the stored codes; U8 for MXFP4.
  Dtype codes() const { return state_->codes.dtype; }
  /// Opens messages about the weight: who found it, in which file.
  std::string_view label() const { return state_->codes.label; }
  /// Of the values: for MXFP4 [.., in].
  const std::vector<Index>& shape() const { return state_->shape; }
  /// Number of values.
  Index size() const { return state_->size; }
  /// Bytes in the file, scales included.
  std::uint64_t bytes() const { return state_->codes.bytes.size() + state_->scale_bytes; }
  /// How the values are stored, as it is said in reports: "BF16", "F8_E4M3 x 128", "MXFP4".
  std::string format() const {
    if (state_->kind == Kind::Mxfp4) return "MXFP4";
    return std::string(dtype_name(state_->codes.dtype)) + (state_->kind == Kind::Scaled ? " x 128" : "");
  }

  /// Values [first, first + values.size()) in row-major order of shape(), rounded to float where that is narrower.
  /// Throws std::invalid_argument for values that it does not have. No allocation.
  void read_values(Index first, std::span<float> values) const {
    const Index count = std::ssize(values);
    if (first < 0 || first > size() || count > size() - first)
      fail("moe::WeightSource::read_values: values [", first, ", ", first, " + ", count, ") of ",
           detail::in_quotes(name()), " with ", size(), " values");
    if (state_->kind == Kind::Plain) return decode(first, values);
    if (state_->kind == Kind::Scaled) return read_scaled(first, values);
    read_mxfp4(first, values);
  }

  /// The format that holds the stored values bit for bit, in groups along the last extent of shape(); none for F32 and
  /// F64, which have no format of few bits.
  std::optional<WeightFormat> kept_format() const {
    const auto code = code_type();
    if (!code) return std::nullopt;
    WeightFormat format{.code = *code};
    if (state_->kind == Kind::Mxfp4) return WeightFormat::mxfp4();
    if (state_->kind == Kind::Scaled) format.group = detail::kScaleBlock, format.scale = state_->scale_type;
    return format;
  }
  /// Value `place` in row-major order of shape(), as kept_format() has it. Throws std::invalid_argument where there is
  /// no such format or no such value.
  StoredWeight stored(Index place) const {
    constexpr const char* kFunction = "moe::WeightSource::stored";
    if (!code_type())
      fail(kFunction, ": ", detail::in_quotes(name()), " is stored as ", format(), ", expected codes of few bits");
    if (place < 0 || place >= size())
      fail(kFunction, ": value ", place, " of ", detail::in_quotes(name()), " with ", size(), " values");
    const std::byte* const bytes = state_->codes.bytes.data();
    if (state_->kind == Kind::Mxfp4) {
      const auto pair = std::to_integer<std::uint32_t>(bytes[place / 2]);
      const auto exponent = state_->exponents[static_cast<std::size_t>(place / detail::kMxBlock)];
      return {.code = place % 2 == 0 ? pair & 15u : pair >> 4,
              .scale = detail::e8m0_to_float(std::to_integer<std::uint8_t>(exponent))};
    }
    StoredWeight weight{.code = 0};
    const std::size_t bytes_each = dtype_size(state_->codes.dtype);
    std::memcpy(&weight.code, bytes + static_cast<std::size_t>(place) * bytes_each, bytes_each);
    if (state_->kind == Kind::Scaled) {
      const Index columns = state_->shape.back();
      weight.scale = block_scale(place / columns, place % columns);
    }
    return weight;
  }
  /// What all scales are multiplied with: 1 unless the format is NVFP4.
  float matrix_scale() const { return 1; }

  /// The bytes of all values where they are stored plainly as this type, for loops that decode on their own; else none.
  std::span<const std::byte> stored_as(Dtype dtype) const {
    if (state_->kind != Kind::Plain || state_->codes.dtype != dtype) return {};
    return state_->codes.bytes;
  }

 private:
  enum class Kind { Plain, Scaled, Mxfp4 };
  struct State {
    Kind kind = Kind::Plain;
    std::string name;
    Checkpoint checkpoint;
    TensorView codes;
    std::vector<Index> shape;
    Index size = 0;
    ScaleType scale_type = ScaleType::None;     ///< FP8
    std::vector<float> scales = {};             ///< FP8: [matrices, row blocks, column blocks]
    std::span<const std::byte> exponents = {};  ///< MXFP4: per block
    std::uint64_t scale_bytes = 0;
  };

  explicit WeightSource(State state) : state_(std::make_shared<const State>(std::move(state))) {}

  static void require(const TensorView& tensor, const std::vector<Index>& shape, bool is_right_type, const char* type) {
    detail::require_known(tensor);
    if (!is_right_type)
      fail_environment(tensor.label, ": tensor ", detail::in_quotes(tensor.name), " is ", dtype_name(tensor.dtype),
                       ", expected ", type);
    if (tensor.shape != shape)
      fail_environment(tensor.label, ": tensor ", detail::in_quotes(tensor.name), " has shape [",
                       detail::join(tensor.shape, ", "), "], expected [", detail::join(shape, ", "), "]");
  }

  static WeightSource plain_or_scaled(const Checkpoint& checkpoint, const std::string& name) {
    const TensorView codes = checkpoint.at(name);
    require(codes, codes.shape, is_floating(codes.dtype), "a floating-point type");
    State state{.name = name, .checkpoint = checkpoint, .codes = codes, .shape = codes.shape, .size = codes.size()};
    const std::string scale = name + "_scale";
    for (const std::string& lost : {scale, scale + "_inv"})
      if (!checkpoint.left_out(lost).empty())
        fail_environment(codes.label, ": ", detail::in_quotes(lost), " is in '", checkpoint.left_out(lost),
                         "', but the index does not say so, without which ", detail::in_quotes(name),
                         " would be wrong by its scale");
    if (checkpoint.contains(scale))
      fail_environment(codes.label, ": ", detail::in_quotes(scale), " is a scale of a format that is not supported");
    if (!checkpoint.contains(scale + "_inv")) return WeightSource(std::move(state));
    const TensorView scales = checkpoint.at(scale + "_inv");
    require(codes, codes.shape, dtype_size(codes.dtype) == 1, "F8_E4M3 or F8_E5M2, as it has a scale");
    if (codes.shape.size() < 2)
      fail_environment(codes.label, ": tensor ", detail::in_quotes(name), " has shape [",
                       detail::join(codes.shape, ", "), "], expected at least two extents, as it has a scale");
    std::vector<Index> grid = codes.shape;
    for (Index& extent : std::span(grid).last(2))
      extent = extent / detail::kScaleBlock + (extent % detail::kScaleBlock != 0);
    require(scales, grid, is_floating(scales.dtype), "a floating-point type");
    state.kind = Kind::Scaled;
    state.scales = read_all<float>(scales);
    state.scale_type = scales.dtype == Dtype::BF16  ? ScaleType::Bf16
                       : scales.dtype == Dtype::F16 ? ScaleType::F16
                                                    : ScaleType::F32;
    state.scale_bytes = scales.bytes.size();
    return WeightSource(std::move(state));
  }

  static WeightSource mxfp4(const Checkpoint& checkpoint, const std::string& name, const TensorView& blocks,
                            const TensorView& scales) {
    State state{.kind = Kind::Mxfp4, .name = name, .checkpoint = checkpoint, .codes = blocks, .shape = blocks.shape};
    const std::size_t rank = blocks.shape.size();
    if (rank < 2 || blocks.shape.back() != detail::kMxBytes ||
        blocks.shape[rank - 2] > std::numeric_limits<Index>::max() / detail::kMxBlock)
      fail_environment(blocks.label, ": tensor ", detail::in_quotes(blocks.name), " has shape [",
                       detail::join(blocks.shape, ", "), "], expected [.., inputs / 32, 16]");
    require(blocks, blocks.shape, blocks.dtype == Dtype::U8, "U8");
    state.shape.pop_back();
    require(scales, state.shape, scales.dtype == Dtype::U8, "U8");
    state.shape.back() *= detail::kMxBlock;
    state.size = 2 * blocks.size();
    state.exponents = scales.bytes;
    state.scale_bytes = scales.bytes.size();
    return WeightSource(std::move(state));
  }

  void decode(Index first, std::span<float> values) const {
    const TensorView& codes = state_->codes;
    detail::decode(codes.dtype, codes.bytes.data() + static_cast<std::size_t>(first) * dtype_size(codes.dtype), values);
  }

  std::optional<WeightCode> code_type() const {
    switch (state_->codes.dtype) {
      case Dtype::BF16:
        return WeightCode::Bf16;
      case Dtype::F16:
        return WeightCode::F16;
      case Dtype::F8_E4M3:
        return WeightCode::E4M3;
      case Dtype::F8_E5M2:
        return WeightCode::E5M2;
      case Dtype::U8:
        return WeightCode::E2M1;
      default:
        return std::nullopt;
    }
  }

  /// Of an FP8 value; rows count on from matrix to matrix.
  float block_scale(Index row, Index column) const {
    const Index columns = state_->shape.back(), rows = *(state_->shape.end() - 2);
    const auto blocks = [](Index extent) { return (extent + detail::kScaleBlock - 1) / detail::kScaleBlock; };
    const Index block_row = row / rows * blocks(rows) + row % rows / detail::kScaleBlock;
    return state_->scales[static_cast<std::size_t>(block_row * blocks(columns) + column / detail::kScaleBlock)];
  }

  void read_scaled(Index first, std::span<float> values) const {
    const Index columns = state_->shape.back();
    while (!values.empty()) {
      const Index row = first / columns, column = first % columns;
      const Index end = std::min((column / detail::kScaleBlock + 1) * detail::kScaleBlock, columns);
      const Index count = std::min(end - column, std::ssize(values));
      const std::span<float> part = values.first(static_cast<std::size_t>(count));
      decode(first, part);
      detail::scale_values(part, block_scale(row, column));
      first += count;
      values = values.subspan(part.size());
    }
  }

  void read_mxfp4(Index first, std::span<float> values) const {
    while (!values.empty()) {
      const Index block = first / detail::kMxBlock, begin = first % detail::kMxBlock;
      const auto count = std::min(static_cast<std::size_t>(detail::kMxBlock - begin), values.size());
      const float scale =
          detail::e8m0_to_float(std::to_integer<std::uint8_t>(state_->exponents[static_cast<std::size_t>(block)]));
      const std::byte* const bytes = state_->codes.bytes.data() + block * detail::kMxBytes;
      if (std::ssize(values) >= detail::kMxBlock && begin == 0) {
        simd::widen_e2m1(bytes, scale, values.data());
      } else {
        std::array<float, detail::kMxBlock> whole;
        simd::widen_e2m1(bytes, scale, whole.data());
        std::copy_n(whole.begin() + begin, count, values.begin());
      }
      first += static_cast<Index>(count);
      values = values.subspan(count);
    }
  }

  std::shared_ptr<const State> state_;
};

}  // namespace moe::inline MOE_ABI
