// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"
#include "moe/core/small_float.hpp"

// Blocks of quantised values, as GGUF files store them: every struct is one type of ggml (docs/gguf.md of ggml, its
// structs block_q4_0 and so on). Products of codes and scales fit the digits of a float, so there is at most one
// rounding, that of the last sum, and fusing it changes no bit.
// Long, as each type of block stands here once.
namespace moe::inline MOE_ABI {

namespace detail {

/// Values of the large blocks, and of those in them that share a scale.
inline constexpr Index kSuperBlock = 256;

/// The bytes of a block, as numbers.
class BlockBytes {
 public:
  explicit BlockBytes(const std::byte* from) : from_(from) {}

  unsigned at(Index place) const { return std::to_integer<unsigned>(from_[place]); }
  int signed_at(Index place) const { return static_cast<std::int8_t>(at(place)); }
  /// Nibble 0 is the low one.
  unsigned nibble(Index place, Index half) const { return at(place) >> (4 * half) & 15u; }
  float half_at(Index place) const {
    std::uint16_t code = 0;
    std::memcpy(&code, from_ + place, sizeof code);
    return half_to_float(code);
  }

 private:
  const std::byte* from_;
};

/// d, 32 x int8: y = q d.
struct BlockQ8_0 {
  static constexpr std::string_view kName = "Q8_0";
  static constexpr Index kValues = 32, kBytes = 34;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(0);
    for (Index i = 0; i < kValues; ++i) to[i] = static_cast<float>(block.signed_at(2 + i)) * d;
  }
};

/// Codes of 4 bits: value i of 32 in the low half of byte i, value i + 16 in its high half.
template <class ValueOf>
void decode_nibbles(const BlockBytes& block, Index place, float* to, const ValueOf& value_of) {
  for (Index i = 0; i < 16; ++i) {
    to[i] = value_of(block.nibble(place + i, 0), i);
    to[i + 16] = value_of(block.nibble(place + i, 1), i + 16);
  }
}

/// d, nibbles: y = (q - 8) d.
struct BlockQ4_0 {
  static constexpr std::string_view kName = "Q4_0";
  static constexpr Index kValues = 32, kBytes = 18;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(0);
    decode_nibbles(block, 2, to, [&](unsigned q, Index) { return static_cast<float>(static_cast<int>(q) - 8) * d; });
  }
};

/// d, m, nibbles: y = q d + m.
struct BlockQ4_1 {
  static constexpr std::string_view kName = "Q4_1";
  static constexpr Index kValues = 32, kBytes = 20;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(0), m = block.half_at(2);
    decode_nibbles(block, 4, to, [&](unsigned q, Index) { return static_cast<float>(q) * d + m; });
  }
};

/// Bit 4 of value i is bit i of four bytes.
inline unsigned fifth_bit(const BlockBytes& block, Index place, Index i) {
  return (block.at(place + i / 8) >> (i % 8) & 1u) << 4;
}

/// d, fifth bits, nibbles: y = (q - 16) d.
struct BlockQ5_0 {
  static constexpr std::string_view kName = "Q5_0";
  static constexpr Index kValues = 32, kBytes = 22;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(0);
    decode_nibbles(block, 6, to, [&](unsigned q, Index i) {
      return static_cast<float>(static_cast<int>(q | fifth_bit(block, 2, i)) - 16) * d;
    });
  }
};

/// d, m, fifth bits, nibbles: y = q d + m.
struct BlockQ5_1 {
  static constexpr std::string_view kName = "Q5_1";
  static constexpr Index kValues = 32, kBytes = 24;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(0), m = block.half_at(2);
    decode_nibbles(block, 8, to,
                   [&](unsigned q, Index i) { return static_cast<float>(q | fifth_bit(block, 4, i)) * d + m; });
  }
};

/// Values 16 s + l of a large block have codes of 2 bits: bits 2 (s / 2 % 4) of byte 32 (s / 8) + 16 (s % 2) + l.
inline unsigned two_bits(const BlockBytes& block, Index place, Index s, Index l) {
  return block.at(place + 32 * (s / 8) + 16 * (s % 2) + l) >> (s / 2 % 4 * 2) & 3u;
}

/// 16 x (scale, min) of 4 bits, codes of 2 bits, d, m: y = q (d scale) - m min, a scale and min per 16 values.
struct BlockQ2_K {
  static constexpr std::string_view kName = "Q2_K";
  static constexpr Index kValues = kSuperBlock, kBytes = 84;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(80), m = block.half_at(82);
    for (Index s = 0; s < 16; ++s) {
      const float scale = d * static_cast<float>(block.nibble(s, 0)), min = m * static_cast<float>(block.nibble(s, 1));
      for (Index l = 0; l < 16; ++l) to[16 * s + l] = scale * static_cast<float>(two_bits(block, 16, s, l)) - min;
    }
  }
};

