// SPDX-License-Identifier: MIT
// A deployed classifier learns the handwriting of its user and forgets nobody else's: a local expert, fitted to ten
// samples per class, and a gating network, fitted to five more and to 200 rows of what the model was trained for, stand
// beside it; the model itself is not touched. Zhang, Davoodi & Hu, "Low-cost customization of deep networks by a local
// expert and a gating network" (arXiv:1811.00056): EMNIST, at 2.5% more parameters. Here 16%, of a model of one layer:
// digits of 8 x 8, which one user slants and another mirrors. Both new parts are linear, on the 96 features below the
// head; the gate also sees how sure that is. Beside them the head retrained on the same samples: others pay.
#include <numeric>

#include <moe/router/none.hpp>
#include <moe/train/customise.hpp>

#include "support/digits.hpp"
#include "support/page.hpp"
#include "support/relu_linear.hpp"

namespace {

using moe::Index;
using systems::Labelled;
using systems::ReluLinear;
using Features = moe::MoeLayer<moe::NoRouter, moe::TopKGate, moe::ExpertPool<ReluLinear>>;  // of one expert
using Deployed = systems::WithHead<Features>;

constexpr Index kFeatures = 96, kSide = 8;

Deployed deployed(std::uint64_t updates, std::uint64_t seed) {
  Deployed model(Features(moe::NoRouter(1, systems::kPixels), moe::TopKGate{.k = 1},
                          moe::ExpertPool<ReluLinear>({ReluLinear(kFeatures, systems::kPixels, seed + 10)})),
                 moe::Linear::random(systems::kDigits, kFeatures, seed + 20));
  train(model, {.updates = updates, .weight_decay = 0.05, .max_norm = 5}, seed,
        [&](std::uint64_t update) { return systems::draw_batch(systems::digits().train, 64, seed, update); });
  return model;
}

Index slanted(Index r, Index c) { return c + (r < 4 ? (5 - r) / 2 : -((r - 3) / 2)); }
Index mirrored(Index, Index c) { return kSide - 1 - c; }

/// Every image with the pixel of row r and column c at column to(r, c), if there is one.
Labelled written(const Labelled& data, Index (*to)(Index, Index)) {
  Labelled own{moe::Matrix<float>::Zero(data.size(), systems::kPixels), data.labels};
  for (Index i = 0; i < data.size(); ++i)
    for (Index r = 0; r < kSide; ++r)
      for (Index c = 0; c < kSide; ++c)
        if (const Index column = to(r, c); column >= 0 && column < kSide) {
          float& pixel = own.rows(i, kSide * r + column);
          pixel = std::max(pixel, data.rows(i, kSide * r + c));
        }
  return own;
}

/// `count` rows of each class in a random order, behind `skip` of them.
Labelled per_class(const Labelled& data, Index skip, Index count, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::Shuffle, seed);
  std::vector<Index> order(data.labels.size()), ids, seen(systems::kDigits);
  std::iota(order.begin(), order.end(), Index{0});
  for (std::size_t i = order.size() - 1; i > 0; --i)
    std::swap(order[i], order[random.below(i + 1, static_cast<Index>(i))]);
  for (const Index id : order) {
    const Index place = seen[static_cast<std::size_t>(data.labels[static_cast<std::size_t>(id)])]++;
    if (place >= skip && place < skip + count) ids.push_back(id);
  }
  return rows_of(data, ids);
}

/// Of the user and of others, one after the other: accuracy of the deployed model, with its head retrained, with local
/// expert and gate, and with the best of all gates; what the local expert answers. Then parameters added per parameter.
std::vector<double> numbers(const Deployed& model, Index (*hand)(Index, Index), std::uint64_t seed) {
  const auto& [train, test] = systems::digits();
  const auto features = [&](const Labelled& data) { return Labelled{outputs(model.layer(), data.rows), data.labels}; };
  const Labelled samples = features(written(per_class(train, 0, 10, seed), hand));
  const Labelled more = features(written(per_class(train, 10, 5, seed), hand));
  const Labelled generic = features(systems::draw_batch(train, 200, seed + 1, 0));
  auto retrained = moe::customise(model.head(), model.head());
  moe::fit_local(retrained, {samples.rows, samples.labels});
  auto layer = moe::customise(model.head(), moe::Linear::random(systems::kDigits, kFeatures, seed + 30));
  moe::fit_local(layer, {samples.rows, samples.labels});
  moe::fit_gate(layer, {more.rows, more.labels}, {generic.rows, generic.labels}, {.max_generic_drop = 0.02});
  std::vector<double> all;
  for (const Labelled& data : {features(written(test, hand)), features(test)}) {
    moe::Workspace ws;
    moe::Matrix<float> of_head(data.size(), systems::kDigits), of_new = of_head, of_local = of_head, out = of_head;
    model.head().forward(data.rows, of_head, moe::Step{});
    retrained.experts().set<1>()[0].forward(data.rows, of_new, moe::Step{});
    layer.experts().set<1>()[0].forward(data.rows, of_local, moe::Step{});
    layer.forward(data.rows, out, ws);
    for (const auto* scores : {&of_head, &of_new, &out}) all.push_back(systems::accuracy(*scores, data.labels));
    const auto first = systems::predictions(of_head), second = systems::predictions(of_local);
    double either = 0, local = 0;
    for (std::size_t t = 0; t < first.size(); ++t) {
      either += first[t] == data.labels[t] || second[t] == data.labels[t] ? 1 : 0;
      local += ws.routing.experts(static_cast<Index>(t))[0] == 1 ? 1 : 0;
    }
    for (const double sum : {either, local}) all.push_back(sum / static_cast<double>(data.size()));
  }
  all.push_back(moe::customisation_cost(layer, model.layer()).parameter_overhead());
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"customisation", "1811.00056", "moe/train/customise.hpp"}, [](auto& page) {
    const auto gain = [&](const char* user, Index (*hand)(Index, Index)) {
      const auto found = page.over_seeds([&](std::uint64_t seed) {
        return numbers(deployed(page.template amount<std::uint64_t>(840, 60), seed), hand, seed);
      });
      page.table({std::string("accuracy, ") + user, "of the user", "of others"});
      const char* const rows[] = {"deployed model", "head retrained", "local expert and gate", "best of all gates",
                                  "answered by the local expert"};
      for (std::size_t i = 0; i < 5; ++i) page.row(rows[i], {found[i], found[5 + i]});
      page.expect(std::string("parameters added per parameter, ") + user, found[10], {.low = 0.1, .high = 0.2});
      page.expect(std::string("accuracy of others, retrained, ") + user, found[6] - found[5], {.high = -0.03});
      page.expect(std::string("accuracy of others, with less without, ") + user, found[7] - found[5], {.low = -0.03});
      return found[2] - found[0];
    };
    page.expect("accuracy that a mirrored user gains", gain("mirrored", mirrored), {.low = 0.25});
    page.claim("accuracy that a user of slanted digits gains", gain("slanted", slanted), {.low = 0.25});
  });
}
