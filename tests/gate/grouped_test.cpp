// SPDX-License-Identifier: MIT
#include "moe/gate/wrap/grouped.hpp"

#include <numeric>

#include "moe/gate/dense_to_sparse.hpp"
#include "moe/gate/hash.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/gate/wrap/with_chance.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::GroupedGate;
using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;

namespace {

constexpr Index kTokens = 23, kExperts = 5;

/// Three groups that stand in turns, and padding.
struct Batch {
  std::vector<std::int64_t> group;
  std::vector<std::uint8_t> valid = test::every_nth_padding(kTokens, 5);
  Step step = Step::train(3, 7);

  Batch() {
    for (Index t = 0; t < kTokens; ++t) group.push_back(t % 3 == 1 ? 40 : t % 3 - 7);
    step.group_id = group;
    step.valid = valid;
  }
  std::vector<Index> tokens(std::int64_t id) const {
    std::vector<Index> members;
    for (Index t = 0; t < kTokens; ++t)
      if (step.is_valid(t) && step.group(t) == id) members.push_back(t);
    return members;
  }
};

/// The mean of the group's logits, summed in the plainest way.
Matrix<double> mean_of(const Matrix<double>& logits, const std::vector<Index>& tokens) {
  Matrix<double> mean = Matrix<double>::Zero(1, logits.cols());
  for (const Index t : tokens) mean += logits.row(t);
  return mean / static_cast<double>(tokens.size());
}

template <class G>
void check_definition(const G& inner) {
  const Batch batch;
  const auto logits = test::random_logits<double>(kTokens, kExperts, 2);
  const auto routing = test::routed(GroupedGate<G>{inner}, logits, batch.step);
  const auto p = test::probabilities(GroupedGate<G>{inner}, logits, batch.step);
  for (const std::int64_t id : {-7, -5, 40}) {
    const std::vector<Index> tokens = batch.tokens(id);
    Step alone = batch.step;
    alone.group_id = {};
    alone.valid = {};
    alone.token_id = {&id, 1};
    const auto own = test::routed(inner, mean_of(logits, tokens), alone);
    const auto own_p = test::probabilities(inner, mean_of(logits, tokens), alone);
    for (const Index t : tokens) {
      CHECK(test::experts_of(routing, t) == test::experts_of(own));
      CHECK(test::copy_of(routing.dropped(t)) == test::copy_of(own.dropped(0)));
      for (std::size_t s = 0; s < own.weights(0).size(); ++s)
        CHECK(std::abs(routing.weights(t)[s] - own.weights(0)[s]) < 1e-15);
      CHECK(test::largest(Matrix<double>(p.row(t) - own_p)) < 1e-15);
    }
  }
  for (Index t = 0; t < kTokens; t += 5) {
    CHECK(routing.experts(t).empty());
    CHECK(test::all_zero(p.row(t)));
  }
}

}  // namespace

TEST_CASE("GroupedGate: all tokens of a group get what the gate gives their mean logits", "[gate]") {
  check_definition(TopKGate{.k = 2});
  check_definition(moe::NoisyTopKGate{.top_k = {.k = 2}});                // draws by the id of the group
  check_definition(moe::WithChance<TopKGate>{{.k = 3}, 0.6, 0.6});        // drops
  check_definition(moe::DenseToSparseGate<moe::LearnableTemperature>{});  // ragged
}

TEST_CASE("GroupedGate: gradients agree with central differences", "[gate]") {
  const Batch batch;
  const auto logits = test::random_logits<double>(kTokens, kExperts, 4);
  const GroupedGate<TopKGate> sums{{.k = 2}}, raw{{.k = 1, .normalise = moe::Normalise::Off}};
  CHECK(test::gate_gradient_error(sums, logits, batch.step) < 1e-6);
  CHECK(test::gate_gradient_error(raw, logits, batch.step) < 1e-6);
  CHECK(test::gate_gradient_error(raw, logits) < 1e-6);
  const GroupedGate<moe::DenseToSparseGate<moe::LearnableTemperature>> learns{};
  CHECK(test::gate_gradient_error(learns, logits, batch.step) < 1e-6);
  // Drops of single tokens, and by the limit around it.
  auto some = test::routed(sums, logits, batch.step);
  for (const Index a : {0, 3, 6, 7, 12}) some.drop(a, moe::kDroppedByCapacity);
  CHECK(test::gate_gradient_error(sums, logits, batch.step, some) < 1e-6);
  const moe::WithCapacity<GroupedGate<TopKGate>> limited{sums, {.factor = 0.5, .min_capacity = 1}};
  const auto routing = test::routed(limited, logits, batch.step);
  CHECK(std::ranges::count(routing.dropped(), moe::kDroppedByCapacity) > 0);
  CHECK(test::gate_gradient_error(limited, logits, batch.step) < 1e-6);
}

