// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/io/block/block_weights.hpp"
#include "moe/io/checkpoint/load_weight.hpp"
#include "moe/io/families/families.hpp"
#include "moe/io/families/gguf_formats.hpp"

namespace moe::inline MOE_ABI {

/// Which block of a checkpoint to load, and whom to tell about it.
struct LoadOptions {
  Index layer = 0;          ///< number of the layer in the names
  std::string prefix = {};  ///< of the block's tensors, instead of that of the family: "decoder.block.3.layer.2.mlp."
  LoadProgress progress = {};
  std::optional<WeightFormat> format = {};  ///< of load_quantised_block(), which says what it means
};

namespace detail {

/// Throws std::runtime_error unless the tensors below the prefix are those in `expected`. A prefix that is a whole
/// transformer layer holds other parts, too: there the folders of the expected tensors are looked into.
inline void require_no_other(const Checkpoint& checkpoint, const std::string& family, const BlockLocation& location,
                             const std::set<std::string>& expected) {
  const std::string& prefix = location.prefix;
  std::set<std::string> owned{prefix};
  if (location.format.prefix.ends_with("{}.")) {
    owned.clear();
    for (const std::string& name : expected) owned.insert(name.substr(0, name.find('.', prefix.size()) + 1));
    for (const std::string_view begin : location.format.owned)
      if (!begin.empty()) owned.insert(prefix + std::string(begin));
  }
  const std::string_view shared = location.format.shared_down;
  if (!shared.empty() && shared.find('.') != shared.npos)
    owned.insert(prefix + std::string(shared.substr(0, shared.find('.') + 1)));
  const std::string neighbour = prefix + std::string(location.format.neighbour);
  for (const std::string& folder : owned)
    for (auto name = std::lower_bound(checkpoint.names().begin(), checkpoint.names().end(), folder);
         name != checkpoint.names().end() && name->starts_with(folder); ++name)
      if (!expected.contains(*name) && (neighbour == prefix || !name->starts_with(neighbour)))
        fail_environment("moe::load_moe_block: '", checkpoint.path().string(), "': tensor '", *name,
                         "' is not part of a block of family '", family, "'");
}

/// The slices of the tensors by matrix, each with its source, in the order of the tensors.
inline std::vector<std::vector<WeightSlice>> slices_of(const std::vector<BoundTensor>& tensors,
                                                       const std::vector<WeightSource>& sources) {
  std::vector<std::vector<WeightSlice>> matrices;
  std::map<const void*, std::size_t> place;
  for (std::size_t t = 0; t < tensors.size(); ++t)
    for (const WeightSlice& slice : tensors[t].slices) {
      const void* const matrix = slice.to ? static_cast<const void*>(slice.to) : slice.to_codes;
      const auto [entry, is_new] = place.emplace(matrix, matrices.size());
      if (is_new) matrices.emplace_back();
      matrices[entry->second].push_back(slice);
      matrices[entry->second].back().source = sources[t];
    }
  return matrices;
}

/// Reads what is numbers, not matrices.
inline void load_numbers(const std::vector<BoundTensor>& tensors, const std::vector<WeightSource>& sources) {
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    if (!tensors[t].numbers) continue;
    std::vector<float> values(static_cast<std::size_t>(tensors[t].numbers->size()));
    sources[t].read_values(0, std::span(values));
    for (std::size_t i = 0; i < values.size(); ++i) (*tensors[t].numbers)(static_cast<Index>(i)) = values[i];
  }
}

/// Reads all tensors, in parallel.
inline void load_tensors(const std::vector<BoundTensor>& tensors, const std::vector<WeightSource>& sources,
                         const LoadProgress& progress = {}) {
  load_numbers(tensors, sources);
  WeightLoader loader;
  for (std::vector<WeightSlice>& slices : slices_of(tensors, sources)) loader.add(std::move(slices));
  loader.run(progress);
}

}  // namespace detail

