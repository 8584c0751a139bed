// SPDX-License-Identifier: MIT
// Several tasks over shared experts, some with few labels: shared bottom, MMoE (Ma et al., KDD 2018), PLE (Tang et al.,
// RecSys 2020) and HoME (Wang et al., arXiv:2408.05430), which are all MultiGateLayer behind masks. HoME has groups of
// tasks, self gates, and experts with a gate on their features and a batch normalisation and Swish behind them.
// Here: questions about digits and a simulation of clicks, two tasks of six with 3% of the labels, about equal sizes.
// Of ReLU experts some give zeros mostly, of HoME's none do, and its sparse tasks do better than those of PLE on
// clicks; one wide expert under all tasks does as well or better. Not here: the paper's data, which is not public.
#include <moe/expert/feature_gated.hpp>
#include <moe/expert/normalised.hpp>

#include "support/multi_task.hpp"
#include "support/page.hpp"
#include "support/task_labels.hpp"

namespace {

using moe::Index;
using systems::MultiTask;
using systems::ReluLinear;
using systems::TaskData;
using Groups = std::vector<std::vector<Index>>;

constexpr Index kTasks = 6, kWidth = 16;
using HomeExpert = moe::Normalised<moe::FeatureGated<moe::Linear>>;

template <class E>
E expert(Index outputs, Index inputs, std::uint64_t seed) {
  if constexpr (std::is_same_v<E, HomeExpert>)
    return E(moe::FeatureGated(moe::Linear::random(outputs, inputs, seed), {.rank = 2}, seed + 1));
  else
    return E(outputs, inputs, seed);
}

/// own[g]: how many of its experts gate g has to itself, the last ones, which HoME weighs by a self gate, too.
template <class E>
auto level(const moe::ExpertMask& mask, const std::vector<Index>& own, Index inputs, Index width, std::uint64_t seed,
           Groups groups = {}) {
  std::vector<moe::LinearRouter> routers;
  std::vector<moe::SelfGate> gates;
  std::vector<E> experts;
  for (Index g = 0; g < mask.num_gates(); ++g) {
    gates.push_back({.own = std::is_same_v<E, HomeExpert> ? own[static_cast<std::size_t>(g)] : 0});
    routers.push_back(moe::LinearRouter::random(gates.back().num_logits(std::ssize(mask.experts(g))), inputs,
                                                seed + static_cast<std::uint64_t>(g), moe::Bias::Zero));
  }
  for (Index e = 0; e < mask.num_experts(); ++e)
    experts.push_back(expert<E>(width, inputs, seed + 100 + 2 * static_cast<std::uint64_t>(e)));
  return moe::MultiGateLayer(routers, gates, moe::ExpertPool<E>(experts), mask, std::move(groups));
}

const Groups kSingletons = {{0}, {1}, {2}, {3}, {4}, {5}};

/// Every gate over all experts: MMoE, and with one wide expert a shared bottom.
MultiTask<ReluLinear> one_level(Index experts, Index inputs, Index width, std::uint64_t seed) {
  const auto mask = moe::ExpertMask::all(kTasks, experts);
  return {kSingletons, level<ReluLinear>(mask, std::vector<Index>(kTasks, 0), inputs, width, seed), {}, seed + 50};
}

/// Two levels: at both, shared experts and `own` of each group, and at the second one of each task, unless it is alone
/// in its group. With a group per task this is PLE.
template <class E>
MultiTask<E> two_levels(const Groups& groups, Index own, Index inputs, std::uint64_t seed) {
  const Index count = std::ssize(groups), of_groups = 2 + count * own, of_tasks = count == kTasks ? 0 : kTasks;
  moe::ExpertMask first(count + 1, of_groups), second(kTasks, of_groups + of_tasks);
  first.allow(count, 0, of_groups);
  Groups second_groups = groups;
  for (Index q = 0; q < count; ++q) {
    first.allow(q, 0, 2).allow(q, 2 + q * own, own);
    for (const Index task : groups[static_cast<std::size_t>(q)]) {
      second.allow(task, 0, 2).allow(task, 2 + q * own, own);
      if (of_tasks > 0) second.allow(task, of_groups + task);
    }
  }
  std::vector<Index> owns(static_cast<std::size_t>(count), own);
  owns.push_back(0);
  return {groups, level<E>(first, owns, inputs, kWidth, seed),
          level<E>(second, std::vector<Index>(kTasks, 1), 2 * kWidth, kWidth, seed + 300, groups), seed + 50};
}

/// The numbers of shared bottom, MMoE, PLE and HoME, one after the other.
std::vector<double> compare(const TaskData& data, std::uint64_t updates, std::uint64_t seed) {
  const Index inputs = data.train.rows.cols();
  std::vector<double> all;
  const auto add = [&](const auto& model) {
    std::ranges::copy(train_tasks(model, data, updates, seed), back_inserter(all));
  };
  add(one_level(1, inputs, 12 * kWidth, seed));
  add(one_level(12, inputs, kWidth, seed));
  add(two_levels<ReluLinear>(kSingletons, 1, inputs, seed));
  add(two_levels<HomeExpert>({{0, 1, 2}, {3, 4, 5}}, 2, inputs, seed));
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"home", "2408.05430", "moe/layer/multi_gate_layer.hpp"}, [](systems::Page& page) {
        using Result = systems::TaskResult;
        const auto updates = page.amount<std::uint64_t>(500, 30);
        const auto show = [&](const char* title, const auto& make) {
          const auto found = page.over_seeds([&](std::uint64_t seed) { return compare(make(seed), updates, seed); });
          const auto of = [&](std::size_t model, std::size_t number) { return found[model * Result::kSize + number]; };
          page.table({title, "shared bottom", "MMoE", "PLE", "HoME"});
          std::vector<std::string> names = make(1).names;
          for (const char* name : {"mean of those with 3%", "zeros of the worst expert", "parameters"})
            names.push_back(name);
          for (std::size_t i = 0; i < Result::kSize; ++i) page.row(names[i], {of(0, i), of(1, i), of(2, i), of(3, i)});
          page.expect("zeros of the worst ReLU expert of PLE", of(2, Result::kZeros), {.low = 0.5});
          page.expect("zeros of the worst expert of HoME", of(3, Result::kZeros), {.low = 0, .high = 0.001});
          return of(3, Result::kSparse) - of(2, Result::kSparse);
        };
        page.expect("area under the curve, HoME minus PLE, digits with 3% of the labels",
                    show("questions about digits", systems::questions_about_digits), {.low = -0.02});
        page.claim("area under the curve, HoME minus PLE, clicks with 3% of the labels",
                   show("clicks", systems::clicks), {.low = 0, .high = 0.1});
      });
}
