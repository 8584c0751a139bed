// SPDX-License-Identifier: MIT
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include "moe/compress/calibration.hpp"
#include "moe/compress/quantisation_report.hpp"
#include "moe/compress/scale_hidden.hpp"

// Layers with weights in few bits, found from what their matrices have read.
namespace moe::inline MOE_ABI {

/// A way to find codes and scales that looks at what the matrix has read: a Quantiser with a SecondMoment and a
/// MatrixReport more. The report comes with expert, name and format; a method fills in what is its own (damping),
/// errors are measured for it. One that rescales what experts compute inside has
///   std::vector<float> hidden_scales(expert, first_format, down_format, const ExpertStatistics&, MatrixReport&) const
/// as Awq does, and one with settings `void validate() const`, which is called once, whatever there is to round.
template <class Q>
concept CalibratedQuantiser = requires(const Q& quantiser, const PanelMatrix<F32>& weights, const WeightFormat& format,
                                       const SecondMoment& moment, MatrixReport& report) {
  { quantiser(weights, format, moment, report) } -> std::same_as<PanelMatrix<Quantised>>;
};

namespace detail {

template <class Q>
concept AnyQuantiser = Quantiser<Q> || CalibratedQuantiser<Q>;

template <class Q>
void validate_quantiser(const Q& quantiser) {
  if constexpr (requires { quantiser.validate(); }) quantiser.validate();
}

/// Counts matrices that are done, for somebody who watches.
class Progress {
 public:
  Progress(const QuantisationOptions& options, Index total) : options_(options), total_(total) {}
  void add() {
    if (!options_.progress) return;
    const std::lock_guard lock(mutex_);
    options_.progress(++done_, total_);
  }

 private:
  const QuantisationOptions& options_;
  Index total_, done_ = 0;
  std::mutex mutex_;
};

/// One expert, of which the report has a line for each matrix.
template <class E, class Format, AnyQuantiser Q>
class CalibratedExpert {
 public:
  CalibratedExpert(const E& expert, Index number, const Format& format, const Q& quantiser,
                   const ExpertStatistics& statistics, const QuantisationOptions& options)
      : expert_(expert),
        number_(number),
        format_(format),
        quantiser_(quantiser),
        statistics_(statistics),
        options_(options) {
    if (statistics.empty()) return;  // not asked for
    if (statistics.inputs.dim() != expert.input_dim() || statistics.hidden.dim() != hidden_dim(expert))
      fail("moe::quantise: the calibration of expert ", number, " is of ", statistics.inputs.dim(), " inputs and ",
           statistics.hidden.dim(), " hidden units, expected ", expert.input_dim(), " and ", hidden_dim(expert));
  }

  auto run(Progress& progress, std::vector<MatrixReport>& reports) {
    scales_ = named("down.weight", [&] { return hidden_scales(); });
    std::optional<E> scaled;
    SecondMoment hidden;
    if (!scales_.empty()) {
      scale_hidden(scaled.emplace(expert_), scales_);
      hidden = statistics_.hidden.scaled(reciprocals(scales_));
    }
    return converted<Quantised>(
        scaled ? *scaled : expert_, [&](std::string_view name, const PanelMatrix<F32>& weights) {
          const bool is_down = name == "down.weight";
          MatrixReport report{.expert = number_, .name = std::string(name)};
          report.format = format_for(format_, ExpertMatrix{.expert = number_, .name = name});
          const SecondMoment& read = is_down ? statistics_.hidden : statistics_.inputs;
          PanelMatrix<Quantised> codes =
              named(name, [&] { return convert(weights, is_down && scaled ? hidden : read, report); });
          report.rows = read.rows();
          if (is_down) report.scaling = exponent_;
          if (options_.report) measure(codes, is_down, report);
          reports.push_back(std::move(report));
          progress.add();
          return codes;
        });
  }

 private:
  template <class F>
  auto named(std::string_view name, const F& f) const {
    try {
      return f();
    } catch (const std::invalid_argument& error) {
      fail("moe::quantise: expert ", number_, ", ", name, ": ", error.what());
    }
  }

  /// In the weights as they were.
  void measure(const PanelMatrix<Quantised>& codes, bool is_down, MatrixReport& report) const {
    PanelMatrix<F32> decoded = codes.decoded();
    if (!scales_.empty() && is_down) scale_inputs(decoded, reciprocals(scales_));
    if (!scales_.empty() && !is_down) scale_outputs(decoded, scales_);
    report_errors(is_down ? second_weight(expert_) : first_weight(expert_), decoded,
                  is_down ? statistics_.hidden : statistics_.inputs, report);
  }
  static Index hidden_dim(const E& expert) {
    if constexpr (requires { expert.hidden_dim(); })
      return expert.hidden_dim();
    else
      return 0;
  }
  bool has_rows(const SecondMoment& moment) const {
    return !moment.empty() && moment.rows() >= std::max<Index>(1, options_.least_rows);
  }

