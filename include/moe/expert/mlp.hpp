// SPDX-License-Identifier: MIT
#pragma once

#include "moe/expert/linear.hpp"
#include "moe/expert/widths.hpp"

namespace moe::inline MOE_ABI {

/// y = act(x U^T + b) D^T + c: U [hidden_dim, input_dim], D [output_dim, hidden_dim], biases optional.
/// Immutable in forward, share freely. 2 * hidden_dim * (input_dim + output_dim) operations per row.
template <class Codec, Activation Act = Gelu>
class BasicMlp : public StagedExpert<BasicMlp<Codec, Act>, Codec> {
 public:
  using Tape = typename StagedExpert<BasicMlp, Codec>::template Tape<BasicMlp>;
  static constexpr std::array<std::string_view, 2> kStageNames = {"up", "down"};

  /// Zero weights, output as wide as input. Throws std::invalid_argument for negative sizes.
  BasicMlp(Index model_dim, Index hidden_dim, Bias bias = Bias::Zero)
      : BasicMlp(detail::CheckedWidths("moe::Mlp", model_dim, hidden_dim), bias) {}
  /// Zero weights. Throws std::invalid_argument for sizes below 1.
  explicit BasicMlp(const Widths& widths, Bias bias = Bias::Zero)
      : BasicMlp(detail::CheckedWidths("moe::Mlp", widths), bias) {}

  /// Weights from U(-1/sqrt(inputs), 1/sqrt(inputs)), zero biases.
  static BasicMlp random(Index model_dim, Index hidden_dim, std::uint64_t seed, Bias bias = Bias::Zero) {
    return randomised(BasicMlp(model_dim, hidden_dim, bias), seed);
  }
  /// The same for widths of their own; where output is as wide as input, the weights of (model_dim, hidden_dim).
  static BasicMlp random(const Widths& widths, std::uint64_t seed, Bias bias = Bias::Zero) {
    return randomised(BasicMlp(widths, bias), seed);
  }

  Index input_dim() const { return up_.inputs(); }
  Index hidden_dim() const { return up_.outputs(); }
  Index output_dim() const { return down_.outputs(); }
  PanelMatrix<Codec>& up() { return up_; }
  const PanelMatrix<Codec>& up() const { return up_; }
  detail::BiasPanels<Codec>& up_bias() { return up_bias_; }
  const detail::BiasPanels<Codec>& up_bias() const { return up_bias_; }
  PanelMatrix<Codec>& down() { return down_; }
  const PanelMatrix<Codec>& down() const { return down_; }
  detail::BiasPanels<Codec>& down_bias() { return down_bias_; }
  const detail::BiasPanels<Codec>& down_bias() const { return down_bias_; }

  /// Experts of consecutive hidden units, whose outputs add up to those of this one; see split_expert(). Throws
  /// std::invalid_argument unless 1 <= parts <= hidden_dim, and for an expert without inputs or outputs.
  std::vector<BasicMlp> split(Index parts) const
    requires(!detail::Coded<Codec>)
  {
    this->require_parts();
    return detail::split_hidden("moe::Mlp::split", hidden_dim(), parts, [&](std::span<const Index> units) {
      BasicMlp part = hidden_part(units);
      part.down_bias_ = detail::share_of_bias(down_bias_, parts);
      return part;
    });
  }
  /// The expert that has these hidden units alone, in this order, and the output bias. Throws std::invalid_argument for
  /// no units, one out of range, and an expert without inputs or outputs.
  BasicMlp take_hidden(std::span<const Index> units) const
    requires(!detail::Coded<Codec>)
  {
    this->require_parts();
    detail::require_ids("moe::Mlp::take_hidden", units, hidden_dim());
    BasicMlp part = hidden_part(units);
    part.down_bias_ = down_bias_;
    return part;
  }

  template <class Self>
  static auto stages(Self& self) {
    return std::tuple{make_stage<Elementwise<Act>>(self.up_, self.up_bias_),
                      make_stage<Elementwise<Identity>>(self.down_, self.down_bias_)};
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    detail::visit_weight(f, "up.weight", self.up_...);
    detail::visit_bias(f, "up.bias", self.up_bias_...);
    detail::visit_weight(f, "down.weight", self.down_...);
    detail::visit_bias(f, "down.bias", self.down_bias_...);
  }
  template <class F, class... Self>
    requires detail::Coded<Codec>
  static void state(F&& f, Self&... self) {
    f("up.weight", self.up_...);
    f("down.weight", self.down_...);
  }

 private:
  BasicMlp(const detail::CheckedWidths& widths, Bias bias)
      : up_(widths.hidden, widths.input),
        up_bias_(detail::make_bias<Codec>(bias, widths.hidden)),
        down_(widths.output, widths.hidden),
        down_bias_(detail::make_bias<Codec>(bias, widths.output)) {}

  /// Without an output bias.
  BasicMlp hidden_part(std::span<const Index> units) const {
    BasicMlp part(Widths{.input = input_dim(), .hidden = std::ssize(units), .output = output_dim()}, Bias::Off);
    part.up_ = up_.take_outputs(units);
    part.up_bias_ = up_bias_.take_outputs(units);
    part.down_ = down_.take_inputs(units);
    return part;
  }
  static BasicMlp randomised(BasicMlp expert, std::uint64_t seed) {
    expert.up_.randomise(RandomField(Purpose::Initialise, seed, 0), detail::initial_bound(expert.input_dim()));
    expert.down_.randomise(RandomField(Purpose::Initialise, seed, 1), detail::initial_bound(expert.hidden_dim()));
    return expert;
  }

  PanelMatrix<Codec> up_;
  detail::BiasPanels<Codec> up_bias_;
  PanelMatrix<Codec> down_;
  detail::BiasPanels<Codec> down_bias_;
};

using Mlp = BasicMlp<F32>;

}  // namespace moe::inline MOE_ABI
