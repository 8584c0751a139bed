// SPDX-License-Identifier: MIT
#include "moe/routing/routing.hpp"

#include "support/catch.hpp"
#include "support/routings.hpp"

using moe::Index;

TEST_CASE("Routing: a new one has no tokens and no assignments", "[routing]") {
  const moe::Routing<float> routing;
  CHECK(routing.num_tokens() == 0);
  CHECK(routing.num_assignments() == 0);
}

TEST_CASE("Routing: resize gives every token k consecutive assignments", "[routing]") {
  moe::Routing<float> routing;
  routing.resize(5, 3);
  CHECK(routing.num_assignments() == 15);
  for (Index t = 0; t < 5; ++t) {
    CAPTURE(t);
    CHECK(routing.begin(t) == 3 * t);
    CHECK(routing.experts(t).data() == routing.experts().data() + 3 * t);
    CHECK(routing.weights(t).size() == 3);
  }
}

TEST_CASE("Routing: ragged tokens have the assignments that were counted, none included", "[routing]") {
  moe::Routing<double> routing;
  const std::vector<Index> count = {2, 0, 0, 3, 1, 0};
  routing.resize_ragged(6, [&](Index t) { return count[static_cast<std::size_t>(t)]; });
  CHECK(routing.num_assignments() == 6);
  for (Index t = 0; t < 6; ++t) {
    CAPTURE(t);
    CHECK(static_cast<Index>(routing.experts(t).size()) == count[static_cast<std::size_t>(t)]);
  }
}

TEST_CASE("Routing: a dropped choice keeps its expert and loses its weight", "[routing]") {
  auto routing = test::routing_of({{2, 1}});
  routing.drop(1, moe::kDroppedByGate);
  CHECK(test::copy_of(routing.experts()) == std::vector<Index>{2, 1});
  CHECK(test::copy_of(routing.weights()) == std::vector<double>{1, 0});
  CHECK(test::copy_of(routing.dropped()) == std::vector<std::uint8_t>{0, moe::kDroppedByGate});
}

TEST_CASE("Routing: resizing clears what was dropped before", "[routing]") {
  auto routing = test::routing_of({{0, 1}, {1, 0}});
  routing.drop(2, moe::kDroppedByCapacity);
  routing.resize(2, 2);
  CHECK(test::copy_of(routing.dropped()) == std::vector<std::uint8_t>(4, 0));
}

TEST_CASE("Routing: shrinking and growing back keeps its memory", "[routing]") {
  moe::Routing<float> routing;
  routing.resize(100, 2);
  const Index* memory = routing.experts().data();
  routing.resize(3, 1);
  routing.resize(100, 2);
  CHECK(routing.experts().data() == memory);
}

TEST_CASE("Routing: impossible sizes are refused", "[routing][error]") {
  moe::Routing<float> routing;
  CHECK_THROWS_WITH(routing.resize(-1, 2), "moe::Routing: num_tokens is -1, expected at least 0");
  CHECK_THROWS_WITH(routing.resize(3, -2), "moe::Routing: k is -2, expected at least 0");
  volatile Index huge = Index{1} << 40;  // g++ 12 warns of loops that are never run
  CHECK_THROWS_AS(routing.resize(huge, huge), std::invalid_argument);
  CHECK_THROWS_WITH(routing.resize_ragged(3, [](Index t) { return 1 - t; }),
                    "moe::Routing: token 2 has -1 choices, expected at least 0");
}
