// SPDX-License-Identifier: MIT
// Any configuration with any tensors as adapters of PEFT: refused with a runtime_error, or all updates are of their
// matrices, and are the same when they have been written and read again.
#include "fuzz/adapter_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  test::fuzz_adapter({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
