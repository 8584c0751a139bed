// SPDX-License-Identifier: MIT
// Wanda: of every output of a matrix the weights go that are small times what their input usually is; OWL: matrices
// with more outliers keep more. Sun et al., "A simple and effective pruning approach for large language models"
// (arXiv:2306.11695); Yin et al., "Outlier weighed layerwise sparsity" (arXiv:2310.05175). Here: the experts of the
// text model, against the largest weights alone; at 70% zeros and more OWL is worse than the same share everywhere. And
// 32 experts of digits, four copies of each of eight, by weights alone and by STUN (arXiv:2409.06211), which first
// keeps 8 experts and then takes weights out of them, at the same number of weights left. Of 16 experts that were
// trained apart the first half of STUN has none to spare, and Wanda alone is better. All of it is printed. Not here:
// layers of a model, to which OWL gives their shares; matrices stand in.
#include <algorithm>
#include <array>
#include <vector>

#include <moe/compress/calibration.hpp>
#include <moe/compress/cluster_experts.hpp>
#include <moe/compress/expert_scores.hpp>
#include <moe/compress/prune.hpp>
#include <moe/compress/sparsify.hpp>

#include "support/digits.hpp"
#include "support/page.hpp"
#include "support/text.hpp"

namespace {

using moe::ExpertMatrix;
using moe::Index;
using moe::PanelMatrix;
using systems::ReluLayer;

enum class By { Size, Wanda, Owl };

/// The layer with so many zeros among its weights.
ReluLayer sparse(const ReluLayer& layer, const moe::Calibration& seen, double sparsity, By by) {
  std::vector<double> share(static_cast<std::size_t>(2 * layer.num_experts()), sparsity);  // of ups and downs
  if (by == By::Owl) {
    std::vector<double> outliers;
    for (Index e = 0; e < layer.num_experts(); ++e) {
      outliers.push_back(moe::outlier_ratio(layer.experts()[e].up(), seen[e].inputs.column_norms()));
      outliers.push_back(moe::outlier_ratio(layer.experts()[e].down(), seen[e].hidden.column_norms()));
    }
    share = moe::owl_sparsities(outliers, sparsity);
  }
  return moe::mask_weights(layer, [&](const ExpertMatrix& matrix, const PanelMatrix<moe::F32>& weights) {
    const bool is_down = matrix.name == "down.weight";
    const moe::ExpertStatistics& read = seen[matrix.expert];
    std::vector<float> norms = (is_down ? read.hidden : read.inputs).column_norms();
    if (by == By::Size) std::ranges::fill(norms, 1.0f);
    return moe::wanda(weights, norms, share[static_cast<std::size_t>(2 * matrix.expert + (is_down ? 1 : 0))]);
  });
}

double bits(systems::TextModel model, const ReluLayer& layer) {
  model.layer().layer() = layer;
  return systems::held_out_bits(model);
}

constexpr std::array kOfText = {0.5, 0.7, 0.8};

/// Bits per character: in full; then by size, Wanda and OWL at each sparsity.
std::vector<double> text(const systems::Page& page, std::uint64_t seed) {
  const systems::TextModel model = systems::text_model(page, seed);
  const ReluLayer& layer = model.layer().layer();
  const moe::Calibration seen = moe::calibrate(layer, systems::trained_text(page.amount<Index>(3000, 200)).rows);
  std::vector<double> result = {bits(model, layer)};
  for (const double sparsity : kOfText)
    for (const By by : {By::Size, By::Wanda, By::Owl}) result.push_back(bits(model, sparse(layer, seen, sparsity, by)));
  return result;
}

constexpr std::array kOfDigits = {0.75, 0.85, 0.9, 0.95};

/// Accuracy with so many weights left at each sparsity: by size, Wanda alone, and Wanda in the experts that are kept.
std::vector<double> digits(const systems::DigitsModel& model, Index keep) {
  const systems::Labelled& test = systems::digits().test;
  const auto accuracy = [&](const ReluLayer& layer) {
    return systems::accuracy(systems::outputs(systems::DigitsModel(layer, model.head()), test.rows), test.labels);
  };
  const ReluLayer& all = model.layer();
  const auto clusters = moe::complete_linkage(moe::router_distance(all.router()), keep);
  const ReluLayer few = moe::prune(all, moe::nearest_to_means(clusters, all.experts())).layer;
  const moe::Matrix<float>& tokens = systems::digits().train.rows;
  const moe::Calibration seen = moe::calibrate(all, tokens), seen_by_few = moe::calibrate(few, tokens);
  std::vector<double> result;
  for (const double sparsity : kOfDigits) {
    const double left = (1 - sparsity) * static_cast<double>(all.num_experts()) / static_cast<double>(keep);
    result.push_back(accuracy(sparse(all, seen, sparsity, By::Size)));
    result.push_back(accuracy(sparse(all, seen, sparsity, By::Wanda)));
    result.push_back(accuracy(sparse(few, seen_by_few, std::max(0.0, 1 - left), By::Wanda)));
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"wanda", "2306.11695", "moe/compress/wanda.hpp"}, [](systems::Page& page) {
    const auto of_text = page.over_seeds([&](std::uint64_t seed) { return text(page, seed); });
    const std::array ways = {"largest weights", "Wanda", "Wanda, OWL"};
    page.table({"bits per character", "50% zeros", "70%", "80%"});
    page.row("no zeros", {of_text[0], of_text[0], of_text[0]});
    for (std::size_t i = 0; i < 3; ++i) page.row(ways[i], {of_text[1 + i], of_text[4 + i], of_text[7 + i]});

    const auto copies = page.over_seeds(
        [&](std::uint64_t seed) { return digits(systems::digits_model(page, {.experts = 8, .copies = 4}, seed), 8); });
    const auto apart = page.over_seeds([&](std::uint64_t seed) { return digits(systems::digits16(page, seed), 12); });
    for (const auto* samples : {&copies, &apart}) {
      page.table({samples == &copies ? "accuracy, 32 upcycled experts" : "16 trained apart", "75% zeros", "85%", "90%",
                  "95%"});
      const std::array rows = {"largest weights", "Wanda",
                               samples == &copies ? "8 experts, Wanda" : "12 experts, Wanda"};
      for (std::size_t i = 0; i < 3; ++i)
        page.row(rows[i], {(*samples)[i], (*samples)[3 + i], (*samples)[6 + i], (*samples)[9 + i]});
    }
    page.expect("bits per character of Wanda above the largest weights, 70% zeros", of_text[5] - of_text[4],
                {.high = 0});
    page.claim("accuracy that 8 experts first, then Wanda add to Wanda alone, 90% zeros", copies[8] - copies[7],
               {.low = 0.05});
  });
}
