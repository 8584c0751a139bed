// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/io/block/quantise_checkpoint.hpp"
#include "moe/io/block/save_tensors.hpp"
#include "moe/io/families/write_config.hpp"

// Long, as a block alone, a block in its model and many blocks are written by one class.
namespace moe::inline MOE_ABI {

/// What becomes of the tensors of a model that are not of the blocks that are saved.
enum class OtherTensors {
  Copy,   ///< the whole model is written
  Leave,  ///< the blocks alone are
};

/// How a block is saved.
struct SaveOptions {
  std::filesystem::path like = {};  ///< directory of the model it comes from; none: the block alone is written
  Index layer = 0;                  ///< number of the layer in the names
  std::string prefix = {};          ///< of the block's tensors, instead of that of the family, as in LoadOptions
  /// F32, BF16, F16 or F64; none: of each tensor of `like` (BF16 where that is in few bits), or F32
  std::optional<Dtype> dtype = {};
  std::optional<FamilyFormat> format = {};  ///< without `like`: one of its family's formats; none: the first
  OtherTensors others = OtherTensors::Copy;
  CodedSource source = CodedSource::Refuse;  ///< what becomes of other tensors in few bits, if there are any
  RewriteOptions files = {};
};

/// A block that is made when it is its turn to be written.
struct BlockToSave {
  Index layer = 0;
  std::string prefix = {};              ///< as in SaveOptions
  MoeConfig config = {};                ///< of the block: see the configuration of QuantisedMoeBlock(config).take()
  std::function<MoeBlock()> make = {};  ///< called once
};

namespace detail {

/// A block on its way to a directory.
struct SavedBlock {
  Index layer = 0;
  std::string prefix = {};
  MoeConfig config = {};
  std::function<void(const std::function<void(const MoeBlock&)>&)> use = {};  ///< calls what it is given with the block
  BlockLocation location = {};
  TensorSink::Tensors tensors = {};
};

/// save_moe_blocks() in its steps. One per thread.
class BlockSaver {
 public:
  BlockSaver(const char* function, std::vector<SavedBlock> blocks, const SaveOptions& options)
      : function_(function), blocks_(std::move(blocks)), options_(options) {
    if (blocks_.empty()) fail(function_, ": no block, expected at least one");
    family_ = find_family(blocks_.front().config.family);
    if (!family_) fail(function_, ": family '", blocks_.front().config.family, "' is not known");
    for (const SavedBlock& block : blocks_) {
      block.config.validate();
      if (!block.use) fail(function_, ": nothing makes the block of layer ", block.layer);
      if (block.layer < 0) fail(function_, ": layer is ", block.layer, ", expected at least 0");
      if (block.config.family != family_->name)
        fail(function_, ": blocks of families '", family_->name, "' and '", block.config.family, "', expected one");
      written_.push_back({block.layer, block.config});
    }
    if (options_.dtype && !is_plain(*options_.dtype))
      fail(function_, ": dtype is ", dtype_name(*options_.dtype), ", expected F32, BF16, F16 or F64");
  }

  RewrittenCheckpoint run(const std::filesystem::path& to) {
    return options_.like.empty() ? save_alone(to) : save_like(to);
  }

 private:
  static bool is_plain(Dtype dtype) { return is_floating(dtype) && dtype_size(dtype) > 1; }
  std::string label(const std::filesystem::path& to) const {
    return std::string(function_) + ": '" + to.string() + "'";
  }

  /// The tensors of a block, each of the type that `type_of` says. Places are one per block.
  template <class F>
  void place(SavedBlock& block, BlockLocation location, const F& type_of) {
    if (!prefixes_.insert(location.prefix).second)
      fail(function_, ": two blocks at ", in_quotes(location.prefix), ", expected one");
    block.location = std::move(location);
    QuantisedMoeBlock names(block.config);  // takes no memory for weights
    for (const BoundTensor& tensor : bind_weights(names, block.location))
      block.tensors.emplace(tensor.name, TensorInfo{.dtype = type_of(tensor), .shape = tensor.shape});
  }

