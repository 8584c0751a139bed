// SPDX-License-Identifier: MIT
#include "moe/gaussian/inference/independence.hpp"

#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinRel;
using moe::Index;

namespace {

const Eigen::VectorXd kGrid = Eigen::VectorXd::LinSpaced(4001, -3, 3);

/// Values of an independent prototype on the same grid. A singular value is computed
/// within some epsilons of the largest, about 2, so that the smallest here, 1.5e-6, has 9 digits.
constexpr double kDigits = 1e-8;

struct Expected {
  double beta, first_order, f0, f1, f2;
};

template <class Act>
void check(std::initializer_list<Expected> table) {
  for (const Expected& row : table) {
    CAPTURE(Act::kName, row.beta);
    const auto found = moe::independence<Act>(row.beta, kGrid);
    CHECK_THAT(found.first_order, WithinRel(row.first_order, kDigits));
    CHECK_THAT(found.f0, WithinRel(row.f0, kDigits));
    CHECK_THAT(found.f1, WithinRel(row.f1, kDigits));
    CHECK_THAT(found.f2, WithinRel(row.f2, kDigits));
    CHECK(found.first_order_holds());
    CHECK(found.second_order_holds());
  }
}

/// e^x: independent to first order, but x s and x s' are the same.
struct Exponential {
  static constexpr const char* kName = "exp";
  template <class V>
  static V value(const V& x) {
    if constexpr (std::is_floating_point_v<V>)
      return std::exp(x);
    else
      return xsimd::exp(x);
  }
  template <class V>
  static V derivative(const V& x) {
    return value(x);
  }
  template <class V>
  static V second_derivative(const V& x) {
    return value(x);
  }
};

}  // namespace

TEST_CASE("independence: smooth activations are independent, as well as known", "[gaussian][golden]") {
  check<moe::Sigmoid>({{0.3, 0.005954408231, 2.366938658e-05, 3.885355742e-05, 3.88535635e-05},
                       {1, 0.118566135, 0.008951804329, 0.006140219501, 0.006140393471},
                       {2, 0.310769893, 0.05142252064, 0.04067543436, 0.04078898908}});
  check<moe::Tanh>({{0.3, 0.09284596633, 0.004842303802, 0.002363878088, 0.002363878088},
                    {1, 0.5141756185, 0.1404402945, 0.06735801669, 0.06735801669},
                    {2, 0.7196403631, 0.1475978367, 0.1698057371, 0.1698057371}});
  check<moe::Gelu>({{0.3, 0.1347560325, 0.0007412328363, 0.002695485035, 0.0001244427348},
                    {1, 0.05351322422, 0.0009000964185, 0.02020247325, 0.01400036572},
                    {2, 0.0285037553, 0.0002219772226, 0.009753624005, 0.02181962252}});
  check<moe::Silu>({{0.3, 0.117339228, 0.0001469944904, 0.0005851266479, 2.68321405e-05},
                    {1, 0.08135433929, 0.001280128399, 0.01651819885, 0.003306095351},
                    {2, 0.03803186028, 0.0004822945697, 0.01132162243, 0.01458556728}});
  check<moe::Softplus>({{0.3, 0.0257786331, 3.633072678e-06, 2.537662785e-05, 1.495078756e-06},
                        {1, 0.08319571128, 0.0001585294035, 0.002813302122, 0.0005272790719},
                        {2, 0.06047082568, 0.0001767297842, 0.007927462877, 0.003687944967}});
}

TEMPLATE_TEST_CASE("independence: homogeneous activations fail both orders", "[gaussian]", moe::Identity, moe::Relu) {
  for (const double beta : {0.3, 1.0, 2.0}) {
    CAPTURE(beta);
    const auto found = moe::independence<TestType>(beta, kGrid);
    CHECK(found.first_order < 1e-14);  // some epsilons
    CHECK(found.f0 == 0);              // s'' = 0: a column of zeros
    CHECK(found.f1 < 1e-14);
    CHECK(found.f2 < 1e-14);
    CHECK_FALSE(found.first_order_holds());
    CHECK_FALSE(found.second_order_holds());
  }
}

TEST_CASE("independence: the exponential fails at second order only", "[gaussian]") {
  const auto found = moe::independence<Exponential>(1, kGrid);
  CHECK_THAT(found.first_order, WithinRel(0.09636985998, kDigits));
  CHECK_THAT(found.f0, WithinRel(5.051927158e-05, kDigits));
  CHECK_THAT(found.f2, WithinRel(0.0125495377, kDigits));
  CHECK(found.f1 < 1e-14);
  CHECK(found.first_order_holds());
  CHECK_FALSE(found.second_order_holds());
}

TEST_CASE("independence: depends on beta x alone to first order, not on the order of points", "[gaussian][property]") {
  const double first = moe::independence<moe::Tanh>(1.5, kGrid).first_order;
  CHECK_THAT(moe::independence<moe::Tanh>(3, kGrid / 2).first_order, WithinRel(first, 1e-12));
  CHECK_THAT(moe::independence<moe::Tanh>(1.5, kGrid.reverse()).first_order, WithinRel(first, 1e-12));
}

TEST_CASE("independence: too few points or no slope are dependent", "[gaussian]") {
  CHECK(moe::independence<moe::Tanh>(1, Eigen::VectorXd::LinSpaced(6, -1, 1)).f0 == 0);
  CHECK(moe::independence<moe::Tanh>(1, Eigen::VectorXd::Ones(1)).first_order == 0);
  CHECK_FALSE(moe::independence<moe::Sigmoid>(0, kGrid).first_order_holds());
  CHECK_FALSE(moe::independence<moe::Sigmoid>(1, Eigen::VectorXd::Ones(9)).first_order_holds());
}

TEST_CASE("independence: bad numbers are errors", "[gaussian][error]") {
  Eigen::VectorXd x = kGrid;
  CHECK_THROWS_WITH(moe::independence<moe::Tanh>(NAN, x), ContainsSubstring("beta is nan"));
  CHECK_THROWS_WITH(moe::independence<moe::Tanh>(1, Eigen::VectorXd{}), ContainsSubstring("x is empty"));
  CHECK_THROWS_WITH(moe::independence<moe::Silu>(1e200, x), ContainsSubstring("overflows"));
  x(7) = INFINITY;
  CHECK_THROWS_WITH(moe::independence<moe::Tanh>(1, x), ContainsSubstring("x is inf at 7"));
}
