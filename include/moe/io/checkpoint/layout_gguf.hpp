// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/checkpoint/weight_storage.hpp"

// Weights of GGUF files, whose scales stand in the tensor, between the codes. Blocks lie along the inputs.
namespace moe::inline MOE_ABI::detail {

/// A tensor of blocks of any type that is read.
class GgufStorage : public WeightStorage {
 public:
  GgufStorage(const TensorView& tensor, const GgufBlockType& type) : type_(type) {
    method = QuantMethod::GgufBlocks;
    format = type.name;
    codes = tensor;
    shape = tensor.shape;
    has_scales = true;
  }

  /// Codes of K-quants and the like have more than a scale: values are what can be asked for.
  std::optional<WeightFormat> kept_format() const override { return std::nullopt; }
  std::uint32_t code(Index, Index) const override { return 0; }
  void read_codes(Index, Index, std::span<std::uint32_t> to) const override {
    MOE_ASSERT(to.empty());  // refused by WeightSource
    (void)to;
  }
  GroupNumbers numbers(Index, Index) const override { return {}; }
  void read_row(Index row, Index column, std::span<float> values) const override {
    read(row * columns() + column, values);
  }
  void read(Index first, std::span<float> values) const override { decode_gguf(type_, codes.bytes, first, values); }

 private:
  const GgufBlockType& type_;
};

/// Blocks of 32 codes with one scale, which a WeightFormat holds as they are. How is a struct below.
template <class Coded>
class CodedGgufStorage final : public GgufStorage {
 public:
  CodedGgufStorage(const TensorView& tensor, const GgufBlockType& type) : GgufStorage(tensor, type) {
    method = Coded::kMethod;
    codes.dtype = Coded::kCodes;
  }

  std::optional<WeightFormat> kept_format() const override { return Coded::kFormat; }
  std::uint32_t code(Index row, Index column) const override {
    const Index place = row * columns() + column;
    return Coded::code(block_of(place), place % kGroup);
  }
  void read_codes(Index row, Index column, std::span<std::uint32_t> to) const override {
    Index place = row * columns() + column;
    for (std::uint32_t& code : to) {
      code = Coded::code(block_of(place), place % kGroup);
      ++place;
    }
  }
  GroupNumbers numbers(Index row, Index column) const override {
    return {.scale = Coded::scale(block_of(row * columns() + column))};
  }
  void read(Index first, std::span<float> values) const override {
    if constexpr (requires { Coded::decode(nullptr, nullptr); })
      read_blocks(first, values);
    else
      GgufStorage::read(first, values);
  }

 private:
  static constexpr Index kGroup = Coded::Block::kValues;

  BlockBytes block_of(Index place) const { return BlockBytes(bytes_of(place)); }
  const std::byte* bytes_of(Index place) const { return codes.bytes.data() + place / kGroup * Coded::Block::kBytes; }

  void read_blocks(Index first, std::span<float> values) const {
    std::array<float, static_cast<std::size_t>(kGroup)> whole;
    while (!values.empty()) {
      const Index begin = first % kGroup, count = std::min(kGroup - begin, std::ssize(values));
      Coded::decode(bytes_of(first), whole.data());
      std::copy_n(whole.begin() + begin, count, values.begin());
      first += count;
      values = values.subspan(static_cast<std::size_t>(count));
    }
  }
};

struct CodedQ8_0 {
  using Block = BlockQ8_0;
  static constexpr QuantMethod kMethod = QuantMethod::GgufBlocks;
  static constexpr Dtype kCodes = Dtype::I8;
  static constexpr WeightFormat kFormat = WeightFormat::int8(32, ScaleType::F16);
  static std::uint32_t code(const BlockBytes& block, Index i) { return block.at(2 + i); }
  static float scale(const BlockBytes& block) { return block.half_at(0); }
};

/// q - 8 in two's complement is q with its upper bit turned.
struct CodedQ4_0 {
  using Block = BlockQ4_0;
  static constexpr QuantMethod kMethod = QuantMethod::GgufBlocks;
  static constexpr Dtype kCodes = Dtype::U8;
  static constexpr WeightFormat kFormat = WeightFormat::int4(32, ScaleType::F16);
  static std::uint32_t code(const BlockBytes& block, Index i) { return block.nibble(2 + i % 16, i / 16) ^ 8u; }
  static float scale(const BlockBytes& block) { return block.half_at(0); }
};

/// The bits of the file, and the values of them that other files of MXFP4 have: code 8 is -0, and 255 a NaN.
struct CodedMxfp4 {
  using Block = BlockMxfp4;
  static constexpr QuantMethod kMethod = QuantMethod::Mxfp4;
  static constexpr Dtype kCodes = Dtype::U8;
  static constexpr WeightFormat kFormat = WeightFormat::mxfp4();
  static std::uint32_t code(const BlockBytes& block, Index i) { return block.nibble(1 + i % 16, i / 16); }
  static float scale(const BlockBytes& block) { return e8m0_to_float(static_cast<std::uint8_t>(block.at(0))); }
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float power = scale(block);
    decode_nibbles(block, 1, to, [&](unsigned q, Index) { return kFloatOfE2M1[q] * power; });
  }
};

/// `name` in a type of blocks.
struct GgufLayout {
  static std::string codes(const std::string& name) { return name; }
  static bool takes(const StoredParts& parts, const TensorView& codes) {
    return parts.format() == CheckpointFormat::Gguf && codes.dtype == Dtype::Other && find_gguf_block(codes.other);
  }
  static std::unique_ptr<WeightStorage> open(StoredParts& parts) {
    const TensorView tensor = parts.take(parts.name());
    const GgufBlockType& type = *find_gguf_block(tensor.other);
    if (type.name == BlockQ8_0::kName) return std::make_unique<CodedGgufStorage<CodedQ8_0>>(tensor, type);
    if (type.name == BlockQ4_0::kName) return std::make_unique<CodedGgufStorage<CodedQ4_0>>(tensor, type);
    if (type.name == BlockMxfp4::kName) return std::make_unique<CodedGgufStorage<CodedMxfp4>>(tensor, type);
    return std::make_unique<GgufStorage>(tensor, type);
  }
};

}  // namespace moe::inline MOE_ABI::detail
