// SPDX-License-Identifier: MIT
// Experts that are spread over ranks and come to others for an iteration, beside one process that has them all, on
// threads; tests/mpi/ranks.cpp runs the same on MPI.
#include "moe/mpi/fully_sharded_experts.hpp"

#include "moe/mpi/threads.hpp"
#include "mpi/fully_sharded_cases.hpp"
#include "support/catch.hpp"

TEST_CASE("FullyShardedExperts: one process, whatever the ranks and copies", "[mpi]") {
  const moe::Index size = GENERATE(1, 2, 4, 8);
  for (const auto& [name, run] : test::FullyShardedCases<moe::mpi::Threads>::all()) {
    CAPTURE(size, name);
    CHECK_NOTHROW(moe::mpi::run_ranks(size,
                                      [&run = run](const moe::mpi::Threads& ranks) {
                                        moe::SerialExecutor serial;
                                        const moe::UseExecutor use(serial);
                                        run(ranks);
                                      },
                                      {.timeout = 60}));
  }
}
