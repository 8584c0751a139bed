// SPDX-License-Identifier: MIT
// What the machine can do at best, measured beside every repetition, as clocks and neighbours drift within minutes.
#pragma once

#include <span>

#include "machine.hpp"
#include "moe/core/aligned.hpp"
#include "moe/core/parallel.hpp"

namespace bench {

/// Per second.
struct Limits {
  double flop = 0, bytes = 0;
};

/// float FMA operations (two each) per second of `threads` threads that compute in registers only.
double fma_peak(int threads);

/// Memory of `size` elements that none of is zero, written in parallel: pages that nobody has written are one page of
/// zeros, which is read from the first-level cache.
template <class T>
moe::AlignedBuffer<T> written(Index size) {
  moe::AlignedBuffer<T> buffer(size);
  moe::parallel_ranges(size, Index{1} << 18, [&](Index begin, Index end, Index) {
    for (Index i = begin; i < end; ++i) buffer.data()[i] = static_cast<T>(1 + i % 7);
  });
  return buffer;
}

/// A pass over a buffer.
struct Reading {
  double bytes_per_second = 0;
  double sum = 0;  ///< of all floats, as far as float adds them up
};

/// Reads `buffer` once by so many threads, each as several streams.
Reading read_once(std::span<const float> buffer, int threads);

/// Bytes copied per second by std::memcpy between buffers of `bytes` bytes, in as many parts as there are threads, for
/// about `budget` seconds.
double memcpy_bandwidth(Index bytes, int threads, double budget = 2e-3);

/// Measures both limits for the level of memory where a working set lives: a working set that fits the last-level cache
/// is read warm, from a buffer of its own size, as much as a call reads at a time and in turns as calls do; a larger
/// one from memory, through a buffer of four times that cache. The latter also leaves nothing else in the caches: what
/// runs next starts cold. Of a buffer above a quarter of the last-level cache, part of which neighbours may hold, the
/// better of the whole and its half counts: a limit is not below what some working set could reach.
class LimitMeter {
 public:
  /// call_bytes: the most that one call reads of the working set; 0: all of it.
  LimitMeter(Index working_set_bytes, int threads, Index call_bytes = 0);

  bool is_warm() const { return is_warm_; }
  Limits measure() const;
  std::span<const float> buffer() const { return buffer_.span(); }

 private:
  bool is_warm_;
  int threads_;
  moe::AlignedBuffer<float> buffer_;
  std::size_t call_ = 0;  ///< floats of a call
};

}  // namespace bench
