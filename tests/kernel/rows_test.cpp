// SPDX-License-Identifier: MIT
#include "moe/kernel/rows.hpp"

#include <vector>

#include "support/catch.hpp"

using moe::Index;
using moe::kernel::RowGroups;

namespace {

RowGroups groups_of(const std::vector<Index>& offset) { return {offset.data(), static_cast<Index>(offset.size()) - 1}; }

/// The waves of at most `most` rows, as pairs of first and last row.
std::vector<std::pair<Index, Index>> waves_of(const std::vector<Index>& offset, Index most) {
  std::vector<std::pair<Index, Index>> waves;
  for (Index row = 0; row < offset.back();) {
    const RowGroups wave = moe::kernel::wave_from(groups_of(offset), row, most);
    REQUIRE(wave.last_row > row);
    waves.emplace_back(wave.first_row, wave.last_row);
    row = wave.last_row;
  }
  return waves;
}

using Waves = std::vector<std::pair<Index, Index>>;

}  // namespace

TEST_CASE("RowGroups: a view shows the part of every group that lies in it", "[kernel]") {
  const std::vector<Index> offset = {0, 4, 4, 9, 12};
  RowGroups part = groups_of(offset);
  CHECK(part.num_rows() == 12);
  part.first_row = 2, part.last_row = 7;
  CHECK(part.num_rows() == 5);
  CHECK((part.begin(0) == 2 && part.end(0) == 4));
  CHECK(part.size(1) == 0);
  CHECK((part.begin(2) == 4 && part.end(2) == 7));
  CHECK(part.size(3) == 0);
}

TEST_CASE("wave_from: whole groups as long as they fit", "[kernel]") {
  CHECK(waves_of({0, 3, 6, 9, 12}, 12) == Waves{{0, 12}});
  CHECK(waves_of({0, 3, 6, 9, 12}, 7) == Waves{{0, 6}, {6, 12}});
  CHECK(waves_of({0, 0, 5, 5, 6, 6}, 5) == Waves{{0, 5}, {5, 6}});
}

TEST_CASE("wave_from: a group that does not fit goes in even shares", "[kernel]") {
  CHECK(waves_of({0, 10}, 4) == Waves{{0, 4}, {4, 7}, {7, 10}});
  CHECK(waves_of({0, 2, 12, 13}, 4) == Waves{{0, 2}, {2, 6}, {6, 9}, {9, 13}});
}

TEST_CASE("wave_from: waves follow each other, cover all rows and hold at most so many", "[kernel][property]") {
  for (const std::uint64_t seed : {1u, 2u, 3u, 4u, 5u})
    for (const Index most : {1, 2, 7, 30, 1000}) {
      std::vector<Index> offset = {0};
      for (std::uint64_t g = 0; g < 20; ++g)
        offset.push_back(offset.back() + static_cast<Index>((seed * 7919 + g * g * 104729) % 23 * (g % 3)));
      CAPTURE(seed, most);
      Index row = 0;
      for (const auto& [first, last] : waves_of(offset, most)) {
        CHECK(first == row);
        CHECK(last - first <= most);
        row = last;
      }
      CHECK(row == offset.back());
    }
}
