// SPDX-License-Identifier: MIT
// STUN: experts that the router asks for alike do alike; of each cluster of them one stays. No data is needed. Lee et
// al., "STUN: structured-then-unstructured pruning for scalable MoE pruning" (arXiv:2409.06211), the first half.
// Here: 32 experts, four copies of each of eight that have gone apart a little, pruned to 8, one by one by complete
// linkage of the rows of the router, against the 8 that are used most. Experts that were trained apart are no clusters:
// of 16 that are pruned to 12 accuracy falls by half a dozen points, by clusters as by use, which the page prints.
#include <moe/compress/cluster_experts.hpp>
#include <moe/compress/expert_scores.hpp>
#include <moe/compress/prune.hpp>

#include "support/digits.hpp"
#include "support/page.hpp"

namespace {

using moe::Index;
using systems::DigitsModel;

double accuracy(const DigitsModel& model) {
  const systems::Labelled& test = systems::digits().test;
  return systems::accuracy(systems::outputs(model, test.rows), test.labels);
}
double accuracy(const DigitsModel& model, const moe::ExpertPlan& plan) {
  return accuracy(DigitsModel(moe::prune(model.layer(), plan).layer, model.head()));
}

moe::ExpertPlan by_router(const DigitsModel& model, Index keep) {
  const moe::ExpertPlan clusters = moe::complete_linkage(moe::router_distance(model.layer().router()), keep);
  return moe::nearest_to_means(clusters, model.layer().experts());
}
moe::ExpertPlan by_use(const DigitsModel& model, Index keep) {
  const auto seen = moe::calibrate(model.layer(), systems::digits().train.rows,
                                   {.moments = moe::Gather::Off, .use = moe::Gather::On});
  return moe::keep_best(seen.use().frequencies(), keep);
}

/// Share of the experts whose cluster has most experts of their family; copies of one stand side by side.
double purity(const moe::ExpertPlan& plan, Index copies) {
  double sum = 0;
  for (Index i = 0; i < plan.num_kept(); ++i) {
    std::vector<Index> counts(static_cast<std::size_t>(plan.num_experts()));
    for (const Index e : plan.members(i)) ++counts[static_cast<std::size_t>(e / copies)];
    sum += static_cast<double>(*std::ranges::max_element(counts));
  }
  return sum / static_cast<double>(plan.num_experts());
}

std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  const DigitsModel copies = systems::digits_model(page, {.experts = 8, .copies = 4}, seed);
  const DigitsModel apart = systems::digits16(page, seed);
  const moe::ExpertPlan clusters = by_router(copies, 8);
  return {accuracy(copies),
          accuracy(copies, clusters),
          accuracy(copies, by_use(copies, 8)),
          purity(clusters, 4),
          accuracy(apart),
          accuracy(apart, by_router(apart, 12)),
          accuracy(apart, by_use(apart, 12))};
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"stun", "2409.06211", "moe/compress/cluster_experts.hpp"}, [](systems::Page& page) {
        const auto samples = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
        page.table({"accuracy", "32 upcycled to 8", "16 trained apart to 12"});
        page.row("all experts", {samples[0], samples[4]});
        page.row("clusters of the router", {samples[1], samples[5]});
        page.row("most used", {samples[2], samples[6]});
        page.table({"of 32 experts", "purity"});
        page.row("clusters", {samples[3]});
        page.expect("purity of the clusters", samples[3], {.low = 0.99});
        page.expect("8 experts against all 32", samples[1] - samples[0], {.low = -0.02});
        page.claim("accuracy with 8 of 32 experts above that of the most used", samples[1] - samples[2], {.low = 0.05});
      });
}
