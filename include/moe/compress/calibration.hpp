// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <vector>

#include "moe/compress/expert_use.hpp"
#include "moe/compress/quantise.hpp"
#include "moe/compress/second_moment.hpp"
#include "moe/compress/token_reservoir.hpp"
#include "moe/expert/stage/hidden_rows.hpp"

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

/// Whether a statistic is gathered. One that is not costs nothing.
enum class Gather { Off, On };

struct CalibrationOptions {
  std::vector<Index> experts = {};     ///< of which moments are kept; empty: of all
  Gather moments = Gather::On;         ///< Calibration::operator[], of pools of Linear, Mlp and Glu
  Gather use = Gather::Off;            ///< Calibration::use()
  Gather contribution = Gather::Off;   ///< in it, what ExpertUse::contributions() needs; with use alone
  Gather co_activation = Gather::Off;  ///< Calibration::co_activation()
  Index reservoir = 0;                 ///< tokens that Calibration::reservoir() holds
  std::uint64_t seed = 0;              ///< of the reservoir
  Index first_token = 0;               ///< the number of the first token of this batch in the data, for the reservoir
  /// Of contributions: the stream that outputs are added to, [num_tokens, output_dim]; nullptr: what the layer reads.
  /// The two differ in a transformer, where a norm stands before the layer.
  const Matrix<float>* stream = nullptr;
};

namespace detail {

template <HasPanels E>
ExpertStatistics empty_statistics(const E& expert) {
  ExpertStatistics result{.inputs = SecondMoment(expert.input_dim()), .hidden = {}};
  if constexpr (requires { expert.hidden_dim(); }) result.hidden = SecondMoment(expert.hidden_dim());
  return result;
}

/// Whether X is a pool of experts whose matrices are known.
template <class X>
struct IsPanelPool : std::false_type {};
template <HasPanels E>
struct IsPanelPool<ExpertPool<E>> : std::true_type {};

}  // namespace detail

/// Statistics of the experts of a layer over what they were routed: second moments for methods that find codes, and,
/// where CalibrationOptions asks for it, what scores of experts are made of. Floats of the moments in memory and in
/// files: for d inputs and h hidden units (d (d + 1) + h (h + 1)) / 2 per expert, which is 10 MB for d = 2048, h =
/// 1024; CalibrationOptions says which experts matter where that is too much, or leaves moments out. A plain value.
/// save_parameters() writes it; to read it, make one of the layer:
///   moe::Calibration calibration(layer.experts(), options);
///   moe::load_parameters("calibration.safetensors", calibration);
class Calibration {
 public:
  Calibration() = default;
  /// Of no tokens. Throws std::invalid_argument for an expert that is not there.
  template <detail::HasPanels E>
  explicit Calibration(const ExpertPool<E>& pool, const CalibrationOptions& options = {})
      : Calibration(pool.size(), pool.input_dim(), options) {
    for (const Index e : options.experts)
      if (e < 0 || e >= pool.size())
        fail("moe::Calibration: expert ", e, ", expected one below num_experts = ", pool.size());
    if (options.moments == Gather::Off) return;
    const auto add = [&](Index e) { experts_[static_cast<std::size_t>(e)] = detail::empty_statistics(pool[e]); };
    for (const Index e : options.experts) add(e);
    for (Index e = 0; e < pool.size() && options.experts.empty(); ++e) add(e);
  }

  /// Of experts of any kind. Throws std::invalid_argument unless moments are off.
  template <ExpertSet X>
    requires(!detail::IsPanelPool<X>::value)
  Calibration(const X& experts, const CalibrationOptions& options)
      : Calibration(experts.size(), experts.input_dim(), options) {
    if (options.moments == Gather::On)
      fail("moe::Calibration: moments are of a pool of Linear, Mlp or Glu, expected .moments = Gather::Off");
  }

  Index num_experts() const { return std::ssize(experts_); }
  /// Empty where not asked for.
  const ExpertUse& use() const { return use_; }
  ExpertUse& use() { return use_; }
  const CoActivation& co_activation() const { return co_activation_; }
  CoActivation& co_activation() { return co_activation_; }
  const TokenReservoir& reservoir() const { return reservoir_; }
  TokenReservoir& reservoir() { return reservoir_; }
  /// Empty for an expert that was not asked for. Throw std::invalid_argument for one that is not there.
  const ExpertStatistics& operator[](Index e) const { return experts_[checked(e)]; }
  ExpertStatistics& operator[](Index e) { return experts_[checked(e)]; }

