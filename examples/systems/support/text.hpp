// SPDX-License-Identifier: MIT
// A next-character model of real text of two kinds: prose, the licences that every Debian has, and code, headers of
// this library as they once were, so that it does not change what pages find. What digits cannot tell apart (bit
// widths, orders of caching), it can.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "labelled.hpp"
#include "page.hpp"
#include "relu_layer.hpp"

namespace systems {

inline constexpr moe::Index kContext = 12, kEmbedding = 8, kCharacters = 97;
inline constexpr moe::Index kTextDim = kContext * kEmbedding, kTextExperts = 16, kTextHidden = 64;

/// scores = head(x + layer(x)), x the embeddings of the last 12 characters. The MoE layer is model.layer().layer().
using TextModel = WithHead<WithResidual>;

/// Characters as numbers below kCharacters. The last kHeldOut of each kind are not trained on.
struct Text {
  static constexpr moe::Index kHeldOut = 8000;
  std::vector<moe::Index> prose, code;  // equally many
};
/// Read once. Throws std::runtime_error where there are no licences in /usr/share/common-licenses.
const Text& text();

/// One row per place, in order: the embeddings (fixed, random) of the characters before it, labelled by what stands
/// there. Places are at least kContext.
Labelled text_at(const std::vector<moe::Index>& characters, const std::vector<moe::Index>& places);
/// `count` places in a row. A negative `first` counts from the end: {-Text::kHeldOut, 1000} is held out.
Labelled text_from(const std::vector<moe::Index>& characters, moe::Index first, moe::Index count);
/// Places all over what is trained on: as many of prose, then of code.
Labelled trained_text(moe::Index per_kind);
/// All that is held out of prose, then of code.
const Labelled& held_out_text();

/// 16 ReLU experts of 64 units, top-2, 3000 updates of 256 places.
TextModel text_model(const Page& page, std::uint64_t seed);

/// Mean of -log2 of the probability of what comes next.
double bits_per_character(const TextModel& model, const Labelled& data);
/// The same of held_out_text().
double held_out_bits(const TextModel& model);

/// Writes a script for gnuplot, which draws which share of a kind of characters each expert serves, by the character
/// read last: prose on the left, code on the right. `path` is that of the picture; the script's ends with .gp.
void draw_experts(const TextModel& model, const std::string& path);

}  // namespace systems
