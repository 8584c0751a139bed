// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>
#include <vector>

#include "moe/io/adapter/peft_names.hpp"
#include "moe/io/file/output_file.hpp"
#include "moe/io/file/safetensors.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// What goes into the files: tensors [rows, columns], and rank and alpha by the name of the matrix.
class PeftContents {
 public:
  explicit PeftContents(const PeftOptions& options) : options_(options) {}

  void add(Index layer, const Adapters& adapters) {
    for (std::size_t i = 0; i < adapters.stages.size(); ++i) {
      const std::string& stage = adapters.stages[i];
      if (stage != "gate_up" && stage != "up" && stage != "down")
        fail(kFunction, ": layer ", layer, " has a stage '", stage, "', expected those of Glu or Mlp");
      if (options_.layout == PeftLayout::Fused)
        add_fused(layer, adapters, i);
      else
        for (std::size_t e = 0; e < adapters.experts.size(); ++e)
          add_expert(peft_module(options_, layer) + "." + std::to_string(e) + ".", stage, adapters.experts[e].at(i));
    }
  }

  void write(const std::filesystem::path& path) const {
    SafetensorsHeader header{.metadata = {{"format", "pt"}}};
    for (const auto& [name, values] : tensors_)
      header.tensors.emplace(name, TensorInfo{.dtype = Dtype::F32, .shape = {values.rows(), values.cols()}});
    SafetensorsWriter writer(path, std::move(header));
    for (const auto& [name, values] : tensors_)
      writer.write(name, std::span<const float>(values.data(), static_cast<std::size_t>(values.size())));
    writer.commit();
  }

  /// The fields that PEFT needs; it has defaults for others.
  nlohmann::json config() const {
    nlohmann::json config = {{"peft_type", "LORA"},
                             {"task_type", "CAUSAL_LM"},
                             {"inference_mode", true},
                             {"lora_dropout", 0.0},
                             {"bias", "none"},
                             {"fan_in_fan_out", false},
                             {"use_rslora", false},
                             {"use_dora", false},
                             {"rank_pattern", nlohmann::json::object()},
                             {"alpha_pattern", nlohmann::json::object()}};
    config["base_model_name_or_path"] =
        options_.base_model.empty() ? nlohmann::json() : nlohmann::json(options_.base_model);
    nlohmann::json targets = nlohmann::json::array();
    const auto& [first, of_first] = *numbers_.begin();
    config["r"] = of_first.rank;
    config["lora_alpha"] = of_first.alpha();
    for (const auto& [name, number] : numbers_) {
      targets.push_back(options_.layout == PeftLayout::Fused ? fused_target(name) : name);
      if (number.rank != of_first.rank) config["rank_pattern"][name] = number.rank;
      if (number.alpha() != of_first.alpha()) config["alpha_pattern"][name] = number.alpha();
    }
    const bool fused = options_.layout == PeftLayout::Fused;
    config["target_modules"] = fused ? nlohmann::json::array() : targets;
    config["target_parameters"] = fused ? targets : nlohmann::json();
    return config;
  }
  bool empty() const { return numbers_.empty(); }

 private:
  static constexpr const char* kFunction = "moe::save_peft_adapters";
  struct Numbers {
    Index rank;
    double scale;
    /// A whole number where it is one, as PEFT has it.
    nlohmann::json alpha() const {
      const double value = scale * static_cast<double>(rank);
      return value == std::floor(value) && std::abs(value) < 1e15 ? nlohmann::json(static_cast<std::int64_t>(value))
                                                                  : nlohmann::json(value);
    }
  };

  /// "mlp.experts.down_proj", which PEFT matches at the end of names.
  std::string fused_target(const std::string& name) const {
    std::string module = options_.experts.substr(options_.experts.find("{}") + 2);
    while (module.starts_with('.')) module.erase(0, 1);
    return module + "." + name;
  }

  void note(const std::string& name, const LowRankUpdate<F32>& update) {
    const auto [found, is_new] = numbers_.emplace(name, Numbers{update.rank(), update.scale});
    if (!is_new && (found->second.rank != update.rank() || found->second.scale != update.scale))
      fail(kFunction, ": '", name, "' has rank ", update.rank(), " and scale ", update.scale, ", expected ",
           found->second.rank, " and ", found->second.scale, " as in another expert: PEFT has one of each per name");
  }

