// SPDX-License-Identifier: MIT
// Layers of experts (SwiGLU) as files of published models hold them: written, and loaded as a family loader does.
#pragma once

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "moe/expert/glu.hpp"
#include "moe/io/checkpoint/load_weight.hpp"

namespace bench {

using moe::Index;

/// How the weights of the experts lie in the file.
enum class Storage {
  Separate,  ///< gate, up and down of each expert, [out, in]
  Fused,     ///< all experts in one, gates then ups, [out, in]
  InOut,     ///< the same with rows of outputs, [in, out]
  Turns,     ///< rows of outputs, gates and ups in turns
  Fp8,       ///< Separate in F8_E4M3 with a scale per 128 x 128
  Mxfp4,     ///< Fused in MXFP4, gates and ups in turns
};

struct StorageName {
  Storage storage;
  const char *name, *what;
};
inline constexpr StorageName kStorages[] = {
    {Storage::Separate, "separate", "per expert, out x in"}, {Storage::Fused, "fused", "fused halves, out x in"},
    {Storage::InOut, "in_out", "fused halves, in x out"},    {Storage::Turns, "turns", "fused in turns, in x out"},
    {Storage::Fp8, "fp8", "per expert, FP8 x 128"},          {Storage::Mxfp4, "mxfp4", "fused in turns, MXFP4"}};

struct Layer {
  Storage storage = Storage::Separate;
  moe::Dtype dtype = moe::Dtype::BF16;  ///< of the first four
  Index experts = 4, model_dim = 4096, hidden_dim = 5120;
};

namespace detail {

inline std::string name_of(Index expert, const char* part) {
  return "experts." + std::to_string(expert) + "." + part + ".weight";
}
inline Index blocks(Index extent, Index block) { return (extent + block - 1) / block; }

/// A weight [.., out, in] with its scales, if there are any.
inline void add_tensor(moe::SafetensorsHeader& header, const Layer& layer, std::string name, std::vector<Index> shape) {
  if (layer.storage == Storage::Mxfp4) {
    shape.back() = blocks(shape.back(), 32);
    header.tensors[name + "_scales"] = {.dtype = moe::Dtype::U8, .shape = shape};
    shape.push_back(16);
    header.tensors[name + "_blocks"] = {.dtype = moe::Dtype::U8, .shape = shape};
    return;
  }
  const bool is_scaled = layer.storage == Storage::Fp8;
  header.tensors[name] = {.dtype = is_scaled ? moe::Dtype::F8_E4M3 : layer.dtype, .shape = shape};
  for (Index& extent : shape) extent = blocks(extent, 128);
  if (is_scaled) header.tensors[name + "_scale_inv"] = {.dtype = moe::Dtype::F32, .shape = shape};
}

}  // namespace detail

/// Codes of small numbers of any type, none NaN or infinite; scales are 1.
inline void write_layer(const std::filesystem::path& path, const Layer& layer) {
  const Index e = layer.experts, d = layer.model_dim, ff = layer.hidden_dim;
  moe::SafetensorsHeader header;
  if (layer.storage == Storage::Separate || layer.storage == Storage::Fp8) {
    for (Index i = 0; i < e; ++i) {
      for (const char* part : {"gate_proj", "up_proj"})
        detail::add_tensor(header, layer, detail::name_of(i, part), {ff, d});
      detail::add_tensor(header, layer, detail::name_of(i, "down_proj"), {d, ff});
    }
  } else {
    const bool in_out = layer.storage == Storage::InOut || layer.storage == Storage::Turns;
    using Shape = std::vector<Index>;
    detail::add_tensor(header, layer, "gate_up_proj", in_out ? Shape{e, d, 2 * ff} : Shape{e, 2 * ff, d});
    detail::add_tensor(header, layer, "down_proj", in_out ? Shape{e, ff, d} : Shape{e, d, ff});
  }
  moe::SafetensorsWriter writer(path, header);
  std::vector<std::byte> bytes;
  for (const auto& [name, info] : header.tensors) {
    bytes.resize(static_cast<std::size_t>(*moe::detail::tensor_bytes(info.dtype, info.shape)));
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37 % 59);
    if (name.ends_with("_scales")) std::fill(bytes.begin(), bytes.end(), std::byte{127});
    if (name.ends_with("_scale_inv"))
      for (std::size_t i = 0; i < bytes.size(); i += sizeof(float)) {
        const float one = 1;
        std::memcpy(bytes.data() + i, &one, sizeof one);
      }
    writer.write_bytes(name, bytes);
  }
  writer.commit();
}

/// Opens the file and fills the experts, which are made if they are not there.
inline void load_layer(const std::filesystem::path& path, const Layer& layer, std::vector<moe::Glu>& experts,
                       const moe::LoadProgress& progress) {
  const moe::Checkpoint checkpoint = moe::Checkpoint::open(path);
  while (std::ssize(experts) < layer.experts) experts.emplace_back(layer.model_dim, layer.hidden_dim);
  const bool in_out = layer.storage == Storage::InOut || layer.storage == Storage::Turns;
  const auto slice = [&](const std::string& name, Index matrix) {
    const auto source = moe::WeightSource::find(checkpoint, name);
    return moe::weight_slice(source, in_out ? moe::WeightLayout::InOut : moe::WeightLayout::OutIn, matrix);
  };
  moe::WeightLoader loader;
  for (Index e = 0; e < layer.experts; ++e) {
    moe::Glu& expert = experts[static_cast<std::size_t>(e)];
    if (layer.storage == Storage::Separate || layer.storage == Storage::Fp8) {
      const auto part = [&](const char* name) { return slice(detail::name_of(e, name), 0); };
      loader.add_gate_up(part("gate_proj"), part("up_proj"), expert.gate_up());
      loader.add(part("down_proj"), expert.down());
      continue;
    }
    const bool in_turns = layer.storage == Storage::Turns || layer.storage == Storage::Mxfp4;
    const moe::WeightSlice fused = slice("gate_up_proj", e);
    if (in_turns)
      loader.add_gate_up(fused.every_output(2, 0), fused.every_output(2, 1), expert.gate_up());
    else
      loader.add(fused, expert.gate_up());
    loader.add(slice("down_proj", e), expert.down());
  }
  loader.run(progress);
}

}  // namespace bench
