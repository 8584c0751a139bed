// SPDX-License-Identifier: MIT
// Random token selection: where more tokens choose an expert than it takes, lots decide and not the position, so that
// it is not always the ends of sequences that are dropped. Kim et al., "Scalable and efficient MoE training for
// multitask multilingual models" (arXiv:2109.10465). Here: sequences of 64 tokens, four experts that take 12 each, a
// quarter of the tokens too few. Of an expert that n tokens choose, each is dropped with probability 1 - 12/n by lots;
// by position the first 12 never are. Not here: what it does for a translation, and drops at inference, where a
// capacity is off unless asked for.
#include <algorithm>
#include <cmath>

#include <moe/gate/top_k.hpp>
#include <moe/gate/wrap/with_capacity.hpp>

#include "support/page.hpp"

namespace {

using moe::Index;

constexpr Index kSequence = 64, kExperts = 4, kCapacity = 12;

/// Drop rates of the first and the last quarter of a sequence over `draws` updates with the same logits, and the
/// largest difference between that of a token and 1 - 12/n, in standard errors.
std::vector<double> drops(moe::ServiceOrder order, std::uint64_t seed, std::uint64_t draws) {
  const moe::WithCapacity<moe::TopKGate> gate{
      .gate = moe::TopKGate::switch_transformer(),
      .capacity = {.factor = 0.75, .min_capacity = 1, .order = order}};  // 12 of 64 tokens per expert
  const moe::RandomField random(moe::Purpose::User, seed);
  const auto logits = moe::Matrix<float>::NullaryExpr(kSequence, kExperts, [&](Index t, Index e) {
                        return static_cast<float>(random.normal(t, e));
                      }).eval();
  moe::Scratch scratch;
  moe::Routing<float> routing;
  Eigen::ArrayXd dropped = Eigen::ArrayXd::Zero(kSequence), expected = dropped;
  for (std::uint64_t update = 0; update < draws; ++update) {
    const moe::Step step = moe::Step::train(update, seed);
    gate.route<float>(logits, {step, scratch}, routing);
    for (Index t = 0; t < kSequence; ++t) dropped(t) += routing.dropped(t)[0] != 0 ? 1 / static_cast<double>(draws) : 0;
  }
  for (Index t = 0; t < kSequence; ++t) {
    const auto n = static_cast<double>(std::ranges::count(routing.experts(), routing.experts(t)[0]));
    expected(t) = std::max(0.0, 1 - kCapacity / n);
  }
  const Eigen::ArrayXd error = (expected * (1 - expected) / static_cast<double>(draws)).sqrt();
  const Eigen::ArrayXd off = (expected == dropped).select(0.0, (dropped - expected).abs() / error.max(1e-9));
  return {dropped.head(16).mean(), dropped.tail(16).mean(), off.maxCoeff()};
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"token_selection", "2109.10465", "moe/gate/wrap/with_capacity.hpp"}, [](systems::Page& page) {
        const auto draws = page.amount<std::uint64_t>(10000, 500);
        const auto random =
            page.over_seeds([&](std::uint64_t s) { return drops(moe::ServiceOrder::Random, s, draws); });
        const auto position =
            page.over_seeds([&](std::uint64_t s) { return drops(moe::ServiceOrder::ByPosition, s, 1); });
        page.table({"drop rate", "first quarter", "last quarter"});
        page.row("random token selection", {random[0], random[1]});
        page.row("by position", {position[0], position[1]});
        page.expect("last less first quarter, random", random[1] - random[0], {.low = -0.15, .high = 0.15});
        page.expect("last less first quarter, by position", position[1] - position[0], {.low = 0.5});
        page.claim("largest deviation of a drop rate from 1 - 12/n, in standard errors", random[2],
                   {.low = 1, .high = 4});
      });
}
