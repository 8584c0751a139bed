// SPDX-License-Identifier: MIT
#include "page.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <numeric>
#include <sstream>
#include <utility>

#include <CLI/CLI.hpp>

#include <moe/core/error.hpp>

namespace systems {

namespace {

std::string text_of(double value) {
  std::ostringstream text;
  text.precision(4);
  text << value;
  return text.str();
}

std::string text_of(const Sample& sample) {
  std::ostringstream text;
  text.precision(4);
  text << sample.mean();
  text.precision(2);
  if (sample.values.size() > 1) text << " (" << sample.deviation() << ')';
  return text.str();
}

template <class F>
Sample combined(const Sample& a, const Sample& b, const F& f) {
  Sample out;
  std::ranges::transform(a.values, b.values, std::back_inserter(out.values), f);
  return out;
}

}  // namespace

double Sample::mean() const {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double Sample::deviation() const {
  if (values.size() < 2) return 0;
  double sum = 0;
  for (const double value : values) sum += (value - mean()) * (value - mean());
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

Sample operator-(const Sample& a, const Sample& b) {
  return combined(a, b, [](double x, double y) { return x - y; });
}
Sample operator/(const Sample& a, const Sample& b) {
  return combined(a, b, [](double x, double y) { return x / y; });
}

std::vector<Sample> Page::transposed(const std::vector<std::vector<double>>& runs) {
  std::vector<Sample> samples(runs.front().size());
  for (const std::vector<double>& run : runs) {
    if (run.size() != samples.size())
      moe::fail("systems::Page: a run gave ", run.size(), " numbers, expected ", samples.size(), " as the first one");
    for (std::size_t i = 0; i < run.size(); ++i) samples[i].values.push_back(run[i]);
  }
  return samples;
}

void Page::table(const std::vector<std::string>& titles) {
  widths_.clear();
  for (const std::string& title : titles) {
    const bool is_name = widths_.empty();
    widths_.push_back(std::max<std::size_t>(title.size(), is_name ? 30 : 16));
    std::printf(is_name ? "%-*s" : "  %*s", static_cast<int>(widths_.back()), title.c_str());
  }
  std::printf("\n");
}

void Page::row(const std::string& name, const std::vector<Sample>& columns) const {
  std::printf("%-*s", static_cast<int>(widths_.at(0)), name.c_str());
  for (std::size_t i = 0; i < columns.size(); ++i)
    std::printf("  %*s", static_cast<int>(widths_.at(i + 1)), text_of(columns[i]).c_str());
  std::printf("\n");
  std::fflush(stdout);
}

bool Page::holds(const Sample& sample, Band band) const {
  const double mean = sample.mean();
  return std::ranges::all_of(sample.values, [](double value) { return std::isfinite(value); }) &&
         (quick() || (mean >= band.low && mean <= band.high));
}

std::string Page::judge(const Sample& sample, Band band, bool holds) const {
  return text_of(sample.mean()) + " in [" + text_of(band.low) + ", " + text_of(band.high) + "] " +
         (!holds    ? "FAIL"
          : quick() ? "quick"
                    : "ok");
}

void Page::expect(const std::string& what, const Sample& sample, Band band) {
  const bool good = holds(sample, band);
  failed_ = failed_ || !good;
  std::printf("%s: %s\n", what.c_str(), judge(sample, band, good).c_str());
}

void Page::claim(const std::string& what, const Sample& sample, Band band) {
  if (claimed_) moe::fail("systems::Page::claim: ", system_.name, " has made a claim already, expected one");
  claimed_ = true;
  failed_ = failed_ || !holds(sample, band);
  std::printf("claim %s: %s | %s | %s | %s | %s\n", system_.name.c_str(), judge(sample, band, !failed_).c_str(),
              text_of(sample.deviation()).c_str(), system_.paper.c_str(), system_.header.c_str(), what.c_str());
}

int run_page(int argc, char** argv, const System& system, const std::function<void(Page&)>& body) try {
  CLI::App app(system.name + ": arXiv:" + system.paper + ", " + system.header);
  Page::Options options;
  std::string cache = "cache";
  app.add_option("--seed", options.seed, "added to every seed")->capture_default_str();
  app.add_flag("--quick", options.quick, "one seed, little training: shows that it works, not how well");
  app.add_option("--cache", cache, "directory for trained models")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  options.cache = cache;
  Page page(system, options);
  body(page);
  return page.status();
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s: %s\n", system.name.c_str(), error.what());
  return 2;
}

}  // namespace systems
