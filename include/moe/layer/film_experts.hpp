// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/same_parameters.hpp"
#include "moe/expert/pool.hpp"
#include "moe/kernel/gather.hpp"
#include "moe/layer/vector_film.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Features of all tokens: those of the trunk, and zeros of tokens without choices.
template <class S>
struct TrunkRows {
  std::vector<Index> token;  ///< that has a kept choice
  DispatchPlan plan;         ///< of one expert, the trunk
  RowBuffer<S> rows;         ///< of the trunk, in the order of `token`
  RowBuffer<S> features;     ///< [T, features], where some token has no choices

  void build(const Routing<S>& routing) {
    token.clear();
    for (Index t = 0; t < routing.num_tokens(); ++t)
      if (std::ranges::count(routing.dropped(t), std::uint8_t{0}) != 0) token.push_back(t);
    const std::array<Index, 2> offsets = {0, std::ssize(token)};
    plan.build_from_rows(offsets, 0, offsets[1], routing.num_tokens(),
                         [&](Index r) { return token[static_cast<std::size_t>(r)]; });
  }
  void scatter(Index num_tokens, Index dim) {
    if (std::ssize(token) == num_tokens) return;
    features.resize(num_tokens, dim);
    features.matrix().setZero();
    for (Index r = 0; r < std::ssize(token); ++r)
      std::copy_n(rows.row(r), dim, features.row(token[static_cast<std::size_t>(r)]));
  }
  auto all(Index num_tokens, Index dim) const {
    return (std::ssize(token) == num_tokens ? rows : features).matrix().leftCols(dim);
  }
};

}  // namespace detail

/// One expert that all tokens share, and many that only modulate its features: a Mixture of
///   z = trunk(x)      out = the mixture M of z, by default (sum_i w_i gamma_i) o z + sum_i w_i beta_i (VectorFilm)
/// The trunk runs once for every token that has a kept choice, however many there are of experts and choices. So E
/// experts take the parameters of one and, with VectorFilm, 2 features E more.
///   moe::MoeLayer layer(router, moe::TopKGate{.k = 4}, moe::FilmExperts(moe::Mlp::random(64, 256, 1), 16));
/// Modulation that depends on the features: M = RoutedExperts<ExpertPool<Film<Linear>>>, or of a low-rank Film. A token
/// without kept choices gets zeros. Immutable in use, share freely. Same bits for any number of threads and, where
/// trunk and modulation are per token, whatever else is in the batch. No allocation when warm. Losses of the routers of
/// layers in trunk and modulation are not found (for_each_routed).
/// Zhang et al., "Efficient Deweather Mixture-of-Experts with Uncertainty-aware Feature-wise Linear Modulation" (MoFME,
/// arXiv:2312.16610).
template <class E, class M = VectorFilm<typename E::Scalar>>
class FilmExperts {
  static_assert(Expert<E>, "moe::FilmExperts: the trunk is an Expert (see moe/expert/concept.hpp)");
  static_assert(Mixture<M>, "moe::FilmExperts: the modulation is a Mixture (see moe/layer/mixture.hpp)");
  static constexpr bool kDifferentiable = DifferentiableExpert<E> && DifferentiableMixture<M>;

 public:
  using Scalar = typename E::Scalar;
  static constexpr bool kPerToken = kIsPerToken<E> && kIsPerToken<M>;

  /// What forward leaves for backward, and the working memory of both.
  struct Tape {
    detail::TrunkRows<Scalar> rows;  ///< rows.plan.num_rows(): how many tokens the trunk ran
    typename ExpertPool<E>::Tape trunk;
    detail::TapeOf<M> films;
    RowBuffer<Scalar> dfeatures, drows;
    bool is_whole = false;  ///< whether a forward pass has ended
  };

