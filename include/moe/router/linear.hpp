// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "moe/core/overlap.hpp"
#include "moe/kernel/gather.hpp"
#include "moe/kernel/grouped_gradient.hpp"
#include "moe/kernel/panel_matrix.hpp"
#include "moe/router/concept.hpp"

namespace moe::inline MOE_ABI {

/// logits = tokens W^T + b: W [num_experts, model_dim], b [num_experts] or none. Immutable in use, share freely.
template <class Codec>
class BasicLinearRouter {
 public:
  using Scalar = typename Codec::Scalar;
  struct Tape {
    RowBuffer<Scalar> dlogits;  ///< working memory of backward: rows of the valid tokens
    std::vector<Index> token;   ///< whose rows they are
    kernel::GradientScratch<Scalar> scratch;
  };

  /// Zero weights: all experts alike. Throws std::invalid_argument for num_experts < 1 or model_dim < 1.
  BasicLinearRouter(Index num_experts, Index model_dim, Bias bias = Bias::Off)
      : weight_(detail::checked_size("moe::LinearRouter", "num_experts", num_experts, 1),
                detail::checked_size("moe::LinearRouter", "model_dim", model_dim, 1)),
        bias_(bias == Bias::Off ? PanelMatrix<Codec>() : PanelMatrix<Codec>::bias(num_experts)) {}

  /// Weights from U(-1/sqrt(model_dim), 1/sqrt(model_dim)).
  static BasicLinearRouter random(Index num_experts, Index model_dim, std::uint64_t seed, Bias bias = Bias::Off) {
    BasicLinearRouter router(num_experts, model_dim, bias);
    router.weight_.randomise(RandomField(Purpose::Initialise, seed), 1.0 / std::sqrt(static_cast<double>(model_dim)));
    return router;
  }

  Index num_experts() const { return weight_.outputs(); }
  Index model_dim() const { return weight_.inputs(); }
  PanelMatrix<Codec>& weight() { return weight_; }
  const PanelMatrix<Codec>& weight() const { return weight_; }
  PanelMatrix<Codec>& bias() { return bias_; }
  const PanelMatrix<Codec>& bias() const { return bias_; }

  /// out [num_tokens, num_experts], overwritten; must not overlap tokens. 2 * num_tokens * num_experts * model_dim
  /// operations, no allocation. Throws std::invalid_argument on wrong shapes.
  void logits(const MatrixView<Scalar>& tokens, const Context&, MatrixRef<Scalar> out) const {
    if (!bias_.is_bias_of(weight_))
      fail("moe::LinearRouter::logits: bias has ", bias_.outputs(), " entries, expected ", num_experts(), " or none");
    detail::require_shape("moe::LinearRouter::logits", "tokens", tokens, tokens.rows(), model_dim());
    detail::require_shape("moe::LinearRouter::logits", "out", out, tokens.rows(), num_experts());
    detail::require_apart("moe::LinearRouter::logits", "out", out, "tokens", tokens);
    multiply(tokens, out);
  }
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out, Tape&) const {
    logits(tokens, context, out);
  }

  /// Throws std::invalid_argument unless the gradient is of these sizes.
  void require_backward(Index, const Tape&, const BasicLinearRouter& gradient) const { require_gradient(gradient); }

