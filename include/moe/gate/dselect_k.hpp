// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/binary_codes.hpp"
#include "moe/gate/rule/token_loop.hpp"

namespace moe::inline MOE_ABI {

/// DSelect-k: each of k selectors has a weight and a binary code, whose bits pass a smooth step that reaches 0 and 1
/// exactly. So the choice is smooth in the logits, and sparse where codes have settled.
///   q = softmax(alpha)                        alpha_s: the logit of selector s
///   r_se = prod_b (bit b of e is 1 ? S(z_sb) : 1 - S(z_sb))                 z_sb: its code, ceil(log2 num_experts)
///   bits weight_e = probabilities_e = sum_s q_s r_se S(z) = 0 | 1/2 + 3 z / (2 width) - 2 z^3 / width^3 | 1 for z
///   below, in and above [-width/2, width/2]
/// A token goes to the experts whose weight is not zero, in ascending order: to k at most once all codes are beyond
/// width/2, to all of them while none is. Weights sum to 1 where num_experts is a power of two; else what lies on codes
/// that no expert has is lost, all of it in the worst case: see unused_code_loss() (moe/gate/dselect_k_loss.hpp).
/// The router has k (1 + bits) logits, selector after selector, alpha_s before z_s0, z_s1, ... Each must be finite:
/// there are no masks, as no logit is an expert's own. As experts share bits, none can be taken out or added:
/// take_experts(), concatenate() and duplicate_experts() do not serve it. Immutable, share freely. O(k num_experts) per
/// token, of which num_experts weights are kept in the context: a warm call does not allocate. All members throw
/// std::invalid_argument for a logit of a valid token that is not finite. Hazimeh et al., "DSelect-k"
/// (arXiv:2106.03760).
struct DSelectKGate {
  Index num_experts = 0;  ///< of the layer; >= 1
  Index k = 2;            ///< selectors, >= 1; more than one may choose an expert
  double width = 1;       ///< of the smooth step, gamma; > 0

  static constexpr bool kPerToken = true;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  /// Throws std::invalid_argument: the codes of two gates are not those of one.
  DSelectKGate concatenate(const DSelectKGate&, Index of_this, Index of_other) const {
    fail("moe::DSelectKGate::concatenate: ", of_this, " and ", of_other,
         " experts have codes of their own, expected a gate with logits of single experts");
  }
  friend bool operator==(const DSelectKGate&, const DSelectKGate&) = default;

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index of_layer) const {
    constexpr const char* kName = "moe::DSelectKGate";
    if (num_experts < 1) fail(kName, ": num_experts is ", num_experts, ", expected at least 1");
    if (num_experts > (Index{1} << 40)) fail(kName, ": num_experts is ", num_experts, ", expected at most 2^40");
    if (num_experts != of_layer)
      fail(kName, ": num_experts is ", num_experts, ", expected ", of_layer, " as in the layer");
    if (k < 1 || k > (Index{1} << 20)) fail(kName, ": k is ", k, ", expected 1 <= k <= 2^20");
    if (!(width >= 1e-30 && width <= 1e30)) fail(kName, ": width is ", width, ", expected a value in [1e-30, 1e30]");
  }

  /// Bits of a code.
  static Index num_bits(Index experts) {
    return experts < 2 ? 0 : static_cast<Index>(std::bit_width(static_cast<std::uint64_t>(experts - 1)));
  }
  Index num_logits(Index experts) const { return k * (1 + num_bits(experts)); }
  /// Column of alpha_s, before those of its code.
  Index selector(Index s) const { return s * (1 + num_bits(num_experts)); }

