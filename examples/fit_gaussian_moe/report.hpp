// SPDX-License-Identifier: MIT
// Text and JSON of the fit of fit_gaussian_moe.cpp.
#pragma once

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "data.hpp"

namespace fitting {

template <class Gate>
void print_report(const moe::GaussianFit<Gate>& fit, const Problem& problem, const std::string& gate) {
  std::printf("\n%s gate, %.2f s\n%s", gate.c_str(), fit.seconds,
              moe::summary(fit, problem.data(), {.inputs = problem.inputs, .response = problem.output}).text().c_str());
  if (fit.penalised_log_likelihood != fit.log_likelihood)
    std::printf("penalised log-likelihood %.6f\n", fit.penalised_log_likelihood);
  if (fit.flags.discarded) std::printf("log-likelihood of what was given up: %.6f\n", fit.discarded_log_likelihood);
}

/// A line per number of experts; * marks what each criterion prefers.
template <class Gate>
void print_sweep(const moe::ExpertSweep<Gate>& sweep) {
  std::printf(
      "\nexperts  log-likelihood  parameters           AIC           BIC           ICL   searches at the best\n");
  for (const auto& row : sweep.rows) {
    const Index k = row.num_experts();
    const auto mark = [&](Index best) { return best == k ? '*' : ' '; };
    std::printf("%7td  %14.4f  %10td  %11.3f %c %11.3f %c %11.3f %c %3td of %td%s\n", k, row.criteria.log_likelihood,
                row.criteria.num_parameters, row.criteria.aic, mark(sweep.best_aic), row.criteria.bic,
                mark(sweep.best_bic), row.criteria.icl, mark(sweep.best_icl), row.fit.hits, row.fit.searches,
                row.interior ? "" : ", no candidate: a variance or an expert collapses, or one may be chance");
  }
}

/// A line per number of experts; * marks the one that is taken.
inline void print_cross_validation(const moe::CrossValidation& validated, Index folds) {
  std::printf("\n%td-fold cross-validation, per row\nexperts   log density   (error)   below the best   (error)\n",
              folds);
  for (const auto& row : validated.rows)
    std::printf("%7td  %12.5f  %8.5f  %15.5f  %8.5f %c%s\n", row.num_experts, row.log_density, row.standard_error,
                row.loss, row.loss_error, row.num_experts == validated.fewest ? '*' : ' ',
                row.unsound_fits > 0 ? ("  " + std::to_string(row.unsound_fits) + " fits collapse").c_str() : "");
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
  for (const moe::FlagWords& flag : moe::flag_words(fit.flags)) flags.push_back(flag.name);
  const moe::Criteria criteria = moe::criteria(fit, problem.data());
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
                              {"total_weight", fit.total_weight},
                              {"num_parameters", criteria.num_parameters},
                              {"aic", criteria.aic},
                              {"bic", criteria.bic},
                              {"hits", fit.hits},
                              {"searches", fit.searches},
                              {"score_norm", fit.score_norm},
                              {"expert_rows", to_json(fit.expert_rows)},
                              {"flags", flags}};
  std::ofstream file(path);
  file << result.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  file.close();
  if (!file) moe::fail_environment("cannot write '", path, "'");
}

}  // namespace fitting
