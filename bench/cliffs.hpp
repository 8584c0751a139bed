// SPDX-License-Identifier: MIT
// Whether a cost grows as the work does: no jump between neighbours of a grid of sizes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "moe/core/matrix.hpp"

namespace bench {

using moe::Index;

/// A size at which something is measured.
struct Place {
  Index experts = 1, tokens = 1, k = 1;
  int threads = 1;

  friend bool operator==(const Place&, const Place&) = default;
};

/// What a token costs there.
struct Cost {
  Place place;
  double nanoseconds = 0;  ///< per token
};

enum class Axis { Experts, Tokens, K, Threads };

/// Two costs at neighbouring sizes, the smaller first.
struct Neighbours {
  Cost from, to;
  Axis axis = Axis::Experts;
};

inline double along(const Place& place, Axis axis) {
  switch (axis) {
    case Axis::Experts:
      return static_cast<double>(place.experts);
    case Axis::Tokens:
      return static_cast<double>(place.tokens);
    case Axis::K:
      return static_cast<double>(place.k);
    case Axis::Threads:
      return place.threads;
  }
  return 0;
}

/// How many times dearer than the work explains: above 1 for a step where either
/// * more experts or choices cost a token more than in proportion, more tokens or threads cost it more at all, or
/// * the smaller size is dearer than the larger one: a token of fewer experts or choices, a batch of fewer tokens.
inline double jump(const Neighbours& step) {
  const double size = along(step.to.place, step.axis) / along(step.from.place, step.axis);
  const double grown = step.to.nanoseconds / step.from.nanoseconds;
  switch (step.axis) {
    case Axis::Experts:
    case Axis::K:
      return std::max(grown / size, 1 / grown);
    case Axis::Tokens:
      return std::max(grown, 1 / (grown * size));
    case Axis::Threads:
      return grown;
  }
  return grown;
}

/// The steps of a grid: each place with the next one along each axis, if there is one.
inline std::vector<Neighbours> steps_of(std::span<const Cost> costs) {
  std::vector<Neighbours> steps;
  for (const Axis axis : {Axis::Experts, Axis::Tokens, Axis::K, Axis::Threads})
    for (const Cost& from : costs) {
      const Cost* next = nullptr;
      for (const Cost& to : costs) {
        Place same = to.place;
        switch (axis) {
          case Axis::Experts:
            same.experts = from.place.experts;
            break;
          case Axis::Tokens:
            same.tokens = from.place.tokens;
            break;
          case Axis::K:
            same.k = from.place.k;
            break;
          case Axis::Threads:
            same.threads = from.place.threads;
            break;
        }
        if (same == from.place && along(to.place, axis) > along(from.place, axis) &&
            (next == nullptr || along(to.place, axis) < along(next->place, axis)))
          next = &to;
      }
      if (next != nullptr) steps.push_back({from, *next, axis});
    }
  return steps;
}

inline std::string describe(const Place& place) {
  char text[80];
  std::snprintf(text, sizeof text, "E %td, T %td, K %td, %d thread(s)", place.experts, place.tokens, place.k,
                place.threads);
  return text;
}

}  // namespace bench
