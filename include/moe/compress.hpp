// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of smaller layers: weights in few bits or zero, fewer experts, adapters folded in. Start with
// compress/quantise.hpp or compress/prune.hpp. Every header also stands alone.

// Weights in few bits or with zeros, and layers made of them.
#include "moe/compress/awq.hpp"
#include "moe/compress/gptq.hpp"
#include "moe/compress/hqq.hpp"
#include "moe/compress/merge_adapters.hpp"
#include "moe/compress/quantisation_report.hpp"
#include "moe/compress/quantise.hpp"
#include "moe/compress/quantise_calibrated.hpp"
#include "moe/compress/round_blocks.hpp"
#include "moe/compress/round_to_nearest.hpp"
#include "moe/compress/sparsify.hpp"
#include "moe/compress/wanda.hpp"

// What experts have seen, scores and plans made of that.
#include "moe/compress/allocate_bits.hpp"
#include "moe/compress/bit_plan.hpp"
#include "moe/compress/block_importance.hpp"
#include "moe/compress/calibration.hpp"
#include "moe/compress/cluster_experts.hpp"
#include "moe/compress/expert_plan.hpp"
#include "moe/compress/expert_scores.hpp"
#include "moe/compress/expert_use.hpp"
#include "moe/compress/quantisation_errors.hpp"
#include "moe/compress/reconstruction_error.hpp"
#include "moe/compress/second_moment.hpp"
#include "moe/compress/token_reservoir.hpp"

// Fewer experts, or some that others stand in for.
#include "moe/compress/compress_auxiliary.hpp"
#include "moe/compress/merge.hpp"
#include "moe/compress/merge_in_subspace.hpp"
#include "moe/compress/merge_in_whitened_subspace.hpp"
#include "moe/compress/prune.hpp"
#include "moe/compress/reconstruct.hpp"

// A dense network as a mixture of its hidden units.
#include "moe/compress/dense_to_mixture.hpp"
#include "moe/compress/neuron_split.hpp"

// Narrower experts.
#include "moe/compress/latent_factors.hpp"
#include "moe/compress/to_latent.hpp"
