// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <string_view>

#include "moe/io/families/aria.hpp"
#include "moe/io/families/dbrx.hpp"
#include "moe/io/families/deepseek.hpp"
#include "moe/io/families/ernie.hpp"
#include "moe/io/families/exaone.hpp"
#include "moe/io/families/glm.hpp"
#include "moe/io/families/gpt_oss.hpp"
#include "moe/io/families/granite.hpp"
#include "moe/io/families/hunyuan.hpp"
#include "moe/io/families/jamba.hpp"
#include "moe/io/families/kimi.hpp"
#include "moe/io/families/lfm2.hpp"
#include "moe/io/families/llama4.hpp"
#include "moe/io/families/longcat.hpp"
#include "moe/io/families/mixtral.hpp"
#include "moe/io/families/nemotron.hpp"
#include "moe/io/families/olmoe.hpp"
#include "moe/io/families/qwen.hpp"
#include "moe/io/families/switch.hpp"

namespace moe::inline MOE_ABI {

/// All families that the library loads. A checkpoint has the first format of its family, with gates if the experts have
/// any, whose router and last expert weight it holds. One more family is a file like mixtral.hpp, and a line here.
// clang-format off
inline constexpr std::array kFamilies{
    detail::kMixtral,
    detail::kOlmoe,
    detail::kQwen2,
    detail::kQwen3,
    detail::kDeepseekV2,
    detail::kDeepseekV3,
    detail::kGlm4,
    detail::kPhimoe,
    detail::kGptOss,
    detail::kLlama4,
    detail::kGranite,
    detail::kGraniteShared,
    detail::kJetmoe,
    detail::kDbrx,
    detail::kJamba,
    detail::kSwitch,
    detail::kNllb,
    detail::kErnie,
    detail::kHunyuan,
    detail::kAria,
    detail::kLongcat,
    detail::kMinimax,
    detail::kMinimaxText,
    detail::kFlexOlmo,
    detail::kQwen3Next,
    detail::kQwen35,
    detail::kQwen3Vl,
    detail::kKimiK2,
    detail::kKimiLinear,
    detail::kDots1,
    detail::kMimo,
    detail::kGlm4Lite,
    detail::kGlm4v,
    detail::kGlm5,
    detail::kSolarOpen,
    detail::kExaone,
    detail::kHy3,
    detail::kLfm2,
    detail::kGraniteHybrid,
    detail::kNemotron,
};
// clang-format on

/// The family of this name, or null.
inline const Family* find_family(std::string_view name) {
  const auto found = std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Family& f) { return f.name == name; });
  return found == kFamilies.end() ? nullptr : &*found;
}

}  // namespace moe::inline MOE_ABI
