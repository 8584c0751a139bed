// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
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
  PeftContents(const PeftOptions& options, const AdapterLayers& layers) : options_(options) {
    for (const auto& [layer, adapters] : layers) {
      require_stages(layer, adapters, layers.begin()->second);
      note(adapters);
    }
    for (const auto& [layer, adapters] : layers)
      for (std::size_t i = 0; i < adapters.stages.size(); ++i)
        if (const auto size = size_of(adapters, i)) add(layer, adapters, i, *size);
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
    config["peft_version"] = fused && !has_outputs_first() ? "0.19.1" : "0.18.0";
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

  bool has_outputs_first() const { return options_.fused_columns == FusedColumns::Outputs; }

  /// "mlp.experts.down_proj", which PEFT matches at the end of names.
  std::string fused_target(const std::string& name) const {
    std::string module = options_.experts.substr(options_.experts.find("{}") + 2);
    while (module.starts_with('.')) module.erase(0, 1);
    return module + "." + name;
  }

  static void require_stages(Index layer, const Adapters& adapters, const Adapters& first) {
    std::string names;
    for (const std::string& stage : adapters.stages) names += (names.empty() ? "'" : ", '") + stage + "'";
    if (names != "'gate_up', 'down'" && names != "'up', 'down'")
      fail(kFunction, ": layer ", layer, " has stages ", names,
           ", expected those of Glu or Mlp, 'gate_up' or 'up', and 'down'");
    if (adapters.stages != first.stages)
      fail(kFunction, ": layer ", layer, " has a stage '", adapters.stages[0], "', expected '", first.stages[0],
           "' as in the first layer");
    for (const auto& updates : adapters.experts)
      if (updates.size() != adapters.stages.size())
        fail(kFunction, ": an expert of layer ", layer, " has ", updates.size(), " updates, expected ",
             adapters.stages.size(), ", one for each stage");
  }

  /// Names of the matrices that a stage is written as.
  std::vector<std::string> names_of(const std::string& stage) const {
    if (stage != "gate_up") return {stage == "up" ? options_.up : options_.down};
    if (options_.layout == PeftLayout::Fused) return {options_.gate_up};
    return {options_.gate, options_.up};
  }

  struct Size {
    Index inputs, outputs;
  };
  static std::optional<Size> first_size(const Adapters& adapters, std::size_t i) {
    for (const auto& updates : adapters.experts)
      if (!updates[i].empty()) return Size{updates[i].a.outputs(), updates[i].b.outputs()};
    return {};
  }

  /// Collects what holds for all layers.
  void note(const Adapters& adapters) {
    for (std::size_t i = 0; i < adapters.stages.size(); ++i) {
      for (const auto& updates : adapters.experts)
        if (!updates[i].empty())
          for (const std::string& name : names_of(adapters.stages[i])) note(name, updates[i]);
      if (const auto size = first_size(adapters, i)) sizes_.emplace(adapters.stages[i], *size);
    }
  }
  void note(const std::string& name, const LowRankUpdate<F32>& update) {
    if (!is_scale<float>(update.scale) || update.b.inputs() != update.rank())
      fail(kFunction, ": '", name, "' has scale ", update.scale, ", an A of rank ", update.rank(), " and a B of ",
           update.b.inputs(), ", expected a finite float and one rank");
    const auto [found, is_new] = numbers_.emplace(name, Numbers{update.rank(), update.scale});
    if (!is_new && (found->second.rank != update.rank() || found->second.scale != update.scale))
      fail(kFunction, ": '", name, "' has rank ", update.rank(), " and scale ", update.scale, ", expected ",
           found->second.rank, " and ", found->second.scale, " as in another expert: PEFT has one of each per name");
  }

  /// Of a stage that is to be written: one that an expert of the layer adapts or, fused, one of another layer, as the
  /// parameters that target_parameters names are those of all layers. That layer may have other hidden units.
  std::optional<Size> size_of(const Adapters& adapters, std::size_t i) const {
    if (const auto size = first_size(adapters, i)) return size;
    const auto elsewhere = sizes_.find(adapters.stages[i]);
    const auto other = first_size(adapters, 1 - i);
    if (options_.layout != PeftLayout::Fused || elsewhere == sizes_.end() || !other) return {};
    const Index factor = adapters.stages[0] == "gate_up" ? 2 : 1;
    return i == 0 ? Size{elsewhere->second.inputs, factor * other->inputs}
                  : Size{other->outputs / factor, elsewhere->second.outputs};
  }

  /// Experts without an update get one of zeros.
  void add(Index layer, const Adapters& adapters, std::size_t i, Size size) {
    const std::string module = std::string(kPeftPrefix) + peft_module(options_, layer);
    const std::vector<std::string> names = names_of(adapters.stages[i]);
    const Index rank = numbers_.at(names.front()).rank, count = std::ssize(adapters.experts);
    const bool is_fused = options_.layout == PeftLayout::Fused, outputs_first = has_outputs_first();
    Matrix<float> all_a, all_b;
    if (is_fused) all_a = Matrix<float>::Zero(count * rank, outputs_first ? size.outputs : size.inputs);
    if (is_fused) all_b = Matrix<float>::Zero(outputs_first ? size.inputs : size.outputs, count * rank);
    for (Index e = 0; e < count; ++e) {
      const LowRankUpdate<F32>& update = adapters.experts[static_cast<std::size_t>(e)][i];
      Matrix<float> a = Matrix<float>::Zero(size.inputs, rank), b = Matrix<float>::Zero(size.outputs, rank);
      if (!update.empty()) a = update.a.matrix(), b = update.b.matrix();
      if (a.rows() != size.inputs || b.rows() != size.outputs)
        fail(kFunction, ": '", names.front(), "' of expert ", e, " of layer ", layer,
             " has other sizes than that of an expert before");
      if (!is_fused) {
        add_expert(module + "." + std::to_string(e) + ".", names, a, b);
        continue;
      }
      if (names.front() == options_.gate_up && options_.gate_up_order == GateUpOrder::InTurns) b = gates_in_turns(b);
      if (outputs_first) std::swap(a, b);
      all_a.middleRows(e * rank, rank) = a.transpose();
      for (Index j = 0; j < rank; ++j) all_b.col(j * count + e) = b.col(j);
    }
    if (!is_fused) return;
    const std::string wrapper = module + (i == 0 && size_of(adapters, 1) ? ".base_layer" : "");
    tensors_[wrapper + ".lora_A.weight"] = std::move(all_a);
    tensors_[wrapper + ".lora_B.weight"] = std::move(all_b);
  }

  /// The matrices of a stage share A, and have one after the other of the rows of B.
  void add_expert(const std::string& expert, const std::vector<std::string>& names, const Matrix<float>& a,
                  const Matrix<float>& b) {
    const Index rows = b.rows() / std::ssize(names);
    for (std::size_t n = 0; n < names.size(); ++n) {
      tensors_[expert + names[n] + ".lora_A.weight"] = a.transpose();
      tensors_[expert + names[n] + ".lora_B.weight"] = b.middleRows(static_cast<Index>(n) * rows, rows);
    }
  }

  const PeftOptions& options_;
  std::map<std::string, Matrix<float>> tensors_;
  std::map<std::string, Numbers> numbers_;  // by the name of the matrix
  std::map<std::string, Size> sizes_;       // by the stage, of the first layer that adapts it
};

}  // namespace detail