  void write(const SavedBlock& block, const PutBytes& put) const {
    block.use([&](const MoeBlock& made) {
      const std::string other = ConfigFacts(stated_config(made)).difference(ConfigFacts(block.config), "expected");
      if (!other.empty()) fail(function_, ": the block of layer ", block.layer, " has ", other);
      write_tensors(function_, made, block.location, block.tensors, put);
    });
  }

  const FamilyFormat& first_format(const MoeConfig& config) const {
    for (const FamilyFormat& format : family_->formats)
      if (format.gate.empty() != is_gated(config.expert)) return format;
    fail(function_, ": family '", family_->name, "' has no format for such experts");
  }

  /// A directory of nothing but the blocks.
  RewrittenCheckpoint save_alone(const std::filesystem::path& to) {
    const Dtype dtype = options_.dtype.value_or(Dtype::F32);
    for (SavedBlock& block : blocks_) {
      const FamilyFormat format = options_.format ? *options_.format : first_format(block.config);
      if (format.gate.empty() == is_gated(block.config.expert))
        fail(function_, ": format ", format.gate.empty() ? "without" : "with", " gates, expected one for the experts");
      const std::string prefix = block.prefix.empty() ? numbered_name(format.prefix, block.layer) : block.prefix;
      place(block, {format, prefix}, [&](const BoundTensor& tensor) { return tensor.numbers ? Dtype::F32 : dtype; });
    }
    nlohmann::ordered_json json = new_config(*family_, blocks_.front().location.format.prefix, dtype);
    write_config(function_, *family_, written_, {}, json);

    OutputDirectory directory(label(to), to);
    SafetensorsHeader header{.metadata = {{"format", "pt"}}};
    RewrittenCheckpoint result{.files = {"config.json", "model.safetensors"}};
    for (const SavedBlock& block : blocks_)
      for (const auto& [name, info] : block.tensors) {
        if (!header.tensors.emplace(name, info).second) fail(function_, ": two tensors ", in_quotes(name));
        result.total_size += announced_bytes(name, info);
      }
    SafetensorsWriter file(directory.path() / "model.safetensors", std::move(header));
    ProgressMeter meter(options_.files.progress, result.total_size);
    std::mutex mutex;
    for (const SavedBlock& block : blocks_)
      write(block, [&](std::string_view name, std::uint64_t first, std::span<const std::byte> bytes) {
        const std::lock_guard lock(mutex);
        file.write_part(name, first, bytes);
        meter.add(bytes.size());
      });
    file.commit();
    OutputFile config(label(to) + ": config.json", directory.path() / "config.json");
    config.write(json.dump(2) + "\n");
    config.commit();
    directory.commit();
    return result;
  }

  /// The directory of a model with the blocks in it.
  RewrittenCheckpoint save_like(const std::filesystem::path& to) {
    if (options_.format) fail(function_, ": a format and a model to be like, which has one, expected one of the two");
    const Checkpoint checkpoint = Checkpoint::open(options_.like);
    const std::string source = label(options_.like / "config.json");
    const nlohmann::json json = read_json(source, options_.like / "config.json");
    const Family& family = family_of(JsonFields(source, json));
    if (&family != family_)
      fail(function_, ": '", options_.like.string(), "' is of family '", family.name, "', expected '", family_->name,
           "' as the block");
    CheckpointEdit edit;
    bool has_codes = false;
    Quantisation stated;
    for (SavedBlock& block : blocks_) {
      const MoeConfig before = parse_moe_config(source, json, block.layer);
      stated = before.quantisation;
      require_widths(block, before);
      TensorGroup& group = edit.groups.emplace_back();
      has_codes |= replace(checkpoint, before, block, group);
      group.tensors = block.tensors;
      group.write = [this, &block](TensorSink& sink) {
        write(block, [&](std::string_view name, std::uint64_t first, std::span<const std::byte> bytes) {
          sink.write(name, first, bytes);
        });
      };
    }
    std::vector<LayerConfig> others;
    if (options_.others == OtherTensors::Copy)
      for (const Index layer : moe_layers(checkpoint, family.name))
        for (const std::string& prefix : block_prefixes(checkpoint, family, layer))
          if (!prefixes_.contains(prefix)) others.push_back({layer, parse_moe_config(source, json, layer)});
    RewriteOptions files = options_.files;
    if (options_.others == OtherTensors::Leave) {
      files.other_files = OtherFiles::Leave;
      leave_others(checkpoint, edit);
    } else {
      has_codes |= decode_others(checkpoint, stated, edit);
    }
    // Both before anything is written: what the family cannot say is refused without work.
    nlohmann::ordered_json changed = ordered_config(source);
    if (has_codes || stated.method != QuantMethod::Unstated) {
      remove_statements(changed);
      edit.without = statement_files();
    }
    if (options_.others == OtherTensors::Leave && options_.dtype) set_dtype(changed);
    change_config(function_, family, written_, others, changed);
    edit.config = [&](nlohmann::ordered_json& config) { config = changed; };
    return rewrite_checkpoint(checkpoint, to, edit, files);
  }

