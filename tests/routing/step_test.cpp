// SPDX-License-Identifier: MIT
#include "moe/routing/step.hpp"

#include <vector>

#include "support/catch.hpp"

using moe::Index;
using moe::Step;

TEST_CASE("Step: a default one is inference, train is the update named", "[step]") {
  CHECK_FALSE(Step{}.training());
  const Step step = Step::train(7, 3);
  CHECK(step.training());
  CHECK(step.update == 7);
  CHECK(step.seed == 3);
}

TEST_CASE("Step: empty spans mean row number, one group, all valid", "[step]") {
  const Step step;
  CHECK(step.id(5) == 5);
  CHECK(step.group(5) == 0);
  CHECK(step.is_valid(5));
  CHECK(step.num_valid(9) == 9);
  CHECK_NOTHROW(step.validate("f", 9));
}

TEST_CASE("Step: spans are read per token", "[step]") {
  const std::vector<std::int64_t> id = {40, 41, 42}, group = {0, 0, 9};
  const std::vector<std::uint8_t> valid = {1, 0, 255};
  Step step;
  step.token_id = id;
  step.group_id = group;
  step.valid = valid;
  CHECK(step.id(2) == 42);
  CHECK(step.group(2) == 9);
  CHECK_FALSE(step.is_valid(1));
  CHECK(step.num_valid(3) == 2);
  CHECK(step.num_valid(1) == 1);
}

TEST_CASE("Step: a span of the wrong length is an error that names it", "[step][error]") {
  const std::vector<std::int64_t> two = {0, 1};
  const std::vector<std::uint8_t> valid = {1, 1};
  Step ids, groups, keys, padding;
  ids.token_id = two;
  groups.group_id = two;
  keys.key = two;
  padding.valid = valid;
  for (const Step& step : {ids, groups, keys, padding}) {
    CHECK_NOTHROW(step.validate("f", 2));
    CHECK_THROWS_AS(step.validate("f", 3), std::invalid_argument);
  }
  CHECK_THROWS_WITH(padding.validate("moe::f", 3), "moe::f: step.valid has 2 entries, expected 0 or num_tokens = 3");
}

TEST_CASE("Step: draws change with every part of the key", "[step]") {
  const Step base = Step::train(1, 2);
  const auto draw = [](const Step& step, moe::Purpose purpose) { return step.random(purpose).bits(3, 4); };
  std::vector<Step> others(4, base);
  others[0].update = 9;
  others[1].seed = 9;
  others[2].layer = 9;
  others[3].pass = 9;
  for (const Step& other : others) CHECK(draw(other, moe::Purpose::Noise) != draw(base, moe::Purpose::Noise));
  CHECK(draw(base, moe::Purpose::Capacity) != draw(base, moe::Purpose::Noise));
  CHECK(draw(base, moe::Purpose::Noise) == draw(Step::train(1, 2), moe::Purpose::Noise));
}
