// SPDX-License-Identifier: MIT
// Sub-MoE: experts that compute alike are merged, in a subspace that they have in common. Li et al., "Sub-MoE:
// efficient mixture-of-expert LLMs compression via subspace expert merging" (arXiv:2506.23266). Here: 32 experts, four
// copies of each of eight that have gone apart, in 8 clusters by k-means of what they compute, merged by use. At full
// rank the method is the weighted mean of the weights, as the merge is linear; lower ranks gain nothing here, in the
// subspace of the weights as in that of what they make of their tokens (whitened). Experts that were trained apart do
// not merge: 16 of them merged to 12 lose more than with one of each cluster, which the page prints.
#include <moe/compress/cluster_experts.hpp>
#include <moe/compress/expert_scores.hpp>
#include <moe/compress/merge_in_subspace.hpp>
#include <moe/compress/merge_in_whitened_subspace.hpp>

#include "support/digits.hpp"
#include "support/page.hpp"

namespace {

using moe::Index;
using systems::DigitsModel;

double accuracy(const DigitsModel& model) {
  const systems::Labelled& test = systems::digits().test;
  return systems::accuracy(systems::outputs(model, test.rows), test.labels);
}

/// In full; merged at full rank, 18 and 12, and these whitened; one of each cluster; the most used.
std::vector<double> accuracies(const DigitsModel& model, Index keep) {
  const auto seen =
      moe::calibrate(model.layer(), systems::digits().train.rows, {.use = moe::Gather::On, .reservoir = 128});
  const std::vector<double> use = seen.use().frequencies();
  const moe::ExpertPlan clusters =
      moe::cluster_experts(moe::output_rows(model.layer().experts(), seen.reservoir().tokens()), keep);
  const auto of = [&](const auto& compressed) { return accuracy(DigitsModel(compressed.layer, model.head())); };
  const moe::MergeOptions options{.weights = use};
  return {accuracy(model),
          of(moe::merge(model.layer(), clusters, options)),
          of(moe::merge_in_subspace(model.layer(), clusters, 18, options)),
          of(moe::merge_in_subspace(model.layer(), clusters, 12, options)),
          of(moe::merge_in_whitened_subspace(model.layer(), clusters, 18, seen, options)),
          of(moe::merge_in_whitened_subspace(model.layer(), clusters, 12, seen, options)),
          of(moe::prune(model.layer(), moe::represented_by(clusters, use))),
          of(moe::prune(model.layer(), moe::keep_best(use, keep)))};
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"sub_moe", "2506.23266", "moe/compress/merge_in_subspace.hpp"}, [](systems::Page& page) {
        const auto samples = page.over_seeds([&](std::uint64_t seed) {
          std::vector<double> all = accuracies(systems::digits_model(page, {.experts = 8, .copies = 4}, seed), 8);
          for (const double value : accuracies(systems::digits16(page, seed), 12)) all.push_back(value);
          return all;
        });
        page.table({"accuracy", "32 upcycled to 8", "16 trained apart to 12"});
        const std::vector<std::string> names = {"all experts",         "merged",
                                                "merged, rank 18",     "merged, rank 12",
                                                "whitened, rank 18",   "whitened, rank 12",
                                                "one of each cluster", "most used"};
        for (std::size_t i = 0; i < names.size(); ++i) page.row(names[i], {samples[i], samples[names.size() + i]});
        page.expect("8 merged experts against all 32", samples[1] - samples[0], {.low = -0.02});
        page.claim("accuracy with 32 experts merged to 8 above that of the most used", samples[1] - samples[7],
                   {.low = 0.05});
      });
}
