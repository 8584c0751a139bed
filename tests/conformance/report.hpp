// SPDX-License-Identifier: MIT
// The lines that check_block prints: what was compared, how far it is off, how far it may be.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

namespace check {

struct Line {
  std::string name;
  double error = 0;      // largest |ours - reference|, relative to the largest |reference|; or a count of mismatches
  double tolerance = 0;  // of that error
  bool passed() const { return error <= tolerance; }  // false for NaN
};

class Report {
 public:
  void add(const std::string& name, double error, double tolerance) { lines_.push_back({name, error, tolerance}); }

  /// Things that must be equal.
  void add_count(const std::string& name, long mismatches) { add(name, static_cast<double>(mismatches), 0); }

  /// Numbers: `tolerance` is relative to the largest reference, or absolute where that is given as `scale`.
  template <class S, class R>
  void add_values(const std::string& name, std::span<const S> ours, std::span<const R> reference, double tolerance,
                  double scale = 0) {
    if (ours.size() != reference.size()) return add(name + " (size)", INFINITY, tolerance);
    double error = 0, largest = 0;
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const double difference = std::abs(static_cast<double>(ours[i]) - static_cast<double>(reference[i]));
      if (!(difference <= error)) error = std::isnan(difference) ? INFINITY : difference;
      largest = std::max(largest, std::abs(static_cast<double>(reference[i])));
    }
    const double unit = largest > 0 ? largest : 1;
    add(name, error / unit, scale > 0 ? tolerance * scale / unit : tolerance);
  }

  void note(const std::string& text) { notes_.push_back(text); }

  bool empty() const { return lines_.empty(); }
  bool passed() const {
    return !lines_.empty() && std::all_of(lines_.begin(), lines_.end(), [](const Line& line) { return line.passed(); });
  }

  /// The line that comes closest to its tolerance, or exceeds it most.
  const Line& worst() const {
    const auto share = [](const Line& line) {
      if (!line.passed()) return line.tolerance > 0 ? line.error / line.tolerance : INFINITY;
      return line.tolerance > 0 ? line.error / line.tolerance : 0;
    };
    return *std::max_element(lines_.begin(), lines_.end(),
                             [&](const Line& a, const Line& b) { return share(a) < share(b); });
  }

  void print() const {
    for (const Line& line : lines_)
      std::printf("%-6s %-58s error %.2e  tolerance %.1e\n", line.passed() ? "ok" : "FAILED", line.name.c_str(),
                  line.error, line.tolerance);
    for (const std::string& note : notes_) std::printf("note   %s\n", note.c_str());
  }

  nlohmann::json json() const {
    nlohmann::json lines = nlohmann::json::array();
    for (const Line& line : lines_)
      lines.push_back({{"name", line.name},
                       {"error", std::isfinite(line.error) ? nlohmann::json(line.error) : nlohmann::json("inf")},
                       {"tolerance", line.tolerance},
                       {"passed", line.passed()}});
    return {{"passed", passed()}, {"worst", worst().name}, {"lines", lines}, {"notes", notes_}};
  }

 private:
  std::vector<Line> lines_;
  std::vector<std::string> notes_;
};

}  // namespace check
