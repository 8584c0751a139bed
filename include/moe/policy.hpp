// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of policies: actions from mixtures whose components are experts, and how their weights learn.
// Start with policy/mixture_policy.hpp. Every header also stands alone.

// A layer as a stochastic policy, and the densities that it gives.
#include "moe/policy/action_range.hpp"
#include "moe/policy/diagonal_mixture.hpp"
#include "moe/policy/entropy_bounds.hpp"
#include "moe/policy/mixture_policy.hpp"

// Gradients through the draw of a component.
#include "moe/policy/frequency_loss.hpp"
#include "moe/policy/mixture_gradient.hpp"
