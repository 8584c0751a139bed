// SPDX-License-Identifier: MIT
#include "limits.hpp"

#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>

#include "clock.hpp"
#include "moe/core/simd.hpp"

namespace bench {

namespace {

using Batch = moe::simd::Batch<float>;
constexpr Index kLanes = moe::simd::kLanes<float>;

/// Seconds from the first thread's start to the last one's end of work(thread), all started together: parallel_for
/// gives a waiting thread no second task.
template <class Work>
double team_seconds(int threads, const Work& work) {
  std::atomic<int> arrived{0};
  std::vector<double> begin(static_cast<std::size_t>(threads)), end = begin;
  moe::parallel_for(threads, [&](Index thread, Index) {
    ++arrived;
    while (arrived < threads) {
    }
    const auto t = static_cast<std::size_t>(thread);
    begin[t] = seconds_now();
    work(thread);
    end[t] = seconds_now();
  });
  return *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
}

/// Enough independent sums to cover latency times throughput of FMA (4 or 5 cycles, 2 per cycle) in 16 registers.
constexpr std::size_t kSums = 12;

[[gnu::noinline]] void multiply_add(Index rounds) {
  Batch sum[kSums], factor(0.999f), addend(0.001f);
  for (Batch& s : sum) s = Batch(1.0f);
  keep(factor), keep(addend), keep(sum);
  for (Index round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (std::size_t i = 0; i < kSums; ++i) sum[i] = moe::simd::fma(sum[i], factor, addend);
  }
  keep(sum);
}

/// Sum of `count` floats, read as several streams at once.
template <Index kStreams>
[[gnu::noinline]] Batch read_streams(const float* from, Index count) {
  constexpr Index kPage = 1024;
  // Not a multiple of 4096 bytes: streams at equal addresses modulo that evict each other from L1.
  const Index plain = count / kStreams / kLanes * kLanes;
  const Index stride = plain > 2 * kPage ? plain / kPage * kPage - kPage + 9 * Index{16} : plain;
  Batch sum[kStreams];
#pragma GCC unroll 16
  for (Index s = 0; s < kStreams; ++s) sum[s] = Batch(0.0f);
  for (Index i = 0; i < stride; i += kLanes) {
#pragma GCC unroll 16
    for (Index s = 0; s < kStreams; ++s) sum[s] = sum[s] + moe::simd::load(from + s * stride + i);
  }
  for (Index i = kStreams * stride; i + kLanes <= count; i += kLanes) sum[0] = sum[0] + moe::simd::load(from + i);
#pragma GCC unroll 16
  for (Index s = 1; s < kStreams; ++s) sum[0] = sum[0] + sum[s];
  return sum[0];
}

/// The peak, after waiting a while for a core that somebody else has taken: then a team of threads measures the time
/// slices of the operating system. Ordinary drift stays below this threshold. Patience is limited, over the whole run.
double undisturbed_peak(int threads) {
  static double best_of_one = 0;
  static int attempts_left = 500;
  const auto one = [&](double peak) { return peak / threads; };
  double peak = fma_peak(threads);
  for (; attempts_left > 0 && one(peak) < 0.5 * best_of_one; --attempts_left) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    peak = fma_peak(threads);
  }
  best_of_one = std::max(best_of_one, one(peak));
  return peak;
}

}  // namespace

double fma_peak(int threads) {
  threads = std::min(threads, static_cast<int>(moe::num_workers()));
  constexpr Index kRounds = 200'000;  // about a millisecond
  const double seconds = team_seconds(threads, [](Index) { multiply_add(kRounds); });
  return 2.0 * static_cast<double>(kRounds * static_cast<Index>(kSums) * kLanes) * threads / seconds;
}

Reading read_once(std::span<const float> buffer, int threads) {
  threads = std::min(threads, static_cast<int>(moe::num_workers()));
  const Index part = static_cast<Index>(buffer.size()) / threads / kLanes * kLanes;
  std::vector<double> sum(static_cast<std::size_t>(threads));
  const double seconds = team_seconds(threads, [&](Index thread) {
    sum[static_cast<std::size_t>(thread)] = moe::simd::reduce_add(read_streams<8>(buffer.data() + thread * part, part));
  });
  return {.bytes_per_second = static_cast<double>(part * threads) * sizeof(float) / seconds,
          .sum = std::accumulate(sum.begin(), sum.end(), 0.0)};
}

double memcpy_bandwidth(Index bytes, int threads, double budget) {
  const moe::AlignedBuffer<char> from = written<char>(bytes);
  moe::AlignedBuffer<char> to(bytes);
  // Waking threads costs some microseconds: below a megabyte one copies faster.
  const Index part = bytes < (1 << 20) ? bytes : (bytes + threads - 1) / threads;
  const auto copy = [&] {
    moe::parallel_ranges(bytes, part, [&](Index begin, Index end, Index) {
      std::memcpy(to.data() + begin, from.data() + begin, static_cast<std::size_t>(end - begin));
    });
    keep(*to.data());
  };
  copy();
  return static_cast<double>(bytes) / mean_seconds(budget, copy);
}

LimitMeter::LimitMeter(Index working_set_bytes, int threads, Index call_bytes)
    : is_warm_(working_set_bytes <= last_level_cache()), threads_(threads) {
  constexpr Index kFloat = static_cast<Index>(sizeof(float)), kLeast = 1 << 14;
  buffer_ = written<float>((is_warm_ ? std::max(working_set_bytes, kLeast) : 4 * last_level_cache()) / kFloat);
  call_ = static_cast<std::size_t>(
      std::clamp(call_bytes > 0 ? call_bytes : working_set_bytes, kLeast, buffer_.size() * kFloat) / kFloat);
}

Limits LimitMeter::measure() const {
  Limits limits;
  limits.flop = undisturbed_peak(threads_);
  const std::span<const float> all = buffer_.span();
  if (!is_warm_) {
    limits.bytes = read_once(all, threads_).bytes_per_second;
    return limits;
  }
  // The best of a few passes, as many as give half a millisecond: a short pass ends with waiting for the other thread.
  const auto best_of = [&](std::span<const float> part) {
    read_once(part, threads_);
    const std::size_t size = std::min(call_, part.size()), parts = part.size() / size;
    double best = 0;
    const double begin = seconds_now();
    for (std::size_t call = 0; call < parts || seconds_now() - begin < 5e-4; ++call)
      best = std::max(best, read_once(part.subspan(call % parts * size, size), threads_).bytes_per_second);
    return best;
  };
  limits.bytes = best_of(all);
  if (std::ssize(all) * static_cast<Index>(sizeof(float)) > last_level_cache() / 4)
    limits.bytes = std::max(limits.bytes, best_of(all.first(all.size() / 2)));
  return limits;
}

}  // namespace bench
