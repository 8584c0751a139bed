// SPDX-License-Identifier: MIT
// Reference vectors through blocks that keep the few bits of their file: the bits of the block of floats, which is what
// was recorded.
#include "conformance/family_cases.hpp"
#include "conformance/file.hpp"
#include "moe/io/block/load_quantised_block.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"

using moe::Index;
using moe::Matrix;
using oracle::Sizes;
using oracle::Storage;

namespace {

/// Loads the block of a file as floats and as codes, and runs both over all of its inputs.
void check_file(const std::filesystem::path& path) {
  const auto checkpoint = moe::Checkpoint::open(path);
  const check::Facts facts(checkpoint.metadata());
  const auto router = check::find_router(checkpoint, facts, facts.text("family"));
  const moe::MoeConfig config = check::config_of(facts, router.rows);
  const moe::LoadOptions options{.layer = facts.integer("layer", 0), .prefix = router.prefix};
  const moe::MoeBlock floats = moe::load_moe_block(checkpoint, config, options);
  const moe::QuantisedMoeBlock codes = moe::load_quantised_block(checkpoint, config, options);
  check::Tensors tensors(checkpoint);
  for (const Index count : check::token_counts(checkpoint, facts)) {
    const check::Reference reference(tensors, count);
    const auto input = reference.matrix("input", config.model_dim),
               recorded = reference.matrix("output", config.model_dim);
    Matrix<float> output(count, config.model_dim), exact(count, config.model_dim);
    moe::Workspace ws;
    floats.forward(input, moe::Step{}, exact, ws);
    codes.forward(input, moe::Step{}, output, ws);
    CAPTURE(path.filename(), count);
    CHECK(test::same_bits(output, exact));
    CHECK(test::largest(output - recorded) < 5e-6 * test::largest(recorded));  // as check_block asks
  }
}

void check_case(const oracle::Family& family, const Sizes& sizes, Storage storage) {
  const test::TemporaryDirectory directory;
  oracle::write_file(directory / "case.safetensors", family, sizes, {.storage = storage, .seed = 3});
  check_file(directory / "case.safetensors");
}

}  // namespace

TEST_CASE("load_quantised_block: published vectors of BF16 weights are met in their bits", "[io][golden]") {
  for (const char* name : {"granitemoe_bf16.safetensors", "mixtral_bf16.safetensors"})
    check_file(std::filesystem::path(MOE_TEST_DATA) / "golden" / name);
}

TEST_CASE("load_quantised_block: BF16, FP8 and MXFP4 compute what plain loops do", "[io]") {
  const Sizes one{.dim = 9, .hidden = 17, .experts = 5, .k = 1, .tokens = 6};
  const Sizes blocks{.dim = 140, .hidden = 130, .experts = 4, .k = 2, .tokens = 4};
  const Sizes mx{.dim = 96, .hidden = 32, .experts = 4, .k = 2, .tokens = 6};
  check_case(oracle::plain("mixtral", one, "gate.weight", true), one, Storage::BF16);
  check_case(oracle::dbrx(one, 1, "1"), one, Storage::BF16);
  check_case(oracle::deepseek_v3(blocks, 2, 1, 2.5), blocks, Storage::BF16);
  check_case(oracle::deepseek_v3(blocks, 2, 1, 2.5), blocks, Storage::Fp8);
  check_case(oracle::gpt_oss(mx), mx, Storage::BF16);
  check_case(oracle::gpt_oss(mx), mx, Storage::Mxfp4);
}