  /// gradient.W += dlogits^T tokens, gradient.b += column sums of dlogits, dtokens += dlogits W. Padding is left out,
  /// whatever its rows hold. Throws std::invalid_argument on wrong shapes.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                BasicLinearRouter& gradient, MatrixRef<Scalar> dtokens) const {
    detail::require_shape("moe::LinearRouter::backward", "dtokens", dtokens, tokens.rows(), model_dim());
    backward(tokens, context, tape, dlogits, gradient);
    add_token_gradient(tape, dtokens);
  }
  /// The same without a gradient.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                NoGradient, MatrixRef<Scalar> dtokens) const {
    constexpr const char* kFunction = "moe::LinearRouter::backward";
    detail::require_shape(kFunction, "dlogits", dlogits, tokens.rows(), num_experts());
    detail::require_shape(kFunction, "dtokens", dtokens, tokens.rows(), model_dim());
    keep_valid(dlogits, context.step, tape);
    add_token_gradient(tape, dtokens);
  }

  /// The same without dtokens.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                BasicLinearRouter& gradient) const {
    constexpr const char* kFunction = "moe::LinearRouter::backward";
    detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), model_dim());
    detail::require_shape(kFunction, "dlogits", dlogits, tokens.rows(), num_experts());
    require_gradient(gradient);
    keep_valid(dlogits, context.step, tape);
    const Index offset[] = {0, tape.dlogits.rows()};
    kernel::grouped_weight_gradient<Scalar>(
        {offset, 1}, kernel::RowSource<Scalar>::from(tokens, tape.token.data()),
        kernel::RowSource<Scalar>::from(tape.dlogits), [&](Index) -> auto& { return gradient.weight_; },
        [&](Index) -> auto& { return gradient.bias_; }, tape.scratch);
  }

  /// The router whose logit i is logit ids[i] of this one. Throws std::invalid_argument as TakesExperts says.
  BasicLinearRouter take(std::span<const Index> ids) const {
    detail::require_ids("moe::LinearRouter::take", ids, num_experts());
    return {weight_.take_outputs(ids), bias_.take_outputs(ids)};
  }
  /// The logits of this router, then those of `other`. Throws std::invalid_argument unless both read as many columns
  /// and both have a bias, or none.
  BasicLinearRouter concatenate(const BasicLinearRouter& other) const {
    constexpr const char* kFunction = "moe::LinearRouter::concatenate";
    if (other.model_dim() != model_dim())
      fail(kFunction, ": other reads ", other.model_dim(), " columns, expected model_dim = ", model_dim());
    if (other.bias_.empty() != bias_.empty())
      fail(kFunction, ": the biases have ", bias_.outputs(), " and ", other.bias_.outputs(),
           " entries, expected both to have some, or none");
    return {weight_.concatenate(other.weight_), bias_.concatenate(other.bias_)};
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    f("weight", first.weight_, rest.weight_...);
    if (!first.bias_.empty()) f("bias", first.bias_, rest.bias_...);
  }

 private:
  static constexpr Index kWidth = PanelMatrix<Codec>::kWidth;

  BasicLinearRouter(PanelMatrix<Codec> weight, PanelMatrix<Codec> bias)
      : weight_(std::move(weight)), bias_(std::move(bias)) {}

  void require_gradient(const BasicLinearRouter& gradient) const {
    if (!gradient.weight_.is_shaped_as(weight_) || !gradient.bias_.is_shaped_as(bias_))
      fail("moe::LinearRouter::backward: gradient is [", gradient.num_experts(), ", ", gradient.model_dim(), "] with ",
           gradient.bias_.outputs(), " biases, expected [", num_experts(), ", ", model_dim(), "] with ",
           bias_.outputs());
  }

  /// Copies the rows of valid tokens into the tape, in panel width, zero-padded.
  void keep_valid(const ConstMatrixRef<Scalar>& dlogits, const Step& step, Tape& tape) const {
    tape.token.clear();
    for (Index t = 0; t < dlogits.rows(); ++t)
      if (step.is_valid(t)) tape.token.push_back(t);
    kernel::gather<Scalar>(
        dlogits, std::ssize(tape.token), weight_.width(),
        [&](Index r) { return tape.token[static_cast<std::size_t>(r)]; }, tape.dlogits);
  }

  /// dtokens += dlogits W, of the valid tokens that keep_valid() has found.
  void add_token_gradient(Tape& tape, MatrixRef<Scalar> dtokens) const {
    const Index* token = tape.token.data();
    const Index offset[] = {0, tape.dlogits.rows()};
    kernel::grouped_input_gradient<Scalar>(
        {offset, 1}, kernel::RowSource<Scalar>::from(tape.dlogits), [&](Index) { return weight_.source(); },
        tape.scratch,
        [&](Index, Index row, int count, Index panel, const Scalar* sums) {
          const Index first = panel * kWidth, inputs = std::min(kWidth, model_dim() - first);
          for (Index r = 0; r < count; ++r)
            for (Index i = 0; i < inputs; ++i) dtokens(token[row + r], first + i) += sums[r * kWidth + i];
        });
  }

  /// Splits by blocks of tokens, as a router has few panels and many rows; and by panels where the tokens are too few
  /// to go round but the weights are worth a barrier.
  void multiply(const ConstMatrixRef<Scalar>& tokens, MatrixRef<Scalar> out) const {
    constexpr Index kRows = 8 * kernel::kTileRows,
                    kBytesForBarrier = Index{1} << 20;  // some 20 microseconds of reading
    const Index blocks = (tokens.rows() + kRows - 1) / kRows, panels = weight_.panels();
    const bool by_panels =
        blocks < num_workers() && static_cast<Index>(weight_.span().size_bytes()) >= kBytesForBarrier;
    const Index parts = by_panels ? std::min(panels, num_workers()) : 1;
    const auto source = kernel::RowSource<Scalar>::from(tokens);
    const kernel::PanelSource<Scalar> weights = weight_.source();
    const auto store = [&](Index row, int count, Index panel, Scalar* sums) {
      if (!bias_.empty()) kernel::add_to_rows(bias_.panel(panel), count, sums);
      const Index columns = std::min(kWidth, num_experts() - panel * kWidth);
      for (Index r = 0; r < count; ++r)
        std::copy_n(sums + r * kWidth, columns, out.data() + (row + r) * out.outerStride() + panel * kWidth);
    };
    const Index nanoseconds = (tokens.rows() + 2) * panels * model_dim() / 3;  // in caches, as a TaskList has it
    parallel_for(blocks * parts, nanoseconds, [&](Index task, Index) {
      const Index block = task / parts, part = task % parts;
      kernel::multiply(source, block * kRows, std::min(tokens.rows(), (block + 1) * kRows),
                       {weights, panels * part / parts, panels * (part + 1) / parts}, store);
    });
  }

  PanelMatrix<Codec> weight_, bias_;
};

using LinearRouter = BasicLinearRouter<F32>;

static_assert(DifferentiableRouter<LinearRouter> && TakesExperts<LinearRouter> && Concatenates<LinearRouter>);

}  // namespace moe::inline MOE_ABI
