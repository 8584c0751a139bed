// SPDX-License-Identifier: MIT
// What the pieces of code in the documents take for granted: each is the body of a function of these parameters.
#pragma once

#include <array>
#include <filesystem>
#include <iostream>
#include <moe/gaussian.hpp>
#include <moe/moe.hpp>

#if __has_include(<benchmark/benchmark.h>)
#define MOE_HAS_BENCHMARK 1
#include "gate/routing_kernel.hpp"
#endif

using moe::Index;
using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Glu>>;
using MyGate = moe::TopKGate;

#define MOE_README_CONTEXT                                                                          \
  [[maybe_unused]] const moe::Matrix<double>&x, [[maybe_unused]] const Eigen::VectorXd &y,          \
      [[maybe_unused]] const moe::Matrix<float>&tokens, [[maybe_unused]] moe::Matrix<float>&output, \
      [[maybe_unused]] Layer &layer
