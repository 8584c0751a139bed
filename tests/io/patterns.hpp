// SPDX-License-Identifier: MIT
// Parameters of every bit pattern.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/core/visit.hpp"

namespace test {

/// Signed zero, denormals, infinities, NaNs with a payload, then random bits.
template <class S>
S pattern(moe::Index k) {
  using Bits = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;
  constexpr S kInf = std::numeric_limits<S>::infinity();
  const Bits special[] = {std::bit_cast<Bits>(S{-0.0}),  1,
                          std::bit_cast<Bits>(kInf),     std::bit_cast<Bits>(-kInf),
                          std::bit_cast<Bits>(kInf) + 1, std::bit_cast<Bits>(-kInf) + 0x1234};
  const moe::RandomField random(moe::Purpose::User, 5);
  return std::bit_cast<S>(k % 97 < 6 ? special[k % 97] : static_cast<Bits>(random.bits(k)));
}

/// Fills every logical parameter, and state, with patterns of its own scalar, no two parameters alike.
template <class Layer>
void fill_with_patterns(Layer& layer) {
  moe::Index first = 0;
  moe::visit_all(
      [&](const std::string&, auto& leaf) {
        using S = moe::ParameterScalar<decltype(leaf)>;
        std::vector<S> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
        for (S& value : values) value = pattern<S>(first++);
        moe::write_parameter(leaf, std::span<const S>(values));
      },
      layer);
}

}  // namespace test
