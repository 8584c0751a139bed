// SPDX-License-Identifier: MIT
#include "moe/core/error.hpp"

#include "moe/core/matrix.hpp"
#include "support/catch.hpp"

namespace {

template <class Exception, class F>
std::string text_of(F f) {
  try {
    f();
  } catch (const Exception& exception) {
    return exception.what();
  }
  return "nothing thrown";
}

TEST_CASE("fail: throws invalid_argument with its parts in a row", "[core][error]") {
  const auto text = text_of<std::invalid_argument>([] { moe::fail("moe::f: k is ", 3, ", expected at most ", 2.5); });
  CHECK(text == "moe::f: k is 3, expected at most 2.5");
}

TEST_CASE("fail_environment: throws runtime_error with its parts in a row", "[core][error]") {
  const auto text = text_of<std::runtime_error>([] { moe::fail_environment("cannot read ", "a.bin"); });
  CHECK(text == "cannot read a.bin");
}

TEST_CASE("require_shape: names the function, the matrix, what it is and what it should be", "[core][error]") {
  const moe::Matrix<float> matrix(2, 3);
  const auto check = [&](moe::Index rows, moe::Index cols) {
    return text_of<std::invalid_argument>([&] { moe::detail::require_shape("moe::f", "tokens", matrix, rows, cols); });
  };
  CHECK(check(2, 3) == "nothing thrown");
  CHECK(check(2, 4) == "moe::f: tokens is [2, 3], expected [2, 4]");
  CHECK(check(1, 3) == "moe::f: tokens is [2, 3], expected [1, 3]");
}

}  // namespace