/// Third bits, codes of 2 bits, 16 scales of 6 bits, d: y = (q - 4) (d (scale - 32)), a scale per 16 values. Third bit
/// s / 2 of value 16 s + l is in byte 16 (s % 2) + l.
struct BlockQ3_K {
  static constexpr std::string_view kName = "Q3_K";
  static constexpr Index kValues = kSuperBlock, kBytes = 110;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(108);
    for (Index s = 0; s < 16; ++s) {
      const unsigned low = block.nibble(96 + s % 8, s / 8), high = block.at(104 + s % 4) >> (s / 4 * 2) & 3u;
      const float scale = d * static_cast<float>(static_cast<int>(low | high << 4) - 32);
      for (Index l = 0; l < 16; ++l) {
        const unsigned third = block.at(16 * (s % 2) + l) >> (s / 2) & 1u;
        const int q = static_cast<int>(two_bits(block, 32, s, l) | third << 2) - 4;
        to[16 * s + l] = scale * static_cast<float>(q);
      }
    }
  }
};

/// Scale and min `s` of 8 in 12 bytes of 6 bits each: the first four of both in the low bits of eight bytes, whose
/// upper bits are those of the others, before the nibbles of the last four bytes.
struct ScaleAndMin {
  float scale, min;

  static ScaleAndMin of(const BlockBytes& block, Index place, Index s) {
    if (s < 4)
      return {static_cast<float>(block.at(place + s) & 63u), static_cast<float>(block.at(place + s + 4) & 63u)};
    const unsigned scale = block.nibble(place + s + 4, 0) | block.at(place + s - 4) >> 6 << 4;
    const unsigned min = block.nibble(place + s + 4, 1) | block.at(place + s) >> 6 << 4;
    return {static_cast<float>(scale), static_cast<float>(min)};
  }
};

/// d, m, scales and mins, nibbles: y = q (d scale) - m min, a scale and min per 32 values. Value 32 s + l is nibble
/// s % 2 of byte 32 (s / 2) + l.
struct BlockQ4_K {
  static constexpr std::string_view kName = "Q4_K";
  static constexpr Index kValues = kSuperBlock, kBytes = 144;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(0), m = block.half_at(2);
    for (Index s = 0; s < 8; ++s) {
      const ScaleAndMin part = ScaleAndMin::of(block, 4, s);
      const float scale = d * part.scale, min = m * part.min;
      for (Index l = 0; l < 32; ++l)
        to[32 * s + l] = scale * static_cast<float>(block.nibble(16 + 32 * (s / 2) + l, s % 2)) - min;
    }
  }
};

/// The same with fifth bits before the nibbles: bit s of byte l.
struct BlockQ5_K {
  static constexpr std::string_view kName = "Q5_K";
  static constexpr Index kValues = kSuperBlock, kBytes = 176;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(0), m = block.half_at(2);
    for (Index s = 0; s < 8; ++s) {
      const ScaleAndMin part = ScaleAndMin::of(block, 4, s);
      const float scale = d * part.scale, min = m * part.min;
      for (Index l = 0; l < 32; ++l) {
        const unsigned fifth = block.at(16 + l) >> s & 1u;
        to[32 * s + l] = scale * static_cast<float>(block.nibble(48 + 32 * (s / 2) + l, s % 2) | fifth << 4) - min;
      }
    }
  }
};

/// Nibbles, codes of 2 bits above them, 16 x int8 scales, d: y = (q - 32) (d scale), a scale per 16 values. Value
/// 128 n + 32 j + l is nibble j / 2 of byte 64 n + 32 (j % 2) + l, with bits 2 j of byte 32 n + l.
struct BlockQ6_K {
  static constexpr std::string_view kName = "Q6_K";
  static constexpr Index kValues = kSuperBlock, kBytes = 210;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(208);
    for (Index s = 0; s < 16; ++s) {
      const Index n = s / 8, j = s / 2 % 4, first = s % 2 * 16;
      const float scale = d * static_cast<float>(block.signed_at(192 + s));
      for (Index l = first; l < first + 16; ++l) {
        const unsigned high = block.at(128 + 32 * n + l) >> (2 * j) & 3u;
        const int q = static_cast<int>(block.nibble(64 * n + 32 * (j % 2) + l, j / 2) | high << 4) - 32;
        to[128 * n + 32 * j + l] = scale * static_cast<float>(q);
      }
    }
  }
};

/// What the nibbles of IQ4_NL and IQ4_XS stand for.
inline constexpr std::array<float, 16> kNonLinear{-127, -104, -83, -65, -49, -35, -22, -10,
                                                  1,    13,   25,  38,  53,  69,  89,  113};

