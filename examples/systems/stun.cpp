// SPDX-License-Identifier: MIT
// STUN: experts that the router asks for alike do alike; of each cluster of them one stays. No data is needed. Lee et
// al., "STUN: structured-then-unstructured pruning for scalable MoE pruning" (arXiv:2409.06211), the first half.
// Here: 32 experts, four copies of each of eight that have gone apart a little, pruned to 8, one by one by complete
// linkage of the rows of the router, against the 8 that are used most, and against zeros in as many weights of all 32
// (Wanda). Down to 2 experts, of families that differ, the mean of a cluster, which STUN has for few clusters, is worse
// than one of it. Experts that were trained apart are no clusters: of 16 that are pruned to 12 accuracy falls by half a
// dozen points, by clusters as by use, where as many zeros cost nothing. All of it is printed. STUN's second half,
// zeros in the experts that are left, is in the page wanda.
#include <moe/compress/cluster_experts.hpp>
#include <moe/compress/expert_scores.hpp>
#include <moe/compress/prune.hpp>
#include <moe/compress/reconstruct.hpp>
#include <moe/compress/sparsify.hpp>

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

/// With zeros in a share of the weights of every expert.
double with_zeros(const DigitsModel& model, double share) {
  const auto seen = moe::calibrate(model.layer(), systems::digits().train.rows);
  const auto sparse = moe::mask_weights(model.layer(), [&](const moe::ExpertMatrix& matrix, const auto& weights) {
    const moe::ExpertStatistics& read = seen[matrix.expert];
    return moe::wanda(weights, (matrix.name == "down.weight" ? read.hidden : read.inputs).column_norms(), share);
  });
  return accuracy(DigitsModel(sparse, model.head()));
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
  const moe::ExpertPlan clusters = by_router(copies, 8), two = by_router(copies, 2);
  return {accuracy(copies),
          accuracy(copies, clusters),
          accuracy(copies, by_use(copies, 8)),
          purity(clusters, 4),
          accuracy(apart),
          accuracy(apart, by_router(apart, 12)),
          accuracy(apart, by_use(apart, 12)),
          with_zeros(copies, 0.75),
          with_zeros(apart, 0.25),
          accuracy(copies, two),
          accuracy(DigitsModel(moe::reconstruct(copies.layer(), two).layer, copies.head()))};
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
        page.row("all experts, as many zeros", {samples[7], samples[8]});
        page.table({"accuracy, 32 to 2 experts", "one of each cluster", "mean"});
        page.row("clusters of the router", {samples[9], samples[10]});
        page.table({"of 32 experts", "purity"});
        page.row("clusters", {samples[3]});
        page.expect("purity of the clusters", samples[3], {.low = 0.99});
        page.expect("8 experts against all 32", samples[1] - samples[0], {.low = -0.02});
        page.claim("accuracy with 8 of 32 experts above that of the most used", samples[1] - samples[2], {.low = 0.05});
      });
}
