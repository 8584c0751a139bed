// SPDX-License-Identifier: MIT
// Text and JSON of the fit of fit_gaussian_moe.cpp.
#pragma once

#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "data.hpp"

namespace fitting {

/// The flags that are set: name, and what it means.
inline std::vector<std::pair<const char*, const char*>> words(const moe::FitFlags& flags) {
  std::vector<std::pair<const char*, const char*>> all;
  const auto add = [&](bool set, const char* name, const char* text) {
    if (set) all.emplace_back(name, text);
  };
  add(flags.separated, "separated",
      "the gate separates the data: infinitely steep, it would fit as well (--ridge 0.01 keeps it finite)");
  add(flags.at_box, "at_box",
      "a gate coefficient or temperature is at its bound: the maximum lies beyond (--ridge 0.01 brings it back)");
  add(flags.at_floor, "at_floor",
      "a variance is at its floor: the likelihood is unbounded there, distrust that expert");
  add(flags.discarded, "discarded",
      "an end of higher likelihood was given up, as a variance collapsed there or an expert lost its rows");
  add(flags.small_expert, "small_expert", "an expert holds fewer than 5 (d + 2) rows");
  add(flags.revived, "revived", "an expert lost all its rows on the way and was started anew");
  add(flags.dead_expert, "dead_expert", "an expert holds fewer than d + 2 rows: use fewer experts");
  add(flags.decreased, "decreased", "the search stopped where no step improves though the score is not small");
  add(flags.far_origin, "far_origin", "the gate has no bias of its own, and x = 0 is far from the data: centre x");
  add(flags.singular, "singular", "the observed information has no full rank: some parameters are not determined");
  return all;
}

template <class Gate>
double aic(const moe::GaussianFit<Gate>& fit) {
  return -2 * fit.log_likelihood + 2 * static_cast<double>(fit.num_parameters);
}

template <class Gate>
double bic(const moe::GaussianFit<Gate>& fit) {
  return -2 * fit.log_likelihood +
         std::log(static_cast<double>(fit.num_rows)) * static_cast<double>(fit.num_parameters);
}

/// A line of numbers, one per expert.
template <class Numbers>
void print_line(const std::string& label, const Numbers& numbers) {
  std::printf("  %-24s", label.c_str());
  for (Index j = 0; j < numbers.size(); ++j) std::printf(" %12.6g", numbers(j));
  std::printf("\n");
}

template <class Gate>
void print_experts(const moe::GaussianFit<Gate>& fit, const Problem& problem) {
  const auto& model = fit.model;
  std::printf("\n  %-24s", "");
  for (Index j = 0; j < model.num_experts(); ++j) std::printf("    expert %2td", j + 1);
  std::printf("\n");
  print_line("rows", fit.expert_rows);
  print_line("intercept", model.intercept);
  for (std::size_t c = 0; c < problem.inputs.size(); ++c)
    print_line("slope in " + problem.inputs[c], model.slope.col(static_cast<Index>(c)));
  print_line("standard deviation", model.variance.cwiseSqrt().eval());
  print_line("gate: bias", model.gate_bias);
  for (std::size_t c = 0; c < problem.inputs.size(); ++c)
    print_line("gate: slope in " + problem.inputs[c], model.gate_slope.col(static_cast<Index>(c)));
  if (moe::GateModel<Gate>::kTempered) std::printf("  %-24s %12.6g\n", "gate: temperature", model.temperature);
}

template <class Gate>
void print_report(const moe::GaussianFit<Gate>& fit, const Problem& problem, const std::string& gate) {
  std::printf("%s: %td rows, %zu input(s), output %s\n", problem.path.c_str(), fit.num_rows, problem.inputs.size(),
              problem.output.c_str());
  std::printf("%s gate, %td experts, %td free parameters\n\n", gate.c_str(), fit.model.num_experts(),
              fit.num_parameters);
  std::printf("log-likelihood %.6f", fit.log_likelihood);
  if (fit.penalised_log_likelihood != fit.log_likelihood)
    std::printf(" (penalised %.6f)", fit.penalised_log_likelihood);
  std::printf(", AIC %.4f, BIC %.4f\n", aic(fit), bic(fit));
  std::printf("%s after %td iterations, largest score per row %.2g; best of %td starts, reached by %td; %.2f s\n",
              fit.converged ? "converged" : "NOT converged", fit.iterations, fit.score_norm, fit.starts, fit.hits,
              fit.seconds);
  print_experts(fit, problem);
  const auto flags = words(fit.flags);
  if (!flags.empty()) std::printf("\n");
  for (const auto& [name, text] : flags) std::printf("note: %s\n", text);
  if (fit.flags.discarded) std::printf("      (log-likelihood %.6f there)\n", fit.discarded_log_likelihood);
}

inline nlohmann::json to_json(const moe::Matrix<double>& matrix) {
  nlohmann::json rows = nlohmann::json::array();
  for (Index r = 0; r < matrix.rows(); ++r)
    rows.push_back(std::vector<double>(matrix.row(r).data(), matrix.row(r).data() + matrix.cols()));
  return rows;
}

inline nlohmann::json to_json(const Eigen::RowVectorXd& numbers) {
  return std::vector<double>(numbers.begin(), numbers.end());
}

template <class Gate>
nlohmann::json parameters_json(const moe::GaussianMoe<Gate>& model) {
  nlohmann::json parameters{{"beta1", to_json(model.gate_slope)},
                            {"beta0", to_json(model.gate_bias)},
                            {"a", to_json(model.slope)},
                            {"b", to_json(model.intercept)},
                            {"variance", to_json(model.variance)}};
  if (moe::GateModel<Gate>::kTempered) parameters["tau"] = model.temperature;
  return parameters;
}

/// Numbers have as many digits as it takes to read the same ones back.
template <class Gate>
void write_json(const moe::GaussianFit<Gate>& fit, const Problem& problem, const std::string& gate,
                const std::string& path) {
  nlohmann::json flags = nlohmann::json::array();
  for (const auto& [name, text] : words(fit.flags)) flags.push_back(name);
  const nlohmann::json result{{"log_likelihood", fit.log_likelihood},
                              {"penalised_log_likelihood", fit.penalised_log_likelihood},
                              {"converged", fit.converged},
                              {"iterations", fit.iterations},
                              {"starts", fit.starts},
                              {"seconds", fit.seconds},
                              {"parameters", parameters_json(fit.model)},
                              {"data", problem.path},
                              {"inputs", problem.inputs},
                              {"output", problem.output},
                              {"gate", gate},
                              {"num_experts", fit.model.num_experts()},
                              {"num_rows", fit.num_rows},
                              {"num_parameters", fit.num_parameters},
                              {"aic", aic(fit)},
                              {"bic", bic(fit)},
                              {"hits", fit.hits},
                              {"score_norm", fit.score_norm},
                              {"expert_rows", to_json(fit.expert_rows)},
                              {"flags", flags}};
  std::ofstream file(path);
  file << result.dump(2) << '\n';
  file.close();
  if (!file) moe::fail_environment("cannot write '", path, "'");
}

}  // namespace fitting
