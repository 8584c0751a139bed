// SPDX-License-Identifier: MIT
// Checks that jumps of a cost are found: none where it grows as the work does, and each that is put into the grid.
#include <cstdio>

#include "cliffs.hpp"

namespace {

using bench::Axis;
using bench::Cost;
using bench::Index;
using bench::Place;

int num_failed = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  ++num_failed;
  std::printf("failed: %s\n", what);
}

/// 100 ns a batch, 2 ns an expert and 5 ns a choice; two threads halve what a token costs.
std::vector<Cost> smooth() {
  std::vector<Cost> costs;
  for (const Index experts : {8, 9, 64, 1024})
    for (const Index tokens : {1, 2, 512, 513})
      for (const Index k : {1, 4, 5})
        for (const int threads : {1, 2})
          costs.push_back({{experts, tokens, k, threads},
                           100.0 / static_cast<double>(tokens) +
                               (2 * static_cast<double>(experts) + 5 * static_cast<double>(k)) / threads});
  return costs;
}

/// The steps that jump by more than a half.
std::vector<bench::Neighbours> jumps(const std::vector<Cost>& costs) {
  std::vector<bench::Neighbours> found;
  for (const auto& step : bench::steps_of(costs))
    if (bench::jump(step) > 1.5) found.push_back(step);
  return found;
}

/// How many jumps along `axis` lead to or from a place that is `factor` times as dear as it was.
int jumps_around(const Place& place, double factor, Axis axis) {
  std::vector<Cost> costs = smooth();
  for (Cost& cost : costs)
    if (cost.place == place) cost.nanoseconds *= factor;
  int count = 0;
  for (const auto& step : jumps(costs))
    count += step.axis == axis && (step.from.place == place || step.to.place == place);
  return count;
}

}  // namespace

int main() {
  expect(bench::steps_of(smooth()).size() == 3 * 24 + 3 * 24 + 2 * 32 + 48, "each place has a neighbour on each axis");
  expect(jumps(smooth()).empty(), "a smooth cost has no jumps");
  const Place inside{9, 2, 4, 1};
  expect(jumps_around(inside, 2, Axis::Experts) == 1, "dearer than with 8 experts; 64 may cost seven times as much");
  expect(jumps_around(inside, 8, Axis::Experts) == 2, "dearer than with 8 experts, and than with 64");
  expect(jumps_around(inside, 0.25, Axis::Experts) == 1, "8 experts dearer than 9");
  expect(jumps_around(inside, 3, Axis::Tokens) == 1, "dearer than the token alone; 512 of them cost as much");
  expect(jumps_around(inside, 6, Axis::K) == 2, "dearer than one choice, and than five");
  expect(jumps_around({9, 2, 4, 2}, 3, Axis::Threads) == 1, "dearer with two threads");
  expect(jumps_around({9, 512, 4, 1}, 4, Axis::Tokens) == 2, "dearer than few tokens, and than one more");
  if (num_failed == 0) std::printf("jumps are found\n");
  return num_failed > 0;
}
