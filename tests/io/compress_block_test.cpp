// SPDX-License-Identifier: MIT
// Blocks of published families with fewer experts, and calibrations in files.
#include "moe/io/block/compress_block.hpp"

#include "io/family_blocks.hpp"
#include "io/model_directory.hpp"
#include "layer/structure_fixtures.hpp"
#include "moe/compress/block_importance.hpp"
#include "moe/compress/cluster_experts.hpp"
#include "moe/compress/reconstruction_error.hpp"
#include "moe/io/block/compress_checkpoint.hpp"
#include "moe/io/file/parameters.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"

using moe::Gather;
using moe::Index;
using moe::MoeBlock;
using Ids = std::vector<Index>;

namespace {

moe::CalibrationOptions options_of(Gather moments) {
  return {
      .moments = moments, .use = Gather::On, .contribution = Gather::On, .co_activation = Gather::On, .reservoir = 4};
}

/// A plan for each of the two layers of a model.
std::vector<moe::BlockPlan> plans_of(const test::ModelDirectory& model, const std::vector<moe::ExpertPlan>& plans) {
  std::vector<moe::BlockPlan> result;
  const auto places = moe::moe_blocks(moe::Checkpoint::open(model.path()), model.config().family);
  REQUIRE(places.size() == plans.size());
  for (std::size_t i = 0; i < plans.size(); ++i) result.push_back({places[i], plans[i]});
  return result;
}
moe::ExpertPlan keep(const Ids& ids) { return moe::ExpertPlan::keep(ids, 6); }

std::string expert_name(Index layer, Index expert, const std::string& matrix) {
  return "model.layers." + std::to_string(layer) + ".block_sparse_moe.experts." + std::to_string(expert) + "." +
         matrix + ".weight";
}
std::string router_name(Index layer) {
  return "model.layers." + std::to_string(layer) + ".block_sparse_moe.gate.weight";
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
  // Scores of blocks, too, each beside the other in a file.
  const auto tokens = test::random_matrix<float>(20, 12, 5);
  const moe::BlockImportance importance = moe::block_importance(block, tokens);
  const moe::ReconstructionError error =
      moe::reconstruction_error(block, moe::prune(block, keep({0, 1, 2, 3})).layer, tokens);
  CHECK(importance.score() > 0);
  CHECK(error.relative() > 0);
  moe::save_parameters(directory / "importance", importance);
  moe::save_parameters(directory / "error", error);
  moe::BlockImportance importance_again;
  moe::ReconstructionError error_again(6);
  moe::load_parameters(directory / "importance", importance_again);
  moe::load_parameters(directory / "error", error_again);
  CHECK(test::leaves_of(importance_again) == test::leaves_of(importance));
  CHECK(test::leaves_of(error_again) == test::leaves_of(error));
  CHECK(error_again.relative_of_experts() == error.relative_of_experts());
}

TEST_CASE("compress_checkpoint: a plain reader finds the experts that stay, byte for byte, and all else", "[io]") {
  const test::ModelDirectory model("mixtral", {64, 40});
  const std::vector<Ids> kept = {{1, 3, 4}, {0, 2, 5}};
  const auto written =
      moe::compress_checkpoint(model.path(), model.other("out"), plans_of(model, {keep(kept[0]), keep(kept[1])}));
  const test::PlainDirectory before(model.path()), after(model.other("out"));
  std::set<std::string> seen;
  for (const Index layer : {0, 1}) {
    const Ids& experts = kept[static_cast<std::size_t>(layer)];
    std::string rows;
    for (std::size_t i = 0; i < 3; ++i) {
      const auto from = static_cast<std::size_t>(experts[i]);
      rows += before.tensors.at(router_name(layer)).bytes.substr(from * 128, 128);  // 64 numbers BF16
      for (const char* matrix : {"w1", "w2", "w3"}) {
        const std::string name = expert_name(layer, static_cast<Index>(i), matrix);
        const test::PlainTensor &now = after.tensors.at(name),
                                &then = before.tensors.at(expert_name(layer, experts[i], matrix));
        CHECK((now.dtype == then.dtype && now.shape == then.shape && now.bytes == then.bytes));
        seen.insert(name);
      }
    }
    CHECK(after.tensors.at(router_name(layer)).bytes == rows);
    CHECK(after.tensors.at(router_name(layer)).shape == std::vector<std::size_t>{3, 64});
    seen.insert(router_name(layer));
    const moe::CompressedBlock& block = written.blocks[static_cast<std::size_t>(layer)];
    CHECK((block.place.layer == layer && block.experts_before == 6 && block.experts_after == 3));
    CHECK(block.bytes_before == 6 * 2 * (3 * 64 * 40 + 64));
    CHECK(block.bytes_after == 3 * 2 * (3 * 64 * 40 + 64));
  }
  for (const auto& [name, tensor] : before.tensors) {
    if (name.find("block_sparse_moe") != name.npos) continue;
    CHECK(after.tensors.at(name).bytes == tensor.bytes);
    seen.insert(name);
  }
  CHECK(after.tensors.size() == seen.size());
  nlohmann::json config = before.config;
  config["num_local_experts"] = 3;
  CHECK(after.config == config);
  CHECK(after.files.at("tokenizer.json") == before.files.at("tokenizer.json"));
}

TEST_CASE("compress_checkpoint: a plain reader finds what experts are merged to", "[io]") {
  const test::ModelDirectory model("mixtral", {64, 40});
  const auto pairs = moe::ExpertPlan::of_clusters(Ids{0, 1, 0, 3, 1, 5}), none = keep({0, 1, 3, 5});
  const std::vector<double> weights = {3, 1, 1, 1, 3, 1};
  std::vector<Index> layers;
  const moe::CompressOptions options{
      .apply = [&](const MoeBlock& block, const moe::ExpertPlan& plan, const moe::BlockPlace& place) {
        layers.push_back(place.layer);
        return moe::merge(block, plan, {.weights = weights}).layer;
      }};
  (void)moe::compress_checkpoint(model.path(), model.other("out"), plans_of(model, {pairs, none}), options);
  CHECK(layers == Ids{0, 1});
  const test::PlainDirectory before(model.path()), after(model.other("out"));
  int differ = 0;
  const auto check = [&](const std::string& now, std::size_t i, double expected) {
    const double value = after.number(now, i);
    // A mean in double, rounded to float and then to 8 bits.
    if (std::abs(value - expected) > std::abs(expected) * (0x1p-8 + 0x1p-23)) ++differ;
  };
  for (const char* matrix : {"w1", "w2", "w3"})
    for (std::size_t i = 0; i < 64 * 40; ++i) {
      const auto was = [&](Index e) { return before.number(expert_name(0, e, matrix), i); };
      check(expert_name(0, 0, matrix), i, (3 * was(0) + was(2)) / 4);
      check(expert_name(0, 1, matrix), i, (was(1) + 3 * was(4)) / 4);
      check(expert_name(0, 2, matrix), i, was(3));
      check(expert_name(1, 2, matrix), i, before.number(expert_name(1, 3, matrix), i));
    }
  for (std::size_t i = 0; i < 64; ++i) {
    const auto row = [&](std::size_t e) { return before.number(router_name(0), 64 * e + i); };
    check(router_name(0), i, (3 * row(0) + row(2)) / 4);
    check(router_name(0), 64 + i, (row(1) + 3 * row(4)) / 4);
    check(router_name(0), 128 + i, row(3));
  }
  CHECK(differ == 0);
  CHECK(after.config.at("num_local_experts") == 4);
}

TEST_CASE("compress_checkpoint: what cannot be said or done is refused, and nothing is written", "[io][error]") {
  const test::ModelDirectory model("mixtral");
  const auto complaint = [&](const std::vector<moe::BlockPlan>& plans, const moe::CompressOptions& options = {}) {
    const std::string message = test::message_of<std::invalid_argument>(
        [&] { (void)moe::compress_checkpoint(model.path(), model.other("out"), plans, options); });
    CHECK_FALSE(std::filesystem::exists(model.other("out")));
    return message;
  };
  const auto plans = plans_of(model, {keep({0, 1, 2}), keep({3, 4})});
  CHECK(test::contains(complaint(plans), "cannot say it: layer"));
  CHECK(test::contains(complaint(plans), "Most families have one number for all layers"));
  CHECK(test::contains(complaint({plans[0]}), "Most families have one number for all layers"));
  CHECK(test::contains(complaint({plans[0], plans[0]}), "two blocks at"));
  CHECK(test::contains(complaint({}), "0 plans, expected at least one"));
  CHECK(test::contains(complaint({{plans[0].place, moe::ExpertPlan::keep({0, 1}, 4)}}),
                       "the plan of layer 0 is of 4 experts, expected 6"));
  CHECK(test::contains(complaint(plans_of(model, {keep({0}), keep({0})})), "expected at least k = 2"));
  moe::CompressOptions options;
  options.apply = [](const MoeBlock& block, const moe::ExpertPlan&, const moe::BlockPlace&) { return block; };
  CHECK(
      test::contains(complaint(plans_of(model, {keep({0, 1}), keep({0, 1})}), options), "num_experts = 6, expected 2"));
  CHECK_THROWS_WITH(moe::moe_blocks(moe::Checkpoint::open(model.path()), "mixtral", Ids{1, 7}),
                    "moe::moe_blocks: layer 7 has no MoE block, expected layers of [0, 1]");
}

TEST_CASE("compress_checkpoint: layers keep different numbers where a family has a list of them", "[io]") {
  test::ModelDirectory model("hunyuan_v1_moe");
  model.json()["num_hidden_layers"] = 3;  // the last one has no block in the file
  model.write();
  (void)moe::compress_checkpoint(model.path(), model.other("out"),
                                 plans_of(model, {keep({0, 1, 2}), keep({1, 2, 3, 4, 5})}));
  const test::PlainDirectory after(model.other("out"));
  CHECK(after.config.at("num_experts") == nlohmann::json({3, 5, 6}));
  for (const Index layer : {0, 1}) {
    const auto config = moe::read_moe_config(model.other("out") / "config.json", layer);
    CHECK(moe::load_moe_block(moe::Checkpoint::open(model.other("out")), config, {.layer = layer}).num_experts() ==
          (layer == 0 ? 3 : 5));
  }
}
