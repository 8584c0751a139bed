// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "moe/io/adapter/peft_config.hpp"
#include "moe/io/adapter/peft_names.hpp"
#include "moe/io/file/safetensors.hpp"
#include "moe/io/file/text_file.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// The pairs of tensors of a file, made into updates.
class PeftReader {
 public:
  PeftReader(std::string label, const PeftConfig& config, const SafetensorsReader& file, const PeftOptions& options)
      : label_(std::move(label)), config_(config), file_(file), options_(options) {
    for (const auto& [name, info] : file.tensors()) {
      const auto parsed = parse_peft_name(name, options);
      if (parsed)
        (parsed->is_a ? pairs_[parsed->place].a : pairs_[parsed->place].b) = name;
      else if (options.others == OtherModules::Refuse)
        fail_environment(label_, ": tensor ", in_quotes(name),
                         " is none of the experts (pass moe::OtherModules::Ignore)");
    }
    if (pairs_.empty()) fail_environment(label_, ": has no adapters of '", options.experts, "'");
    for (const auto& [place, pair] : pairs_) {
      if (pair.a.empty() || pair.b.empty())
        fail_environment(label_, ": tensor ", in_quotes(pair.a.empty() ? pair.b : pair.a), " has no counterpart");
      if (place.expert >= 0) config.require_target(name_of(place));
    }
  }

  AdapterLayers layers() const {
    AdapterLayers result;
    for (const auto& [place, pair] : pairs_) {
      if (result.contains(place.layer)) continue;
      Adapters& adapters = result[place.layer];
      adapters.stages = {options_.kind == PeftExperts::Gated ? "gate_up" : "up", "down"};
      if (place.expert < 0)
        read_fused(place.layer, adapters);
      else
        read_experts(place.layer, adapters);
    }
    return result;
  }

 private:
  struct Names {
    std::string a, b;
  };
  struct Factors {
    Matrix<float> a, b;  ///< [rank, inputs], [outputs, rank]
    double scale;
    Index rank() const { return a.rows(); }
  };

  /// A tensor [rows, columns], of which 0 may be any number above 0.
  Matrix<float> matrix(const std::string& name, Index rows, Index columns) const {
    const TensorInfo& info = file_.tensor(name);
    const auto fits = [&](std::size_t i, Index extent) {
      return info.shape[i] > 0 && (extent == 0 || info.shape[i] == extent);
    };
    if (info.shape.size() != 2 || !fits(0, rows) || !fits(1, columns))
      fail_environment(label_, ": tensor ", in_quotes(name), " has shape [", join(info.shape, ", "), "], expected [",
                       rows == 0 ? "any" : std::to_string(rows), ", ", columns == 0 ? "any" : std::to_string(columns),
                       "]");
    Matrix<float> values(info.shape[0], info.shape[1]);
    file_.read(name, std::span<float>(values.data(), static_cast<std::size_t>(values.size())));
    return values;
  }

  const Names* find(Index layer, Index expert, const std::string& module) const {
    const auto found = pairs_.find(PeftPlace{layer, expert, module});
    return found == pairs_.end() ? nullptr : &found->second;
  }

  /// The module or, of all experts, the parameter, as configurations name it.
  std::string name_of(const PeftPlace& place) const {
    const std::string expert = place.expert < 0 ? "" : "." + std::to_string(place.expert);
    return peft_module(options_, place.layer) + expert + "." + place.module;
  }

  std::optional<Factors> factors(Index layer, Index expert, const std::string& module) const {
    const Names* names = find(layer, expert, module);
    if (!names) return {};
    const auto [rank, scale] = config_.numbers(name_of({layer, expert, module}));
    return Factors{matrix(names->a, rank, 0), matrix(names->b, 0, rank), scale};
  }

  static LowRankUpdate<F32> update(const Factors& factors, PanelOrder order) {
    return {.a = PanelMatrix<F32>::from(factors.a.transpose()),
            .b = PanelMatrix<F32>::from(factors.b, order),
            .scale = factors.scale};
  }

  LowRankUpdate<F32> read_down(Index layer, Index expert, const std::string& module) const {
    const auto found = factors(layer, expert, module);
    return found ? update(*found, PanelOrder::Plain) : LowRankUpdate<F32>();
  }

