// SPDX-License-Identifier: MIT
#include "moe/routing/balance/selection_bias.hpp"

#include <cmath>
#include <vector>

#include "support/catch.hpp"

using moe::Index;
using moe::update_selection_bias;

TEST_CASE("update_selection_bias: busy experts go down, idle ones up, those with their share stay", "[routing]") {
  Eigen::RowVectorXd bias(4);
  bias << 0.5, 0, -0.5, 1;
  update_selection_bias(std::vector<Index>{9, 4, 0, 3}, 0.25, bias);
  CHECK(bias(0) == 0.25);
  CHECK(bias(1) == 0);
  CHECK(bias(2) == -0.25);
  CHECK(bias(3) == 1.25);
}

TEST_CASE("update_selection_bias: a share that is no whole number is compared exactly", "[routing]") {
  Eigen::RowVectorXd bias;  // made zero: the mean is 10 / 3
  update_selection_bias(std::vector<Index>{3, 3, 4}, 1, bias);
  CHECK((bias.size() == 3 && bias(0) == 1 && bias(1) == 1 && bias(2) == -1));
}

TEST_CASE("update_selection_bias: no experts, no tokens and no rate change nothing", "[routing]") {
  Eigen::RowVectorXd bias;
  update_selection_bias({}, 1, bias);
  CHECK(bias.size() == 0);
  update_selection_bias(std::vector<Index>{0, 0}, 1, bias);
  CHECK((bias.size() == 2 && bias.isZero(0)));
  update_selection_bias(std::vector<Index>{5, 0}, 0, bias);
  CHECK(bias.isZero(0));
}

TEST_CASE("update_selection_bias: bad arguments are errors and leave the bias alone", "[routing][error]") {
  Eigen::RowVectorXd bias(3);
  bias << 1, 2, 3;
  const Eigen::RowVectorXd before = bias;
  CHECK_THROWS_WITH(update_selection_bias(std::vector<Index>{1, 2}, 1, bias),
                    "moe::update_selection_bias: bias has 3 entries, expected 0 or num_experts = 2");
  CHECK_THROWS_WITH(update_selection_bias(std::vector<Index>{1, -2, 3}, 1, bias),
                    "moe::update_selection_bias: count of expert 1 is -2, expected at least 0");
  for (const double rate : {-1.0, static_cast<double>(NAN), static_cast<double>(INFINITY)})
    CHECK_THROWS_AS(update_selection_bias(std::vector<Index>{1, 2, 3}, rate, bias), std::invalid_argument);
  CHECK(bias == before);
}