/// Finds the tensors of a block: the first format of the family, or of llama.cpp in a GGUF file, whose router and last
/// expert weights are there, below its prefix with the number of the layer in it, or below options.prefix.
/// Throws std::invalid_argument for a family that is not in kFamilies, std::runtime_error if nothing is found.
inline BlockLocation find_block(const Checkpoint& checkpoint, const MoeConfig& config,
                                const LoadOptions& options = {}) {
  const Family* const family = find_family(config.family);
  if (!family) fail("moe::find_block: family '", config.family, "' is not known");
  std::string tried;
  std::optional<BlockLocation> partial;  // what is missing there, is named when it is looked for
  for (const FamilyFormat& format : formats_of(checkpoint, *family)) {
    if (format.gate.empty() == is_gated(config.expert)) continue;
    const std::string prefix = options.prefix.empty() ? numbered_name(format.prefix, options.layer) : options.prefix;
    const std::string router = prefix + std::string(format.router);
    const Index last = std::max<Index>(config.num_experts, 1) - 1;
    const std::string down = prefix + numbered_name(format.down, last);
    const bool has_router = checkpoint.contains(router), has_down = WeightSource::exists(checkpoint, down);
    if (has_router && has_down) {
      const std::string up = prefix + numbered_name(format.gate.empty() ? format.up : format.gate, last);
      const BlockLocation location{format, prefix, !checkpoint.contains(down)};
      if (WeightSource::exists(checkpoint, up)) return location;
      if (!partial) partial = location;
      continue;
    }
    const std::string router_text = has_router ? "" : "'" + router + "'", down_text = has_down ? "" : "'" + down + "'";
    tried += (tried.empty() ? "" : ", or ") + router_text + (has_router || has_down ? "" : " and ") + down_text;
  }
  if (partial) return *partial;
  fail_environment("moe::find_block: '", checkpoint.path().string(), "' has no MoE block of family '", config.family,
                   "' there: missing tensors ", tried);
}

