// SPDX-License-Identifier: MIT
// How fast do estimates of a Gaussian mixture of experts approach the truth as data grow? Simulates, fits, regresses
// the logarithm of the error on the logarithm of n, and compares the slopes with the theory, and what has a known mean
// at every n (excess log-likelihood, errors of the gate in standard errors) with that: with a linear gate the
// temperature does not converge, whatever n (its ratio to the slopes does); behind tanh or sigmoid it does, as n^-1/2;
// surplus experts slow what they share down; the border of a top-1 gate converges as 1/n.
// Nguyen, Akbarian & Ho (arXiv:2401.13875); Nguyen et al. (arXiv:2309.13850); Nguyen, Nguyen & Ho (arXiv:2305.03288);
// other gates: sigmoid (arXiv:2405.13997), Laplace (arXiv:2402.03226), cosine (arXiv:2405.14131), quadratic
// (arXiv:2410.11222).
#include <cstdio>
#include <fstream>
#include <set>
#include <string>

#include <CLI/CLI.hpp>

#include "convergence_rates/report.hpp"

namespace {

struct Arguments {
  bool quick = false, full = false;
  rates::Estimator estimator = rates::Estimator::Likelihood;
  std::vector<std::string> experiments;
  std::uint64_t seed = 1;
  std::string json, plot = "rates";
};

rates::Scale scale_of(const Arguments& arguments, rates::Largest largest) {
  if (arguments.full && largest == rates::Largest::Full) return rates::full_scale();
  if (arguments.quick) return {{1000, 3000, 9000}, {24, 24, 24}};
  return {moe::geometric_rows(1000, 31'623), {24, 24, 24, 24}};
}

void show_progress(const char* name, const moe::RateProgress& p) {
  constexpr int kWidth = 30;
  const int done = static_cast<int>(p.fraction * kWidth);
  std::fprintf(stderr, "\r%s [%.*s%*s] %td of %td fits, %.0f s left   ", name, done, "##############################",
               kWidth - done, "", p.fits_done, p.fits, p.seconds_left);
}

bool is_wanted(const rates::Experiment& experiment, const Arguments& arguments) {
  if (arguments.experiments.empty()) return !(arguments.quick && experiment.cost > 10);  // surplus experts are slow
  return std::find(arguments.experiments.begin(), arguments.experiments.end(), experiment.name) !=
         arguments.experiments.end();
}

int run(const Arguments& arguments) {
  std::vector<rates::Finished> all;
  std::set<std::string> claims;
  int missed = 0;
  for (rates::Experiment& experiment : rates::all_experiments()) {
    if (!is_wanted(experiment, arguments)) continue;
    const rates::Scale scale = scale_of(arguments, experiment.largest);
    moe::RateOptions options{.rows = scale.rows, .replications = scale.replications, .seed = arguments.seed};
    options.slope.smallest_rows = scale.smallest_rows;
    options.noise = rates::starts_at(0.1);
    experiment.change(options);
    options.progress = [&](const moe::RateProgress& p) { show_progress(experiment.name, p); };
    all.push_back({experiment, experiment.run(options, arguments.estimator), scale});
    std::fprintf(stderr, "\r%70s\r", "");
    missed += rates::print(all.back());
    claims.insert(experiment.claim);
  }
  if (!arguments.plot.empty())
    for (const std::string& claim : claims) rates::draw(claim, all, arguments.plot + "_" + claim + ".svg");
  if (!arguments.json.empty()) {
    nlohmann::json out = nlohmann::json::array();
    for (const rates::Finished& finished : all) out.push_back(to_json(finished));
    std::ofstream file(arguments.json);
    if (!(file << out.dump(1) << '\n')) {
      std::fprintf(stderr, "cannot write %s\n", arguments.json.c_str());
      return 2;
    }
  }
  std::printf("%d checks missed\n", missed);
  return missed == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Rates at which estimates of Gaussian mixtures of experts converge, beside the theory.");
  auto* quick = app.add_flag("--quick", arguments.quick, "seconds: few replications, wide bands, no surplus experts");
  app.add_flag("--full", arguments.full, "minutes: n from 100 to 100000, up to 40 replications")->excludes(quick);
  app.add_flag_callback(
      "--idle", [&] { arguments.estimator = rates::Estimator::Idle; },
      "estimates are the starts: every slope that the theory states has to be missed");
  app.add_option("--experiment", arguments.experiments, "only these, such as E5b E6b");
  app.add_option("--seed", arguments.seed, "of all random numbers");
  app.add_option("--json", arguments.json, "file for all means, medians and slopes");
  auto* plot = app.add_option("--plot", arguments.plot, "prefix of the pictures, one SVG per claim");
  app.add_flag_callback(
         "--no-plot", [&] { arguments.plot.clear(); }, "no pictures")
      ->excludes(plot);
  CLI11_PARSE(app, argc, argv);
  try {
    return run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "convergence_rates: %s\n", error.what());
    return 2;
  }
}
