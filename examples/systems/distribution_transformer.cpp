// SPDX-License-Identifier: MIT
// Bayesian inference by a network that has learned it: a prior, as a mixture of normals, and data go in, the posterior
// comes out as a mixture again, which may be the next prior. Components are tokens that see each other and then the
// data; the feed-forward networks are mixtures of experts. Whittle, Ziomek, Rawling & Osborne, "Distribution
// transformers" (arXiv:2502.02463), who decode prior and posterior by one head; here the head gives the change from
// prior to posterior, so that of the paper the loss that keeps the decoded prior consistent is left out, as are unknown
// variances with inverse-gamma priors. Here: a mean on the line, its prior a mixture of two normals, 1 to 5 readings
// with noise of known sizes, for which the exact posterior is such a mixture, too (support/conjugate.hpp); it is
// measured against, and never trained on. Then sensors that follow a position, step after step. Attention weighs
// readings by their precisions, which is Bayes' rule but for the sum of the precisions: a softmax does not know how
// many readings there are. A key of zeros beside them tells; what is lost without, the table says. On the line a sum
// over a grid is quicker than the network, and better. The picture, distribution_transformer.svg, shows six problems.
#include <cstdio>

#include "support/conjugate.hpp"
#include "support/page.hpp"

namespace {

using moe::Index;
using systems::Mixture;
using systems::PosteriorNet;

constexpr Index kSteps = 20, kMetropolis = 5000, kPoints = 200;
/// What a seed gives, by place. KL is from the exact posterior; "blind" is the network without a zero key.
enum Number { kPriorKl, kPriorWorst, kBlindKl, kBlindWorst, kKl, kWorst, kSeconds, kNetError, kMs };
enum Beside { kMetropolisError = kMs + 1, kMetropolisMs, kQuadratureError, kQuadratureMs };
enum Tracked { kFirstStep = kQuadratureMs + 1, kLastStep, kError, kExactError };

PosteriorNet trained(const char* what, moe::ZeroKey zero_key, std::uint64_t updates, std::uint64_t seed) {
  PosteriorNet net = systems::posterior_net(seed, zero_key);
  systems::learn_posteriors(net, updates, seed, [&](std::uint64_t update, double loss) {
    if ((update + 1) % 1000 == 0)
      std::fprintf(stderr, "distribution_transformer, seed %d, %s: %d updates, loss %.3f\n", static_cast<int>(seed),
                   what, static_cast<int>(update + 1), loss);
  });
  return net;
}

std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  const auto updates = page.amount<std::uint64_t>(2000, 20);
  const Index count = page.amount<Index>(1000, 20), few = page.amount<Index>(100, 3);
  const std::uint64_t test = seed + 2000;
  std::vector<double> n(kExactError + 1);
  const auto start = std::chrono::steady_clock::now();
  const PosteriorNet net = trained("with a zero key", moe::ZeroKey::On, updates, seed);
  n[kSeconds] = systems::seconds_since(start);
  const PosteriorNet blind = trained("without", moe::ZeroKey::Off, updates, seed);
  const systems::Posterior posterior{net}, of_blind{blind};
  const auto of_prior = [](const Mixture& prior, const moe::Matrix<float>&) { return prior; };
  const auto found = systems::posterior_errors(posterior, test, count);
  const auto of_blind_net = systems::posterior_errors(of_blind, test, count);
  const auto unchanged = systems::posterior_errors(of_prior, test, count);
  n[kKl] = found.mean, n[kWorst] = found.worst;
  n[kBlindKl] = of_blind_net.mean, n[kBlindWorst] = of_blind_net.worst;
  n[kPriorKl] = unchanged.mean, n[kPriorWorst] = unchanged.worst;
  const auto measure = [&](int error, int ms, const auto& mean_of) {
    const systems::MeanOfWay way = systems::measure(test, count, mean_of);
    n[static_cast<std::size_t>(error)] = way.error, n[static_cast<std::size_t>(ms)] = way.ms;
  };
  using One = systems::Inference;
  measure(kNetError, kMs, [&](const One& one) { return posterior(one.prior, one.data).mean()(0); });
  measure(kMetropolisError, kMetropolisMs,
          [&](const One& one) { return systems::metropolis_mean(one, kMetropolis, seed); });
  measure(kQuadratureError, kQuadratureMs, [&](const One& one) { return systems::quadrature_mean(one, kPoints); });
  for (Index i = 0; i < few; ++i) {
    const auto track = systems::follow(posterior, 3000 + 100 * seed + static_cast<std::uint64_t>(i), kSteps);
    const auto share = [&](double value) { return value / static_cast<double>(few); };
    n[kFirstStep] += share(track.divergence.front()), n[kLastStep] += share(track.divergence.back());
    n[kError] += share(track.error), n[kExactError] += share(track.exact_error);
  }
  if (seed == page.first_seed()) systems::draw_posteriors(posterior, test, "distribution_transformer.svg");
  return n;
}

}  // namespace

int main(int argc, char** argv) {
  const systems::System system{"distribution_transformer", "2502.02463", "moe/sequence/distribution_transformer.hpp"};
  return systems::run_page(argc, argv, system, [](systems::Page& page) {
    const auto n = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
    page.table({"KL from the exact posterior", "prior, unchanged", "without a zero key", "transformer"});
    page.row("mean of 1000 problems", {n[kPriorKl], n[kBlindKl], n[kKl]});
    page.row("worst of them", {n[kPriorWorst], n[kBlindWorst], n[kWorst]});
    page.table({"posterior mean, of the same problems", "error", "ms"});
    page.row("transformer", {n[kNetError], n[kMs]});
    page.row("Metropolis, 5000 steps", {n[kMetropolisError], n[kMetropolisMs]});
    page.row("quadrature, 200 points", {n[kQuadratureError], n[kQuadratureMs]});
    page.table({"following a position", "KL, step 1", "KL, step 20", "mean square", "of the exact filter"});
    page.row("transformer", {n[kFirstStep], n[kLastStep], n[kError], n[kExactError]});
    page.expect("seconds to train", n[kSeconds], {.high = 90});
    page.expect("ms per posterior", n[kMs], {.high = 1});
    page.expect("KL over that of the prior", n[kKl] / n[kPriorKl], {.high = 0.1});
    page.expect("KL without a zero key over that with it", n[kBlindKl] / n[kKl], {.low = 1.5});
    page.expect("KL after 20 steps", n[kLastStep], {.high = 0.05});
    page.claim("KL of the learned posterior from the exact one, nats", n[kKl], {.low = 0, .high = 0.02});
  });
}
