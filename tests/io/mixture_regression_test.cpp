// SPDX-License-Identifier: MIT
#include "likelihood/mixtures.hpp"
#include "moe/io/file/parameters.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

TEST_CASE("MixtureRegression: saved and loaded it has the same bits", "[io][likelihood]") {
  const auto check = [](const auto& model) {
    const test::TemporaryDirectory directory;
    moe::save_parameters(directory / "m", model);
    auto loaded = std::decay_t<decltype(model)>::zero(2, 2, model.family, model.gate);
    moe::load_parameters(directory / "m", loaded);
    const auto data = test::simulated(model, 40, 3);
    CHECK(moe::free_parameters(loaded) == moe::free_parameters(model));
    CHECK(moe::log_density(loaded, data) == moe::log_density(model, data));
  };
  check(test::random_mixture<moe::StudentT>(2, 2, 1));
  check(test::random_mixture<moe::Multinomial>(2, 2, 2, {.classes = 3}, moe::TopKGate{.k = 1}));
}

TEST_CASE("MixtureRegression: a file of another gate or size is an error", "[io][error]") {
  const test::TemporaryDirectory directory;
  moe::save_parameters(directory / "m", test::random_mixture<moe::Poisson>(2, 2, 1));
  auto sparse = moe::MixtureRegression<moe::Poisson, moe::TopKGate>::zero(2, 2, {}, {.k = 1});
  CHECK_THROWS_AS(moe::load_parameters(directory / "m", sparse), std::runtime_error);
  auto wide = moe::MixtureRegression<moe::Multinomial>::zero(2, 2, {.classes = 3});
  CHECK_THROWS_AS(moe::load_parameters(directory / "m", wide), std::runtime_error);
}
