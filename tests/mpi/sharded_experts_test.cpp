// SPDX-License-Identifier: MIT
// Experts over ranks that are threads: the cases of all communicators, errors of one rank, and who holds what.
#include "moe/mpi/sharded_experts.hpp"

#include <chrono>
#include <thread>

#include "moe/mpi/threads.hpp"
#include "mpi/sharded_cases.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::mpi::Placement;
using moe::mpi::Threads;

TEST_CASE("ShardedExperts: 1, 2, 4 and 8 ranks are one process", "[mpi]") {
  const Index size = GENERATE(1, 2, 4, 8);
  for (const auto& [name, run] : test::ShardedCases<Threads>::all()) {
    CAPTURE(size, name);
    CHECK_NOTHROW(moe::mpi::run_ranks(size, run, {.timeout = 60}));
  }
}

TEST_CASE("ShardedExperts: an error of one rank in a pass ends all", "[mpi][error]") {
  using Cases = test::ShardedCases<Threads>;
  const auto start = std::chrono::steady_clock::now();
  const auto one_with_other_tokens = [](const Threads& ranks) {
    const moe::RoutedExperts<Cases::Sharded> mixture(Cases::Sharded::of(Cases::pool(8), ranks));
    const Index columns = Cases::kInputs + (ranks.rank() == 2 ? 1 : 0);
    moe::Matrix<double> out(3, Cases::kOutputs);
    mixture.forward(test::random_matrix<double>(3, columns), Cases::routing(8, 2, Cases::Choices::Random, 0, 3),
                    moe::Step{}, out);
  };
  CHECK_THROWS_WITH(moe::mpi::run_ranks(4, one_with_other_tokens),
                    "moe::RoutedExperts::forward: tokens is [3, 11], expected [3, 10]");
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(30));
}

/// Takes 15 ms for its rows, and a copy.
struct Slow {
  using Scalar = double;

  Index input_dim() const { return 100; }
  Index output_dim() const { return 100; }
  void forward(const moe::ConstMatrixRef<double>& rows, moe::MatrixRef<double> out, const moe::Context&) const {
    std::this_thread::sleep_for(std::chrono::milliseconds(15));
    out = rows;
  }
};

TEST_CASE("ShardedExperts: experts compute while the rows of other waves are on their way", "[mpi]") {
  using Set = moe::ExpertPool<Slow>;
  const auto milliseconds_with = [](Index waves) {
    double seconds = 0;
    const auto pass = [&](const Threads& ranks) {
      moe::SerialExecutor serial;
      const moe::UseExecutor use(serial);
      const auto experts =
          moe::mpi::ShardedExperts<Set, Threads>::of(Set(std::vector<Slow>(8)), ranks, {.waves = waves});
      const moe::Matrix<double> tokens = test::random_matrix<double>(64, 100);
      moe::Matrix<double> out(64, 100);
      std::vector<Index> ids(64);
      for (std::size_t t = 0; t < ids.size(); ++t) ids[t] = static_cast<Index>(t % 8);
      const std::vector<double> ones(64, 1.0);
      const moe::RoutedExperts mixture(experts);
      moe::mpi::barrier(ranks);
      const auto start = std::chrono::steady_clock::now();
      mixture.forward(tokens, moe::Routing<double>::from(64, ids, ones, 8), moe::Step{}, out);
      if (ranks.rank() == 0) seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      test::expect(out == tokens, "the experts have not copied");
    };
    moe::mpi::run_ranks(2, pass, {.bytes_per_second = 32 * 103 * 8 / 0.06});  // 60 ms there, 60 back
    return 1000 * seconds;
  };
  const double one = milliseconds_with(1), four = milliseconds_with(4);
  CAPTURE(one, four);  // 60 + 60 + 60 and, where all overlap, 15 + 60 + 15
  CHECK(one >= 175);
  CHECK(four < 0.85 * one);
}

TEST_CASE("Placement: slices are on consecutive ranks, and places are as they are balanced", "[mpi]") {
  const Placement sliced = Placement::contiguous(3, 4, 2);
  CHECK(sliced.held_by(0) == std::vector<Index>{0});
  CHECK(sliced.held_by(3) == std::vector<Index>{1, 2});
  CHECK(sliced.owner(2) == 2);
  CHECK(sliced.slice_of(3) == 1);
  CHECK(sliced.copies() == 0);
  CHECK(sliced != Placement::contiguous(3, 4));
  CHECK_THROWS_AS(Placement(sliced).add(0, 3), std::invalid_argument);
  CHECK_THROWS_WITH(Placement::contiguous(8, 6, 4),
                    "moe::mpi::Placement::contiguous: 4 slices on 6 ranks, expected a number that divides them");
  CHECK_THROWS_AS(Placement::placed({.expert_of_place = {0, 1, 2}, .places_of_expert = {{0}, {1}, {2}}}, 2),
                  std::invalid_argument);
}

TEST_CASE("Placement: a row goes to a copy on its rank, else on its node, else to any, in turn", "[mpi]") {
  // Expert 0 on ranks 0 and 2, expert 1 on 1 and 3, expert 2 twice on both 2 and 3; two ranks are a node.
  const Placement placement = Placement::placed({.expert_of_place = {0, 0, 0, 1, 1, 1, 2, 2, 0, 1, 2, 2},
                                                 .places_of_expert = {{0, 1, 2, 8}, {3, 4, 5, 9}, {6, 7, 10, 11}}},
                                                4);
  const auto ranks_of = [&](Index e, Index from) {
    std::vector<Index> ranks;
    for (Index n = 0; n < 4; ++n)
      ranks.push_back(moe::mpi::holder_for(placement, {.ranks = 4, .ranks_per_node = 2}, from, e, n));
    return ranks;
  };
  CHECK(ranks_of(0, 0) == std::vector<Index>{0, 0, 0, 0});  // its own
  CHECK(ranks_of(0, 1) == std::vector<Index>{0, 0, 0, 0});  // the neighbour's
  CHECK(ranks_of(0, 3) == std::vector<Index>{2, 2, 2, 2});
  CHECK(ranks_of(2, 0) == std::vector<Index>{2, 2, 3, 3});  // far away: in turn, from the rank's own number on
  CHECK(ranks_of(2, 1) == std::vector<Index>{2, 3, 3, 2});
  CHECK(placement.held_by(3) == std::vector<Index>{1, 2});  // two shares, held once
}
