// SPDX-License-Identifier: MIT
// Adapters: experts in 4 bits stay as they are, and a small product B A beside each of their weights learns. Hu et al.,
// "LoRA: low-rank adaptation of large language models" (arXiv:2106.09685); on 4 bits: Dettmers et al., "QLoRA"
// (arXiv:2305.14314).
// Here: a model of prose and code (support/text.hpp, with 128 hidden units) that is to serve prose alone. Full
// fine-tuning moves all numbers, LoRA the adapters (rank 8, both matrices of every expert) and the router; the head is
// frozen. In a seventh of the memory for gradients and moments it comes out as well as full fine-tuning, which has the
// better of the rates .001, .002 and .004 (.001), and overfits. Not here: that rank 8 is enough for anything. On code,
// which repeats itself, full fine-tuning learns more by heart (second half of the table), and it takes rank 32, more
// than half of its memory, to come within .03. There both sides have the best of the rates .002, .004, .008 and .016,
// and LoRA that of alpha 8 to 128, too: with AdamW, whose steps do not depend on the size of gradients, a larger alpha
// is a B that learns as much faster, as B starts at 0 ("LoRA+", arXiv:2402.12354), and rank-stabilised scales
// (arXiv:2312.03732) are another alpha. At rank 8 these were no way around, either, of seed 1 (1.902 bits, all numbers
// 1.849): experts in floats 1.893, in 4 bits by GPTQ 1.900, A along the gradient of W 1.889, the head learning, too,
// 1.913, one A for all experts 1.924. And of a model that has seen no code, LoRA makes one of code half a bit worse
// than full fine-tuning does.
#include <array>
#include <cstdio>
#include <fstream>
#include <numbers>
#include <string>
#include <vector>

#include <moe/compress/merge_adapters.hpp>
#include <moe/expert/frozen.hpp>

#include "support/cache.hpp"
#include "support/text.hpp"

