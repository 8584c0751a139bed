// SPDX-License-Identifier: MIT
// A dense network has an expert for each domain inside: the hidden units that the domain uses most. Cai et al.,
// "Read-ME: refactorizing LLMs as router-decoupled mixture of experts with system co-design" (arXiv:2410.19123).
// Here: a classifier of digits with 512 hidden units, half of which stay; a domain is two neighbouring digits, told
// from all ten. Beside the domain's own units: those that all domains together use most (one mask for all), those of
// another domain, and units drawn at random, which do well here, as half of 512 is plenty for digits.
#include <moe/compress/neuron_split.hpp>

#include "support/dense_digits.hpp"
#include "support/page.hpp"

namespace {

using moe::Index;
using systems::DigitsModel;
using systems::Labelled;

constexpr Index kDomains = 5;

/// The rows whose digit is of a domain.
Labelled of_domain(const Labelled& data, Index domain) {
  std::vector<Index> ids;
  for (Index i = 0; i < data.size(); ++i)
    if (data.labels[static_cast<std::size_t>(i)] / 2 == domain) ids.push_back(i);
  return systems::rows_of(data, ids);
}

std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  const DigitsModel dense = systems::dense_digits(page, seed);
  const auto& expert = dense.layer().experts()[0];
  const Index keep = expert.hidden_dim() / 2;
  moe::Matrix<double> scores(kDomains, expert.hidden_dim());
  for (Index d = 0; d < kDomains; ++d) {
    const auto own = moe::neuron_scores(moe::hidden_activity(expert, of_domain(systems::digits().train, d).rows));
    std::copy(own.begin(), own.end(), scores.row(d).data());
  }
  const moe::NeuronSplit masks = moe::domain_split(scores, keep);
  const moe::Matrix<double> mean = scores.colwise().mean();
  const moe::NeuronSplit global = moe::domain_split(mean, keep);
  const std::span<const double> all(mean.data(), static_cast<std::size_t>(mean.size()));
  const moe::NeuronSplit random = moe::random_split(all, {.num_parts = 2, .seed = seed});

  std::vector<double> sums(5);
  for (Index d = 0; d < kDomains; ++d) {
    const Labelled test = of_domain(systems::digits().test, d);
    const auto add = [&](std::size_t place, const DigitsModel& model) {
      sums[place] += systems::accuracy(systems::outputs(model, test.rows), test.labels) / kDomains;
    };
    add(0, dense);
    add(1, with_units(dense, masks.with_shared(d)));
    add(2, with_units(dense, global.shared));
    add(3, with_units(dense, masks.with_shared((d + 1) % kDomains)));
    add(4, with_units(dense, random.parts[0]));
  }
  sums.push_back(static_cast<double>(masks.shared.size()) / static_cast<double>(keep));
  return sums;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"domain_masks", "2410.19123", "moe/compress/neuron_split.hpp"}, [](systems::Page& page) {
        const auto samples = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
        page.table({"half of the units", "accuracy, mean over domains"});
        page.row("all units", {samples[0]});
        page.row("the domain's own", {samples[1]});
        page.row("one mask for all", {samples[2]});
        page.row("another domain's", {samples[3]});
        page.row("drawn at random", {samples[4]});
        page.table({"of a mask", "in all masks"});
        page.row("units", {samples[5]});
        page.expect("the domain's own against all units", samples[1] - samples[0], {.low = -0.02});
        page.claim("accuracy with the domain's own units above one mask for all", samples[1] - samples[2],
                   {.low = 0.1});
      });
}