  /// B of gates and ups over one A: their common one, or both, each with zeros for the other.
  LowRankUpdate<F32> read_gate_up(Index layer, Index expert) const {
    const auto gate = factors(layer, expert, options_.gate), up = factors(layer, expert, options_.up);
    if (!gate && !up) return {};
    const auto& one = gate ? *gate : *up;
    if (gate && up && (gate->b.rows() != up->b.rows() || gate->a.cols() != up->a.cols()))
      fail_environment(label_, ": '", options_.gate, "' and '", options_.up, "' of expert ", expert, " of layer ",
                       layer, " differ in their sizes");
    if (gate && up && up->scale != one.scale)
      fail_environment(label_, ": '", name_of({layer, expert, options_.gate}), "' has scale ", one.scale, " and '",
                       options_.up, "' ", up->scale, ", expected one for both");
    const bool shares = !gate || !up || (gate->rank() == up->rank() && gate->a == up->a);
    const Index units = one.b.rows(), first = gate ? gate->rank() : 0;
    const Index rank = shares ? one.rank() : gate->rank() + up->rank();
    Factors both{Matrix<float>(rank, one.a.cols()), Matrix<float>::Zero(2 * units, rank), one.scale};
    both.a.topRows(one.rank()) = one.a;
    if (!shares) both.a.bottomRows(up->rank()) = up->a;
    if (gate) both.b.topLeftCorner(units, first) = gate->b;
    if (up) both.b.bottomRightCorner(units, up->rank()) = up->b;
    return update(both, PanelOrder::Paired);
  }

  void read_experts(Index layer, Adapters& adapters) const {
    const std::vector<std::string> modules = {options_.gate, options_.up, options_.down};
    for (Index e = 0; std::ranges::any_of(modules, [&](const auto& module) { return find(layer, e, module); }); ++e) {
      if (options_.kind == PeftExperts::Plain && find(layer, e, options_.gate))
        fail_environment(label_, ": expert ", e, " of layer ", layer, " has '", options_.gate,
                         "', expected experts without a gate");
      adapters.experts.push_back(
          {options_.kind == PeftExperts::Gated ? read_gate_up(layer, e) : read_down(layer, e, options_.up),
           read_down(layer, e, options_.down)});
    }
    const auto next = pairs_.upper_bound(PeftPlace{layer, std::ssize(adapters.experts), ""});
    if (next != pairs_.end() && next->first.layer == layer)
      fail_environment(label_, ": layer ", layer, " has adapters of expert ", next->first.expert, " and none of ",
                       adapters.experts.size());
    if (find(layer, -1, "") || find(layer, -1, "base_layer"))
      fail_environment(label_, ": layer ", layer, " has adapters of single experts and of all");
  }

  void read_fused(Index layer, Adapters& adapters) const {
    const auto next = pairs_.lower_bound(PeftPlace{layer, 0, ""});
    if (next != pairs_.end() && next->first.layer == layer)
      fail_environment(label_, ": layer ", layer, " has adapters of single experts and of all");
    const std::string first = options_.kind == PeftExperts::Gated ? options_.gate_up : options_.up;
    const Names* outer = find(layer, -1, "");
    const Names* inner = find(layer, -1, "base_layer");
    if (!outer) fail_environment(label_, ": layer ", layer, " has adapters of base_layer alone");
    const bool has_first = config_.targets_parameter(name_of({layer, -1, first})),
               has_down = config_.targets_parameter(name_of({layer, -1, options_.down}));
    if (has_first + has_down != (inner ? 2 : 1))
      config_.refuse_parameters("to name " +
                                std::string(inner ? "'" + first + "' and " : "one of '" + first + "' and ") + "'" +
                                options_.down + "' of layer " + std::to_string(layer) + ", of which there are tensors");
    const PanelOrder order = options_.kind == PeftExperts::Gated ? PanelOrder::Paired : PanelOrder::Plain;
    if (has_first) split(layer, inner ? *inner : *outer, first, order, 0, adapters);
    if (has_down) split(layer, *outer, options_.down, PanelOrder::Plain, 1, adapters);
  }