namespace detail {

[[noreturn]] inline void refuse_shape(const Checkpoint& checkpoint, const std::string& name,
                                      const std::vector<Index>& found, const std::vector<Index>& expected) {
  fail_environment("moe::load_moe_block: '", checkpoint.path().string(), "': tensor '", name, "' has shape [",
                   join(found, ", "), "], expected [", join(expected, ", "), "]");
}

/// A weight as the configuration says that it is stored.
inline WeightSource source_of(const Checkpoint& checkpoint, const MoeConfig& config, const std::string& name) {
  return WeightSource::find(checkpoint, name, config.quantisation.storage_of(name));
}

/// The sizes of a configuration must be those of the file before memory is taken for them.
inline void require_sizes(const Checkpoint& checkpoint, const MoeConfig& config, const BlockLocation& location) {
  const auto require = [&](const std::string& name, const std::vector<Index>& expected) {
    const std::vector<Index> found = source_of(checkpoint, config, location.prefix + name).shape();
    if (!has_shape(checkpoint, found, expected)) refuse_shape(checkpoint, location.prefix + name, found, expected);
  };
  const FamilyFormat& format = location.format;
  const Index count = config.num_experts, hidden = config.hidden_dim, dim = config.model_dim;
  require(std::string(format.router), {config.num_logits(), dim});
  if (format.layout == ExpertLayout::PerExpert) {
    for (Index e = 0; e < count; ++e) require(numbered_name(format.down, e), {dim, hidden});
  } else if (format.layout == ExpertLayout::StackedRows) {
    require(std::string(format.down), {count * hidden, dim});
  } else {
    const bool in_out = format.layout == ExpertLayout::FusedInOut || format.layout == ExpertLayout::FusedInterleaved;
    const bool turned = in_out && !location.is_quantised;
    require(std::string(format.down), {count, turned ? hidden : dim, turned ? dim : hidden});
  }
  if (config.shared_dim != 0) require(std::string(format.shared_down), {dim, config.shared_dim});
}

/// The stored weights of tensors, whose shapes must be as expected.
inline std::vector<WeightSource> sources_of(const Checkpoint& checkpoint, const MoeConfig& config,
                                            const std::vector<BoundTensor>& tensors) {
  std::vector<WeightSource> sources;
  for (const BoundTensor& tensor : tensors) {
    sources.push_back(source_of(checkpoint, config, tensor.name));
    if (!has_shape(checkpoint, sources.back().shape(), tensor.shape))
      refuse_shape(checkpoint, tensor.name, sources.back().shape(), tensor.shape);
  }
  return sources;
}

/// Throws std::runtime_error for an FP8 weight without scales where the configuration says that there are some, or
/// another weight has them: they are lost, not 1. Where nobody speaks of scales, the codes are the values.
inline void require_all_scales(const MoeConfig& config, const std::vector<WeightSource>& sources) {
  const QuantMethod method = config.quantisation.method;
  const bool is_stated = method == QuantMethod::Fp8Blocks || method == QuantMethod::Fp8;
  const auto scaled =
      std::find_if(sources.begin(), sources.end(), [](const WeightSource& s) { return s.has_scales(); });
  if (!is_stated && scaled == sources.end()) return;
  const std::string reason = is_stated ? "the configuration says " + std::string(method_text(method))
                                       : in_quotes(scaled->name()) + " has scales";
  const bool is_per_output = method == QuantMethod::Fp8 || (!is_stated && scaled->method() == QuantMethod::Fp8);
  for (const WeightSource& source : sources)
    if (source.is_fp8() && !source.has_scales())
      fail_environment(source.label(), ": tensor ",
                       in_quotes(source.name() + (is_per_output ? "_scale" : "_scale_inv")), " is missing, as ",
                       reason);
}

/// Whether quantisation is about a tensor: matrices of experts, shared ones included. Routers, gates of shared experts
/// and biases stay plain.
inline bool is_quantisable(const BoundTensor& tensor, const BlockLocation& location) {
  const bool is_score = tensor.name == location.prefix + std::string(location.format.router) ||
                        tensor.name == location.prefix + std::string(location.format.shared_score);
  const auto is_matrix = [](const WeightSlice& slice) { return slice.to_codes || slice.to->shape().size() == 2; };
  return !is_score && !tensor.slices.empty() && is_matrix(tensor.slices.front());
}

/// Throws std::runtime_error naming the tensor where one is stored otherwise than the configuration says. Plain expert
/// weights are refused, too, unless it lists their modules as not converted: whoever has turned a checkpoint into BF16
/// takes out the statement as well, or it is not known what the numbers are.
inline void require_stated(const MoeConfig& config, const BlockLocation& location,
                           const std::vector<BoundTensor>& tensors, const std::vector<WeightSource>& sources) {
  require_all_scales(config, sources);
  const Quantisation& stated = config.quantisation;
  if (stated.method == QuantMethod::Unstated) {
    for (const WeightSource& source : sources)
      if (source.method() == QuantMethod::Gptq)
        fail_environment(source.label(), ": weight ", in_quotes(source.name()),
                         " is stored as GPTQ has it, expected a configuration that says gptq or gptq_v2: their zero "
                         "points differ by one");
    return;
  }
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const WeightSource& source = sources[t];
    const bool is_as_stated = source.method() == stated.method;
    const bool is_plain = !source.has_scales() && !source.is_fp8();
    const auto may_be_plain = [&] {
      return !is_quantisable(tensors[t], location) || stated.leaves_out(tensors[t].name);
    };
    if (!is_as_stated && !(is_plain && may_be_plain()))
      fail_environment(source.label(), ": tensor ", in_quotes(source.name()), " is stored as ", source.format(),
                       ", but the configuration says ", method_text(stated.method),
                       is_plain ? " and does not list it as not converted" : "");
    if (source.is_fp8() && stated.codes && source.codes() != *stated.codes)
      fail_environment(source.label(), ": tensor ", in_quotes(source.name()), " is ", dtype_name(source.codes()),
                       ", but the configuration says ", dtype_name(*stated.codes));
  }
}

