// SPDX-License-Identifier: MIT
// What compress_checkpoint writes with --packed: every expert in the bits of its plan, as compressed-tensors packs
// them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "layers.hpp"

namespace compressing {

inline void show_progress(const char* what, std::size_t done, std::size_t all) {
  std::fprintf(stderr, done == all ? "\r%40s\r" : "\r%s: layer %zu of %zu", done == all ? "" : what, done + 1, all);
}

/// A block in few bits, of which the layer keeps what its codes take in memory; of packed ones the file decides.
inline moe::QuantisedMoeBlock few_bits_of(const Settings& settings, const moe::MoeBlock& small, const Tokens& tokens,
                                          Layer& layer) {
  moe::QuantisedMoeBlock few = in_few_bits(settings, small, tokens, layer);
  layer.code_bytes = settings.packed ? 0 : moe::memory_bytes(few);
  if (!settings.codes.empty()) moe::save_parameters(moe::numbered_name(settings.codes, layer.place.layer), few);
  return few;
}

inline std::vector<moe::BlockPlan> plans_of(const std::vector<Layer>& layers) {
  std::vector<moe::BlockPlan> plans;
  for (const Layer& layer : layers) plans.push_back({layer.place, layer.plan});
  return plans;
}

/// A directory beside OUT for floats that are packed afterwards.
class Between {
 public:
  explicit Between(std::filesystem::path where) : path(std::move(where)) {
    if (std::filesystem::exists(path))
      moe::fail("'", path.string(), "' is there already, expected room for what is packed afterwards");
  }
  Between(const Between&) = delete;
  Between& operator=(const Between&) = delete;
  ~Between() {
    std::error_code none;
    std::filesystem::remove_all(path, none);
  }

  const std::filesystem::path path;
};

struct Packed {
  std::uint64_t before = 0, after = 0;  ///< bytes of the MoE blocks
  moe::RewrittenCheckpoint files = {};
  std::vector<moe::WeightFormat> formats = {};  ///< all that experts have
};

/// Fewer experts first, in the type that weights had, if there is a number to keep; then their codes.
inline Packed pack(const Settings& settings, std::vector<Layer>& layers) {
  std::filesystem::path from = settings.directory;
  std::optional<Between> floats;
  Packed result;
  if (settings.keep > 0) {
    floats.emplace(settings.output + ".floats");
    std::size_t done = 0;
    moe::CompressOptions options{.apply = [&](const moe::MoeBlock& block, const auto&, const auto&) {
      show_progress("fewer experts", done, layers.size());
      return with_fewer(settings, block, layers[done++]);
    }};
    if (settings.decode) options.source = moe::CodedSource::Decode;
    for (const auto& block : moe::compress_checkpoint(from, floats->path, plans_of(layers), options).blocks)
      result.before += block.bytes_before;
    from = floats->path;
  }
  const auto whole = moe::Checkpoint::open(settings.directory), checkpoint = moe::Checkpoint::open(from);
  std::map<std::string, moe::WeightFormat> formats;
  moe::QuantiseOptions options;
  for (const Layer& layer : layers) {
    const auto format = [&](const auto& matrix) { return format_of(settings, layer.bits, matrix); };
    const moe::LoadOptions load{.layer = layer.place.layer, .prefix = layer.place.prefix};
    moe::add_formats(checkpoint, moe::read_moe_config(from / "config.json", load.layer), load, format, formats);
    if (std::ranges::find(options.layers, load.layer) == options.layers.end()) options.layers.push_back(load.layer);
  }
  for (const auto& [weight, format] : formats)
    if (std::ranges::find(result.formats, format) == result.formats.end()) result.formats.push_back(format);
  std::size_t done = 0;
  options.quantiser = [&](const auto& source, const auto& config, const moe::LoadOptions& load, const auto&) {
    show_progress("packing", done++, layers.size());
    Layer& layer = *std::ranges::find_if(
        layers, [&](const Layer& each) { return each.place.layer == load.layer && each.place.prefix == load.prefix; });
    const moe::MoeBlock block = moe::load_moe_block(whole, layer.config, load),
                        small = moe::load_moe_block(source, config, load);
    const Tokens tokens = tokens_of(settings, load.layer, block.model_dim());
    moe::QuantisedMoeBlock few = few_bits_of(settings, small, tokens, layer);
    layer.weights_before = moe::num_parameters(block), layer.weights_after = moe::num_parameters(small);
    layer.error = moe::reconstruction_error(block, moe::dequantise(few), tokens.read);
    return few;
  };
  if (settings.decode) options.source = moe::CodedSource::Decode;
  auto written = moe::quantise_checkpoint(from, settings.output, moe::MixedIntsWriter(std::move(formats)), options);
  show_progress("packing", layers.size(), layers.size());
  for (const moe::QuantisedLayer& layer : written.layers) {
    if (settings.keep == 0) result.before += layer.bytes_before;
    result.after += layer.bytes_after;
    for (Layer& each : layers)
      if (each.place.layer == layer.layer && each.place.prefix == layer.prefix) each.code_bytes = layer.bytes_after;
  }
  result.files = std::move(written.files);
  return result;
}

}  // namespace compressing
