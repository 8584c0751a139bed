// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/io/block/quantise_block.hpp"
#include "moe/io/block/write_block.hpp"
#include "moe/io/checkpoint/decode_weights.hpp"
#include "moe/io/checkpoint/rewrite_checkpoint.hpp"
#include "moe/io/checkpoint/write_compressed.hpp"
#include "moe/io/checkpoint/write_fp4.hpp"
#include "moe/io/checkpoint/write_fp8.hpp"
#include "moe/io/families/model_config.hpp"
#include "moe/io/families/moe_layers.hpp"

namespace moe::inline MOE_ABI {

/// The layout in which other programs read this format of experts of a family: integers as packed integers, fp8-g0
/// per output, fp8-g128 in blocks of 128 x 128, mxfp4 in blocks (GPT-OSS) or packed. Throws std::invalid_argument for
/// other formats.
inline std::unique_ptr<const WeightWriter> weight_writer(const WeightFormat& format, std::string_view family = {}) {
  if (format.code == WeightCode::Int4 || format.code == WeightCode::Int8)
    return std::make_unique<PackedIntsWriter>(format);
  if (format == WeightFormat::fp8()) return std::make_unique<Fp8BlocksWriter>();
  if (format.code == WeightCode::E4M3 && format.group == 0) return std::make_unique<Fp8OutputsWriter>(format);
  if (format == WeightFormat::mxfp4()) {
    if (family == "gpt_oss") return std::make_unique<MxBlocksWriter>();
    return std::make_unique<MxPackedWriter>();
  }
  fail("moe::weight_writer: format is ", format.name(), ", expected int1 to int8, fp8, fp8-g0 or mxfp4");
}

/// Adds the formats of the experts of a block under the names that quantise_checkpoint() writes: for MixedIntsWriter.
///   std::map<std::string, moe::WeightFormat> formats;
///   moe::add_formats(checkpoint, config, {.layer = 3}, plan.integers(64), formats);  // plan: a BitPlan
/// `format` is a WeightFormat or a function of ExpertMatrix, as for quantise(); that of the shared expert is
/// kSharedExpert. Throws as find_block(), and std::invalid_argument for a family whose experts are not written one by
/// one.
template <detail::FormatChoice Format>
void add_formats(const Checkpoint& checkpoint, const MoeConfig& config, const LoadOptions& options,
                 const Format& format, std::map<std::string, WeightFormat>& formats) {
  const BlockLocation to =
      detail::written_location(config, find_block(checkpoint, config, options), options.layer, PackedIntsWriter());
  const bool has_gates = is_gated(config.expert);
  const auto add = [&](std::string_view pattern, Index expert, const char* matrix) {
    if (!pattern.empty())
      formats[to.prefix + numbered_name(pattern, expert)] = detail::format_for(format, ExpertMatrix{expert, matrix});
  };
  for (Index e = 0; e < config.num_experts; ++e) {
    add(to.format.gate, e, "gate_up.weight");
    add(to.format.up, e, has_gates ? "gate_up.weight" : "up.weight");
    add(to.format.down, e, "down.weight");
  }
  if (config.shared_dim == 0) return;
  add(to.format.shared_gate, kSharedExpert, "gate_up.weight");
  add(to.format.shared_up, kSharedExpert, has_gates ? "gate_up.weight" : "up.weight");
  add(to.format.shared_down, kSharedExpert, "down.weight");
}

/// What to do with a source that has weights in few bits already.
enum class CodedSource {
  Refuse,
  Decode,  ///< its experts are rounded again, its other weights become BF16
};

/// A block that quantise_checkpoint() has written.
struct QuantisedLayer {
  Index layer = 0;
  std::string prefix = {};  ///< of its tensors in the source
  std::uint64_t bytes_before = 0, bytes_after = 0;
  WeightError error = {};  ///< of experts, shared ones included where they are rounded; of Awq, which scales hidden
                           ///< units inside, those scales count, too
  double seconds = 0;      ///< to read, round and write
};

/// Makes the block of a layer in few bits, whose matrices are in the format of `writer`. `options` say where it is.
using BlockQuantiser = std::function<QuantisedMoeBlock(const Checkpoint& checkpoint, const MoeConfig& config,
                                                       const LoadOptions& options, const WeightWriter& writer)>;

struct QuantiseOptions {
  std::vector<Index> layers = {};  ///< numbers; none: all MoE layers
  /// None: to nearest, matrix by matrix, without the floats of a layer; needed by writers of several formats.
  BlockQuantiser quantiser = {};
  SharedExperts shared = SharedExperts::Quantise;
  CodedSource source = CodedSource::Refuse;
  RewriteOptions files = {};
  std::function<void(const QuantisedLayer&)> report = {};  ///< called after each layer, in their order
};

/// What quantise_checkpoint() has done.
struct QuantisedCheckpoint {
  std::vector<QuantisedLayer> layers = {};
  RewrittenCheckpoint files = {};
};

namespace detail {

/// The modules of a model whose weights are plain once groups have replaced theirs. Experts by the module that holds
/// them.
inline PlainModules plain_modules(const Checkpoint& checkpoint, const std::vector<TensorGroup>& groups) {
  std::set<std::string> replaced, modules{"lm_head"};  // one also where its weights are those of the embedding
  std::set<std::string> parents;
  const auto consider = [&](const std::string& name, std::size_t rank) {
    constexpr std::string_view kWeight = ".weight", kExperts = ".experts.";
    const bool is_weight = name.ends_with(kWeight);
    if (rank < 2 || (rank < 3 && !is_weight)) return;  // a bias, also one of many experts
    if (const std::size_t experts = name.find(kExperts); experts != name.npos)
      parents.insert(name.substr(0, experts + kExperts.size() - 1));
    else
      modules.insert(name.substr(0, is_weight ? name.size() - kWeight.size() : std::min(name.rfind('.'), name.size())));
  };
  for (const TensorGroup& group : groups) {
    replaced.insert(group.replaced.begin(), group.replaced.end());
    for (const auto& [name, info] : group.tensors) {
      const bool is_plain = is_floating(info.dtype) && dtype_size(info.dtype) > 1;
      if (is_plain && name.find("_scale") == name.npos) consider(name, info.shape.size());
    }
  }
  for (const std::string& name : checkpoint.names())
    if (!replaced.contains(name)) consider(name, checkpoint.at(name).shape.size());
  return {{modules.begin(), modules.end()}, {parents.begin(), parents.end()}};
}

/// Fields in which a config.json speaks of weights in few bits.
inline void remove_statements(nlohmann::ordered_json& config) {
  for (const char* field : {"quantization_config", "compression_config", "quantization"}) config.erase(field);
  if (config.contains("text_config") && config["text_config"].is_object()) remove_statements(config["text_config"]);
}

/// Files beside it that do, of modelopt, AutoGPTQ and AutoAWQ.
inline const std::set<std::string>& statement_files() {
  static const std::set<std::string> names{"hf_quant_config.json", "quantize_config.json", "quant_config.json"};
  return names;
}

/// quantise_checkpoint() in its steps. One per thread.
template <class = WhenUsed>
class CheckpointQuantiser {
 public:
  CheckpointQuantiser(const std::filesystem::path& from, const WeightWriter& writer, const QuantiseOptions& options)
      : checkpoint_(Checkpoint::open(from)), writer_(writer), options_(options), config_file_(from / "config.json") {
    family_ = find_family(read_moe_family(config_file_));
    for (const BlockPlace& block : chosen_blocks("moe::quantise_checkpoint", checkpoint_, *family_, options_.layers))
      plan(block.layer, block.prefix);
    decode_others();
    const PlainModules plain = plain_modules(checkpoint_, edit_.groups);
    edit_.without = statement_files();
    edit_.config = [plain, this](nlohmann::ordered_json& config) {
      remove_statements(config);
      config["quantization_config"] = writer_.statement(plain);
    };
  }

