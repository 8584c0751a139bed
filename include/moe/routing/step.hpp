// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "moe/core/random.hpp"

namespace moe::inline MOE_ABI {

enum class Phase { Inference, Training };

/// All that varies from call to call and is not data: phase, place in training, keys of the random draws, padding.
/// Step{} is inference: no noise, annealing finished. Step::train(n, seed) is the n-th update.
/// Empty spans mean: token t has id t, one group, no keys, all tokens valid. Spans refer to the caller's memory, which
/// must outlive the call (for a tape: until backward has returned).
struct Step {
  Phase phase = Phase::Inference;
  std::uint64_t update = 0;  ///< optimiser updates done so far; schedules are pure functions of it
  std::uint64_t seed = 0;
  std::uint32_t layer = 0;                      ///< give each layer of a model its own number: it keys the draws
  std::uint32_t pass = 0;                       ///< several passes over one batch (THOR, MC dropout) draw independently
  std::span<const std::int64_t> token_id = {};  ///< [num_tokens]; keys the draws of a token, wherever it stands
  std::span<const std::int64_t> group_id = {};  ///< [num_tokens]; sequence, task or domain
  /// [num_tokens]; what gates look a token up by, as its place in the vocabulary (HashGate). No draw depends on it, and
  /// no number stands for it where it is missing.
  std::span<const std::int64_t> key = {};
  std::span<const std::uint8_t> valid = {};  ///< [num_tokens]; 0 = padding: no experts, no losses, no statistics

  static Step train(std::uint64_t update, std::uint64_t seed = 0) {
    Step step;
    step.phase = Phase::Training;
    step.update = update;
    step.seed = seed;
    return step;
  }

  bool training() const { return phase == Phase::Training; }
  std::int64_t id(Index token) const { return token_id.empty() ? token : token_id[static_cast<std::size_t>(token)]; }
  std::int64_t group(Index token) const { return group_id.empty() ? 0 : group_id[static_cast<std::size_t>(token)]; }
  bool is_valid(Index token) const { return valid.empty() || valid[static_cast<std::size_t>(token)] != 0; }

  /// Number of valid tokens among the first num_tokens.
  Index num_valid(Index num_tokens) const {
    if (valid.empty()) return num_tokens;
    Index count = 0;
    for (Index t = 0; t < num_tokens; ++t) count += is_valid(t) ? 1 : 0;
    return count;
  }

  /// The random field of this step for one purpose; columns are experts or whatever the purpose counts.
  RandomField random(Purpose purpose) const { return RandomField(purpose, seed, update, layer, pass); }

  /// Throws std::invalid_argument unless each span is empty or has num_tokens entries.
  void validate(const char* function, Index num_tokens) const {
    const auto check = [&](const char* name, std::size_t size) {
      if (size != 0 && static_cast<Index>(size) != num_tokens)
        fail(function, ": step.", name, " has ", size, " entries, expected 0 or num_tokens = ", num_tokens);
    };
    check("token_id", token_id.size());
    check("group_id", group_id.size());
    check("key", key.size());
    check("valid", valid.size());
  }
};

}  // namespace moe::inline MOE_ABI
