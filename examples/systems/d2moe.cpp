// SPDX-License-Identifier: MIT
// D2MoE: experts whose bits are nested, so that one file serves every precision, and tokens that get as many as a
// second router says. Wang et al., "D2MoE: dual routing and dynamic scheduling for efficient on-device MoE-based LLM
// serving" (arXiv:2504.15299). Here: the text model at 2, 3 and 4 bits. Nested bits cost nothing: at 2 and 3 bits they
// are better than bits rounded by themselves, as steps of a shared scale reach less far; the file has 4 planes instead
// of 9. The router of bits is trained against the floats with a price per bit. It does better than as many bits by lot,
// and than as many for all (in between, by what 2, 3 and 4 for all cost), by .010 at 3.1 bits. Limits per level,
// WithLevelCapacity, are not used. How planes are loaded is on the pages load_schedules and level_pipeline.
#include <array>
#include <cstdio>
#include <numbers>
#include <string>

#include <moe/compress/quantise.hpp>
#include <moe/expert/frozen.hpp>
#include <moe/gate/wrap/with_levels.hpp>
#include <moe/gate/wrap/with_levels_loss.hpp>
#include <moe/serve/nested_experts.hpp>

#include "support/page.hpp"
#include "support/router_rows.hpp"
#include "support/text.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using systems::TextModel;
using Pool = moe::ExpertPool<systems::ReluMlp>;
using Levelled = moe::MoeLayer<moe::LinearRouter, moe::WithLevels<moe::TopKGate>, moe::Frozen<Pool>>;

constexpr std::array kBits = {2, 3, 4};
constexpr std::array<double, 3> kPrices = {2, 3, 4};
constexpr Index kLevels = kBits.size();

/// Bits per character of held-out text, experts at the levels of a routing.
double bits_per_character(const TextModel& model, const Pool& levels, const moe::Routing<float>& routing) {
  const systems::Labelled& held = systems::held_out_text();
  Matrix<float> out(held.size(), systems::kTextDim), scores(held.size(), systems::kCharacters), none;
  moe::RoutedExperts(levels).forward(held.rows, routing, moe::Step{}, out);
  model.head().forward(held.rows + out, scores, moe::Step{});
  return loss_of(held, scores, {}, none) / std::numbers::ln2;
}

/// Floats; of 2, 3 and 4 bits nested and by themselves; for each price mean bits, bits per character, and by lot.
std::vector<double> accuracy(const systems::Page& page, std::uint64_t seed) {
  const TextModel model = systems::text_model(page, seed);
  const Pool& full = model.layer().layer().experts();
  const auto planes = [&](int bits) { return moe::quantise(full, moe::WeightFormat::planes(bits, 32)); };
  const Pool levels = moe::dequantise(moe::nested_experts(planes(kBits.back()), kBits));
  const Matrix<float>& rows = systems::held_out_text().rows;
  Matrix<float> logits(rows.rows(), systems::kTextExperts), both;
  model.layer().layer().router().logits(rows, moe::Step{}, logits);
  moe::Routing<float> plain, mixed;
  model.layer().layer().gate().route(logits, moe::Step{}, plain);
  std::vector<double> result = {systems::held_out_bits(model)};
  for (Index l = 0; l < kLevels; ++l) {
    moe::Routing<float> at = plain;
    moe::route_to_level(at, kLevels, l);
    const Pool alone = moe::dequantise(planes(kBits[static_cast<std::size_t>(l)]));
    result.insert(result.end(), {bits_per_character(model, levels, at), bits_per_character(model, alone, plain)});
  }
  const moe::RandomField lot(moe::Purpose::User, seed);
  for (const double price : {0.02, 0.04}) {
    const auto updates = page.amount<std::uint64_t>(600, 10);
    Levelled layer(systems::with_rows(model, systems::kTextExperts * kLevels),
                   {{.k = 2}, kLevels, {.start = 1, .end = 0.2, .updates = updates}}, moe::Frozen(levels));
    systems::learn_rows(model, layer, updates, seed, [&](Levelled::Tape& tape) {
      moe::mean_bits_loss(layer.gate(), kPrices, tape.logits, tape.routing, {tape.step, tape.scratch}, price,
                          tape.losses);
    });
    both.resize(rows.rows(), layer.router().num_experts());
    layer.router().logits(rows, moe::Step{}, both);
    layer.gate().route(both, moe::Step{}, mixed);
    double bits = 0;
    for (const Index e : mixed.experts()) bits += kPrices[static_cast<std::size_t>(e % kLevels)];
    bits /= static_cast<double>(mixed.num_assignments());
    moe::Routing<float> by_lot = mixed;
    for (std::size_t a = 0; a < mixed.experts().size(); ++a) {
      const Index other = mixed.experts()[lot.below(mixed.experts().size(), static_cast<Index>(a))];
      by_lot.experts()[a] += other % kLevels - mixed.experts()[a] % kLevels;
    }
    // What as many bits cost if all have the same, in between the whole numbers.
    const auto below = static_cast<std::size_t>(std::min(bits - kPrices[0], 1.5)) * 2 + 1;
    const double share = bits - kPrices[below / 2];
    result.insert(result.end(),
                  {bits, bits_per_character(model, levels, mixed), bits_per_character(model, levels, by_lot),
                   (1 - share) * result[below] + share * result[below + 2]});
  }
  std::fprintf(stderr, "d2moe, seed %d: done\n", static_cast<int>(seed));
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"d2moe", "2504.15299", "moe/gate/wrap/with_levels.hpp"}, [](systems::Page& page) {
        const auto samples = page.over_seeds([&](std::uint64_t seed) { return accuracy(page, seed); });
        page.table({"bits per character", "nested", "each by itself"});
        page.row("floats", {samples[0], samples[0]});
        for (std::size_t l = 0; l < kBits.size(); ++l)
          page.row(std::to_string(kBits[l]) + " bits", {samples[1 + 2 * l], samples[2 + 2 * l]});
        page.table({"bits per character", "mean bits", "router of bits", "by lot", "the same for all"});
        for (std::size_t i = 7; i < samples.size(); i += 4)
          page.row(i == 7 ? "price 0.02" : "price 0.04", {samples[i], samples[i + 1], samples[i + 2], samples[i + 3]});
        page.expect("mean bits, price 0.04", samples[11], {.low = 2.7, .high = 3.4});
        page.expect("bits per character that nesting adds at 3 bits", samples[3] - samples[4], {.high = 0.01});
        page.expect("router of bits above the same for all", samples[12] - samples[14], {.high = 0});
        page.claim("bits per character of the router of bits above as many by lot", samples[12] - samples[13],
                   {.high = -0.012});
      });
}
