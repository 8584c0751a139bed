// SPDX-License-Identifier: MIT
// Reports what allocates though it is warm. For one source file per program, as programs/heap.hpp.
#pragma once

#include <cstdio>
#include <string>

#include "programs/heap.hpp"

namespace test {

inline int num_failed = 0;

/// Runs `body` once to warm up, then again: reports allocations of the second and third run.
template <class Body>
void expect_none(const std::string& name, const Body& body) {
  body();
  const long before = allocations.load();
  body();
  body();
  const long count = allocations.load() - before;
  if (count == 0) return;
  ++num_failed;
  std::printf("%s: %ld allocations\n", name.c_str(), count);
}

/// What main returns.
inline int report() {
  std::printf("%d failed\n", num_failed);
  return num_failed == 0 ? 0 : 1;
}

}  // namespace test
