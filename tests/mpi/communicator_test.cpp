// SPDX-License-Identifier: MIT
// Ranks that are threads: the cases of all communicators, failures, timeouts, and the network that they imitate.
#include "moe/mpi/self.hpp"
#include "moe/mpi/threads.hpp"
#include "mpi/communicator_cases.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::mpi::Threads;
using test::CommunicatorCases;

TEST_CASE("Self: one rank passes what every communicator does", "[mpi]") {
  for (const auto& [name, run] : CommunicatorCases<moe::mpi::Self>::all()) {
    CAPTURE(name);
    CHECK_NOTHROW(run({}));
  }
}

TEST_CASE("Threads: 1, 2, 4 and 8 ranks pass what every communicator does", "[mpi]") {
  const Index size = GENERATE(1, 2, 4, 8);
  const double latency = GENERATE(0.0, 2e-3);
  for (const auto& [name, run] : CommunicatorCases<Threads>::all()) {
    CAPTURE(size, name, latency);
    CHECK_NOTHROW(moe::mpi::run_ranks(size, run, {.latency = latency, .timeout = 20}));
  }
}

TEST_CASE("run_ranks: the first exception ends all ranks and comes back", "[mpi][error]") {
  const auto wait_for_one_that_throws = [](const Threads& ranks) {
    if (ranks.rank() == 2) throw std::domain_error("rank 2 throws");
    moe::mpi::barrier(ranks);
  };
  CHECK_THROWS_AS(moe::mpi::run_ranks(4, wait_for_one_that_throws), std::domain_error);
  CHECK_THROWS_AS(moe::mpi::run_ranks(2,
                                      [](const Threads& ranks) {
                                        if (ranks.rank() == 1) throw 1;
                                      }),
                  int);
  CHECK_THROWS_AS(moe::mpi::run_ranks(0, wait_for_one_that_throws), std::invalid_argument);
}

TEST_CASE("Threads: a rank that does not come is waited for no longer than the timeout", "[mpi][error]") {
  const auto start = std::chrono::steady_clock::now();
  const auto leave_one_alone = [](const Threads& ranks) {
    if (ranks.rank() == 1) moe::mpi::barrier(ranks);
  };
  CHECK_THROWS_WITH(moe::mpi::run_ranks(3, leave_one_alone, {.timeout = 0.1}),
                    "moe::mpi::Threads: rank 1 has waited 0.1 s for exchange 0 of rank 0");
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));
}

TEST_CASE("Threads: parts of another size than expected are an error on the rank that expects them", "[mpi][error]") {
  const auto send_more = [](const Threads& ranks) {
    const Index other = 1 - ranks.rank(), more = ranks.rank();
    std::vector<std::byte> send(static_cast<std::size_t>(1 + more)), received(1);
    std::vector<Index> send_bytes(2), received_bytes(2);
    send_bytes[static_cast<std::size_t>(other)] = 1 + more;
    received_bytes[static_cast<std::size_t>(other)] = 1;
    moe::mpi::all_to_all(ranks, send, send_bytes, received, received_bytes);
  };
  CHECK_THROWS_WITH(moe::mpi::run_ranks(2, send_more),
                    "moe::mpi::Threads: rank 1 has sent 2 bytes in exchange 0, expected 1 on rank 0");
}

TEST_CASE("Threads: a message takes its latency and its bytes their time", "[mpi]") {
  const auto seconds_of = [](const moe::mpi::ThreadsOptions& options) {
    const auto start = std::chrono::steady_clock::now();
    moe::mpi::run_ranks(
        2,
        [](const Threads& ranks) {
          std::vector<double> values(1000);  // of which a rank sends 500, twice
          moe::mpi::all_reduce<double>(ranks, values);
        },
        options);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  CHECK(seconds_of({.latency = 0.02}) >= 0.04);
  CHECK(seconds_of({.bytes_per_second = 4000 / 0.02}) >= 0.04);
}
