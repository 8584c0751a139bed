// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of sequences: attention, blocks around mixtures of experts, and what is made of them. Start
// with sequence/attention.hpp. Every header also stands alone.

// Batches of sequences, and what blocks are made of.
#include "moe/sequence/attention.hpp"
#include "moe/sequence/decoder_block.hpp"
#include "moe/sequence/layer_norm.hpp"
#include "moe/sequence/sequences.hpp"

// Bayesian inference: mixtures of normals, and a network from priors and data to posteriors.
#include "moe/sequence/cholesky.hpp"
#include "moe/sequence/distribution_transformer.hpp"
#include "moe/sequence/gaussian_mixture.hpp"
#include "moe/sequence/mixture_parameters.hpp"