  std::vector<float> hidden_scales() {
    if constexpr (requires(MatrixReport& report) {
                    quantiser_.hidden_scales(expert_, WeightFormat{}, WeightFormat{}, statistics_, report);
                  }) {
      if (!has_rows(statistics_.hidden)) return {};
      MatrixReport report;
      const auto format = [&](const char* name) {
        return format_for(format_, ExpertMatrix{.expert = number_, .name = name});
      };
      std::vector<float> scales =
          quantiser_.hidden_scales(expert_, format(first_name(expert_)), format("down.weight"), statistics_, report);
      exponent_ = report.scaling;
      return scales;
    } else {
      return {};
    }
  }

  PanelMatrix<Quantised> convert(const PanelMatrix<F32>& weights, const SecondMoment& moment,
                                 MatrixReport& report) const {
    if constexpr (!CalibratedQuantiser<Q>) {
      return quantiser_(weights, report.format);
    } else {
      if (has_rows(moment)) return quantiser_(weights, report.format, moment, report);
      report.is_fallback = true;
      return round_to_nearest(weights, report.format);
    }
  }

  const E& expert_;
  Index number_;
  const Format& format_;
  const Q& quantiser_;
  const ExpertStatistics& statistics_;
  const QuantisationOptions& options_;
  double exponent_ = 0;
  std::vector<float> scales_ = {};
};

}  // namespace detail

/// The expert with weights in few bits, its codes found from `statistics` (calibrate(expert, rows)). `quantiser` is a
/// CalibratedQuantiser (Gptq, Awq), or a Quantiser (RoundToNearest, Hqq), for which errors are reported alike. Matrices
/// with fewer than options.least_rows rows are rounded to nearest, and the report says so. Throws std::invalid_argument
/// where the quantiser does, and for statistics of other sizes.
template <detail::HasFloatPanels E, detail::FormatChoice Format, detail::AnyQuantiser Q>
auto quantise(const E& expert, const Format& format, const Q& quantiser, const ExpertStatistics& statistics,
              const QuantisationOptions& options = {}) {
  detail::validate_quantiser(quantiser);
  detail::Progress progress(options, kNumStages<E>);
  std::vector<MatrixReport> reports;
  auto result = detail::CalibratedExpert(expert, 0, format, quantiser, statistics, options).run(progress, reports);
  if (options.report) options.report->matrices = std::move(reports);
  return result;
}

/// The same of every expert of a pool, in parallel, the same bits for any number of threads. Experts that the
/// calibration was not asked for are rounded to nearest. Per worker the memory of an expert in float and of what the
/// quantiser makes of a moment.
///   moe::QuantisationReport report;
///   const auto calibration = moe::calibrate(layer, tokens);
///   const auto few = moe::quantise(layer, moe::WeightFormat::int4(), moe::Gptq{}, calibration, {.report = &report});
template <detail::HasFloatPanels E, detail::FormatChoice Format, detail::AnyQuantiser Q>
auto quantise(const ExpertPool<E>& pool, const Format& format, const Q& quantiser, const Calibration& calibration,
              const QuantisationOptions& options = {}) {
  using Other = typename detail::WithCodec<E, Quantised>::type;
  if (calibration.num_experts() != pool.size())
    fail("moe::quantise: the calibration is of ", calibration.num_experts(), " experts, expected ", pool.size());
  detail::validate_quantiser(quantiser);
  detail::Progress progress(options, pool.size() * kNumStages<E>);
  std::vector<std::optional<Other>> made(static_cast<std::size_t>(pool.size()));
  std::vector<std::vector<MatrixReport>> reports(made.size());
  parallel_for(pool.size(), [&](Index e, Index) {
    const auto id = static_cast<std::size_t>(e);
    made[id].emplace(
        detail::CalibratedExpert(pool[e], e, format, quantiser, calibration[e], options).run(progress, reports[id]));
  });
  std::vector<Other> experts;
  for (auto& expert : made) experts.push_back(std::move(*expert));
  if (options.report) {
    options.report->matrices.clear();
    for (auto& of_expert : reports)
      for (MatrixReport& report : of_expert) options.report->matrices.push_back(std::move(report));
  }
  return ExpertPool<Other>(std::move(experts));
}

/// The same of a layer; router, gate and branches stay.
template <detail::HasExperts L, detail::FormatChoice Format, detail::AnyQuantiser Q>
auto quantise(const L& layer, const Format& format, const Q& quantiser, const Calibration& calibration,
              const QuantisationOptions& options = {}) {
  return transform_experts(
      layer, [&](const auto& experts) { return quantise(experts, format, quantiser, calibration, options); });
}

}  // namespace moe::inline MOE_ABI