  nlohmann::ordered_json ordered_config(const std::string& source) const {
    const TextFile text(source, options_.like / "config.json", kMostConfigBytes);
    (void)parse_json(source, text.text());  // which refuses what is not JSON
    return nlohmann::ordered_json::parse(text.text());
  }
  void set_dtype(nlohmann::ordered_json& config) const {
    for (nlohmann::ordered_json* part : {&config, &text_part(config)})
      for (const char* name : {"torch_dtype", "dtype"})
        if (part->contains(name)) (*part)[name] = torch_name(*options_.dtype);
  }

  /// The widths that other parts of a model have, too.
  void require_widths(const SavedBlock& block, const MoeConfig& before) const {
    if (options_.others == OtherTensors::Leave) return;
    const auto require = [&](const char* name, Index width, Index expected) {
      if (width != expected)
        fail(function_, ": ", name, " of layer ", block.layer, " is ", width, ", expected ", expected, " of '",
             options_.like.string(), "', as other parts of the model have that width");
    };
    require("model_dim", block.config.model_dim, before.model_dim);
    if (family_->has_dense_width) require("hidden_dim", block.config.hidden_dim, before.hidden_dim);
  }

  /// Plans that a block takes the place of the one that is there. Returns whether that has weights in few bits.
  bool replace(const Checkpoint& checkpoint, const MoeConfig& before, SavedBlock& block, TensorGroup& group) {
    const BlockLocation there = find_block(checkpoint, before, {.layer = block.layer, .prefix = block.prefix});
    require_sizes(checkpoint, before, there);
    QuantisedMoeBlock names(before);
    const auto tensors = bind_weights(names, there);
    const auto sources = sources_of(checkpoint, before, tensors);
    require_stated(before, there, tensors, sources);
    bool has_codes = false;
    std::map<std::string, Dtype> types;
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      const bool is_coded =
          sources[t].has_scales() || !is_plain(checkpoint.at(sources[t].stored_names().front()).dtype);
      has_codes |= is_coded;
      types[tensors[t].name] = is_coded ? Dtype::BF16 : checkpoint.at(tensors[t].name).dtype;
      for (std::string& name : sources[t].stored_names()) group.replaced.insert(std::move(name));
    }
    const std::string down = there.prefix + numbered_name(there.format.down, 0);
    place(block, {there.format, there.prefix}, [&](const BoundTensor& tensor) {
      const auto found = types.find(tensor.name);
      if (tensor.numbers) return found == types.end() ? Dtype::F32 : found->second;
      if (options_.dtype) return *options_.dtype;
      return found == types.end() ? types.at(down) : found->second;  // of an expert that is new
    });
    return has_codes;
  }

  static void leave_others(const Checkpoint& checkpoint, CheckpointEdit& edit) {
    std::set<std::string> replaced;
    for (const TensorGroup& group : edit.groups) replaced.insert(group.replaced.begin(), group.replaced.end());
    for (const std::string& name : checkpoint.names())
      if (!replaced.contains(name)) edit.groups.front().replaced.insert(name);
  }

