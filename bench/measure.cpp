// SPDX-License-Identifier: MIT
#include "measure.hpp"

#include "clock.hpp"

namespace bench {

namespace {

/// One contestant in one repetition: means per call.
struct Sample {
  double seconds = 0, prepare_seconds = 0;
  double limit_seconds = 0, flop_seconds = 0, byte_seconds = 0;  // at least: of both together, of either
  Limits limits;
};

/// Takes samples: limits, then warming up or not, then the calls.
class Runner {
 public:
  Runner(const std::vector<Work>& work, const LimitMeter& meter) : work_(work), meter_(meter) {}

  const std::vector<Work>& work_of(const Contestant& contestant) const {
    return contestant.work.empty() ? work_ : contestant.work;
  }

  Sample sample(const Contestant& contestant, Index repetition) const {
    Sample sample;
    sample.limits = (contestant.meter ? *contestant.meter : meter_).measure();
    double calls = 0;
    const auto call = [&](Index set) {
      if (contestant.prepare) sample.prepare_seconds += seconds_of([&] { contestant.prepare(set); });
      sample.seconds += seconds_of([&] { contestant.run(set); });
      const Work& work = work_of(contestant)[static_cast<std::size_t>(set)];
      const double flop_seconds = work.flop / sample.limits.flop, byte_seconds = work.bytes / sample.limits.bytes;
      sample.flop_seconds += flop_seconds;
      sample.byte_seconds += byte_seconds;
      sample.limit_seconds += std::max(flop_seconds, byte_seconds);
      ++calls;
    };
    if (meter_.is_warm()) {
      for (Index set = 0; set < sets(); ++set) call(set);
      sample = {.limits = sample.limits};
      calls = 0;
      do
        for (Index set = 0; set < sets(); ++set) call(set);
      while (sample.seconds < 2e-3);
    } else {
      call(repetition % sets());
    }
    for (double* const seconds :
         {&sample.seconds, &sample.prepare_seconds, &sample.limit_seconds, &sample.flop_seconds, &sample.byte_seconds})
      *seconds /= calls;
    return sample;
  }

 private:
  Index sets() const { return static_cast<Index>(work_.size()); }

  const std::vector<Work>& work_;
  const LimitMeter& meter_;
};

/// Median of value(repetition).
template <class Value>
double median_over(std::size_t repetitions, const Value& value) {
  std::vector<double> values;
  for (std::size_t repetition = 0; repetition < repetitions; ++repetition) values.push_back(value(repetition));
  return median(values);
}

using Samples = std::vector<Sample>;  // of one contestant, by repetition

Work mean_of(const std::vector<Work>& work) {
  Work mean;
  for (const Work& one : work) {
    mean.flop += one.flop / static_cast<double>(work.size());
    mean.bytes += one.bytes / static_cast<double>(work.size());
  }
  return mean;
}

/// `first` are those of the contestant that the others are compared with.
Timing summary(const std::string& name, const std::vector<Work>& work, const Samples& own, const Samples& first) {
  const auto of = [&](const auto& value) { return median_over(own.size(), value); };
  return {.name = name,
          .seconds = of([&](std::size_t r) { return own[r].seconds; }),
          .prepare_seconds = of([&](std::size_t r) { return own[r].prepare_seconds; }),
          .ratio = of([&](std::size_t r) { return own[r].seconds / first[r].seconds; }),
          .percent_of_limit = of([&](std::size_t r) { return 100 * own[r].limit_seconds / own[r].seconds; }),
          .percent_of_peak = of([&](std::size_t r) { return 100 * own[r].flop_seconds / own[r].seconds; }),
          .percent_of_bandwidth = of([&](std::size_t r) { return 100 * own[r].byte_seconds / own[r].seconds; }),
          .limits = {.flop = of([&](std::size_t r) { return own[r].limits.flop; }),
                     .bytes = of([&](std::size_t r) { return own[r].limits.bytes; })},
          .work = mean_of(work)};
}

}  // namespace

Measurement interleave(const std::vector<Contestant>& contestants, const std::vector<Work>& work,
                       const LimitMeter& meter, const Effort& effort) {
  const Runner runner(work, meter);
  const std::size_t count = contestants.size();
  std::vector<Samples> samples(count);
  const double begin = seconds_now();
  int repetitions = 0;
  for (; repetitions < effort.least || (repetitions < effort.most && seconds_now() - begin < effort.seconds);
       ++repetitions) {
    // Everybody is first, second, ... in turn.
    for (std::size_t place = 0; place < count; ++place) {
      const std::size_t c = (place + static_cast<std::size_t>(repetitions)) % count;
      samples[c].push_back(runner.sample(contestants[c], repetitions));
    }
  }

  Measurement result{.repetitions = repetitions, .is_warm = meter.is_warm()};
  for (std::size_t c = 0; c < count; ++c)
    result.timings.push_back(summary(contestants[c].name, runner.work_of(contestants[c]), samples[c], samples.front()));
  result.limits = result.timings.front().limits;
  result.work = result.timings.front().work;
  return result;
}

}  // namespace bench
