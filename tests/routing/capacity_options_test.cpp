// SPDX-License-Identifier: MIT
#include "moe/routing/capacity/capacity_options.hpp"

#include "support/catch.hpp"

using moe::CapacityOptions;
using moe::Index;
using moe::Phase;

TEST_CASE("expert_capacity: factor times the balanced load, rounded up, at least the minimum", "[capacity]") {
  const auto capacity = [](double factor, Index num_choices, Index num_experts) {
    return moe::expert_capacity({.factor = factor, .min_capacity = 4}, Phase::Training, {num_choices, num_choices},
                                num_experts);
  };
  CHECK(capacity(1.25, 64, 8) == 10);
  CHECK(capacity(1.0, 65, 8) == 9);
  CHECK(capacity(1.0, 8, 8) == 4);
  CHECK(capacity(0, 1000, 8) == 4);
  CHECK(capacity(1.0, 0, 8) == 4);
  CHECK(capacity(1.0, 0, 0) == 4);
}

TEST_CASE("expert_capacity: the decimal factor counts, not the double next to it", "[capacity]") {
  // In doubles 1.1 * 400 / 8 = 55.00000000000001, of which ceil makes 56.
  for (Index tenths = 10; tenths <= 30; ++tenths)
    for (Index num_choices = 10; num_choices <= 2000; num_choices += 10) {
      const CapacityOptions options = {.factor = static_cast<double>(tenths) / 10, .min_capacity = 0};
      CAPTURE(tenths, num_choices);
      const Index exact = (tenths * num_choices + 79) / 80;  // ceil(factor * num_choices / 8) in integers
      const moe::CapacityDemand demand = {num_choices, num_choices};
      REQUIRE(moe::expert_capacity(options, Phase::Training, demand, 8) == exact);
      CapacityOptions down = options;
      down.rounding = moe::CapacityRounding::Down;
      REQUIRE(moe::expert_capacity(down, Phase::Training, demand, 8) == tenths * num_choices / 80);
    }
}

TEST_CASE("expert_capacity: inference has its own factor, unlimited by default", "[capacity]") {
  CapacityOptions options = {.factor = 1.0, .min_capacity = 1};
  CHECK(moe::expert_capacity(options, Phase::Inference, {80, 80}, 8) >= 80);
  options.evaluation_factor = 2;
  CHECK(moe::expert_capacity(options, Phase::Inference, {80, 80}, 8) == 20);
  CHECK(moe::expert_capacity(options, Phase::Training, {40, 80}, 8) == 10);
}

TEST_CASE("expert_capacity: every rule of rounding, by its formula in integers", "[capacity]") {
  const auto ceil_of = [](Index a, Index b) { return (a + b - 1) / b; };
  for (Index tokens = 1; tokens <= 40; ++tokens)
    for (Index k = 1; k <= 3; ++k)
      for (Index quarters = 0; quarters <= 9; ++quarters)  // of the factor
        for (const Index experts : {1, 3, 8}) {
          CAPTURE(tokens, k, quarters, experts);
          const auto capacity = [&](moe::CapacityRounding rounding, moe::CapacityLoad load) {
            const CapacityOptions options = {
                .factor = static_cast<double>(quarters) / 4, .min_capacity = 0, .load = load, .rounding = rounding};
            return moe::expert_capacity(options, Phase::Training, {tokens, k * tokens}, experts);
          };
          using enum moe::CapacityRounding;
          for (const auto load : {moe::CapacityLoad::Choices, moe::CapacityLoad::Tokens}) {
            const Index c = load == moe::CapacityLoad::Choices ? k : 1, share = quarters * c * tokens;
            REQUIRE(capacity(Up, load) == ceil_of(share, 4 * experts));
            REQUIRE(capacity(Down, load) == share / (4 * experts));
            const Index twice = 2 * share, nearest = (twice + 4 * experts) / (8 * experts);
            const bool half = (twice + 4 * experts) % (8 * experts) == 0;
            REQUIRE(capacity(Nearest, load) == nearest - (half ? nearest % 2 : 0));
            REQUIRE(capacity(ShareUp, load) == c * (quarters * ceil_of(tokens, experts) / 4));
            REQUIRE(capacity(TokensUp, load) == c * ceil_of(quarters * tokens, 4) / experts);
          }
        }
}

TEST_CASE("expert_capacity: a multiple, also of the minimum; an unlimited one; a negative demand", "[capacity]") {
  CapacityOptions options = {.factor = 1, .min_capacity = 5, .multiple = 4};
  CHECK(moe::expert_capacity(options, Phase::Training, {70, 70}, 8) == 12);
  CHECK(moe::expert_capacity(options, Phase::Training, {64, 64}, 8) == 8);
  CHECK(moe::expert_capacity(options, Phase::Training, {8, 8}, 8) == 8);
  for (const auto rounding : {moe::CapacityRounding::Up, moe::CapacityRounding::ShareUp,
                              moe::CapacityRounding::TokensUp, moe::CapacityRounding::Nearest}) {
    options.rounding = rounding;
    CHECK(moe::expert_capacity(options, Phase::Inference, {70, 141}, 8) == 144);
  }
  options.evaluation_factor = 1;
  options.evaluation_multiple = 3;
  options.rounding = moe::CapacityRounding::Up;
  CHECK(moe::expert_capacity(options, Phase::Inference, {70, 70}, 8) == 9);
  CHECK(moe::expert_capacity(options, Phase::Training, {70, 70}, 8) == 12);
  CHECK_THROWS_WITH(moe::expert_capacity(options, Phase::Training, {-1, 4}, 8),
                    "moe::expert_capacity: demand is -1 tokens with 4 choices, expected at least 0");
}

TEST_CASE("CapacityOptions: negative and NaN numbers are errors", "[capacity][error]") {
  CHECK_NOTHROW(CapacityOptions{}.validate());
  CHECK_THROWS_AS((CapacityOptions{.factor = -1}.validate()), std::invalid_argument);
  CHECK_THROWS_AS((CapacityOptions{.factor = std::nan("")}.validate()), std::invalid_argument);
  CHECK_THROWS_AS((CapacityOptions{.evaluation_factor = std::nan("")}.validate()), std::invalid_argument);
  CHECK_THROWS_WITH((CapacityOptions{.min_capacity = -1}.validate()),
                    "moe::CapacityOptions: min_capacity is -1, expected at least 0");
  CHECK_THROWS_WITH((CapacityOptions{.multiple = 0}.validate()),
                    "moe::CapacityOptions: multiple is 0, expected at least 1");
  CHECK_THROWS_AS((CapacityOptions{.evaluation_multiple = -1}.validate()), std::invalid_argument);
}