/// Writes adapters of experts as PEFT does, adapter_model.safetensors in F32 and then adapter_config.json, into a
/// directory, which is made where there is none; either file appears whole or not at all.
///   moe::save_peft_adapters("adapter", {{3, moe::adapters_of(layer)}}, {.base_model = "mistralai/Mixtral-8x7B-v0.1"});
/// The gate and the up projection of a Glu share their A, which is written for both. Layouts and names are those of
/// PeftOptions (moe/io/adapter/peft_names.hpp); peft_version is that whose layout it is. What one expert of a layer
/// adapts and another does not, is written as zeros for the latter and read as an update of zeros; fused, also what one
/// layer adapts and another does not, as target_parameters holds for all. A layer without any update is not written.
/// Throws std::invalid_argument for no update at all, stages other than those of Glu or Mlp, the same in all layers,
/// experts of a layer whose sizes differ, and ranks or scales that differ in one matrix; std::runtime_error if a file
/// cannot be written. Takes the memory of the adapters once more.
inline void save_peft_adapters(const std::filesystem::path& directory, const AdapterLayers& layers,
                               const PeftOptions& options = {}) {
  options.validate();
  if (!layers.empty() && layers.begin()->first < 0)
    fail("moe::save_peft_adapters: layer is ", layers.begin()->first, ", expected at least 0");
  const detail::PeftContents contents(options, layers);
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
