// SPDX-License-Identifier: MIT
// Any bytes as a safetensors file: refused with a runtime_error, or every tensor can be read.
#include "fuzz/targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  test::fuzz_safetensors({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
