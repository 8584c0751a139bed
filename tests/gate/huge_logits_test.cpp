// SPDX-License-Identifier: MIT
#include <cmath>

#include "moe/gate/balanced.hpp"
#include "moe/gate/dselect_k.hpp"
#include "moe/gate/null_expert.hpp"
#include "moe/gate/prototype.hpp"
#include "moe/gate/rank.hpp"
#include "moe/gate/relu.hpp"
#include "moe/gate/self_gate.hpp"
#include "moe/gate/sinkhorn.hpp"
#include "moe/gate/threshold.hpp"
#include "moe/gate/top_p.hpp"
#include "moe/gate/wrap/with_skipping.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;

namespace {

/// Weights, scores and gradients of logits that are 0, or as large as floats are, are finite.
template <class G>
void check_finite(const char* name, const G& gate, Index num_logits = 6) {
  for (const float huge : {1e4f, 1e30f, 3e38f}) {
    CAPTURE(name, huge);
    auto logits = test::random_logits<float>(12, num_logits);
    for (float& z : logits.reshaped()) z = z < 0 ? -huge : z < 0.5f ? 0.0f : huge;
    const moe::Step step = moe::Step::train(0);
    const auto routing = test::routed(gate, logits, step);
    for (const float weight : routing.weights()) CHECK(std::isfinite(weight));
    CHECK(test::probabilities(gate, logits, step).allFinite());
    CHECK(test::Backward<float, G>(gate, logits, step, routing).dlogits.allFinite());
  }
}

}  // namespace

TEST_CASE("gates: huge logits give finite weights, scores and gradients", "[gate][property]") {
  check_finite("top-p", moe::TopPGate{});
  check_finite("rank", moe::RankGate{.ranks = {1, 0}});
  check_finite("threshold", moe::ThresholdGate{});
  check_finite("threshold of a softmax", moe::ThresholdGate{.score = moe::Score::Softmax});
  check_finite("relu", moe::ReluGate{});
  check_finite("prototype", moe::PrototypeGate{.groups = 2, .k = 2});
  check_finite("balanced", moe::BalancedGate{});
  check_finite("sinkhorn", moe::SinkhornGate{});
  check_finite("dselect", moe::DSelectKGate{.num_experts = 6}, 8);
  check_finite("null experts", moe::NullExpertGate{.k = 2, .nulls = 2}, 8);
  check_finite("self gate", moe::SelfGate{.own = 2}, 8);
  check_finite("skipping", moe::WithSkipping<moe::TopKGate>{.gate = {.k = 3}, .skipped = moe::SkippedWeight::Shared});
}
