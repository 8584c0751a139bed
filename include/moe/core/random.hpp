// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Philox4x32-10: four random words as a pure function of a 128-bit counter and a 64-bit key.
/// Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
constexpr std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

/// What a draw is for. Draws with different purposes are independent even when all else is equal.
enum class Purpose : std::uint32_t {
  Initialise,
  Noise,
  Gumbel,
  Draw,
  Capacity,
  Jitter,
  Shuffle,
  Dropout,
  Action,
  User = 1000
};

/// A field of random numbers: every value is a pure function of the key and of where it stands (row, column), never of
/// the order of calls, so draws are the same for any thread count, in any batch, and when a call is replayed.
/// Immutable, share freely. No allocation.
class RandomField {
 public:
  /// Mixes the key; any number of parts, in a meaningful order (for a Step: seed, update, layer, pass).
  template <class... Parts>
  explicit constexpr RandomField(Purpose purpose, Parts... parts) : key_(mix(static_cast<std::uint64_t>(purpose))) {
    ((key_ = mix(key_ ^ static_cast<std::uint64_t>(parts))), ...);
  }

  /// 64 random bits.
  constexpr std::uint64_t bits(std::int64_t row, std::int64_t column = 0) const {
    const auto r = static_cast<std::uint64_t>(row), c = static_cast<std::uint64_t>(column);
    const auto word = philox({low(r), high(r), low(c), high(c)}, {low(key_), high(key_)});
    return (std::uint64_t{word[0]} << 32) | word[1];
  }

  /// Uniform in the open interval (0, 1), a multiple of 2^-53.
  constexpr double uniform(std::int64_t row, std::int64_t column = 0) const {
    return (static_cast<double>(bits(row, column) >> 12) + 0.5) * 0x1p-52;
  }

  /// Standard normal (Box-Muller).
  double normal(std::int64_t row, std::int64_t column = 0) const {
    const auto r = static_cast<std::uint64_t>(row), c = static_cast<std::uint64_t>(column);
    const auto word = philox({low(r), high(r), low(c), high(c)}, {low(key_), high(key_)});
    const double radius = (static_cast<double>(((std::uint64_t{word[0]} << 32) | word[1]) >> 12) + 0.5) * 0x1p-52;
    const double angle = (static_cast<double>(((std::uint64_t{word[2]} << 32) | word[3]) >> 12) + 0.5) * 0x1p-52;
    return std::sqrt(-2.0 * std::log(radius)) * std::cos(2.0 * std::numbers::pi * angle);
  }

  /// Standard Gumbel, -log(-log U): the arg-max of logits plus Gumbel draws is a draw from their softmax.
  double gumbel(std::int64_t row, std::int64_t column = 0) const { return -std::log(-std::log(uniform(row, column))); }

  /// Uniform integer in [0, count); bias below count / 2^64 (multiply-shift).
  constexpr std::uint64_t below(std::uint64_t count, std::int64_t row, std::int64_t column = 0) const {
    const std::uint64_t x = bits(row, column);
    const std::uint64_t cross = (x & 0xFFFFFFFFu) * (count & 0xFFFFFFFFu) >> 32;
    const std::uint64_t mid = (x >> 32) * (count & 0xFFFFFFFFu) + cross;
    const std::uint64_t mid2 = (x & 0xFFFFFFFFu) * (count >> 32) + (mid & 0xFFFFFFFFu);
    return (x >> 32) * (count >> 32) + (mid >> 32) + (mid2 >> 32);
  }

 private:
  static constexpr std::uint64_t mix(std::uint64_t x) {  // splitmix64's finaliser: a bijection
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  static constexpr std::uint32_t low(std::uint64_t x) { return static_cast<std::uint32_t>(x); }
  static constexpr std::uint32_t high(std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); }

  std::uint64_t key_;
};

}  // namespace moe::inline MOE_ABI
