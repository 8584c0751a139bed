// SPDX-License-Identifier: MIT
// What loads of experts from the disk take.
#pragma once

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include <moe/serve/expert_file.hpp>
#include <moe/serve/simulate_cache.hpp>

#include "level_costs.hpp"

namespace systems {

/// Loads from the disk, whatever the system has read of the file, and ahead of what was asked for.
template <class E>
class ColdLoads {
 public:
  ColdLoads(std::filesystem::path path, E prototype) : path_(std::move(path)), file_(path_, std::move(prototype)) {
    drop(path_);
  }
  const moe::ExpertFile<E>& file() const { return file_; }
  E load(moe::Index e) const {
    drop(path_, Written::Already);
    return file_.load(e);
  }
  void measure(moe::Index e) {
    took_[file_.bytes()[static_cast<std::size_t>(e)]].push_back(1e-3 * milliseconds([&] { load(e); }));
  }
  /// The line through the mean seconds of the smallest and of the largest experts that were measured.
  moe::LoadCost cost() const {
    const auto& [small, small_took] = *took_.begin();
    const auto& [large, large_took] = *took_.rbegin();
    const double at_small = mean(small_took), at_large = mean(large_took);
    if (at_large <= at_small) return {.per_load = at_small};  // experts of one size, or a busy machine
    const double per_byte =
        std::min(at_large / static_cast<double>(large), (at_large - at_small) / static_cast<double>(large - small));
    return {.per_load = at_large - per_byte * static_cast<double>(large), .per_byte = per_byte};
  }

 private:
  std::filesystem::path path_;
  moe::ExpertFile<E> file_;
  std::map<std::size_t, std::vector<double>> took_;
};

}  // namespace systems
