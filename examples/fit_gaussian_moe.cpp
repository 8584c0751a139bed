// SPDX-License-Identifier: MIT
// Fits a Gaussian mixture of experts to a table by maximum likelihood, with any of the library's gates.
//   fit_gaussian_moe [--data FILE.csv] [--formula "y ~ x + factor(g) | z" | --response Y --predictors A,B
//                    --gate-predictors C] [--weights W] [--offset O] [--precision P]
//                    [--no-intercept] [--experts K | --choose MOST [--folds N]] [--gate
//                    softmax|topk|temperature|activation] [--starts N] [--seed S]
//                    [--save FIT] [--predictions FILE.csv [--interval LEVEL]] [--json FILE] [--plot FILE.svg]
//                    (--help lists all)
//   fit_gaussian_moe --load FIT --data NEW.csv --predictions FILE.csv
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <CLI/CLI.hpp>

#include "fit_gaussian_moe/plot.hpp"
#include "fit_gaussian_moe/predictions.hpp"
#include "fit_gaussian_moe/report.hpp"

namespace {

using moe::Index;

struct Settings {
  std::string data_path = MOE_EXAMPLE_DATA "/faithful.csv", gate = "softmax", select = "logit", activation = "tanh";
  std::string last_slope = "zero", header, json_path, plot_path = "fit_gaussian_moe.svg";
  std::string save_path, load_path, predictions_path;
  Index experts = 2, choose = 0, folds = 0, top_k = 1;
  double interval = 0;  // level; 0: none
  fitting::Choice choice;
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

/// What load_from() needs to know of the gate.
moe::Metadata gate_words(const Settings& settings, Index experts) {
  return {{"gate", settings.gate},
          {"top_k", std::to_string(settings.top_k)},
          {"select", settings.select},
          {"activation", settings.activation},
          {"experts", std::to_string(experts)}};
}

const std::vector<std::string> kGates = {"softmax", "topk", "temperature", "activation"};
const std::vector<std::string> kSelects = {"logit", "inner-product"};
const std::vector<std::string> kActivations = {"tanh", "sigmoid", "gelu", "silu", "softplus"};

/// The gate of a saved fit.
void take_gate(Settings& settings) {
  const moe::Metadata words = moe::SafetensorsReader(settings.load_path).metadata();
  const auto word = [&](const char* name) {
    const auto found = words.find(name);
    if (found == words.end())
      moe::fail_environment("'", settings.load_path, "' does not say its ", name, ", expected a file of --save");
    return found->second;
  };
  const auto refuse = [&](const char* name, const char* expected) {
    moe::fail_environment("'", settings.load_path, "': ", name, " is ", moe::detail::in_quotes(word(name)),
                          ", expected ", expected);
  };
  const auto one_of = [&](const char* name, const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), word(name)) == known.end()) refuse(name, "one that --help lists");
    return word(name);
  };
  const auto number = [&](const char* name) {
    const std::string text = word(name);
    Index value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value < 1 || value > 1000000)
      refuse(name, "a number from 1 to 1000000");
    return value;
  };
  settings.gate = one_of("gate", kGates);
  settings.select = one_of("select", kSelects);
  settings.activation = one_of("activation", kActivations);
  settings.top_k = number("top_k");
  settings.experts = number("experts");
}

/// The fit with the asked number of experts, or with the one that BIC or cross-validation prefers.
template <class Gate>
moe::GaussianFit<Gate> fit_or_choose(const Settings& settings, const fitting::Problem& problem, const Gate& gate) {
  const moe::RegressionData& data = problem.data();
  moe::FitOptions options = settings.fit;
  if (settings.choose == 0) return moe::fit(data, settings.experts, gate, options);
  const Index least = settings.gate == "topk" ? settings.top_k : 1;
  const auto sweep = moe::sweep_experts(data, {.least = least, .most = settings.choose}, gate, options);
  std::fprintf(stderr, "\n");
  fitting::print_sweep(sweep);
  if (settings.folds > 0) {
    options.progress = {};
    const moe::ExpertRange range{.least = least, .most = settings.choose};
    const auto validated =
        moe::cross_validate(data, range, gate, {.folds = settings.folds, .seed = settings.fit.seed, .fit = options});
    fitting::print_cross_validation(validated, settings.folds);
    if (!sweep[validated.fewest].fit.flags.interior())
      moe::fail_environment("the fit with ", validated.fewest,
                            " experts collapses, expected more rows or fewer inputs");
    return sweep[validated.fewest].fit;
  }
  if (sweep.best_bic == 0) moe::fail_environment("every number of experts collapses, expected fewer inputs");
  return sweep[sweep.best_bic].fit;
}

