// SPDX-License-Identifier: MIT
// Checks the meters: that what stands for memory was written, and that all of it is read. Exits with 1 after messages.
// Prints the meters beside a plain loop over an array as anybody would write it, and beside memcpy; nothing fails by
// these, as a neighbour on the machine may halve any of them.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "clock.hpp"
#include "limits.hpp"

namespace {

using bench::Index;

int num_failed = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  ++num_failed;
  std::printf("failed: %s\n", what);
}

[[gnu::noinline]] double plain_sum(const std::vector<float>& values) {
  constexpr std::size_t kBlock = std::size_t{1} << 20;  // whose sums are exact
  double total = 0;
  for (std::size_t first = 0; first < values.size(); first += kBlock) {
    float sum[32] = {};  // so that the sum is not one chain of additions
    const std::size_t last = std::min(values.size(), first + kBlock);
    for (std::size_t i = first; i + 32 <= last; i += 32)
      for (std::size_t j = 0; j < 32; ++j) sum[j] += values[i + j];
    total = std::accumulate(sum, sum + 32, total);
  }
  return total;
}

/// Bytes per second of the plain loop, and of the meter on as many bytes, in turns.
void compare(const char* level, Index bytes) {
  const bench::LimitMeter meter(bytes, /*threads=*/1);
  const auto buffer = meter.buffer();
  expect(std::ranges::all_of(buffer, [](float x) { return x > 0; }), "all of the buffer was written");
  const double sum = std::accumulate(buffer.begin(), buffer.end(), 0.0);
  // float adds up some thousand numbers from 1 to 7 exactly, and millions within a thousandth.
  expect(std::abs(bench::read_once(buffer, 1).sum - sum) < 1e-3 * sum, "all of the buffer is read");
  const std::vector<float> values(buffer.begin(), buffer.end());
  std::vector<double> metered, plain, ratio;
  for (int repetition = 0; repetition < 3; ++repetition) {
    double found = 0;
    const auto once = [&] { bench::keep(found = plain_sum(values)); };
    metered.push_back(meter.measure().bytes);
    if (meter.is_warm()) once();
    const double seconds = meter.is_warm() ? bench::mean_seconds(2e-3, once) : bench::seconds_of(once);
    plain.push_back(static_cast<double>(values.size() * sizeof(float)) / seconds);
    ratio.push_back(metered.back() / plain.back());
    expect(std::abs(found - sum) < 1e-3 * sum, "the plain loop adds up the same");
  }
  std::printf("%-6s %6td KiB: meter %6.1f GB/s, plain loop %6.1f GB/s, ratio %.2f\n", level, bytes >> 10,
              1e-9 * bench::median(metered), 1e-9 * bench::median(plain), bench::median(ratio));
}

}  // namespace

int main() {
  bench::set_threads(1);
  const Index cache = bench::last_level_cache();
  compare("cache", cache / 8);
  compare("memory", 2 * cache);
  // Once: where the last cache is large, most of the time goes into new pages.
  const double copied = bench::memcpy_bandwidth(2 * cache, 1), read = bench::LimitMeter(2 * cache, 1).measure().bytes;
  std::printf("memory %6td KiB: memcpy %6.1f GB/s, reading %6.1f GB/s, ratio %.2f\n", (2 * cache) >> 10, 1e-9 * copied,
              1e-9 * read, copied / read);
  std::printf("%d failed\n", num_failed);
  return num_failed == 0 ? 0 : 1;
}
