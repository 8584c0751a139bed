// SPDX-License-Identifier: MIT
// Adapters of PEFT described in a few lines: digits for the options, an adapter_config.json, a blank line, then the
// tensors (described_shards.hpp). They are written to files and read; what is accepted is written and read again.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "fuzz/described_shards.hpp"
#include "fuzz/fuzz_directory.hpp"
#include "fuzz/targets.hpp"
#include "moe/io/adapter/load_peft_adapters.hpp"
#include "moe/io/adapter/save_peft_adapters.hpp"
#include "support/files.hpp"

namespace test {

/// One digit each: names, kind, order of gates and ups, columns of lora_A, other modules, layout to be written.
inline moe::PeftOptions described_options(const std::string& digits) {
  const auto digit = [&](std::size_t i) { return i < digits.size() && digits[i] > '0' ? digits[i] - '0' : 0; };
  moe::PeftOptions options;
  if (digit(0) == 1) options.gate = "w1", options.up = "w3", options.down = "w2";
  if (digit(1) == 1) options.kind = moe::PeftExperts::Plain;
  if (digit(2) == 1) options.gate_up_order = moe::GateUpOrder::InTurns;
  if (digit(3) == 1) options.fused_columns = moe::FusedColumns::Inputs;
  if (digit(3) == 2) options.fused_columns = moe::FusedColumns::Outputs;
  if (digit(4) == 1) options.others = moe::OtherModules::Ignore;
  if (digit(5) == 1) options.layout = moe::PeftLayout::Fused;
  return options;
}

/// Every update is one of its matrix, and all together are no more than the tensors and their zeros.
inline void require_updates(const moe::AdapterLayers& layers, moe::PeftExperts kind, std::uint64_t stored) {
  require(!layers.empty(), "there are adapters");
  std::uint64_t numbers = 0;
  const bool is_gated = kind == moe::PeftExperts::Gated;
  for (const auto& [layer, adapters] : layers) {
    require(layer >= 0 && !adapters.experts.empty(), "a layer has experts");
    require(adapters.stages == std::vector<std::string>{is_gated ? "gate_up" : "up", "down"}, "stages are those asked");
    for (const auto& updates : adapters.experts) {
      require(updates.size() == 2, "an expert has an update per stage, maybe an empty one");
      for (std::size_t i = 0; i < 2; ++i) {
        const moe::LowRankUpdate<moe::F32>& update = updates[i];
        numbers += static_cast<std::uint64_t>(update.rank() * (update.a.outputs() + update.b.outputs()));
        if (update.empty()) continue;
        const bool is_paired = update.b.order() == moe::PanelOrder::Paired;
        require(update.b.inputs() == update.rank() && update.a.outputs() > 0, "A and B have a rank");
        require(is_paired == (is_gated && i == 0), "gates and ups are pairs");
        require(std::abs(update.scale) <= double{std::numeric_limits<float>::max()}, "a scale is a float");
      }
    }
  }
  require(numbers <= 2 * stored, "updates take no more than the tensors, or than these and zeros for the other half");
}

/// Numbers of a file in which every expert of a layer has all updates: what others adapt is written as zeros.
inline std::uint64_t most_written(const moe::AdapterLayers& layers) {
  std::uint64_t most = 0, experts = 0;
  for (const auto& [layer, adapters] : layers)
    for (const auto& updates : adapters.experts) {
      ++experts;
      for (const auto& update : updates)
        most = std::max(most, static_cast<std::uint64_t>(update.rank() * (update.a.outputs() + update.b.outputs())));
    }
  return 4 * most * experts;
}

/// What is written of updates that were read is read as the same, where PEFT can say it.
inline void require_round_trip(const FuzzDirectory& directory, const moe::AdapterLayers& layers,
                               const moe::PeftOptions& options) {
  try {
    moe::save_peft_adapters(directory / "again", layers, options);
  } catch (const std::invalid_argument&) {  // ranks and scales of experts that differ
    return;
  }
  const moe::AdapterLayers again = moe::load_peft_adapters(directory / "again", options);
  for (const auto& [layer, adapters] : layers)
    for (std::size_t e = 0; e < adapters.experts.size(); ++e)
      for (std::size_t i = 0; i < 2; ++i) {
        const auto& update = adapters.experts[e][i];
        if (update.empty()) continue;  // may come back as zeros
        const auto& other = again.at(layer).experts.at(e)[i];
        require(other.is_shaped_as(update), "an update is read as it was written");
        const double off = std::abs(other.scale - update.scale);  // a product with the rank, and a quotient
        require(off <= 2 * std::numeric_limits<double>::epsilon() * std::abs(update.scale), "its scale is");
        require(other.a.matrix() == update.a.matrix() && other.b.matrix() == update.b.matrix(), "and its numbers are");
      }
}

inline bool fuzz_adapter(std::span<const std::byte> bytes) {
  static const FuzzDirectory directory("adapter");
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::size_t line = text.find('\n'), blank = text.find("\n\n");
  if (line == text.npos || blank == text.npos || blank < line) return false;
  const auto shards = described_shards(text.substr(blank + 2));
  if (shards.size() != 1 || !shards[0].numbers.empty()) return false;  // a NaN is no equal of itself
  std::uint64_t stored = 0;
  for (const auto& [name, info] : shards[0].header.tensors) {
    std::uint64_t size = 1;
    for (const moe::Index extent : info.shape) size *= static_cast<std::uint64_t>(extent);
    stored += size;
  }
  moe::SerialExecutor serial;
  const moe::UseExecutor use(serial);
  try {
    write_shard(directory / moe::detail::kPeftTensors, shards[0]);
  } catch (const std::invalid_argument&) {  // names that cannot be written
    return false;
  }
  write_bytes(directory / moe::detail::kPeftConfig, blank == line ? "" : text.substr(line + 1, blank - line - 1));
  const moe::PeftOptions options = described_options(text.substr(0, line));
  std::optional<moe::AdapterLayers> layers;
  try {
    layers = moe::load_peft_adapters(directory / "", options);
  } catch (const std::runtime_error&) {
    return false;
  }
  require_updates(*layers, options.kind, stored);
  if (most_written(*layers) < (1 << 18)) require_round_trip(directory, *layers, options);
  return true;
}

}  // namespace test
