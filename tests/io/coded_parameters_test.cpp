// SPDX-License-Identifier: MIT
// What is saved of weights that are codes, and of parts that do not learn.
#include "kernel/truncated_panels.hpp"
#include "moe/compress/sparsify.hpp"
#include "moe/expert/frozen.hpp"
#include "moe/io/file/parameters.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/files.hpp"

using Coded = moe::BasicMlp<test::Truncated<test::FewRows::Expanded>>;

TEST_CASE("Codes: are saved as the scalars that they decode to, and loaded into codes", "[io]") {
  const test::TemporaryDirectory directory;
  auto expert = test::random_expert<Coded>(9, 21, 1);
  auto loaded = test::random_expert<Coded>(9, 21, 2);
  const Coded shared = loaded;
  const float before = shared.up().get(2, 3);
  moe::save_parameters(directory / "expert.safetensors", expert);
  moe::load_parameters(directory / "expert.safetensors", loaded);
  const auto rows = test::random_matrix<float>(5, 9);
  CHECK(test::same_bits(test::run(loaded, rows), test::run(expert, rows)));
  CHECK(shared.up().get(2, 3) == before);  // who shared the codes has his own

  auto plain = test::random_expert<moe::Mlp>(9, 21, 3);  // names and shapes are those of any format
  moe::load_parameters(directory / "expert.safetensors", plain);
  CHECK(test::same_bits(test::run(plain, rows), test::run(expert, rows)));
}

TEST_CASE("Zeros: are in the file as any weight, which floats and experts that skip zeros load", "[io]") {
  const test::TemporaryDirectory directory;
  const auto expert =
      moe::mask_weights(test::random_expert<moe::Glu>(9, 21, 1), [](const moe::ExpertMatrix&, const auto& weights) {
        return moe::wanda(weights, std::vector<float>(static_cast<std::size_t>(weights.inputs()), 1.0f), 0.7);
      });
  const auto sparse = moe::skip_zeros(expert);
  moe::save_parameters(directory / "floats", expert);
  moe::save_parameters(directory / "sparse", sparse);
  CHECK(test::read_bytes(directory / "floats") == test::read_bytes(directory / "sparse"));
  auto loaded = moe::skip_zeros(test::random_expert<moe::Glu>(9, 21, 2));
  moe::load_parameters(directory / "floats", loaded);
  CHECK(loaded.down().num_weights() == sparse.down().num_weights());
  const auto rows = test::random_matrix<float>(5, 9);
  CHECK(test::same_bits(test::run(loaded, rows), test::run(expert, rows)));
}

TEST_CASE("Frozen: files are those of what it holds, and loading does not write to who shares it", "[io]") {
  const test::TemporaryDirectory directory;
  const auto expert = test::random_expert<moe::Glu>(9, 21, 1);
  moe::save_parameters(directory / "plain", expert);
  moe::save_parameters(directory / "frozen", moe::Frozen(expert));
  CHECK(test::read_bytes(directory / "plain") == test::read_bytes(directory / "frozen"));

  moe::Frozen loaded(test::random_expert<moe::Glu>(9, 21, 2));
  const moe::Frozen shared = loaded;
  const auto rows = test::random_matrix<float>(5, 9);
  const auto before = test::run(shared, rows);
  moe::load_parameters(directory / "plain", loaded);
  CHECK(test::same_bits(test::run(loaded, rows), test::run(expert, rows)));
  CHECK(test::same_bits(test::run(shared, rows), before));
}
