// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/io/block/compress_block.hpp"
#include "moe/io/block/save_block.hpp"

// The directory of a model with fewer experts, written as it came.
namespace moe::inline MOE_ABI {

/// Which experts of a block of a checkpoint stay: see moe_blocks() for places.
struct BlockPlan {
  BlockPlace place = {};
  ExpertPlan plan = {};
};

/// Makes the smaller block of a block and its plan, with as many experts as the plan keeps: prune(), merge(), and all
/// that leaves floats.
using BlockCompressor = std::function<MoeBlock(const MoeBlock& block, const ExpertPlan& plan, const BlockPlace& place)>;

struct CompressOptions {
  BlockCompressor apply = {};                ///< none: prune(), experts that stay keep their bytes
  CodedSource source = CodedSource::Refuse;  ///< what becomes of other tensors in few bits, if there are any
  RewriteOptions files = {};
};

/// A block that compress_checkpoint() has written.
struct CompressedBlock {
  BlockPlace place = {};
  Index experts_before = 0, experts_after = 0;
  std::uint64_t bytes_before = 0, bytes_after = 0;  ///< of all its tensors in the files
};
struct CompressedCheckpoint {
  std::vector<CompressedBlock> blocks = {};
  RewrittenCheckpoint files = {};
};

namespace detail {

/// What the tensors of a block take in the files of a checkpoint.
template <class = WhenUsed>
std::uint64_t stored_bytes(const Checkpoint& checkpoint, const MoeConfig& config, const BlockPlace& place) {
  QuantisedMoeBlock names(config);  // takes no memory for weights
  const auto location = find_block(checkpoint, config, {.layer = place.layer, .prefix = place.prefix});
  std::set<std::string> stored;
  for (const WeightSource& source : sources_of(checkpoint, config, bind_weights(names, location)))
    for (std::string& name : source.stored_names()) stored.insert(std::move(name));
  std::uint64_t bytes = 0;
  for (const std::string& name : stored) bytes += checkpoint.at(name).bytes.size();
  return bytes;
}

}  // namespace detail

/// Writes the directory of a model anew with the experts that plans keep in the blocks that they name; all else stays,
/// byte for byte, and config.json says how many experts there are, so that other programs read it.
///   std::vector<moe::BlockPlan> plans;
///   for (const moe::BlockPlace& place : moe::moe_blocks(checkpoint, "olmoe"))
///     plans.push_back({place, moe::keep_best(scores[place.layer], 32)});
///   moe::compress_checkpoint("OLMoE-1B-7B-0924", "OLMoE-half", plans);
/// Most families have one number of experts for all layers: then every block needs a plan that keeps as many, and
/// anything else is refused before any weight is read. Blocks are loaded, made smaller and written one after the other:
/// memory is that of one, and of what options.apply takes. Tensors keep their types, BF16 where they were in few bits.
/// Throws std::invalid_argument for a plan of another number of experts, for no plans, for two of one block, and as
/// prune() and save_moe_blocks(); std::runtime_error as load_moe_block() and save_moe_blocks().
template <class = detail::WhenUsed>
CompressedCheckpoint compress_checkpoint(const std::filesystem::path& from, const std::filesystem::path& to,
                                         const std::vector<BlockPlan>& plans, const CompressOptions& options = {}) {
  constexpr const char* kFunction = "moe::compress_checkpoint";
  if (plans.empty()) fail(kFunction, ": 0 plans, expected at least one");
  const Checkpoint checkpoint = Checkpoint::open(from);
  CompressedCheckpoint result;
  std::vector<BlockToSave> blocks;
  for (const BlockPlan& block : plans) {
    const MoeConfig config = read_moe_config(from / "config.json", block.place.layer);
    if (block.plan.num_experts() != config.num_logits())
      fail(kFunction, ": the plan of layer ", block.place.layer, " is of ", block.plan.num_experts(),
           " experts, expected ", config.num_logits());
    const MoeConfig smaller = prune(QuantisedMoeBlock(config), block.plan).layer.config();
    result.blocks.push_back({block.place, config.num_logits(), smaller.num_logits(),
                             detail::stored_bytes(checkpoint, config, block.place)});
    const auto make = [&, config] {
      const LoadOptions load{.layer = block.place.layer, .prefix = block.place.prefix};
      const MoeBlock whole = load_moe_block(checkpoint, config, load);
      return options.apply ? options.apply(whole, block.plan, block.place) : prune(whole, block.plan).layer;
    };
    blocks.push_back({.layer = block.place.layer, .prefix = block.place.prefix, .config = smaller, .make = make});
  }
  result.files = save_moe_blocks(to, blocks, {.like = from, .source = options.source, .files = options.files});
  const Checkpoint written = Checkpoint::open(to);
  for (CompressedBlock& block : result.blocks)
    block.bytes_after =
        detail::stored_bytes(written, read_moe_config(to / "config.json", block.place.layer), block.place);
  return result;
}

}  // namespace moe::inline MOE_ABI
