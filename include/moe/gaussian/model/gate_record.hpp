// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"
#include "moe/gaussian/model/gate_model.hpp"

namespace moe::inline MOE_ABI::detail {

/// What of a gate decides about predictions and is no parameter, as numbers in a file: experts per row (0: all),
/// whether the bias counts in their ranking, its place, whether there is a temperature, and three values of the
/// activation; for scores that are not linear also their kind and shifts. A leaf of GaussianMoe::visit() that is only
/// compared: another gate cannot be loaded into, as its class and numbers are the program's. Values of an activation
/// may differ by roundings of another libm.
class GateRecord {
 public:
  template <class G>
  GateRecord(const G& gate, Index num_experts) {
    using Likelihood = GateModel<G>;
    if (num_experts < 1) return;
    const GateForm form = Likelihood::form(gate, num_experts);
    using Inner = typename Likelihood::Inner;
    const bool linear = std::is_same_v<Inner, Identity>;
    values_ = {form.active < num_experts ? static_cast<double>(form.active) : 0.0,
               form.active < num_experts && form.ranks_bias ? 1.0 : 0.0,
               linear || form.bias == BiasPlace::Inside ? 1.0 : 0.0,  // with a linear gate there is no difference
               Likelihood::kTempered ? 1.0 : 0.0,
               double(Inner::value(-1.25)),
               double(Inner::value(0.5)),
               double(Inner::value(2.0))};
    if (!form.score.linear())
      values_.insert(values_.end(),
                     {static_cast<double>(form.score.kind), form.score.weight_shift, form.score.input_shift});
    if (form.score.link != ScoreLink::Identity) values_.push_back(static_cast<double>(form.score.link));
  }

  std::vector<Index> shape() const { return {std::ssize(values_)}; }
  std::span<double> span() { return values_; }
  std::span<const double> span() const { return values_; }
  template <class S>
  void read(std::span<S> values) const {
    std::transform(values_.begin(), values_.end(), values.begin(), [](double v) { return static_cast<S>(v); });
  }

  /// Throws std::runtime_error unless the values are those of this gate.
  template <class S>
  void write(std::span<const S> values) const {
    constexpr std::array<const char*, 11> kNames = {"number of active experts (0: all)",
                                                    "ranking with the bias (1) or without (0)",
                                                    "place of the bias, inside (1) or outside (0)",
                                                    "temperature, with (1) or without (0)",
                                                    "activation at -1.25",
                                                    "activation at 0.5",
                                                    "activation at 2",
                                                    "kind of score, product (0), cosine (1) or distance (2)",
                                                    "shift of weights",
                                                    "shift of inputs",
                                                    "sigmoid of the score, with (1)"};
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const double found = static_cast<double>(values[i]), own = values_[i];
      if (!(std::abs(found - own) <= 1e-14 * (1 + std::abs(own))))
        fail_environment("moe::GaussianMoe: tensor 'gate' says of the ", kNames[i], " that it is ", found,
                         ", expected that of the gate it is loaded into, ", own);
    }
  }

 private:
  std::vector<double> values_ = std::vector<double>(7);
};

/// Calls f(name, records...), which are leaves and need places of their own.
template <class F, class... Records>
void visit_records(F&& f, const char* name, Records... records) {
  f(name, records...);
}

}  // namespace moe::inline MOE_ABI::detail
