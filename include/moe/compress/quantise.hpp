// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/compress/round_to_nearest.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/linear.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/pool.hpp"
#include "moe/layer/structure.hpp"

// Experts, pools and layers with weights in few bits, made of those with floats; and back.
namespace moe::inline MOE_ABI {

/// A way to find codes and scales: called with the weights of a matrix and the format that they get.
template <class Q>
concept Quantiser = requires(const Q& quantiser, const PanelMatrix<F32>& weights, const WeightFormat& format) {
  { quantiser(weights, format) } -> std::same_as<PanelMatrix<Quantised>>;
};

/// round_to_nearest() as a Quantiser.
struct RoundToNearest {
  PanelMatrix<Quantised> operator()(const PanelMatrix<F32>& weights, const WeightFormat& format) const {
    return round_to_nearest(weights, format);
  }
};

/// A matrix of an expert of a pool: what a choice of formats may depend on. `name` is that of its parameter:
/// "gate_up.weight", "up.weight", "down.weight" or "weight".
struct ExpertMatrix {
  Index expert = 0;
  std::string_view name = {};
};

namespace detail {

/// A format for all, or one for each ExpertMatrix.
template <class F>
concept FormatChoice = std::convertible_to<const F&, WeightFormat> || requires(const F& choice, ExpertMatrix matrix) {
  { choice(matrix) } -> std::convertible_to<WeightFormat>;
};
template <class F>
WeightFormat format_for(const F& choice, const ExpertMatrix& matrix) {
  if constexpr (std::convertible_to<const F&, WeightFormat>)
    return choice;
  else
    return choice(matrix);
}

/// The codec that an expert type becomes.
template <class E, class Codec>
struct WithCodec;
template <class From, class Codec>
struct WithCodec<BasicLinear<From>, Codec> {
  using type = BasicLinear<Codec>;
};
template <class From, class Act, class Codec>
struct WithCodec<BasicMlp<From, Act>, Codec> {
  using type = BasicMlp<Codec, Act>;
};
template <class From, class Product, class Codec>
struct WithCodec<BasicGlu<From, Product>, Codec> {
  using type = BasicGlu<Codec, Product>;
};

/// Experts whose matrices are known by name: linear, MLP and GLU.
template <class E>
concept HasPanels = requires { typename WithCodec<E, F32>::type; };
/// The same with float weights.
template <class E>
concept HasFloatPanels = HasPanels<E> && std::is_same_v<E, typename WithCodec<E, F32>::type>;

/// The expert of another codec, whose matrices convert(name, matrix) makes of those of this one; biases stay.
template <class Codec, class From, class Convert>
BasicLinear<Codec> converted(const BasicLinear<From>& expert, const Convert& convert) {
  BasicLinear<Codec> result(expert.output_dim(), expert.input_dim(), Bias::Off);
  result.weight() = convert("weight", expert.weight());
  result.bias() = expert.bias();
  return result;
}
template <class Codec, class From, class Act, class Convert>
BasicMlp<Codec, Act> converted(const BasicMlp<From, Act>& expert, const Convert& convert) {
  BasicMlp<Codec, Act> result({expert.input_dim(), expert.hidden_dim(), expert.output_dim()}, Bias::Off);
  result.up() = convert("up.weight", expert.up());
  result.up_bias() = expert.up_bias();
  result.down() = convert("down.weight", expert.down());
  result.down_bias() = expert.down_bias();
  return result;
}
template <class Codec, class From, class Product, class Convert>
BasicGlu<Codec, Product> converted(const BasicGlu<From, Product>& expert, const Convert& convert) {
  BasicGlu<Codec, Product> result({expert.input_dim(), expert.hidden_dim(), expert.output_dim()}, Bias::Off,
                                  expert.product());
  result.gate_up() = convert("gate_up.weight", expert.gate_up());
  result.gate_up_bias() = expert.gate_up_bias();
  result.down() = convert("down.weight", expert.down());
  result.down_bias() = expert.down_bias();
  return result;
}

/// The pool of another codec: convert(ExpertMatrix, matrix) is called from several threads. `function`: who complains.
template <class Codec, HasPanels E, class Convert>
auto converted(const ExpertPool<E>& pool, const Convert& convert, const char* function = "moe::quantise") {
  using Other = typename WithCodec<E, Codec>::type;
  std::vector<std::optional<Other>> made(static_cast<std::size_t>(pool.size()));
  parallel_for(pool.size(), [&](Index e, Index) {
    made[static_cast<std::size_t>(e)].emplace(
        converted<Codec>(pool[e], [&](std::string_view name, const auto& weights) {
          try {
            return convert(ExpertMatrix{.expert = e, .name = name}, weights);
          } catch (const std::invalid_argument& error) {
            fail(function, ": expert ", e, ", ", name, ": ", error.what());
          }
        }));
  });
  std::vector<Other> experts;
  for (auto& expert : made) experts.push_back(std::move(*expert));
  return ExpertPool<Other>(std::move(experts));
}

/// What quantise() makes of a matrix, and what dequantise() does.
template <class Format, class Q>
auto rounding(const Format& format, const Q& quantiser) {
  return [&](const ExpertMatrix& matrix, const PanelMatrix<F32>& weights) {
    return quantiser(weights, format_for(format, matrix));
  };
}
inline constexpr auto kDecoding = [](const ExpertMatrix&, const auto& weights) { return weights.decoded(); };

}  // namespace detail

/// The expert with weights in few bits: of Linear, Mlp and Glu. `format` is a WeightFormat, or a function of an
/// ExpertMatrix, so that matrices may differ; WeightFormat::none(), which is what WeightFormat{} is, makes weights of
/// 0. Biases stay floats. Throws std::invalid_argument where the quantiser does.
///   const auto small = moe::quantise(expert, moe::WeightFormat::int4());
template <detail::HasFloatPanels E, detail::FormatChoice Format, Quantiser Q = RoundToNearest>
auto quantise(const E& expert, const Format& format, const Q& quantiser = {}) {
  return detail::converted<Quantised>(expert, [&](std::string_view name, const PanelMatrix<F32>& weights) {
    return quantiser(weights, detail::format_for(format, ExpertMatrix{.name = name}));
  });
}

/// The same of every expert of a pool, in parallel; a function as `format` sees the number of the expert, too, and it
/// and the quantiser are called from several threads.
///   quantise(pool, [&](const moe::ExpertMatrix& m) { return formats[m.expert]; })
template <detail::HasFloatPanels E, detail::FormatChoice Format, Quantiser Q = RoundToNearest>
auto quantise(const ExpertPool<E>& pool, const Format& format, const Q& quantiser = {}) {
  return detail::converted<Quantised>(pool, detail::rounding(format, quantiser));
}

/// The layer with its pool quantised; router, gate and branches stay. Backward goes through the codes to the tokens,
/// the router and the biases.
///   const auto small = moe::quantise(layer, moe::WeightFormat::mxfp4());
template <detail::HasExperts L, detail::FormatChoice Format, Quantiser Q = RoundToNearest>
auto quantise(const L& layer, const Format& format, const Q& quantiser = {}) {
  return transform_experts(layer, [&](const auto& experts) { return quantise(experts, format, quantiser); });
}

/// What cannot be quantised, in a sentence.
template <class T, class Format, class... Q>
void quantise(const T&, const Format&, const Q&...) {
  static_assert(!std::is_same_v<T, T>,
                "moe::quantise: an expert, pool or layer of Linear, Mlp or Glu with floats can be quantised (write "
                "PanelMatrix<Quantised> into experts of your own)");
}
template <class T, class Format, class... Q>
  requires(!detail::FormatChoice<Format>)
void quantise(const T&, const Format&, const Q&...) {
  static_assert(!std::is_same_v<T, T>,
                "moe::quantise: a format is a moe::WeightFormat, or a function of moe::ExpertMatrix that returns one");
}

/// The expert, pool or layer whose rows are rounded, too, before they are multiplied: faster where tens of rows or
/// more meet an expert, and with few rows of 4 bits (.github/FORMATS.md); see PanelMatrix<Quantised>::dot(). Throws
/// std::invalid_argument for formats that have no such product.
///   const auto fast = moe::with_dot(moe::quantise(layer, moe::WeightFormat::int8()), moe::Dot::Int8);
template <detail::HasPanels E>
E with_dot(const E& expert, Dot dot) {
  return detail::converted<Quantised>(expert, [&](std::string_view, PanelMatrix<Quantised> weights) {
    weights.set_dot(dot);
    return weights;
  });
}
template <detail::HasPanels E>
ExpertPool<E> with_dot(const ExpertPool<E>& pool, Dot dot) {
  std::vector<E> experts;
  for (Index e = 0; e < pool.size(); ++e) experts.push_back(with_dot(pool[e], dot));
  return ExpertPool<E>(std::move(experts));
}
template <detail::HasExperts L>
auto with_dot(const L& layer, Dot dot) {
  return transform_experts(layer, [&](const auto& experts) { return with_dot(experts, dot); });
}

/// The expert, pool or layer of floats that computes the same bits: every weight decoded.
template <detail::HasPanels E>
auto dequantise(const E& expert) {
  return detail::converted<F32>(expert, [](std::string_view, const auto& weights) { return weights.decoded(); });
}
template <detail::HasPanels E>
auto dequantise(const ExpertPool<E>& pool) {
  return detail::converted<F32>(pool, detail::kDecoding);
}
template <detail::HasExperts L>
auto dequantise(const L& layer) {
  return transform_experts(layer, [](const auto& experts) { return dequantise(experts); });
}

}  // namespace moe::inline MOE_ABI
