// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/core/exclusive.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/tape.hpp"
#include "moe/layer/gate_union.hpp"
#include "moe/routing/gradient.hpp"
#include "moe/routing/step.hpp"

// What goes into a MultiGateLayer and what it keeps of a pass.
namespace moe::inline MOE_ABI {

/// What the experts of a MultiGateLayer read, and what its gates do, where that differs: [num_tokens, input_dim] and
/// [num_tokens, gate_dim]. Refers to the caller's memory.
template <class S>
struct MultiGateInputs {
  ConstMatrixRef<S> tokens, gate_tokens;
};
/// The gradients of both, of the same shapes.
template <class S>
struct MultiGateInputGradients {
  MatrixRef<S> tokens, gate_tokens;
};

namespace detail {

/// What forward leaves for backward, and the working memory of backward. Caller-owned; several may be live.
template <class R, class X>
struct MultiGateTape {
  using Scalar = typename R::Scalar;

  /// Of one gate. Its routing names the experts that the mask allows it, as 0, 1, ...
  struct OfGate {
    Matrix<Scalar> logits;
    Routing<Scalar> routing;
    Step step;  ///< of the gate: tokens that do not go through it are padding
    /// Gradients of auxiliary losses: empty or zero after forward, added to by losses, read by backward.
    RoutingGradient<Scalar> losses;
    TapeOf<R> router;
    std::vector<std::uint8_t> valid;
    std::vector<Scalar> dweight;
    Matrix<Scalar> dlogits;
  };

  std::vector<OfGate> gates;
  GateUnion<Scalar> chosen;  ///< chosen.plan(): the rows of the experts
  RowBuffer<Scalar> rows;    ///< of the experts, unweighted, in plan order
  TapeOf<X> experts;
  Step step;
  Scratch scratch;
  std::vector<kernel::GateRows<Scalar>> gate_rows;
  RowBuffer<Scalar> dtokens;  ///< where nobody asks for them, but a part writes them
  /// Of the layer that filled it; 0 until its forward pass has ended.
  ZeroWhenMoved<Index> input_dim = 0, gate_dim = 0, output_dim = 0;
  Exclusive use;  ///< by one thread at a time
};

/// Working memory of inference, and of backward.
template <class S>
struct MultiGateMemory {
  struct OfGate {
    RowBuffer<S> logits;
    Routing<S> routing;
    std::vector<std::uint8_t> valid;
  };
  std::vector<OfGate> gates;
  GateUnion<S> chosen;
  std::vector<kernel::GateRows<S>> gate_rows;
  RowBuffer<S> rows;             ///< in backward their gradients
  Scratch of_gates, of_experts;  // apart: among the experts may be another such layer
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