/// d, nibbles: y = table(q) d.
struct BlockIq4Nl {
  static constexpr std::string_view kName = "IQ4_NL";
  static constexpr Index kValues = 32, kBytes = 18;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(0);
    decode_nibbles(block, 2, to, [&](unsigned q, Index) { return kNonLinear[q] * d; });
  }
};

/// d, upper bits and nibbles of 8 scales, nibbles: y = table(q) (d (scale - 32)), a scale per 32 values.
struct BlockIq4Xs {
  static constexpr std::string_view kName = "IQ4_XS";
  static constexpr Index kValues = kSuperBlock, kBytes = 136;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const float d = block.half_at(0);
    for (Index s = 0; s < 8; ++s) {
      const unsigned high = block.at(2 + s / 4) >> (s % 4 * 2) & 3u;
      const float scale = d * static_cast<float>(static_cast<int>(block.nibble(4 + s / 2, s % 2) | high << 4) - 32);
      decode_nibbles(block, 8 + 16 * s, to + 32 * s, [&](unsigned q, Index) { return kNonLinear[q] * scale; });
    }
  }
};

/// A byte e, nibbles E2M1: y = 2^(e - 127) E2M1(q), as ggml computes it: code 8 is +0, and e = 255 the power 2^128 (a
/// product that is too large is infinite), where OCP Microscaling Formats 1.0 has -0 and NaN.
struct BlockMxfp4 {
  static constexpr std::string_view kName = "MXFP4";
  static constexpr Index kValues = 32, kBytes = 17;
  static void decode(const std::byte* from, float* to) {
    const BlockBytes block(from);
    const unsigned e = block.at(0);
    // Half of the power, which is a float for any e, and twice the values.
    const float half = std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    decode_nibbles(block, 1, to, [&](unsigned q, Index) { return (q == 8 ? 0.0f : 2 * kFloatOfE2M1[q]) * half; });
  }
};

}  // namespace detail

/// A type of blocks of which values are read. A plain value.
struct GgufBlockType {
  std::string_view name;                             ///< as ggml spells it: "Q4_K"
  Index values, bytes;                               ///< of a block
  void (*decode)(const std::byte* from, float* to);  ///< one block, anywhere aligned, to as many floats
};

namespace detail {

template <class Block>
inline constexpr GgufBlockType kGgufBlock{Block::kName, Block::kValues, Block::kBytes, &Block::decode};

}  // namespace detail

/// All of them. One more is a struct like those above, and a line here.
inline constexpr std::array kGgufBlocks{detail::kGgufBlock<detail::BlockQ8_0>,  detail::kGgufBlock<detail::BlockQ4_0>,
                                        detail::kGgufBlock<detail::BlockQ4_1>,  detail::kGgufBlock<detail::BlockQ5_0>,
                                        detail::kGgufBlock<detail::BlockQ5_1>,  detail::kGgufBlock<detail::BlockQ2_K>,
                                        detail::kGgufBlock<detail::BlockQ3_K>,  detail::kGgufBlock<detail::BlockQ4_K>,
                                        detail::kGgufBlock<detail::BlockQ5_K>,  detail::kGgufBlock<detail::BlockQ6_K>,
                                        detail::kGgufBlock<detail::BlockIq4Nl>, detail::kGgufBlock<detail::BlockIq4Xs>,
                                        detail::kGgufBlock<detail::BlockMxfp4>};

/// The type of this name, or null.
constexpr const GgufBlockType* find_gguf_block(std::string_view name) {
  for (const GgufBlockType& type : kGgufBlocks)
    if (type.name == name) return &type;
  return nullptr;
}

/// Values [first, first + values.size()) of consecutive blocks, bit for bit as ggml defines them. Throws
/// std::invalid_argument for values that the blocks do not have. No allocation; one pass.
inline void decode_gguf(const GgufBlockType& type, std::span<const std::byte> blocks, Index first,
                        std::span<float> values) {
  const Index size = std::ssize(blocks) / type.bytes * type.values;
  if (first < 0 || first > size || std::ssize(values) > size - first)
    fail("moe::decode_gguf: values [", first, ", ", first, " + ", values.size(), ") of ", size, " in ", blocks.size(),
         " bytes of ", type.name);
  std::array<float, static_cast<std::size_t>(detail::kSuperBlock)> whole;
  while (!values.empty()) {
    const std::byte* const from = blocks.data() + first / type.values * type.bytes;
    const Index begin = first % type.values, count = std::min(type.values - begin, std::ssize(values));
    if (count == type.values) {
      type.decode(from, values.data());
    } else {
      type.decode(from, whole.data());
      std::copy_n(whole.begin() + begin, count, values.begin());
    }
    first += count;
    values = values.subspan(static_cast<std::size_t>(count));
  }
}

}  // namespace moe::inline MOE_ABI
