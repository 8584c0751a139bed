// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/io/block/block_weights.hpp"
#include "moe/io/checkpoint/tensor_group.hpp"

// The tensors of a block, on their way to a file.
namespace moe::inline MOE_ABI::detail {

/// Takes bytes of a tensor from one on; called from several threads.
using PutBytes = std::function<void(std::string_view name, std::uint64_t first, std::span<const std::byte> bytes)>;

/// Least number that a type makes infinite: half a step above the largest.
inline double overflow_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::F16:
      return 65520;
    case Dtype::BF16:
      return 0x1.FFp127;
    case Dtype::F32:
      return 0x1.FFFFFFp127;
    default:
      return std::numeric_limits<double>::infinity();
  }
}

/// The values in a type, rounded to nearest. Throws std::invalid_argument for one that is finite and would not be.
template <class S>
std::vector<std::byte> encoded(const char* function, const std::string& name, std::span<const S> values, Dtype dtype) {
  if (dtype_size(dtype) < sizeof(S)) {
    const auto least = static_cast<S>(overflow_of(dtype));
    const auto is_large = [&](S value) { return std::abs(value) >= least && std::isfinite(value); };
    bool has_large = false;
    for (const S value : values) has_large |= is_large(value);  // without a branch: all are looked at
    if (has_large)
      fail(function, ": tensor ", in_quotes(name), " holds ", *std::find_if(values.begin(), values.end(), is_large),
           ", which is too large for ", dtype_name(dtype));
  }
  std::vector<std::byte> bytes(values.size() * dtype_size(dtype));
  encode(values, dtype, bytes.data());
  return bytes;
}

/// Bytes of all tensors of a block, matrix by matrix, in parallel; types as in `tensors`.
inline void write_tensors(const char* function, const MoeBlock& block, const BlockLocation& location,
                          const TensorSink::Tensors& tensors, const PutBytes& put) {
  struct Part {
    const BoundTensor* tensor;
    Index first, size;
  };
  // What is bound could be written to, and is only read here.
  const std::vector<BoundTensor> bound = bind_weights(const_cast<MoeBlock&>(block), location);
  std::vector<Part> parts;
  for (const BoundTensor& tensor : bound) {
    Index size = 1, matrices = 1;
    for (const Index extent : tensor.shape) size *= extent;
    if (tensor.slices.size() > 1)  // matrices of all experts, one after the other
      matrices =
          location.format.layout == ExpertLayout::StackedRows ? block.config().num_experts : tensor.shape.front();
    for (Index m = 0; m < matrices; ++m) parts.push_back({&tensor, m * (size / matrices), size / matrices});
  }
  parallel_in_order(std::ssize(parts), [&](Index p, Index) {
    const auto [tensor, first, size] = parts[static_cast<std::size_t>(p)];
    const Dtype dtype = tensors.at(tensor->name).dtype;
    const std::uint64_t begin = static_cast<std::uint64_t>(first) * dtype_size(dtype);
    if (tensor->numbers) {
      const std::span<const double> numbers(tensor->numbers->data(), static_cast<std::size_t>(size));
      return put(tensor->name, begin, encoded(function, tensor->name, numbers, dtype));
    }
    std::vector<float> values(static_cast<std::size_t>(size));
    read_bound(*tensor, first, values);
    put(tensor->name, begin, encoded(function, tensor->name, std::span<const float>(values), dtype));
  });
}

/// The configuration of a block with the numbers that its layer has now: whoever changed those meant it.
inline MoeConfig stated_config(const MoeBlock& block) {
  MoeConfig config = block.config();
  std::visit(
      [&](const auto& layer) {
        const auto& inner = innermost(layer);
        using G = std::remove_cvref_t<decltype(inner.gate())>;
        if constexpr (std::is_same_v<G, SparseMixerGate>)
          config.sparse_mixer = inner.gate();
        else if constexpr (std::is_same_v<G, TopKGate>)
          config.gate = inner.gate();
        else
          config.gate = inner.gate().gate, config.capacity = inner.gate().capacity;
        if constexpr (std::is_same_v<std::remove_cvref_t<decltype(inner.experts())>, ExpertPool<ClampedGlu>>)
          config.clamp = inner.experts()[0].product();
        config.weight_on = inner.mixture().weight_on();
      },
      block.layer());
  config.selection_bias = config.gate.selection_bias.size() != 0;
  config.gate.selection_bias = {};  // a tensor
  return config;
}

}  // namespace moe::inline MOE_ABI::detail
