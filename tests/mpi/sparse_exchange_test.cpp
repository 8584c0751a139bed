// SPDX-License-Identifier: MIT
// Experts that go to other ranks and gradients that come back, on one rank and on threads; tests/mpi/ranks.cpp runs the
// same on MPI.
#include "moe/mpi/self.hpp"
#include "moe/mpi/threads.hpp"
#include "mpi/sparse_exchange_cases.hpp"
#include "support/catch.hpp"

using moe::mpi::Threads;

TEST_CASE("SparseExchange: one rank passes what all do", "[mpi]") {
  for (const auto& [name, run] : test::SparseExchangeCases<moe::mpi::Self>::all()) {
    CAPTURE(name);
    CHECK_NOTHROW(run({}));
  }
}

TEST_CASE("SparseExchange: copies, sums and bytes on 1, 2, 4 and 8 ranks", "[mpi]") {
  const moe::Index size = GENERATE(1, 2, 3, 4, 8);
  for (const auto& [name, run] : test::SparseExchangeCases<Threads>::all()) {
    CAPTURE(size, name);
    CHECK_NOTHROW(moe::mpi::run_ranks(size, run, {.timeout = 20}));
  }
}
