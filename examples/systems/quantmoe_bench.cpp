// SPDX-License-Identifier: MIT
// QuantMoE-Bench: scores that say which weights deserve bits. Li et al., "Examining post-training quantization for
// mixture-of-experts" (arXiv:2406.08155). Here: matrices with more and more outliers among their weights, whose score
// is to go with what 2 bits cost their outputs; and the text model at 2 bits on average, 3 for the experts that are
// used most, 1 for the others, against lots. The published score, along inputs, is printed beside that inside groups:
// an output that is large as a whole raises it, though a scale of its own makes up for that. Not here: attention,
// blocks, shared experts.
#include <array>

#include <moe/compress/bit_plan.hpp>
#include <moe/compress/expert_scores.hpp>
#include <moe/compress/quantise.hpp>

#include "support/page.hpp"
#include "support/rank_correlation.hpp"
#include "support/text.hpp"

namespace {

using moe::Index;
using systems::TextModel;

constexpr Index kGroup = 32;

/// Rank correlation of the score along an axis with the relative error of outputs at 2 bits, over 24 matrices: in
/// matrix i of them one weight of a hundred is 1 + i / 2 times as large; every second has outputs of very different
/// sizes.
double correlation(moe::OutlierAxis axis, std::uint64_t seed) {
  constexpr Index kOutputs = 64, kInputs = 128;
  std::vector<double> scores, errors;
  for (Index i = 0; i < 24; ++i) {
    const moe::RandomField random(moe::Purpose::User, seed, i);
    const auto weights = moe::Matrix<float>::NullaryExpr(kOutputs, kInputs, [&](Index o, Index c) {
                           const double planted =
                               random.uniform(o, c + kInputs) < 0.01 ? 1 + static_cast<double>(i) / 2 : 1;
                           const double size = i % 2 == 0 ? std::exp(random.normal(o, 2 * kInputs)) : 1;
                           return static_cast<float>(size * planted * random.normal(o, c));
                         }).eval();
    const moe::Matrix<float> rounded =
        moe::round_to_nearest(moe::PanelMatrix<moe::F32>::from(weights), moe::WeightFormat::planes(2, kGroup))
            .decoded()
            .matrix();
    scores.push_back(moe::outlier_score(weights, axis, kGroup));
    errors.push_back(static_cast<double>((weights - rounded).norm() / weights.norm()));  // of independent inputs
  }
  return systems::rank_correlation(scores, errors);
}

/// With experts of codes, as floats of the same bits.
double bits_per_character(const TextModel& model, std::vector<Index> bits) {
  TextModel few = model;
  few.layer().layer().experts() = moe::dequantise(
      moe::quantise(model.layer().layer().experts(), moe::BitPlan{.bits = std::move(bits)}.planes(kGroup)));
  return systems::held_out_bits(few);
}

/// Bits per character in floats, at 2 bits by use, and by lot.
std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  const TextModel model = systems::text_model(page, seed);
  moe::ExpertUse use(systems::kTextExperts);
  for (const auto* kind : {&systems::text().prose, &systems::text().code})
    use += moe::calibrate(model.layer(), systems::text_from(*kind, systems::kContext, 4000).rows,
                          {.moments = moe::Gather::Off, .use = moe::Gather::On})
               .use();
  double by_lot = 0;
  const int lots = page.amount(4, 1);
  for (int lot = 0; lot < lots; ++lot) {
    std::vector<double> scores;
    const moe::RandomField random(moe::Purpose::User, seed, lot);
    for (Index e = 0; e < systems::kTextExperts; ++e) scores.push_back(random.uniform(e));
    by_lot += bits_per_character(model, moe::bits_by_score(scores, 1, 3, 2)) / lots;
  }
  return {correlation(moe::OutlierAxis::Group, seed),
          correlation(moe::OutlierAxis::Input, seed),
          correlation(moe::OutlierAxis::Output, seed),
          systems::held_out_bits(model),
          bits_per_character(model, moe::bits_by_score(use.frequencies(), 1, 3, 2)),
          by_lot};
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"quantmoe_bench", "2406.08155", "moe/compress/bit_plan.hpp"}, [](systems::Page& page) {
        const auto samples = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
        page.table({"outlier score, rank correlation with the error", "in groups", "along inputs", "along outputs"});
        page.row("matrices with planted outliers", {samples[0], samples[1], samples[2]});
        page.table({"2 bits of a weight, on average", "bits per character"});
        const std::array names = {"floats", "3 for the most used", "3 by lot"};
        for (std::size_t i = 0; i < names.size(); ++i) page.row(names[i], {samples[3 + i]});
        page.expect("rank correlation of the score in groups", samples[0], {.low = 0.8});
        page.claim("bits per character by use above that by lot", samples[4] - samples[5], {.high = -0.1});
      });
}
