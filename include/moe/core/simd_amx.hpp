// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "moe/core/simd.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AVX512BW__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define MOE_DETAIL_AMX 1
#endif

// Products of tiles of 16 x 64 bytes, summed up in 32 bits (AMX). By assembler of our own: the intrinsics of g++ 12 do
// not say that they read memory.
namespace moe::inline MOE_ABI::simd {

/// Rows of a tile, and bytes of its rows.
inline constexpr Index kByteTileRows = 16, kByteTileBytes = 64;

#if defined(MOE_DETAIL_AMX)
#undef MOE_DETAIL_AMX
inline constexpr bool kMultipliesByteTiles = true;

/// Whether the system lets this process use tiles, which it has to ask for: not where its kernel is too old, or a
/// thread has an alternative stack for signals too small for their registers.
inline bool may_use_byte_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool is_granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return is_granted;
}

/// While it lives, this thread has tiles 0 to 3 of 16 x 16 sums, 4 and 5 of 16 rows of `words` words, and 6 and 7 of
/// `words` rows of 16 words.
class ByteTiles {
 public:
  explicit ByteTiles(Index words) {
    alignas(64) Configuration tiles;
    for (std::size_t t = 0; t < 8; ++t) {
      tiles.bytes[t] = static_cast<std::uint16_t>(t == 4 || t == 5 ? 4 * words : kByteTileBytes);
      tiles.rows[t] = static_cast<std::uint8_t>(t < 6 ? kByteTileRows : words);
    }
    __asm__ volatile("ldtilecfg\t%0" ::"m"(tiles) : "memory");
  }
  ~ByteTiles() { __asm__ volatile("tilerelease" ::: "memory"); }
  ByteTiles(const ByteTiles&) = delete;
  ByteTiles& operator=(const ByteTiles&) = delete;

 private:
  struct Configuration {
    std::uint8_t palette = 1, start_row = 0;
    std::array<std::uint8_t, 14> reserved = {};
    std::array<std::uint16_t, 16> bytes = {};
    std::array<std::uint8_t, 16> rows = {};
  };
};

template <int kTile>
[[gnu::always_inline]] inline void clear_tile() {
  __asm__ volatile("tilezero\t%%tmm%c0" ::"i"(kTile) : "memory");
}
/// Rows lie `stride` bytes apart.
template <int kTile>
[[gnu::always_inline]] inline void load_tile(const std::byte* from, Index stride) {
  __asm__ volatile("tileloadd\t(%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride) : "memory");
}
template <int kTile>
[[gnu::always_inline]] inline void store_tile(std::byte* to, Index stride) {
  __asm__ volatile("tilestored\t%%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(to), "r"(stride) : "memory");
}
/// sums[r][c] += products of signed integers of 8 bits, rows[r][w] word by word times weights[w][c].
template <int kSums, int kRows, int kWeights>
[[gnu::always_inline]] inline void add_tile_products() {
  __asm__ volatile("tdpbssd\t%%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kWeights) : "memory");
}
#else
inline constexpr bool kMultipliesByteTiles = false;
inline bool may_use_byte_tiles() { return false; }
struct ByteTiles {
  explicit ByteTiles(Index) {}
};
template <int>
void clear_tile() {}
template <int>
void load_tile(const std::byte*, Index) {}
template <int>
void store_tile(std::byte*, Index) {}
template <int, int, int>
void add_tile_products() {}
#endif

}  // namespace moe::inline MOE_ABI::simd
