// SPDX-License-Identifier: MIT
// Costs of exchanges, measured: on one rank, on threads, and on threads behind a network that is known.
#include "moe/mpi/calibrate.hpp"

#include "moe/mpi/self.hpp"
#include "moe/mpi/threads.hpp"
#include "mpi/calibrate_cases.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::mpi::Threads;

TEST_CASE("calibrate: one rank and several pass what all do", "[mpi]") {
  for (const auto& [name, run] : test::CalibrateCases<moe::mpi::Self>::all()) CHECK_NOTHROW(run({}));
  const Index size = GENERATE(2, 3);
  for (const auto& [name, run] : test::CalibrateCases<Threads>::all()) {
    CAPTURE(size, name);
    CHECK_NOTHROW(moe::mpi::run_ranks(size, run, {.timeout = 20}));
  }
}

TEST_CASE("calibrate: a network is found to be no faster than it is", "[mpi]") {
  // A busy machine adds to times, it does not take away: 2 ms and 10 ms are far above what it costs to wake up.
  constexpr double kLatency = 2e-3, kRate = 1e7;
  const Index sizes[] = {1, 100000};
  moe::mpi::run_ranks(
      2,
      [&](const Threads& ranks) {
        for (const auto& measured :
             {moe::mpi::measure_ping_pong(ranks, 1, sizes, 3), moe::mpi::measure_all_to_all(ranks, sizes, 3)})
          for (const moe::mpi::Measured& one : measured)
            test::expect(one.seconds >= kLatency + one.amount / kRate, one.seconds, " s for ", one.amount);
      },
      {.latency = kLatency, .bytes_per_second = kRate});
  CHECK_THROWS_AS(moe::mpi::median_seconds(0, [] {}), std::invalid_argument);
}
