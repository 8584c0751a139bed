// SPDX-License-Identifier: MIT
#include <utility>

#include "moe/expert/linear.hpp"
#include "moe/expert/normalised.hpp"
#include "moe/train/customise.hpp"

using Local = moe::Normalised<moe::Linear>;
using Layer = decltype(moe::customise(std::declval<moe::Linear>(), std::declval<Local>()));

void fit(Layer& layer, const moe::LabelledRows<float>& user) { moe::fit_local(layer, user); }
