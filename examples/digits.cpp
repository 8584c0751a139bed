// SPDX-License-Identifier: MIT
// Trains a small mixture-of-experts classifier on real handwritten digits, once per gate, beside a dense network of
// equal active FLOPs and a linear model: an image is one token, scores = head(x + mixture(x)).
//   digits [--data FILE] [--seeds N] [--epochs N] [--json FILE] [--plot FILE.svg] [--quick]
#include <cstdio>
#include <mutex>

#include <CLI/CLI.hpp>

#include "digits/jobs.hpp"

namespace digits {

// Two halves, as the compiler takes half a minute over each: this file has one, digits/sparse.cpp the other.
void add_dense_jobs(std::vector<Job>& jobs, const Plan& plan) {
  const Options options{.epochs = plan.epochs, .balance = 0};
  add_linear(jobs, plan, options);
  add(jobs, plan, "dense", moe::SoftmaxGate{}, 1, kActive * kHidden, options);
  add(jobs, plan, "softmax", moe::SoftmaxGate{}, kExperts, kHidden, options);
}

}  // namespace digits

namespace {

using digits::Job;
using digits::Run;
using moe::Index;

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
              data.train.pixels.rows(), data.test.pixels.rows(), digits::kExperts, digits::kHidden, epochs, seeds);
  std::fflush(stdout);
  std::vector<Job> jobs;
  digits::add_dense_jobs(jobs, {data, seeds, epochs});
  digits::add_sparse_jobs(jobs, {data, seeds, epochs});
  const std::vector<Run> runs = run_all(jobs);
  digits::print_table(runs);
  if (!json_path.empty()) digits::write_json(runs, json_path);
  digits::write_picture(runs, "top_k", plot_path);
} catch (const std::exception& error) {
  std::fprintf(stderr, "digits: %s\n", error.what());
  return 1;
}
