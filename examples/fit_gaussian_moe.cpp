// SPDX-License-Identifier: MIT
// Fits a Gaussian mixture of experts to a table by maximum likelihood, with any of the library's gates.
//   fit_gaussian_moe [--data FILE.csv] [--experts K] [--gate softmax|topk|temperature|activation] [--starts N]
//                    [--ridge LAMBDA] [--seed S] [--json FILE] [--plot FILE.svg]     (--help lists all)
#include <chrono>
#include <cstdio>
#include <string>

#include <CLI/CLI.hpp>

#include "fit_gaussian_moe/plot.hpp"
#include "fit_gaussian_moe/report.hpp"

namespace {

using moe::Index;

struct Settings {
  std::string data_path = MOE_EXAMPLE_DATA "/faithful.csv", gate = "softmax", select = "logit", activation = "tanh";
  std::string last_slope = "zero", json_path, plot_path = "fit_gaussian_moe.svg";
  Index experts = 2, top_k = 1;
  moe::FitOptions fit;
};

/// A line on stderr, written over ten times a second.
void show_progress(const moe::FitProgress& progress) {
  using Clock = std::chrono::steady_clock;
  static Clock::time_point shown{};
  const bool done = progress.starts_done == progress.starts && progress.runs_done == progress.runs;
  if (!done && Clock::now() - shown < std::chrono::milliseconds(100)) return;
  shown = Clock::now();
  std::fprintf(stderr, "\rstarts %td/%td, long runs %td/%td, best log-likelihood %.4f   ", progress.starts_done,
               progress.starts, progress.runs_done, progress.runs, progress.log_likelihood);
}

template <class Gate>
void run(const Settings& settings, const Gate& gate) {
  const fitting::Problem problem = fitting::load(settings.data_path);
  const moe::GaussianFit<Gate> fit = moe::fit(problem.data, settings.experts, gate, settings.fit);
  std::fprintf(stderr, "\n");
  fitting::print_report(fit, problem, settings.gate);
  if (!settings.json_path.empty()) fitting::write_json(fit, problem, settings.gate, settings.json_path);
  if (!settings.plot_path.empty()) fitting::write_plot(fit.model, problem, settings.plot_path);
}

template <class Act>
void run_activation(const Settings& settings) {
  using Temperature = moe::LearnableTemperature;
  run(settings, moe::ActivationGate<Act, Temperature>{.sparse = {.temperature = Temperature::starting_at(0.5)}});
}

void run_top_k(const Settings& settings) {
  moe::TopKGate gate{.k = settings.top_k};
  if (settings.select == "inner-product") gate.weight_bias = Eigen::RowVectorXd::Zero(settings.experts);
  run(settings, gate);
}

/// Names become types here.
void run(const Settings& settings) {
  if (settings.gate == "softmax") return run(settings, moe::SoftmaxGate{});
  if (settings.gate == "topk") return run_top_k(settings);
  if (settings.gate == "temperature")
    return run(settings, moe::DenseToSparseGate<moe::ConstantSchedule>{.temperature = {.value = 1}});
  if (settings.activation == "tanh") return run_activation<moe::Tanh>(settings);
  if (settings.activation == "sigmoid") return run_activation<moe::Sigmoid>(settings);
  if (settings.activation == "gelu") return run_activation<moe::Gelu>(settings);
  if (settings.activation == "silu") return run_activation<moe::Silu>(settings);
  run_activation<moe::Softplus>(settings);
}

/// What would be ignored is refused.
void require_gate(const CLI::App& app, const char* option, const Settings& settings, const char* gate) {
  if (app.count(option) > 0 && settings.gate != gate)
    moe::fail(option, " is of no use with --gate ", settings.gate, ", expected --gate ", gate);
}

void add_options(CLI::App& app, Settings& settings) {
  app.add_option("--data", settings.data_path, "CSV file: a line of names, then numbers; the last column is the output")
      ->capture_default_str();
  app.add_option("--experts", settings.experts, "number of experts")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--gate", settings.gate, "softmax, topk, temperature or activation")
      ->check(CLI::IsMember({"softmax", "topk", "temperature", "activation"}))
      ->capture_default_str();
  app.add_option("--top-k", settings.top_k, "experts with a weight, of --gate topk")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--select", settings.select,
                 "what --gate topk ranks: logit (with the bias) or inner-product (without)")
      ->check(CLI::IsMember({"logit", "inner-product"}))
      ->capture_default_str();
  app.add_option("--activation", settings.activation, "tanh, sigmoid, gelu, silu or softplus, of --gate activation")
      ->check(CLI::IsMember({"tanh", "sigmoid", "gelu", "silu", "softplus"}))
      ->capture_default_str();
  app.add_option("--last-slope", settings.last_slope,
                 "gate slope of the last expert, of --gate activation: zero or free")
      ->check(CLI::IsMember({"zero", "free"}))
      ->capture_default_str();
  app.add_option("--starts", settings.fit.starts, "random starts")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--ridge", settings.fit.ridge, "penalty of the standardised gate coefficients")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--seed", settings.fit.seed, "of the starts")->capture_default_str();
  app.add_option("--json", settings.json_path, "write the fit to this file");
  app.add_option("--plot", settings.plot_path, "write the picture to this file; '' for none")->capture_default_str();
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Maximum likelihood of a Gaussian mixture of experts");
  Settings settings;
  add_options(app, settings);
  CLI11_PARSE(app, argc, argv);
  require_gate(app, "--top-k", settings, "topk");
  require_gate(app, "--select", settings, "topk");
  require_gate(app, "--activation", settings, "activation");
  require_gate(app, "--last-slope", settings, "activation");
  settings.fit.last_slope = settings.last_slope == "free" ? moe::LastSlope::Free : moe::LastSlope::Zero;
  settings.fit.progress = show_progress;
  run(settings);
} catch (const std::exception& error) {
  std::fprintf(stderr, "fit_gaussian_moe: %s\n", error.what());
  return 1;
}