  /// Other weights in few bits become BF16, as config.json no longer says how they are stored. Returns whether there
  /// are some.
  bool decode_others(const Checkpoint& checkpoint, const Quantisation& stated, CheckpointEdit& edit) const {
    std::vector<WeightSource> coded = coded_weights(
        checkpoint, [&](const std::string& name) -> const StatedStorage& { return stated.storage_of(name); });
    std::erase_if(coded, [&](const WeightSource& weight) {
      return std::any_of(edit.groups.begin(), edit.groups.end(), [&](const TensorGroup& group) {
        return group.replaced.contains(weight.stored_names().front());
      });
    });
    if (coded.empty()) return false;
    if (options_.source == CodedSource::Refuse)
      fail(function_, ": weight ", in_quotes(coded.front().name()), " of '", options_.like.string(), "' is ",
           coded.front().format(),
           " and no part of the block, expected a model of floats, OtherTensors::Leave or CodedSource::Decode");
    for (const WeightSource& weight : coded)
      if (weight.shape().size() > 2 && family_->name == "gpt_oss")
        fail(function_, ": weight ", in_quotes(weight.name()),
             " stays, and is stored in another order than as floats, expected all layers to be saved");
    edit.groups.push_back(decoded_weights(std::move(coded)));
    return true;
  }

  const char* function_;
  std::vector<SavedBlock> blocks_;
  const SaveOptions& options_;
  const Family* family_ = nullptr;
  std::vector<LayerConfig> written_;
  std::set<std::string> prefixes_;
};

}  // namespace detail

/// Writes the MoE block of a published model as its family does: names, shapes and layout of the tensors, and a
/// config.json that says what has changed, so that load_moe_block() and other programs read the same block.
///   moe::save_moe_block("pruned", moe::take_experts(block, kept), {.like = "OLMoE-1B-7B-0924", .layer = 3});
/// With options.like everything else of that directory is there, too: tensors byte for byte, other files, and all
/// fields of config.json that hold nothing else now; a tensor has the type that it had, BF16 where that is in few bits,
/// rounded to nearest. Without, the directory holds the block alone (config.json, model.safetensors), as
/// LoadOptions::layer finds it again. In F32 the block comes back bit for bit. Selection biases are F32, or as they
/// were. The directory appears whole or not at all; there must be nothing at its place, or an empty directory. Throws
/// std::invalid_argument for what the family has no fields for (another number of experts than other layers have, gates
/// that it does not use), a width that other parts of the model share, a number too large for its type, a model with
/// other weights in few bits unless options.source says Decode, and as rewrite_checkpoint(); std::runtime_error as
/// load_moe_block() for `like`, and what the system refuses. Memory: an expert per worker, beside the block. Experts
/// are converted in parallel.
inline RewrittenCheckpoint save_moe_block(const std::filesystem::path& to, const MoeBlock& block,
                                          const SaveOptions& options = {}) {
  const auto use = [&](const auto& f) { f(block); };
  detail::SavedBlock saved{options.layer, options.prefix, detail::stated_config(block), use};
  return detail::BlockSaver("moe::save_moe_block", {std::move(saved)}, options).run(to);
}

/// Weights in few bits are written as floats, save_moe_block(to, dequantise(block)), or as they are: see BlockWriter.
RewrittenCheckpoint save_moe_block(const std::filesystem::path&, const QuantisedMoeBlock&,
                                   const SaveOptions& = {}) = delete;

/// The same for blocks of several layers, one after the other: all layers of a model in less memory than it takes.
///   moe::save_moe_blocks("pruned", blocks, {.like = "OLMoE-1B-7B-0924"});
/// options.layer and options.prefix are not used. Throws as save_moe_block(), and std::invalid_argument for two blocks
/// at one place, and for a block that is not as announced.
inline RewrittenCheckpoint save_moe_blocks(const std::filesystem::path& to, const std::vector<BlockToSave>& blocks,
                                           const SaveOptions& options = {}) {
  std::vector<detail::SavedBlock> saved;
  for (const BlockToSave& block : blocks) {
    saved.push_back({block.layer, block.prefix, block.config});
    if (block.make) saved.back().use = [&block](const auto& f) { f(block.make()); };
  }
  return detail::BlockSaver("moe::save_moe_blocks", std::move(saved), options).run(to);
}

}  // namespace moe::inline MOE_ABI
