// SPDX-License-Identifier: MIT
// Beside the times of Google Benchmark: how many times as fast as the reference.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

namespace bench {

/// Tables of counters as they come, and at the end the ratios. A benchmark belongs to the one whose name has
/// "reference" where it has its own name, or where it has nothing: a/mine/8 and a/8 to a/reference/8.
class RatioReporter : public benchmark::ConsoleReporter {
 public:
  RatioReporter() : ConsoleReporter(OO_Tabular) {}

  void ReportRuns(const std::vector<Run>& runs) override {
    ConsoleReporter::ReportRuns(runs);
    for (const Run& run : runs) {
      const double time = run.GetAdjustedRealTime();  // 0 after an error
      if (run.run_type != Run::RT_Iteration || !(time > 0)) continue;
      const auto [place, is_new] = times_.try_emplace(run.run_name.str(), time);
      if (is_new)
        names_.push_back(place->first);
      else
        place->second = std::min(place->second, time);
    }
  }

  void Finalize() override {
    const char* heading = "\nTimes as fast as the reference:\n";
    for (const std::string& name : names_) {
      const double reference = reference_of(name);
      if (!(reference > 0)) continue;
      std::printf("%s%8.2f  %s\n", heading, reference / times_.at(name), name.c_str());
      heading = "";
    }
  }

 private:
  /// Its time, 0 if there is none.
  double reference_of(const std::string& name) const {
    if (name.find("/reference/") != std::string::npos) return 0;
    for (std::size_t begin = name.find('/'); begin != std::string::npos; begin = name.find('/', begin + 1)) {
      const std::size_t end = name.find('/', begin + 1);
      const std::string rest = end == std::string::npos ? "" : name.substr(end);
      for (const std::string& other :
           {name.substr(0, begin) + "/reference" + rest, name.substr(0, begin) + "/reference" + name.substr(begin)})
        if (const auto found = times_.find(other); found != times_.end()) return found->second;
    }
    return 0;
  }

  std::map<std::string, double> times_ = {};
  std::vector<std::string> names_ = {};  // in order
};

}  // namespace bench
