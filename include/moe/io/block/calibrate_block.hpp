// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>

#include "moe/compress/expert_scores.hpp"
#include "moe/compress/quantisation_errors.hpp"
#include "moe/compress/quantise_calibrated.hpp"
#include "moe/core/when_used.hpp"
#include "moe/io/block/quantise_block.hpp"

// Blocks of published models in few bits, found from what their experts have read, and what their experts are like.
namespace moe::inline MOE_ABI {

namespace detail {

/// Calls f(shared expert) if a layer has one.
template <class Layer, class F>
void with_shared(const Layer& layer, const F& f) {
  if constexpr (requires { layer.template branch<0>(); }) {
    const auto& branch = layer.template branch<0>();
    if constexpr (HasPanels<std::remove_cvref_t<decltype(branch)>>)
      f(branch);
    else if constexpr (requires { branch.expert(); })
      f(branch.expert());
  }
}

/// f(innermost layer) of a block whose experts are one pool. Throws for other blocks.
template <class F>
void with_pool(const MoeBlock& block, const F& f) {
  std::visit(
      [&](const auto& layer) {
        const auto& inner = innermost(layer);
        if constexpr (IsPanelPool<std::remove_cvref_t<decltype(inner.experts())>>::value)
          f(layer, inner);
        else
          fail("moe::calibrate: family '", block.config().family,
               "' has experts without weights beside the others, expected experts of one kind");
      },
      block.layer());
}

}  // namespace detail

/// What the experts of a block have read, and its shared expert, which reads all tokens. A plain value, saved and
/// loaded as Calibration is.
struct BlockCalibration {
  Calibration experts = {};
  ExpertStatistics shared = {};  ///< empty without one

  BlockCalibration() = default;
  BlockCalibration(Calibration of_experts, ExpertStatistics of_shared)
      : experts(std::move(of_experts)), shared(std::move(of_shared)) {}
  /// Of no tokens. Throws std::invalid_argument for a block with identity experts (LongCat).
  template <class = detail::WhenUsed>
  explicit BlockCalibration(const MoeBlock& block) {
    detail::with_pool(block, [&](const auto& layer, const auto& inner) {
      experts = Calibration(inner.experts());
      detail::with_shared(layer, [&](const auto& expert) { shared = detail::empty_statistics(expert); });
    });
  }

  /// Throws std::invalid_argument for those of a block of other experts.
  BlockCalibration& operator+=(const BlockCalibration& other) {
    experts += other.experts;
    shared += other.shared;
    return *this;
  }

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    visit_part(f, "block", self.experts...);
    if (!std::get<0>(std::tie(self...)).shared.empty()) visit_part(f, "shared", self.shared...);
  }
};

/// What the experts read in a forward pass of tokens [num_tokens, model_dim], the inputs of the block: behind the norm
/// that stands before it in a model. In batches of some thousand, whose hidden units have room in memory. Throws
/// std::invalid_argument for tokens of another width, and as the constructor.
template <class = detail::WhenUsed>
BlockCalibration calibrate(const MoeBlock& block, const ConstMatrixRef<float>& tokens) {
  constexpr Index kAtOnce = 4096;
  detail::require_shape("moe::calibrate", "tokens", tokens, tokens.rows(), block.model_dim());
  BlockCalibration sum(block);
  for (Index first = 0; first < tokens.rows(); first += kAtOnce) {
    const ConstMatrixRef<float> batch = tokens.middleRows(first, std::min(kAtOnce, tokens.rows() - first));
    detail::with_pool(block, [&](const auto& layer, const auto& inner) {
      sum.experts += calibrate(inner, batch);
      detail::with_shared(layer, [&](const auto& expert) { sum.shared += calibrate(expert, batch); });
    });
  }
  return sum;
}

/// output_similarity() of the routed experts of a block. Throws std::invalid_argument as that, and for a block with
/// identity experts.
template <class = detail::WhenUsed>
Matrix<double> output_similarity(const MoeBlock& block, const MatrixView<float>& tokens) {
  Matrix<double> result;
  detail::with_pool(block,
                    [&](const auto&, const auto& inner) { result = output_similarity(inner.experts(), tokens); });
  return result;
}
/// quantisation_errors() of the routed experts of a block. Throws std::invalid_argument as that, and for a block with
/// identity experts.
template <detail::AnyQuantiser Q>
Matrix<double> quantisation_errors(const MoeBlock& block, const MatrixView<float>& tokens,
                                   std::span<const WeightFormat> formats, const Q& quantiser,
                                   const Calibration& calibration) {
  Matrix<double> result;
  detail::with_pool(block, [&](const auto&, const auto& inner) {
    result = quantisation_errors(inner, tokens, formats, quantiser, calibration);
  });
  return result;
}

namespace detail {

template <class Codec, class Branch, class Quantise>
auto calibrated_branch(const Branch& branch, const Quantise& quantise_expert) {
  if constexpr (HasPanels<Branch>)
    return quantise_expert(branch);
  else if constexpr (requires { branch.expert(); })
    return GatedExpert(quantise_expert(branch.expert()), branch.gate());
  else
    return branch;
}

/// with_pool and with_branch make the parts.
template <class R, class G, class X, class Pool, class Branch>
auto calibrated_layer(const MoeLayer<R, G, X>& layer, const Pool& of_pool, const Branch&) {
  return with_experts(layer, of_pool(layer.experts()));
}
template <class Layer, class B, class Pool, class Branch>
auto calibrated_layer(const WithBranches<Layer, B>& layer, const Pool& of_pool, const Branch& of_branch) {
  return WithBranches(calibrated_layer(layer.layer(), of_pool, of_branch),
                      calibrated_branch<Quantised>(layer.template branch<0>(), of_branch));
}

}  // namespace detail

/// The block with the weights of its experts in few bits, the shared one included, found from a calibration of it: see
/// quantise() of pools. In a report the shared expert has the number kSharedExpert. Throws std::invalid_argument as
/// that, and for a block with identity experts.
///   const auto few = moe::quantise(block, moe::WeightFormat::int4(), moe::Gptq{}, moe::calibrate(block, tokens));
template <detail::FormatChoice Format, detail::AnyQuantiser Q>
QuantisedMoeBlock quantise(const MoeBlock& block, const Format& format, const Q& quantiser,
                           const BlockCalibration& calibration, const QuantisationOptions& options = {}) {
  using Layer = QuantisedMoeBlock::Layer;
  QuantisationReport of_shared;
  const auto quantise_pool = [&](const auto& pool) {
    return quantise(pool, format, quantiser, calibration.experts, options);
  };
  const auto quantise_shared = [&](const auto& expert) {
    QuantisationOptions mine = options;
    if (options.report) mine.report = &of_shared;
    mine.progress = {};
    const auto format_of = [&](const ExpertMatrix& matrix) {
      return detail::format_for(format, ExpertMatrix{.expert = kSharedExpert, .name = matrix.name});
    };
    return quantise(expert, format_of, quantiser, calibration.shared, mine);
  };
  std::optional<Layer> made;
  detail::with_pool(block, [&](const auto& layer, const auto&) {
    made.emplace(detail::calibrated_layer(layer, quantise_pool, quantise_shared));
  });
  if (options.report)
    for (MatrixReport& report : of_shared.matrices) {
      report.expert = kSharedExpert;
      options.report->matrices.push_back(std::move(report));
    }
  return {block.config(), std::move(*made)};
}

}  // namespace moe::inline MOE_ABI
