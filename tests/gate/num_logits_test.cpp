// SPDX-License-Identifier: MIT
// Gates that ask their router for more columns than there are experts.
#include "moe/expert/mlp.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/with_chance.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;

/// Two scores per expert: the better one counts. Sends each token to one expert.
struct PairGate {
  static constexpr bool kPerToken = true;

  Index num_logits(Index num_experts) const { return 2 * num_experts; }

  template <class S>
  void route(const moe::Logits<S>& logits, const moe::Context&, moe::Routing<S>& routing) const {
    routing.resize(logits.rows(), 1);
    for (Index t = 0; t < logits.rows(); ++t) {
      Index best = 0;
      for (Index c = 1; c < logits.cols(); ++c)
        if (logits(t, c) > logits(t, best)) best = c;
      routing.experts(t)[0] = best % (logits.cols() / 2);
      routing.weights(t)[0] = S{1};
    }
  }
};

/// A number of that name which is no answer for a number of experts.
struct OtherGate {
  Index num_logits = 3;
};

}  // namespace

TEST_CASE("num_logits: one per expert, unless the gate says otherwise", "[gate]") {
  STATIC_REQUIRE(moe::Gate<PairGate, float>);
  for (const Index num_experts : {1, 4, 65}) {
    CHECK(moe::detail::num_logits(moe::TopKGate{}, num_experts) == num_experts);
    CHECK(moe::detail::num_logits(moe::SoftmaxGate{}, num_experts) == num_experts);
    CHECK(moe::detail::num_logits(OtherGate{}, num_experts) == num_experts);
    CHECK(moe::detail::num_logits(PairGate{}, num_experts) == 2 * num_experts);
  }
}

TEST_CASE("num_logits: chance asks for what its gate asks for", "[gate]") {
  CHECK(moe::detail::num_logits(moe::WithChance<PairGate>{}, 4) == 8);
  CHECK(moe::detail::num_logits(moe::WithChance<moe::TopKGate>{}, 4) == 4);
}

TEST_CASE("num_logits: a layer asks its router for so many, and refuses others", "[gate][layer]") {
  const auto pool = moe::ExpertPool<moe::Mlp>::random(3, 8, 5, 1);
  const moe::MoeLayer layer(moe::LinearRouter::random(6, 8, 1), PairGate{}, pool);
  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(7, 8);
  moe::Matrix<float> out(7, 8);
  moe::Workspace ws;
  layer.forward(tokens, out, ws);
  CHECK(ws.logits.cols() == 6);
  for (Index t = 0; t < 7; ++t) {
    Index best = 0;
    ws.logits.matrix().row(t).maxCoeff(&best);
    CHECK(ws.routing.experts(t)[0] == best % 3);
  }
  CHECK_THROWS_WITH(moe::MoeLayer(moe::LinearRouter::random(3, 8, 1), PairGate{}, pool),
                    "moe::MoeLayer: the router scores 3 experts, expected 6 as in the expert set");
}
