// SPDX-License-Identifier: MIT
#include "moe/train/sgd.hpp"
#include "support/catch.hpp"
#include "support/sample_layer.hpp"

using test::Number;

TEST_CASE("Sgd: two steps with momentum by hand", "[train]") {
  const moe::Sgd sgd{.momentum = 0.5, .weight_decay = 0.25};
  Number number{2};
  moe::Sgd::State state(number);
  sgd.step(number, Number{1}, state, 0.5);  // d = 1 + 0.25 * 2 = 1.5 = v, x = 2 - 0.75
  REQUIRE(number.x == 1.25);
  sgd.step(number, Number{0}, state, 1);  // d = 0.3125, v = 0.75 + 0.3125, x = 1.25 - 1.0625
  REQUIRE(number.x == 0.1875);
  REQUIRE(state.velocity.x == 1.0625);
}

TEST_CASE("Sgd: Nesterov's first step by hand", "[train]") {
  Number number{2};
  moe::Sgd::State state(number);
  moe::Sgd{.momentum = 0.5, .kind = moe::Momentum::Nesterov}.step(number, Number{1}, state, 0.5);
  REQUIRE(number.x == 1.25);  // v = 1, x = 2 - 0.5 * (1 + 0.5 * 1)
}
