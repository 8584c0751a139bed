// SPDX-License-Identifier: MIT
// When did it happen, if all that is known of a bag of frames is whether it did? Multiple-instance learning (MIL)
// pushes the few best frames of a bag up and never sees the flanks of an event; temporal Gaussian splatting makes soft
// targets of the peaks of the scores. An expert per class of events and a gate that sees all their scores follow.
// D'Amicantonio et al., "Mixture of experts guided by Gaussian splatters matters" (GS-MoE, arXiv:2508.06318). Here:
// simulated bags, and bags of digits into which an event blends others. Kernels are as wide in frames as peaks are; as
// the paper's formula has it, their width is a deviation of scores, a peak gets a target of one frame, and training is
// worse than without. Experts are small MLPs that begin as the model of all classes, not transformers over its
// features; the gate is linear in features and scores, and adds little to that model: on digits nothing that training
// it for as much longer does not. All this is printed, not checked. Where the expert of a class is masked, the area of
// the gate in bags of that class falls towards one half, on simulated bags. Picture: gs_moe.svg.
#include <cstdio>
#include <fstream>

#include "support/bag_models.hpp"
#include "support/page.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using systems::BagSet;
using systems::Fusion;
using systems::kBagClasses;
using systems::kFrames;
using systems::Scorer;
using systems::Weak;

/// Writes a script for gnuplot: scores of three models over the frames of four bags with an event, which is shaded.
void draw(const BagSet& data, const std::vector<Matrix<float>>& scores, const std::string& path) {
  std::ofstream script(path + ".gp");
  script << "set terminal svg size 1000,600 font 'sans-serif,13' background '#ffffff'\nset output '" << path
         << "'\n$scores << END\n";
  for (Index i = 0; i < 4; ++i, script << '\n' << '\n')
    for (Index t = 0; t < kFrames; ++t) {
      const Index row = (2 * i + 1) * kFrames + t;
      script << t << ' ' << data.truth(row, 0);
      for (const Matrix<float>& of : scores) script << ' ' << 1 / (1 + std::exp(-of(row, 0)));
      script << '\n';
    }
  script << "END\nset multiplot layout 2,2\nset yrange [0:1.05]\nset xrange [0:63]\nset key below\nset style fill "
            "solid noborder\n";
  for (int i = 0; i < 4; ++i)
    script << "plot $scores index " << i << " using 1:2 with fillsteps lc rgb '#dddddd' title 'event', '' index " << i
           << " using 1:3 with lines lw 2 lc rgb '#cc6677' title 'MIL', '' index " << i
           << " using 1:4 with lines lw 2 lc rgb '#4477aa' title 'splatting', '' index " << i
           << " using 1:5 with lines lw 2 lc rgb '#228833' title 'experts and gate'\n";
  script.close();
  if (!script) moe::fail_environment("gs_moe: cannot write ", path, ".gp");
}

/// Areas under the curve of frames: MIL, splatting by widths of scores and of frames, mean of the experts, gate; then
/// precision and recall of targets by widths of frames, and of scores; then areas of the model by widths of frames that
/// trained on for as long as the experts, and as long as the gate after them; and means over the classes of the areas
/// of the gate in bags of one, with its expert and with zeros in place of its scores.
std::vector<double> numbers(const systems::Page& page, const BagSet& train, const BagSet& test, double rate,
                            std::uint64_t seed, const std::string& picture) {
  const Weak half{.epochs = page.amount<std::uint64_t>(60, 3), .rate = rate};
  Weak mil = half, literal = half;
  mil.splat = false;
  literal.options.width = moe::SplatWidth::ScoreStd;
  const Scorer start = systems::fresh_scorer(train.rows.cols(), seed);
  const Scorer by_mil = trained(start, train.rows, train, mil), by_half = trained(start, train.rows, train, half);
  const Scorer by_literal = trained(start, train.rows, train, literal);
  std::vector<Scorer> experts;
  for (Index c = 0; c < kBagClasses; ++c) experts.push_back(trained(by_half, train.rows, train, half, c));
  const Fusion mean = systems::fusion(train.rows.cols()),
               gate = trained(mean, systems::with_scores(train.rows, experts), train, half);
  const Matrix<float> of_experts = systems::with_scores(test.rows, experts);
  const std::vector<Matrix<float>> scores = {systems::outputs(by_mil, test.rows), systems::outputs(by_half, test.rows),
                                             systems::outputs(gate, of_experts)};
  if (!picture.empty()) draw(test, scores, picture);
  std::vector<double> all = {frame_auc(scores[0], test), frame_auc(systems::outputs(by_literal, test.rows), test),
                             frame_auc(scores[1], test), frame_auc(systems::outputs(mean, of_experts), test),
                             frame_auc(scores[2], test)};
  std::ranges::copy(systems::quality(by_half, train, half.options), back_inserter(all));
  std::ranges::copy(systems::quality(by_literal, train, literal.options), back_inserter(all));
  for (Scorer longer = by_half; std::ssize(all) < 11;) {
    longer = trained(longer, train.rows, train, half);
    all.push_back(frame_auc(systems::outputs(longer, test.rows), test));
  }
  all.resize(13);
  for (Index c = 0; c < kBagClasses; ++c) {
    Matrix<float> masked = of_experts;
    masked.col(test.rows.cols() + c).setZero();
    all[11] += frame_auc(scores[2], test, c) / kBagClasses;
    all[12] += frame_auc(systems::outputs(gate, masked), test, c) / kBagClasses;
  }
  std::fprintf(stderr, "gs_moe: seed %d done\n", static_cast<int>(seed));
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"gs_moe", "2508.06318", "moe/train/temporal_splatting.hpp"}, [](auto& page) {
    const auto simulated = page.over_seeds([&](std::uint64_t seed) {
      return numbers(page, systems::simulated_bags(120, seed, 0), systems::simulated_bags(120, seed, 1), 0.02, seed,
                     seed == page.first_seed() ? "gs_moe.svg" : "");
    });
    const auto digits = page.over_seeds([&](std::uint64_t seed) {
      return numbers(page, systems::digit_bags(120, systems::digits().train, seed, 0),
                     systems::digit_bags(120, systems::digits().test, seed, 1), 0.1, seed, "");
    });
    page.table({"area under curve, frames", "MIL", "splat, scores", "splat, frames", "mean of experts", "gate"});
    page.row("simulated", {simulated[0], simulated[1], simulated[2], simulated[3], simulated[4]});
    page.row("digits", {digits[0], digits[1], digits[2], digits[3], digits[4]});
    page.table({"that trained on, and masks", "as experts", "and as gate", "gate, one class", "expert masked"});
    page.row("simulated", {simulated[9], simulated[10], simulated[11], simulated[12]});
    page.row("digits", {digits[9], digits[10], digits[11], digits[12]});
    page.table({"targets", "precision", "recall", "width of scores:", "recall"});
    page.row("simulated", {simulated[5], simulated[6], simulated[7], simulated[8]});
    page.row("digits", {digits[5], digits[6], digits[7], digits[8]});
    page.expect("area that widths of frames add to widths of scores, simulated", simulated[2] - simulated[1],
                {.low = 0});
    page.expect("area that masking its expert takes from a class, simulated", simulated[11] - simulated[12],
                {.low = 0.1});
    page.claim("area that splatting adds to MIL, simulated bags", simulated[2] - simulated[0], {.low = 0.01});
  });
}
