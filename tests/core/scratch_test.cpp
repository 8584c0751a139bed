// SPDX-License-Identifier: MIT
#include "moe/core/scratch.hpp"

#include <string>
#include <thread>

#include "support/catch.hpp"
#include "support/text.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Scratch;

TEST_CASE("Scratch: one object a type, and none of another's", "[core]") {
  Scratch scratch;
  scratch.get<int>() = 3;
  CHECK(scratch.get<int>() == 3);
  CHECK(scratch.get<double>() == 0);
  const Scratch copy(scratch);
  CHECK(Scratch(copy).get<int>() == 0);
}

TEST_CASE("Scratch: borrowers work in the memory of the lender, parts included", "[core]") {
  Scratch lender, a, b;
  a.get<int>() = 1;
  a.borrow(lender);
  b.borrow(a);  // and so of the same
  CHECK(a.get<int>() == 0);
  a.get<int>() = 2;
  a.reserve_parts(2);
  a.part(1).get<int>() = 3;
  CHECK(lender.get<int>() == 2);
  CHECK(&b.get<int>() == &lender.get<int>());
  CHECK(&b.part(1).get<int>() == &lender.part(1).get<int>());
  const Scratch copy(a);
  CHECK(Scratch(copy).get<int>() == 0);
  Scratch moved(std::move(a));
  CHECK(&moved.get<int>() == &lender.get<int>());
}

TEST_CASE("Scratch: borrowers have one mark of use, which neither nests nor is shared", "[core][error]") {
  using moe::detail::ExclusiveUse, moe::detail::Nested;
  Scratch lender, a, b;
  a.borrow(lender);
  b.borrow(lender);
  {
    const ExclusiveUse use("f", "a", a.use(), Nested::Refused);
    CHECK_THROWS_WITH(ExclusiveUse("f", "b", b.use(), Nested::Refused),
                      ContainsSubstring("f: b is in use by a pass around this one"));
    CHECK_NOTHROW(ExclusiveUse("f", "b", b.use()));
    std::string message;
    std::thread([&] {
      try {
        const ExclusiveUse other("f", "b", b.use(), Nested::Refused);
      } catch (const std::invalid_argument& error) {
        message = error.what();
      }
    }).join();
    CHECK_THAT(message, ContainsSubstring("f: b is in use by another thread"));
  }
  CHECK_NOTHROW(ExclusiveUse("f", "b", b.use(), Nested::Refused));
}

TEST_CASE("Scratch: nobody borrows from itself, straight or round about", "[core][error]") {
  Scratch a, b;
  const char* const words = "moe::Scratch::borrow: the lender works in this scratch";
  CHECK_THROWS_WITH(a.borrow(a), ContainsSubstring(words));
  a.borrow(b);
  CHECK_THROWS_WITH(b.borrow(a), ContainsSubstring(words));
  b.get<int>() = 1;
  CHECK(a.get<int>() == 1);
}