  /// Throws std::invalid_argument, in the name of `function`, unless there are num_logits for every token, finite where
  /// it is valid.
  template <class S>
  void require_logits(const char* function, const Logits<S>& logits, const Step& step) const {
    validate(num_experts);
    step.validate(function, logits.rows());
    detail::require_shape(function, "logits", logits, logits.rows(), num_logits(num_experts));
    for (Index t = 0; t < logits.rows(); ++t)
      for (Index i = 0; i < logits.cols() && step.is_valid(t); ++i)
        if (!std::isfinite(logits(t, i)))
          fail(function, ": logit ", i, " of token ", t, " is ", logits(t, i), ", expected a finite number");
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kName = "moe::DSelectKGate::route";
    require_logits<S>(kName, logits, context.step);
    RowBuffer<S>& weights = context.scratch.get<Weights<S>>().rows;
    weights.resize(logits.rows(), num_experts);
    for_each_token<S>(logits, context, [&](const S* z, Index t, S* memory) { weigh(z, memory, weights.row(t)); });
    const auto is_chosen = [&](Index t, Index e) { return weights.row(t)[e] > 0; };
    routing.resize_ragged(logits.rows(), [&](Index t) {
      Index count = 0;
      for (Index e = 0; e < num_experts && context.step.is_valid(t); ++e) count += is_chosen(t, e) ? 1 : 0;
      return count;
    });
    parallel_ranges(logits.rows(), detail::token_blocks(logits.rows()).size, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        std::size_t slot = 0;
        for (Index e = 0; e < num_experts && context.step.is_valid(t); ++e) {
          if (!is_chosen(t, e)) continue;
          routing.experts(t)[slot] = e;
          routing.weights(t)[slot++] = weights.row(t)[e];
        }
      }
    });
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    constexpr const char* kName = "moe::DSelectKGate::probabilities";
    require_logits<S>(kName, logits, context.step);
    detail::require_apart(kName, "p", p, "logits", logits);
    p.setZero(logits.rows(), num_experts);
    for_each_token<S>(logits, context, [&](const S* z, Index t, S* memory) { weigh(z, memory, p.row(t).data()); });
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kName = "moe::DSelectKGate::replay";
    require_logits<S>(kName, logits, context.step);
    detail::require_routing(kName, routing, logits.rows(), num_experts);
    RowBuffer<S>& weights = context.scratch.get<Weights<S>>().rows;
    weights.resize(logits.rows(), num_experts);
    for_each_token<S>(logits, context, [&](const S* z, Index t, S* memory) {
      weigh(z, memory, weights.row(t));
      for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
        routing.weights(t)[s] = routing.dropped(t)[s] ? S{0} : weights.row(t)[routing.experts(t)[s]];
    });
  }

  /// dlogits is [num_tokens, num_logits].
  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                DSelectKGate& /*gradient*/) const {
    constexpr const char* kName = "moe::DSelectKGate::backward";
    require_logits<S>(kName, logits, context.step);
    detail::require_routing(kName, routing, logits.rows(), num_experts);
    if (static_cast<Index>(dweight.size()) != routing.num_assignments())
      fail(kName, ": dweight has ", dweight.size(),
           " entries, expected one per assignment = ", routing.num_assignments());
    if (dprobability.size() != 0)
      detail::require_shape(kName, "dprobability", dprobability, logits.rows(), num_experts);
    detail::require_apart(kName, "dlogits", dlogits, "logits", logits);
    detail::require_apart(kName, "dlogits", dlogits, "dprobability", dprobability);
    dlogits.setZero(logits.rows(), logits.cols());
    RowBuffer<S>& d_of_all = context.scratch.get<Weights<S>>().rows;
    d_of_all.resize(logits.rows(), num_experts);
    for_each_token<S>(logits, context, [&](const S* z, Index t, S* memory) {
      S* const d = d_of_all.row(t);
      if (dprobability.size() != 0)
        std::copy_n(dprobability.data() + t * dprobability.outerStride(), num_experts, d);
      else
        std::fill_n(d, num_experts, S{0});
      for (Index a = routing.begin(t); a < routing.end(t); ++a)
        if (const auto at = static_cast<std::size_t>(a); !routing.dropped()[at])
          d[routing.experts()[at]] += dweight[at];
      backward_of_token(z, d, memory, dlogits.row(t).data());
    });
  }

 private:
  template <class S>
  struct Weights {
    RowBuffer<S> rows;
  };
  template <class S>
  using Codes = detail::BinaryCodes<S>;

  template <class S>
  auto bit_of(const S* z, Index s) const {
    return [code = z + selector(s) + 1, step = detail::SmoothStep{width}](Index b) { return step.value(code[b]); };
  }
  /// q_s, in two passes over the alphas and without memory for all of them.
  template <class S>
  auto selector_weight(const S* z) const {
    S most = z[0], sum = 0;
    for (Index s = 1; s < k; ++s) most = std::max(most, z[selector(s)]);
    for (Index s = 0; s < k; ++s) sum += std::exp(z[selector(s)] - most);
    return [=, this](Index s) { return std::exp(z[selector(s)] - most) / sum; };
  }

  /// Calls body(logits, token, memory of Codes) for every valid token, in parallel.
  template <class S, class Body>
  void for_each_token(const ConstMatrixRef<S>& logits, const Context& context, const Body& body) const {
    using Rows = detail::RowScratch<S, Codes<S>::kScalars>;
    Rows memory(Index{1} << num_bits(num_experts), context.scratch);
    parallel_ranges(logits.rows(), detail::token_blocks(logits.rows()).size, [&](Index begin, Index end, Index worker) {
      typename Rows::Worker own(memory, worker);
      for (Index t = begin; t < end; ++t)
        if (context.step.is_valid(t)) body(logits.data() + t * logits.outerStride(), t, own.data());
    });
  }

  template <class S>
  void weigh(const S* z, S* memory, S* weights) const {
    Codes<S> codes(num_bits(num_experts), memory);
    const auto weight_of = selector_weight(z);
    std::fill_n(weights, num_experts, S{0});
    for (Index s = 0; s < k; ++s) {
      const S q = weight_of(s);
      const S* r = codes.probabilities(bit_of(z, s));
      for (Index e = 0; e < num_experts; ++e) weights[e] = simd::fma(q, r[e], weights[e]);
    }
  }

  /// From d = dL/dweights to dlogits of one token.
  template <class S>
  void backward_of_token(const S* z, const S* d, S* memory, S* dz) const {
    Codes<S> codes(num_bits(num_experts), memory);
    const auto weight_of = selector_weight(z);
    const detail::SmoothStep step{width};
    S mean = 0;
    for (Index s = 0; s < k; ++s) {
      const S q = weight_of(s);
      const S* r = codes.probabilities(bit_of(z, s));
      S dq = 0;
      for (Index e = 0; e < num_experts; ++e) dq = simd::fma(d[e], r[e], dq);
      dz[selector(s)] = dq;
      mean = simd::fma(q, dq, mean);
      codes.backward([&](Index e) { return e < num_experts ? d[e] : S{0}; }, bit_of(z, s),
                     [&](Index b, S dbit) {
                       const Index at = selector(s) + 1 + b;
                       dz[at] = q * dbit * step.derivative(z[at]);
                     });
    }
    for (Index s = 0; s < k; ++s) dz[selector(s)] = weight_of(s) * (dz[selector(s)] - mean);
  }
};

static_assert(DifferentiableGate<DSelectKGate, float> && DifferentiableGate<DSelectKGate, double>);

}  // namespace moe::inline MOE_ABI
