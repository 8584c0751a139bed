// SPDX-License-Identifier: MIT
// The suite of tests/mpi under mpirun: what passes on threads passes on processes. Rank 0 says which case has failed,
// and every rank ends with the number of its failures.
#include "moe/mpi/mpi_communicator.hpp"

#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "mpi/calibrate_cases.hpp"
#include "mpi/communicator_cases.hpp"
#include "mpi/fully_sharded_cases.hpp"
#include "mpi/sharded_cases.hpp"
#include "mpi/sparse_exchange_cases.hpp"

namespace {

using moe::Index;
using moe::mpi::Mpi;

/// Runs a case on a communicator of its own; true if it has passed on all ranks.
template <class Case>
bool passes(const char* name, const Case& run, const moe::mpi::MpiOptions& options = {.timeout = 20}) {
  const Mpi ranks(MPI_COMM_WORLD, options);
  std::string error;
  try {
    run(ranks);
  } catch (const std::exception& caught) {
    error = caught.what();
    ranks.fail(caught.what());
  }
  const Mpi together(MPI_COMM_WORLD, {.timeout = 60});
  std::vector<Index> failed = {error.empty() ? 0 : 1};
  moe::mpi::all_reduce<Index>(together, failed);
  if (!error.empty()) std::fprintf(stderr, "rank %td: %s: %s\n", ranks.rank(), name, error.c_str());
  if (ranks.rank() == 0) std::printf("%s: %s\n", failed[0] == 0 ? "passed" : "FAILED", name);
  return failed[0] == 0;
}

/// Parts of more bytes than a message may have go in pieces, which are counted.
void long_parts_go_in_pieces(const Mpi& ranks) {
  test::PartsOfCase parts(ranks.rank(), ranks.size());
  const moe::mpi::Traffic before = ranks.traffic();
  moe::mpi::all_to_all(ranks, parts.send, parts.send_bytes, parts.received, parts.received_bytes);
  test::expect(parts.received == parts.expected, "other bytes than were sent");
  Index pieces = 0;
  for (Index r = 0; r < ranks.size(); ++r)
    if (r != ranks.rank()) pieces += (parts.send_bytes[static_cast<std::size_t>(r)] + 99) / 100;
  test::expect((ranks.traffic() - before).messages == pieces, "not in pieces of 100 bytes");
}

void nobody_waits_longer_than_the_timeout(const Mpi& ranks) {
  if (ranks.rank() == 0 || ranks.size() == 1) return;
  const auto start = std::chrono::steady_clock::now();
  test::expect_throws<std::runtime_error>("has waited 0.2 s", [&] { moe::mpi::barrier(ranks); });
  test::expect(std::chrono::steady_clock::now() - start < std::chrono::seconds(10), "waited too long");
}

/// Nor with megabytes half way here, while the other rank computes: it comes to MPI again later.
void nobody_waits_for_who_computes(const Mpi& ranks) {
  if (ranks.size() != 2) return;
  const Index other = 1 - ranks.rank();
  std::vector<std::byte> send(8 << 20), received(send.size());
  std::vector<Index> bytes(2);
  bytes[static_cast<std::size_t>(other)] = std::ssize(send);
  auto request = ranks.start_all_to_all(send, bytes, received, bytes);
  const auto start = std::chrono::steady_clock::now();
  if (ranks.rank() == 0) {
    for (int i = 0; i < 10; ++i) (void)request.test();
    std::this_thread::sleep_for(std::chrono::seconds(4));
    return;
  }
  test::expect_throws<std::runtime_error>("has waited 0.2 s", [&] {
    auto own = std::move(request);
    own.wait();
  });
  test::expect(std::chrono::steady_clock::now() - start < std::chrono::seconds(3), "waited for the other rank");
}

/// With megabytes on their way, which are never received.
void an_exception_ends_all(const moe::mpi::MpiSession& session, const Mpi& ranks) {
  if (ranks.size() == 1) return;
  std::string what;
  try {
    moe::mpi::run_ranks(session, [](const Mpi& all) {
      const auto size = static_cast<std::size_t>(all.size());
      std::vector<std::byte> send(size << 20), received(size << 20);
      const std::vector<Index> bytes(size, 1 << 20);
      if (all.rank() == 1) throw std::domain_error("of rank 1");
      moe::mpi::all_to_all(all, send, bytes, received, bytes);
    });
  } catch (const std::exception& error) {
    what = error.what();
  }
  test::expect(what.ends_with("of rank 1"), "the error says '", what, "'");
}

void wrong_sizes_are_an_error(const Mpi& ranks) {
  if (ranks.size() != 2) return;
  const Index other = 1 - ranks.rank();
  std::vector<std::byte> send(static_cast<std::size_t>(2 + ranks.rank())), received(2);
  std::vector<Index> send_bytes(2), received_bytes(2);
  send_bytes[static_cast<std::size_t>(other)] = std::ssize(send);
  received_bytes[static_cast<std::size_t>(other)] = 2;
  const auto exchange = [&] { moe::mpi::all_to_all(ranks, send, send_bytes, received, received_bytes); };
  if (ranks.rank() == 1) return exchange();
  test::expect_throws<std::runtime_error>("moe::mpi::Mpi: ", exchange);
}

}  // namespace

int main(int argc, char** argv) {
  const moe::mpi::MpiSession session(argc, argv);
  int failed = 0;
  for (const auto& [name, run] : test::CommunicatorCases<Mpi>::all()) failed += passes(name, run) ? 0 : 1;
  for (const auto& [name, run] : test::ShardedCases<Mpi>::all()) failed += passes(name, run) ? 0 : 1;
  for (const auto& [name, run] : test::SparseExchangeCases<Mpi>::all()) failed += passes(name, run) ? 0 : 1;
  for (const auto& [name, run] : test::FullyShardedCases<Mpi>::all()) failed += passes(name, run) ? 0 : 1;
  for (const auto& [name, run] : test::CalibrateCases<Mpi>::all()) failed += passes(name, run) ? 0 : 1;
  failed += passes("long parts go in pieces", long_parts_go_in_pieces, {.most_bytes = 100}) ? 0 : 1;
  failed +=
      passes("nobody waits longer than the timeout", nobody_waits_longer_than_the_timeout, {.timeout = 0.2}) ? 0 : 1;
  failed += passes("nobody waits for who computes", nobody_waits_for_who_computes, {.timeout = 0.2}) ? 0 : 1;
  failed += passes("an exception ends all", [&](const Mpi& ranks) { an_exception_ends_all(session, ranks); }) ? 0 : 1;
  failed += passes("wrong sizes are an error", wrong_sizes_are_an_error) ? 0 : 1;
  return failed;
}