  /// What the columns of lora_A are. The day of 0.19.0 they were what a model stores, or the other, as other packages
  /// had it.
  FusedColumns fused_columns() const {
    if (options_.fused_columns) return *options_.fused_columns;
    const auto version = config_.version();
    if (!version || *version < std::vector<Index>{0, 19, 1})
      fail_environment(
          label_, ": ", kPeftConfig, ": peft_version is ", config_.stated_version(),
          ", expected 0.19.1 or a later one, or PeftOptions::fused_columns, for parameters of all experts");
    return FusedColumns::Inputs;
  }

  /// Takes a pair of all experts apart.
  void split(Index layer, const Names& names, const std::string& module, PanelOrder order, std::size_t stage,
             Adapters& adapters) const {
    const std::string whole = name_of({layer, -1, module});
    const Matrix<float> a = matrix(names.a, 0, 0), b = matrix(names.b, 0, a.rows());
    const auto [rank, scale] = config_.numbers(whole);
    const Index count = a.rows() / rank;
    if (count < 1 || count * rank != a.rows() || (!adapters.experts.empty() && std::ssize(adapters.experts) != count))
      fail_environment(label_, ": tensor ", in_quotes(names.a), " has ", a.rows(),
                       " rows, expected experts times r = ", rank, ", for as many experts in every tensor");
    const bool inputs_first = fused_columns() == FusedColumns::Inputs;
    const Index outputs = inputs_first ? b.rows() : a.cols();
    if (order == PanelOrder::Paired && outputs % 2 != 0)
      fail_environment(label_, ": '", module, "' of layer ", layer, " has ", outputs,
                       " outputs, expected gates and as many ups");
    adapters.experts.resize(static_cast<std::size_t>(count), std::vector<LowRankUpdate<F32>>(2));
    for (Index e = 0; e < count; ++e) {
      const Matrix<float> rows = a.middleRows(e * rank, rank);
      Matrix<float> columns(b.rows(), rank);
      for (Index j = 0; j < rank; ++j) columns.col(j) = b.col(j * count + e);
      Factors one =
          inputs_first ? Factors{rows, columns, scale} : Factors{columns.transpose(), rows.transpose(), scale};
      if (order == PanelOrder::Paired && options_.gate_up_order == GateUpOrder::InTurns) one.b = gates_first(one.b);
      adapters.experts[static_cast<std::size_t>(e)][stage] = update(one, order);
    }
  }

  std::string label_;
  const PeftConfig& config_;
  const SafetensorsReader& file_;
  const PeftOptions& options_;
  std::map<PeftPlace, Names> pairs_;
};

}  // namespace detail

/// Reads adapters of experts from a directory of PEFT, by the number of the layer, in either layout:
///   auto adapted = moe::with_adapters(layer, {}, 1);
///   moe::set_adapters(adapted, moe::load_peft_adapters("adapter").at(3));
/// Values may be F32, F16 or BF16, as stored. A gate and an up projection of one A make an update of their rank, of
/// different ones one of both ranks together, B being zero where they do not meet; a matrix that is no target has no
/// update. Keys of rank_pattern and alpha_pattern are regular expressions of the end of a module's name, of which the
/// first that matches counts; target_modules, exclude_modules, layers_to_transform (with layers_pattern) and
/// target_parameters have to name what there are tensors of, as PEFT leaves out what they do not; use_rslora is
/// alpha / sqrt(r).
/// Throws std::runtime_error that names file, and tensor or key and value, for what is missing, of other shapes or
/// types, or more than low rank (DoRA, biases, modules_to_save, a start that changes the model's weights), for patterns
/// with counts, references or assertions, and for tensors of other modules, unless those are to be ignored;
/// std::invalid_argument for bad options. Allocates in proportion to the files.
inline AdapterLayers load_peft_adapters(const std::filesystem::path& directory, const PeftOptions& options = {},
                                        FileAccess access = FileAccess::Map) {
  options.validate();
  constexpr std::uintmax_t kMostBytes = std::uintmax_t{1} << 20;
  const std::string label = "moe::load_peft_adapters: '" + directory.string() + "'";
  const std::string config_label = label + ": " + detail::kPeftConfig;
  const detail::TextFile text(config_label, directory / detail::kPeftConfig, kMostBytes);
  const detail::PeftConfig config(config_label, text.text());
  const SafetensorsReader file(directory / detail::kPeftTensors, access);
  return detail::PeftReader(label, config, file, options).layers();
}

}  // namespace moe::inline MOE_ABI
