// SPDX-License-Identifier: MIT
// Catch2 2.13 or 3, whichever is installed: the only place where tests tell them apart.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>

namespace Catch::Matchers {
/// The name of version 3, where Contains() is about ranges.
inline auto ContainsSubstring(const std::string& text) { return Contains(text); }
}  // namespace Catch::Matchers
#endif
