// SPDX-License-Identifier: MIT
// Any bytes as a index of a sharded checkpoint: refused with a runtime_error, or its files stay below.
#include "fuzz/targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  test::fuzz_index({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