  QuantisedCheckpoint run(const std::filesystem::path& to) {
    result_.files = rewrite_checkpoint(checkpoint_, to, edit_, options_.files);
    return std::move(result_);
  }

 private:
  void plan(Index layer, const std::string& prefix) {
    const auto config = std::make_shared<const MoeConfig>(read_moe_config(config_file_, layer));
    const LoadOptions load{.layer = layer, .prefix = prefix};
    const auto block = std::make_shared<const BlockWriter>(checkpoint_, *config, load, writer_, options_.shared);
    stated_ = config->quantisation;
    const std::size_t place = result_.layers.size();
    result_.layers.push_back(
        {.layer = layer, .prefix = prefix, .bytes_before = block->bytes_before(), .bytes_after = block->bytes_after()});
    TensorGroup& group = edit_.groups.emplace_back(block->group());
    group.write = [this, config, load, block, place](TensorSink& to) {
      const auto begin = std::chrono::steady_clock::now();
      QuantisedLayer& written = result_.layers[place];
      written.error = block->write(quantised(*config, load), to);
      written.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      if (options_.report) options_.report(written);
    };
  }

  QuantisedMoeBlock quantised(const MoeConfig& config, LoadOptions load) const {
    if (options_.quantiser) return options_.quantiser(checkpoint_, config, load, writer_);
    if (!writer_.is_uniform())
      fail("moe::quantise_checkpoint: ", writer_.name(),
           " without options.quantiser, expected one that knows which "
           "matrix gets which format");
    load.format = writer_.format();
    return load_quantised_block(checkpoint_, config, load, [&](const PanelMatrix<F32>& weights, const WeightFormat&) {
      return writer_.round(weights);
    });
  }

