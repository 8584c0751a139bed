// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of files, target moe::io (needs nlohmann-json): MoE blocks of published checkpoints, layers and
// models of one's own, tables and arrays of numbers. Start with io/block/load_block.hpp or io/file/parameters.hpp.
// Every header also stands alone.

// MoE blocks of published models: config.json says what a block computes, the checkpoint holds its weights; a GGUF
// file does both.
#include "moe/io/block/adapt_block.hpp"
#include "moe/io/block/calibrate_block.hpp"
#include "moe/io/block/compress_block.hpp"
#include "moe/io/block/compress_checkpoint.hpp"
#include "moe/io/block/load_block.hpp"
#include "moe/io/block/load_quantised_block.hpp"
#include "moe/io/block/moe_block.hpp"
#include "moe/io/block/quantise_block.hpp"
#include "moe/io/block/quantise_checkpoint.hpp"
#include "moe/io/block/save_block.hpp"
#include "moe/io/block/write_block.hpp"
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

// Checkpoints written anew with other tensors, and the layouts of weights in few bits that other programs read.
#include "moe/io/checkpoint/decode_weights.hpp"
#include "moe/io/checkpoint/rewrite_checkpoint.hpp"
#include "moe/io/checkpoint/tensor_group.hpp"
#include "moe/io/checkpoint/weight_writer.hpp"
#include "moe/io/checkpoint/write_compressed.hpp"
#include "moe/io/checkpoint/write_fp4.hpp"
#include "moe/io/checkpoint/write_fp8.hpp"

// Layers, optimiser states and statistical models of this library, saved and loaded with the same bits.
#include "moe/io/file/parameters.hpp"
#include "moe/io/gaussian.hpp"
#include "moe/io/saved_fit.hpp"

// Adapters of experts as PEFT has them.
#include "moe/io/adapter/load_peft_adapters.hpp"
#include "moe/io/adapter/peft_options.hpp"
#include "moe/io/adapter/save_peft_adapters.hpp"

// Files: tensors, arrays, tables.
#include "moe/io/file/csv.hpp"
#include "moe/io/file/data_file.hpp"
#include "moe/io/file/data_file_options.hpp"
#include "moe/io/file/dtype.hpp"
#include "moe/io/file/gguf.hpp"
#include "moe/io/file/gguf_blocks.hpp"
#include "moe/io/file/mapped_file.hpp"
#include "moe/io/file/npy.hpp"
#include "moe/io/file/safetensors.hpp"
#include "moe/io/file/tensor.hpp"