TEST_CASE("GroupedGate: groups of one token are the gate itself", "[gate][property]") {
  const auto logits = test::random_logits<float>(kTokens, kExperts, 2);
  std::vector<std::int64_t> own(kTokens);
  for (Index t = 0; t < kTokens; ++t) own[static_cast<std::size_t>(t)] = kTokens - t;
  Step step;
  step.group_id = own;
  CHECK(test::equal_bits(test::routed(GroupedGate<TopKGate>{}, logits, step), test::routed(TopKGate{}, logits)));
}

TEST_CASE("GroupedGate: replay gives the bits of route, for any number of threads", "[gate][property]") {
  const Batch batch;
  const auto logits = test::random_logits<double>(kTokens, kExperts, 2);
  const GroupedGate<TopKGate> gate{{.k = 2}};
  const auto once = test::routed(gate, logits, batch.step);
  const auto results = test::on_thread_counts([&] {
    auto routing = test::routed(gate, logits, batch.step);
    gate.replay(logits, batch.step, routing);
    return routing;
  });
  for (const auto& result : results) CHECK(test::equal_bits(result, once));
}

TEST_CASE("GroupedGate: an expert that is masked for a token is masked for its group", "[gate]") {
  auto logits = test::random_logits<double>(6, 3, 2);
  logits(4, 1) = -INFINITY;
  const auto routing = test::routed(GroupedGate<TopKGate>{{.k = 2}}, logits);
  for (Index t = 0; t < 6; ++t)
    for (const Index e : routing.experts(t)) CHECK(e != 1);
}

TEST_CASE("GroupedGate: a group has the key of its first valid token", "[gate]") {
  Batch batch;
  const std::vector<std::int64_t> keys = [] {
    std::vector<std::int64_t> of_rows(static_cast<std::size_t>(kTokens));
    std::iota(of_rows.begin(), of_rows.end(), 0);
    return of_rows;
  }();
  batch.step.key = keys;
  Matrix<double> table(kTokens, 1);
  for (Index key = 0; key < kTokens; ++key) table(key, 0) = static_cast<double>(key % kExperts);
  const auto logits = test::random_logits<double>(kTokens, kExperts, 2);
  const auto routing = test::routed(GroupedGate<moe::HashGate>{{.table = table}}, logits, batch.step);
  for (const std::int64_t id : {-7, -5, 40})
    for (const Index t : batch.tokens(id)) CHECK(routing.experts(t)[0] == batch.tokens(id).front() % kExperts);
}

TEST_CASE("GroupedGate: no tokens, NaN and choices that differ inside of a group", "[gate][error]") {
  const GroupedGate<TopKGate> gate{{.k = 1}};
  CHECK(test::routed(gate, Matrix<double>(0, 4)).num_assignments() == 0);
  auto logits = test::random_logits<double>(6, 3, 2);
  auto routing = test::routed(gate, logits);
  routing.experts(5)[0] = (routing.experts(5)[0] + 1) % 3;
  CHECK_THROWS_WITH(gate.replay(logits, Step{}, routing),
                    "moe::GroupedGate::replay: token 5 names other experts than token 0 of its group, expected the "
                    "same for all of them");
  logits(3, 2) = NAN;
  CHECK_THROWS_WITH(test::routed(gate, logits),
                    ContainsSubstring("moe::GroupedGate::route: logit of token 3 for expert 2 is nan"));
}
