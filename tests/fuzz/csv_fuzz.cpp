// SPDX-License-Identifier: MIT
// Any text as a table: refused with a runtime_error that says where, or a matrix of finite numbers.
#include "fuzz/targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  test::fuzz_csv({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
