// SPDX-License-Identifier: MIT
// MC#, its static half: bits for every expert so that what the layer loses is least, exactly, at a given average. Huang
// et al., "MC-MoE" (arXiv:2410.06270) and "MC#" (arXiv:2510.10962). Here: the text model at 2.0 bits, 1 to 3 per
// expert; bits by frequency^1 weight^1.5 error^2 as published, by error^2 alone, the same for all, by lot; codes to
// nearest, and by GPTQ, which makes good much of what the same bits for all lose. The error of an expert is measured on
// its own tokens, so that it knows how often it is used by itself. OTP, the other half, is a page of its own: top_any.
#include <array>

#include <moe/compress/allocate_bits.hpp>
#include <moe/compress/gptq.hpp>
#include <moe/compress/quantisation_errors.hpp>

#include "support/page.hpp"
#include "support/text.hpp"

namespace {

using moe::Index;
using systems::TextModel;

constexpr Index kGroup = 32, kBudget = 2 * systems::kTextExperts;

/// With experts of codes, as floats of the same bits.
template <class Quantiser>
double bits_per_character(const TextModel& model, std::vector<Index> bits, const Quantiser& quantiser,
                          const moe::Calibration& calibration) {
  TextModel few = model;
  few.layer().layer().experts() = moe::dequantise(moe::quantise(
      model.layer().layer().experts(), moe::BitPlan{.bits = std::move(bits)}.planes(kGroup), quantiser, calibration));
  return systems::held_out_bits(few);
}

/// PMQ, error alone, 2 bits each, 1 to 3 by lot, half of the experts 1 and half 3.
template <class Quantiser>
std::vector<double> numbers(const TextModel& model, const moe::Matrix<float>& tokens, const moe::Calibration& seen,
                            const Quantiser& quantiser, std::uint64_t seed) {
  const std::vector<Index> choices = {1, 2, 3};
  std::vector<moe::WeightFormat> formats;
  for (const Index bits : choices) formats.push_back(moe::WeightFormat::planes(static_cast<int>(bits), kGroup));
  const moe::Matrix<double> errors = moe::quantisation_errors(model.layer().layer(), tokens, formats, quantiser, seen);
  const auto exact = [&](const moe::PmqExponents& exponents) {
    return moe::allocate_bits(
        {.bits = choices,
         .costs = moe::pmq_costs(errors, seen.use().frequencies(), seen.use().mean_weights(), exponents),
         .budget = kBudget,
         .at_least = {0, 1, 1}});
  };
  const moe::RandomField lots(moe::Purpose::User, seed);
  std::vector<double> scores;
  for (Index e = 0; e < systems::kTextExperts; ++e) scores.push_back(lots.uniform(e, 2));
  std::vector<double> result;
  for (const auto& bits :
       {exact({}), exact({.frequency = 0, .weight = 0, .error = 2}), std::vector<Index>(systems::kTextExperts, 2),
        moe::random_bits(systems::kTextExperts, choices, kBudget, lots), moe::bits_by_score(scores, 1, 3, 2)})
    result.push_back(bits_per_character(model, bits, quantiser, seen));
  return result;
}

/// In floats; then to nearest, and by GPTQ.
std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  const TextModel model = systems::text_model(page, seed);
  const moe::Matrix<float> tokens = systems::trained_text(page.amount<Index>(6000, 400)).rows;
  const moe::Calibration seen = moe::calibrate(model.layer(), tokens, {.use = moe::Gather::On});
  std::vector<double> result = {systems::held_out_bits(model)};
  for (const double value : numbers(model, tokens, seen, moe::RoundToNearest{}, seed)) result.push_back(value);
  for (const double value : numbers(model, tokens, seen, moe::Gptq{}, seed)) result.push_back(value);
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"mc_sharp", "2510.10962", "moe/compress/allocate_bits.hpp"}, [](systems::Page& page) {
        const auto samples = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
        page.table({"bits per character at 2.0 bits of a weight", "codes to nearest", "by GPTQ"});
        page.row("floats", {samples[0], samples[0]});
        const std::array names = {"exact, as published", "exact, error alone", "2 bits each", "1 to 3 by lot",
                                  "1 or 3 by lot"};
        for (std::size_t i = 0; i < names.size(); ++i) page.row(names[i], {samples[1 + i], samples[6 + i]});
        page.expect("exact above 1 to 3 by lot", samples[1] - samples[4], {.high = -0.1});
        page.expect("exact above 1 or 3 by lot", samples[1] - samples[5], {.high = -0.15});
        page.claim("bits per character of the exact plan above 2 bits each", samples[1] - samples[3], {.high = -0.05});
      });
}
