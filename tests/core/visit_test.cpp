// SPDX-License-Identifier: MIT
#include "moe/core/visit.hpp"

#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"

namespace {

using moe::Index;
using Names = std::vector<std::string>;

struct Line {
  moe::Matrix<float> weight = moe::Matrix<float>::Random(2, 3);
  Eigen::VectorXd bias = Eigen::VectorXd::Ones(2);

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight...);
    f("bias", self.bias...);
  }
};

struct Model {
  Line first, second;
  double temperature = 1.5;
  int not_learnable = 7;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "first", self.first...);
    moe::visit_part(f, "second", self.second...);
    f("temperature", self.temperature...);
  }
};

struct Plain {
  int k = 2;
};

struct NothingToLearn {
  template <class F, class... Self>
  static void visit(F&&, Self&...) {}
};

struct ByValue {
  double x = 0;
  template <class F, class... Self>
  static void visit(F&& f, Self... self) {
    f("x", self.x...);
  }
};

struct OfAnObject {
  double x = 0;
  template <class F>
  void visit(F&& f) {
    f("x", x);
  }
};

struct Final final {
  double x = 0;
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("x", self.x...);
  }
};

TEST_CASE("visit: names every parameter once, in order, with its path", "[core]") {
  const Model model;
  Names names;
  moe::visit([&](const std::string& name, const auto&) { names.push_back(name); }, model);
  CHECK(names == Names{"first.weight", "first.bias", "second.weight", "second.bias", "temperature"});
}

/// A model that is the gradient of another.
struct Gradient {
  Model model;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_gradient(f, "moment", self.model...);
  }
};

/// Is told of parts as they begin.
struct Paths {
  Names seen = {};

  void prefix(std::string_view name) { seen.push_back(std::string(name) + ":"); }
  template <class Leaf>
  void operator()(const std::string& name, const Leaf&) {
    seen.push_back(name);
  }
};

TEST_CASE("visit: parts of a gradient have the whole path as their name", "[core]") {
  const Gradient gradient;
  Names names;
  const auto note = [&](const std::string& name, const auto&) { names.push_back(name); };
  const Names expected{"moment.first.weight", "moment.first.bias", "moment.second.weight", "moment.second.bias",
                       "moment.temperature"};
  moe::visit(note, gradient);
  CHECK(names == expected);
  names.clear();
  moe::visit_all(note, gradient);
  CHECK(names == expected);
  names.clear();
  moe::visit_state(note, gradient);
  CHECK(names.empty());
}

TEST_CASE("visit: a visitor of prefixes is told of each part where it begins, of gradients too", "[core]") {
  Paths paths;
  const Gradient gradient;
  moe::visit(paths, gradient);
  CHECK(paths.seen == Names{"moment:", "first:", "weight", "bias", "second:", "weight", "bias", "temperature"});
}

TEST_CASE("visit: walks several objects leaf by leaf", "[core]") {
  Model model;
  const Model other;
  moe::visit(
      [](const std::string&, auto& to, const auto& from) {
        const auto a = moe::parameter_span(to);
        const auto b = moe::parameter_span(from);
        for (std::size_t i = 0; i < a.size(); ++i) a[i] = 2 * b[i];
      },
      model, other);
  CHECK(model.second.weight == 2 * other.second.weight);
  CHECK(model.first.bias == 2 * other.first.bias);
  CHECK(model.temperature == 3);
}

TEST_CASE("HasParameters: visit is static and takes its objects by reference, or nothing would learn", "[core]") {
  STATIC_REQUIRE(moe::HasParameters<Line>);
  STATIC_REQUIRE(moe::HasParameters<Model>);
  STATIC_REQUIRE(moe::HasParameters<NothingToLearn>);
  STATIC_REQUIRE(moe::HasParameters<Final>);
  STATIC_REQUIRE_FALSE(moe::HasParameters<ByValue>);
  STATIC_REQUIRE_FALSE(moe::HasParameters<OfAnObject>);
  STATIC_REQUIRE_FALSE(moe::HasParameters<double>);
  STATIC_REQUIRE(moe::detail::HasVisitMember<ByValue>);
  STATIC_REQUIRE(moe::detail::HasVisitMember<OfAnObject>);
  STATIC_REQUIRE_FALSE(moe::detail::HasVisitMember<Plain>);
}

TEST_CASE("visit: an object without parameters is visited without a call", "[core]") {
  STATIC_REQUIRE_FALSE(moe::HasParameters<Plain>);
  STATIC_REQUIRE(moe::HasParameters<Model>);
  Plain plain;
  int calls = 0;
  moe::visit([&](const std::string&, auto&) { ++calls; }, plain);
  CHECK(calls == 0);
  CHECK(moe::num_parameters(plain) == 0);
}

TEST_CASE("zeros_like: has the shapes, zeros, and leaves the original and its settings alone", "[core]") {
  Model model;
  model.not_learnable = 9;
  const Model zeros = moe::zeros_like(model);
  CHECK(zeros.first.weight.rows() == 2);
  CHECK(zeros.first.weight.isZero(0));
  CHECK(zeros.second.bias.isZero(0));
  CHECK(zeros.temperature == 0);
  CHECK(zeros.not_learnable == 9);
  CHECK(model.temperature == 1.5);
}

TEST_CASE("num_parameters: counts the scalars of all leaves", "[core]") { CHECK(moe::num_parameters(Model()) == 17); }

TEST_CASE("parameter_shape: is empty, a length, or rows and columns", "[core]") {
  CHECK(moe::parameter_shape(1.5).empty());
  CHECK(moe::parameter_shape(Eigen::RowVectorXf(4)) == std::vector<Index>{4});
  CHECK(moe::parameter_shape(moe::Matrix<double>(2, 3)) == std::vector<Index>{2, 3});
}

TEST_CASE("read_parameter: copies row by row, whatever the storage order", "[core]") {
  std::vector<float> a(16), b(16), expected(16);
  std::iota(expected.begin(), expected.end(), 1.0f);
  const moe::Matrix<float> by_rows = Eigen::Map<const moe::Matrix<float>>(expected.data(), 2, 8);
  const Eigen::MatrixXd by_columns = by_rows.cast<double>();
  moe::read_parameter(by_columns, std::span(a));
  moe::read_parameter(by_rows, std::span(b));
  CHECK(a == expected);
  CHECK(b == expected);
}

TEST_CASE("write_parameter: takes back what read_parameter gave", "[core]") {
  const Model model;
  Model copy = moe::zeros_like(model);
  moe::visit(
      [](const std::string&, auto& to, const auto& from) {
        std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(from)));
        moe::read_parameter(from, std::span(values));
        moe::write_parameter(to, std::span<const double>(values));
      },
      copy, model);
  CHECK(copy.first.weight == model.first.weight);
  CHECK(copy.second.bias == model.second.bias);
  CHECK(copy.temperature == model.temperature);
}

}  // namespace
