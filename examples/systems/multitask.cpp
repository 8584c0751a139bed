// SPDX-License-Identifier: MIT
// Aggregation of experts: two trained models become one with the experts of both, from which training goes on; and
// twice as many experts from one model, which computes the same until noise and gradients set the copies apart. Kim et
// al., "Scalable and efficient MoE training for multitask multilingual models" (arXiv:2109.10465); its random token
// selection is the page token_selection.
// Here: layers that learned half of the images of digits each, or five digits each, under one frozen head or with heads
// of their own. Without more training the aggregate is as good as its parents where both know all digits, better than
// either where they know five each, and poor where heads have gone apart. Not here: many languages.
#include <moe/layer/structure.hpp>

#include "support/digits.hpp"
#include "support/train.hpp"

namespace {

using moe::Index;
using systems::Labelled;
using systems::ReluLayer;

/// Images with a head that does not learn, which turns the outputs of what is trained into scores.
struct BelowHead : Labelled {
  const moe::Linear& head;
};
double loss_of(const BelowHead& data, const moe::Matrix<float>& hidden, const moe::Step& step,
               moe::Matrix<float>& dhidden) {
  moe::Scratch scratch;
  moe::Linear::Tape tape;
  moe::Matrix<float> scores(hidden.rows(), systems::kDigits), dscores;
  data.head.forward(hidden, scores, {step, scratch}, tape);
  const double loss = moe::cross_entropy<float>(scores, data.labels, step, dscores);
  moe::Linear unused = moe::zeros_like(data.head);
  data.head.backward(hidden, tape, dscores, dhidden, unused, {step, scratch});
  return loss;
}

/// What a parent learns: of the images every other one, or those of five digits.
enum class Split { Images, Digits };
Labelled part_of(const Labelled& data, Split split, Index part) {
  std::vector<Index> ids;
  for (Index i = 0; i < data.size(); ++i)
    if ((split == Split::Images ? i % 2 : data.labels[static_cast<std::size_t>(i)] / 5) == part) ids.push_back(i);
  return rows_of(data, ids);
}

ReluLayer fresh(std::uint64_t seed) {
  return {moe::LinearRouter::random(8, systems::kPixels, seed), moe::TopKGate{.k = 2},
          moe::ExpertPool<systems::ReluMlp>::random(8, systems::kPixels, 24, seed + 10)};
}

double accuracy(const ReluLayer& layer, const moe::Linear& head) {
  const Labelled& test = systems::digits().test;
  return systems::accuracy(systems::outputs(systems::DigitsModel(layer, head), test.rows), test.labels);
}

/// Accuracies on all digits: two parents over one frozen head, and their aggregate; two parents with heads of their
/// own, and their aggregate with that of the first.
std::vector<double> aggregate(const systems::Page& page, Split split, std::uint64_t seed) {
  const systems::Training how{.updates = page.amount<std::uint64_t>(800, 40), .balance = 0.05};
  const moe::Linear trunk = systems::digits16(page, seed).head();
  std::vector<ReluLayer> frozen, free;
  std::vector<moe::Linear> heads;
  for (const Index part : {0, 1}) {
    const Labelled data = part_of(systems::digits().train, split, part);
    const std::uint64_t own = seed + 1000 * static_cast<std::uint64_t>(part + 1);
    frozen.push_back(fresh(own));
    systems::train(frozen.back(), how, own, [&](std::uint64_t update) {
      return BelowHead{draw_batch(data, 64, own, update), trunk};
    });
    systems::DigitsModel model(fresh(own), moe::Linear::random(systems::kDigits, systems::kPixels, own + 20));
    systems::train(model, how, own, [&](std::uint64_t update) { return draw_batch(data, 64, own, update); });
    free.push_back(model.layer());
    heads.push_back(model.head());
  }
  return {
      accuracy(frozen[0], trunk),  accuracy(frozen[1], trunk),  accuracy(moe::concatenate(frozen[0], frozen[1]), trunk),
      accuracy(free[0], heads[0]), accuracy(free[1], heads[1]), accuracy(moe::concatenate(free[0], free[1]), heads[0])};
}

/// Largest change of an output by twice as many experts, relative to the largest output.
double change_by_doubling(const systems::Page& page, std::uint64_t seed) {
  const ReluLayer layer = systems::digits16(page, seed).layer();
  const moe::Matrix<float>& rows = systems::digits().test.rows;
  const moe::Matrix<float> before = systems::outputs(layer, rows),
                           after = systems::outputs(duplicate_experts(layer, 2), rows);
  return (after - before).cwiseAbs().maxCoeff() / before.cwiseAbs().maxCoeff();
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"multitask", "2109.10465", "moe/layer/structure.hpp"}, [](systems::Page& page) {
    const auto halves = page.over_seeds([&](std::uint64_t seed) { return aggregate(page, Split::Images, seed); });
    const auto fives = page.over_seeds([&](std::uint64_t seed) { return aggregate(page, Split::Digits, seed); });
    page.table({"accuracy on all digits", "parent A", "parent B", "aggregate"});
    page.row("half the images, one head", {halves[0], halves[1], halves[2]});
    page.row("half the images, own heads", {halves[3], halves[4], halves[5]});
    page.row("five digits each, one head", {fives[0], fives[1], fives[2]});
    page.row("five digits each, own heads", {fives[3], fives[4], fives[5]});
    const auto change =
        page.over_seeds([&](std::uint64_t seed) { return std::vector{change_by_doubling(page, seed)}; });
    page.expect("change of the outputs by doubling experts", change[0], {.low = 0, .high = 1e-5});
    page.expect("what heads of their own cost the aggregate, five digits each", fives[2] - fives[5], {.low = 0.15});
    page.expect("aggregate over parent B, half the images, one head", halves[2] / halves[1], {.low = 0.95});
    page.claim("aggregate over parent A, half the images, one head", halves[2] / halves[0], {.low = 0.95});
  });
}
