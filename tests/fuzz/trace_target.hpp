// SPDX-License-Identifier: MIT
// Any bytes as a trace of routings: refused with a runtime_error, or a trace that is in range, and the same when it has
// been written and read again.
#pragma once

#include <cstdint>
#include <set>

#include "fuzz/fuzz_directory.hpp"
#include "fuzz/targets.hpp"
#include "moe/serve/trace_file.hpp"
#include "support/files.hpp"

namespace test {

inline bool fuzz_trace(std::span<const std::byte> bytes) {
  static const FuzzDirectory directory("trace");
  const auto path = directory / "x.safetensors", again = directory / "again.safetensors";
  write_bytes(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  try {
    const moe::RoutingTrace trace = moe::load_trace(path);
    moe::Index choices = 0;
    for (moe::Index t = 0; t < trace.num_tokens(); ++t) {
      std::set<std::uint32_t> once;
      for (const std::uint32_t e : trace.experts(t))
        require(static_cast<moe::Index>(e) < trace.num_experts() && once.insert(e).second,
                "a token has experts that are there, each once");
      choices += std::ssize(trace.experts(t));
      if (trace.has_scores()) require(std::ssize(trace.scores(t)) == trace.num_experts(), "a score for each expert");
    }
    require(choices == trace.num_choices(), "choices are those of tokens");
    for (moe::Index i = 0; i < trace.num_sequences(); ++i)
      require(trace.sequence_begin(i) < trace.sequence_begin(i + 1), "sequences ascend");
    moe::save_trace(again, trace);
    // Equal but for NaN scores, which equal nothing.
    const std::string first = read_bytes(again);
    moe::save_trace(again, moe::load_trace(again));
    require(first == read_bytes(again), "a trace is the same when it is read again");
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

}  // namespace test
