// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/checkpoint/layout_compressed.hpp"
#include "moe/io/checkpoint/layout_fp4.hpp"
#include "moe/io/checkpoint/layout_fp8.hpp"
#include "moe/io/checkpoint/layout_gguf.hpp"
#include "moe/io/checkpoint/layout_gptq.hpp"
#include "moe/io/checkpoint/layout_plain.hpp"

namespace moe::inline MOE_ABI::detail {

/// A way to store a weight.
struct StorageLayout {
  std::string (*codes)(const std::string& name);               ///< name of the tensor with its codes
  bool (*takes)(const StoredParts& parts, const TensorView&);  ///< whether codes that are there are stored so
  std::unique_ptr<WeightStorage> (*open)(StoredParts& parts);  ///< checks all tensors
};

template <class Layout>
inline constexpr StorageLayout kStorageLayout{&Layout::codes, &Layout::takes, &Layout::open};

/// Of layouts with the same name of codes the first that takes them is meant; the last takes all, and says what is
/// wrong with them.
inline constexpr std::array kStorageLayouts{
    kStorageLayout<MxBlocksLayout<'_'>>, kStorageLayout<MxBlocksLayout<'.'>>, kStorageLayout<NvPackedLayout>,
    kStorageLayout<MxPackedLayout>,      kStorageLayout<PackedIntsLayout>,    kStorageLayout<AwqLayout>,
    kStorageLayout<GptqLayout>,          kStorageLayout<GgufLayout>,          kStorageLayout<NvModeloptLayout>,
    kStorageLayout<Int8Layout>,          kStorageLayout<Fp8Layout>,           kStorageLayout<PlainLayout>};

}  // namespace moe::inline MOE_ABI::detail
