// SPDX-License-Identifier: MIT
// What the experts of published blocks have read, and blocks in few bits that are found from it.
#include "moe/io/block/calibrate_block.hpp"

#include "io/family_blocks.hpp"
#include "io/model_directory.hpp"
#include "moe/io/block/quantise_checkpoint.hpp"
#include "moe/io/file/parameters.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"

namespace {

using moe::Index;
using moe::WeightFormat;
using test::contains;
using test::message_of;

/// Rounds to nearest what is not even, so that one sees that each matrix gets its own moment.
struct ByRows {
  moe::PanelMatrix<moe::Quantised> operator()(const moe::PanelMatrix<moe::F32>& weights, const WeightFormat& format,
                                              const moe::SecondMoment& moment, moe::MatrixReport& report) const {
    report.damping = static_cast<double>(moment.rows());
    auto codes = moe::round_to_nearest(weights, format);
    codes.set_code(0, 0, static_cast<std::uint32_t>(moment.rows() % 16));
    return codes;
  }
};

/// Statistics of all parts, in a row.
std::vector<float> numbers_of(moe::BlockCalibration& calibration) {
  std::vector<float> numbers;
  moe::visit_state(
      [&](const std::string&, auto& leaf) {
        if constexpr (requires { leaf.data(); }) numbers.insert(numbers.end(), leaf.data(), leaf.data() + leaf.size());
      },
      calibration);
  return numbers;
}

}  // namespace

TEST_CASE("calibrate: a block counts what its experts read, and its shared expert reads all", "[io]") {
  for (const char* family : {"mixtral", "qwen2_moe", "deepseek_v3", "nemotron_h", "gpt_oss", "phimoe"}) {
    CAPTURE(family);
    const moe::MoeBlock block = test::random_block(test::config_of(family));
    const auto tokens = test::random_matrix<float>(50, block.model_dim(), 3);
    auto calibration = moe::calibrate(block, tokens);
    Index rows = 0;
    for (Index e = 0; e < calibration.experts.num_experts(); ++e) rows += calibration.experts[e].inputs.rows();
    CHECK(rows == 50 * 2);
    CHECK(calibration.shared.inputs.rows() == (block.config().shared_dim == 0 ? 0 : 50));
    CHECK(calibration.shared.hidden.dim() == block.config().shared_dim);
    moe::BlockCalibration halves = moe::calibrate(block, tokens.topRows(20));
    halves += moe::calibrate(block, tokens.bottomRows(30));
    const std::vector<float> whole = numbers_of(calibration), sum = numbers_of(halves);
    REQUIRE(whole.size() == sum.size());
    REQUIRE(whole.size() > 6 * 12 * 13 / 2);
    for (std::size_t i = 0; i < whole.size(); ++i)  // sums of 20 and 30 products of numbers about 1
      CHECK(std::abs(whole[i] - sum[i]) <= 1e-5f * (1 + std::abs(whole[i])));
    const test::TemporaryDirectory directory;
    moe::save_parameters(directory / "x.safetensors", calibration);
    moe::BlockCalibration loaded(block);
    moe::load_parameters(directory / "x.safetensors", loaded);
    CHECK(numbers_of(loaded) == whole);
    CHECK(loaded.experts[1].inputs.rows() == calibration.experts[1].inputs.rows());
  }
  const moe::MoeBlock identities(test::config_of("longcat_flash"));
  CHECK_THROWS_WITH(moe::BlockCalibration(identities),
                    Catch::Matchers::ContainsSubstring("'longcat_flash' has experts without weights"));
}

TEST_CASE("MoeBlock: similarities and errors in few bits are those of its routed experts", "[io]") {
  const std::vector<WeightFormat> formats = {WeightFormat::int4(8), WeightFormat::int8(8)};
  for (const char* family : {"mixtral", "deepseek_v3"}) {
    const moe::MoeBlock block = test::random_block(test::config_of(family));
    const auto tokens = test::random_matrix<float>(50, block.model_dim(), 3);
    const moe::Calibration seen = moe::calibrate(block, tokens).experts;
    const auto errors = moe::quantisation_errors(block, tokens, formats, ByRows{}, seen);
    CHECK(errors.maxCoeff() > 0);
    CHECK((errors.rows() == 6 && errors.cols() == 2));
    moe::detail::with_pool(block, [&](const auto&, const auto& layer) {
      CHECK(errors == moe::quantisation_errors(layer, tokens, formats, ByRows{}, seen));
      CHECK(moe::output_similarity(block, tokens) == moe::output_similarity(layer.experts(), tokens));
    });
  }
  const moe::MoeBlock identities(test::config_of("longcat_flash"));
  CHECK_THROWS_AS(moe::output_similarity(identities, moe::Matrix<float>::Zero(2, 12)), std::invalid_argument);
}

