// SPDX-License-Identifier: MIT
// Any bytes as a .npy file: refused with a runtime_error, or the array can be read.
#include "fuzz/targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  test::fuzz_npy({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
