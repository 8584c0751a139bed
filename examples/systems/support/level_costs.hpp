// SPDX-License-Identifier: MIT
// Milliseconds of what a disk and a pipeline of levels do, measured alone.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <numeric>
#include <vector>

#include <moe/serve/load_schedule.hpp>
#include <moe/serve/nested_expert_file.hpp>

#include "page.hpp"

namespace systems {

template <class F>
double milliseconds(const F& run) {
  const auto since = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - since).count();
}
inline double median(std::vector<double> of) {
  std::ranges::sort(of);
  return of[of.size() / 2];
}

inline double mean(const std::vector<double>& of) {
  return std::accumulate(of.begin(), of.end(), 0.0) / static_cast<double>(of.size());
}

/// Samples of run(page, seed) for the seeds of a page, one after the other: both cores are there for what is measured.
template <class Run>
std::vector<Sample> seed_by_seed(const Page& page, const Run& run) {
  std::vector<Sample> samples;
  for (std::uint64_t i = 0; i < page.amount<std::uint64_t>(5, 1); ++i) {
    const std::vector<double> of = run(page, page.first_seed() + i);
    samples.resize(of.size());
    for (std::size_t n = 0; n < of.size(); ++n) samples[n].values.push_back(of[n]);
  }
  return samples;
}

enum class Written { Already, Now };

/// The system forgets what it has read of a file, and writes first what it has not written of it.
inline void drop(const std::filesystem::path& path, Written written = Written::Now) {
  const int file = open(path.c_str(), O_RDONLY);
  if (file < 0 || (written == Written::Now && fdatasync(file) != 0) ||
      posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) != 0)
    moe::fail_environment("cannot make the system forget ", path.string());
  close(file);
}

/// What each level takes alone, medians over the experts: reading it, and what putting it together and a few or many
/// rows say of what does and does not depend on how many. Rows find the planes as cold as those of a pipeline do.
template <class E>
moe::LevelCosts costs_of(const std::filesystem::path& path, const moe::NestedExpertFile<E>& file) {
  constexpr moe::Index kFew = 4, kMany = 48;
  const auto levels = static_cast<std::size_t>(file.levels());
  std::vector<std::vector<double>> load(levels), few(levels), many(levels);
  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(kMany, file.prototype().input_dim());
  moe::Matrix<float> out(kMany, file.prototype().output_dim());
  moe::Scratch scratch;
  const moe::Step step;
  drop(path);
  for (moe::Index e = 0; e < file.size(); ++e) {
    E expert = file.prototype();
    for (std::size_t l = 0; l < levels; ++l) {
      const auto level = static_cast<moe::Index>(l), rows = e % 2 == 0 ? kFew : kMany;
      typename moe::NestedExpertFile<E>::Level read;
      load[l].push_back(milliseconds([&] { read = file.read(e, level); }));
      (e % 2 == 0 ? few : many)[l].push_back(milliseconds([&] {
        file.add(expert, e, level, read);
        expert.forward(tokens.topRows(rows), out.topRows(rows), {step, scratch});
      }));
    }
  }
  moe::LevelCosts costs;
  for (std::size_t l = 0; l < levels; ++l) {
    costs.load.push_back(median(load[l]));
    // A busy machine may have the line through both fall, or begin below 0.
    costs.compute_row.push_back(std::max(0.0, (median(many[l]) - median(few[l])) / static_cast<double>(kMany - kFew)));
    costs.compute.push_back(std::max(0.0, median(few[l]) - static_cast<double>(kFew) * costs.compute_row.back()));
  }
  return costs;
}

}  // namespace systems
