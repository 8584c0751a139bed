// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/overlap.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/expert/pool.hpp"
#include "moe/layer/grouped_rows.hpp"
#include "moe/layer/merged_parameters.hpp"
#include "moe/layer/mixture.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// share [num_groups, num_experts]: the mean weights over the tokens of each group.
template <class S>
void mean_weights(const TokenGroups& groups, const Routing<S>& routing, Index num_experts, RowBuffer<double>& share) {
  share.resize(groups.count(), num_experts);
  for (Index g = 0; g < groups.count(); ++g) {
    double* const p = share.row(g);
    std::fill_n(p, num_experts, 0.0);
    for (const Index t : groups[g])
      for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
        if (!routing.dropped(t)[s]) p[routing.experts(t)[s]] += static_cast<double>(routing.weights(t)[s]);
    for (Index e = 0; e < num_experts; ++e) p[e] /= static_cast<double>(groups.size(g));
  }
}

}  // namespace detail

/// Experts that are merged and not chosen from: the tokens of a group (step.group_id) are run by one expert, whose
/// parameters are the sum of those of all, each times the mean of its weights over the valid tokens of the group.
///   p_e = (1 / T) sum_t weight_te        W = sum_e p_e W_e        out[t] = expert with W (tokens[t])
/// A Mixture, which stands where expert sets stand, with a gate that weighs all experts:
///   moe::MoeLayer layer(router, moe::SoftmaxGate{}, moe::MergedExperts(moe::ExpertPool<moe::Glu>::random(8, 64, 256,
///   1)));
/// Gradients reach all experts and, without estimators, the router: dL/dp_e = <dL/dW, W_e>, dL/dW_e = p_e dL/dW. Linear
/// experts give the weighted sum of their outputs. An expert with all of the weight is that expert, bit for bit. What a
/// token gets depends on the weights of its whole group, later tokens too. Without any weight the parameters are zero.
/// Experts must have parameters of equal names and shapes, and no state, of which there is no mean: named errors
/// otherwise (of state, in the constructor). What is no parameter, as the limit of an activation, is that of expert 0.
/// Immutable in use, share freely. Same bits for any number of threads. Merging costs num_experts * parameters
/// operations per group, the expert that of one per token; backward merges again rather than keep a copy per group. No
/// allocation when warm. Muqeeth, Liu & Raffel, "Soft merging of experts with adaptive routing" (SMEAR,
/// arXiv:2306.03745); Zhong et al., "Lory" (arXiv:2405.03133).
template <class E>
class MergedExperts {
  static_assert(Expert<E> && HasParameters<E>,
                "moe::MergedExperts: an Expert needs `Scalar`, `input_dim()`, `output_dim()`, `forward` and `visit` "
                "(see moe/expert/concept.hpp)");

 public:
  using Scalar = typename E::Scalar;
  static constexpr bool kPerToken = false;

  /// What forward leaves for backward, and the working memory of both.
  struct Tape {
    detail::GroupedRows<Scalar> of;
    RowBuffer<double> share;  ///< [num_groups, num_experts]: mean weights
    RowBuffer<Scalar> rows, out;
    detail::ParameterTable parameters;
    std::optional<E> merged, dmerged;
    std::vector<detail::TapeOf<E>> of_group;
    RowBuffer<Scalar> dout, drows;
    std::vector<double> dshare;      ///< of one group
    Scratch scratch;                 ///< of the expert
    std::vector<Index> token_begin;  ///< of the routing
    bool is_whole = false;           ///< whether a forward pass has ended
  };

  /// Throws std::invalid_argument for experts that cannot be merged.
  explicit MergedExperts(ExpertPool<E> experts) : experts_(std::move(experts)) {
    require_alike("moe::MergedExperts");
    if (const Index count = num_state(experts_); count != 0)
      fail("moe::MergedExperts: the experts keep ", count, " numbers that are not learned, expected none");
  }

  Index num_experts() const { return experts_.size(); }
  Index input_dim() const { return experts_.input_dim(); }
  Index output_dim() const { return experts_.output_dim(); }
  ExpertPool<E>& experts() { return experts_; }
  const ExpertPool<E>& experts() const { return experts_; }

