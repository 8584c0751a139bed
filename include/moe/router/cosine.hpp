// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "moe/core/part_of_gradient.hpp"
#include "moe/core/scratch.hpp"
#include "moe/router/linear.hpp"

namespace moe::inline MOE_ABI {

/// Cosine router: experts are directions in a space of few dimensions, and so are tokens, projected there.
///   h = W x + b,   logits_e = exp(min(temperature, ln 100)) * h . v_e / (|h| |v_e|)
/// W [proj_dim, model_dim], b [proj_dim] or none, v [num_experts, proj_dim], temperature one number: all learnt. Logits
/// do not depend on the size of a token (without bias) or of an expert's vector, so that no expert wins by its norm.
/// Lengths below 1e-12 are divided by 1e-12: a zero vector has logits of 0. The temperature has no gradient from ln 100
/// on. Immutable in use, share freely.
/// Chi et al., "On the representation collapse of sparse mixture of experts" (arXiv:2204.09179); the temperature and
/// its limit are Tutel's.
template <class Codec>
class BasicCosineRouter {
 public:
  using Scalar = typename Codec::Scalar;
  struct Tape {
    RowBuffer<Scalar> unit;      ///< h / |h|, [num_tokens, proj_dim]
    std::vector<Scalar> length;  ///< what h was divided by, [num_tokens]
    RowBuffer<Scalar> dunit;     ///< working memory of backward
    typename BasicLinearRouter<Codec>::Tape projection, similarity;
    /// scale * v / |v| as a router of the projected tokens, and its gradient.
    std::optional<BasicLinearRouter<Codec>> direction, ddirection;
    std::vector<Scalar> vector, dvector;  ///< working memory: of one expert
  };

  static constexpr double kLeastLength = 1e-12;
  static double largest_temperature() { return std::log(100.0); }

  /// Zero vectors: all experts alike. Throws std::invalid_argument for sizes below 1.
  BasicCosineRouter(Index num_experts, Index model_dim, Index proj_dim, Bias bias = Bias::Zero)
      : projection_(detail::checked_size("moe::CosineRouter", "proj_dim", proj_dim, 1),
                    detail::checked_size("moe::CosineRouter", "model_dim", model_dim, 1), bias),
        experts_(detail::checked_size("moe::CosineRouter", "num_experts", num_experts, 1), proj_dim) {}

  /// W and v from U(-1/sqrt(columns), 1/sqrt(columns)); temperature ln 2: logits between -2 and 2.
  static BasicCosineRouter random(Index num_experts, Index model_dim, Index proj_dim, std::uint64_t seed,
                                  Bias bias = Bias::Zero) {
    BasicCosineRouter router(num_experts, model_dim, proj_dim, bias);
    router.projection_ = BasicLinearRouter<Codec>::random(proj_dim, model_dim, seed, bias);
    const double bound = 1 / std::sqrt(static_cast<double>(proj_dim));
    router.experts_.weight().randomise(RandomField(Purpose::Initialise, seed, 1), bound);
    return router;
  }

  Index num_experts() const { return experts_.num_experts(); }
  Index model_dim() const { return projection_.model_dim(); }
  Index proj_dim() const { return projection_.num_experts(); }
  BasicLinearRouter<Codec>& projection() { return projection_; }
  const BasicLinearRouter<Codec>& projection() const { return projection_; }
  PanelMatrix<Codec>& vectors() { return experts_.weight(); }
  const PanelMatrix<Codec>& vectors() const { return experts_.weight(); }
  double& temperature() { return temperature_; }
  double temperature() const { return temperature_; }