template <class Gate>
void run(const Settings& settings, const Gate& gate) {
  if (!settings.load_path.empty())
    return fitting::predict_saved(settings.load_path, gate, settings.data_path, settings.choice.file,
                                  settings.predictions_path);
  const fitting::Problem problem = fitting::load(settings.data_path, settings.choice);
  moe::DesignRows to_predict;  // refused before the fit, if they have a level that it does not see
  if (!settings.predictions_path.empty()) to_predict = fitting::rows_to_predict(problem.design, problem.frame);
  const moe::GaussianFit<Gate> fit = fit_or_choose(settings, problem, gate);
  std::fprintf(stderr, "\n");
  fitting::print_report(fit, problem, settings.gate);
  if (!settings.json_path.empty()) fitting::write_json(fit, problem, settings.gate, settings.json_path);
  if (!settings.save_path.empty())
    moe::save_fit(settings.save_path, fit, problem.design, gate_words(settings, fit.model.num_experts()));
  if (!settings.predictions_path.empty()) {
    moe::PredictionIntervals intervals;
    if (settings.interval > 0) intervals = fitting::intervals_of(fit, problem.data(), to_predict, settings.interval);
    fitting::write_predictions(fit.model, to_predict, settings.predictions_path, intervals);
  }
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
  app.add_option("--data", settings.data_path, "table as R, pandas and spreadsheets write it")->capture_default_str();
  app.add_option("--decimal", settings.choice.file.decimal, "decimal mark of the table; found unless given")
      ->check(CLI::IsMember({".", ","}));
  app.add_option("--header", settings.header,
                 "yes: the first line names the columns, no: it does not; found unless given")
      ->check(CLI::IsMember({"yes", "no"}));
  auto* formula = app.add_option("--formula", settings.choice.formula,
                                 "'y ~ x + factor(g, ref = a) | z', 'y ~ x | quadratic(x)' or 'y ~ . - id'");
  app.add_option("--response", settings.choice.response, "column that is explained; the last one unless given")
      ->excludes(formula);
  app.add_option("--predictors", settings.choice.predictors, "A,factor(B): what explains; all others unless given")
      ->delimiter(',')
      ->excludes(formula);
  app.add_option("--gate-predictors", settings.choice.gate_predictors,
                 "C,factor(D): what the gate reads; as the experts unless given")
      ->delimiter(',')
      ->excludes(formula);
  app.add_option("--weights", settings.choice.weights, "column of frequency weights: a row counts as so many rows");
  app.add_option("--precision", settings.choice.precision,
                 "column of precision weights: the variance of a row is that of its expert divided by it");
  app.add_option("--offset", settings.choice.offset,
                 "column that is added to every expert's mean, as offset(O) in a formula");
  app.add_flag("--no-intercept", settings.choice.without_intercept,
               "experts through 0, as 'y ~ x - 1' in a formula; the gate keeps its bias");
  auto* experts = app.add_option("--experts", settings.experts, "number of experts")
                      ->check(CLI::PositiveNumber)
                      ->capture_default_str();
  auto* choose = app.add_option("--choose", settings.choose, "fit up to so many experts, and take what BIC prefers")
                     ->check(CLI::PositiveNumber)
                     ->excludes(experts);
  app.add_option("--folds", settings.folds, "let cross-validation over so many folds choose, in place of BIC")
      ->check(CLI::Range(2, 1000000))
      ->needs(choose);
  app.add_option("--gate", settings.gate, "softmax, topk, temperature or activation")
      ->check(CLI::IsMember(kGates))
      ->capture_default_str();
  app.add_option("--top-k", settings.top_k, "experts with a weight, of --gate topk")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--select", settings.select,
                 "what --gate topk ranks: logit (with the bias) or inner-product (without)")
      ->check(CLI::IsMember(kSelects))
      ->capture_default_str();
  app.add_option("--activation", settings.activation, "tanh, sigmoid, gelu, silu or softplus, of --gate activation")
      ->check(CLI::IsMember(kActivations))
      ->capture_default_str();
  app.add_option("--last-slope", settings.last_slope,
                 "gate slope of the last expert, of --gate activation: zero or free")
      ->check(CLI::IsMember({"zero", "free"}))
      ->capture_default_str();
  app.add_option("--starts", settings.fit.starts, "random starts; 0: until independent searches agree")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--ridge", settings.fit.ridge, "penalty of the standardised gate coefficients")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--variance-penalty", settings.fit.variance_penalty,
                 "prior of the variances for few rows, 1 / n to 1 / sqrt(n); 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--variance-floor", settings.fit.variance_floor,
                 "least variance relative to that of the response, for experts far apart; 0: 1e-6, below 500 rows 1e-5")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--seed", settings.fit.seed, "of the starts")->capture_default_str();
  auto* predictions = app.add_option("--predictions", settings.predictions_path, "write predictions to this CSV file");
  app.add_option("--interval", settings.interval,
                 "level below 1: bounds of y in the predictions, with the uncertainty of the parameters")
      ->check(CLI::Range(1e-6, 1 - 1e-6))
      ->needs(predictions);
  app.add_option("--save", settings.save_path, "write the fit to this file, for --load");
  app.add_option("--json", settings.json_path, "write the fit to this file");
  app.add_option("--plot", settings.plot_path, "write the picture to this file; '' for none")->capture_default_str();
  auto* load = app.add_option("--load", settings.load_path, "predict the rows of --data by this fit of --save");
  load->needs(predictions);
  for (const char* of_a_fit : {"--formula",       "--response",
                               "--predictors",    "--gate-predictors",
                               "--weights",       "--offset",
                               "--precision",     "--experts",
                               "--choose",        "--folds",
                               "--gate",          "--top-k",
                               "--select",        "--activation",
                               "--last-slope",    "--starts",
                               "--ridge",         "--variance-penalty",
                               "--seed",          "--save",
                               "--json",          "--plot",
                               "--no-intercept",  "--interval",
                               "--variance-floor"})
    load->excludes(app.get_option(of_a_fit));  // they would be ignored
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
  if (!settings.header.empty())
    settings.choice.file.header = settings.header == "yes" ? moe::HeaderLine::Yes : moe::HeaderLine::Absent;
  settings.fit.last_slope = settings.last_slope == "free" ? moe::LastSlope::Free : moe::LastSlope::Zero;
  settings.fit.progress = show_progress;
  if (!settings.load_path.empty()) take_gate(settings);
  run(settings);
} catch (const std::exception& error) {
  std::fprintf(stderr, "fit_gaussian_moe: %s\n", error.what());
  return 1;
}
