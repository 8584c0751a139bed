// SPDX-License-Identifier: MIT
#include "moe/routing/balance/group_balance.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"
#include "support/text.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::Matrix;
using moe::RoutingGradient;
using moe::Step;
using Groups = std::vector<Index>;

namespace {

template <class S>
double value(const Matrix<S>& p, const moe::Routing<S>& routing, const Groups& groups, const Step& step = {}) {
  RoutingGradient<S> ignored;
  return moe::group_balance_loss<S>(p, routing, groups, step, 1, ignored);
}

/// By the formula, group by group.
double reference(const Matrix<double>& p, const moe::Routing<double>& routing, const Groups& groups, const Step& step) {
  const Index num_experts = p.cols();
  std::vector<double> f(groups.size()), mean(groups.size());
  double choices = 0, valid = 0;
  for (Index t = 0; t < p.rows(); ++t) {
    if (!step.is_valid(t)) continue;
    valid += 1;
    for (const Index e : routing.experts(t)) f[static_cast<std::size_t>(e)] += 1, choices += 1;
    for (Index e = 0; e < num_experts; ++e) mean[static_cast<std::size_t>(e)] += p(t, e);
  }
  double loss = 0;
  for (Index g = 0; g < num_experts; ++g) {
    double members = 0, of_group = 0, probability = 0;
    for (std::size_t e = 0; e < groups.size(); ++e) {
      if (groups[e] != g) continue;
      members += 1;
      of_group += static_cast<double>(num_experts) * f[e] / choices;
      probability += mean[e] / valid;
    }
    if (members != 0) loss += of_group / members * probability;
  }
  return loss;
}

}  // namespace

TEST_CASE("group_balance_loss: by hand", "[loss]") {
  // Choices (3, 1, 0, 0): f = (3, 1, 0, 0), of groups (2, 0); P = (.4, .2, .3, .1), of groups (.6, .4).
  Matrix<double> p(4, 4);
  for (Index t = 0; t < 4; ++t) p.row(t) << .4, .2, .3, .1;
  const auto routing = test::routing_of({{0}, {0}, {0}, {1}});
  RoutingGradient<double> gradient;
  const Groups groups{0, 0, 1, 1};
  CHECK_THAT(moe::group_balance_loss<double>(p, routing, groups, Step{}, 0.1, gradient), WithinAbs(1.2, 1e-15));
  for (Index e = 0; e < 4; ++e)
    CHECK_THAT(gradient.probability(2, e), WithinAbs(0.1 * (e < 2 ? 2. : 0.) / 4, 1e-16));  // weight f' / B
}

TEST_CASE("group_balance_loss: groups with their shares give 1, whatever happens inside", "[loss]") {
  const Matrix<double> even = Matrix<double>::Constant(4, 4, 0.25);
  for (const Groups& groups : {Groups{0, 0, 0, 0}, Groups{3, 3, 1, 1}, Groups{0, 1, 2, 3}, Groups{2, 0, 0, 0}})
    CHECK(value(even, test::routing_of({{0}, {1}, {2}, {3}}), groups) == 1);
  // Experts 0 and 3 do all of the work of their groups, and the router wants it so.
  const auto p = test::matrix<double>({{.5, 0, 0, .5}, {.25, .25, .25, .25}});
  CHECK(value(p, test::routing_of({{0}, {3}}), {0, 0, 1, 1}) == 1);
  CHECK(value(p, test::routing_of({{0}, {3}}), {0, 1, 2, 3}) == 1.5);
}

TEST_CASE("group_balance_loss: everything on a group gives the experts over its size", "[loss]") {
  Matrix<double> p = Matrix<double>::Zero(6, 6);
  p.col(2).setOnes();
  CHECK_THAT(value(p, test::top_k_routing(p, 1), {0, 0, 1, 1, 1, 2}), WithinAbs(2, 1e-15));
}

