// SPDX-License-Identifier: MIT
// What does a router do? Who is chosen, how often, with which weight, and with whom, over a few batches: prints a table
// and writes router_report.csv and a script that draws router_report.svg.
#include <fstream>
#include <iostream>
#include <moe/moe.hpp>

namespace {

constexpr moe::Index kTokens = 512, kModelDim = 32, kExperts = 12, kTopics = 5;

/// Tokens around a few topics, of which the first ones are frequent.
moe::Matrix<float> batch_of(std::uint64_t number) {
  const moe::RandomField topics(moe::Purpose::User, 0), own(moe::Purpose::User, 1, number);
  moe::Matrix<float> tokens(kTokens, kModelDim);
  for (moe::Index t = 0; t < kTokens; ++t) {
    const double u = own.uniform(t, -1);
    const auto topic = static_cast<moe::Index>(u * u * kTopics);
    for (moe::Index c = 0; c < kModelDim; ++c)
      tokens(t, c) = static_cast<float>(topics.normal(topic, c) + 0.7 * own.normal(t, c));
  }
  return tokens;
}

}  // namespace

int main() {
  // Any layer will do; the capacity of this one drops choices.
  const moe::MoeLayer layer(moe::LinearRouter::random(kExperts, kModelDim, 1),
                            moe::WithCapacity<moe::TopKGate>{{.k = 2}, {.factor = 1.5}},
                            moe::ExpertPool<moe::Mlp>::random(kExperts, kModelDim, 64, 2));
  moe::RoutingReport report(kExperts);
  moe::Workspace workspace;
  moe::Matrix<float> output(kTokens, kModelDim), probability;
  for (std::uint64_t update = 0; update < 8; ++update) {
    const moe::Step step = moe::Step::train(update, /*seed=*/3);
    layer.forward(batch_of(update), step, output, workspace);
    layer.gate().probabilities(workspace.logits.matrix(), step, probability);
    report.add<float>(workspace.routing, probability, step);
  }

  report.write_table(std::cout);
  std::ofstream csv("router_report.csv"), script("router_report.svg.gp");
  report.write_csv(csv);
  report.write_gnuplot(script, "router_report.svg");
  if (!csv.flush() || !script.flush()) {
    std::cerr << "router_report: cannot write its files here\n";
    return 1;
  }
  std::cout << "table: router_report.csv; picture: gnuplot router_report.svg.gp\n";
}
