// SPDX-License-Identifier: MIT
#pragma once

#include "moe/expert/linear.hpp"
#include "moe/expert/widths.hpp"

namespace moe::inline MOE_ABI {

/// y = h(x G^T + a, x U^T + b) D^T + c with h(g, u) = Silu(g) * u by default (SwiGLU): G, U [hidden_dim, input_dim],
/// D [output_dim, hidden_dim], biases optional. Gate and up live in one paired panel matrix [2 * hidden_dim,
/// input_dim], gates first, so that one product computes both. Immutable in forward, share freely. 2 * hidden_dim * (2
/// * input_dim + output_dim) operations per row. Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202.
template <class Codec, class Product = SwiGlu>
class BasicGlu : public StagedExpert<BasicGlu<Codec, Product>, Codec> {
 public:
  using Tape = typename StagedExpert<BasicGlu, Codec>::template Tape<BasicGlu>;
  static constexpr std::array<std::string_view, 2> kStageNames = {"gate_up", "down"};

  /// Zero weights, output as wide as input. Throws std::invalid_argument for negative sizes, and for what the product
  /// refuses.
  BasicGlu(Index model_dim, Index hidden_dim, Bias bias = Bias::Off, const Product& product = {})
      : BasicGlu(detail::CheckedWidths("moe::Glu", model_dim, hidden_dim), bias, product) {}
  /// Zero weights. Throws std::invalid_argument for sizes below 1, and for what the product refuses.
  explicit BasicGlu(const Widths& widths, Bias bias = Bias::Off, const Product& product = {})
      : BasicGlu(detail::CheckedWidths("moe::Glu", widths), bias, product) {}

  /// Weights from U(-1/sqrt(inputs), 1/sqrt(inputs)), zero biases.
  static BasicGlu random(Index model_dim, Index hidden_dim, std::uint64_t seed, Bias bias = Bias::Off) {
    return randomised(BasicGlu(model_dim, hidden_dim, bias), seed);
  }
  /// The same for widths of their own; where output is as wide as input, the weights of (model_dim, hidden_dim).
  static BasicGlu random(const Widths& widths, std::uint64_t seed, Bias bias = Bias::Off) {
    return randomised(BasicGlu(widths, bias), seed);
  }

  const Product& product() const { return product_; }
  Index input_dim() const { return gate_up_.inputs(); }
  Index hidden_dim() const { return gate_up_.outputs() / 2; }
  Index output_dim() const { return down_.outputs(); }
  PanelMatrix<Codec>& gate_up() { return gate_up_; }
  const PanelMatrix<Codec>& gate_up() const { return gate_up_; }
  detail::BiasPanels<Codec>& gate_up_bias() { return gate_up_bias_; }
  const detail::BiasPanels<Codec>& gate_up_bias() const { return gate_up_bias_; }
  PanelMatrix<Codec>& down() { return down_; }
  const PanelMatrix<Codec>& down() const { return down_; }
  detail::BiasPanels<Codec>& down_bias() { return down_bias_; }
  const detail::BiasPanels<Codec>& down_bias() const { return down_bias_; }

  /// Experts of consecutive hidden units, each with its gate, whose outputs add up to those of this one; see
  /// split_expert(). Throws std::invalid_argument unless 1 <= parts <= hidden_dim, and for an expert without inputs or
  /// outputs.
  std::vector<BasicGlu> split(Index parts) const
    requires(!detail::Coded<Codec>)
  {
    this->require_parts();
    return detail::split_hidden("moe::Glu::split", hidden_dim(), parts, [&](std::span<const Index> units) {
      BasicGlu part = hidden_part(units);
      part.down_bias_ = detail::share_of_bias(down_bias_, parts);
      return part;
    });
  }
  /// The expert that has these hidden units alone, each with its gate, in this order, and the output bias. Throws
  /// std::invalid_argument for no units, one out of range, and an expert without inputs or outputs.
  BasicGlu take_hidden(std::span<const Index> units) const
    requires(!detail::Coded<Codec>)
  {
    this->require_parts();
    detail::require_ids("moe::Glu::take_hidden", units, hidden_dim());
    BasicGlu part = hidden_part(units);
    part.down_bias_ = down_bias_;
    return part;
  }

  template <class Self>
  static auto stages(Self& self) {
    return std::tuple{make_stage<Gated<Product>>(self.gate_up_, self.gate_up_bias_, {self.product_}),
                      make_stage<Elementwise<Identity>>(self.down_, self.down_bias_)};
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    detail::visit_weight(f, "gate_up.weight", self.gate_up_...);
    detail::visit_bias(f, "gate_up.bias", self.gate_up_bias_...);
    detail::visit_weight(f, "down.weight", self.down_...);
    detail::visit_bias(f, "down.bias", self.down_bias_...);
  }
  template <class F, class... Self>
    requires detail::Coded<Codec>
  static void state(F&& f, Self&... self) {
    f("gate_up.weight", self.gate_up_...);
    f("down.weight", self.down_...);
  }

 private:
  BasicGlu(const detail::CheckedWidths& widths, Bias bias, const Product& product)
      : product_(product),
        gate_up_(2 * widths.hidden, widths.input, PanelOrder::Paired),
        gate_up_bias_(detail::make_bias<Codec>(bias, 2 * widths.hidden, PanelOrder::Paired)),
        down_(widths.output, widths.hidden),
        down_bias_(detail::make_bias<Codec>(bias, widths.output)) {
    if constexpr (requires { product.validate(); }) product.validate();
  }

  /// Without an output bias.
  BasicGlu hidden_part(std::span<const Index> units) const {
    BasicGlu part(Widths{.input = input_dim(), .hidden = std::ssize(units), .output = output_dim()}, Bias::Off,
                  product_);
    std::vector<Index> rows(units.begin(), units.end());  // gates, then ups
    for (const Index unit : units) rows.push_back(hidden_dim() + unit);
    part.gate_up_ = gate_up_.take_outputs(rows);
    part.gate_up_bias_ = gate_up_bias_.take_outputs(rows);
    part.down_ = down_.take_inputs(units);
    return part;
  }
  static BasicGlu randomised(BasicGlu expert, std::uint64_t seed) {
    expert.gate_up_.randomise(RandomField(Purpose::Initialise, seed, 0), detail::initial_bound(expert.input_dim()));
    expert.down_.randomise(RandomField(Purpose::Initialise, seed, 1), detail::initial_bound(expert.hidden_dim()));
    return expert;
  }

  [[no_unique_address]] Product product_;
  PanelMatrix<Codec> gate_up_;
  detail::BiasPanels<Codec> gate_up_bias_;
  PanelMatrix<Codec> down_;
  detail::BiasPanels<Codec> down_bias_;
};

using Glu = BasicGlu<F32>;

}  // namespace moe::inline MOE_ABI
