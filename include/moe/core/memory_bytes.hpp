// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

#include "moe/core/visit.hpp"

namespace moe::inline MOE_ABI {

/// Bytes that the numbers of an object take, parameters and state, with the padding of panels: of a layer, a block, an
/// expert. Codes that copies share count in each of them.
template <class T>
std::size_t memory_bytes(const T& object) {
  std::size_t bytes = 0;
  visit_all(
      [&](const std::string&, const auto& leaf) {
        if constexpr (requires { leaf.bytes(); })
          bytes += static_cast<std::size_t>(leaf.bytes());
        else
          bytes += parameter_span(leaf).size_bytes();
      },
      object);
  return bytes;
}

}  // namespace moe::inline MOE_ABI
