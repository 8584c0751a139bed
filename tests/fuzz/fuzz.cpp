// SPDX-License-Identifier: MIT
// All fuzz targets in one program, as what they share takes minutes to compile:
//   moe_fuzz --target=npy -max_total_time=60 corpus/
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string_view>
#include <utility>

#include "fuzz/adapter_target.hpp"
#include "fuzz/block_target.hpp"
#include "fuzz/gguf_target.hpp"
#include "fuzz/layouts_target.hpp"
#include "fuzz/targets.hpp"
#include "fuzz/trace_target.hpp"
#include "support/kernels.hpp"

namespace {

/// Returns whether it takes the bytes, and stops where a promise is broken; see the files of the targets.
using Target = bool (*)(std::span<const std::byte>);
Target target = nullptr;

/// Any bytes are refused with a runtime_error, or
constexpr std::pair<std::string_view, Target> targets[] = {
    {"adapter", test::fuzz_adapter},          // adapters of PEFT are of their matrices, and the same when written again
    {"block", test::fuzz_block},              // a block is loaded in full and runs
    {"config", test::fuzz_config},            // a config.json is in range
    {"csv", test::fuzz_csv},                  // a table has finite numbers; errors say where
    {"gguf", test::fuzz_gguf},                // metadata, tensors and weights can be read
    {"index", test::fuzz_index},              // the files of a sharded checkpoint stay below it
    {"layouts", test::fuzz_layouts},          // values of one weight are its codes, zero points and scales
    {"npy", test::fuzz_npy},                  // the array can be read
    {"safetensors", test::fuzz_safetensors},  // every tensor can be read
    {"trace", test::fuzz_trace},              // a trace is in range, and the same when written again
};

}  // namespace

/// libFuzzer passes over options that start with two dashes.
extern "C" int LLVMFuzzerInitialize(const int* argc, char*** argv) {
  constexpr std::string_view kOption = "--target=";
  for (int i = 1; i < *argc; ++i) {
    const std::string_view option = (*argv)[i];
    if (!option.starts_with(kOption)) continue;
    for (const auto& [name, run] : targets)
      if (name == option.substr(kOption.size())) target = run;
  }
  if (target != nullptr) return 0;
  std::fprintf(stderr, "moe_fuzz: expected --target= and one of");
  for (const auto& [name, run] : targets) std::fprintf(stderr, " %s", name.data());
  std::fprintf(stderr, "\n");
  std::exit(2);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  target({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
