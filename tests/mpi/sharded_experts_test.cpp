#include "moe/mpi/sharded_experts.hpp"

#include "moe/mpi/self.hpp"
#include "moe/mpi/threads.hpp"
#include "mpi/sharded_cases.hpp"
#include "support/catch.hpp"

using moe::mpi::Threads;

TEST_CASE("ShardedExperts: 1, 2, 4 and 8 ranks are one process", "[mpi]") {
  const moe::Index size = GENERATE(1, 2, 4, 8);
  for (const auto& [name, run] : test::ShardedCases<Threads>::all()) {
    CAPTURE(size, name);
    CHECK_NOTHROW(moe::mpi::run_ranks(size, run, {.timeout = 60}));
  }
}