  /// out [num_tokens, num_experts], overwritten. A projection of the tokens and a copy of the vectors are kept in
  /// the scratch: warm calls do not allocate. Throws std::invalid_argument on wrong shapes.
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out) const {
    logits(tokens, context, out, context.scratch.get<Tape>());
  }

  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out, Tape& tape) const {
    if (vectors().inputs() != proj_dim())
      fail("moe::CosineRouter::logits: the vectors have ", vectors().inputs(),
           " entries, expected proj_dim = ", proj_dim());
    tape.unit.resize(tokens.rows(), proj_dim());
    tape.length.resize(static_cast<std::size_t>(tokens.rows()));
    projection_.logits(tokens, context, tape.unit);
    parallel_ranges(tokens.rows(), kTokensPerTask, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) tape.length[static_cast<std::size_t>(t)] = normalise(tape.unit.row(t));
    });
    update_direction(tape).logits(tape.unit, context, out);
  }

  /// Throws std::invalid_argument unless the tape is that of a forward pass of so many tokens through a router of these
  /// sizes, and the gradient of them, too.
  void require_backward(Index num_tokens, const Tape& tape, const BasicCosineRouter& gradient) const {
    constexpr const char* kFunction = "moe::CosineRouter::backward";
    require_backward(num_tokens, tape, NoGradient{});
    if (!gradient.vectors().is_shaped_as(vectors()))
      fail(kFunction, ": gradient has [", gradient.num_experts(), ", ", gradient.vectors().inputs(),
           "] vectors, expected [", num_experts(), ", ", proj_dim(), "]");
    projection_.require_backward(num_tokens, tape.projection, gradient.projection_);
  }
  void require_backward(Index num_tokens, const Tape& tape, NoGradient) const {
    detail::require_shape("moe::CosineRouter::backward", "tape.unit", tape.unit, num_tokens, proj_dim());
  }

  /// Gradients of all parameters and of the tokens. With u = h / |h|: dh = (du - u (u . du)) / |h|, and likewise for v.
  /// Throws std::invalid_argument, before it writes anything, on wrong shapes and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                BasicCosineRouter& gradient, MatrixRef<Scalar> dtokens) const {
    run_backward(tokens, context, tape, dlogits, gradient, dtokens);
  }
  /// Of the tokens alone.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                NoGradient none, MatrixRef<Scalar> dtokens) const {
    run_backward(tokens, context, tape, dlogits, none, dtokens);
  }

  /// The directions of the given experts in the same space. Throws std::invalid_argument as TakesExperts says.
  BasicCosineRouter take(std::span<const Index> ids) const { return {projection_, experts_.take(ids), temperature_}; }
  /// The directions of this router, then those of `other`. Throws std::invalid_argument unless projection and
  /// temperature, of which a router has one, are the same in both.
  BasicCosineRouter concatenate(const BasicCosineRouter& other) const {
    constexpr const char* kFunction = "moe::CosineRouter::concatenate";
    const auto same = [](const PanelMatrix<Codec>& a, const PanelMatrix<Codec>& b) {
      return a.is_shaped_as(b) && std::ranges::equal(a.span(), b.span());
    };
    if (!same(projection_.weight(), other.projection_.weight()) || !same(projection_.bias(), other.projection_.bias()))
      fail(kFunction, ": other projects tokens into another space, expected the same projection");
    detail::require_equal_option(kFunction, "temperature", temperature_, other.temperature_);
    return {projection_, experts_.concatenate(other.experts_), temperature_};
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "projection", self.projection_...);
    f("vectors", self.experts_.weight()...);
    f("temperature", self.temperature_...);
  }

 private:
  static constexpr Index kTokensPerTask = 64, kPanelsPerTask = 8;

  BasicCosineRouter(BasicLinearRouter<Codec> projection, BasicLinearRouter<Codec> experts, double temperature)
      : projection_(std::move(projection)), experts_(std::move(experts)), temperature_(temperature) {}

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const Context& context, Tape& tape,
                    const ConstMatrixRef<Scalar>& dlogits, Gradient& gradient, MatrixRef<Scalar> dtokens) const {
    require_backward(tokens.rows(), tape, gradient);
    detail::require_shape("moe::CosineRouter::backward", "tokens", tokens, tokens.rows(), model_dim());
    detail::require_shape("moe::CosineRouter::backward", "dtokens", dtokens, tokens.rows(), model_dim());
    const BasicLinearRouter<Codec>& direction = update_direction(tape);
    tape.dunit.resize(tokens.rows(), proj_dim());
    tape.dunit.matrix().setZero();
    const auto of_direction = [&](auto&) -> auto& { return zero_ddirection(tape); };
    direction.backward(tape.unit, context, tape.similarity, dlogits, detail::part_of(gradient, of_direction),
                       tape.dunit);
    if constexpr (!detail::kIsNoGradient<Gradient>) add_vector_gradients(tape, gradient);
    parallel_ranges(tokens.rows(), kTokensPerTask, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t)
        through_normalise(tape.unit.row(t), tape.length[static_cast<std::size_t>(t)], tape.dunit.row(t));
    });
    projection_.backward(tokens, context, tape.projection, tape.dunit,
                         detail::part_of(gradient, &BasicCosineRouter::projection_), dtokens);
  }

  BasicLinearRouter<Codec>& zero_ddirection(Tape& tape) const {
    if (!tape.ddirection || !tape.ddirection->weight().is_shaped_as(tape.direction->weight()))
      tape.ddirection = tape.direction;
    std::ranges::fill(tape.ddirection->weight().span(), Scalar{0});  // all it has: directions have no bias
    return *tape.ddirection;
  }

  double scale() const { return std::exp(std::min(temperature_, largest_temperature())); }

  /// Divides row[0, proj_dim) by its length, which it returns. Scaled by the largest entry: no square overflows.
  Scalar normalise(Scalar* row) const {
    Scalar most = 0, squares = 0;
    for (Index i = 0; i < proj_dim(); ++i) most = std::max(most, std::abs(row[i]));
    for (Index i = 0; i < proj_dim() && most > 0; ++i) squares += (row[i] / most) * (row[i] / most);
    const Scalar length = std::max(most * std::sqrt(squares), static_cast<Scalar>(kLeastLength));
    for (Index i = 0; i < proj_dim(); ++i) row[i] /= length;
    return length;
  }
  /// d: from dL/du to dL/dh. Where the least length was the divisor it is a constant.
  void through_normalise(const Scalar* unit, Scalar length, Scalar* d) const {
    Scalar along = 0;
    if (length > static_cast<Scalar>(kLeastLength))
      for (Index i = 0; i < proj_dim(); ++i) along += unit[i] * d[i];
    for (Index i = 0; i < proj_dim(); ++i) d[i] = (d[i] - along * unit[i]) / length;
  }

  /// tape.direction = scale * v / |v|, panel by panel: the vectors of two registers of experts at once. Padding stays
  /// zero.
  const BasicLinearRouter<Codec>& update_direction(Tape& tape) const {
    constexpr Index kWidth = PanelMatrix<Codec>::kWidth;
    if (!tape.direction || !tape.direction->weight().is_shaped_as(vectors())) tape.direction = experts_;
    PanelMatrix<Codec>& direction = tape.direction->weight();
    const auto factor = static_cast<Scalar>(scale());
    parallel_ranges(vectors().panels(), kPanelsPerTask, [&](Index begin, Index end, Index) {
      for (Index p = begin; p < end; ++p) {
        const Scalar* v = vectors().panel(p);
        Scalar* d = direction.panel(p);
        std::array<Scalar, static_cast<std::size_t>(kWidth)> most{}, squares{}, length;
        const auto for_each = [&](const auto& body) {
          for (Index i = 0; i < proj_dim(); ++i)
            for (Index e = 0; e < kWidth; ++e) body(i * kWidth + e, static_cast<std::size_t>(e));
        };
        for_each([&](Index at, std::size_t e) { most[e] = std::max(most[e], std::abs(v[at])); });
        for (Scalar& largest : most)
          if (largest == 0) largest = 1;  // a zero vector: 0 / 1
        for_each([&](Index at, std::size_t e) { squares[e] += (v[at] / most[e]) * (v[at] / most[e]); });
        for (std::size_t e = 0; e < length.size(); ++e)
          length[e] = std::max(most[e] * std::sqrt(squares[e]), static_cast<Scalar>(kLeastLength));
        for_each([&](Index at, std::size_t e) { d[at] = factor * (v[at] / length[e]); });
      }
    });
    return *tape.direction;
  }

  /// From the gradient of tape.direction to those of the vectors and of the temperature.
  void add_vector_gradients(Tape& tape, BasicCosineRouter& gradient) const {
    double dtemperature = 0;
    const auto factor = static_cast<Scalar>(scale());
    tape.vector.resize(static_cast<std::size_t>(proj_dim()));
    tape.dvector.resize(static_cast<std::size_t>(proj_dim()));
    Scalar *unit = tape.vector.data(), *d = tape.dvector.data();
    for (Index e = 0; e < num_experts(); ++e) {
      for (Index i = 0; i < proj_dim(); ++i) unit[i] = vectors()(e, i);
      const Scalar length = normalise(unit);
      for (Index i = 0; i < proj_dim(); ++i) {
        const Scalar slope = tape.ddirection->weight()(e, i);
        dtemperature += static_cast<double>(slope) * static_cast<double>(tape.direction->weight()(e, i));
        d[i] = factor * slope;
      }
      through_normalise(unit, length, d);
      for (Index i = 0; i < proj_dim(); ++i) gradient.vectors()(e, i) += d[i];
    }
    if (temperature_ < largest_temperature()) gradient.temperature_ += dtemperature;
  }

  BasicLinearRouter<Codec> projection_, experts_;
  double temperature_ = std::log(2.0);
};

using CosineRouter = BasicCosineRouter<F32>;

static_assert(RouterSkipsGradient<CosineRouter> && TakesExperts<CosineRouter> && Concatenates<CosineRouter>);

}  // namespace moe::inline MOE_ABI
