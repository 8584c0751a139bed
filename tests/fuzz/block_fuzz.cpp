// SPDX-License-Identifier: MIT
// Any configuration with any tensors: refused with a runtime_error, or the block is loaded in full and runs.
#include "fuzz/block_target.hpp"
#include "support/kernels.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  test::fuzz_block({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