namespace {

using moe::Index;
using systems::Labelled;
using systems::Text;
using systems::TextModel;
using systems::Training;

constexpr Index kHidden = 128, kBatch = 256;

/// Random places of one kind, held-out ones apart.
Labelled batch(const std::vector<Index>& characters, std::uint64_t seed, std::uint64_t update) {
  const moe::RandomField random(moe::Purpose::Shuffle, seed, update);
  const auto last = static_cast<std::uint64_t>(std::ssize(characters) - Text::kHeldOut - systems::kContext);
  std::vector<Index> places;
  for (Index i = 0; i < kBatch; ++i) places.push_back(systems::kContext + static_cast<Index>(random.below(last, i)));
  return systems::text_at(characters, places);
}

/// The model that is adapted: of prose and code, in turns.
TextModel base_model(const systems::Page& page, std::uint64_t seed) {
  const Training how{
      .updates = page.amount<std::uint64_t>(3000, 60), .weight_decay = 0.01, .max_norm = 1, .balance = 0.02};
  const Text& text = systems::text();
  systems::Hash hash;
  hash << "adapters 1" << how << text.prose.size() << text.code.size();
  for (const auto* kind : {&text.prose, &text.code})
    hash << std::string_view(reinterpret_cast<const char*>(kind->data()), kind->size() * sizeof(Index));
  auto experts =
      moe::ExpertPool<systems::ReluMlp>::random(systems::kTextExperts, systems::kTextDim, kHidden, seed + 10);
  TextModel model{{systems::ReluLayer(moe::LinearRouter::random(systems::kTextExperts, systems::kTextDim, seed),
                                      moe::TopKGate{.k = 2}, std::move(experts)),
                   moe::ScaledIdentity{systems::kTextDim}},
                  moe::Linear::random(systems::kCharacters, systems::kTextDim, seed + 20)};
  return systems::cached(page, "adapters", seed, hash, std::move(model), [&](TextModel& out) {
    systems::train(out, how, seed,
                   [&](std::uint64_t update) { return batch(update % 2 ? text.prose : text.code, seed, update); });
  });
}

template <class Model>
double bits(const Model& model, const Labelled& data) {
  moe::Matrix<float> none;
  return systems::loss_of(data, systems::outputs(model, data.rows), {}, none) / std::numbers::ln2;
}

/// Bytes of all that is learned, or of the gradient or moments of it: padding counts, what is shared does not.
template <class T>
double bytes_of(const T& object) {
  std::size_t bytes = 0;
  moe::visit([&](const std::string&, const auto& leaf) { bytes += moe::parameter_span(leaf).size_bytes(); }, object);
  return static_cast<double>(bytes);
}
/// Of a gradient and the optimiser's state, as a Trainer has them.
template <class Model>
double training_bytes(const Model& model) {
  return bytes_of(moe::zeros_like(model)) + bytes_of(moe::AdamW::State<Model>(model));
}

using Curve = std::vector<std::array<double, 2>>;  // update, bits per held-out character

template <class Model>
Model tuned(Model model, const std::vector<Index>& characters, std::uint64_t updates, double rate, std::uint64_t seed,
            const Labelled& some, Curve* curve) {
  if (curve) curve->push_back({0, bits(model, some)});
  systems::train(
      model, {.updates = updates, .rate = rate, .max_norm = 1}, seed,
      [&](std::uint64_t update) { return batch(characters, seed + 100, update); },
      [&](std::uint64_t update, double) {
        if (curve && (update + 1) % 50 == 0) curve->push_back({static_cast<double>(update + 1), bits(model, some)});
      });
  return model;
}

/// The model with experts in 4 bits, adapters, and its head frozen.
auto adapted(const TextModel& model, std::uint64_t seed, const moe::LowRankOptions& options) {
  return systems::WithHead(moe::with_adapters(moe::quantise(model.layer(), moe::WeightFormat::int4()), options, seed),
                           moe::Frozen(model.head()));
}

/// Tuned to code: held-out bits and KiB of gradients and moments of full fine-tuning, then of LoRA by rank.
constexpr std::array<Index, 3> kRanks = {8, 16, 32};
std::vector<double> on_code(const TextModel& base, std::uint64_t updates, std::uint64_t seed, const Labelled& code) {
  const auto& characters = systems::text().code;
  std::vector<double> found;
  const auto add = [&](const auto& model) {
    found.push_back(bits(model, code));
    found.push_back(training_bytes(model) / 1024);
  };
  add(tuned(base, characters, updates, 4e-3, seed, code, nullptr));
  for (const Index rank : kRanks)
    add(tuned(adapted(base, seed, {.rank = rank, .alpha = 4.0 * static_cast<double>(rank)}), characters, updates, 4e-3,
              seed, code, nullptr));
  return found;
}

void draw(const Curve& full, const Curve& low_rank, const std::string& path) {
  std::ofstream script(path + ".gp");
  script << "set terminal svg size 720,400 font 'sans-serif,13' background '#ffffff'\nset output '" << path << "'\n";
  for (const auto& [name, curve] : {std::pair{"$full", &full}, {"$low", &low_rank}}) {
    script << name << " << END\n";
    for (const auto& [update, value] : *curve) script << update << ' ' << value << '\n';
    script << "END\n";
  }
  script << "set title 'Prose, while a model of prose and code is tuned to it'\nset xlabel 'update'\n"
            "set ylabel 'bits per held-out character'\nset border 3\nset tics nomirror\nset grid ytics lc '#dddddd'\n"
            "plot $full using 1:2 with lines lw 2 lc '#08306b' title 'all numbers, in float', "
            "$low using 1:2 with lines lw 2 lc '#d95f0e' title 'LoRA, rank 8, on experts in 4 bits'\n";
  script.close();
  if (!script) moe::fail_environment("cannot write ", path, ".gp");
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"adapters", "2106.09685", "moe/layer/adapters.hpp"}, [](systems::Page& page) {
    const Text& text = systems::text();
    const Labelled prose = systems::text_from(text.prose, -Text::kHeldOut, Text::kHeldOut);
    const Labelled code = systems::text_from(text.code, -Text::kHeldOut, Text::kHeldOut);
    const Labelled some = systems::text_from(text.prose, -Text::kHeldOut, 2000);
    const auto updates = page.amount<std::uint64_t>(1000, 20), of_code = page.amount<std::uint64_t>(300, 20);
    Curve full_curve, low_curve;
    const auto runs = page.over_seeds([&](std::uint64_t seed) -> std::vector<double> {
      const bool is_drawn = seed == page.first_seed();
      const TextModel base = base_model(page, seed);
      const auto start = adapted(base, seed, {.rank = 8, .alpha = 16});
      const auto full = tuned(base, text.prose, updates, 1e-3, seed, some, is_drawn ? &full_curve : nullptr);
      const auto low = tuned(start, text.prose, updates, 4e-3, seed, some, is_drawn ? &low_curve : nullptr);
      const systems::WithHead merged(moe::merge_adapters(low.layer()), low.head());
      std::vector<double> found = {bits(base, prose),          bits(start, prose),  bits(full, prose),
                                   bits(low, prose),           bits(merged, prose), training_bytes(full) / 1024,
                                   training_bytes(low) / 1024, bits(base, code),    bits(start, code)};
      for (const double number : on_code(base, of_code, seed, code)) found.push_back(number);
      return found;
    });
    page.table({"tuned to prose: bits per character", "held-out prose", "KiB of gradients and moments"});
    page.row("before", {runs[0]});
    page.row("before, experts in 4 bits", {runs[1]});
    page.row("full fine-tuning", {runs[2], runs[5]});
    page.row("LoRA, rank 8, on 4 bits", {runs[3], runs[6]});
    page.row("the same, merged into floats", {runs[4]});
    page.table({"tuned to code: bits per character", "held-out code", "KiB of gradients and moments"});
    page.row("before", {runs[7]});
    page.row("before, experts in 4 bits", {runs[8]});
    page.row("full fine-tuning", {runs[9], runs[10]});
    for (std::size_t r = 0; r < kRanks.size(); ++r)
      page.row("LoRA, rank " + std::to_string(kRanks[r]) + ", on 4 bits", {runs[11 + 2 * r], runs[12 + 2 * r]});
    draw(full_curve, low_curve, "adapters.svg");

    page.expect("bits that full fine-tuning gains on prose", runs[0] - runs[2], {.low = 0.02});
    page.expect("bits that LoRA gains on prose", runs[1] - runs[3], {.low = 0.04});
    page.expect("bits that merging changes", runs[4] - runs[3], {.low = -1e-3, .high = 1e-3});
    page.expect("LoRA's memory for gradients and moments over that of all", runs[6] / runs[5],
                {.low = 0.1, .high = 0.15});
    page.expect("bits per character of code, LoRA of rank 32 minus full fine-tuning", runs[15] - runs[9],
                {.low = -0.1, .high = 0.06});
    page.claim("bits per character, LoRA minus full fine-tuning", runs[3] - runs[2], {.low = -0.1, .high = 0.03});
  });
}
