// SPDX-License-Identifier: MIT
#include "moe/moe.hpp"

using Inner = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Mlp>>;
using Mixture = moe::RoutedExperts<moe::ExpertPool<moe::LayerExpert<Inner>>>;
using Refused = moe::Recomputed<Mixture>::Scalar;
