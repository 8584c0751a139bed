// SPDX-License-Identifier: MIT
// What objects keep without learning it: the second list beside visit.
#include <string>
#include <vector>

#include "moe/core/same_parameters.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;
using Names = std::vector<std::string>;

/// Learns one number and keeps another.
struct Scale {
  double factor = 2;
  Eigen::VectorXd mean = Eigen::VectorXd::Constant(3, 7.0);

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("factor", self.factor...);
  }
  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("mean", self.mean...);
  }
};

/// Has nothing to learn and says nothing about it.
struct Codebook {
  moe::Matrix<float> centroids = moe::Matrix<float>::Ones(2, 2);

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("centroids", self.centroids...);
  }
};

/// Names its parts once.
struct Model {
  Scale scale;
  Codebook codebook;
  double bias = 1;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "scale", self.scale...);
    moe::visit_part(f, "codebook", self.codebook...);
    f("bias", self.bias...);
  }
};

/// A composite of composites, with state of its own between them and a part under no prefix.
struct Tower {
  Model low;
  Scale plain;
  double height = 5;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "low", self.low...);
    moe::visit(f, self.plain...);
  }
  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("height", self.height...);
  }
};

/// Keeps a whole model.
struct FrozenModel {
  Model model;

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    moe::visit_part(f, "model", self.model...);
  }
};

/// A model and its gradient.
struct Moments {
  Model first;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_gradient(f, "first", self.first...);
  }
};

struct StateOfAnObject {
  double x = 0;
  template <class F>
  void state(F&& f) {
    f("x", x);
  }
};
struct StateOfCopies {
  double x = 0;
  template <class F, class... Self>
  static void state(F&& f, Self... self) {
    f("x", self.x...);
  }
};
/// Members of that name which mean something else.
struct Machine {
  int state = 0;
};
struct Switch {
  bool state() const { return true; }
};

struct Lists {
  Names learned, state, all;
};
template <class T>
Lists lists_of(const T& object) {
  Lists lists;
  moe::visit([&](const std::string& name, const auto&) { lists.learned.push_back(name); }, object);
  moe::visit_state([&](const std::string& name, const auto&) { lists.state.push_back(name); }, object);
  moe::visit_all([&](const std::string& name, const auto&) { lists.all.push_back(name); }, object);
  return lists;
}

}  // namespace

TEST_CASE("State: is listed apart from what is learned, and all holds both", "[core]") {
  const Lists lists = lists_of(Scale{});
  CHECK(lists.learned == Names{"factor"});
  CHECK(lists.state == Names{"mean"});
  CHECK(lists.all == Names{"factor", "mean"});
}

TEST_CASE("State: a composite that names its parts once passes on both, however deep", "[core]") {
  const Lists lists = lists_of(Tower{});
  CHECK(lists.learned == Names{"low.scale.factor", "low.bias", "factor"});
  CHECK(lists.state == Names{"low.scale.mean", "low.codebook.centroids", "mean", "height"});
  CHECK(lists.all ==
        Names{"low.scale.factor", "low.scale.mean", "low.codebook.centroids", "low.bias", "factor", "mean", "height"});
}

TEST_CASE("State: a part that is named there is frozen, and what it learned is kept", "[core]") {
  const Lists lists = lists_of(FrozenModel{});
  CHECK(lists.learned.empty());
  CHECK(lists.state == Names{"model.scale.factor", "model.scale.mean", "model.codebook.centroids", "model.bias"});
  CHECK(lists.all == lists.state);
}

TEST_CASE("State: that of a gradient is not visited", "[core]") {
  const Lists lists = lists_of(Moments{});
  CHECK(lists.learned == Names{"first.scale.factor", "first.bias"});
  CHECK(lists.state.empty());
  CHECK(lists.all == lists.learned);
}

TEST_CASE("State: several objects are walked together", "[core]") {
  Tower tower, other;
  other.height = 8;
  other.low.scale.mean.setConstant(4);
  moe::visit_state([](const std::string&, auto& to, const auto& from) { to = from; }, tower, std::as_const(other));
  CHECK(tower.height == 8);
  CHECK(tower.low.scale.mean == other.low.scale.mean);
}

TEST_CASE("State: parameters are counted, and numbers of state by themselves", "[core]") {
  CHECK(moe::num_parameters(Tower{}) == 3);
  CHECK(moe::num_state(Tower{}) == 3 + 4 + 3 + 1);
  CHECK(moe::num_state(1.5) == 0);
}

TEST_CASE("State: zeros_like copies it, and set_zero leaves it as it is", "[core]") {
  const Tower tower;
  Tower zeros = moe::zeros_like(tower);
  CHECK(zeros.low.scale.factor == 0);
  CHECK(zeros.height == 5);
  CHECK(zeros.low.scale.mean == tower.low.scale.mean);

  zeros.height = 3;
  zeros.plain.factor = 4;
  moe::set_zero(zeros);
  CHECK(zeros.height == 3);
  CHECK(zeros.plain.factor == 0);
}

TEST_CASE("State: that of a gradient may differ in size, parameters may not", "[core]") {
  const Tower tower;
  Tower gradient = moe::zeros_like(tower);
  gradient.low.scale.mean.resize(0);
  CHECK_NOTHROW(moe::detail::require_same_parameters("f", "gradient", tower, gradient));
  CHECK(moe::detail::Fingerprint::of(tower) == moe::detail::Fingerprint::of(gradient));
}

TEST_CASE("HasState: state is static and takes its objects by reference; other members of that name are not meant",
          "[core]") {
  STATIC_REQUIRE(moe::HasState<Scale>);
  STATIC_REQUIRE(moe::HasState<Codebook>);
  STATIC_REQUIRE_FALSE(moe::HasParameters<Codebook>);
  STATIC_REQUIRE_FALSE(moe::HasState<Model>);  // its parts have
  STATIC_REQUIRE_FALSE(moe::HasState<StateOfAnObject>);
  STATIC_REQUIRE_FALSE(moe::HasState<StateOfCopies>);
  STATIC_REQUIRE(moe::detail::HasOtherState<StateOfAnObject>);
  STATIC_REQUIRE(moe::detail::HasOtherState<StateOfCopies>);
  STATIC_REQUIRE_FALSE(moe::detail::HasOtherState<Scale>);
  STATIC_REQUIRE_FALSE(moe::detail::HasOtherState<Machine>);
  STATIC_REQUIRE_FALSE(moe::detail::HasOtherState<Switch>);
  STATIC_REQUIRE_FALSE(moe::detail::HasOtherState<double>);
}

namespace {

/// A list of numbers, each a parameter of the same name.
struct Numbers {
  std::vector<double> values;

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    for (std::size_t i = 0; i < first.values.size(); ++i) f("x", first.values[i], rest.values[i]...);
  }
};
struct TwoLists {
  Numbers first, second;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "first", self.first...);
    moe::visit_part(f, "second", self.second...);
  }
};

}  // namespace

TEST_CASE("require_gradient_of: parts that are cut elsewhere are refused, though their leaves are alike", "[core]") {
  const TwoLists part{{{1, 2, 3}}, {{4, 5}}}, gradient{{{1, 2}}, {{3, 4, 5}}};
  CHECK_NOTHROW(moe::detail::require_gradient_of("f", "gradient", part, part));
  CHECK_THROWS_WITH(moe::detail::require_gradient_of("f", "gradient", part, gradient),
                    Catch::Matchers::ContainsSubstring("parameter 'second.x' of gradient differs in name or shape"));
}