/// A block whose tensors read(tensors, sources) reads, once all else is as it should be.
template <class Codec, class Read>
BasicMoeBlock<Codec> load_block(const Checkpoint& checkpoint, const MoeConfig& config, const LoadOptions& options,
                                const Read& read) {
  config.validate();
  const BlockLocation location = find_block(checkpoint, config, options);
  require_sizes(checkpoint, config, location);
  BasicMoeBlock<Codec> block(config);
  const auto tensors = bind_weights(block, location);
  const auto sources = sources_of(checkpoint, config, tensors);
  require_stated(config, location, tensors, sources);
  std::set<std::string> expected;
  for (const WeightSource& source : sources)
    for (std::string& name : source.stored_names()) expected.insert(std::move(name));
  Index filled = 0;
  for (const BoundTensor& tensor : tensors) {
    if (tensor.numbers) filled += tensor.numbers->size();
    for (const WeightSlice& slice : tensor.slices) filled += slice.outputs * slice.inputs;
  }
  if (const Index held = num_parameters(block) + num_state(block); filled != held)
    fail("moe::load_moe_block: the tensors of family '", config.family, "' hold ", filled, " weights, expected ", held,
         " as in the block");
  require_no_other(checkpoint, config.family, location, expected);
  read(tensors, sources);
  return block;
}

}  // namespace detail

/// Loads the MoE block of a published model from its own files: every weight of the block, whatever its type and
/// layout, as float. Experts are read and converted in parallel.
///   const auto checkpoint = moe::Checkpoint::open(directory);
///   const auto block = moe::load_moe_block(checkpoint, moe::read_moe_config(directory / "config.json"), {.layer = 3});
/// Throws std::runtime_error that names the tensor if one is missing, of another shape, below the prefix without being
/// part of the block, or stored otherwise than config.quantisation says; std::invalid_argument as MoeBlock and
/// find_block do. FP8 without scales is taken as it is only where neither the configuration nor another weight of the
/// block speaks of scales. options.format is none: load_quantised_block() reads weights in few bits.
/// Memory: the block, and a buffer of 16 rows per thread.
template <class = detail::WhenUsed>
MoeBlock load_moe_block(const Checkpoint& checkpoint, const MoeConfig& config, const LoadOptions& options = {}) {
  if (options.format)
    fail("moe::load_moe_block: format is ", options.format->name(),
         ", expected none, as floats are loaded: see load_quantised_block()");
  return detail::load_block<F32>(checkpoint, config, options, [&](const auto& tensors, const auto& sources) {
    detail::load_tensors(tensors, sources, options.progress);
  });
}

/// The router and the gate of a block alone; other tensors are not looked at. For families with a TopKGate. Throws as
/// load_moe_block does.
inline std::pair<LinearRouter, TopKGate> load_router(const Checkpoint& checkpoint, const MoeConfig& config,
                                                     const BlockLocation& location) {
  config.validate();
  const Bias bias = config.router_bias ? Bias::Zero : Bias::Off;
  std::pair loaded(LinearRouter(config.num_logits(), config.model_dim, bias), config.gate);
  if (config.selection_bias) loaded.second.selection_bias = Eigen::RowVectorXd::Zero(config.num_logits());
  detail::BlockBinder<F32> binder(config, location);
  binder.bind_router(loaded.first, loaded.second);
  const auto tensors = binder.take();
  const auto sources = detail::sources_of(checkpoint, config, tensors);
  detail::require_stated(config, location, tensors, sources);
  detail::load_tensors(tensors, sources);
  return loaded;
}

}  // namespace moe::inline MOE_ABI
