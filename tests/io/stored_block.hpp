// SPDX-License-Identifier: MIT
// Files of whole blocks with random codes, as checkpoints store weights in few bits.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "moe/io/block/load_quantised_block.hpp"
#include "support/checkpoints.hpp"
#include "support/family_configs.hpp"
#include "support/matrices.hpp"
#include "support/same_codes.hpp"

namespace test {

/// How the matrices of experts are stored.
enum class StoredAs {
  F32,
  Bf16,
  F16,
  E4M3,
  E5M2,
  Fp8Blocks,
  Mxfp4,
  // Matrices of two extents alone:
  Fp8Tensor,
  Fp8Output,
  Nvfp4,
  Nvfp4Packed,
  Mxfp4Packed,
  Int4Packed,
  Int8,
  Gptq,
  Awq
};

inline std::string name_of(StoredAs stored) {
  constexpr const char* kNames[] = {"F32",         "BF16",           "F16",
                                    "E4M3",        "E5M2",           "FP8 in blocks",
                                    "MXFP4",       "FP8 per matrix", "FP8 per output",
                                    "NVFP4",       "packed NVFP4",   "packed MXFP4",
                                    "packed INT4", "INT8",           "GPTQ",
                                    "AWQ"};
  return kNames[static_cast<int>(stored)];
}

/// Random codes of finite numbers of moderate size, some of them negative.
inline std::string random_codes(moe::Dtype dtype, moe::Index count, std::mt19937& engine) {
  std::string bytes;
  const auto append = [&](auto code) { bytes.append(reinterpret_cast<const char*>(&code), sizeof code); };
  for (moe::Index i = 0; i < count; ++i) {
    const auto draw = static_cast<std::uint32_t>(engine()), sign = draw >> 31;
    switch (dtype) {
      case moe::Dtype::F32:
        append(std::ldexp(static_cast<float>(draw >> 8), -26));
        break;
      case moe::Dtype::BF16:
        append(static_cast<std::uint16_t>(sign << 15 | (118 + draw % 9) << 7 | (draw >> 8 & 127)));
        break;
      case moe::Dtype::F16:
        append(static_cast<std::uint16_t>(sign << 15 | (6 + draw % 9) << 10 | (draw >> 8 & 1023)));
        break;
      case moe::Dtype::F8_E4M3:
        append(static_cast<std::uint8_t>(sign << 7 | (draw >> 8) % 0x3C));
        break;
      case moe::Dtype::F8_E5M2:
        append(static_cast<std::uint8_t>(sign << 7 | (draw >> 8) % 0x3D));
        break;
      default:
        append(static_cast<std::uint8_t>(draw >> 8));
    }
  }
  return bytes;
}

/// A checkpoint with the MoE block of layer 0 in one format of its family. Routers, scores and biases are BF16.
class StoredBlock {
 public:
  StoredBlock(const moe::MoeConfig& config, const moe::FamilyFormat& format, StoredAs stored)
      : location_{format, moe::numbered_name(format.prefix, 0), stored == StoredAs::Mxfp4}, engine_(7) {
    moe::MoeBlock block(config);
    for (const moe::BoundTensor& tensor : moe::bind_weights(block, location_)) {
      if (tensor.numbers)
        add(tensor.name, moe::Dtype::F32, tensor.shape);
      else if (moe::detail::is_quantisable(tensor, location_))
        add(tensor.name, tensor.shape, stored);
      else
        add(tensor.name, moe::Dtype::BF16, tensor.shape);
    }
  }
  StoredBlock(const moe::MoeConfig& config, StoredAs stored)
      : StoredBlock(config, moe::find_family(config.family)->formats.front(), stored) {}

