// SPDX-License-Identifier: MIT
// What the machine can do at best, measured beside every repetition, as clocks and neighbours drift within minutes.
#pragma once

#include <span>

#include "machine.hpp"
#include "moe/core/aligned.hpp"

namespace bench {

/// Per second.
struct Limits {
  double flop = 0, bytes = 0;
};

/// float FMA operations (two each) per second of `threads` threads that compute in registers only.
double fma_peak(int threads);

/// Bytes per second that `threads` threads read from `buffer` once, each as several streams.
double read_bandwidth(std::span<const float> buffer, int threads);

/// Bytes copied per second by std::memcpy between buffers of `bytes` bytes, in as many parts as there are threads, for
/// about `budget` seconds.
double memcpy_bandwidth(Index bytes, int threads, double budget = 2e-3);

/// Measures both limits for the level of memory where a working set lives: a working set that fits the last-level cache
/// is read warm, from a buffer of its own size; a larger one from memory, through a buffer of four times that cache.
/// The latter also leaves nothing else in the caches: what runs next starts cold.
class LimitMeter {
 public:
  LimitMeter(Index working_set_bytes, int threads);

  bool is_warm() const { return is_warm_; }
  Limits measure() const;

 private:
  bool is_warm_;
  int threads_;
  moe::AlignedBuffer<float> buffer_;
};

}  // namespace bench
