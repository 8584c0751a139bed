// SPDX-License-Identifier: MIT
// The routers of the literature in one table: how many experts a token gets, how even loads are, what is left out, and
// what route() costs on one core. Cai et al., "A survey on mixture of experts" (arXiv:2407.06204), section 4.1; the
// header of each gate names its paper. Here: eight linear experts on clusters with a linear map each, whose number is
// the key of the hash; on digits, where the nearest of eight mean images is; on text, where the last character tells.
// Nothing is tuned but the weight of balance losses, so the order is one of these tasks; on digits BASE and Sinkhorn,
// even in training alone, lose to chance. Not here: other routers.
#include <algorithm>

#include <moe/expert/linear.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/balanced.hpp>
#include <moe/gate/dselect_k.hpp>
#include <moe/gate/expert_choice.hpp>
#include <moe/gate/hash.hpp>
#include <moe/gate/hash_tables.hpp>
#include <moe/gate/null_expert.hpp>
#include <moe/gate/prototype.hpp>
#include <moe/gate/sinkhorn.hpp>
#include <moe/gate/softmax.hpp>
#include <moe/gate/stochastic.hpp>
#include <moe/gate/threshold.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/gate/top_p.hpp>
#include <moe/gate/wrap/with_capacity.hpp>
#include <moe/layer/merged_experts.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/layer/soft_moe.hpp>
#include <moe/router/linear.hpp>

#include "support/any_gate.hpp"
#include "support/league.hpp"
#include "support/page.hpp"
#include "support/text.hpp"

namespace {

using moe::Index, systems::kLeagueBatch, systems::LeagueTask;
constexpr Index kExperts = systems::kLeagueClusters;
constexpr double kBalance = 0.1;
constexpr std::size_t kSwitch = 3, kBase = 4, kExpertChoice = 7, kThreshold = 12;  // among the players
struct Player {
  const char* name;
  systems::AnyGate gate;
  double balance = 0;
};

std::vector<Player> players() {
  moe::Matrix<double> by_cluster(kExperts * kLeagueBatch, 1);
  for (Index key = 0; key < by_cluster.rows(); ++key) by_cluster(key, 0) = static_cast<double>(key / kLeagueBatch);
  const auto switch_gate = moe::TopKGate::switch_transformer();
  return {{"hash of the cluster", moe::HashGate{.table = by_cluster}},
          {"hash at random", moe::HashGate{.table = moe::random_hash_table(by_cluster.rows(), kExperts, 1, 1)}},
          {"random", moe::StochasticGate{.training = moe::DrawPer::Token}},
          {"Switch, capacity 1.25", moe::WithCapacity<moe::TopKGate>{switch_gate, {.factor = 1.25}}, kBalance},
          {"BASE", moe::BalancedGate{}},
          {"Sinkhorn", moe::SinkhornGate{}},
          {"top-2", moe::TopKGate{.k = 2}, kBalance},
          {"expert choice, 2", moe::ExpertChoiceGate{}},
          {"prototypes, 2", moe::PrototypeGate{.groups = 2}, kBalance},
          {"DSelect-2", moe::DSelectKGate{.num_experts = kExperts}},
          {"null experts, 3 of 8 + 8", moe::NullExpertGate{.k = 3, .nulls = 8}},
          {"top-p 0.4", moe::TopPGate{}, kBalance},
          {"threshold", moe::ThresholdGate{}},
          {"softmax, all", moe::SoftmaxGate{}}};
}

/// Results of all players, then of two mixtures that choose nothing: merged parameters and mixed inputs.
std::vector<double> play(const LeagueTask& task, std::uint64_t seed) {
  const auto experts = moe::ExpertPool<moe::Linear>::random(kExperts, task.outputs, task.dim, seed + 10);
  const auto router = [&](Index logits) { return moe::LinearRouter::random(logits, task.dim, seed, moe::Bias::Zero); };
  std::vector<double> numbers;
  for (const auto& [name, gate, balance] : players())
    league_result(moe::MoeLayer(router(gate.num_logits(kExperts)), gate, experts), task, balance, seed).append(numbers);
  moe::MoeLayer merged(router(kExperts), systems::AnyGate(moe::SoftmaxGate{}), moe::MergedExperts(experts));
  systems::LeagueResult{.error = league_error(merged, task, 0, seed)}.append(numbers);
  moe::SoftMoeLayer soft(router(kLeagueBatch), experts);  // as many slots as tokens
  systems::LeagueResult{.error = league_error(soft, task, 0, seed)}.append(numbers);
  return numbers;
}

/// Plays, shows the table and returns the samples, five per player.
std::vector<systems::Sample> show(systems::Page& page, const char* name, const auto& task_of) {
  const auto s = page.over_seeds([&](std::uint64_t seed) { return play(task_of(seed), seed); });
  std::vector<std::pair<double, double>> points;
  std::vector<std::string> names;
  for (const Player& player : players()) names.emplace_back(player.name);
  names.insert(names.end(), {"SMEAR, one merged expert", "Soft MoE, a slot per token"});
  page.table({name, "error", "experts/token", "load max/mean", "left out", "us/1000 tokens"});
  for (std::size_t i = 0; i < names.size(); ++i) {
    const auto first = s.begin() + static_cast<std::ptrdiff_t>(5 * i);
    page.row(names[i], {first, first + (i + 2 < names.size() ? 5 : 4)});
    points.emplace_back(first[1].mean(), first[0].mean());
  }
  systems::draw_league(std::string("league_") + name + ".svg", std::string("Routers on ") + name, names, points);
  page.expect("load of BASE, max/mean", s[5 * kBase + 2], {.low = 1, .high = 1});
  page.expect("load of expert choice, max/mean", s[5 * kExpertChoice + 2], {.low = 1, .high = 1});
  return s;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"router_league", "2407.06204", "moe/gate/hash.hpp"}, [](systems::Page& page) {
    const auto updates = page.amount<std::uint64_t>(800, 40);
    show(page, "text", [&](std::uint64_t seed) { return systems::league_text(seed, updates / 2); });
    show(page, "digits", [&](std::uint64_t seed) { return systems::league_digits(seed, updates / 4); });
    const auto s = show(page, "clusters", [&](std::uint64_t seed) { return systems::league_clusters(seed, updates); });
    systems::Sample best, worst, chance;  // errors of the learned gates of few experts, and of what is random
    for (std::size_t seed = 0; seed < s[0].values.size(); ++seed) {
      std::vector<double> learned;
      for (std::size_t i = kSwitch; i < kThreshold; ++i) learned.push_back(s[5 * i].values[seed]);
      best.values.push_back(std::ranges::min(learned));
      worst.values.push_back(std::ranges::max(learned));
      chance.values.push_back(std::min(s[5].values[seed], s[10].values[seed]));
    }
    page.expect("least error by chance over the worst learned one", chance / worst, {.low = 1});
    page.claim("least learned error of few experts over that of the hash", best / s[0], {.low = 1.5});
  });
}
