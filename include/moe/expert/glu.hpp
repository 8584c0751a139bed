// SPDX-License-Identifier: MIT
#pragma once

#include "moe/expert/linear.hpp"

namespace moe::inline MOE_ABI {

/// y = h(x G^T + a, x U^T + b) D^T + c with h(g, u) = Silu(g) * u by default (SwiGLU): G, U [hidden_dim, model_dim],
/// D [model_dim, hidden_dim], biases optional. Gate and up live in one paired panel matrix [2 * hidden_dim, model_dim],
/// gates first, so that one product computes both. Immutable in forward, share freely.
/// 6 * model_dim * hidden_dim operations per row. Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202.
template <class Codec, class Product = SwiGlu>
class BasicGlu : public StagedExpert<BasicGlu<Codec, Product>, Codec> {
 public:
  using Tape = typename StagedExpert<BasicGlu, Codec>::template Buffers<BasicGlu>;

  /// Zero weights. Throws std::invalid_argument for negative sizes, and for what the product refuses.
  BasicGlu(Index model_dim, Index hidden_dim, Bias bias = Bias::Off, const Product& product = {})
      : product_(product),
        gate_up_(2 * detail::checked_size("moe::Glu", "hidden_dim", hidden_dim),
                 detail::checked_size("moe::Glu", "model_dim", model_dim), PanelOrder::Paired),
        gate_up_bias_(detail::make_bias<Codec>(bias, 2 * hidden_dim, PanelOrder::Paired)),
        down_(model_dim, hidden_dim),
        down_bias_(detail::make_bias<Codec>(bias, model_dim)) {
    if constexpr (requires { product.validate(); }) product.validate();
  }

  /// Weights from U(-1/sqrt(inputs), 1/sqrt(inputs)), zero biases.
  static BasicGlu random(Index model_dim, Index hidden_dim, std::uint64_t seed, Bias bias = Bias::Off) {
    BasicGlu expert(model_dim, hidden_dim, bias);
    expert.gate_up_.randomise(RandomField(Purpose::Initialise, seed, 0), detail::initial_bound(model_dim));
    expert.down_.randomise(RandomField(Purpose::Initialise, seed, 1), detail::initial_bound(hidden_dim));
    return expert;
  }

  const Product& product() const { return product_; }
  Index input_dim() const { return gate_up_.inputs(); }
  Index hidden_dim() const { return gate_up_.outputs() / 2; }
  Index output_dim() const { return down_.outputs(); }
  PanelMatrix<Codec>& gate_up() { return gate_up_; }
  const PanelMatrix<Codec>& gate_up() const { return gate_up_; }
  PanelMatrix<Codec>& gate_up_bias() { return gate_up_bias_; }
  const PanelMatrix<Codec>& gate_up_bias() const { return gate_up_bias_; }
  PanelMatrix<Codec>& down() { return down_; }
  const PanelMatrix<Codec>& down() const { return down_; }
  PanelMatrix<Codec>& down_bias() { return down_bias_; }
  const PanelMatrix<Codec>& down_bias() const { return down_bias_; }

  template <class Self>
  static auto stages(Self& self) {
    return std::tuple{make_stage<Gated<Product>>(self.gate_up_, self.gate_up_bias_, {self.product_}),
                      make_stage<Elementwise<Identity>>(self.down_, self.down_bias_)};
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("gate_up.weight", self.gate_up_...);
    detail::visit_bias(f, "gate_up.bias", self.gate_up_bias_...);
    f("down.weight", self.down_...);
    detail::visit_bias(f, "down.bias", self.down_bias_...);
  }

 private:
  [[no_unique_address]] Product product_;
  PanelMatrix<Codec> gate_up_, gate_up_bias_, down_, down_bias_;
};

using Glu = BasicGlu<F32>;

}  // namespace moe::inline MOE_ABI