  void add_expert(const std::string& expert, const std::string& stage, const LowRankUpdate<F32>& update) {
    if (update.empty()) return;
    const Matrix<float> a = update.a.matrix().transpose(), b = update.b.matrix();
    const auto add = [&](const std::string& name, const auto& rows) {
      note(name, update);
      tensors_[std::string(kPeftPrefix) + expert + name + ".lora_A.weight"] = a;
      tensors_[std::string(kPeftPrefix) + expert + name + ".lora_B.weight"] = rows;
    };
    if (stage == "gate_up") {
      add(options_.gate, b.topRows(b.rows() / 2));
      add(options_.up, b.bottomRows(b.rows() / 2));
    } else {
      add(stage == "up" ? options_.up : options_.down, b);
    }
  }

  /// Experts without an update get one of zeros.
  void add_fused(Index layer, const Adapters& adapters, std::size_t i) {
    const auto has = [&](std::size_t stage) {
      return std::ranges::any_of(adapters.experts, [&](const auto& updates) { return !updates.at(stage).empty(); });
    };
    if (!has(i)) return;
    const auto count = std::ssize(adapters.experts);
    const std::string& stage = adapters.stages[i];
    const std::string name = stage == "gate_up" ? options_.gate_up : stage == "up" ? options_.up : options_.down;
    Matrix<float> a, b;
    for (Index e = 0; e < count; ++e) {
      const LowRankUpdate<F32>& update = adapters.experts[static_cast<std::size_t>(e)][i];
      if (update.empty()) continue;
      note(name, update);
      const bool outputs_first = options_.fused_rows == FusedRows::Outputs;
      const Matrix<float> rows = outputs_first ? update.b.matrix() : update.a.matrix();     // [.., rank]
      const Matrix<float> columns = outputs_first ? update.a.matrix() : update.b.matrix();  // [.., rank]
      const Index rank = update.rank();
      if (a.size() == 0) {
        a = Matrix<float>::Zero(count * rank, rows.rows());
        b = Matrix<float>::Zero(columns.rows(), count * rank);
      }
      if (a.cols() != rows.rows() || b.rows() != columns.rows())
        fail(kFunction, ": '", name, "' of expert ", e, " of layer ", layer, " has other sizes than that of expert 0");
      a.middleRows(e * rank, rank) = rows.transpose();
      for (Index j = 0; j < rank; ++j) b.col(j * count + e) = columns.col(j);
    }
    const bool is_inner = stage != "down" && i + 1 < adapters.stages.size() && has(i + 1);
    const std::string module =
        std::string(kPeftPrefix) + peft_module(options_, layer) + (is_inner ? ".base_layer" : "");
    tensors_[module + ".lora_A.weight"] = std::move(a);
    tensors_[module + ".lora_B.weight"] = std::move(b);
  }

  const PeftOptions& options_;
  std::map<std::string, Matrix<float>> tensors_;
  std::map<std::string, Numbers> numbers_;
};

}  // namespace detail

/// Writes adapters of experts as PEFT does, adapter_model.safetensors in F32 and then adapter_config.json, into a
/// directory, which is made where there is none; either file appears whole or not at all.
///   moe::save_peft_adapters("adapter", {{3, moe::adapters_of(layer)}}, {.base_model = "mistralai/Mixtral-8x7B-v0.1"});
/// The gate and the up projection of a Glu share their A, which is written for both. Layouts and names are those of
/// PeftOptions (moe/io/adapter/peft_names.hpp); a fused parameter of gates and ups has the gates first. Throws
/// std::invalid_argument for no update, stages that Glu and Mlp do not have, and experts whose ranks or scales differ
/// in one matrix; std::runtime_error if a file cannot be written. Takes the memory of the adapters once more.
inline void save_peft_adapters(const std::filesystem::path& directory, const AdapterLayers& layers,
                               const PeftOptions& options = {}) {
  options.validate();
  detail::PeftContents contents(options);
  for (const auto& [layer, adapters] : layers) {
    if (layer < 0) fail("moe::save_peft_adapters: layer is ", layer, ", expected at least 0");
    contents.add(layer, adapters);
  }
  if (contents.empty()) fail("moe::save_peft_adapters: the adapters have no update, expected at least one");
  const std::string label = "moe::save_peft_adapters: '" + directory.string() + "'";
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) fail_environment(label, ": cannot make the directory: ", error.message());
  contents.write(directory / detail::kPeftTensors);
  detail::OutputFile config(label + ": " + detail::kPeftConfig, directory / detail::kPeftConfig);
  config.write(contents.config().dump(2) + "\n");
  config.commit();
}

}  // namespace moe::inline MOE_ABI