  /// Adds what the other has seen. Throws std::invalid_argument, before it adds anything, unless it has the same
  /// statistics of the same experts, of the same sizes.
  Calibration& operator+=(const Calibration& other) {
    if (other.num_experts() != num_experts())
      fail("moe::Calibration: += of ", other.num_experts(), " experts, expected ", num_experts());
    for (std::size_t e = 0; e < experts_.size(); ++e)
      if (experts_[e].inputs.dim() != other.experts_[e].inputs.dim() ||
          experts_[e].hidden.dim() != other.experts_[e].hidden.dim())
        fail("moe::Calibration: += where expert ", e, " has ", other.experts_[e].inputs.dim(), " inputs and ",
             other.experts_[e].hidden.dim(), " hidden units, expected ", experts_[e].inputs.dim(), " and ",
             experts_[e].hidden.dim());
    use_.require_same(other.use_);
    reservoir_.require_same(other.reservoir_);
    co_activation_ += other.co_activation_;  // refuses, too
    use_ += other.use_;
    reservoir_ += other.reservoir_;
    for (std::size_t e = 0; e < experts_.size(); ++e) experts_[e] += other.experts_[e];
    return *this;
  }

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    const auto& first = std::get<0>(std::tie(self...));
    for (std::size_t e = 0; e < first.experts_.size(); ++e)
      if (!first.experts_[e].empty()) visit_part(f, "experts." + std::to_string(e), self.experts_[e]...);
    if (!first.use_.empty()) visit_part(f, "use", self.use_...);
    if (!first.co_activation_.empty()) visit_part(f, "co_activation", self.co_activation_...);
    if (first.reservoir_.capacity() > 0) visit_part(f, "reservoir", self.reservoir_...);
  }

 private:
  Calibration(Index num_experts, Index input_dim, const CalibrationOptions& options)
      : experts_(static_cast<std::size_t>(num_experts)), reservoir_(options.reservoir, input_dim, options.seed) {
    if (options.use == Gather::On) use_ = ExpertUse(num_experts);
    if (options.contribution == Gather::On) {
      if (options.use == Gather::Off) fail("moe::Calibration: contributions without use, expected .use = Gather::On");
      use_.contribution = Eigen::VectorXd::Zero(num_experts);
    }
    if (options.co_activation == Gather::On) co_activation_.tokens.setZero(num_experts, num_experts);
  }

  std::size_t checked(Index e) const {
    if (e < 0 || e >= num_experts()) fail("moe::Calibration: expert ", e, ", expected one below ", num_experts());
    return static_cast<std::size_t>(e);
  }

  std::vector<ExpertStatistics> experts_;
  ExpertUse use_;
  CoActivation co_activation_;
  TokenReservoir reservoir_;
};

namespace detail {

/// The hidden units of a pass that a tape holds.
template <class E>
class HiddenUnits {
 public:
  template <class ExpertOf>
  HiddenUnits(const kernel::RowGroups& groups, const ExpertOf& expert_of, const StageTapeOf<E>& tape) {
    if constexpr (kNumStages<E> > 1) source_ = hidden_rows<E, 0>(groups, expert_of, tape, rows_);
  }
  HiddenUnits(const HiddenUnits&) = delete;
  HiddenUnits& operator=(const HiddenUnits&) = delete;

  /// Adds rows [begin, end) of what stage 0 has read, and of the hidden units.
  void gather(const kernel::RowSource<typename E::Scalar>& rows, Index begin, Index end, ExpertStatistics& to) const {
    to.inputs.add(rows, begin, end);
    if constexpr (kNumStages<E> > 1) to.hidden.add(source_, begin, end);
  }

