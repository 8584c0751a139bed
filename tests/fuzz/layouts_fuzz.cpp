// SPDX-License-Identifier: MIT
// Any tensors of one weight: refused with a runtime_error, or its values are its codes, zero points and scales.
#include "fuzz/layouts_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  test::fuzz_layouts({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