TEST_CASE("group_balance_loss: follows the formula, with padding, drops and ragged choices", "[loss]") {
  const auto p = test::probabilities_of(test::random_logits<double>(600, 7));
  auto routing = test::random_ragged_routing(600, 7);
  routing.drop(3, moe::kDroppedByCapacity);
  const auto valid = test::every_nth_padding(600, 5);
  Step step;
  step.valid = valid;
  for (const Groups& groups : {Groups{0, 0, 0, 3, 3, 1, 6}, Groups(7, 0), Groups{6, 5, 4, 3, 2, 1, 0}})
    CHECK_THAT(value(p, routing, groups, step), WithinAbs(reference(p, routing, groups, step), 1e-12));
  const Groups alone{6, 5, 4, 3, 2, 1, 0};
  RoutingGradient<double> of_groups, of_experts;
  CHECK(moe::group_balance_loss<double>(p, routing, alone, step, 0.3, of_groups) ==
        moe::load_balancing_loss<double>(p, routing, step, 0.3, of_experts));
  CHECK(of_groups.probability == of_experts.probability);
}

TEST_CASE("group_balance_loss: gradient equals central differences, and is added", "[loss]") {
  auto p = test::probabilities_of(test::random_logits<double>(17, 5));
  const auto routing = test::top_k_routing(p, 2);
  const auto valid = test::every_nth_padding(17, 4);
  Step step;
  step.valid = valid;
  const Groups groups{0, 0, 1, 1, 1};
  RoutingGradient<double> gradient;
  moe::group_balance_loss<double>(p, routing, groups, step, 0.3, gradient);
  const auto loss = [&] { return 0.3 * value(p, routing, groups, step); };
  CHECK(test::gradient_error(loss, p, gradient.probability) < 1e-6);
  const Matrix<double> once = gradient.probability;
  moe::group_balance_loss<double>(p, routing, groups, step, 0.3, gradient);
  CHECK(gradient.probability == 2 * once);
}

TEST_CASE("group_balance_loss: any number of threads gives the same bits", "[loss]") {
  const auto p = test::probabilities_of(test::random_logits<float>(1300, 7));
  const auto routing = test::top_k_routing(p, 2);
  const Groups groups{0, 0, 0, 1, 1, 2, 2};
  CHECK(test::all_equal(test::on_thread_counts([&] {
    RoutingGradient<float> gradient;
    const double loss = moe::group_balance_loss<float>(p, routing, groups, Step{}, 0.01, gradient);
    return std::pair(loss, gradient.probability);
  })));
}

TEST_CASE("group_balance_loss: nothing to count gives 0, and what does not fit is an error", "[loss][error]") {
  const Matrix<double> p = Matrix<double>::Constant(2, 3, 1. / 3);
  const auto routing = test::routing_of({{0}, {2}});
  const std::vector<std::uint8_t> none(2, 0);
  Step padding;
  padding.valid = none;
  CHECK(value(p, routing, {0, 0, 1}, padding) == 0);
  CHECK(value(p, test::routing_of({{}, {}}), {0, 0, 1}) == 0);
  CHECK(value(Matrix<double>(0, 3), moe::Routing<double>{}, {0, 0, 1}) == 0);
  CHECK(value(Matrix<double>(Matrix<double>::Ones(2, 1)), test::routing_of({{0}, {0}}), {0}) == 1);

  const auto complaint = [&](const moe::Routing<double>& of, const Groups& groups) {
    return test::message_of([&] { value(p, of, groups); });
  };
  CHECK(complaint(routing, {0, 1}) == "moe::group_balance_loss: group_of has 2 entries, expected num_experts = 3");
  CHECK(complaint(routing, {0, 1, 3}) ==
        "moe::group_balance_loss: group of expert 2 is 3, expected 0 to num_experts - 1 = 2");
  CHECK(complaint(routing, {0, -1, 0}) ==
        "moe::group_balance_loss: group of expert 1 is -1, expected 0 to num_experts - 1 = 2");
  CHECK(complaint(test::routing_of({{0}}), {0, 0, 0}) ==
        "moe::group_balance_loss: routing has 1 tokens, expected num_tokens = 2");
  RoutingGradient<double> other;
  other.probability.setZero(2, 2);
  CHECK(test::message_of([&] {
          moe::group_balance_loss<double>(p, routing, Groups{0, 0, 0}, {}, 1, other);
        }) == "moe::group_balance_loss: gradient.probability is [2, 2], expected [2, 3]");
}
