// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "moe/io/adapter/peft_names.hpp"
#include "moe/io/file/json_fields.hpp"
#include "moe/io/file/json_text.hpp"
#include "moe/io/file/safetensors.hpp"
#include "moe/io/file/text_file.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// What adapter_config.json says, as far as it is about experts.
class PeftConfig {
 public:
  PeftConfig(const std::string& label, std::string_view text) : label_(label), json_(parse_json(label, text)) {
    const JsonFields fields(label_, json_);
    if (fields.text("peft_type") != "LORA") fields.refuse("peft_type", json_["peft_type"], "'LORA'");
    for (const char* name : {"use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"})
      if (fields.flag(name, false)) fields.refuse(name, json_[name], "false");
    fields.require("bias", "none");
    if (fields.has("modules_to_save") && !json_["modules_to_save"].empty())
      fields.refuse("modules_to_save", json_["modules_to_save"], "none");
    rank_ = require_rank(fields, "r");
    alpha_ = fields.number("lora_alpha");
    by_root_ = fields.flag("use_rslora", false);
    parameters_ = fields.texts("target_parameters");
    if (fields.has("rank_pattern"))
      for (const std::string& name : fields.part("rank_pattern").names())
        ranks_[name] = require_rank(fields.part("rank_pattern"), name);
    if (fields.has("alpha_pattern"))
      for (const std::string& name : fields.part("alpha_pattern").names())
        alphas_[name] = fields.part("alpha_pattern").number(name);
  }

  /// Names of modules alone are understood in patterns, not regular expressions. Throws for others.
  void require_patterns(const PeftOptions& options) const {
    const auto require = [&](const std::string& name) {
      bool may_match = name.find_first_of("*+?[({|\\^$") != name.npos || name.find("experts") != name.npos;
      for (const std::string* module : {&options.gate, &options.up, &options.down, &options.gate_up}) {
        if (name == *module) return;
        may_match |= matches_end(name, *module);
      }
      if (options.others == OtherModules::Refuse || may_match)
        fail_environment(label_, ": a pattern is ", in_quotes(name), ", expected the name of a module of experts");
    };
    for (const auto& [name, rank] : ranks_) require(name);
    for (const auto& [name, alpha] : alphas_) require(name);
  }

  Index rank(const std::string& module) const { return of(ranks_, module, rank_); }
  double scale(const std::string& module) const {
    const auto rank = static_cast<double>(this->rank(module));
    return require_scale(module, of(alphas_, module, alpha_) / (by_root_ ? std::sqrt(rank) : rank));
  }
  bool targets_parameter(const std::string& name) const {
    return std::ranges::any_of(parameters_,
                               [&](const std::string& each) { return each == name || each.ends_with("." + name); });
  }

 private:
  /// Whether a pattern matches a name that ends with a module, as PEFT does, "(.*\.)?pattern$": its dots stand for any
  /// character.
  static bool matches_end(std::string_view pattern, std::string_view module) {
    if (pattern.size() < module.size()) return false;
    const std::string_view end = pattern.substr(pattern.size() - module.size());
    return std::equal(end.begin(), end.end(), module.begin(), [](char p, char m) { return p == '.' || p == m; }) &&
           (pattern.size() == module.size() || pattern[pattern.size() - module.size() - 1] == '.');
  }

  template <class T>
  static T of(const std::map<std::string, T>& patterns, const std::string& module, T otherwise) {
    const auto found = patterns.find(module);
    return found == patterns.end() ? otherwise : found->second;
  }
  /// That of float, as which it is used.
  double require_scale(const std::string& module, double scale) const {
    if (!(std::abs(scale) <= static_cast<double>(std::numeric_limits<float>::max())))
      fail_environment(label_, ": lora_alpha of ", in_quotes(module), " is ", of(alphas_, module, alpha_),
                       " and makes a scale of ", scale, ", expected one that is a finite float");
    return scale;
  }
  static Index require_rank(const JsonFields& fields, const std::string& name) {
    const Index rank = fields.integer(name);
    if (rank < 1) fields.refuse(name, rank, "an integer of at least 1");
    return rank;
  }

