// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of files, target moe::io (needs nlohmann-json): MoE blocks of published checkpoints, layers and
// models of one's own, tables and arrays of numbers. Start with io/block/load_block.hpp or io/file/parameters.hpp.
// Every header also stands alone.

// MoE blocks of published models: config.json says what a block computes, the checkpoint holds its weights.
#include "moe/io/block/compress_block.hpp"
#include "moe/io/block/load_block.hpp"
#include "moe/io/block/load_quantised_block.hpp"
#include "moe/io/block/moe_block.hpp"
#include "moe/io/block/quantise_block.hpp"
#include "moe/io/families/families.hpp"
#include "moe/io/families/model_config.hpp"
#include "moe/io/families/moe_config.hpp"
#include "moe/io/families/moe_layers.hpp"
#include "moe/io/families/quantisation.hpp"

// Weights of checkpoints by name, for layers of one's own.
#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/checkpoint/load_codes.hpp"
#include "moe/io/checkpoint/load_weight.hpp"
#include "moe/io/checkpoint/weight_slice.hpp"
#include "moe/io/checkpoint/weight_source.hpp"

// Layers, optimiser states and statistical models of this library, saved and loaded with the same bits.
#include "moe/io/file/parameters.hpp"
#include "moe/io/gaussian.hpp"

// Files: tensors, arrays, tables.
#include "moe/io/file/csv.hpp"
#include "moe/io/file/dtype.hpp"
#include "moe/io/file/mapped_file.hpp"
#include "moe/io/file/npy.hpp"
#include "moe/io/file/safetensors.hpp"
#include "moe/io/file/tensor.hpp"
