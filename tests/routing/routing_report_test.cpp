// SPDX-License-Identifier: MIT
#include "moe/routing/balance/routing_report.hpp"

#include <sstream>

#include "moe/routing/balance/statistics.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"
#include "support/text.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::Matrix;
using moe::RoutingReport;
using moe::Step;

namespace {

std::string csv_of(const RoutingReport& report) {
  std::ostringstream text;
  report.write_csv(text);
  return text.str();
}

/// Three tokens, of which the last is padding; one choice is dropped.
struct Small {
  moe::Routing<double> routing = test::routing_of({{0, 1, 2}, {1, 0}, {2, 2}});
  Matrix<double> p = test::matrix<double>({{.5, .25, .25}, {2, 2, 0}, {1, 0, 0}});
  std::vector<std::uint8_t> valid = {1, 1, 0};

  Small() {
    const std::vector<double> weights{.5, .3, 0, .75, .25, 7, 7};
    std::ranges::copy(weights, routing.weights().begin());
    routing.drop(2, moe::kDroppedByCapacity);
  }
  RoutingReport report() const {
    Step step;
    step.valid = valid;
    RoutingReport result(3);
    result.add<double>(routing, p, step);
    return result;
  }
};

}  // namespace

TEST_CASE("RoutingReport: every number by hand", "[statistics]") {
  const RoutingReport report = Small().report();
  CHECK(report.num_experts() == 3);
  CHECK(report.num_tokens() == 2);
  const Index load[] = {2, 2, 0}, dropped[] = {0, 0, 1};
  const double importance[] = {.75, 1.05, 0}, probability[] = {.5, .375, .125};  // token 1 has (.5, .5, 0)
  for (Index e = 0; e < 3; ++e) {
    CHECK(report.load(e) == load[e]);
    CHECK(report.dropped(e) == dropped[e]);
    CHECK_THAT(report.importance(e), WithinAbs(importance[e], 1e-15));
    CHECK(report.mean_probability(e) == probability[e]);
  }
  const Index together[3][3] = {{2, 2, 0}, {2, 2, 0}, {0, 0, 0}};
  for (Index a = 0; a < 3; ++a)
    for (Index b = 0; b < 3; ++b) CHECK(report.together(a, b) == together[a][b]);
  CHECK(report.drop_rate() == 0.2);
  CHECK(report.load_imbalance() == 1.5);
  CHECK_THAT(report.mean_entropy(), WithinAbs((1.5 * std::log(2.) + std::log(2.)) / 2, 1e-15));
}

TEST_CASE("RoutingReport: agrees with the statistics of one routing", "[statistics]") {
  const auto p = test::probabilities_of(test::random_logits<double>(600, 5));
  auto routing = test::random_ragged_routing(600, 5);
  for (Index a = 0; a < routing.num_assignments(); a += 7) routing.drop(a, moe::kDroppedByCapacity);
  RoutingReport report(5);
  report.add<double>(routing, p);
  moe::DispatchPlan plan;
  plan.build(routing, 5);
  Index all = 0;
  for (Index e = 0; e < 5; ++e) {
    CHECK(report.load(e) == plan.rows_of(e));
    all += report.load(e) + report.dropped(e);
  }
  CHECK(all == routing.num_assignments());
  CHECK(report.drop_rate() == moe::drop_rate(routing));
  CHECK(report.load_imbalance() == moe::load_imbalance(plan));
  CHECK_THAT(report.mean_entropy(), WithinAbs(moe::router_entropy(p), 1e-13));  // rows sum to 1 up to rounding
}

TEST_CASE("RoutingReport: batches in any order and merged reports are one, on any number of threads", "[statistics]") {
  const auto p = test::probabilities_of(test::random_logits<float>(1300, 6));
  const auto routing = test::top_k_routing(p, 3);
  const auto texts = test::on_thread_counts([&] {
    RoutingReport report(6);
    report.add<float>(routing, p);
    return csv_of(report);
  });
  CHECK(test::all_equal(texts));

  RoutingReport both(6), first(6), second(6);
  both.add<float>(routing, p);
  both.add<float>(test::top_k_routing(p, 1), p);
  first.add<float>(routing, p);
  second.add<float>(test::top_k_routing(p, 1), p);
  first.merge(second);
  CHECK(csv_of(first) == csv_of(both));
  CHECK(first.mean_entropy() == both.mean_entropy());
  CHECK(first.num_tokens() == 2600);
  first.merge(RoutingReport(6));
  CHECK(csv_of(first) == csv_of(both));
}

