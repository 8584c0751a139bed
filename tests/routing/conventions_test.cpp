// SPDX-License-Identifier: MIT
// Capacities and drops of public code bases, by their own formulas in whole numbers.
#include "moe/routing/capacity/conventions.hpp"

#include "moe/routing/balance/statistics.hpp"
#include "moe/routing/capacity/capacity.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using moe::CapacityOptions;
using moe::Index;
using moe::Phase;
using moe::ServiceOrder;
using moe::Step;
namespace conventions = moe::conventions;

namespace {

Index capacity_of(const CapacityOptions& options, Index tokens, Index k, Index experts) {
  const Index capacity = moe::expert_capacity(options, Phase::Training, {tokens, k * tokens}, experts);
  CHECK(capacity == moe::expert_capacity(options, Phase::Inference, {tokens, k * tokens}, experts));
  return capacity;
}

Index ceil_of(Index a, Index b) { return (a + b - 1) / b; }

}  // namespace

TEST_CASE("conventions: capacities, in quarters of the factor", "[capacity]") {
  for (Index tokens = 1; tokens < 50; tokens += 3)
    for (Index q = 1; q < 12; ++q) {  // factor q / 4
      const double factor = static_cast<double>(q) / 4;
      CAPTURE(tokens, factor);
      CHECK(capacity_of(conventions::deepspeed_top_1(factor, 2), tokens, 1, 8) ==
            std::max<Index>(ceil_of(tokens * q, 32), 2));
      CHECK(capacity_of(conventions::deepspeed_top_2(factor), tokens, 2, 8) ==
            std::max<Index>(ceil_of(2 * tokens * q, 32), 4));
      CHECK(capacity_of(conventions::deepspeed_top_k(factor, 1), tokens, 3, 8) == ceil_of(3 * tokens * q, 32));
      CHECK(capacity_of(conventions::megatron(factor), tokens, 3, 8) == ceil_of(3 * tokens * q, 32));
      CHECK(capacity_of(conventions::megablocks(factor), tokens, 3, 8) == 3 * tokens * q / 32);
      CHECK(capacity_of(conventions::tutel({.factor = factor}), tokens, 3, 8) == 3 * (q * ceil_of(tokens, 8) / 4));
      CHECK(capacity_of(conventions::tutel({.factor = -factor, .alignment = 4}), tokens, 3, 8) ==
            4 * ceil_of(3 * (q * ceil_of(tokens, 8) / 4), 4));
      CHECK(capacity_of(conventions::fastmoe_gshard(factor), tokens, 2, 6) == 2 * ceil_of(q * tokens, 4) / 6);
      CHECK(capacity_of(conventions::fastmoe_switch(factor), tokens, 1, 6) == ceil_of(q * tokens, 24));
      CHECK(capacity_of(conventions::tensor2tensor(factor), tokens, 3, 6) == std::max<Index>(q * tokens / 24, 4));
    }
  CHECK(capacity_of(conventions::tutel({.factor = 0}), 33, 2, 8) == 66);
  CHECK(capacity_of(conventions::t5x(1.25, 0), 10, 2, 5) == 2);  // 2.5, halves to even
  CHECK(capacity_of(conventions::t5x(1.75, 0), 10, 2, 5) == 4);  // 3.5
  CHECK(capacity_of(conventions::t5x(1.25), 10, 2, 5) == 4);
}

TEST_CASE("conventions: who is dropped, and what becomes of the weights of the rest", "[capacity]") {
  // Two experts with two places each, but for T5X and tensor2tensor, whose factor counts tokens: floor(3 / 2) = 1.
  const std::vector<double> weights = {.5, .25, .75, .5, .4, .3};
  const auto limited = [&](const CapacityOptions& options) {
    auto routing = test::routing_of({{0, 1}, {1, 0}, {0, 1}});
    std::copy(weights.begin(), weights.end(), routing.weights().begin());
    moe::apply_capacity(options, 2, Step::train(0), routing);
    return test::copy_of(routing.weights());
  };
  using List = std::vector<double>;
  const double exact = 1.0 / 3;  // 2 / 3 of 2 * 3 / 2 choices: two places
  CHECK(limited(conventions::megatron(2 * exact)) == List{.5, 0, .75, .5, 0, .3});
  CHECK(limited(conventions::megatron(2 * exact, conventions::DropPolicy::Position)) == List{.5, .25, .75, .5, 0, 0});
  CHECK(limited(conventions::deepspeed_top_k(2 * exact, 0)) == List{1, 0, .6, .4, 0, 1});
  CHECK(limited(conventions::deepspeed_top_2(2 * exact, 0)) == List{2 * exact, exact, 1, 0, 1, 0});
  CHECK(limited(conventions::tutel({.factor = .5})) == List{2 * exact, exact, .6, 0, .4 / (.4 + .3), 0});
  CHECK(limited(conventions::tutel({.factor = .5, .normalise = false, .by_score = true})) ==
        List{.5, .25, .75, 0, .4, 0});
  CHECK(limited(conventions::megablocks(2 * exact)) == List{.5, .25, .75, .5, 0, 0});
  CHECK(limited(conventions::fastmoe_gshard(.5)) == List{.5, .25, .75, .5, 0, 0});
  CHECK(limited(conventions::tensor2tensor(1, 0)) == List{2 * exact, 0, .6, 0, 0, 0});
  CHECK(limited(conventions::t5x(.7, 0)) == List{.5, 0, .75, 0, 0, 0});
}

TEST_CASE("conventions: random token selection of DeepSpeed draws anew", "[capacity]") {
  const auto served = [](const CapacityOptions& options, std::uint64_t update) {
    auto routing = test::routing_of(std::vector<std::vector<Index>>(40, {0}));
    moe::apply_capacity(options, 4, Step::train(update), routing);
    return test::copy_of(routing.weights());
  };
  CHECK(served(conventions::deepspeed_top_1(1), 0) != served(conventions::deepspeed_top_1(1), 1));
  CHECK(served(conventions::deepspeed_top_1(1, 4, ServiceOrder::ByPosition), 0) ==
        served(conventions::deepspeed_top_1(1, 4, ServiceOrder::ByPosition), 1));
}

TEST_CASE("conventions: numbers out of range are errors", "[capacity][error]") {
  CHECK_THROWS_AS(conventions::megablocks(-1), std::invalid_argument);
  CHECK_THROWS_AS(conventions::tutel({.factor = std::nan("")}), std::invalid_argument);
  CHECK_THROWS_WITH(conventions::tutel({.alignment = 0}), "moe::CapacityOptions: multiple is 0, expected at least 1");
}
