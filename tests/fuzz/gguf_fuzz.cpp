// SPDX-License-Identifier: MIT
// Any bytes as a GGUF file: refused with a runtime_error, or metadata, tensors and weights can be read.
#include "fuzz/gguf_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  test::fuzz_gguf({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