TEST_CASE("RoutingReport: an expert named twice is no pair, nor is one with a dropped choice", "[statistics]") {
  auto routing = test::routing_of({{1, 1, 2}, {0, 2, 1}});
  routing.drop(3, moe::kDroppedByGate);
  RoutingReport report(3);
  report.add<double>(routing, Matrix<double>::Constant(2, 3, 0));
  CHECK(report.together(1, 1) == 3);
  CHECK(report.together(1, 2) == 3);
  CHECK(report.together(2, 1) == 3);
  CHECK(report.together(0, 1) == 0);
  CHECK(report.together(2, 0) == 0);
  CHECK(report.mean_probability(0) == 0);  // scores that are all 0 have no shares
}

TEST_CASE("RoutingReport: text for people, programs and gnuplot", "[statistics]") {
  const RoutingReport report = Small().report();
  std::ostringstream table, script;
  table.precision(1);
  report.write_table(table);
  CHECK(table.str() ==
        "expert        load   share     dropped  importance  probability\n"
        "     0           2  0.5000           0      0.4167       0.5000\n"
        "     1           2  0.5000           0      0.5833       0.3750\n"
        "     2           0  0.0000           1      0.0000       0.1250\n"
        "2 tokens, load max / mean 1.5000, dropped 0.2000, entropy of the router 0.8664 of at most 1.0986\n");
  CHECK(csv_of(report).starts_with(
      "expert,load,dropped,importance,mean_probability,together_0,together_1,together_2\n0,2,0,0.75,0.5,2,2,0\n"));
  report.write_gnuplot(script, "it's.svg");
  CHECK(test::contains(script.str(), "set output 'it''s.svg'\n"));
  CHECK(test::contains(script.str(), "$experts << END\n0 0.5 0.416667 0.5\n1 0.5 0.583333 0.375\n2 0 0 0.125\nEND\n"));
  CHECK(test::contains(script.str(), "$together << END\n0 0 0\n1 0 1\n2 0 0\n0 1 1\n"));
}

TEST_CASE("RoutingReport: nothing reported is even, and can be written", "[statistics]") {
  RoutingReport report(1);
  report.add<float>(moe::Routing<float>{}, Matrix<float>(0, 1));
  CHECK(report.drop_rate() == 0);
  CHECK(report.load_imbalance() == 1);
  CHECK(report.mean_entropy() == 0);
  CHECK(csv_of(report) == "expert,load,dropped,importance,mean_probability,together_0\n0,0,0,0,0,0\n");
  std::ostringstream script;
  report.write_gnuplot(script, "none.svg");
  CHECK(test::contains(script.str(), "set cbrange [0:1]"));
}

TEST_CASE("RoutingReport: what does not fit is refused before anything is added", "[statistics][error]") {
  CHECK_THROWS_WITH(RoutingReport(0), "moe::RoutingReport: num_experts is 0, expected at least 1");
  const Small small;
  RoutingReport report = small.report();
  const std::string before = csv_of(report);
  const auto complaint = [&](const moe::Routing<double>& routing, const Matrix<double>& p) {
    const std::string text = test::message_of([&] { report.add<double>(routing, p); });
    CHECK(csv_of(report) == before);
    return text;
  };
  CHECK(complaint(small.routing, Matrix<double>::Zero(3, 2)) ==
        "moe::RoutingReport::add: probability is [3, 2], expected [3, 3]");
  Matrix<double> bad = small.p;
  bad(1, 2) = test::kNan<double>;
  CHECK(complaint(small.routing, bad) ==
        "moe::RoutingReport::add: probability of token 1 for expert 2 is nan, expected a number of at least 0");
  bad(1, 2) = -0.5;
  CHECK(test::contains(complaint(small.routing, bad), "is -0.5, expected"));
  auto weighted = small.routing;
  weighted.weights(1)[1] = test::kNan<double>;
  CHECK(complaint(weighted, small.p) == "moe::RoutingReport::add: a weight of token 1 is nan, expected a number");
  CHECK(complaint(test::routing_of({{0}, {3}, {0}}), small.p) ==
        "moe::RoutingReport::add: assignment 1 names expert 3, expected 0 <= expert < num_experts = 3");
  CHECK(test::message_of([&] { report.merge(RoutingReport(2)); }) ==
        "moe::RoutingReport::merge: the other has 2 experts, expected num_experts = 3");
}
