// SPDX-License-Identifier: MIT
#include "measure.hpp"

#include "clock.hpp"

namespace bench {

namespace {

/// One contestant in one repetition: means per call.
struct Sample {
  double seconds = 0, prepare_seconds = 0, limit_seconds = 0;
  Limits limits;
};

double least_seconds(const Work& work, const Limits& limits) {
  return std::max(work.flop / limits.flop, work.bytes / limits.bytes);
}

/// Takes samples: limits, then warming up or not, then the calls.
class Runner {
 public:
  Runner(const std::vector<Work>& work, const LimitMeter& meter) : work_(work), meter_(meter) {}

  Sample sample(const Contestant& contestant, Index repetition) const {
    Sample sample;
    sample.limits = meter_.measure();
    double calls = 0;
    const auto call = [&](Index set) {
      if (contestant.prepare) sample.prepare_seconds += seconds_of([&] { contestant.prepare(set); });
      sample.seconds += seconds_of([&] { contestant.run(set); });
      sample.limit_seconds += least_seconds(work_[static_cast<std::size_t>(set)], sample.limits);
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
    sample.seconds /= calls;
    sample.prepare_seconds /= calls;
    sample.limit_seconds /= calls;
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

/// `first` are those of the contestant that the others are compared with.
Timing summary(const std::string& name, const Samples& own, const Samples& first) {
  const auto of = [&](const auto& value) { return median_over(own.size(), value); };
  return {.name = name,
          .seconds = of([&](std::size_t r) { return own[r].seconds; }),
          .prepare_seconds = of([&](std::size_t r) { return own[r].prepare_seconds; }),
          .ratio = of([&](std::size_t r) { return own[r].seconds / first[r].seconds; }),
          .percent_of_limit = of([&](std::size_t r) { return 100 * own[r].limit_seconds / own[r].seconds; })};
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
  const Samples& first = samples.front();
  result.limits.flop = median_over(first.size(), [&](std::size_t r) { return first[r].limits.flop; });
  result.limits.bytes = median_over(first.size(), [&](std::size_t r) { return first[r].limits.bytes; });
  for (const Work& one : work) {
    result.work.flop += one.flop / static_cast<double>(work.size());
    result.work.bytes += one.bytes / static_cast<double>(work.size());
  }
  for (std::size_t c = 0; c < count; ++c) result.timings.push_back(summary(contestants[c].name, samples[c], first));
  return result;
}

}  // namespace bench
