// SPDX-License-Identifier: MIT
// THOR: no router. Each pass of an update sends the whole batch to one expert, drawn at random; two passes see other
// experts, and a consistency loss (symmetric KL, weight alpha) pulls their predictions together, until any expert can
// serve any input. At inference each token draws its own expert: the cost of one, no router, no balance to keep.
// Zuo et al., "Taming sparsely activated transformer with stochastic experts" (arXiv:2110.04260).
// Here: six blobs with noisy labels, where consistency helps, and handwritten digits, where it costs a little. Not
// here: experts as capacity. They come to agree, so that one that is drawn is nearly as good as the average of all.
#include <array>

#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/stochastic.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/numeric/softmax.hpp>
#include <moe/router/linear.hpp>
#include <moe/router/none.hpp>
#include <moe/train/adam_w.hpp>
#include <moe/train/consistency.hpp>

#include "support/digits.hpp"
#include "support/train.hpp"

namespace {

using moe::Index;
using Experts = moe::ExpertPool<systems::ReluMlp>;
using Thor = moe::MoeLayer<moe::NoRouter, moe::StochasticGate, Experts>;

constexpr Index kExperts = 4, kHidden = 32, kBatch = 32;

/// Two passes with other experts, their losses and their consistency, and one step of the optimiser.
Thor train_thor(Thor layer, const systems::Labelled& data, double alpha, std::uint64_t seed, std::uint64_t updates) {
  Thor gradient = moe::zeros_like(layer);
  moe::AdamW::State state(layer);
  std::array<Thor::Tape, 2> tape;
  std::array<moe::Matrix<float>, 2> scores, dscores, pull;
  for (std::uint64_t update = 0; update < updates; ++update) {
    const systems::Labelled batch = draw_batch(data, kBatch, seed, update);
    moe::Step step = moe::Step::train(update, seed);
    for (std::size_t p = 0; p < 2; ++p) {
      step.pass = static_cast<std::uint32_t>(p);
      scores[p].resize(kBatch, layer.output_dim());
      layer.forward(batch.rows, step, scores[p], tape[p]);
      moe::cross_entropy<float>(scores[p], batch.labels, step, dscores[p]);
    }
    moe::symmetric_kl<float>(scores[0], scores[1], step, pull[0], pull[1]);
    moe::set_zero(gradient);
    for (std::size_t p = 0; p < 2; ++p) {
      dscores[p] += static_cast<float>(alpha) * pull[p];
      layer.backward(batch.rows, tape[p], dscores[p], gradient);
    }
    moe::AdamW{.weight_decay = 0}.step(layer, gradient, state, 5e-3);
  }
  return layer;
}

/// Accuracy of one random expert per token, that of all averaged, and how often two experts disagree.
std::vector<double> judge(const Thor& layer, const systems::Labelled& test) {
  moe::Scratch scratch;
  const moe::Step step;
  std::vector<std::vector<Index>> each;
  moe::Matrix<float> out(test.size(), layer.output_dim()), mean = moe::Matrix<float>::Zero(test.size(), out.cols());
  for (Index e = 0; e < kExperts; ++e) {
    layer.experts()[e].forward(test.rows, out, {step, scratch});
    each.push_back(systems::predictions(out));
    for (Index t = 0; t < out.rows(); ++t) moe::softmax(out.row(t).data(), out.cols(), out.row(t).data());
    mean += out;
  }
  double disagreement = 0;
  for (std::size_t a = 0; a < each.size(); ++a)
    for (std::size_t b = 0; b < a; ++b) disagreement += (1 - systems::agreement(each[a], each[b])) / 6;
  return {systems::accuracy(systems::outputs(layer, test.rows), test.labels), systems::accuracy(mean, test.labels),
          disagreement};
}

/// judge() for alpha 0, 1 and 5, then the accuracy of a learned top-1 gate with experts of the same size.
std::vector<double> run(const systems::Labelled& data, const systems::Labelled& test, Index classes, std::uint64_t seed,
                        std::uint64_t updates) {
  const auto experts =
      Experts::random(kExperts, {.input = data.rows.cols(), .hidden = kHidden, .output = classes}, seed + 10);
  std::vector<double> numbers;
  for (const double alpha : {0.0, 1.0, 5.0}) {
    const Thor layer(moe::NoRouter(kExperts, data.rows.cols()), moe::StochasticGate{}, experts);
    for (const double number : judge(train_thor(layer, data, alpha, seed, updates), test)) numbers.push_back(number);
  }
  moe::MoeLayer learned(moe::LinearRouter::random(kExperts, data.rows.cols(), seed),
                        moe::TopKGate::switch_transformer(), experts);
  systems::train(learned, {.updates = updates, .rate = 5e-3, .balance = 0.01}, seed,
                 [&](std::uint64_t update) { return draw_batch(data, 2 * kBatch, seed, update); });
  numbers.push_back(systems::accuracy(systems::outputs(learned, test.rows), test.labels));
  return numbers;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"thor", "2110.04260", "moe/gate/stochastic.hpp"}, [](systems::Page& page) {
    const auto updates = page.amount<std::uint64_t>(1500, 100);
    const auto show = [&](const char* task, const std::vector<systems::Sample>& s) {
      page.table({task, "random dispatch", "all averaged", "disagreement"});
      for (std::size_t i = 0; i < 3; ++i)
        page.row(std::array{"alpha 0", "alpha 1", "alpha 5"}[i], {s[3 * i], s[3 * i + 1], s[3 * i + 2]});
      page.row("learned gate, top-1", {s[9]});
    };
    show("digits", page.over_seeds([&](std::uint64_t seed) {
      return run(systems::digits().train, systems::digits().test, systems::kDigits, seed, updates);
    }));
    const auto s = page.over_seeds([&](std::uint64_t seed) {
      return run(systems::blobs({.count = 180, .label_noise = 0.15}, seed, 1), systems::blobs({.count = 2000}, seed, 2),
                 6, seed, updates);
    });
    show("blobs", s);
    page.expect("fall of the disagreement from alpha 0 to 1", s[2] - s[5], {.low = 0});
    page.expect("fall of the disagreement from alpha 1 to 5", s[5] - s[8], {.low = 0});
    page.claim("accuracy of random dispatch that consistency adds", s[6] - s[0], {.low = 0.015, .high = 0.06});
  });
}