TEST_CASE("quantise: every matrix of a block gets the moment of what it reads", "[io]") {
  for (const char* family : {"mixtral", "qwen2_moe", "deepseek_v3", "nemotron_h", "gpt_oss"}) {
    CAPTURE(family);
    const moe::MoeBlock block = test::random_block(test::config_of(family));
    const auto calibration = moe::calibrate(block, test::random_matrix<float>(50, block.model_dim(), 3));
    moe::QuantisationReport report;
    const auto few =
        moe::quantise(block, WeightFormat::int4(), ByRows{}, calibration, {.least_rows = 1, .report = &report});
    const auto nearest = moe::quantise(block, WeightFormat::int4());
    Index others = 0, matrices = 0;
    moe::visit_state(
        [&](const std::string&, const auto& a, const auto& b) {
          if constexpr (requires { a.format(); }) {
            ++matrices;
            for (Index o = 0; o < a.outputs(); ++o)
              for (Index i = 0; i < a.inputs(); ++i) others += a.code(o, i) != b.code(o, i);
          }
        },
        few, nearest);
    CHECK(others <= matrices);
    CHECK(others > matrices / 2);
    REQUIRE(std::ssize(report.matrices) == matrices);
    for (const moe::MatrixReport& matrix : report.matrices) {
      const bool is_shared = matrix.expert == moe::kSharedExpert;
      const Index rows = is_shared ? 50 : calibration.experts[matrix.expert].inputs.rows();
      CHECK(matrix.damping == static_cast<double>(matrix.is_fallback ? 0 : rows));
    }
    CHECK((report.matrices.back().expert == moe::kSharedExpert) == (block.config().shared_dim != 0));
  }
}

TEST_CASE("quantise_checkpoint: blocks that are found from tokens are read back bit for bit", "[io]") {
  const test::ModelDirectory model("deepseek_v3", {64, 96});
  const auto writer = moe::weight_writer(WeightFormat::int4());
  std::vector<moe::QuantisedMoeBlock> made;
  moe::QuantiseOptions options;
  options.quantiser = [&](const auto& checkpoint, const auto& config, const auto& load, const moe::WeightWriter& to) {
    const auto block = moe::load_moe_block(checkpoint, config, load);
    const auto calibration = moe::calibrate(block, test::random_matrix<float>(60, 64, 5));
    made.push_back(moe::quantise(block, to.format(), ByRows{}, calibration, {.least_rows = 1}));
    return made.back();
  };
  (void)moe::quantise_checkpoint(model.path(), model.other("out"), *writer, options);
  const auto checkpoint = moe::Checkpoint::open(model.other("out"));
  const auto config = moe::read_moe_config(model.other("out") / "config.json");
  for (const Index layer : {0, 1}) {
    int count = 0;
    CHECK(test::same_codes(moe::load_quantised_block(checkpoint, config, {.layer = layer}),
                           made[static_cast<std::size_t>(layer)], count));
    CHECK(count == 14);
  }
}

TEST_CASE("quantise_checkpoint: a quantiser that changes what stays is refused", "[io][error]") {
  const test::ModelDirectory model("gpt_oss", {64, 32});
  const auto writer = moe::weight_writer(WeightFormat::mxfp4(), "gpt_oss");
  moe::QuantiseOptions options;
  options.quantiser = [](const auto& checkpoint, const auto& config, const auto& load, const moe::WeightWriter& to) {
    auto block = moe::load_moe_block(checkpoint, config, load);
    moe::visit(
        [](const std::string& name, auto& leaf) {
          if (name.ends_with("down.bias")) moe::parameter_span(leaf)[0] += 1;
        },
        block);
    return moe::quantise(block, to.format());
  };
  CHECK(contains(message_of<std::invalid_argument>(
                     [&] { (void)moe::quantise_checkpoint(model.path(), model.other("out"), *writer, options); }),
                 "experts.down_proj_bias' has other numbers than the source"));
}
