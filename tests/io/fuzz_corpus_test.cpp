// SPDX-License-Identifier: MIT
// Replays tests/data/fuzz/<target>: files made to break readers, and what the fuzz targets have found.
#include <filesystem>
#include <string>

#include "fuzz/adapter_target.hpp"
#include "fuzz/block_target.hpp"
#include "fuzz/gguf_target.hpp"
#include "fuzz/trace_target.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

namespace {

/// Files whose name begins with "good-" are accepted, all others refused; whatever else happens ends the program.
template <class Target>
void replay(const char* name, const Target& target) {
  int good = 0, bad = 0;
  for (const auto& file : std::filesystem::directory_iterator(std::string(MOE_TEST_DATA) + "/fuzz/" + name)) {
    CAPTURE(file.path().string());
    const std::string bytes = test::read_bytes(file.path());
    const bool accepted = target(std::as_bytes(std::span(bytes)));
    REQUIRE(accepted == file.path().filename().string().starts_with("good-"));
    ++(accepted ? good : bad);
    // Cut anywhere, it is read or refused, but breaks nothing.
    for (std::size_t size = 0; size < bytes.size(); size += 1 + bytes.size() / 256)
      target(std::as_bytes(std::span(bytes).first(size)));
  }
  REQUIRE(good > 0);
  REQUIRE(bad > 0);
}

}  // namespace

TEST_CASE("Fuzz corpus: safetensors files are read or refused", "[io][error]") {
  replay("safetensors", test::fuzz_safetensors);
}

TEST_CASE("Fuzz corpus: indexes are read or refused", "[io][error]") { replay("index", test::fuzz_index); }

TEST_CASE("Fuzz corpus: .npy files are read or refused", "[io][error]") { replay("npy", test::fuzz_npy); }

TEST_CASE("Fuzz corpus: tables are read or refused", "[io][error]") { replay("csv", test::fuzz_csv); }

TEST_CASE("Fuzz corpus: config.json files are read or refused", "[io][error]") { replay("config", test::fuzz_config); }

TEST_CASE("Fuzz corpus: GGUF files are read or refused", "[io][error]") { replay("gguf", test::fuzz_gguf); }

TEST_CASE("Fuzz corpus: weights in any layout are read or refused", "[io][error]") {
  replay("layouts", test::fuzz_layouts);
}

TEST_CASE("Fuzz corpus: blocks of described checkpoints are loaded or refused", "[io][error]") {
  replay("block", test::fuzz_block);
}

TEST_CASE("Fuzz corpus: adapters of PEFT are read or refused", "[io][error]") { replay("adapter", test::fuzz_adapter); }

TEST_CASE("Fuzz corpus: traces of routings are read or refused", "[io][error]") { replay("trace", test::fuzz_trace); }
