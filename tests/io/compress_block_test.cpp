// SPDX-License-Identifier: MIT
// Blocks of published families with fewer experts, and calibrations in files.
#include "moe/io/block/compress_block.hpp"

#include "io/family_blocks.hpp"
#include "layer/structure_fixtures.hpp"
#include "moe/compress/cluster_experts.hpp"
#include "moe/io/file/parameters.hpp"
#include "support/catch.hpp"

using moe::Gather;
using moe::Index;
using moe::MoeBlock;
using Ids = std::vector<Index>;

namespace {

moe::CalibrationOptions options_of(Gather moments) {
  return {
      .moments = moments, .use = Gather::On, .contribution = Gather::On, .co_activation = Gather::On, .reservoir = 4};
}

}  // namespace

TEST_CASE("MoeBlock: scored, pruned and merged, in every family", "[io]") {
  const auto tokens = test::random_matrix<float>(20, 12, 5);
  for (const auto& [family, text] : test::family_configs()) {
    CAPTURE(family);
    const MoeBlock block = test::random_block(test::config_of(family), 3);
    const bool has_identities = block.config().num_identity_experts != 0;
    const moe::Calibration seen = moe::calibrate_experts(block, tokens, options_of(Gather::Off));
    REQUIRE(seen.num_experts() == block.num_experts());
    CHECK(seen.use().tokens > 0);
    CHECK(moe::keep_best(seen.use().contributions(), 4).num_kept() == 4);
    // Groups stay whole, and of each kind of experts one has to stay.
    const auto plan = moe::ExpertPlan::keep(has_identities ? Ids{0, 1, 2, 3, 6} : Ids{0, 1, 2, 3}, block.num_experts());
    const auto small = moe::prune(block, plan);
    CHECK(small.layer.num_experts() == plan.num_kept());
    CHECK(test::leaves_of(small.layer) == test::leaves_of(moe::take_experts(block, plan.kept)));
    if (has_identities) {
      CHECK_THROWS_AS(moe::merge(block, plan), std::invalid_argument);
      CHECK_THROWS_AS(moe::calibrate_experts(block, tokens, options_of(Gather::On)), std::invalid_argument);
      continue;
    }
    const auto pairs = moe::ExpertPlan::of_clusters(Ids{0, 1, 2, 3, 2, 3});
    const auto merged = moe::merge(block, pairs, {.weights = seen.use().frequencies()});
    CHECK(merged.layer.num_experts() == 4);
    CHECK(merged.layer.config().num_experts == 4);
    // Copies of an expert are merged to it.
    const auto twice = moe::take_experts(small.layer, Ids{0, 0, 1, 1, 2, 2, 3, 3});
    const auto once = moe::merge(twice, moe::ExpertPlan::of_clusters(Ids{0, 0, 1, 1, 2, 2, 3, 3}));
    CHECK(test::leaves_of(once.layer) == test::leaves_of(small.layer));
  }
}

TEST_CASE("Calibration: saved and loaded with the same bits", "[io]") {
  const MoeBlock block = test::random_block(test::config_of("mixtral"), 3);
  const moe::Calibration seen =
      moe::calibrate_experts(block, test::random_matrix<float>(20, 12, 5), options_of(Gather::On));
  const test::TemporaryDirectory directory;
  const auto path = directory / "calibration.safetensors";
  moe::save_parameters(path, seen);
  moe::Calibration loaded =
      moe::calibrate_experts(block, test::random_matrix<float>(0, 12), options_of(Gather::On));  // empty
  CHECK(loaded.use().tokens == 0);
  moe::load_parameters(path, loaded);
  CHECK(test::leaves_of(loaded) == test::leaves_of(seen));
  CHECK(loaded.reservoir().tokens() == seen.reservoir().tokens());
  loaded += seen;
  CHECK(loaded.use().tokens == 2 * seen.use().tokens);
}
