// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/gaussian/design/design.hpp"
#include "moe/gaussian/fit/fit_options.hpp"
#include "moe/io/file/json_text.hpp"
#include "moe/io/gaussian.hpp"

namespace moe::inline MOE_ABI {

/// A fit out of a file: all that predictions for another data frame need.
template <class G>
struct SavedFit {
  GaussianMoe<G> model = {};
  Design design = {};  ///< design_rows(design, frame) are the rows of another data frame
  double log_likelihood = 0;
  Index num_rows = 0;
  double total_weight = 0;  ///< rows that their weights stand for; num_rows without weights
  bool converged = false;
  double variance_floor = 0;  ///< FitOptions::variance_floor, for StandardErrorOptions and BootstrapOptions::fit
  Metadata metadata = {};     ///< what save_fit() was given
};

namespace detail {

inline constexpr const char* kFitKey = "moe.fit";  // of the metadata
inline constexpr int kFitVersion = 1;

inline nlohmann::json design_json(const Design& design) {
  nlohmann::json columns = nlohmann::json::array(), factors = nlohmann::json::array();
  for (const DesignColumn& c : design.columns) {
    columns.push_back({{"name", c.name},
                       {"source", c.source},
                       {"level", c.level},
                       {"of_experts", c.of_experts},
                       {"of_gate", c.of_gate}});
    if (!c.times.empty()) columns.back()["times"] = c.times;
  }
  for (const DesignFactor& f : design.factors) factors.push_back({{"source", f.source}, {"levels", f.levels}});
  nlohmann::json out{
      {"response", design.response}, {"columns", columns}, {"factors", factors}, {"dropped", design.dropped}};
  if (!design.offsets.empty()) out["offsets"] = design.offsets;
  if (!design.precision.empty()) out["precision"] = design.precision;
  if (design.expert_intercept == Intercept::Zero) out["intercept"] = false;
  return out;
}

inline Design design_of(const nlohmann::json& json) {
  Design design{.response = json.at("response").get<std::string>(),
                .columns = {},
                .factors = {},
                .offsets = json.value("offsets", std::vector<std::string>()),  // later than version 1
                .precision = json.value("precision", std::string()),
                .expert_intercept = json.value("intercept", true) ? Intercept::Free : Intercept::Zero,
                .dropped = json.at("dropped").get<std::vector<std::string>>()};
  for (const nlohmann::json& c : json.at("columns"))
    design.columns.push_back({.name = c.at("name").get<std::string>(),
                              .source = c.at("source").get<std::string>(),
                              .level = c.at("level").get<std::string>(),
                              .of_experts = c.value("of_experts", true),  // later than version 1
                              .of_gate = c.value("of_gate", true),
                              .times = c.value("times", std::string())});
  for (const nlohmann::json& f : json.at("factors"))
    design.factors.push_back(
        {.source = f.at("source").get<std::string>(), .levels = f.at("levels").get<std::vector<std::string>>()});
  return design;
}

/// What predictions divide by, and a number that JSON has.
template <class Fail>
void require_report(double log_likelihood, Index num_rows, Fail&& refuse) {
  if (num_rows < 1) refuse("num_rows is " + std::to_string(num_rows) + ", expected at least 1");
  if (!std::isfinite(log_likelihood)) refuse("log_likelihood is no finite number, expected one");
}

inline Index num_rows_of(const std::string& label, const nlohmann::json& json) {
  if (!json.is_number_integer() || json.get<double>() > 9e15)  // a double counts them below
    fail_environment(label, ": num_rows is ", shown(json.dump()), ", expected a whole number of rows");
  return json.get<Index>();
}

}  // namespace detail

/// Saves a fit with the design of its inputs: levels of factors, base levels, columns that were left out. The file is
/// one of save_parameters(), which load_gaussian_moe() reads, too; `metadata` is kept beside.
///   save_fit("fit.safetensors", fit, regression.design, {{"gate", "softmax"}});
/// Throws std::invalid_argument unless the design is valid and has the inputs of the model, the fit has
/// rows and a finite likelihood, all names are UTF-8 and no key is "moe.fit"; std::runtime_error if the file cannot be
/// written.
template <class G>
void save_fit(const std::filesystem::path& path, const GaussianFit<G>& fit, const Design& design,
              Metadata metadata = {}) {
  constexpr const char* kName = "moe::save_fit";
  fit.model.validate(kName);
  if (std::ssize(design.columns) != fit.model.input_dim())
    fail(kName, ": design has ", design.columns.size(), " columns, expected input_dim = ", fit.model.input_dim());
  design.validate(kName);
  for (Index c = 0; c < fit.model.input_dim(); ++c) {
    const DesignColumn& column = design.columns[static_cast<std::size_t>(c)];
    if (column.of_gate != detail::reads(fit.model.gate_inputs, c) ||
        column.of_experts != detail::reads(fit.model.expert_inputs, c))
      fail(kName, ": column ", detail::in_quotes(column.name), " of design is read by others than column ", c,
           " of the model, expected the same (Design::gate_inputs, Design::expert_inputs)");
  }
  if (design.expert_intercept != fit.model.expert_intercept)
    fail(kName, ": one of design and model has an intercept, expected both or none (Design::expert_intercept)");
  detail::require_report(fit.log_likelihood, fit.num_rows, [&](const std::string& why) { fail(kName, ": ", why); });
  nlohmann::json json{{"version", detail::kFitVersion},
                      {"design", detail::design_json(design)},
                      {"log_likelihood", fit.log_likelihood},
                      {"num_rows", fit.num_rows},
                      {"converged", fit.converged},
                      {"free_last_slope", fit.model.last_slope == LastSlope::Free},
                      {"total_weight", fit.total_weight > 0 ? fit.total_weight : static_cast<double>(fit.num_rows)}};
  if (fit.variance_floor != 0) json["variance_floor"] = fit.variance_floor;
  std::string text;
  try {
    text = json.dump();
  } catch (const nlohmann::json::exception& error) {
    fail(kName, ": a name or level is not UTF-8, expected that: ", error.what());
  }
  if (!metadata.emplace(detail::kFitKey, std::move(text)).second)
    fail(kName, ": metadata has the key '", detail::kFitKey, "', which is the fit's own");
  save_parameters(path, fit.model, metadata);
}

/// Loads what save_fit() has written; `gate` as for load_gaussian_moe(). Predictions have the same bits.
/// Throws std::runtime_error for a file that cannot be read, is no such file, holds what no fit has, or was written
/// with another gate or by a later version of save_fit().
template <LikelihoodGate G = SoftmaxGate>
SavedFit<G> load_fit(const std::filesystem::path& path, const G& gate = {}) {
  const std::string label = "moe::load_fit: '" + path.string() + "'";
  SavedFit<G> saved;
  saved.metadata = SafetensorsReader(path).metadata();
  const auto entry = saved.metadata.extract(detail::kFitKey);
  if (entry.empty())
    fail_environment(label, ": has no metadata '", detail::kFitKey, "', expected a file of save_fit()");
  bool is_free = false;
  try {
    const nlohmann::json json = detail::parse_json(label, entry.mapped());
    const nlohmann::json& version = json.at("version");
    if (version != detail::kFitVersion)
      fail_environment(label, ": is of version ", detail::shown(version.dump()), ", expected ", detail::kFitVersion);
    saved.design = detail::design_of(json.at("design"));
    saved.log_likelihood = json.at("log_likelihood").get<double>();
    saved.num_rows = detail::num_rows_of(label, json.at("num_rows"));
    saved.total_weight = json.value("total_weight", static_cast<double>(saved.num_rows));  // later than version 1
    if (!(saved.total_weight > 0)) fail_environment(label, ": total_weight is ", saved.total_weight, ", expected > 0");
    saved.variance_floor = json.value("variance_floor", 0.0);  // later than version 1
    if (!(saved.variance_floor >= 0))
      fail_environment(label, ": variance_floor is ", saved.variance_floor, ", expected >= 0");
    saved.converged = json.at("converged").get<bool>();
    is_free = json.at("free_last_slope").get<bool>();
  } catch (const nlohmann::json::exception& error) {
    fail_environment(label, ": metadata '", detail::kFitKey, "' is no fit: ", error.what());
  }
  try {
    saved.design.validate("moe::Design");
  } catch (const std::invalid_argument& error) {
    fail_environment(label, ": holds no design: ", error.what());
  }
  detail::require_report(saved.log_likelihood, saved.num_rows,
                         [&](const std::string& why) { fail_environment(label, ": ", why); });
  saved.model = load_gaussian_moe(path, gate, is_free ? LastSlope::Free : LastSlope::Zero);
  if (std::ssize(saved.design.columns) != saved.model.input_dim())
    fail_environment(label, ": the design has ", saved.design.columns.size(),
                     " columns, expected input_dim = ", saved.model.input_dim());
  saved.model.gate_inputs = saved.design.gate_inputs();
  saved.model.expert_inputs = saved.design.expert_inputs();
  saved.model.expert_intercept = saved.design.expert_intercept;
  try {
    saved.model.validate("moe::GaussianMoe");
  } catch (const std::invalid_argument& error) {
    fail_environment(label, ": holds no model of its design: ", error.what());
  }
  return saved;
}

}  // namespace moe::inline MOE_ABI