  /// Other weights in few bits become floats, if there are any and that is asked for.
  void decode_others() {
    std::vector<WeightSource> coded = coded_weights(
        checkpoint_, [&](const std::string& name) -> const StatedStorage& { return stated_.storage_of(name); });
    if (options_.source == CodedSource::Refuse && (!coded.empty() || stated_.method != QuantMethod::Unstated))
      fail("moe::quantise_checkpoint: '", checkpoint_.path().string(), "' has weights in few bits already (",
           stated_.method != QuantMethod::Unstated
               ? "its configuration says " + std::string(method_text(stated_.method))
               : coded.front().name() + " is " + coded.front().format(),
           "), expected a source of floats, or CodedSource::Decode");
    std::set<std::string> replaced;
    for (const TensorGroup& group : edit_.groups) replaced.insert(group.replaced.begin(), group.replaced.end());
    std::erase_if(coded, [&](const WeightSource& weight) { return replaced.contains(weight.stored_names().front()); });
    for (const WeightSource& weight : coded)
      if (weight.shape().size() > 2 && family_->name == "gpt_oss")
        fail("moe::quantise_checkpoint: weight ", in_quotes(weight.name()),
             " stays, and is stored in another order than as floats, expected all layers to be quantised");
    if (!coded.empty()) edit_.groups.push_back(decoded_weights(std::move(coded)));
  }

  Checkpoint checkpoint_;
  const WeightWriter& writer_;
  const QuantiseOptions& options_;
  std::filesystem::path config_file_;
  const Family* family_ = nullptr;
  Quantisation stated_;
  CheckpointEdit edit_;
  QuantisedCheckpoint result_;
};

}  // namespace detail

/// Writes the directory of a model anew with the experts of its MoE layers in few bits, in a layout that other programs
/// read: config.json says so (quantization_config), and lists all modules that stay as they are.
///   const auto writer = moe::weight_writer(moe::WeightFormat::int4(128, moe::ScaleType::Bf16));
///   moe::quantise_checkpoint("OLMoE-1B-7B-0924", "OLMoE-int4", *writer);
/// load_quantised_block() reads the codes and scales that options.quantiser has made, bit for bit. Routers, gates,
/// biases and all that is no MoE layer keep their bytes. Experts that are stacked in one tensor are written one by one
/// under the names in which their family is published, where it is; GPT-OSS stays stacked.
/// A directory appears whole or not at all; see rewrite_checkpoint() for other files, and for what is refused.
/// Throws std::invalid_argument for a layer without an MoE block, a family or shape that the layout does not have, and
/// a source with weights in few bits unless options.source says Decode; std::runtime_error as load_moe_block() and
/// rewrite_checkpoint(). Memory: one layer in few bits, and a matrix of floats per worker twice, or what
/// options.quantiser takes.
template <class = detail::WhenUsed>
QuantisedCheckpoint quantise_checkpoint(const std::filesystem::path& from, const std::filesystem::path& to,
                                        const WeightWriter& writer, const QuantiseOptions& options = {}) {
  return detail::CheckpointQuantiser<>(from, writer, options).run(to);
}

}  // namespace moe::inline MOE_ABI