 private:
  RowBuffer<typename E::Scalar> rows_;
  kernel::RowSource<typename E::Scalar> source_;
};

/// What does not look at the matrices of experts: use, pairs, reservoir.
template <class S, class MixtureTape>
void gather_routed(const MixtureTape& tape, const Routing<S>& routing, const ConstMatrixRef<S>& tokens,
                   Index output_dim, const CalibrationOptions& options, Calibration& to) {
  const DispatchPlan& plan = tape.plan;
  const auto reaches = [&](Index t) {
    const auto rows = plan.row_of_assignment();
    return std::any_of(rows.begin() + plan.begin(t), rows.begin() + plan.end(t), [](Index row) { return row >= 0; });
  };
  if (to.reservoir().capacity() > 0) to.reservoir().add(tokens, options.first_token, reaches);
  if (!to.co_activation().empty()) gather_pairs(plan, routing.experts(), to.co_activation().tokens);
  if (to.use().empty()) return;
  std::vector<double> weights(static_cast<std::size_t>(plan.num_rows()), 1.0), turn;
  for (std::size_t r = 0; r < weights.size() && tape.weight_on == WeightOn::Output; ++r)
    weights[r] = static_cast<double>(routing.weights()[static_cast<std::size_t>(plan.assignment_of_row()[r])]);
  if (options.contribution == Gather::On) {
    if (options.stream != nullptr) {
      require_shape("moe::calibrate", "stream", *options.stream, tokens.rows(), output_dim);
      turn = turns(plan, tape.rows, weights, *options.stream);
    } else {
      if (tokens.cols() != output_dim)
        fail("moe::calibrate: tokens have ", tokens.cols(), " columns and outputs ", output_dim,
             ", expected a stream for contributions");
      turn = turns(plan, tape.rows, weights, tokens);
    }
  }
  for (Index t = 0; t < plan.num_tokens(); ++t) to.use().tokens += reaches(t) ? 1 : 0;
  gather_use<S>(plan, tape.rows, output_dim, routing.weights(), weights, turn, to.use());
}

}  // namespace detail

/// What the experts of a layer have read in the forward pass that `tape` holds: a function of it, and the same bits for
/// any number of threads. `tokens` are those of that pass. Batches add up:
///   calibration += moe::calibrate(layer, tokens, tape);
/// Moments are of pools of Linear, Mlp and Glu, with floats or codes; padding and dropped tokens do not count. Throws
/// std::invalid_argument for a tape of another pass, for contributions without a stream where outputs are not as wide
/// as tokens, and as Calibration. Moments take O(num_rows (d^2 + h^2)), in parallel over experts, everything else
/// O(num_rows (d + k)).
template <class R, class G, ExpertSet X>
Calibration calibrate(const MoeLayer<R, G, X>& layer, const MatrixView<typename X::Scalar>& tokens,
                      const typename MoeLayer<R, G, X>::Tape& tape, const CalibrationOptions& options = {}) {
  constexpr const char* kFunction = "moe::calibrate";
  using S = typename X::Scalar;
  const auto& mixture = tape.mixture;
  if (!mixture.is_whole || mixture.plan.num_experts() != layer.num_experts() ||
      mixture.plan.num_tokens() != tokens.rows())
    fail(kFunction, ": the tape is of ", mixture.is_whole ? mixture.plan.num_tokens() : 0, " tokens, expected that of ",
         "a forward pass of ", tokens.rows(), " through ", layer.num_experts(), " experts");
  detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), layer.input_dim());
  Calibration result(layer.experts(), options);
  detail::gather_routed<S>(mixture, tape.routing, tokens, layer.output_dim(), options, result);
  if constexpr (detail::IsPanelPool<X>::value) {
    using E = std::remove_cvref_t<decltype(layer.experts()[0])>;
    const bool weighted = mixture.weight_on == WeightOn::Input;
    const DispatchPlan& plan = weighted ? mixture.weighted.plan : mixture.plan;
    const auto rows = weighted ? kernel::RowSource<S>::from(mixture.weighted.rows)
                               : kernel::RowSource<S>::from(tokens, plan.token_of_row().data());
    const detail::HiddenUnits<E> hidden(
        {plan.offsets().data(), plan.num_experts()}, [&](Index e) -> decltype(auto) { return layer.experts()[e]; },
        mixture.experts.stages);
    parallel_for(result.num_experts(), [&](Index e, Index) {
      const auto id = static_cast<std::size_t>(e);
      if (!result[e].empty()) hidden.gather(rows, plan.offsets()[id], plan.offsets()[id + 1], result[e]);
    });
  }
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
template <class R, class G, ExpertSet X>
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
  const Index offset[] = {0, rows.rows()};
  const detail::HiddenUnits<E> hidden(
      {offset, 1}, [&](Index) -> const E& { return expert; }, tape.stages);
  hidden.gather(kernel::RowSource<S>::from(rows), 0, rows.rows(), result);
  return result;
}

}  // namespace moe::inline MOE_ABI
