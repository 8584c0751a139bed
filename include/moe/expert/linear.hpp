// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <string_view>

#include "moe/expert/stage/staged_expert.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

template <class Codec>
using BiasPanels = PanelMatrix<BiasCodec<Codec>>;

template <class Codec>
BiasPanels<Codec> make_bias(Bias bias, Index outputs, PanelOrder order = PanelOrder::Plain) {
  return bias == Bias::Off ? BiasPanels<Codec>() : BiasPanels<Codec>::bias(outputs, order);
}

/// The bound of U(-b, b) for weights that read `inputs` values: 1 / sqrt(inputs), so that unit-variance rows give
/// outputs of variance 1/3.
inline double initial_bound(Index inputs) { return inputs > 0 ? 1.0 / std::sqrt(static_cast<double>(inputs)) : 0.0; }

/// Visits a bias only where there is one.
template <class F, class First, class... Rest>
void visit_bias(F&& f, const char* name, First& first, Rest&... rest) {
  if (!first.empty()) f(name, first, rest...);
}

/// Visits weights that are learned; the others are state.
template <class F, class First, class... Rest>
void visit_weight(F&& f, const char* name, First& first, Rest&... rest) {
  if constexpr (LearnedWeight<std::remove_const_t<First>>) f(name, first, rest...);
}

/// Codecs whose weights are state.
template <class Codec>
concept Coded = !LearnedWeight<PanelMatrix<Codec>>;

/// One of `parts` equal summands of a bias.
template <class Codec>
PanelMatrix<Codec> share_of_bias(PanelMatrix<Codec> bias, Index parts) {
  for (auto& value : bias.span()) value /= static_cast<typename Codec::Scalar>(parts);
  return bias;
}

}  // namespace detail

/// y = x W^T + b: W [output_dim, input_dim], b [output_dim] or none. Immutable in forward, share freely.
template <class Codec>
class BasicLinear : public StagedExpert<BasicLinear<Codec>, Codec> {
 public:
  using Tape = typename StagedExpert<BasicLinear, Codec>::template Tape<BasicLinear>;
  static constexpr std::array<std::string_view, 1> kStageNames = {"weight"};

  /// Zero weights. Throws std::invalid_argument for negative sizes.
  BasicLinear(Index output_dim, Index input_dim, Bias bias = Bias::Zero)
      : weight_(detail::checked_size("moe::Linear", "output_dim", output_dim),
                detail::checked_size("moe::Linear", "input_dim", input_dim)),
        bias_(detail::make_bias<Codec>(bias, output_dim)) {}

  /// Weights from U(-1/sqrt(input_dim), 1/sqrt(input_dim)), zero bias.
  static BasicLinear random(Index output_dim, Index input_dim, std::uint64_t seed, Bias bias = Bias::Zero) {
    BasicLinear expert(output_dim, input_dim, bias);
    expert.weight_.randomise(RandomField(Purpose::Initialise, seed), detail::initial_bound(input_dim));
    return expert;
  }

  Index input_dim() const { return weight_.inputs(); }
  Index output_dim() const { return weight_.outputs(); }
  PanelMatrix<Codec>& weight() { return weight_; }
  const PanelMatrix<Codec>& weight() const { return weight_; }
  detail::BiasPanels<Codec>& bias() { return bias_; }
  const detail::BiasPanels<Codec>& bias() const { return bias_; }

  template <class Self>
  static auto stages(Self& self) {
    return std::tuple{make_stage<Elementwise<Identity>>(self.weight_, self.bias_)};
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    detail::visit_weight(f, "weight", self.weight_...);
    detail::visit_bias(f, "bias", self.bias_...);
  }
  template <class F, class... Self>
    requires detail::Coded<Codec>
  static void state(F&& f, Self&... self) {
    f("weight", self.weight_...);
  }

 private:
  PanelMatrix<Codec> weight_;
  detail::BiasPanels<Codec> bias_;
};

using Linear = BasicLinear<F32>;

}  // namespace moe::inline MOE_ABI
