// SPDX-License-Identifier: MIT
// Time, medians, and keeping the optimiser from removing what is measured.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

namespace bench {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Seconds that `work()` takes.
template <class Work>
double seconds_of(Work&& work) {
  const double begin = seconds_now();
  work();
  return seconds_now() - begin;
}

/// Calls work() until `budget` seconds are over, at least once, and returns the mean seconds of a call.
template <class Work>
double mean_seconds(double budget, Work&& work) {
  const double begin = seconds_now();
  double calls = 0, elapsed = 0;
  do {
    work();
    ++calls;
    elapsed = seconds_now() - begin;
  } while (elapsed < budget);
  return elapsed / calls;
}

/// Makes the compiler believe that somebody reads the memory behind `value`.
template <class T>
void keep(const T& value) {
  asm volatile("" : : "r"(&value) : "memory");
}

/// 0 for no values.
inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

}  // namespace bench
