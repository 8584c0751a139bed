// SPDX-License-Identifier: MIT
// Any bytes as a config.json: refused with a runtime_error, or a configuration that is in range.
#include "fuzz/targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  test::fuzz_config({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
