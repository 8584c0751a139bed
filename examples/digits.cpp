// SPDX-License-Identifier: MIT
// Trains a small mixture-of-experts classifier on real handwritten digits, once per gate, beside a dense network of
// equal active FLOPs and a linear model: an image is one token, scores = head(x + mixture(x)).
//   digits [--data FILE] [--seeds N] [--epochs N] [--json FILE] [--plot FILE.svg] [--quick]
#include <cstdio>
#include <functional>
#include <mutex>

#include <CLI/CLI.hpp>

#include "digits/training.hpp"

namespace {

using digits::Options;
using digits::Run;
using moe::Index;

constexpr Index kExperts = 8, kHidden = 48, kActive = 2;

using Job = std::function<Run()>;

/// Adds one job per seed: a classifier with `num_experts` experts of `hidden` units behind this gate.
template <class Gate>
void add(std::vector<Job>& jobs, const std::string& name, int seeds, const Gate& gate, Index num_experts, Index hidden,
         const digits::Data& data, const Options& options) {
  for (int seed = 1; seed <= seeds; ++seed)
    jobs.push_back([=, &data] {
      const auto key = static_cast<std::uint64_t>(seed);
      const digits::Classifier<Gate, moe::Mlp> model{
          {moe::MoeLayer(moe::LinearRouter::random(num_experts, digits::kPixels, key), gate,
                         moe::ExpertPool<moe::Mlp>::random(num_experts, digits::kPixels, hidden, key + 10)),
           moe::ScaledIdentity{digits::kPixels}},
          moe::Linear::random(digits::kClasses, digits::kPixels, key + 20)};
      return digits::train(name, seed, model, data, options);
    });
}

/// The linear model: its only "expert" computes nothing, so scores = head(x).
void add_linear(std::vector<Job>& jobs, int seeds, const digits::Data& data, const Options& options) {
  for (int seed = 1; seed <= seeds; ++seed)
    jobs.push_back([=, &data] {
      using Nothing = moe::ScaledIdentity;
      const digits::Classifier<moe::SoftmaxGate, Nothing> model{
          {moe::MoeLayer(moe::LinearRouter(1, digits::kPixels), moe::SoftmaxGate{},
                         moe::ExpertPool<Nothing>({Nothing{.dim = digits::kPixels, .scale = 0}})),
           moe::ScaledIdentity{digits::kPixels}},
          moe::Linear::random(digits::kClasses, digits::kPixels, static_cast<std::uint64_t>(seed) + 20)};
      return digits::train("linear", seed, model, data, options);
    });
}

std::vector<Job> make_jobs(const digits::Data& data, int seeds, int epochs) {
  const Options balanced{.epochs = epochs}, alone{.epochs = epochs, .balance = 0};
  const Options consistent{.epochs = epochs, .balance = 0, .consistency = 1};
  // Gates that end with one expert per token get half as many experts of twice the width: equal parameters and equal
  // active FLOPs. The temperature falls for 60% of the training.
  const Index updates = epochs * ((data.train.pixels.rows() + digits::kBatch - 1) / digits::kBatch);
  const auto fall = static_cast<std::uint64_t>(updates) * 6 / 10;

  std::vector<Job> jobs;
  add_linear(jobs, seeds, data, alone);
  add(jobs, "dense", seeds, moe::SoftmaxGate{}, 1, kActive * kHidden, data, alone);
  add(jobs, "softmax", seeds, moe::SoftmaxGate{}, kExperts, kHidden, data, alone);
  add(jobs, "top_k", seeds, moe::TopKGate{.k = kActive}, kExperts, kHidden, data, balanced);
  add(jobs, "dense_to_sparse", seeds,
      moe::DenseToSparseGate<>{.temperature = {.start = 2, .end = 0.3, .updates = fall}, .hard_from = fall},
      kExperts / kActive, kActive * kHidden, data, balanced);
  add(jobs, "activation", seeds,
      moe::ActivationGate<>{.bias = Eigen::RowVectorXd::Zero(kExperts / kActive),
                            .sparse = {.temperature = {.start = 1, .end = 0.05, .updates = fall}, .hard_from = fall}},
      kExperts / kActive, kActive * kHidden, data, balanced);
  add(jobs, "stochastic", seeds, moe::StochasticGate{}, kExperts / kActive, kActive * kHidden, data, consistent);
  return jobs;
}

/// Runs the jobs on all cores and shows each as it ends. A run is a pure function of its seed, so this changes nothing.
std::vector<Run> run_all(const std::vector<Job>& jobs) {
  std::vector<Run> runs(jobs.size());
  std::mutex mutex;
  std::size_t done = 0;
  moe::parallel_for(static_cast<Index>(jobs.size()), [&](Index job, Index) {
    Run run = jobs[static_cast<std::size_t>(job)]();
    const std::lock_guard lock(mutex);
    std::printf("[%2zu/%zu] %-16s seed %d  test accuracy %.4f  (%.1f s)\n", ++done, jobs.size(), run.gate.c_str(),
                run.seed, run.test_accuracy, run.seconds);
    std::fflush(stdout);
    runs[static_cast<std::size_t>(job)] = std::move(run);
  });
  return runs;
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Mixture-of-experts classifiers on handwritten digits, one per gate");
  std::string data_path = MOE_EXAMPLE_DATA "/digits.csv", json_path, plot_path = "digits.svg";
  int seeds = 3, epochs = 40;
  bool quick = false;
  app.add_option("--data", data_path, "64 grey levels and a class per line")->capture_default_str();
  app.add_option("--seeds", seeds, "runs per gate")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--epochs", epochs, "passes over the training rows")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--json", json_path, "write the runs to this file");
  app.add_option("--plot", plot_path, "write the picture to this file")->capture_default_str();
  app.add_flag("--quick", quick, "one seed and 5 epochs: shows that it works, not how well");
  CLI11_PARSE(app, argc, argv);
  if (quick) seeds = 1, epochs = 5;

  const digits::Data data = digits::load(data_path);
  std::printf("%td training and %td test images, %td experts of %td hidden units, %d epochs, %d seed(s)\n",
              data.train.pixels.rows(), data.test.pixels.rows(), kExperts, kHidden, epochs, seeds);
  const std::vector<Run> runs = run_all(make_jobs(data, seeds, epochs));
  digits::print_table(runs);
  if (!json_path.empty()) digits::write_json(runs, json_path);
  digits::write_picture(runs, "top_k", plot_path);
} catch (const std::exception& error) {
  std::fprintf(stderr, "digits: %s\n", error.what());
  return 1;
}
