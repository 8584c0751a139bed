// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "moe/core/aligned.hpp"
#include "moe/core/overlap.hpp"
#include "moe/core/parallel.hpp"
#include "moe/core/take.hpp"
#include "moe/expert/frozen.hpp"
#include "moe/router/concept.hpp"

namespace moe::inline MOE_ABI {

/// A router that sees how sure a frozen classifier is of each row: the logits of R for [x, max_c p_c, -sum_c p_c log
/// p_c], with p = softmax(generic(x)). What decides between that classifier and others needs little more, see
/// customise(), which makes one over the very object that is its expert 0: it lies in memory once, and in a file twice,
/// see share_generic() for what to do after a load.
/// Serves inference; fit_gate() trains R. Immutable in use, share freely. The operations of generic(x) beside those of
/// R; no allocation when warm.
template <class R, class H>
class ConfidenceRouter {
  static_assert(Router<R>, "moe::ConfidenceRouter: what it hands its rows to is a Router (see moe/router/concept.hpp)");
  static_assert(Expert<H> && kIsPerToken<H>,
                "moe::ConfidenceRouter: the classifier is an Expert that maps each row by itself "
                "(see moe/expert/concept.hpp)");

 public:
  using Scalar = typename R::Scalar;
  static constexpr Index kColumns = 2;  ///< that the router reads behind those of x

  /// Throws std::invalid_argument unless the router reads two columns more than the classifier.
  ConfidenceRouter(R router, Frozen<H> generic) : router_(std::move(router)), generic_(std::move(generic)) {
    require_sizes("moe::ConfidenceRouter");
  }

  Index num_experts() const { return router_.num_experts(); }
  Index model_dim() const { return generic_.input_dim(); }
  R& router() { return router_; }
  const R& router() const { return router_; }
  const Frozen<H>& generic() const { return generic_; }

  /// What the router reads, [num_tokens, model_dim + 2]. Throws std::invalid_argument for tokens of another width.
  void inputs(const MatrixView<Scalar>& tokens, const Context& context, RowBuffer<Scalar>& rows) const {
    constexpr const char* kFunction = "moe::ConfidenceRouter::inputs";
    require_sizes(kFunction);
    detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), model_dim());
    Memory& memory = context.scratch.template get<Memory>();
    memory.scores.resize(tokens.rows(), generic_.output_dim());
    generic_.forward(tokens, memory.scores, Context{context.step, memory.of_generic});
    rows.resize(tokens.rows(), model_dim() + kColumns);
    parallel_ranges(tokens.rows(), kRowsPerTask, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        std::copy_n(tokens.data() + t * tokens.outerStride(), model_dim(), rows.row(t));
        add_confidence({std::as_const(memory.scores).row(t), static_cast<std::size_t>(generic_.output_dim())},
                       rows.row(t) + model_dim());
      }
    });
  }

  /// out [num_tokens, num_experts], overwritten; must not overlap tokens. Throws std::invalid_argument on wrong shapes.
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out) const {
    constexpr const char* kFunction = "moe::ConfidenceRouter::logits";
    detail::require_shape(kFunction, "out", out, tokens.rows(), num_experts());
    detail::require_apart(kFunction, "out", out, "tokens", tokens);
    RowBuffer<Scalar>& rows = context.scratch.template get<Memory>().rows;
    inputs(tokens, context, rows);
    router_.logits(rows, context, out);
  }

  /// See TakesExperts.
  ConfidenceRouter take(std::span<const Index> ids) const
    requires TakesExperts<R>
  {
    return {router_.take(ids), generic_};
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "router", self.router_...);
    visit_part(f, "generic", self.generic_...);  // state alone
  }

 private:
  static constexpr Index kRowsPerTask = 128;
  struct Memory {
    RowBuffer<Scalar> scores, rows;
    Scratch of_generic;  // apart: it may be a layer with another such router
  };

  void require_sizes(const char* function) const {
    if (router_.model_dim() != generic_.input_dim() + kColumns)
      fail(function, ": the router reads ", router_.model_dim(), " columns, expected ", generic_.input_dim(), " + ",
           kColumns, ", those of the classifier and its confidence");
  }

  /// Largest probability and entropy; with z the scores less the largest, 1 / n and log n - sum p z, n = sum exp z.
  static void add_confidence(std::span<const Scalar> scores, Scalar* to) {
    const auto most = static_cast<double>(*std::ranges::max_element(scores));
    double sum = 0, moment = 0;
    for (const Scalar score : scores) {
      const double z = static_cast<double>(score) - most, weight = std::exp(z);
      sum += weight;
      if (!(weight == 0)) moment += weight * z;
    }
    to[0] = static_cast<Scalar>(1 / sum);
    to[1] = static_cast<Scalar>(std::log(sum) - moment / sum);
  }

  R router_;
  Frozen<H> generic_;
};

}  // namespace moe::inline MOE_ABI
