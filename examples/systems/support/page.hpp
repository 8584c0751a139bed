// SPDX-License-Identifier: MIT
// What the pages of examples/systems have in common: options, seeds, tables, and the claim that each of them ends with.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <moe/core/parallel.hpp>

namespace systems {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// A number of a page, once per seed.
struct Sample {
  std::vector<double> values;

  double mean() const;
  /// With n - 1; 0 for one value.
  double deviation() const;

  /// Seed by seed.
  friend Sample operator-(const Sample& a, const Sample& b);
  friend Sample operator/(const Sample& a, const Sample& b);
};

/// What a claim says of the mean of a sample.
struct Band {
  double low = -kInfinity, high = kInfinity;
};

/// Whom a page is about.
struct System {
  std::string name;    ///< of the page
  std::string paper;   ///< arXiv number
  std::string header;  ///< of the library
};

/// A run of a page: its options, and what it prints.
class Page {
 public:
  struct Options {
    std::uint64_t seed = 0;  ///< added to every seed
    bool quick = false;      ///< one seed and little training: shows that it works, not how well
    std::filesystem::path cache;
  };

  Page(System system, Options options) : system_(std::move(system)), options_(std::move(options)) {}

  bool quick() const { return options_.quick; }
  /// Where trained models are kept.
  const std::filesystem::path& cache() const { return options_.cache; }
  /// Of the five seeds, the first; with quick() there is no other.
  std::uint64_t first_seed() const { return options_.seed + 1; }
  /// `full`, or `little` with quick().
  template <class T>
  T amount(T full, T little) const {
    return quick() ? little : full;
  }

  /// Calls run(seed), which returns some numbers as std::vector<double>, for every seed, on all cores; gives a sample
  /// of each number. A run is a function of its seed alone, so this changes nothing.
  template <class Run>
  std::vector<Sample> over_seeds(const Run& run) const {
    std::vector<std::vector<double>> runs(quick() ? 1 : 5);
    moe::parallel_for(std::ssize(runs), [&](moe::Index i, moe::Index) {
      runs[static_cast<std::size_t>(i)] = run(first_seed() + static_cast<std::uint64_t>(i));
    });
    return transposed(runs);
  }

  /// Titles of the columns, the first of which holds names.
  void table(const std::vector<std::string>& titles);
  /// "mean (s.d.)" per column.
  void row(const std::string& name, const std::vector<Sample>& columns) const;

  /// A condition beside the claim, which fails with it.
  void expect(const std::string& what, const Sample& sample, Band band);
  /// The number that the page stands for, once, at its end.
  void claim(const std::string& what, const Sample& sample, Band band);

  /// 0 if there was a claim that holds, as all else that was expected; with quick(), if all numbers are finite.
  int status() const { return claimed_ && !failed_ ? 0 : 1; }

 private:
  static std::vector<Sample> transposed(const std::vector<std::vector<double>>& runs);
  /// "0.123 in [0.1, 0.2] ok", or FAIL, or quick.
  std::string judge(const Sample& sample, Band band, bool holds) const;
  /// Whether the numbers are finite and, but for quick(), their mean in the band.
  bool holds(const Sample& sample, Band band) const;

  System system_;
  Options options_;
  std::vector<std::size_t> widths_;
  bool claimed_ = false, failed_ = false;
};

/// The main() of a page: reads --seed N, --quick and --cache DIR, runs `body` and returns the exit status, 2 for an
/// exception.
int run_page(int argc, char** argv, const System& system, const std::function<void(Page&)>& body);

}  // namespace systems
