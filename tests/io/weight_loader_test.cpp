// SPDX-License-Identifier: MIT
#include <utility>
#include <vector>

#include "io/stored_weight.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::PanelMatrix;
using moe::PanelOrder;
using moe::WeightLayout;
using test::Stored;

TEST_CASE("WeightLoader: many matrices at once, on any number of threads, get the same bits", "[io]") {
  const Index experts = 5, ff = 40, d = 70;
  const Stored w({experts, 2 * ff, d});
  const auto load = [&] {
    std::vector<PanelMatrix<moe::F32>> panels(experts, {2 * ff, d, PanelOrder::Paired});
    moe::WeightLoader loader;
    for (Index e = 0; e < experts; ++e)
      loader.add(moe::weight_slice(w.source(), WeightLayout::OutIn, e), panels[static_cast<std::size_t>(e)]);
    loader.run();
    return panels;
  };
  const auto serial = load();
  test::ThreadExecutor executor(3);
  const moe::UseExecutor use(executor);
  const auto parallel = load();
  for (std::size_t e = 0; e < serial.size(); ++e) REQUIRE(serial[e].matrix() == parallel[e].matrix());
  REQUIRE(serial[4](2 * ff - 1, d - 1) == w.values.back());
}

TEST_CASE("WeightLoader: reports the bytes that it has read, if there are enough", "[io]") {
  const Stored w({64, 32});
  PanelMatrix<moe::F32> panels(64, 32);
  std::vector<std::pair<std::uint64_t, std::uint64_t>> reports;
  const auto report = [&](std::uint64_t done, std::uint64_t total) { reports.emplace_back(done, total); };
  for (const std::uint64_t least : {std::uint64_t{4096}, std::uint64_t{4097}}) {
    moe::WeightLoader loader;
    loader.add(moe::weight_slice(w.source(), WeightLayout::OutIn), panels);
    loader.run({.report = report, .least_bytes = least});
    REQUIRE(reports == std::vector<std::pair<std::uint64_t, std::uint64_t>>{{4096, 4096}});
  }
}

TEST_CASE("WeightLoader: reports grow to the end, one at a time, on any number of threads", "[io]") {
  const Index experts = 16, outputs = 64, inputs = 100;
  const Stored w({experts, outputs, inputs});
  std::vector<PanelMatrix<moe::F32>> panels(experts, {outputs, inputs});
  const std::uint64_t total = 2 * experts * outputs * inputs, every = total / 10;
  for (const Index workers : {1, 3}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    std::vector<std::uint64_t> reports;
    moe::WeightLoader loader;
    for (Index e = 0; e < experts; ++e)
      loader.add(moe::weight_slice(w.source(), WeightLayout::OutIn, e), panels[static_cast<std::size_t>(e)]);
    loader.run({.report =
                    [&](std::uint64_t done, std::uint64_t all) {
                      REQUIRE(all == total);
                      REQUIRE(done > (reports.empty() ? 0 : reports.back()));
                      reports.push_back(done);
                    },
                .least_bytes = 0,
                .every_bytes = every});
    REQUIRE(reports.size() == 10);
    REQUIRE(reports.back() == total);
  }
  REQUIRE(moe::LoadProgress{}.least_bytes <= std::uint64_t{1} << 30);
}

TEST_CASE("WeightLoader: a slice made by hand that leaves the weight is an error", "[io][error]") {
  const Stored w({64, 64});
  PanelMatrix<moe::F32> panels(64, 64);
  const moe::WeightSlice good = moe::weight_slice(w.source(), WeightLayout::OutIn);
  const auto broken = [&](Index first, Index output_stride, Index input_stride) {
    moe::WeightSlice slice = good;
    slice.first = first, slice.output_stride = output_stride, slice.input_stride = input_stride;
    return slice;
  };
  const Index huge = std::numeric_limits<Index>::max();
  for (const auto& slice : {broken(1, 64, 1), broken(-1, 64, 1), broken(0, 65, 1), broken(0, 64, 2), broken(0, -1, 1),
                            broken(4000, 1, -1), broken(0, huge, 1), broken(huge, huge, huge)})
    REQUIRE_THROWS_AS(moe::load_weight(slice, panels), std::invalid_argument);
}

TEST_CASE("WeightLoader: slices of a matrix, in any order and number, fill it; those that do not are refused", "[io]") {
  const Index rows = 50, inputs = 70;
  const Stored w({rows, inputs});
  const moe::WeightSlice all = moe::weight_slice(w.source(), WeightLayout::OutIn);
  for (const PanelOrder order : {PanelOrder::Plain, PanelOrder::Paired}) {
    PanelMatrix<moe::F32> panels(rows, inputs, order), other(rows, inputs, order);
    const auto part = [&](Index begin, Index end) { return all.output_range(begin, end - begin).into(panels, begin); };
    moe::WeightLoader loader;
    loader.add({part(30, 50), part(0, 7), part(7, 7), part(7, 30)});
    loader.run();
    for (Index o = 0; o < rows; ++o)
      for (Index i = 0; i < inputs; ++i)
        if (panels(o, i) != w.at(o * inputs + i)) FAIL("(" << o << ", " << i << "): " << panels(o, i));
    const auto misses = Catch::Matchers::ContainsSubstring("'w' with shape [50, 70] gives a matrix [");
    CHECK_THROWS_WITH(loader.add({part(0, 7), part(8, 50)}), misses);   // one is missing
    CHECK_THROWS_WITH(loader.add({part(0, 9), part(8, 50)}), misses);   // one is there twice
    CHECK_THROWS_WITH(loader.add({part(0, 7), part(7, 49)}), misses);   // the last is missing
    CHECK_THROWS_AS(loader.add({part(1, 50)}), std::invalid_argument);  // the first is missing
    CHECK_THROWS_AS(loader.add({all}), std::invalid_argument);          // no matrix
    CHECK_THROWS_AS(loader.add(std::vector<moe::WeightSlice>{}), std::invalid_argument);
    CHECK_THROWS_AS(loader.add({part(0, 7), all.output_range(7, 43).into(other, 7)}), std::invalid_argument);
  }
}
