// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "moe/io/block/block_weights.hpp"
#include "moe/io/checkpoint/weight_source.hpp"

namespace moe::inline MOE_ABI {

/// Where the tensors of a block are, before they are read.
struct BlockLocation {
  FamilyFormat format = {};
  std::string prefix = {};
  bool is_quantised = false;  ///< fused expert weights stored as blocks and scales (MXFP4)
};

namespace detail {

/// Throws std::runtime_error for an FP8 weight without scales where the configuration says that there are some, or
/// another weight has them: they are lost, not 1. Where nobody speaks of scales, the codes are the values.
inline void require_all_scales(const MoeConfig& config, const std::vector<WeightSource>& sources) {
  const bool is_stated = config.quantisation.method == QuantMethod::Fp8Blocks;
  const auto scaled =
      std::find_if(sources.begin(), sources.end(), [](const WeightSource& s) { return s.has_scales(); });
  if (!is_stated && scaled == sources.end()) return;
  const std::string reason =
      is_stated ? "the configuration says fp8 in blocks with scales" : in_quotes(scaled->name()) + " has scales";
  for (const WeightSource& source : sources)
    if (source.is_fp8() && !source.has_scales())
      fail_environment(source.label(), ": tensor ", in_quotes(source.name() + "_scale_inv"), " is missing, as ",
                       reason);
}

/// Whether quantisation is about a tensor: matrices of experts, shared ones included. Routers, gates of shared experts
/// and biases stay plain.
inline bool is_quantisable(const BoundTensor& tensor, const FamilyFormat& format, const std::string& prefix) {
  const bool is_score =
      tensor.name == prefix + std::string(format.router) || tensor.name == prefix + std::string(format.shared_score);
  return !is_score && !tensor.pieces.empty() && tensor.pieces.front().matrix->shape().size() == 2;
}

/// Throws std::runtime_error naming the tensor where one is stored otherwise than the configuration says. Plain expert
/// weights are refused, too, unless it lists their modules as not converted: whoever has turned a checkpoint into BF16
/// takes out the statement as well, or it is not known what the numbers are.
inline void require_stated(const MoeConfig& config, const BlockLocation& location,
                           const std::vector<BoundTensor>& tensors, const std::vector<WeightSource>& sources) {
  require_all_scales(config, sources);
  const Quantisation& stated = config.quantisation;
  if (stated.method == QuantMethod::Unstated) return;
  const bool is_fp8 = stated.method == QuantMethod::Fp8Blocks;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const WeightSource& source = sources[t];
    const bool is_as_stated = source.has_scales() && source.is_fp8() == is_fp8;
    const bool is_plain = !source.has_scales() && !source.is_fp8();
    const auto may_be_plain = [&] {
      return !is_quantisable(tensors[t], location.format, location.prefix) || stated.leaves_out(tensors[t].name);
    };
    if (!is_as_stated && !(is_plain && may_be_plain()))
      fail_environment(source.label(), ": tensor ", in_quotes(source.name()), " is stored as ", source.format(),
                       ", but the configuration says ", is_fp8 ? "fp8 in blocks with scales" : "mxfp4",
                       is_plain ? " and does not list it as not converted" : "");
    if (source.is_fp8() && stated.codes && source.codes() != *stated.codes)
      fail_environment(source.label(), ": tensor ", in_quotes(source.name()), " is ", dtype_name(source.codes()),
                       ", but the configuration says ", dtype_name(*stated.codes));
  }
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
