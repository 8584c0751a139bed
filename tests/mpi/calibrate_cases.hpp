// SPDX-License-Identifier: MIT
#pragma once

#include <utility>
#include <vector>

#include "moe/mpi/calibrate.hpp"
#include "mpi/ranks.hpp"

// Measurements of exchanges on every communicator and any number of ranks.
namespace test {

template <class C>
struct CalibrateCases {
  static void all_ranks_have_the_same(const C& ranks) {
    const moe::Index sizes[] = {8, 4096};
    const auto check = [&](const std::vector<moe::mpi::Measured>& measured, double others) {
      expect(measured.size() == (ranks.size() == 1 ? 0u : 2u), measured.size(), " measurements");
      for (std::size_t i = 0; i < measured.size(); ++i) {
        expect(measured[i].starts == others && measured[i].amount == others * static_cast<double>(sizes[i]),
               "amounts of measurement ", i);
        expect(measured[i].seconds > 0, "no time");
        const auto all = moe::mpi::all_gather<double>(ranks, std::span(&measured[i].seconds, 1));
        for (const double seconds : all) expect(seconds == all[0], "another time on another rank");
      }
    };
    check(moe::mpi::measure_ping_pong(ranks, ranks.size() - 1, sizes, 3), 1);
    check(moe::mpi::measure_all_to_all(ranks, sizes, 3), static_cast<double>(ranks.size() - 1));
    if (ranks.size() == 1) return;
    for (const moe::Index other : {moe::Index{0}, ranks.size()})
      expect_throws<std::invalid_argument>("expected 0 < rank",
                                           [&] { moe::mpi::measure_ping_pong(ranks, other, sizes, 1); });
  }

  static std::vector<std::pair<const char*, void (*)(const C&)>> all() {
    return {{"calibrate: all ranks have the same", all_ranks_have_the_same}};
  }
};

}  // namespace test
