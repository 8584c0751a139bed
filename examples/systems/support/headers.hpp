// SPDX-License-Identifier: MIT
// The headers of the library that nearly every page includes, for CMake to precompile. Pages do not include it.
#pragma once

#include <moe/expert/linear.hpp>
#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/router/linear.hpp>
#include <moe/train/cross_entropy.hpp>
#include <moe/train/squared_error.hpp>
#include <moe/train/trainer.hpp>