  std::string label_;
  nlohmann::json json_;
  Index rank_ = 0;
  double alpha_ = 0;
  bool by_root_ = false;
  std::map<std::string, Index> ranks_;
  std::map<std::string, double> alphas_;
  std::vector<std::string> parameters_;
};

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
    for (const auto& [place, pair] : pairs_)
      if (pair.a.empty() || pair.b.empty())
        fail_environment(label_, ": tensor ", in_quotes(pair.a.empty() ? pair.b : pair.a), " has no counterpart");
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

  std::optional<Factors> factors(Index layer, Index expert, const std::string& module) const {
    const Names* names = find(layer, expert, module);
    if (!names) return {};
    const Index rank = config_.rank(module);
    return Factors{matrix(names->a, rank, 0), matrix(names->b, 0, rank)};
  }

  static LowRankUpdate<F32> update(const Factors& factors, double scale, PanelOrder order) {
    return {.a = PanelMatrix<F32>::from(factors.a.transpose()),
            .b = PanelMatrix<F32>::from(factors.b, order),
            .scale = scale};
  }

  LowRankUpdate<F32> read_down(Index layer, Index expert, const std::string& module) const {
    const auto found = factors(layer, expert, module);
    return found ? update(*found, config_.scale(module), PanelOrder::Plain) : LowRankUpdate<F32>();
  }

  /// B of gates and ups over one A: their common one, or both, each with zeros for the other.
  LowRankUpdate<F32> read_gate_up(Index layer, Index expert) const {
    const auto gate = factors(layer, expert, options_.gate), up = factors(layer, expert, options_.up);
    if (!gate && !up) return {};
    const auto& one = gate ? *gate : *up;
    const double scale = config_.scale(gate ? options_.gate : options_.up);
    if (gate && up && (gate->b.rows() != up->b.rows() || gate->a.cols() != up->a.cols()))
      fail_environment(label_, ": '", options_.gate, "' and '", options_.up, "' of expert ", expert, " of layer ",
                       layer, " differ in their sizes");
    if (gate && up && config_.scale(options_.up) != scale)
      fail_environment(label_, ": '", options_.gate, "' has scale ", scale, " and '", options_.up, "' ",
                       config_.scale(options_.up), ", expected one for both");
    const bool shares = !gate || !up || (gate->rank() == up->rank() && gate->a == up->a);
    const Index units = one.b.rows(), first = gate ? gate->rank() : 0;
    const Index rank = shares ? one.rank() : gate->rank() + up->rank();
    Factors both{Matrix<float>(rank, one.a.cols()), Matrix<float>::Zero(2 * units, rank)};
    both.a.topRows(one.rank()) = one.a;
    if (!shares) both.a.bottomRows(up->rank()) = up->a;
    if (gate) both.b.topLeftCorner(units, first) = gate->b;
    if (up) both.b.bottomRightCorner(units, up->rank()) = up->b;
    return update(both, scale, PanelOrder::Paired);
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
    const bool has_first = config_.targets_parameter(first), has_down = config_.targets_parameter(options_.down);
    if (has_first + has_down != (inner ? 2 : 1))
      fail_environment(label_, ": layer ", layer, " has ", inner ? 2 : 1, " adapted parameters, expected those of '",
                       first, "' and '", options_.down, "' that target_parameters names");
    const PanelOrder order = options_.kind == PeftExperts::Gated ? PanelOrder::Paired : PanelOrder::Plain;
    if (has_first) split(layer, inner ? *inner : *outer, first, order, 0, adapters);
    if (has_down) split(layer, *outer, options_.down, PanelOrder::Plain, 1, adapters);
  }

  /// Takes a pair of all experts apart.
  void split(Index layer, const Names& names, const std::string& module, PanelOrder order, std::size_t stage,
             Adapters& adapters) const {
    const Matrix<float> a = matrix(names.a, 0, 0), b = matrix(names.b, 0, a.rows());
    const Index rank = config_.rank(module), count = a.rows() / rank;
    if (count < 1 || count * rank != a.rows() || (!adapters.experts.empty() && std::ssize(adapters.experts) != count))
      fail_environment(label_, ": tensor ", in_quotes(names.a), " has ", a.rows(),
                       " rows, expected experts times r = ", rank, ", for as many experts in every tensor");
    const bool outputs_first = options_.fused_rows == FusedRows::Outputs;
    if (order == PanelOrder::Paired && (outputs_first ? a.cols() : b.rows()) % 2 != 0)
      fail_environment(label_, ": '", module, "' of layer ", layer, " has ", outputs_first ? a.cols() : b.rows(),
                       " outputs, expected gates and as many ups");
    adapters.experts.resize(static_cast<std::size_t>(count), std::vector<LowRankUpdate<F32>>(2));
    for (Index e = 0; e < count; ++e) {
      const Matrix<float> rows = a.middleRows(e * rank, rank);
      Matrix<float> columns(b.rows(), rank);
      for (Index j = 0; j < rank; ++j) columns.col(j) = b.col(j * count + e);
      const Factors one = outputs_first ? Factors{columns.transpose(), rows.transpose()} : Factors{rows, columns};
      adapters.experts[static_cast<std::size_t>(e)][stage] = update(one, config_.scale(module), order);
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
/// update. rank_pattern and alpha_pattern are understood for names of modules, use_rslora is alpha / sqrt(r). Throws
/// std::runtime_error that names file and tensor for what is missing, of other shapes or types, or more than low rank
/// (DoRA, biases, modules_to_save), for patterns that are regular expressions or may match experts otherwise, and for
/// tensors of other modules, unless those are to be ignored; std::invalid_argument for bad options. Allocates in
/// proportion to the files.
inline AdapterLayers load_peft_adapters(const std::filesystem::path& directory, const PeftOptions& options = {},
                                        FileAccess access = FileAccess::Map) {
  options.validate();
  constexpr std::uintmax_t kMostBytes = std::uintmax_t{1} << 20;
  const std::string label = "moe::load_peft_adapters: '" + directory.string() + "'";
  const std::string config_label = label + ": " + detail::kPeftConfig;
  const detail::TextFile text(config_label, directory / detail::kPeftConfig, kMostBytes);
  const detail::PeftConfig config(config_label, text.text());
  config.require_patterns(options);
  const SafetensorsReader file(directory / detail::kPeftTensors, access);
  return detail::PeftReader(label, config, file, options).layers();
}

}  // namespace moe::inline MOE_ABI
