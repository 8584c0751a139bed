// SPDX-License-Identifier: MIT
// What the Google Benchmark programs share: names, rates, and what the machine can do next to them.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "clock.hpp"
#include "limits.hpp"
#include "measure.hpp"
#include "moe/core/parallel.hpp"
#include "ratios.hpp"
#include "routing_patterns.hpp"
#include "shapes.hpp"

namespace bench {

/// Registers "<name>/tokens:<T>" for batches of decode, and of small and large prefill. Times are those of measure().
inline void add(const std::string& name, std::function<void(benchmark::State&)> body,
                const std::vector<std::int64_t>& tokens = {1, 64, 512, 4096}) {
  benchmark::RegisterBenchmark(name.c_str(), std::move(body))
      ->ArgName("tokens")
      ->ArgsProduct({tokens})
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

/// The same for every shape and routing pattern: <name>/<shape>/<pattern>; body(state, shape, pattern).
inline void add_for_all(const std::string& name, void (*body)(benchmark::State&, const Shape&, Pattern)) {
  for (const Shape& shape : kShapes)
    for (const Pattern pattern : kPatterns)
      add(name + "/" + shape.name + "/" + name_of(pattern),
          [=, &shape](benchmark::State& state) { body(state, shape, pattern); });
}

/// Keeps parallel loops on one thread while it lives: for what is compared with a serial loop.
class OneThread {
 public:
  OneThread() : use_(executor_) {}

 private:
  moe::SerialExecutor executor_ = {};
  moe::UseExecutor use_;
};

/// Times call() on all threads (OMP_NUM_THREADS, or one in the scope of OneThread), after an untimed prepare().
/// Counters: tokens, bytes and operations per second;
///   percent_of_memcpy   bytes read and written, of what memcpy of as many bytes moves
///   percent_of_limit    max(flop / FMA peak, bytes / read bandwidth) / time
/// Limits are measured just before, for the cache or memory, wherever that many bytes fit.
template <class Prepare, class Call>
void measure_after(benchmark::State& state, const Work& work, Prepare&& prepare, Call&& call) {
  const auto bytes = static_cast<Index>(work.bytes);
  const int threads = static_cast<int>(moe::num_workers());
  const Limits limits = LimitMeter(bytes, threads).measure();
  const double copied = 2 * memcpy_bandwidth(bytes / 2 + 1, threads);
  prepare();
  call();  // buffers grow, caches fill
  double calls = 0, total = 0;
  for (auto _ : state) {
    prepare();
    const double seconds = seconds_of(call);
    benchmark::ClobberMemory();
    state.SetIterationTime(seconds);
    total += seconds;
    ++calls;
  }
  const auto rate = [&](double per_call) { return benchmark::Counter(per_call * calls / total); };
  state.counters["tokens"] = rate(static_cast<double>(state.range(0)));
  state.counters["bytes"] = rate(work.bytes);
  if (work.flop > 0) state.counters["flop"] = rate(work.flop);
  state.counters["percent_of_memcpy"] = 100 * work.bytes / copied * calls / total;
  state.counters["percent_of_limit"] =
      100 * std::max(work.flop / limits.flop, work.bytes / limits.bytes) * calls / total;
}

/// The same without preparation.
template <class Call>
void measure(benchmark::State& state, const Work& work, Call&& call) {
  measure_after(
      state, work, [] {}, call);
}

/// The rest of main(). Fails if the filter matches nothing. Shows ratios to the reference, but with --benchmark_format.
inline int run(int argc, char** argv) {
  bool own_format = true;
  for (int i = 1; i < argc; ++i)
    own_format = own_format && !std::string_view(argv[i]).starts_with("--benchmark_format");
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  RatioReporter ratios;
  return benchmark::RunSpecifiedBenchmarks(own_format ? &ratios : nullptr) > 0 ? 0 : 1;
}

}  // namespace bench
