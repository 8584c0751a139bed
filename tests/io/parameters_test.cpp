// SPDX-License-Identifier: MIT
#include <cmath>
#include <string>
#include <vector>

#include "io/patterns.hpp"
#include "moe/io/file/parameters.hpp"
#include "moe/train/adam_w.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"
#include "support/parameters.hpp"
#include "support/sample_layer.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using test::fill_with_patterns;
using test::same_parameters;
using test::SampleLayer;
using test::TemporaryDirectory;

/// One parameter under a name of choice.
template <class Leaf>
struct Named {
  Leaf leaf = {};
  std::string name = "x";
  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    f(first.name, first.leaf, rest.leaf...);
  }
};

/// Two parameters.
struct Pair {
  moe::RowVector<float> a = moe::RowVector<float>::Ones(2);
  double b = 1;
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("b", self.b...);
    f("a", self.a...);
  }
};

/// Says that it has no parameters.
struct Nothing {
  template <class F, class... Self>
  static void visit(F&&, Self&...) {}
};

/// A mistake: one name twice.
struct Twice {
  double x = 0;
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("x", self.x...);
    f("x", self.x...);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("Parameters: saved and loaded they have the same bits", "[io]", moe::F32, moe::F64) {
  const TemporaryDirectory directory;
  SampleLayer<TestType> saved, loaded;
  fill_with_patterns(saved);
  moe::save_parameters(directory / "x", saved, {{"update", "12"}});
  REQUIRE_FALSE(same_parameters(loaded, saved));
  REQUIRE(moe::load_parameters(directory / "x", loaded) == moe::Metadata{{"update", "12"}});
  REQUIRE(same_parameters(loaded, saved));
}

TEST_CASE("Parameters: the file holds the logical layout under the visited names", "[io]") {
  const TemporaryDirectory directory;
  SampleLayer<moe::F32> layer;
  test::fill(layer, [](moe::Index k) { return static_cast<double>(k); });
  moe::save_parameters(directory / "x", layer);
  moe::SafetensorsReader reader(directory / "x");
  REQUIRE(reader.tensors().size() == 7);
  REQUIRE(reader.tensor("paired.weight").shape == std::vector<moe::Index>{10, 3});
  REQUIRE(reader.tensor("paired.bias").shape == std::vector<moe::Index>{10});
  REQUIRE(reader.tensor("scale").shape == std::vector<moe::Index>{7});
  REQUIRE(reader.tensor("temperature").shape.empty());
  REQUIRE(reader.tensor("temperature").dtype == moe::Dtype::F64);
  std::vector<float> weight(30);
  reader.read("paired.weight", std::span<float>(weight));
  for (moe::Index k = 0; k < 30; ++k) REQUIRE(weight[static_cast<std::size_t>(k)] == layer.paired.weight(k / 3, k % 3));
}

TEST_CASE("Parameters: a matrix stored by columns is saved by rows", "[io]") {
  const TemporaryDirectory directory;
  Named<Eigen::MatrixXf> saved{Eigen::MatrixXf{{1, 2, 3}, {4, 5, 6}}}, loaded{Eigen::MatrixXf(2, 3)};
  moe::save_parameters(directory / "x", saved);
  std::vector<float> values(6);
  moe::SafetensorsReader(directory / "x").read("x", std::span<float>(values));
  REQUIRE(values == std::vector<float>{1, 2, 3, 4, 5, 6});
  moe::load_parameters(directory / "x", loaded);
  REQUIRE(loaded.leaf == saved.leaf);
}

TEST_CASE("Parameters: empty ones make the round trip", "[io]") {
  const TemporaryDirectory directory;
  Named<moe::PanelMatrix<moe::F32>> empty{moe::PanelMatrix<moe::F32>(0, 4)};
  moe::save_parameters(directory / "empty", empty);
  REQUIRE(moe::SafetensorsReader(directory / "empty").tensor("x").shape == std::vector<moe::Index>{0, 4});
  REQUIRE_NOTHROW(moe::load_parameters(directory / "empty", empty));
}

TEST_CASE("Parameters: equal layers give equal bytes", "[io]") {
  const TemporaryDirectory directory;
  SampleLayer<moe::F32> layer;
  fill_with_patterns(layer);
  moe::save_parameters(directory / "x", layer);
  moe::save_parameters(directory / "y", SampleLayer<moe::F32>(layer));
  REQUIRE(test::read_bytes(directory / "x") == test::read_bytes(directory / "y"));
}

TEST_CASE("Parameters: training continues from files with the same bits", "[io]") {
  const TemporaryDirectory directory;
  const moe::AdamW adam;
  SampleLayer<moe::F32> layer, gradient, restored;
  test::fill(gradient, [](moe::Index k) { return std::sin(static_cast<double>(k)); });
  moe::AdamW::State state(layer), restored_state(layer);
  for (int step = 0; step < 3; ++step) adam.step(layer, gradient, state, 0.1);
  moe::save_parameters(directory / "layer", layer);
  moe::save_parameters(directory / "state", state);
  moe::load_parameters(directory / "layer", restored);
  moe::load_parameters(directory / "state", restored_state);
  adam.step(layer, gradient, state, 0.1);
  adam.step(restored, gradient, restored_state, 0.1);
  REQUIRE(same_parameters(layer, restored));
  REQUIRE(same_parameters(state, restored_state));
}

TEST_CASE("Parameters: float files fill doubles; double files fill floats only if rounding is allowed", "[io]") {
  const TemporaryDirectory directory;
  Named<moe::RowVector<float>> narrow{moe::RowVector<float>{{0.1f, 2}}};
  Named<moe::RowVector<double>> wide{moe::RowVector<double>::Zero(2)};
  moe::save_parameters(directory / "narrow", narrow);
  moe::load_parameters(directory / "narrow", wide);
  REQUIRE(wide.leaf == moe::RowVector<double>{{0.1f, 2}});
  wide.leaf(0) = 0.3;
  moe::save_parameters(directory / "wide", wide);
  REQUIRE_THROWS_WITH(moe::load_parameters(directory / "wide", narrow),
                      ContainsSubstring("'x' is F64, which F32 cannot hold"));
  REQUIRE(narrow.leaf(0) == 0.1f);
  moe::load_parameters(directory / "wide", narrow, moe::Narrowing::Allow);
  REQUIRE(narrow.leaf(0) == 0.3f);
}

TEST_CASE("load_parameters: a tensor missing, too many or of another shape is named, and nothing changes",
          "[io][error]") {
  using Vector = moe::RowVector<float>;
  const TemporaryDirectory directory;
  const auto require_refused = [&](const std::string& message) {
    Pair pair;
    REQUIRE_THROWS_WITH(moe::load_parameters(directory / "x", pair),
                        ContainsSubstring("/x'") && ContainsSubstring(message));
    REQUIRE_THROWS_AS(moe::load_parameters(directory / "x", pair), std::runtime_error);
    REQUIRE(same_parameters(pair, Pair{}));
  };
  moe::save_parameters(directory / "x", Named<Vector>{Vector::Zero(2), "a"});
  require_refused("tensor 'b' is missing");
  moe::save_parameters(directory / "x", Named<double>{0, "b"});
  require_refused("tensor 'a' is missing");
  moe::save_parameters(directory / "x", Pair{Vector::Zero(3), 0});
  require_refused("tensor 'a' has shape [3], expected [2]");
  const std::string late = R"({"a":{"dtype":"F64","shape":[2],"data_offsets":[8,24]},)"
                           R"("b":{"dtype":"F64","shape":[],"data_offsets":[0,8]}})";
  test::write_bytes(directory / "x", test::safetensors_bytes(late, std::string(24, '\0')));
  require_refused("tensor 'a' is F64");  // seen when b has been read already
  const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},)"
                             R"("b":{"dtype":"F64","shape":[SHAPE],"data_offsets":[0,8]}MORE})";
  const auto write = [&](std::string text, const std::string& shape, const std::string& more) {
    text.replace(text.find("SHAPE"), 5, shape).replace(text.find("MORE"), 4, more);
    test::write_bytes(directory / "x", test::safetensors_bytes(text, std::string(16, '\0')));
  };
  write(header, "1", "");
  require_refused("tensor 'b' has shape [1], expected []");
  write(header, "", R"(,"c":{"dtype":"F32","shape":[0],"data_offsets":[16,16]})");
  require_refused("tensor 'c' is not a parameter");
}

TEST_CASE("Parameters: an object that says it has none is a file without tensors, and takes no other", "[io]") {
  const TemporaryDirectory directory;
  Nothing nothing;
  moe::save_parameters(directory / "x", nothing, {{"k", "v"}});
  REQUIRE(moe::SafetensorsReader(directory / "x").tensors().empty());
  REQUIRE(moe::load_parameters(directory / "x", nothing) == moe::Metadata{{"k", "v"}});
  moe::save_parameters(directory / "x", Pair{});
  REQUIRE_THROWS_WITH(moe::load_parameters(directory / "x", nothing), ContainsSubstring("'a' is not a parameter"));
}

TEST_CASE("save_parameters: two parameters of one name are refused", "[io][error]") {
  const TemporaryDirectory directory;
  REQUIRE_THROWS_WITH(moe::save_parameters(directory / "x", Twice{}), ContainsSubstring("two parameters named 'x'"));
  REQUIRE(directory.num_files() == 0);
}
