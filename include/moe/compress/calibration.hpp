// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <vector>

#include "moe/compress/quantise.hpp"
#include "moe/compress/second_moment.hpp"

// What experts have seen of data: the ground on which methods of compression decide.
namespace moe::inline MOE_ABI {

/// What an expert has seen: a statistic for what each of its stages reads. Another statistic of experts is another
/// member, a small struct with +=, state() and a line where it is gathered (detail::gather_statistics).
struct ExpertStatistics {
  SecondMoment inputs;  ///< of the first stage
  SecondMoment hidden;  ///< of the second; empty where there is none

  /// Throws std::invalid_argument for those of an expert of other sizes.
  ExpertStatistics& operator+=(const ExpertStatistics& other) {
    inputs += other.inputs;
    hidden += other.hidden;
    return *this;
  }
  bool empty() const { return inputs.empty(); }

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    visit_part(f, "inputs", self.inputs...);
    visit_part(f, "hidden", self.hidden...);
  }
};

struct CalibrationOptions {
  std::vector<Index> experts = {};  ///< of which statistics are kept; empty: of all
};

namespace detail {

template <HasPanels E>
ExpertStatistics empty_statistics(const E& expert) {
  ExpertStatistics result{.inputs = SecondMoment(expert.input_dim()), .hidden = {}};
  if constexpr (requires { expert.hidden_dim(); }) result.hidden = SecondMoment(expert.hidden_dim());
  return result;
}

}  // namespace detail

/// Statistics of the experts of a layer over what they were routed. Floats in memory and in files: for d inputs and h
/// hidden units (d (d + 1) + h (h + 1)) / 2 per expert, which is 10 MB for d = 2048, h = 1024; CalibrationOptions says
/// which experts matter where that is too much. A plain value. save_parameters() writes it; to read it, make one of the
/// layer:
///   moe::Calibration calibration(layer.experts());
///   moe::load_parameters("calibration.safetensors", calibration);
class Calibration {
 public:
  Calibration() = default;
  /// Of no tokens. Throws std::invalid_argument for an expert that is not there.
  template <detail::HasPanels E>
  explicit Calibration(const ExpertPool<E>& pool, const CalibrationOptions& options = {})
      : experts_(static_cast<std::size_t>(pool.size())) {
    for (const Index e : options.experts)
      if (e < 0 || e >= pool.size())
        fail("moe::Calibration: expert ", e, ", expected one below num_experts = ", pool.size());
    const auto add = [&](Index e) { experts_[static_cast<std::size_t>(e)] = detail::empty_statistics(pool[e]); };
    for (const Index e : options.experts) add(e);
    for (Index e = 0; e < pool.size() && options.experts.empty(); ++e) add(e);
  }

  Index num_experts() const { return std::ssize(experts_); }
  /// Empty for an expert that was not asked for. Throw std::invalid_argument for one that is not there.
  const ExpertStatistics& operator[](Index e) const { return experts_[checked(e)]; }
  ExpertStatistics& operator[](Index e) { return experts_[checked(e)]; }

  /// Adds what the other has seen. Throws std::invalid_argument, before it adds anything, unless it is of the same
  /// experts, of the same sizes.
  Calibration& operator+=(const Calibration& other) {
    if (other.num_experts() != num_experts())
      fail("moe::Calibration: += of ", other.num_experts(), " experts, expected ", num_experts());
    for (std::size_t e = 0; e < experts_.size(); ++e)
      if (experts_[e].inputs.dim() != other.experts_[e].inputs.dim() ||
          experts_[e].hidden.dim() != other.experts_[e].hidden.dim())
        fail("moe::Calibration: += where expert ", e, " has ", other.experts_[e].inputs.dim(), " inputs and ",
             other.experts_[e].hidden.dim(), " hidden units, expected ", experts_[e].inputs.dim(), " and ",
             experts_[e].hidden.dim());
    for (std::size_t e = 0; e < experts_.size(); ++e) experts_[e] += other.experts_[e];
    return *this;
  }

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    const auto& first = std::get<0>(std::tie(self...));
    for (std::size_t e = 0; e < first.experts_.size(); ++e)
      if (!first.experts_[e].empty()) visit_part(f, "experts." + std::to_string(e), self.experts_[e]...);
  }

 private:
  std::size_t checked(Index e) const {
    if (e < 0 || e >= num_experts()) fail("moe::Calibration: expert ", e, ", expected one below ", num_experts());
    return static_cast<std::size_t>(e);
  }

  std::vector<ExpertStatistics> experts_;
};

