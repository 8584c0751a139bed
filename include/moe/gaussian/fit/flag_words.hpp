// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "moe/gaussian/fit/fit_options.hpp"

namespace moe::inline MOE_ABI {

/// A flag that is set: its name, and what it means to who reads the fit.
struct FlagWords {
  std::string name = {}, sentence = {};
};

/// The flags that are set, in words.
inline std::vector<FlagWords> flag_words(const FitFlags& flags) {
  std::vector<FlagWords> all;
  const auto add = [&](bool set, const char* name, const char* sentence) {
    if (set) all.push_back({name, sentence});
  };
  add(flags.separated, "separated",
      "the gate separates the data: infinitely steep, it would fit as well (a ridge of 0.01 keeps it finite)");
  add(flags.at_box, "at_box",
      "a gate coefficient or temperature is at its bound: the maximum lies beyond (a ridge of 0.01 brings it back)");
  add(flags.at_floor, "at_floor",
      "a variance is at its floor: the likelihood is unbounded there, distrust that expert");
  add(flags.discarded, "discarded",
      "an end of higher likelihood was given up, as a variance collapsed there or an expert rests on too few rows");
  add(flags.not_reproduced, "not_reproduced",
      "too few independent searches ended there: a better maximum may well exist (more starts, or fewer experts)");
  add(flags.unsupported, "unsupported", "an expert rests on so few rows, or so narrow a band, that it may be chance");
  add(flags.small_expert, "small_expert", "an expert holds fewer than 5 (d + 2) rows");
  add(flags.revived, "revived", "an expert lost all its rows on the way and was started anew");
  add(flags.dead_expert, "dead_expert", "an expert holds fewer than d + 2 rows: use fewer experts");
  add(flags.decreased, "decreased", "the search stopped where no step improves though the score is not 0");
  add(flags.far_origin, "far_origin", "the gate has no bias of its own, and x = 0 is far from the data: centre x");
  add(flags.singular, "singular", "the observed information has no full rank: some parameters are not determined");
  return all;
}

}  // namespace moe::inline MOE_ABI