  /// num_experts that leave the features of the trunk as they are: gamma = 1, beta = 0.
  FilmExperts(E trunk, Index num_experts)
    requires std::is_same_v<M, VectorFilm<Scalar>>
      : trunk_(std::vector<E>(1, std::move(trunk))), films_(num_experts, trunk_.output_dim()) {}
  /// Throws std::invalid_argument unless the mixture reads the features of the trunk.
  FilmExperts(E trunk, M films) : trunk_(std::vector<E>(1, std::move(trunk))), films_(std::move(films)) {
    require_fit("moe::FilmExperts");
  }

  Index num_experts() const { return films_.num_experts(); }
  Index input_dim() const { return trunk_.input_dim(); }
  Index output_dim() const { return films_.output_dim(); }
  E& trunk() { return trunk_[0]; }
  const E& trunk() const { return trunk_[0]; }
  M& films() { return films_; }
  const M& films() const { return films_; }

  /// `out` may be `tokens` itself, but not overlap other rows of it. Throws std::invalid_argument on wrong shapes, and
  /// for a routing of other tokens or experts.
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out) const {
    constexpr const char* kFunction = "moe::FilmExperts::forward";
    require_shapes(kFunction, tokens, routing, out);
    detail::require_same_or_apart(kFunction, "out", out, "tokens", tokens);
    Scratches& own = context.scratch.template get<Scratches>();
    auto& rows = context.scratch.template get<detail::TrunkRows<Scalar>>();
    run_trunk(tokens, routing, rows, [&] {
      trunk_.forward(tokens, rows.plan, Context{detail::step_of_part(context.step, num_experts()), own.trunk},
                     rows.rows);
    });
    films_.forward(rows.all(tokens.rows(), features()), routing, Context{context.step, own.films}, out);
  }

  /// The same with what backward needs kept in `tape`; `out` must not overlap `tokens`.
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out, Tape& tape) const
    requires kDifferentiable
  {
    constexpr const char* kFunction = "moe::FilmExperts::forward";
    require_shapes(kFunction, tokens, routing, out);
    detail::require_apart(kFunction, "out", out, "tokens", tokens);
    tape.is_whole = false;
    Scratches& own = context.scratch.template get<Scratches>();
    run_trunk(tokens, routing, tape.rows, [&] {
      trunk_.forward(tokens, tape.rows.plan, Context{detail::step_of_part(context.step, num_experts()), own.trunk},
                     tape.rows.rows, tape.trunk);
    });
    films_.forward(tape.rows.all(tokens.rows(), features()), routing, Context{context.step, own.films}, out,
                   tape.films);
    tape.is_whole = true;
  }

  /// Throws std::invalid_argument unless `tape` holds a forward pass of as many tokens and choices through parts of
  /// these sizes, and `gradient` is another mixture of them.
  void require_backward(const Routing<Scalar>& routing, const Tape& tape, const FilmExperts& gradient) const
    requires kDifferentiable
  {
    constexpr const char* kFunction = "moe::FilmExperts::backward";
    require_fit(kFunction);
    if (!tape.is_whole) fail(kFunction, ": the tape holds no forward pass that has ended");
    if (tape.rows.plan.num_tokens() != routing.num_tokens())
      fail(kFunction, ": routing has ", routing.num_tokens(), " tokens, expected ", tape.rows.plan.num_tokens(),
           " as in the forward pass of the tape");
    if (&gradient == this) fail(kFunction, ": gradient is the mixture itself, expected one of its own (zeros_like)");
    detail::require_backward_of(kFunction, "gradient.trunk", trunk_, PlanView(tape.rows.plan), tape.trunk,
                                gradient.trunk_);
    detail::require_backward_of(kFunction, "gradient.films", films_, routing, tape.films, gradient.films_);
  }

  /// From dout [num_tokens, output_dim] to dweight [num_assignments] and dtokens [num_tokens, input_dim], both
  /// overwritten, and `gradient`, accumulated into; `routing` as in forward. Throws std::invalid_argument, before it
  /// writes anything, on wrong shapes and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context, Tape& tape,
                const MatrixView<Scalar>& dout, FilmExperts& gradient, std::span<Scalar> dweight,
                MatrixRef<Scalar> dtokens) const
    requires kDifferentiable
  {
    constexpr const char* kFunction = "moe::FilmExperts::backward";
    detail::require_shape(kFunction, "dtokens", dtokens, routing.num_tokens(), input_dim());
    detail::require_apart(kFunction, "dtokens", dtokens, "tokens", tokens);
    detail::require_apart(kFunction, "dtokens", dtokens, "dout", dout);
    run_backward(tokens, routing, context, tape, dout, gradient, dweight, dtokens);
  }
  /// The same without dtokens.
  void backward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context, Tape& tape,
                const MatrixView<Scalar>& dout, FilmExperts& gradient, std::span<Scalar> dweight) const
    requires(kDifferentiable && SetSkipsTokenGradient<ExpertPool<E>>)
  {
    run_backward(tokens, routing, context, tape, dout, gradient, dweight);
  }

  /// The given experts on the same trunk. Throws std::invalid_argument as TakesExperts says.
  FilmExperts take(std::span<const Index> ids) const
    requires TakesExperts<M>
  {
    return FilmExperts(trunk_[0], films_.take(ids));
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "trunk", self.trunk_[0]...);
    visit_part(f, "films", self.films_...);
  }

 private:
  /// One for each part, as parts of one type would find the same objects in one.
  struct Scratches {
    Scratch trunk, films;
  };

  Index features() const { return trunk_.output_dim(); }

  void require_fit(const char* function) const {
    if (trunk_.size() == 0) fail(function, ": there is no trunk: it has been moved from");
    if (films_.input_dim() != features())
      fail(function, ": the modulation reads ", films_.input_dim(), " features, expected ", features(),
           " as the trunk gives");
  }
  void require_shapes(const char* function, const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing,
                      const MatrixRef<Scalar>& out) const {
    require_fit(function);
    detail::require_shape(function, "tokens", tokens, routing.num_tokens(), input_dim());
    detail::require_shape(function, "out", out, tokens.rows(), output_dim());
    detail::require_experts(function, routing, num_experts());
  }

  template <class Run>
  void run_trunk(const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing, detail::TrunkRows<Scalar>& rows,
                 const Run& run) const {
    rows.build(routing);
    rows.rows.resize(rows.plan.num_rows(), trunk_.row_width());
    run();
    rows.scatter(tokens.rows(), features());
  }

  template <class... DTokens>
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
                    Tape& tape, const ConstMatrixRef<Scalar>& dout, FilmExperts& gradient, std::span<Scalar> dweight,
                    DTokens... dtokens) const {
    constexpr const char* kFunction = "moe::FilmExperts::backward";
    require_backward(routing, tape, gradient);
    detail::require_shape(kFunction, "tokens", tokens, routing.num_tokens(), input_dim());
    detail::require_shape(kFunction, "dout", dout, tokens.rows(), output_dim());
    Scratches& own = context.scratch.template get<Scratches>();
    tape.dfeatures.resize(tokens.rows(), features());
    films_.backward(tape.rows.all(tokens.rows(), features()), routing, Context{context.step, own.films}, tape.films,
                    dout, gradient.films_, dweight, MatrixRef<Scalar>(tape.dfeatures.matrix()));
    kernel::gather<Scalar>(
        tape.dfeatures.matrix(), tape.rows.plan.num_rows(), trunk_.row_width(),
        [&](Index r) { return tape.rows.token[static_cast<std::size_t>(r)]; }, tape.drows);
    trunk_.backward(tokens, tape.rows.plan, Context{detail::step_of_part(context.step, num_experts()), own.trunk},
                    tape.trunk, tape.drows, gradient.trunk_, dtokens...);
  }

  ExpertPool<E> trunk_;  // of one
  M films_;
};

template <class E, std::integral I>
FilmExperts(E, I) -> FilmExperts<E>;
template <class E, class M>
FilmExperts(E, M) -> FilmExperts<E, M>;

}  // namespace moe::inline MOE_ABI