namespace detail {

/// Adds rows [begin, end) of what stage 0 has read, and of the hidden units in the tape of the stages.
template <class E>
void gather_statistics(const kernel::RowSource<typename E::Scalar>& rows, const StageTapeOf<E>& tape, Index begin,
                       Index end, ExpertStatistics& to) {
  to.inputs.add(rows, begin, end);
  if constexpr (kNumStages<E> > 1)
    to.hidden.add(kernel::RowSource<typename E::Scalar>::from(tape.hidden[0]), begin, end);
}

/// Whether X is a pool of experts whose matrices are known.
template <class X>
struct IsPanelPool : std::false_type {};
template <HasPanels E>
struct IsPanelPool<ExpertPool<E>> : std::true_type {};

}  // namespace detail

/// What the experts of a layer have read in the forward pass that `tape` holds: a function of it, and the same bits for
/// any number of threads. `tokens` are those of that pass. Batches add up:
///   calibration += moe::calibrate(layer, tokens, tape);
/// Of pools of Linear, Mlp and Glu, with floats or codes; padding and dropped tokens do not count. Throws
/// std::invalid_argument for a tape of another pass, and as Calibration. O(num_rows (d^2 + h^2)), in parallel over
/// experts.
template <class R, class G, class X>
  requires detail::IsPanelPool<X>::value
Calibration calibrate(const MoeLayer<R, G, X>& layer, const MatrixView<typename X::Scalar>& tokens,
                      const typename MoeLayer<R, G, X>::Tape& tape, const CalibrationOptions& options = {}) {
  constexpr const char* kFunction = "moe::calibrate";
  using S = typename X::Scalar;
  using E = std::remove_cvref_t<decltype(layer.experts()[0])>;
  const auto& mixture = tape.mixture;
  if (!mixture.is_whole || mixture.plan.num_experts() != layer.num_experts() ||
      mixture.plan.num_tokens() != tokens.rows())
    fail(kFunction, ": the tape is of ", mixture.is_whole ? mixture.plan.num_tokens() : 0, " tokens, expected that of ",
         "a forward pass of ", tokens.rows(), " through ", layer.num_experts(), " experts");
  detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), layer.input_dim());
  const bool weighted = mixture.weight_on == WeightOn::Input;
  const DispatchPlan& plan = weighted ? mixture.weighted.plan : mixture.plan;
  const auto rows = weighted ? kernel::RowSource<S>::from(mixture.weighted.rows)
                             : kernel::RowSource<S>::from(tokens, plan.token_of_row().data());
  Calibration result(layer.experts(), options);
  parallel_for(result.num_experts(), [&](Index e, Index) {
    const auto id = static_cast<std::size_t>(e);
    if (!result[e].empty())
      detail::gather_statistics<E>(rows, mixture.experts.stages, plan.offsets()[id], plan.offsets()[id + 1], result[e]);
  });
  return result;
}
template <class Layer, class... Branches>
Calibration calibrate(const WithBranches<Layer, Branches...>& layer, const MatrixView<typename Layer::Scalar>& tokens,
                      const typename WithBranches<Layer, Branches...>::Tape& tape,
                      const CalibrationOptions& options = {}) {
  return calibrate(layer.layer(), tokens, tape.layer, options);
}

/// The same with a forward pass of its own, at inference. Its tape holds the hidden units of all tokens: more tokens
/// than memory has room for go in batches, which add up.
template <class R, class G, class X>
  requires detail::IsPanelPool<X>::value
Calibration calibrate(const MoeLayer<R, G, X>& layer, const MatrixView<typename X::Scalar>& tokens,
                      const CalibrationOptions& options = {}) {
  typename MoeLayer<R, G, X>::Tape tape;
  Matrix<typename X::Scalar> out(tokens.rows(), layer.output_dim());
  layer.forward(tokens, Step{}, out, tape);
  return calibrate(layer, tokens, tape, options);
}
template <class Layer, class... Branches>
Calibration calibrate(const WithBranches<Layer, Branches...>& layer, const MatrixView<typename Layer::Scalar>& tokens,
                      const CalibrationOptions& options = {}) {
  return calibrate(layer.layer(), tokens, options);  // branches read the same tokens
}

/// What a single expert has read: rows [num_rows, input_dim].
template <detail::HasPanels E>
ExpertStatistics calibrate(const E& expert, const MatrixView<typename E::Scalar>& rows) {
  using S = typename E::Scalar;
  ExpertStatistics result = detail::empty_statistics(expert);
  typename E::Tape tape;
  Scratch scratch;
  const Step step;
  Matrix<S> out(rows.rows(), expert.output_dim());
  expert.forward(rows, out, Context(step, scratch), tape);
  detail::gather_statistics<E>(kernel::RowSource<S>::from(rows), tape.stages, 0, rows.rows(), result);
  return result;
}

}  // namespace moe::inline MOE_ABI
