// SPDX-License-Identifier: MIT
// EASY-EP: a few samples of one kind of data say which experts it needs; all others go, and their rows of the router.
// Dong et al., "Domain-specific pruning of large mixture-of-experts models with few-shot demonstrations"
// (arXiv:2504.06792). Here: 16 experts that know ten digits, 25 images of the digits 0 to 4, 8 experts and 4 that stay
// for them, scored by contribution, by saliency (REAP, arXiv:2510.13999), by use, and by lot. With 8 experts left use
// alone is nearly as good, with 4 it is not. Not here: layers with a residual stream, which is what contributions are
// meant for.
#include <moe/compress/calibration.hpp>
#include <moe/compress/prune.hpp>

#include "support/digits.hpp"
#include "support/page.hpp"

namespace {

using moe::Index;
using systems::Labelled;

Labelled below_five(const Labelled& data, Index most) {
  std::vector<Index> ids;
  for (Index i = 0; i < data.size() && std::ssize(ids) < most; ++i)
    if (data.labels[static_cast<std::size_t>(i)] < 5) ids.push_back(i);
  return rows_of(data, ids);
}

double accuracy(const systems::DigitsModel& model, const moe::ExpertPlan& plan, const Labelled& test) {
  const systems::DigitsModel small(moe::prune(model.layer(), plan).layer, model.head());
  return systems::accuracy(systems::outputs(small, test.rows), test.labels);
}

/// Mean over ten plans by lot.
double by_lot(const systems::DigitsModel& model, Index keep, const Labelled& test, std::uint64_t seed) {
  double sum = 0;
  for (std::uint64_t draw = 0; draw < 10; ++draw) {
    const moe::RandomField random(moe::Purpose::User, seed, draw);
    std::vector<double> scores;
    for (Index e = 0; e < model.layer().num_experts(); ++e) scores.push_back(random.uniform(e));
    sum += accuracy(model, moe::keep_best(scores, keep), test) / 10;
  }
  return sum;
}

/// Accuracy in full; then, for 8 experts and for 4, by contribution, saliency, use and lot.
std::vector<double> accuracies(const systems::Page& page, std::uint64_t seed) {
  const systems::DigitsModel model = systems::digits16(page, seed);
  const Labelled test = below_five(systems::digits().test, 1000);
  const moe::ExpertUse use =
      moe::calibrate(model.layer(), below_five(systems::digits().train, 25).rows,
                     {.moments = moe::Gather::Off, .use = moe::Gather::On, .contribution = moe::Gather::On})
          .use();
  std::vector<double> result = {systems::accuracy(systems::outputs(model, test.rows), test.labels)};
  for (const Index keep : {8, 4}) {
    for (const auto& scores : {use.contributions(), use.saliencies(), use.frequencies()})
      result.push_back(accuracy(model, moe::keep_best(scores, keep), test));
    result.push_back(by_lot(model, keep, test, seed));
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"easy_ep", "2504.06792", "moe/compress/expert_use.hpp"}, [](systems::Page& page) {
        const auto samples = page.over_seeds([&](std::uint64_t seed) { return accuracies(page, seed); });
        page.table({"accuracy, digits 0 to 4", "8 of 16 experts", "4 of 16"});
        page.row("all experts", {samples[0], samples[0]});
        page.row("contribution (EASY-EP)", {samples[1], samples[5]});
        page.row("saliency (REAP)", {samples[2], samples[6]});
        page.row("use", {samples[3], samples[7]});
        page.row("by lot", {samples[4], samples[8]});
        page.expect("8 experts against all", samples[1] - samples[0], {.low = -0.02});
        page.claim("accuracy with 8 of 16 experts above that by lot", samples[1] - samples[4], {.low = 0.15});
      });
}
