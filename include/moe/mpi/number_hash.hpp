// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string_view>

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI::mpi::detail {

/// FNV-1a of numbers, for ranks to compare: equal where these are, and hardly else.
class NumberHash {
 public:
  void add(std::int64_t number) { hash_ = (hash_ ^ static_cast<std::uint64_t>(number)) * 1099511628211u; }
  void add(std::string_view text) {
    for (const char c : text) add(static_cast<std::int64_t>(static_cast<unsigned char>(c)));
  }
  std::int64_t value() const { return static_cast<std::int64_t>(hash_); }

 private:
  std::uint64_t hash_ = 14695981039346656037u;
};

}  // namespace moe::inline MOE_ABI::mpi::detail