  /// `out` may be `tokens` itself, but not overlap other rows of it. Throws std::invalid_argument on wrong shapes, for
  /// a routing of other tokens or experts, and for experts that cannot be merged.
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out) const {
    constexpr const char* kFunction = "moe::MergedExperts::forward";
    require_shapes(kFunction, tokens, routing, context.step, out);
    detail::require_same_or_apart(kFunction, "out", out, "tokens", tokens);
    Tape& memory = context.scratch.get<Tape>();
    run(tokens, routing, context.step, memory, [&](Index g, const Context& own) {
      memory.merged->forward(memory.of.block(memory.rows, g), memory.of.block(memory.out, g), own);
    });
    memory.of.scatter(memory.out, out);
  }

  /// The same with what backward needs kept in `tape`; `out` must not overlap `tokens`.
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out, Tape& tape) const
    requires DifferentiableExpert<E>
  {
    constexpr const char* kFunction = "moe::MergedExperts::forward";
    require_shapes(kFunction, tokens, routing, context.step, out);
    detail::require_apart(kFunction, "out", out, "tokens", tokens);
    tape.is_whole = false;
    run(tokens, routing, context.step, tape, [&](Index g, const Context& own) {
      tape.of_group.resize(std::max(tape.of_group.size(), static_cast<std::size_t>(tape.of.groups.count())));
      tape.merged->forward(tape.of.block(tape.rows, g), tape.of.block(tape.out, g), own, of_group(tape, g));
    });
    tape.of.scatter(tape.out, out);
    tape.token_begin.clear();
    for (Index t = 0; t <= routing.num_tokens(); ++t) tape.token_begin.push_back(t == 0 ? 0 : routing.end(t - 1));
    tape.is_whole = true;
  }

  /// Throws std::invalid_argument unless `tape` holds a forward pass through experts of these sizes with as many tokens
  /// and choices, and `gradient` is another mixture of them.
  void require_backward(const Routing<Scalar>& routing, const Tape& tape, const MergedExperts& gradient) const
    requires DifferentiableExpert<E>
  {
    constexpr const char* kFunction = "moe::MergedExperts::backward";
    require_alike(kFunction);
    if (!tape.is_whole) fail(kFunction, ": the tape holds no forward pass that has ended");
    if (std::ssize(tape.token_begin) != routing.num_tokens() + 1)
      fail(kFunction, ": routing has ", routing.num_tokens(), " tokens, expected ", tape.token_begin.size() - 1,
           " as in the forward pass of the tape");
    for (Index t = 0; t < routing.num_tokens(); ++t)
      if (routing.end(t) != tape.token_begin[static_cast<std::size_t>(t) + 1])
        fail(kFunction, ": the choices of token ", t, " end at ", routing.end(t), ", expected ",
             tape.token_begin[static_cast<std::size_t>(t) + 1], " as in the forward pass of the tape");
    detail::require_experts(kFunction, routing, num_experts());
    if (tape.share.cols() != num_experts() || tape.rows.cols() != input_dim())
      fail(kFunction, ": the tape is of ", tape.share.cols(), " experts of ", tape.rows.cols(), " inputs, expected ",
           num_experts(), " of ", input_dim());
    if (&gradient == this) fail(kFunction, ": gradient is the mixture itself, expected one of its own (zeros_like)");
    if (gradient.num_experts() != num_experts())
      fail(kFunction, ": gradient has ", gradient.num_experts(), " experts, expected ", num_experts());
    detail::require_gradient_of(kFunction, "gradient", experts_, gradient.experts_);
    for (Index g = 0; g < tape.of.groups.count(); ++g)
      detail::require_backward_of(kFunction, "gradient", experts_[0], tape.of.groups.size(g), of_group(tape, g),
                                  gradient.experts_[0]);
  }

  /// From dout [num_tokens, output_dim] to dweight [num_assignments] and dtokens [num_tokens, input_dim], both
  /// overwritten, and `gradient`, accumulated into; `routing` as in forward. Throws std::invalid_argument, before it
  /// writes anything, on wrong shapes and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context, Tape& tape,
                const MatrixView<Scalar>& dout, MergedExperts& gradient, std::span<Scalar> dweight,
                MatrixRef<Scalar> dtokens) const
    requires DifferentiableExpert<E>
  {
    constexpr const char* kFunction = "moe::MergedExperts::backward";
    require_backward(routing, tape, gradient);
    detail::require_shape(kFunction, "tokens", tokens, routing.num_tokens(), input_dim());
    detail::require_shape(kFunction, "dout", dout, tokens.rows(), output_dim());
    detail::require_shape(kFunction, "dtokens", dtokens, tokens.rows(), input_dim());
    detail::require_apart(kFunction, "dtokens", dtokens, "tokens", tokens);
    detail::require_apart(kFunction, "dtokens", dtokens, "dout", dout);
    if (std::ssize(dweight) != routing.num_assignments())
      fail(kFunction, ": dweight has ", dweight.size(),
           " entries, expected num_assignments = ", routing.num_assignments());
    const detail::GroupedRows<Scalar>& of = tape.of;
    prepare(tape);
    detail::make_zeros_like(experts_[0], tape.dmerged);
    of.gather(dout, tape.dout);
    tape.drows.resize(of.groups.num_tokens(), input_dim());
    std::ranges::fill(dweight, Scalar{0});
    for (Index g = 0; g < of.groups.count(); ++g) {
      const Step step = of.step(context.step, g);
      if (g > 0) set_zero(*tape.dmerged);
      detail::merge(tape.parameters, tape.share.row(g), *tape.merged);
      tape.merged->backward(of.block(tape.rows, g), of_group(tape, g), of.block(tape.dout, g), of.block(tape.drows, g),
                            *tape.dmerged, Context{step, tape.scratch});
      detail::merge_backward(experts_, *tape.dmerged, tape.share.row(g), gradient.experts_, tape.dshare);
      weigh_backward(routing, of.groups[g], tape.dshare, dweight);
    }
    of.scatter(tape.drows, dtokens);
  }

  /// The same over the given experts. Throws std::invalid_argument as TakesExperts says.
  MergedExperts take(std::span<const Index> ids) const { return MergedExperts(experts_.take(ids)); }
  /// The same over the experts of both. Throws std::invalid_argument unless they can be merged with each other.
  MergedExperts concatenate(const MergedExperts& other) const {
    return MergedExperts(experts_.concatenate(other.experts_));
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.experts_...);
  }

 private:
  static auto& of_group(auto& tape, Index g) { return tape.of_group[static_cast<std::size_t>(g)]; }

  void require_alike(const char* function) const {
    if (experts_.size() == 0) fail(function, ": there are no experts: they have been moved from");
    const std::uint64_t first = detail::Fingerprint::of(experts_[0]);
    for (Index e = 1; e < experts_.size(); ++e) {
      detail::SameLayout layouts;
      if (detail::Fingerprint::of(experts_[e]) == first)
        moe::visit(layouts, experts_[0], experts_[e]);
      else
        layouts.same = false;
      if (!layouts.same)
        fail(function, ": expert ", e, " has other parameters than expert 0, expected the same names and shapes");
    }
  }

  void require_shapes(const char* function, const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing,
                      const Step& step, const MatrixRef<Scalar>& out) const {
    require_alike(function);
    detail::require_shape(function, "tokens", tokens, routing.num_tokens(), input_dim());
    detail::require_shape(function, "out", out, tokens.rows(), output_dim());
    detail::require_experts(function, routing, num_experts());
    step.validate(function, tokens.rows());
    for (Index t = 0; t < tokens.rows() && !step.valid.empty(); ++t)
      if (!step.is_valid(t) && std::ranges::count(routing.dropped(t), std::uint8_t{0}) != 0)
        fail(function, ": token ", t, " is padding and has choices, expected them dropped (see drop_padding)");
  }

  /// The working memory of merging: an expert of the numbers that are no parameters, and where the parameters lie.
  void prepare(Tape& tape) const {
    tape.merged = experts_[0];
    tape.parameters.build(experts_);
  }

  /// Calls run_group(g, context) for every group, whose expert has then been merged.
  template <class RunGroup>
  void run(const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing, const Step& step, Tape& tape,
           const RunGroup& run_group) const {
    tape.of.build(tokens.rows(), step);
    tape.of.gather(tokens, tape.rows);
    detail::mean_weights(tape.of.groups, routing, num_experts(), tape.share);
    tape.out.resize(tape.of.groups.num_tokens(), output_dim());
    prepare(tape);
    for (Index g = 0; g < tape.of.groups.count(); ++g) {
      const Step own = tape.of.step(step, g);
      detail::merge(tape.parameters, tape.share.row(g), *tape.merged);
      run_group(g, Context{own, tape.scratch});
    }
  }

  /// dL/dweight of the choices of a group: each has its share of 1 / T in the mean.
  static void weigh_backward(const Routing<Scalar>& routing, std::span<const Index> tokens,
                             const std::vector<double>& dshare, std::span<Scalar> dweight) {
    for (const Index t : tokens)
      for (Index a = routing.begin(t); a < routing.end(t); ++a) {
        const auto at = static_cast<std::size_t>(a);
        if (routing.dropped()[at]) continue;
        const double of_expert = dshare[static_cast<std::size_t>(routing.experts()[at])];
        dweight[at] = static_cast<Scalar>(of_expert / static_cast<double>(tokens.size()));
      }
  }

  ExpertPool<E> experts_;
};

template <class E>
MergedExperts(ExpertPool<E>) -> MergedExperts<E>;

}  // namespace moe::inline MOE_ABI