  const moe::BlockLocation& location() const { return location_; }
  std::vector<Tensor>& tensors() { return tensors_; }
  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Tensor& tensor : tensors_) sum += tensor.bytes.size();
    return sum;
  }
  moe::Checkpoint open() const {
    write_tensors(directory_ / "x.safetensors", tensors_);
    return moe::Checkpoint::open(directory_ / "x.safetensors");
  }

 private:
  void add(const std::string& name, moe::Dtype dtype, const std::vector<moe::Index>& shape) {
    const auto bytes = static_cast<moe::Index>(*moe::detail::tensor_bytes(dtype, shape));
    const moe::Index size = moe::is_floating(dtype) ? static_cast<moe::Index>(moe::dtype_size(dtype)) : 1;
    tensors_.push_back({name, dtype, shape, random_codes(dtype, bytes / size, engine_)});
  }
  void add(const std::string& name, std::vector<moe::Index> shape, StoredAs stored) {
    switch (stored) {
      case StoredAs::F32:
        return add(name, moe::Dtype::F32, shape);
      case StoredAs::Bf16:
        return add(name, moe::Dtype::BF16, shape);
      case StoredAs::F16:
        return add(name, moe::Dtype::F16, shape);
      case StoredAs::E4M3:
        return add(name, moe::Dtype::F8_E4M3, shape);
      case StoredAs::E5M2:
        return add(name, moe::Dtype::F8_E5M2, shape);
      case StoredAs::Fp8Blocks:
        add(name, moe::Dtype::F8_E4M3, shape);
        for (moe::Index& extent : std::span(shape).last(2)) extent = (extent + 127) / 128;
        return add(name + "_scale_inv", moe::Dtype::F32, shape);
      case StoredAs::Mxfp4:
        shape.back() /= 32;
        add(name + "_scales", moe::Dtype::U8, shape);
        for (char& exponent : tensors_.back().bytes)
          exponent = static_cast<char>(120 + static_cast<unsigned char>(exponent) % 6);
        shape.push_back(16);
        return add(name + "_blocks", moe::Dtype::U8, shape);
      case StoredAs::Fp8Tensor:
      case StoredAs::Fp8Output:
        add(name, moe::Dtype::F8_E4M3, shape);
        return add(name + "_scale", moe::Dtype::BF16,
                   stored == StoredAs::Fp8Tensor ? std::vector<moe::Index>{} : std::vector<moe::Index>{shape[0], 1});
      default:
        return add_matrix(name, shape[0], shape[1], stored);
    }
  }
  /// Codes of two in a byte, or in words, in groups of 32 (16 in NVFP4).
  void add_matrix(const std::string& name, moe::Index out, moe::Index in, StoredAs stored) {
    using moe::Dtype;
    const std::string module = name.substr(0, name.rfind('.') + 1);
    switch (stored) {
      case StoredAs::Nvfp4:
      case StoredAs::Nvfp4Packed:
        add(name + (stored == StoredAs::Nvfp4 ? "" : "_packed"), Dtype::U8, {out, in / 2});
        add(name + (stored == StoredAs::Nvfp4 ? "_scale_2" : "_global_scale"), Dtype::F32, {1});
        add(module + (stored == StoredAs::Nvfp4 ? "input_scale" : "input_global_scale"), Dtype::F32, {1});
        return add(name + "_scale", Dtype::F8_E4M3, {out, in / 16});
      case StoredAs::Mxfp4Packed:
        add(name + "_packed", Dtype::U8, {out, in / 2});
        add(name + "_scale", Dtype::U8, {out, in / 32});
        for (char& exponent : tensors_.back().bytes)
          exponent = static_cast<char>(120 + static_cast<unsigned char>(exponent) % 6);
        return;
      case StoredAs::Int4Packed:
        add(name + "_packed", Dtype::I32, {out, in / 8});
        add(name + "_scale", Dtype::BF16, {out, in / 32});
        // Those of every other matrix are in the middle, and so none.
        add(name + "_zero_point", Dtype::I32, {out / 8, in / 32});
        if (tensors_.size() % 8 < 4) tensors_.back().bytes.assign(tensors_.back().bytes.size(), '\x88');
        return tensors_.push_back({name + "_shape", Dtype::I64, {2}, bytes_of(std::vector<std::int64_t>{out, in})});
      case StoredAs::Int8:
        add(name, Dtype::I8, {out, in});
        return add(name + "_scale", Dtype::F32, {out, 1});
      case StoredAs::Gptq:
      case StoredAs::Awq:
        add(module + "qweight", Dtype::I32,
            stored == StoredAs::Gptq ? std::vector<moe::Index>{in / 8, out} : std::vector<moe::Index>{in, out / 8});
        add(module + "qzeros", Dtype::I32, {in / 32, out / 8});
        return add(module + "scales", Dtype::F16, {in / 32, out});
      default:
        return;
    }
  }

  TemporaryDirectory directory_;
  moe::BlockLocation location_;
  std::mt19937 engine_;
  std::vector<Tensor> tensors_;
};

/// The configuration of a family with other widths.
inline moe::MoeConfig config_of(const std::string& family, moe::Index model_dim, moe::Index hidden_dim) {
  moe::MoeConfig config = config_of(family);
  config.model_dim = model_dim;
  config.hidden_dim = hidden_dim;
  return config;
}

template <class Block>
moe::Matrix<float> output_of(const Block& block, moe::Index num_tokens = 9) {
  const auto tokens = random_matrix<float>(num_tokens, block.model_dim(), 5);
  moe::Workspace ws;
  moe::Matrix<float> out(tokens.rows(), tokens.cols());
  block.forward(tokens, moe::Step{}, out, ws);
  return out;
}

/// Whether all matrices of experts are; `count` gets how many there are.
inline bool same_codes(const moe::QuantisedMoeBlock& a, const moe::QuantisedMoeBlock& b, int& count) {
  bool are_same = true;
  moe::visit_state(
      [&](const std::string&, const auto& of_a, const auto& of_b) {
        if constexpr (std::is_same_v<decltype(of_a), const moe::PanelMatrix<moe::Quantised>&>) {
          are_same = are_same && same_codes(of_a, of_b);
          ++count;
        }
      },
      a, b);
  return are_same;
}

}  // namespace test
